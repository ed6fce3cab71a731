#include "bridge.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <map>
#include <tuple>
#include <utility>
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
// Longer texts are not padded: a mask of them would be large, and each is work enough for a call.
constexpr int64_t PADDED = 1024;

// Some texts that are padded to the longest of them, which is the first.
struct Group {
  int64_t first_text, texts, first_row, rows, longest;
  // `[texts * longest]`: the row of each place, of a place that is none any one; and `[rows]`: the place of each row.
  at::Tensor rows_of_places, places_of_rows;
  // `[texts, 1, 1, longest]`, f32: 0, or negative infinity where there is no token. Undefined where all are there.
  at::Tensor absent;
};

c10::Device device_of(int64_t gpu) {
  return gpu < 0 ? c10::Device(c10::DeviceType::CPU)
                 : c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(gpu));
}

// A copy on that device; to a GPU while the thread goes on.
template <typename T>
at::Tensor moved(const T *values, int64_t count, c10::ScalarType type, c10::Device device) {
  const auto here =
      at::empty({count}, at::TensorOptions().dtype(type).pinned_memory(device.is_cuda()));
  std::copy_n(values, count, here.template mutable_data_ptr<T>());
  return device.is_cuda() ? here.to(device, type, /*non_blocking=*/true) : here;
}

}  // namespace

struct embedding_texts {
  std::vector<int64_t> lengths;
  c10::Device device;
  int64_t tokens = 0;
  int64_t longest = 1;
  // `[texts + 1]`, i32: where texts begin, and where the last one ends.
  at::Tensor bounds;
  std::vector<Group> groups;
  // By group, causality and reach: what is added to the scores, where it is not the same in each layer's call anyway.
  std::map<std::tuple<size_t, bool, int64_t, const void *>, at::Tensor> masks;

  embedding_texts(const int64_t *values, int64_t count, int64_t gpu)
      : lengths(values, values + count), device(device_of(gpu)) {
    for (const auto length : lengths) {
      tokens += length;
      longest = std::max(longest, length);
    }
  }

  const at::Tensor &all_bounds() {
    if (!bounds.defined()) {
      std::vector<int32_t> ends{0};
      for (const auto length : lengths) ends.push_back(ends.back() + static_cast<int32_t>(length));
      bounds = moved(ends.data(), static_cast<int64_t>(ends.size()), at::kInt, device);
    }
    return bounds;
  }

  // Texts that are at least three quarters as long as the first of their group.
  const std::vector<Group> &all_groups() {
    if (!groups.empty()) return groups;
    int64_t row = 0;
    const auto count = static_cast<int64_t>(lengths.size());
    for (int64_t first = 0; first < count;) {
      const int64_t most = lengths[first];
      int64_t last = first + 1;
      const bool alone = most > PADDED;
      while (last < count && (alone ? lengths[last] == most : lengths[last] <= most && 4 * lengths[last] >= 3 * most))
        ++last;
      Group group{first, last - first, row, 0, most, {}, {}, {}};
      std::vector<int64_t> rows, places;
      std::vector<float> absent;
      for (int64_t text = first; text < last; ++text) {
        for (int64_t place = 0; place < most; ++place) {
          const bool there = place < lengths[text];
          rows.push_back(there ? row + group.rows + place : row);
          absent.push_back(there ? 0.0F : -std::numeric_limits<float>::infinity());
          if (there) places.push_back((text - first) * most + place);
        }
        group.rows += lengths[text];
      }
      if (group.rows < group.texts * most) {
        group.rows_of_places = moved(rows.data(), static_cast<int64_t>(rows.size()), at::kLong, device);
        group.places_of_rows = moved(places.data(), static_cast<int64_t>(places.size()), at::kLong, device);
        group.absent = moved(absent.data(), static_cast<int64_t>(absent.size()), at::kFloat, device)
                           .view({group.texts, 1, 1, most});
      }
      row += group.rows;
      groups.push_back(std::move(group));
      first = last;
    }
    return groups;
  }
};

namespace {

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

// Queries, keys or values `[rows, some heads, size]` as `[texts, heads, length, size]`.
at::Tensor by_head(const at::Tensor &rows, int64_t texts, int64_t length, int64_t heads) {
  const auto part = rows.view({texts, length, rows.size(1), rows.size(2)}).transpose(1, 2);
  // Each head of keys and values serves as many heads of queries.
  return rows.size(1) == heads ? part : part.repeat_interleave(heads / rows.size(1), 1);
}

at::Tensor run(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, int64_t row, int64_t texts,
               int64_t length, const embedding_attention &how) {
  const auto of = [&](const at::Tensor &part) {
    return by_head(part.narrow(0, row, texts * length), texts, length, q.size(1));
  };
  return attend(of(q), of(k), of(v), how).transpose(1, 2).reshape({texts * length, -1});
}

at::Tensor padded(const at::Tensor &q, const at::Tensor &k, const at::Tensor &v, embedding_texts &texts,
                  size_t index, const embedding_attention &how) {
  const auto &group = texts.all_groups()[index];
  if (!group.absent.defined()) return run(q, k, v, group.first_row, group.texts, group.longest, how);
  auto &mask = texts.masks[{index, how.causal != 0, how.reach, how.bias}];
  if (!mask.defined())
    mask = (mask_of(how, 0, group.longest, 0, group.longest, q.device()).unsqueeze(0) + group.absent)
               .to(q.scalar_type());
  const auto of = [&](const at::Tensor &part) {
    return by_head(part.index_select(0, group.rows_of_places), group.texts, group.longest, q.size(1));
  };
  const auto context = at::scaled_dot_product_attention(
      of(q), of(k), of(v), mask.expand({group.texts, q.size(1), group.longest, group.longest}), 0.0, false,
      how.scale);
  return context.transpose(1, 2)
      .reshape({group.texts * group.longest, -1})
      .index_select(0, group.places_of_rows);
}

}  // namespace

