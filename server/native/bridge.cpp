#include "bridge.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>

#include <cstdlib>
#include <cstring>
#include <exception>

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

char *embedding_packed_attention(const at::Tensor *qkv, const int64_t *lengths, int64_t count,
                                 int64_t heads, at::Tensor **out) {
  return guarded([&] {
    const int64_t hidden = qkv->size(1) / 3;
    const int64_t head_size = hidden / heads;
    std::vector<at::Tensor> parts;
    int64_t row = 0;
    for (int64_t first = 0; first < count;) {
      const int64_t length = lengths[first];
      int64_t last = first + 1;
      while (last < count && lengths[last] == length) ++last;
      const int64_t texts = last - first;
      const auto run = qkv->narrow(0, row, texts * length)
                           .view({texts, length, 3, heads, head_size})
                           .permute({2, 0, 3, 1, 4});
      const auto context = std::get<0>(
          at::_scaled_dot_product_flash_attention_for_cpu(run[0], run[1], run[2]));
      parts.push_back(context.transpose(1, 2).reshape({texts * length, hidden}));
      row += texts * length;
      first = last;
    }
    // Rows beyond the last text are padding of the linears' row count.
    if (row < qkv->size(0)) parts.push_back(at::zeros({qkv->size(0) - row, hidden}, qkv->options()));
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
