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

// The texts of a batch, which lie one after the other, longest first; and what attention makes of their lengths once.
struct embedding_texts;

// `gpu` is its index, or -1.
char *embedding_texts_new(const int64_t *lengths, int64_t count, int64_t gpu, embedding_texts **out);

void embedding_texts_free(embedding_texts *texts);

// How attention is computed; `reach` is -1 where all see each other, `bias` is null or
// `[heads, 2 * longest - 1]`, f32: by head and by how far a key is ahead of a query.
struct embedding_attention {
  double scale;
  int64_t causal;
  int64_t reach;
  // One of `embedding_path`.
  int64_t path;
  const at::Tensor *bias;
};

// By which way: a call for each run of texts of one length; for each few texts of nearly one length, which are padded;
// or one for all of them, which only GPUs have, in half precision, and without a bias.
enum embedding_path { EMBEDDING_RUNS = 0, EMBEDDING_PADDED = 1, EMBEDDING_FLASH = 2 };

// `q` is `[rows, heads, size]`, `k` and `v` `[rows, key_value_heads, size]`; the result `[rows, heads * size]`.
char *embedding_packed_attention(const at::Tensor *q, const at::Tensor *k, const at::Tensor *v,
                                 embedding_texts *texts, const embedding_attention *how,
                                 at::Tensor **out);

char *embedding_segment_reduce(const at::Tensor *rows, const int64_t *lengths, int64_t count,
                               const char *reduce, at::Tensor **out);

char *embedding_enter_inference_mode(void);

// From now on the calling thread computes on this GPU, in a stream of its own.
char *embedding_use_gpu(int64_t index);

// Gives back the memory of GPUs that is kept for later tensors.
char *embedding_release_gpu_memory(void);

// Whole numbers on a device, whose index is -1 for the CPU; to a GPU they are copied while the thread goes on.
char *embedding_whole_numbers(const int64_t *values, int64_t count, int64_t gpu, at::Tensor **out);

// The values of a tensor of so many numbers on a GPU, as f32; waits for the thread's stream.
char *embedding_from_gpu(const at::Tensor *tensor, float *values, int64_t count);

void embedding_free_message(char *message);
}
