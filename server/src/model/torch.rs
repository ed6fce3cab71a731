//! The bridge to `LibTorch` operators that tch does not bind (`native/bridge.cpp`).
//!
//! The only `unsafe` code beside LibTorch. Each wrapper checks what the C++ side
//! assumes, so that safe code cannot reach undefined behaviour through it.
#![expect(unsafe_code, reason = "calls into C++")]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use super::encoder::HiddenAct;

unsafe extern "C" {
    fn embedding_prepack_linear(weight: *const C_tensor, rows: i64, out: *mut *mut C_tensor) -> *mut c_char;
    fn embedding_linear(
        x: *const C_tensor,
        packed: *const C_tensor,
        bias: *const C_tensor,
        residual: *const C_tensor,
        activation: *const c_char,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn embedding_texts_new(lengths: *const i64, count: i64, gpu: i64, out: *mut *mut RawTexts)
    -> *mut c_char;
    fn embedding_texts_free(texts: *mut RawTexts);
    fn embedding_packed_attention(
        q: *const C_tensor,
        k: *const C_tensor,
        v: *const C_tensor,
        texts: *mut RawTexts,
        how: *const RawAttention,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn embedding_segment_reduce(
        rows: *const C_tensor,
        lengths: *const i64,
        count: i64,
        reduce: *const c_char,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn embedding_enter_inference_mode() -> *mut c_char;
    fn embedding_use_gpu(index: i64) -> *mut c_char;
    fn embedding_release_gpu_memory() -> *mut c_char;
    fn embedding_whole_numbers(
        values: *const i64,
        count: i64,
        gpu: i64,
        out: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn embedding_from_gpu(tensor: *const C_tensor, values: *mut f32, count: i64) -> *mut c_char;
    fn embedding_free_message(message: *mut c_char);
}

fn check(message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null message is a NUL-terminated string that the bridge
    // allocated for us; it is copied before it is freed, once.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        embedding_free_message(message);
        text
    };
    Err(TchError::Torch(text))
}

/// Calls `f` with the place for its result tensor and takes ownership of it.
fn result(f: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, TchError> {
    let mut out = std::ptr::null_mut();
    check(f(&raw mut out))?;
    // SAFETY: on success the bridge stored a new tensor that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// What a linear layer does with its result before it stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// Nothing.
    Identity,
    /// GELU by the error function.
    Gelu,
    /// GELU by the tanh approximation.
    GeluTanh,
    /// max(0, x).
    Relu,
}

/// An activation of a feed-forward, where no linear layer does it with its result.
pub(crate) fn activated(y: &Tensor, activation: HiddenAct) -> Result<Tensor, TchError> {
    match activation {
        HiddenAct::Gelu => y.f_gelu("none"),
        HiddenAct::GeluTanh => y.f_gelu("tanh"),
        HiddenAct::Relu => y.f_relu(),
        HiddenAct::Silu => y.f_silu(),
    }
}

/// A linear layer `y = x Wᵀ + b`. On a CPU, oneDNN has laid out its weight for its own matrix kernels. Clones share the
/// weights.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
    in_features: i64,
    out_features: i64,
}

impl Linear {
    /// Of `weight` `[out, in]` and `bias` `[out]`, both of one dtype (f32 or bf16, on a GPU f16, too) and on one device.
    /// On a CPU, `rows` is the row count the layout is tuned for; any other works.
    pub(crate) fn new(weight: &Tensor, bias: &Tensor, rows: i64) -> Result<Self, TchError> {
        let (out_features, in_features) = weight.size2()?;
        let (kinds, devices) = ((bias.kind(), weight.kind()), (bias.device(), weight.device()));
        if bias.size() != [out_features] || kinds.0 != kinds.1 || devices.0 != devices.1 {
            return Err(TchError::Shape(format!(
                "linear bias {:?} {:?} does not fit weight {:?} {:?}, on {devices:?}",
                bias.size(),
                kinds.0,
                weight.size(),
                kinds.1
            )));
        }
        let weight = weight.f_contiguous()?;
        let weight = match weight.device() {
            // SAFETY: the pointer is valid for the call.
            Device::Cpu => result(|out| unsafe { embedding_prepack_linear(weight.as_ptr(), rows, out) })?,
            _ => weight,
        };
        Ok(Self { weight, bias: bias.f_contiguous()?, in_features, out_features })
    }

    /// `[rows, in]` → `[rows, out]`, then the activation.
    pub(crate) fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor, TchError> {
        self.call(x, None, activation)
    }

    /// `[rows, in]` → `[rows, out]`, plus `residual` `[rows, out]`.
    pub(crate) fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor, TchError> {
        self.call(x, Some(residual), Activation::Identity)
    }

    fn call(
        &self,
        x: &Tensor,
        residual: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor, TchError> {
        let (rows, columns) = x.size2()?;
        if columns != self.in_features || residual.is_some_and(|r| r.size() != [rows, self.out_features]) {
            return Err(TchError::Shape(format!(
                "linear {} → {} got input {:?}",
                self.in_features,
                self.out_features,
                x.size()
            )));
        }
        if self.bias.device() != Device::Cpu {
            // The bias is added by the product itself; the rest is one kernel more each.
            let mut y = x.f_linear(&self.weight, Some(&self.bias))?;
            return match (residual, activation) {
                (Some(residual), _) => y.f_add_(residual),
                (None, Activation::Identity) => Ok(y),
                (None, Activation::Gelu) => y.f_gelu_("none"),
                (None, Activation::GeluTanh) => y.f_gelu_("tanh"),
                (None, Activation::Relu) => y.f_relu_(),
            };
        }
        let name = match activation {
            Activation::Identity => c"none",
            Activation::Gelu => c"gelu",
            Activation::GeluTanh => c"gelu_tanh",
            Activation::Relu => c"relu",
        };
        // SAFETY: all pointers are valid for the call; shapes were checked above,
        // and LibTorch checks dtypes and devices itself.
        result(|out| unsafe {
            embedding_linear(
                x.as_ptr(),
                self.weight.as_ptr(),
                self.bias.as_ptr(),
                residual.map_or(std::ptr::null(), Tensor::as_ptr),
                name.as_ptr(),
                out,
            )
        })
    }
}

impl Clone for Linear {
    fn clone(&self) -> Self {
        Self {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            in_features: self.in_features,
            out_features: self.out_features,
        }
    }
}

/// As `embedding_attention` in `bridge.h`.
#[repr(C)]
struct RawAttention {
    scale: f64,
    causal: i64,
    reach: i64,
    path: i64,
    bias: *const C_tensor,
}

/// As `embedding_texts` there.
#[repr(C)]
struct RawTexts {
    _private: [u8; 0],
}

/// By which way attention is computed, as `embedding_path` in `bridge.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Path {
    /// A call for each run of texts of one length.
    Runs = 0,
    /// A call for a few texts of nearly one length, which are padded.
    Padded = 1,
    /// One call for all texts: `LibTorch`'s flash attention (Dao, 2023), on GPUs in half precision, without a bias.
    Flash = 2,
}

/// The texts of a batch, one after the other, best longest first; with what attention makes of their lengths once.
#[derive(Debug)]
pub(crate) struct Texts {
    raw: NonNull<RawTexts>,
    tokens: i64,
    longest: i64,
}

impl Texts {
    /// Of texts with so many tokens each, on the device of their states.
    pub(crate) fn new(lengths: &[i64], device: Device) -> Result<Self, TchError> {
        if lengths.is_empty() || lengths.iter().any(|&length| length < 1) {
            return Err(TchError::Shape(format!("{} texts, some without tokens", lengths.len())));
        }
        let mut raw = std::ptr::null_mut();
        // SAFETY: `lengths` has `lengths.len()` elements.
        check(unsafe {
            embedding_texts_new(lengths.as_ptr(), lengths.len() as i64, gpu_of(device), &raw mut raw)
        })?;
        let raw = NonNull::new(raw).ok_or_else(|| TchError::Torch("no texts were made".into()))?;
        let longest = lengths.iter().copied().max().unwrap_or(1);
        Ok(Self { raw, tokens: lengths.iter().sum(), longest })
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        // SAFETY: made by the bridge, and freed once.
        unsafe { embedding_texts_free(self.raw.as_ptr()) };
    }
}

/// How attention is computed, besides over which texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    /// What scores are multiplied with, where it is not one over the root of a head's width.
    pub(crate) scale: Option<f64>,
    /// Whether a token sees only itself and those before it.
    pub(crate) causal: bool,
    /// The greatest distance at which tokens see each other.
    pub(crate) reach: Option<i64>,
    /// `[heads, 2 × longest − 1]`, f32: what is added to a score, by how far its key is ahead of its query, from
    /// `1 − longest` on. No text is longer.
    pub(crate) bias: Option<&'a Tensor>,
    /// By which way.
    pub(crate) path: Path,
}

/// Self-attention over texts that lie one after the other, without padding.
///
/// `q` is `[rows, heads, size]`, `k` and `v` are `[rows, key-value heads, size]`, all of one dtype: text *i* owns as many
/// rows as it has tokens, in order; rows after the last text are ignored and come out as zeros. Result:
/// `[rows, heads × size]`. `Softmax(scale · QKᵀ + bias)V`, as in Vaswani et al., 2017.
pub(crate) fn packed_attention(
    [q, k, v]: [&Tensor; 3],
    texts: &Texts,
    attention: &Attention<'_>,
) -> Result<Tensor, TchError> {
    let (rows, heads, size) = q.size3()?;
    let (key_rows, key_heads, key_size) = k.size3()?;
    let fits = texts.tokens <= rows
        && (rows, size) == (key_rows, key_size)
        && v.size() == k.size()
        && heads > 0
        && key_heads > 0
        && heads % key_heads == 0;
    let bias_fits = attention.bias.is_none_or(|bias| {
        bias.size2().is_ok_and(|(bias_heads, distances)| {
            bias_heads == heads && distances >= 2 * texts.longest - 1 && distances % 2 == 1
        })
    });
    let path_fits = match attention.path {
        Path::Runs | Path::Padded => true,
        Path::Flash => attention.bias.is_none() && q.device() != Device::Cpu && texts.tokens == rows,
    };
    if !(fits && bias_fits && path_fits) {
        return Err(TchError::Shape(format!(
            "attention over {} tokens got {:?}, {:?} and {:?} for {attention:?}",
            texts.tokens,
            q.size(),
            k.size(),
            v.size()
        )));
    }
    let how = RawAttention {
        scale: attention.scale.unwrap_or_else(|| 1.0 / (size as f64).sqrt()),
        causal: i64::from(attention.causal),
        reach: attention.reach.unwrap_or(-1),
        path: attention.path as i64,
        bias: attention.bias.map_or(std::ptr::null(), Tensor::as_ptr),
    };
    // SAFETY: pointers are valid for the call, the rows that the texts claim exist, and the bias has all distances in
    // them. Texts are used by one thread at a time, as they are not `Sync`.
    result(|out| unsafe {
        embedding_packed_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            texts.raw.as_ptr(),
            &raw const how,
            out,
        )
    })
}

/// How [`segment_reduce`] combines the rows of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reduce {
    /// The mean of each column.
    Mean,
    /// The maximum of each column.
    Max,
}

