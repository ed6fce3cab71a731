// Makes tch 0.17, written for LibTorch 2.4, compile against LibTorch 2.11.
//
// `.cargo/config.toml` forces this header into every C++ file of the build with
// `-include`. Three operators that the generated bindings call have since
// changed their signature; here are inline overloads of the old signatures. They
// throw, and nothing in this project calls them: the bindings only have to
// compile. C++ files that do not see LibTorch's headers get an empty file.
//
// Why 2.11 rather than 2.4: docs/decisions/0001-libtorch.md.
#pragma once

#if defined(__cplusplus) && __has_include(<torch/version.h>) && __has_include(<ATen/ATen.h>)
#include <torch/version.h>

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11
#include <ATen/ATen.h>

namespace at {

inline std::tuple<Tensor, Tensor> _scaled_mm(
    const Tensor &, const Tensor &, const std::optional<Tensor> &,
    std::optional<ScalarType>, const std::optional<Tensor> &,
    const std::optional<Tensor> &, const std::optional<Tensor> &, bool) {
  TORCH_CHECK(false, "_scaled_mm has the signature of LibTorch 2.4, which is gone");
}

inline std::tuple<Tensor &, Tensor &> _scaled_mm_out(
    Tensor &, Tensor &, const Tensor &, const Tensor &,
    const std::optional<Tensor> &, std::optional<ScalarType>,
    const std::optional<Tensor> &, const std::optional<Tensor> &,
    const std::optional<Tensor> &, bool) {
  TORCH_CHECK(false, "_scaled_mm_out has the signature of LibTorch 2.4, which is gone");
}

inline std::tuple<Tensor, Tensor, Tensor> _scaled_dot_product_cudnn_attention_backward(
    const Tensor &, const Tensor &, const Tensor &, const Tensor &, const Tensor &,
    const Tensor &, const Tensor &, const Tensor &, int64_t, int64_t, double, bool,
    const Tensor &, const Tensor &, std::optional<double>) {
  TORCH_CHECK(false,
              "_scaled_dot_product_cudnn_attention_backward has the signature of "
              "LibTorch 2.4, which is gone");
}

}  // namespace at
#endif
#endif