char *embedding_texts_new(const int64_t *lengths, int64_t count, int64_t gpu, embedding_texts **out) {
  return guarded([&] { *out = new embedding_texts(lengths, count, gpu); });
}

void embedding_texts_free(embedding_texts *texts) { delete texts; }

char *embedding_packed_attention(const at::Tensor *q, const at::Tensor *k, const at::Tensor *v,
                                 embedding_texts *texts, const embedding_attention *how,
                                 at::Tensor **out) {
  return guarded([&] {
    const auto rows = q->size(0);
    if (how->path == EMBEDDING_FLASH) {
      const auto &bounds = texts->all_bounds();
      const auto reach = how->reach >= 0 ? how->reach : -1;
      const auto ahead = how->causal != 0 ? 0 : reach;
      const auto result = at::_flash_attention_forward(
          *q, *k, *v, bounds, bounds, texts->longest, texts->longest, 0.0, how->causal != 0,
          /*return_debug_mask=*/false, how->scale, reach, ahead);
      *out = new at::Tensor(std::get<0>(result).reshape({rows, -1}));
      return;
    }
    std::vector<at::Tensor> parts;
    int64_t row = 0;
    if (how->path == EMBEDDING_PADDED) {
      for (size_t group = 0; group < texts->all_groups().size(); ++group) {
        parts.push_back(padded(*q, *k, *v, *texts, group, *how));
        row += parts.back().size(0);
      }
    } else {
      const auto &lengths = texts->lengths;
      for (size_t first = 0; first < lengths.size();) {
        size_t last = first + 1;
        while (last < lengths.size() && lengths[last] == lengths[first]) ++last;
        parts.push_back(run(*q, *k, *v, row, static_cast<int64_t>(last - first), lengths[first], *how));
        row += parts.back().size(0);
        first = last;
      }
    }
    // Rows beyond the last text are padding of the linears' row count.
    if (row < rows) parts.push_back(at::zeros({rows - row, parts.front().size(1)}, q->options()));
    *out = new at::Tensor(parts.size() == 1 ? parts.front() : at::cat(parts));
  });
}

char *embedding_segment_reduce(const at::Tensor *rows, const int64_t *lengths, int64_t count,
                               const char *reduce, at::Tensor **out) {
  return guarded([&] {
    const auto sizes = moved(lengths, count, at::kLong, rows->device());
    *out = new at::Tensor(at::segment_reduce(*rows, reduce, sizes, {}, {}, 0, /*unsafe=*/true));
  });
}

char *embedding_release_gpu_memory(void) {
  return guarded([] { at::getDeviceAllocator(at::kCUDA)->emptyCache(); });
}

char *embedding_enter_inference_mode(void) {
  return guarded([] { static thread_local c10::InferenceMode mode(true); });
}

char *embedding_use_gpu(int64_t index) {
  return guarded([&] {
    // cuDNN's attention is compiled anew for every shape of a batch, of which no two are alike here, and what was
    // compiled is kept for ever.
    at::globalContext().setSDPUseCuDNN(false);
    const c10::impl::VirtualGuardImpl gpus(c10::DeviceType::CUDA);
    const auto device = device_of(index);
    gpus.setDevice(device);
    gpus.exchangeStream(gpus.getStreamFromGlobalPool(device));
  });
}

char *embedding_whole_numbers(const int64_t *values, int64_t count, int64_t gpu, at::Tensor **out) {
  return guarded([&] { *out = new at::Tensor(moved(values, count, at::kLong, device_of(gpu))); });
}

char *embedding_from_gpu(const at::Tensor *tensor, float *values, int64_t count) {
  return guarded([&] {
    const auto there = tensor->to(at::kFloat).contiguous();
    TORCH_CHECK(there.numel() == count, "a tensor of ", there.numel(), " numbers, room for ", count);
    const auto here = at::empty({count}, at::TensorOptions().dtype(at::kFloat).pinned_memory(true));
    here.copy_(there.view({count}), /*non_blocking=*/true);
    const c10::impl::VirtualGuardImpl gpus(c10::DeviceType::CUDA);
    gpus.synchronizeStream(gpus.getStream(there.device()));
    std::copy_n(here.const_data_ptr<float>(), count, values);
  });
}

void embedding_free_message(char *message) { std::free(message); }
