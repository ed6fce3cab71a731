//! Self-attention of one text: softmax(QKᵀ/√d) V of each head (Vaswani et al., 2017).
//!
//! # Flow
//!
//! For each head: its keys and values are packed as weights are (for the keys that is a transpose);
//! then, a few queries at a time, scores are computed, turned into probabilities, and multiplied
//! with the values. Scores never leave the cache. They are scaled, and the probabilities divided
//! by their sum, in f32; the probabilities that are multiplied are operands, between 0 and 1.

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_ps,
    _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_or_si512, _mm512_reduce_add_ps,
    _mm512_reduce_max_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_storeu_si512, _mm512_sub_ps, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::buffer::Buffer;
use super::element::Element;
use super::elementwise::exp2;
use super::gemm::{BLOCK, MicroKernel, Tile, padded_rows};

/// How a token's query, key and value are divided among heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// How many.
    pub(crate) count: usize,
    /// Width of each: 32 or 64.
    pub(crate) size: usize,
}

impl Heads {
    /// Widths that the kernel is written for.
    pub(crate) const SIZES: [usize; 2] = [32, 64];

    /// Width of all of them together.
    pub(crate) const fn hidden(self) -> usize {
        self.count * self.size
    }
}

/// The most rows of a micro-kernel.
const MAX_ROWS: usize = 32;

/// What attention needs besides its input and output; for texts up to a length.
#[derive(Debug)]
pub(crate) struct Scratch<T: Element> {
    longest: usize,
    keys: Buffer<T>,
    values: Buffer<T>,
    scores: Buffer<f32>,
    probabilities: Buffer<T>,
    context: Buffer<f32>,
}

impl<T: Element> Scratch<T> {
    /// For texts of up to `longest` tokens.
    pub(crate) fn new(longest: usize, heads: Heads) -> Self {
        let longest = longest.next_multiple_of(T::STEP);
        Self {
            longest,
            keys: Buffer::zeroed(longest * heads.size),
            values: Buffer::zeroed(longest * heads.size),
            scores: Buffer::zeroed(MAX_ROWS * longest),
            probabilities: Buffer::zeroed(MAX_ROWS * longest),
            context: Buffer::zeroed(MAX_ROWS * heads.size),
        }
    }

    /// Whether it has room for a text of so many tokens.
    pub(super) fn fits(&self, length: usize, heads: Heads) -> bool {
        length <= self.longest
            && self.keys.len() >= self.longest * heads.size
            && self.context.len() >= MAX_ROWS * heads.size
    }
}

/// One head's attention over one text of `length` tokens.
///
/// `qkv` is `[rows, 3 × hidden]` (query, key, value, of all heads each), from the text's first row on, with
/// [`padded_rows`] of `length`; `context` is `[rows, hidden]` from there on.
///
/// # Safety
///
/// The CPU has `K`'s instructions, and the thread is ready for them. `context` has room for `length` rows, and
/// nobody else reads or writes what this head writes there.
///
/// # Panics
///
/// Where a size does not fit.
pub(super) unsafe fn head<K: MicroKernel>(
    heads: Heads,
    head: usize,
    qkv: &[K::Element],
    length: usize,
    scratch: &mut Scratch<K::Element>,
    context: *mut K::Element,
) {
    assert!(Heads::SIZES.contains(&heads.size) && head < heads.count, "head {head} of {heads:?}");
    assert!(scratch.fits(length, heads), "a text of {length} tokens, scratch for {}", scratch.longest);
    assert!(qkv.len() >= padded_rows(length) * 3 * heads.hidden(), "{} values of {length} rows", qkv.len());
    if length > 0 {
        // SAFETY: the rest was checked.
        unsafe { text::<K>(heads, head, qkv, length, scratch, context) }
    }
}