/// `[rows, width]` → `[texts, width]`: text *i* owns `lengths[i]` rows, in
/// order, and all rows are some text's.
pub(crate) fn segment_reduce(rows: &Tensor, lengths: &[i64], reduce: Reduce) -> Result<Tensor, TchError> {
    let (count, _) = rows.size2()?;
    if lengths.iter().any(|&length| length < 1) || lengths.iter().sum::<i64>() != count {
        return Err(TchError::Shape(format!("{} texts do not own all of {count} rows", lengths.len())));
    }
    let name = match reduce {
        Reduce::Mean => c"mean",
        Reduce::Max => c"max",
    };
    // SAFETY: pointers are valid for the call, `lengths` has `lengths.len()`
    // elements, and they were checked to partition the rows.
    result(|out| unsafe {
        embedding_segment_reduce(rows.as_ptr(), lengths.as_ptr(), lengths.len() as i64, name.as_ptr(), out)
    })
}

/// A GPU's index, or −1.
fn gpu_of(device: Device) -> i64 {
    match device {
        Device::Cuda(index) => index as i64,
        _ => -1,
    }
}

/// Whole numbers on a device; to a GPU they are copied while the thread goes on.
pub(crate) fn whole_numbers(values: &[i64], device: Device) -> Result<Tensor, TchError> {
    // SAFETY: `values` has `values.len()` elements.
    result(|out| unsafe {
        embedding_whole_numbers(values.as_ptr(), values.len() as i64, gpu_of(device), out)
    })
}

