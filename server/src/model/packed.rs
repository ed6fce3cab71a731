//! Our padding-free forward on `LibTorch`.
//!
//! The tokens of all texts of a batch lie one after the other in `[tokens, hidden]`:
//! linears and norms do not care where a text ends, and attention runs once
//! for each run of texts of equal length. On CPUs, linears are oneDNN-prepacked, with GELU
//! and the residual fused. On GPUs it is as flat where flash attention applies, and padded
//! where it does not.
//!
//! It computes whatever an [`Encoder`](super::encoder::Encoder) describes.

mod encoder;
mod norm;
mod rotation;

pub(super) use encoder::Packed;