/// # Safety
///
/// As [`head`] has it, which checks the rest.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn text<K: MicroKernel>(
    heads: Heads,
    head: usize,
    qkv: &[K::Element],
    length: usize,
    scratch: &mut Scratch<K::Element>,
    context: *mut K::Element,
) {
    const { assert!(K::ROWS <= MAX_ROWS) };
    let (hidden, size) = (heads.hidden(), heads.size);
    let stride = 3 * hidden;
    // Scores come in whole blocks, probabilities in whole steps.
    let scored = length.next_multiple_of(BLOCK);
    let steps = length.div_ceil(K::Element::STEP);
    let weighed = steps * K::Element::STEP;
    let scale = _mm512_set1_ps(std::f32::consts::LOG2_E / (size as f32).sqrt());
    let Scratch { keys, values, scores, probabilities, context: sums, .. } = scratch;
    // SAFETY: head `head` of `length` rows, and of the rows beyond that the caller has; the
    // scratch has room for `longest` tokens, whole steps of them.
    unsafe {
        let query = qkv.as_ptr().add(head * size);
        pack_keys(query.add(hidden), stride, length, size, keys.as_mut_ptr());
        pack_values(query.add(2 * hidden), stride, length, size, values.as_mut_ptr());
        for row in (0..length).step_by(K::ROWS) {
            let rows = (length - row).min(K::ROWS);
            for column in (0..scored).step_by(K::BLOCKS * BLOCK) {
                K::tile(Tile {
                    a: query.add(row * stride),
                    stride,
                    rows,
                    b: keys.as_ptr().add(column * size),
                    blocks: ((scored - column) / BLOCK).min(K::BLOCKS),
                    steps: size / K::Element::STEP,
                    c: scores.as_mut_ptr().add(column),
                    c_stride: scored,
                });
            }
            let mut inverse = [0.0; MAX_ROWS];
            for (row, inverse) in inverse.iter_mut().enumerate().take(rows) {
                let sum = softmax(
                    scores.as_ptr().add(row * scored),
                    length,
                    scale,
                    probabilities.as_mut_ptr().add(row * weighed),
                );
                *inverse = 1.0 / sum;
            }
            for column in (0..size).step_by(K::BLOCKS * BLOCK) {
                K::tile(Tile {
                    a: probabilities.as_ptr(),
                    stride: weighed,
                    rows,
                    b: values.as_ptr().add(column * weighed),
                    blocks: ((size - column) / BLOCK).min(K::BLOCKS),
                    steps,
                    c: sums.as_mut_ptr().add(column),
                    c_stride: size,
                });
            }
            for (at, &inverse) in inverse[..rows].iter().enumerate() {
                let to = context.add((row + at) * hidden + head * size);
                for column in (0..size).step_by(BLOCK) {
                    let sum = _mm512_loadu_ps(sums.as_ptr().add(at * size + column));
                    K::Element::store(to.add(column), _mm512_mul_ps(sum, _mm512_set1_ps(inverse)));
                }
            }
        }
    }
}

/// Packs the keys of one head as `[keys / 16][size / STEP][16 groups][16 keys][GROUP]`, keys beyond the
/// last as zeros: the product with them is the scores.
///
/// # Safety
///
/// `keys` are `length` rows of `size`, `stride` apart; `to` has room for whole blocks of them.
#[target_feature(enable = "avx512f")]
unsafe fn pack_keys<T: Element>(keys: *const T, stride: usize, length: usize, size: usize, to: *mut T) {
    for first in (0..length).step_by(BLOCK) {
        for step in 0..size / T::STEP {
            let mut rows = [_mm512_setzero_si512(); BLOCK];
            for (row, key) in rows.iter_mut().zip(first..length) {
                // SAFETY: a row that there is.
                *row = unsafe { _mm512_loadu_si512(keys.add(key * stride + step * T::STEP).cast()) };
            }
            for (group, keys) in transpose(&rows).into_iter().enumerate() {
                // SAFETY: within the block.
                unsafe {
                    let to = to.add(first * size + (step * BLOCK + group) * T::STEP);
                    _mm512_storeu_si512(to.cast(), keys);
                }
            }
        }
    }
}

/// Packs the values of one head as `[size / 16][keys / STEP][16 groups][16 columns][GROUP]`, keys beyond
/// the last as zeros.
///
/// # Safety
///
/// `values` are `length` rows of `size`, `stride` apart; `to` has room for whole steps of them.
#[target_feature(enable = "avx512f")]
unsafe fn pack_values<T: Element>(values: *const T, stride: usize, length: usize, size: usize, to: *mut T) {
    let padded = length.next_multiple_of(T::STEP);
    for column in (0..size).step_by(BLOCK) {
        for group in 0..padded / T::GROUP {
            let mut together = _mm512_setzero_si512();
            for key in (group * T::GROUP..(group + 1) * T::GROUP).rev() {
                // Two bfloat16 share 32 bits, the earlier one in the lower half.
                together = _mm512_slli_epi32::<16>(together);
                if key < length {
                    // SAFETY: a row that there is.
                    let row = unsafe { T::load(values.add(key * stride + column)) };
                    together = _mm512_or_si512(together, row);
                }
            }
            // SAFETY: within the steps of this block.
            unsafe { _mm512_storeu_si512(to.add(column * padded + group * T::STEP).cast(), together) };
        }
    }
}

