// The C interface to the LibTorch operators that tch does not bind.
// Its Rust side, with the shapes and the guarantees, is server/src/model/torch.rs.
#pragma once
#include <cstdint>

namespace at {
class Tensor;
}

extern "C" {
// Every function returns nullptr on success, else a message that the caller
// frees with embedding_free_message. Results are new tensors owned by the caller.

char *embedding_prepack_linear(const at::Tensor *weight, int64_t rows, at::Tensor **out);

char *embedding_linear(const at::Tensor *x, const at::Tensor *packed, const at::Tensor *bias,
                       const at::Tensor *residual, const char *activation, at::Tensor **out);

// How attention is computed; `reach` is -1 where all see each other, `bias` is null or
// `[heads, 2 * longest - 1]`, f32: by head and by how far a key is ahead of a query.
struct embedding_attention {
  int64_t heads;
  int64_t key_value_heads;
  int64_t head_size;
  double scale;
  int64_t causal;
  int64_t reach;
  const at::Tensor *bias;
};

char *embedding_packed_attention(const at::Tensor *qkv, const int64_t *lengths, int64_t count,
                                 const embedding_attention *how, at::Tensor **out);

char *embedding_segment_reduce(const at::Tensor *rows, const int64_t *lengths, int64_t count,
                               const char *reduce, at::Tensor **out);

char *embedding_enter_inference_mode(void);

void embedding_free_message(char *message);
}
