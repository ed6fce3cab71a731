//! The arithmetic of the fused CPU encoder, without `LibTorch`.
//!
//! ```text
//! cpu          which instructions this CPU has: decided once, at start
//! buffer       aligned memory, on huge pages where it is large
//! gemm         C = A Wᵀ of bfloat16, summed in f32, with what follows it fused:
//!              bias, activation, residual
//! attention    softmax(QKᵀ/√d) V of one text, all heads
//! elementwise  embeddings + LayerNorm, residual LayerNorm, pooling
//! scalar       the same in plain Rust: what the others are tested against
//! ```
//!
//! # Numbers
//!
//! Operands of products are bfloat16, rounded to nearest, ties to even. Products are summed in
//! f32; the residual stream, `LayerNorm`, softmax and pooling are f32 throughout.
//!
//! # Layout
//!
//! Activations are row-major `[rows, columns]`, a token a row, columns a multiple of
//! [`gemm::STEP`]. Buffers that a product reads hold [`gemm::padded_rows`] rows: tiles are read
//! whole. What is in the rows beyond the last token is never seen in a result, whatever it is.
//! Weights are packed once, as `[columns / 16][depth / 32][16 pairs][16 columns][2]`: one
//! `[16][16][2]` is a tile of AMX, and each 64 bytes of it an operand of `vdpbf16ps`.
//!
//! # Safety
//!
//! The only `unsafe` code beside the bridge to `LibTorch`. Public functions are safe: they check
//! the sizes that the code below them assumes, and take an [`cpu::Isa`], which exists only where
//! the CPU has it.
#![expect(unsafe_code, reason = "vector instructions and the memory they read")]

pub mod cpu;

#[cfg(target_arch = "x86_64")]
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
pub(crate) mod buffer;
#[cfg(target_arch = "x86_64")]
pub(crate) mod elementwise;
#[cfg(target_arch = "x86_64")]
pub(crate) mod gemm;

#[cfg(all(test, target_arch = "x86_64"))]
mod guarded;
#[cfg(all(test, target_arch = "x86_64"))]
mod scalar;
#[cfg(all(test, target_arch = "x86_64"))]
mod tile_emulator;
