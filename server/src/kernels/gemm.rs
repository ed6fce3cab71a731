//! Products of matrices, of bfloat16 or f32, summed in f32, with what follows them fused.
//!
//! # Flow
//!
//! A linear layer goes through its columns in panels of a few [`BLOCK`]s. A panel's weights stay
//! in the L1 or L2 cache while all rows pass by; each small tile of the result is finished (bias,
//! activation, residual) while it is in L1, so no intermediate is written twice.
//!
//! Which micro-kernel computes a tile depends on the CPU: [`avx512`] holds 6 × 64 sums in
//! registers, [`amx`] 32 × 32 in tiles. All else is the same code for all: it is compiled once for
//! each, and what a micro-kernel multiplies is its [`MicroKernel::Element`].

mod amx;
mod avx512;

use std::arch::x86_64::{__m512, _mm512_add_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_storeu_ps};
use std::fmt::Debug;
use std::marker::PhantomData;

use super::buffer::Buffer;
use super::cpu::{Cpu, InstructionSet};
use super::element::Element;
use super::elementwise::{gelu, gelu_tanh, relu, silu};
use crate::model::encoder::HiddenAct;

pub(crate) use amx::Amx;
pub(crate) use avx512::Avx512;

/// Columns of a block of packed weights: the f32 of a register, or of a tile's row.
pub(crate) const BLOCK: usize = 16;

/// Rows of a tile: they are read together.
const TILE_ROWS: usize = 16;

/// Rows that a buffer has to have for its first `rows` to be multiplied, from any of them on.
pub(crate) const fn padded_rows(rows: usize) -> usize {
    rows + TILE_ROWS - 1
}

/// A matrix laid out for the micro-kernels. See [`super`].
#[derive(Debug)]
pub(crate) struct Packed<T: Element> {
    columns: usize,
    depth: usize,
    values: Buffer<T>,
}

impl<T: Element> Packed<T> {
    /// Packs `weight` `[columns, depth]`, row by row as `torch.nn.Linear` has it, rounded to `T`.
    /// Columns and depth are padded with zeros to a multiple of [`Element::STEP`].
    pub(crate) fn new(weight: &[f32], columns: usize, depth: usize) -> Self {
        assert_eq!(weight.len(), columns * depth, "a weight of {columns} × {depth}");
        let padded_depth = depth.next_multiple_of(T::STEP);
        let mut packed = Self {
            columns: columns.next_multiple_of(T::STEP),
            depth: padded_depth,
            values: Buffer::zeroed(columns.next_multiple_of(T::STEP) * padded_depth),
        };
        for (column, weights) in weight.chunks_exact(depth.max(1)).enumerate() {
            let block = column / BLOCK * BLOCK * padded_depth;
            for (at, group) in weights.chunks(T::GROUP).enumerate() {
                let to = block + (at * BLOCK + column % BLOCK) * T::GROUP;
                for (value, &weight) in packed.values[to..].iter_mut().zip(group) {
                    *value = T::of(weight);
                }
            }
        }
        packed
    }

    /// Columns, padding included.
    pub(crate) const fn columns(&self) -> usize {
        self.columns
    }

    /// Depth, padding included.
    pub(crate) const fn depth(&self) -> usize {
        self.depth
    }
}

/// Where the result goes: `[rows, columns]`, row by row, of which others may write other columns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<T> {
    /// Rounded to the element of operands.
    Store(*mut T),
    /// Activated, then rounded to it.
    Activate(HiddenAct, *mut T),
    /// The first half of each panel's columns activated and multiplied with the second half, then rounded: the target
    /// has half as many columns, and all panels are whole ([`gated_rows`]).
    Gate(HiddenAct, *mut T),
    /// As it is.
    Put(*mut f32),
    /// Added to what is there: a residual.
    Add(*mut f32),
}

/// What the columns of one half of a gated layer are padded to: whole halves of panels of any micro-kernel, and whole
/// steps of the next product.
pub(super) const GATED: usize = 32;

/// The order of a gated layer's rows: those of its first half, which are activated, and those of the second one, in
/// turns of half a panel; `None` is padding. There are `inner` of either.
pub(super) fn gated_rows<K: MicroKernel>(inner: usize) -> impl Iterator<Item = Option<usize>> {
    const { assert!(GATED.is_multiple_of(K::BLOCKS * BLOCK / 2) && GATED.is_multiple_of(K::Element::STEP)) };
    let half = K::BLOCKS * BLOCK / 2;
    let turns = inner.next_multiple_of(GATED) / half;
    let rows = move |turn: usize, part: usize| {
        (turn * half..(turn + 1) * half).map(move |row| (row < inner).then_some(part * inner + row))
    };
    (0..turns).flat_map(move |turn| rows(turn, 0).chain(rows(turn, 1)))
}