/// The transpose of 16 × 16 elements of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: &[__m512i; 16]) -> [__m512i; 16] {
    // Within each quarter of a register: columns of two rows, then of four …
    let mut twos = *rows;
    for row in (0..16).step_by(2) {
        twos[row] = _mm512_unpacklo_epi32(rows[row], rows[row + 1]);
        twos[row + 1] = _mm512_unpackhi_epi32(rows[row], rows[row + 1]);
    }
    let mut fours = twos;
    for row in (0..16).step_by(4) {
        for half in 0..2 {
            fours[row + 2 * half] = _mm512_unpacklo_epi64(twos[row + half], twos[row + half + 2]);
            fours[row + 2 * half + 1] = _mm512_unpackhi_epi64(twos[row + half], twos[row + half + 2]);
        }
    }
    // … then the quarters: of rows 0 to 7 and 8 to 15, and of all.
    let mut columns = fours;
    for column in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|row| fours[row + column]);
        let even = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
        columns[column] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[column + 4] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[column + 8] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[column + 12] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

/// Turns the first `length` scores into 2^(`scale` × (score − largest)), rounded, in whole steps,
/// zeros beyond; returns their sum.
///
/// # Safety
///
/// `scores` are whole blocks, `to` has room for whole steps.
#[target_feature(enable = "avx512f")]
unsafe fn softmax<T: Element>(scores: *const f32, length: usize, scale: __m512, to: *mut T) -> f32 {
    let last = (length - 1) / BLOCK * BLOCK;
    let there = u16::MAX >> (BLOCK - (length - last));
    // SAFETY: whole blocks, as the caller promises.
    unsafe {
        let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
        let ending = _mm512_mask_blend_ps(there, lowest, _mm512_loadu_ps(scores.add(last)));
        let mut largest = ending;
        for at in (0..last).step_by(BLOCK) {
            largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores.add(at)));
        }
        let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
        let weigh = |scores| exp2(_mm512_mul_ps(_mm512_sub_ps(scores, largest), scale));
        let mut sum = _mm512_setzero_ps();
        for at in (0..last).step_by(BLOCK) {
            let weights = weigh(_mm512_loadu_ps(scores.add(at)));
            sum = _mm512_add_ps(sum, weights);
            T::store(to.add(at), weights);
        }
        let weights = _mm512_maskz_mov_ps(there, weigh(ending));
        sum = _mm512_add_ps(sum, weights);
        T::store(to.add(last), weights);
        for at in (last + BLOCK..length.next_multiple_of(T::STEP)).step_by(BLOCK) {
            T::store(to.add(at), _mm512_setzero_ps());
        }
        _mm512_reduce_add_ps(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::Isa;
    use super::super::gemm::tests::{avx512, for_each_isa, numbers, rounded, rounding};
    use super::super::guarded::{Against, Guarded};
    use super::super::scalar;
    use super::*;

    /// All heads over a text that begins at row `first`.
    fn attention<K: MicroKernel>(
        _: Isa<K>,
        all: Heads,
        qkv: &[K::Element],
        first: usize,
        length: usize,
        scratch: &mut Scratch<K::Element>,
        context: &mut [K::Element],
    ) {
        let hidden = all.hidden();
        assert_eq!(context.len(), (first + length) * hidden);
        let (qkv, context) = (&qkv[first * 3 * hidden..], context[first * hidden..].as_mut_ptr());
        // SAFETY: the CPU has the instructions, or they are emulated; nobody else has the context.
        unsafe {
            let _ready = K::ready();
            for at in 0..all.count {
                head::<K>(all, at, qkv, length, scratch, context);
            }
        }
    }

    /// One text among others, against the scalar twin; neighbours are NaN, and stay as they were.
    fn check<K: MicroKernel>(
        isa: Isa<K>,
        heads: Heads,
        length: usize,
        first: usize,
        scale: f32,
        against: Against,
    ) {
        let hidden = heads.hidden();
        let own: Vec<f32> = numbers(length * 3 * hidden, 9).iter().map(|x| x * scale).collect();
        let own: Vec<K::Element> = rounded(&own);
        let mut all = vec![K::Element::of(f32::NAN); padded_rows(first + length) * 3 * hidden];
        all[first * 3 * hidden..][..own.len()].copy_from_slice(&own);
        let qkv = Guarded::of(&all, against);
        let mut context = Guarded::of(&vec![K::Element::of(1.0); (first + length) * hidden], against);
        let mut scratch = Scratch::new(length, heads);
        attention(isa, heads, &qkv, first, length, &mut scratch, &mut context);
        let expected = scalar::attention(&own, length, heads.count, heads.size);
        // Probabilities and the result are rounded each; what scores are off by, grows with them.
        let scores = (f64::from(scale).powi(2) * heads.size as f64 * f64::from(f32::EPSILON)).min(1.0 / 64.0);
        let bound = f64::from(scale) * (2.0 * rounding::<K::Element>() + scores);
        for (at, (&got, expected)) in context[first * hidden..].iter().zip(&expected).enumerate() {
            assert!(
                (got.into() - expected).abs() <= bound,
                "{got:?} for {expected} at {at} of {length} tokens, {heads:?}, {}",
                K::SET
            );
        }
        assert!(
            context[..first * hidden].iter().all(|&value| value == K::Element::of(1.0)),
            "another text's rows"
        );
    }

    #[test]
    fn every_remainder_of_lengths_is_what_the_scalar_twin_says() {
        for_each_isa!(|isa| {
            for length in [1, 2, 6, 7, 15, 16, 17, 31, 32, 33, 48, 65] {
                for size in Heads::SIZES {
                    check(isa, Heads { count: 2, size }, length, 3, 1.0, Against::End);
                }
            }
            check(isa, Heads { count: 1, size: 32 }, 40, 0, 1.0, Against::Start);
            check(isa, Heads { count: 1, size: 64 }, 130, 0, 1.0, Against::End);
        });
    }

    #[test]
    fn large_and_tiny_scores_make_probabilities_all_the_same() {
        for_each_isa!(|isa| {
            for scale in [1e-20, 1e-3, 30.0, 1e6] {
                check(isa, Heads { count: 2, size: 32 }, 37, 0, scale, Against::End);
            }
        });
    }

    #[test]
    fn a_scratch_that_was_used_for_a_longer_text_leaves_nothing_behind() {
        for_each_isa!(|isa| {
            let heads = Heads { count: 1, size: 32 };
            let qkv = rounded(&numbers(padded_rows(64) * 96, 11));
            let mut scratch = Scratch::new(64, heads);
            let run = |length: usize, scratch: &mut Scratch<_>| {
                let mut context = rounded(&vec![0.0; length * 32]);
                attention(isa, heads, &qkv, 0, length, scratch, &mut context);
                context
            };
            let fresh = run(5, &mut Scratch::new(5, heads));
            run(64, &mut scratch);
            assert_eq!(run(5, &mut scratch), fresh);
        });
    }

    #[test]
    fn a_matrix_is_transposed() {
        if avx512::<f32>().is_none() {
            return;
        }
        let numbers: Vec<u32> = (0..256).collect();
        let mut transposed = vec![0u32; 256];
        // SAFETY: the CPU was asked; 16 whole registers each.
        unsafe {
            let rows = std::array::from_fn(|row| _mm512_loadu_si512(numbers.as_ptr().add(16 * row).cast()));
            for (row, columns) in transpose(&rows).into_iter().enumerate() {
                _mm512_storeu_si512(transposed.as_mut_ptr().add(16 * row).cast(), columns);
            }
        }
        assert!((0..256).all(|at| transposed[at] == numbers[at % 16 * 16 + at / 16]), "{transposed:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_length_is_what_the_scalar_twin_says(
            length in 1usize..100, first in 0usize..5, count in 1usize..4, wide: bool,
        ) {
            for_each_isa!(|isa| {
                let heads = Heads { count, size: if wide { 64 } else { 32 } };
                check(isa, heads, length, first, 1.0, Against::End);
            });
        }
    }
}
