//! Our padding-free forward on `LibTorch`.
//!
//! The tokens of all texts of a batch lie one after the other in `[tokens, hidden]`:
//! linears and `LayerNorm` do not care where a text ends, and attention runs once
//! for each run of texts of equal length. Linears are oneDNN-prepacked, with GELU
//! and the residual fused.

mod bert;

pub(super) use bert::Bert;
