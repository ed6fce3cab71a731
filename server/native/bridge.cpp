#include "bridge.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <vector>

namespace {

// The rest of a LibTorch message lists backends or C++ frames.
char *first_line(const char *text) { return strndup(text, strcspn(text, "\n")); }

// No exception may cross into Rust: it becomes a message.
template <typename F>
char *guarded(F &&body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &error) {
    return first_line(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return first_line(error.what());
  } catch (...) {
    return strdup("an unknown C++ exception");
  }
}

// Operators of the mkldnn namespace have no C++ declaration in LibTorch's
// headers: they are found by name, once, and called through the boxed interface,
// which does not depend on the exact C++ types of their signature.
const c10::OperatorHandle &find(const char *name, const char *overload) {
  return *new c10::OperatorHandle(
      c10::Dispatcher::singleton().findSchemaOrThrow(name, overload));
}

at::Tensor call(const c10::OperatorHandle &op, torch::jit::Stack stack) {
  op.callBoxed(stack);
  return stack.at(0).toTensor();
}

}  // namespace

char *embedding_prepack_linear(const at::Tensor *weight, int64_t rows, at::Tensor **out) {
  return guarded([&] {
    static const auto &op = find("mkldnn::_reorder_linear_weight", "");
    *out = new at::Tensor(call(op, {*weight, rows}));
  });
}

char *embedding_linear(const at::Tensor *x, const at::Tensor *packed, const at::Tensor *bias,
                       const at::Tensor *residual, const char *activation, at::Tensor **out) {
  return guarded([&] {
    if (residual != nullptr) {
      static const auto &op = find("mkldnn::_linear_pointwise", "binary");
      *out = new at::Tensor(call(op, {*x, *residual, *packed, *bias, std::string("add")}));
      return;
    }
    static const auto &op = find("mkldnn::_linear_pointwise", "");
    // "gelu" takes the algorithm ("none" is the erf form, "tanh" its approximation).
    std::string attribute = activation;
    c10::IValue algorithm;
    if (attribute == "gelu") {
      algorithm = std::string("none");
    } else if (attribute == "gelu_tanh") {
      attribute = "gelu";
      algorithm = std::string("tanh");
    }
    c10::List<std::optional<at::Scalar>> scalars;
    *out = new at::Tensor(call(op, {*x, *packed, *bias, attribute, scalars, algorithm}));
  });
}

namespace {

// How many queries at a time meet their keys where scores get a mask: it bounds the mask's size.
constexpr int64_t QUERIES = 256;

// What is added to the scores of queries [first, first + count) and keys [key, key + keys) of a text:
// `[heads or 1, count, keys]`, f32.
at::Tensor mask_of(const embedding_attention &how, int64_t first, int64_t count, int64_t key,
                   int64_t keys, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  // [count, keys]: how far each key is ahead of each query.
  const auto distance = at::arange(key, key + keys, options).unsqueeze(0) -
                        at::arange(first, first + count, options).unsqueeze(1);
  at::Tensor mask;
  if (how.bias != nullptr) {
    const int64_t longest = (how.bias->size(1) + 1) / 2;
    mask = how.bias->index_select(1, (distance + (longest - 1)).flatten())
               .view({-1, count, keys});
  } else {
    mask = at::zeros({1, count, keys}, options.dtype(at::kFloat));
  }
  const auto hide = [&](const at::Tensor &hidden) {
    mask = mask.masked_fill(hidden.unsqueeze(0), -std::numeric_limits<float>::infinity());
  };
  if (how.causal != 0) hide(distance > 0);
  if (how.reach >= 0) hide(distance.abs() > how.reach);
  return mask;
}

// Attention in texts of one length; `q` is `[texts, heads, length, head size]`, as is the result.
at::Tensor attend(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v,
                  const embedding_attention &how) {
  const int64_t length = q.size(2);
  const bool far = how.reach >= 0 && how.reach < length - 1;
  if (how.bias == nullptr && !far)
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, how.causal != 0, how.scale);
  std::vector<at::Tensor> parts;
  for (int64_t first = 0; first < length; first += QUERIES) {
    const int64_t count = std::min(QUERIES, length - first);
    const int64_t key = far ? std::max<int64_t>(0, first - how.reach) : 0;
    const int64_t ahead = how.causal != 0 ? 0 : far ? how.reach : length;
    const int64_t keys = std::min(length, first + count + ahead) - key;
    const auto mask = mask_of(how, first, count, key, keys, q.device())
                          .to(q.scalar_type())
                          .unsqueeze(0)
                          .expand({q.size(0), q.size(1), count, keys});
    parts.push_back(at::scaled_dot_product_attention(q.narrow(2, first, count), k.narrow(2, key, keys),
                                                     v.narrow(2, key, keys), mask, 0.0, false,
                                                     how.scale));
  }
  return parts.size() == 1 ? parts.front() : at::cat(parts, 2);
}

}  // namespace

char *embedding_packed_attention(const at::Tensor *qkv, const int64_t *lengths, int64_t count,
                                 const embedding_attention *how, at::Tensor **out) {
  return guarded([&] {
    const int64_t size = how->head_size;
    const int64_t heads = how->heads, key_value_heads = how->key_value_heads;
    const int64_t width = heads * size;
    std::vector<at::Tensor> parts;
    int64_t row = 0;
    for (int64_t first = 0; first < count;) {
      const int64_t length = lengths[first];
      int64_t last = first + 1;
      while (last < count && lengths[last] == length) ++last;
      const int64_t texts = last - first;
      const auto run = qkv->narrow(0, row, texts * length)
                           .view({texts, length, heads + 2 * key_value_heads, size})
                           .transpose(1, 2);
      const auto of = [&](int64_t begin, int64_t number) {
        const auto part = run.narrow(1, begin, number);
        // Each head of keys and values serves as many heads of queries.
        return number == heads ? part : part.repeat_interleave(heads / number, 1);
      };
      const auto context = attend(of(0, heads), of(heads, key_value_heads),
                                  of(heads + key_value_heads, key_value_heads), *how);
      parts.push_back(context.transpose(1, 2).reshape({texts * length, width}));
      row += texts * length;
      first = last;
    }
    // Rows beyond the last text are padding of the linears' row count.
    if (row < qkv->size(0)) parts.push_back(at::zeros({qkv->size(0) - row, width}, qkv->options()));
    *out = new at::Tensor(parts.size() == 1 ? parts.front() : at::cat(parts));
  });
}

char *embedding_segment_reduce(const at::Tensor *rows, const int64_t *lengths, int64_t count,
                               const char *reduce, at::Tensor **out) {
  return guarded([&] {
    const auto sizes = at::from_blob(const_cast<int64_t *>(lengths), {count}, at::kLong);
    *out = new at::Tensor(at::segment_reduce(*rows, reduce, sizes, {}, {}, 0, /*unsafe=*/true));
  });
}

char *embedding_enter_inference_mode(void) {
  return guarded([] { static thread_local c10::InferenceMode mode(true); });
}

void embedding_free_message(char *message) { std::free(message); }