/// The values of a tensor on any device, row by row, as f32.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let mut values = vec![0.0; tensor.numel()];
    if tensor.device() == Device::Cpu {
        let tensor = tensor.f_contiguous()?.f_to_kind(Kind::Float)?;
        tensor.f_copy_data(&mut values, tensor.numel())?;
    } else {
        // SAFETY: there is room for as many as the tensor has.
        check(unsafe { embedding_from_gpu(tensor.as_ptr(), values.as_mut_ptr(), values.len() as i64) })?;
    }
    Ok(values)
}

/// From now on the calling thread computes on this GPU, in a stream of its own.
pub(crate) fn use_gpu(index: usize) -> Result<(), TchError> {
    // SAFETY: takes a number, which LibTorch checks.
    check(unsafe { embedding_use_gpu(index as i64) })
}

/// Gives back the memory of GPUs that `LibTorch` keeps for later tensors.
pub(crate) fn release_gpu_memory() -> Result<(), TchError> {
    // SAFETY: takes no arguments.
    check(unsafe { embedding_release_gpu_memory() })
}

/// Turns off autograd's bookkeeping for the calling thread, for good.
pub(crate) fn enter_inference_mode() -> Result<(), TchError> {
    // SAFETY: takes no arguments; the mode is a thread-local of this thread.
    check(unsafe { embedding_enter_inference_mode() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_is_the_same_by_runs_and_padded_whatever_is_seen_and_added() {
        let lengths = [70i64, 69, 60, 60, 41, 17, 16, 16, 3, 1, 1];
        let rows: i64 = lengths.iter().sum();
        let random = |sizes: &[i64]| Tensor::f_randn(sizes, (Kind::Float, Device::Cpu)).unwrap();
        let (heads, size) = (4, 8);
        let bias = random(&[heads, 2 * 70 + 9]);
        for key_heads in [4, 2] {
            let q = random(&[rows, heads, size]);
            let (k, v) = (random(&[rows, key_heads, size]), random(&[rows, key_heads, size]));
            for reach in [None, Some(0), Some(5), Some(1000)] {
                for causal in [false, true] {
                    for bias in [None, Some(&bias)] {
                        let texts = Texts::new(&lengths, Device::Cpu).unwrap();
                        let attention = |path| {
                            let how = Attention { scale: Some(0.7), causal, reach, bias, path };
                            packed_attention([&q, &k, &v], &texts, &how).unwrap()
                        };
                        // Twice: what was made of the lengths is used again.
                        let runs = attention(Path::Runs);
                        for _ in 0..2 {
                            let difference =
                                f64::try_from((attention(Path::Padded) - &runs).abs().max()).unwrap();
                            assert!(difference < 1e-5, "{difference}: {reach:?} {causal} {}", bias.is_some());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_computed() {
        let of = |rows: i64, heads: i64| Tensor::zeros([rows, heads, 8], (Kind::Float, Device::Cpu));
        let texts = Texts::new(&[3, 2], Device::Cpu).unwrap();
        let how = Attention { scale: None, causal: false, reach: None, bias: None, path: Path::Runs };
        let bias = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
        assert!(packed_attention([&of(7, 4), &of(7, 2), &of(7, 2)], &texts, &how).is_ok(), "rows of no text");
        for (q, k, v) in
            [(of(4, 4), of(4, 4), of(4, 4)), (of(5, 4), of(5, 3), of(5, 3)), (of(5, 4), of(5, 4), of(5, 2))]
        {
            assert!(packed_attention([&q, &k, &v], &texts, &how).is_err(), "{q:?} {k:?} {v:?}");
        }
        let all = [&of(5, 4), &of(5, 4), &of(5, 4)];
        assert!(
            packed_attention(all, &texts, &Attention { bias: Some(&bias), ..how }).is_err(),
            "too small a bias"
        );
        assert!(packed_attention(all, &texts, &Attention { path: Path::Flash, ..how }).is_err(), "on a CPU");
        assert!(Texts::new(&[], Device::Cpu).is_err() && Texts::new(&[1, 0], Device::Cpu).is_err());
    }
}
