//! The bridge to `LibTorch` operators that tch does not bind (`native/bridge.cpp`).
//!
//! The only `unsafe` code beside LibTorch. Each wrapper checks what the C++ side
//! assumes, so that safe code cannot reach undefined behaviour through it.
#![expect(unsafe_code, reason = "calls into C++")]

use std::ffi::{CStr, c_char};

use tch::{TchError, Tensor};
use torch_sys::C_tensor;

use super::encoder::{Heads, HiddenAct};

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
    fn embedding_packed_attention(
        qkv: *const C_tensor,
        lengths: *const i64,
        count: i64,
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

/// A linear layer `y = x Wᵀ + b` whose weight oneDNN has laid out for its own
/// matrix kernels. Clones share the weights.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
    in_features: i64,
    out_features: i64,
}

impl Linear {
    /// Packs `weight` `[out, in]` and `bias` `[out]`, both of one dtype (f32 or
    /// bf16) on the CPU. `rows` is the row count the layout is tuned for; any
    /// other works.
    pub(crate) fn prepack(weight: &Tensor, bias: &Tensor, rows: i64) -> Result<Self, TchError> {
        let (out_features, in_features) = weight.size2()?;
        if bias.size() != [out_features] || bias.kind() != weight.kind() {
            return Err(TchError::Shape(format!(
                "linear bias {:?} {:?} does not fit weight {:?} {:?}",
                bias.size(),
                bias.kind(),
                weight.size(),
                weight.kind()
            )));
        }
        let weight = weight.f_contiguous()?;
        // SAFETY: the pointer is valid for the call.
        let packed = result(|out| unsafe { embedding_prepack_linear(weight.as_ptr(), rows, out) })?;
        Ok(Self { weight: packed, bias: bias.f_contiguous()?, in_features, out_features })
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
    heads: i64,
    key_value_heads: i64,
    head_size: i64,
    scale: f64,
    causal: i64,
    reach: i64,
    bias: *const C_tensor,
}

/// How attention is computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attention<'a> {
    /// Its heads.
    pub(crate) heads: Heads,
    /// What scores are multiplied with, where it is not one over the root of a head's width.
    pub(crate) scale: Option<f64>,
    /// Whether a token sees only itself and those before it.
    pub(crate) causal: bool,
    /// The greatest distance at which tokens see each other.
    pub(crate) reach: Option<i64>,
    /// `[heads, 2 × longest − 1]`, f32: what is added to a score, by how far its key is ahead of its query, from
    /// `1 − longest` on. No text is longer.
    pub(crate) bias: Option<&'a Tensor>,
}

/// Self-attention over texts that lie one after the other, without padding.
///
/// `qkv` is `[rows, (query + 2 × key_value) × size]`: the heads of queries, of keys, of values; text *i* owns
/// `lengths[i]` rows, in order; rows after the last text are ignored and come out
/// as zeros. Result: `[rows, query × size]`. Texts of equal length that lie side by
/// side share one call of LibTorch's flash attention, so sort by length.
/// `Softmax(scale · QKᵀ + bias)V`, as in Vaswani et al., 2017.
pub(crate) fn packed_attention(
    qkv: &Tensor,
    lengths: &[i64],
    attention: &Attention<'_>,
) -> Result<Tensor, TchError> {
    let (rows, columns) = qkv.size2()?;
    let total: i64 = lengths.iter().sum();
    let Heads { query, key_value, size } = attention.heads;
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let fits = query > 0 && key_value > 0 && query % key_value == 0;
    let bias_fits = attention.bias.is_none_or(|bias| {
        bias.size2().is_ok_and(|(heads, distances)| {
            heads == query && distances >= 2 * longest - 1 && distances % 2 == 1
        })
    });
    if lengths.iter().any(|&length| length < 1)
        || total > rows
        || !fits
        || !bias_fits
        || columns != (query + 2 * key_value) * size
    {
        return Err(TchError::Shape(format!(
            "attention over {total} tokens in {} texts with {:?} got qkv {:?}",
            lengths.len(),
            attention.heads,
            qkv.size()
        )));
    }
    let how = RawAttention {
        heads: query,
        key_value_heads: key_value,
        head_size: size,
        scale: attention.scale.unwrap_or_else(|| 1.0 / (size as f64).sqrt()),
        causal: i64::from(attention.causal),
        reach: attention.reach.unwrap_or(-1),
        bias: attention.bias.map_or(std::ptr::null(), Tensor::as_ptr),
    };
    // SAFETY: pointers are valid for the call, `lengths` has `lengths.len()`
    // elements, the rows that the lengths claim exist, and the bias has all distances in them.
    result(|out| unsafe {
        embedding_packed_attention(qkv.as_ptr(), lengths.as_ptr(), lengths.len() as i64, &raw const how, out)
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

/// `[rows, width]` on the CPU → `[texts, width]`: text *i* owns `lengths[i]` rows, in
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

/// Turns off autograd's bookkeeping for the calling thread, for good.
pub(crate) fn enter_inference_mode() -> Result<(), TchError> {
    // SAFETY: takes no arguments; the mode is a thread-local of this thread.
    check(unsafe { embedding_enter_inference_mode() })
}
