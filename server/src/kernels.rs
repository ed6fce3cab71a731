//! The arithmetic of the fused CPU encoder, without `LibTorch`.
//!
//! ```text
//! cpu          which instructions this CPU has: decided once, at start
//! buffer       aligned memory, on huge pages where it is large
//! element      what operands are made of, bfloat16 or f32, and how either is multiplied
//! gemm         C = A Wᵀ, summed in f32, with what follows it fused: bias, activation, residual
//! turn         norms and rotary positions of queries and keys
//! attention    softmax(QKᵀ · scale + bias) V of one text
//! elementwise  activations, norms
//! encoder      all of that in turn: the layers of an encoder
//! crew         threads that compute one forward together
//! scalar       the same in plain Rust: what the others are tested against
//! ```
//!
//! # Numbers
//!
//! Operands of products are bfloat16, rounded to nearest, ties to even, or f32: that is the
//! instruction set's. Products are summed in f32; the residual stream, norms, softmax and
//! pooling are f32 throughout. Functions of single values are exact to about 1e-7 for both.
//!
//! # Layout
//!
//! Activations are row-major `[rows, columns]`, a token a row, columns a multiple of
//! [`element::Element::STEP`]. Buffers that a product reads hold [`gemm::padded_rows`] rows: tiles are read
//! whole. What is in the rows beyond the last token is never seen in a result, whatever it is.
//! Weights are packed once, as `[columns / 16][depth / STEP][16 groups][16 columns][GROUP]`, a group
//! being what 32 bits hold: two bfloat16, or an f32. Each 64 bytes are an operand of `vdpbf16ps` or
//! `vfmadd231ps`; `[16][16][2]` bfloat16 are a tile of AMX.
//!
//! # Safety
//!
//! The only `unsafe` code beside the bridge to `LibTorch`. What the rest of the server sees, [`encoder`], is
//! safe: it checks the sizes that the code below it assumes, and takes a [`gemm::Isa`], which exists only where
//! the CPU has its instructions. Code that is the same for all of them enables AVX-512 F, BW, DQ and
//! VL and no more, since a CPU that computes in f32 may have no more.
#![expect(unsafe_code, reason = "vector instructions and the memory they read")]

pub mod cpu;

#[cfg(target_arch = "x86_64")]
pub(crate) mod attention;
#[cfg(target_arch = "x86_64")]
mod buffer;
#[cfg(target_arch = "x86_64")]
pub(crate) mod crew;
#[cfg(target_arch = "x86_64")]
pub(crate) mod element;
#[cfg(target_arch = "x86_64")]
pub(crate) mod elementwise;
#[cfg(target_arch = "x86_64")]
pub(crate) mod encoder;
#[cfg(target_arch = "x86_64")]
pub(crate) mod gemm;
#[cfg(target_arch = "x86_64")]
pub(crate) mod turn;

#[cfg(all(test, target_arch = "x86_64"))]
mod guarded;
#[cfg(all(test, target_arch = "x86_64"))]
mod scalar;
#[cfg(all(test, target_arch = "x86_64"))]
mod tile_emulator;