/// How many panels of columns the micro-kernel goes through a weight in.
pub(super) const fn panels_of<K: MicroKernel>(weight: &Packed<K::Element>) -> usize {
    weight.columns.div_ceil(K::BLOCKS * BLOCK)
}

/// One panel of `x Wᵀ + b`, for the first `rows` of `x` `[padded_rows(rows), depth]`; `bias` is `[columns]`.
///
/// # Safety
///
/// The CPU has `K`'s instructions, and the thread is ready for them. The target has room for `rows` of all
/// columns, and nobody else reads or writes those of this panel.
///
/// # Panics
///
/// Where the size of `x` or of `bias` does not fit.
pub(super) unsafe fn panel<K: MicroKernel>(
    x: &[K::Element],
    rows: usize,
    weight: &Packed<K::Element>,
    bias: &[f32],
    panel: usize,
    target: Target<K::Element>,
) {
    assert!(x.len() >= padded_rows(rows) * weight.depth, "input of {} for {rows} rows", x.len());
    assert_eq!(bias.len(), weight.columns, "a bias for each column");
    assert!(panel < panels_of::<K>(weight), "panel {panel} of {} columns", weight.columns);
    let is_gated = matches!(target, Target::Gate(..));
    assert!(!is_gated || weight.columns.is_multiple_of(K::BLOCKS * BLOCK), "whole panels of a gated layer");
    // SAFETY: the rest was checked.
    unsafe { tiles::<K>(x, rows, weight, bias, panel * K::BLOCKS * BLOCK, target) }
}

/// A small tile of a product: `c = a b`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile<T> {
    /// Its first row of the left operand, `steps` × [`Element::STEP`] deep.
    pub(crate) a: *const T,
    /// What the rows of `a` are apart, in elements.
    pub(crate) stride: usize,
    /// How many, up to [`MicroKernel::ROWS`].
    pub(crate) rows: usize,
    /// Its first block of the packed right operand.
    pub(crate) b: *const T,
    /// What the blocks of `b` are apart, in elements.
    pub(crate) b_stride: usize,
    /// How many, up to [`MicroKernel::BLOCKS`].
    pub(crate) blocks: usize,
    /// The depth, in [`Element::STEP`]s.
    pub(crate) steps: usize,
    /// Where the sums go.
    pub(crate) c: *mut f32,
    /// What the rows of `c` are apart, in elements.
    pub(crate) c_stride: usize,
}

/// Computes tiles.
pub(crate) trait MicroKernel: Copy + Debug + Send + Sync + 'static {
    /// The instructions that it needs.
    const SET: InstructionSet;
    /// What it multiplies.
    type Element: Element;
    /// What has to live while tiles are computed.
    type Ready;
    /// The most rows of a tile.
    const ROWS: usize;
    /// The most blocks of columns of a tile.
    const BLOCKS: usize;

    /// Makes the calling thread ready to compute tiles.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions.
    unsafe fn ready() -> Self::Ready;

    /// Computes one.
    ///
    /// # Safety
    ///
    /// The CPU has the instructions, and the thread is [`Self::ready`]. Rows and blocks are at least 1.
    /// Of `a`, [`padded_rows`] of `rows` can be read to the depth; of each block of `b`, `steps` × [`BLOCK`]
    /// × [`Element::STEP`] elements; of `c`, [`Self::ROWS`] rows can be written.
    unsafe fn tile(tile: Tile<Self::Element>);
}

/// The proof that the CPU has a micro-kernel's instructions: kernels take it in place of a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Isa<K>(PhantomData<K>);

impl<K: MicroKernel> Isa<K> {
    /// The proof, if this CPU has them.
    pub(crate) fn detect() -> Option<Self> {
        Cpu::this().sets().contains(&K::SET).then_some(Self(PhantomData))
    }

    /// The tests', who see to it that tiles are there, if only emulated.
    #[cfg(test)]
    pub(crate) const fn assume() -> Self {
        Self(PhantomData)
    }
}

/// The sums of one tile, before they are finished: the largest of any micro-kernel.
#[repr(align(64))]
struct Sums([f32; 32 * 32]);

/// # Safety
///
/// As [`panel`] has it, which checks the rest; `first` is the panel's first column.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tiles<K: MicroKernel>(
    x: &[K::Element],
    rows: usize,
    weight: &Packed<K::Element>,
    bias: &[f32],
    first: usize,
    target: Target<K::Element>,
) {
    const { assert!(K::ROWS * K::BLOCKS * BLOCK <= 32 * 32) };
    let Packed { columns, depth, values } = weight;
    let steps = depth / K::Element::STEP;
    let width = K::BLOCKS * BLOCK;
    let blocks = ((columns - first) / BLOCK).min(K::BLOCKS);
    let mut sums = Sums([0.0; 32 * 32]);
    for row in (0..rows).step_by(K::ROWS) {
        let count = (rows - row).min(K::ROWS);
        // SAFETY: the rows and the blocks are within what was checked.
        unsafe {
            K::tile(Tile {
                a: x.as_ptr().add(row * depth),
                stride: *depth,
                rows: count,
                b: values.as_ptr().add(first * depth),
                b_stride: BLOCK * depth,
                blocks,
                steps,
                c: sums.0.as_mut_ptr(),
                c_stride: width,
            });
            finish(&sums, width, count, blocks, &bias[first..], row * columns + first, *columns, target);
        }
    }
}

/// Adds the bias to a tile's sums, finishes them as `target` says, and stores them from element
/// `at` of it on, rows `stride` apart.
///
/// # Safety
///
/// The tile is within `target` and `bias`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
#[expect(clippy::too_many_arguments, reason = "a tile and where it goes")]
unsafe fn finish<T: Element>(
    sums: &Sums,
    width: usize,
    rows: usize,
    blocks: usize,
    bias: &[f32],
    at: usize,
    stride: usize,
    target: Target<T>,
) {
    // One instance for each: the function is inlined into the loop.
    macro_rules! activated {
        ($activation:expr, $finished:ident) => {
            match $activation {
                HiddenAct::Gelu => $finished!(gelu),
                HiddenAct::GeluTanh => $finished!(gelu_tanh),
                HiddenAct::Relu => $finished!(relu),
                HiddenAct::Silu => $finished!(silu),
            }
        };
    }
    // SAFETY: as the caller promises.
    unsafe {
        match target {
            Target::Store(to) => {
                let to = to.add(at);
                each(sums, width, rows, blocks, bias, |row, column, y| {
                    T::store(to.add(row * stride + column), y);
                });
            }
            Target::Activate(activation, to) => {
                let to = to.add(at);
                macro_rules! finished {
                    ($function:ident) => {
                        each(sums, width, rows, blocks, bias, |row, column, y| {
                            T::store(to.add(row * stride + column), $function(y));
                        })
                    };
                }
                activated!(activation, finished);
            }
            Target::Gate(activation, to) => {
                // Of half as many columns.
                let (to, stride) = (to.add(at / 2), stride / 2);
                let half = width / 2;
                let second = |row: usize, column: usize| {
                    let sum = _mm512_loadu_ps(sums.0.as_ptr().add(row * width + half + column));
                    _mm512_add_ps(sum, _mm512_loadu_ps(bias.as_ptr().add(half + column)))
                };
                macro_rules! finished {
                    ($function:ident) => {
                        each(sums, width, rows, blocks / 2, bias, |row, column, y| {
                            let y = _mm512_mul_ps($function(y), second(row, column));
                            T::store(to.add(row * stride + column), y);
                        })
                    };
                }
                activated!(activation, finished);
            }
            Target::Put(to) => {
                let to = to.add(at);
                each(sums, width, rows, blocks, bias, |row, column, y| {
                    _mm512_storeu_ps(to.add(row * stride + column), y);
                });
            }
            Target::Add(to) => {
                let to = to.add(at);
                each(sums, width, rows, blocks, bias, |row, column, y| {
                    let to = to.add(row * stride + column);
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), y));
                });
            }
        }
    }
}

/// Hands each register of a tile's sums, with the bias added, to `store`.
///
/// # Safety
///
/// `bias` has the tile's columns, and `store` may be called with its rows and columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn each(
    sums: &Sums,
    width: usize,
    rows: usize,
    blocks: usize,
    bias: &[f32],
    store: impl Fn(usize, usize, __m512),
) {
    for block in 0..blocks {
        let column = block * BLOCK;
        // SAFETY: within the tile, and within the bias.
        unsafe {
            let bias = _mm512_loadu_ps(bias.as_ptr().add(column));
            for row in 0..rows {
                let sum = _mm512_loadu_ps(sums.0.as_ptr().add(row * width + column));
                store(row, column, _mm512_add_ps(sum, bias));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
