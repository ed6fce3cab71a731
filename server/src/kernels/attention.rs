//! Self-attention of one text: softmax(QKᵀ · scale + what distances add) V of each head (Vaswani et al., 2017).
//!
//! # Flow
//!
//! For each head of keys and values: they are packed as weights are (for the keys that is a transpose); then, a few
//! queries at a time, scores are computed, turned into probabilities, and multiplied with the values. Scores never
//! leave the cache, and those of keys that no query of the tile sees are not computed. They are scaled, and the
//! probabilities divided by their sum, in f32; the probabilities that are multiplied are operands, between 0 and 1.

use std::arch::x86_64::{
    __m512, __m512i, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_blend_ps, _mm512_maskz_mov_ps, _mm512_max_ps, _mm512_mul_ps, _mm512_or_si512,
    _mm512_reduce_add_ps, _mm512_reduce_max_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};
use std::ops::Range;

use super::buffer::Buffer;
use super::element::Element;
use super::elementwise::exp2;
use super::gemm::{BLOCK, MicroKernel, Tile, padded_rows};

/// How a token's queries, keys and values are divided among heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Heads {
    /// Heads of queries.
    pub(crate) query: usize,
    /// Heads of keys and of values, each of which serves as many heads of queries.
    pub(crate) key_value: usize,
    /// Width of each in memory, a multiple of [`Heads::STEP`]: what is beyond the model's own is zero.
    pub(crate) size: usize,
    /// What scores are multiplied with.
    pub(crate) scale: f32,
}

impl Heads {
    /// What widths are multiples of: the largest [`Element::STEP`].
    pub(crate) const STEP: usize = 32;

    /// Width of the queries of all heads, and of what they take over.
    pub(crate) const fn width(&self) -> usize {
        self.query * self.size
    }

    /// Width of queries, keys and values together.
    pub(crate) const fn joined(&self) -> usize {
        (self.query + 2 * self.key_value) * self.size
    }

    /// # Panics
    ///
    /// Unless the kernel can do them.
    pub(super) fn check(&self) {
        assert!(
            self.query > 0
                && self.key_value > 0
                && self.query.is_multiple_of(self.key_value)
                && self.size > 0
                && self.size.is_multiple_of(Self::STEP),
            "{self:?}"
        );
    }
}

/// What is added to scores, by head of queries and by how far a key is ahead of its query.
#[derive(Debug)]
pub(crate) struct Added {
    /// `[heads][2 × longest − 1]`, from `1 − longest` on; times log₂e, as scores are.
    values: Vec<f32>,
    longest: usize,
}

impl Added {
    /// Of `values` `[heads, 2 × longest − 1]`, from the distance `1 − longest` on.
    ///
    /// # Panics
    ///
    /// Unless there are so many.
    pub(crate) fn new(values: &[f32], heads: usize, longest: usize) -> Self {
        assert!(longest > 0 && values.len() == heads * (2 * longest - 1), "{} values", values.len());
        let mut values: Vec<f32> = values.iter().map(|value| value * std::f32::consts::LOG2_E).collect();
        // Blocks are read whole.
        values.resize(values.len() + BLOCK, 0.0);
        Self { values, longest }
    }

    /// What the query at `at` has added to the key at `first` and those after it.
    fn of(&self, head: usize, at: usize, first: usize) -> &[f32] {
        &self.values[head * (2 * self.longest - 1) + self.longest - 1 - at + first..]
    }
}

/// Which keys a query sees, and what is added to its scores.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sight<'a> {
    /// Whether it sees only its own token and those before.
    pub(crate) causal: bool,
    /// The greatest distance at which it sees a token.
    pub(crate) reach: Option<usize>,
    /// By distance.
    pub(crate) added: Option<&'a Added>,
}

impl Sight<'_> {
    /// The keys that the query at `at` sees, of a text of so many tokens.
    fn of(&self, at: usize, length: usize) -> Range<usize> {
        let reach = self.reach.unwrap_or(length);
        let end = if self.causal { at + 1 } else { at.saturating_add(reach).saturating_add(1) };
        at.saturating_sub(reach)..end.min(length)
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
    fn fits(&self, length: usize, heads: Heads) -> bool {
        length <= self.longest
            && self.keys.len() >= self.longest * heads.size
            && self.context.len() >= MAX_ROWS * heads.size
    }
}

/// What one head of keys and values, and the heads of queries that it serves, do over one text of `length` tokens.
///
/// `joined` is `[rows, query + key + value]` ([`Heads::joined`]), from the text's first row on, with [`padded_rows`]
/// of `length`; `context` is `[rows, width]` from there on.
///
/// # Safety
///
/// The CPU has `K`'s instructions, and the thread is ready for them. `context` has room for `length` rows, and
/// nobody else reads or writes what these heads write there.
///
/// # Panics
///
/// Where a size does not fit.
pub(super) unsafe fn head<K: MicroKernel>(
    heads: Heads,
    head: usize,
    joined: &[K::Element],
    length: usize,
    sight: Sight<'_>,
    scratch: &mut Scratch<K::Element>,
    context: *mut K::Element,
) {
    heads.check();
    assert!(head < heads.key_value, "head {head} of {heads:?}");
    assert!(scratch.fits(length, heads), "a text of {length} tokens, scratch for {}", scratch.longest);
    assert!(joined.len() >= padded_rows(length) * heads.joined(), "{} values of {length} rows", joined.len());
    assert!(sight.added.is_none_or(|added| {
        length <= added.longest && added.values.len() >= heads.query * (2 * added.longest - 1) + BLOCK
    }));
    if length > 0 {
        // SAFETY: the rest was checked.
        unsafe { text::<K>(heads, head, joined, length, sight, scratch, context) }
    }
}

/// # Safety
///
/// As [`head`] has it, which checks the rest.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn text<K: MicroKernel>(
    heads: Heads,
    head: usize,
    joined: &[K::Element],
    length: usize,
    sight: Sight<'_>,
    scratch: &mut Scratch<K::Element>,
    context: *mut K::Element,
) {
    const { assert!(K::ROWS <= MAX_ROWS) };
    let Heads { query, key_value, size, scale } = heads;
    let (stride, step) = (heads.joined(), K::Element::STEP);
    let padded = length.next_multiple_of(step);
    let Scratch { keys, values, .. } = scratch;
    // SAFETY: a head of `length` rows, and of the rows beyond that the caller has; the scratch has room for `longest`
    // tokens, whole steps of them.
    unsafe {
        let key = joined.as_ptr().add((query + head) * size);
        pack_keys(key, stride, length, size, keys.as_mut_ptr());
        pack_values(key.add(key_value * size), stride, length, size, values.as_mut_ptr());
    }
    let served = query / key_value;
    let scale = _mm512_set1_ps(std::f32::consts::LOG2_E * scale);
    for head in head * served..(head + 1) * served {
        for row in (0..length).step_by(K::ROWS) {
            let rows = (length - row).min(K::ROWS);
            // The first one sees the first of them, and the last one the last.
            let first = sight.of(row, length).start / step * step;
            let last = sight.of(row + rows - 1, length).end;
            // Scores come in whole blocks, probabilities in whole steps.
            let (scored, steps) = ((last - first).next_multiple_of(BLOCK), (last - first).div_ceil(step));
            let weighed = steps * step;
            let Scratch { keys, values, scores, probabilities, context: sums, .. } = &mut *scratch;
            // SAFETY: as above; the caller's rows and room for the result.
            unsafe {
                for column in (0..scored).step_by(K::BLOCKS * BLOCK) {
                    K::tile(Tile {
                        a: joined.as_ptr().add(row * stride + head * size),
                        stride,
                        rows,
                        b: keys.as_ptr().add((first + column) * size),
                        b_stride: BLOCK * size,
                        blocks: ((scored - column) / BLOCK).min(K::BLOCKS),
                        steps: size / step,
                        c: scores.as_mut_ptr().add(column),
                        c_stride: scored,
                    });
                }
                let mut inverse = [0.0; MAX_ROWS];
                for (at, inverse) in inverse.iter_mut().enumerate().take(rows) {
                    let seen = sight.of(row + at, length);
                    let own = scores.as_mut_ptr().add(at * scored);
                    let to = probabilities.as_mut_ptr().add(at * weighed);
                    let seen = seen.start - first..seen.end - first;
                    *inverse = match sight.added {
                        Some(added) => {
                            let added = added.of(head, row + at, first).as_ptr();
                            add(own, added, scored, scale);
                            softmax(own, seen, weighed, None, to)
                        }
                        None => softmax(own, seen, weighed, Some(scale), to),
                    };
                    *inverse = 1.0 / *inverse;
                }
                for column in (0..size).step_by(K::BLOCKS * BLOCK) {
                    K::tile(Tile {
                        a: probabilities.as_ptr(),
                        stride: weighed,
                        rows,
                        b: values.as_ptr().add(column * padded + first * BLOCK),
                        b_stride: BLOCK * padded,
                        blocks: ((size - column) / BLOCK).min(K::BLOCKS),
                        steps,
                        c: sums.as_mut_ptr().add(column),
                        c_stride: size,
                    });
                }
                for (at, &inverse) in inverse[..rows].iter().enumerate() {
                    let to = context.add((row + at) * heads.width() + head * size);
                    for column in (0..size).step_by(BLOCK) {
                        let sum = _mm512_loadu_ps(sums.as_ptr().add(at * size + column));
                        K::Element::store(to.add(column), _mm512_mul_ps(sum, _mm512_set1_ps(inverse)));
                    }
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

/// Scales `scores`, whole blocks, and adds to them.
///
/// # Safety
///
/// So many can be read and written; as many of `added` can be read.
#[target_feature(enable = "avx512f")]
unsafe fn add(scores: *mut f32, added: *const f32, count: usize, scale: __m512) {
    for at in (0..count).step_by(BLOCK) {
        // SAFETY: as the caller promises.
        unsafe {
            let (score, added) = (_mm512_loadu_ps(scores.add(at)), _mm512_loadu_ps(added.add(at)));
            _mm512_storeu_ps(scores.add(at), _mm512_fmadd_ps(score, scale, added));
        }
    }
}

/// Which of the 16 places from `at` on are in `seen`.
fn places(seen: &Range<usize>, at: usize) -> __mmask16 {
    let from = |place: usize| u16::MAX.checked_shl(place as u32).unwrap_or(0);
    from(seen.start.saturating_sub(at)) & !from(seen.end.saturating_sub(at))
}

/// Turns the scores that are `seen` into 2^(`scale` × (score − largest)), rounded; zeros before and behind them, up to
/// `count`, which are whole steps. Returns their sum. Without a scale it is 1.
///
/// # Safety
///
/// Of `scores`, the whole blocks in which any is seen can be read, and some are seen; `to` has room for `count`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn softmax<T: Element>(
    scores: *const f32,
    seen: Range<usize>,
    count: usize,
    scale: Option<__m512>,
    to: *mut T,
) -> f32 {
    let (first, last) = (seen.start / BLOCK * BLOCK, (seen.end - 1) / BLOCK * BLOCK);
    let (begins, ends) = (places(&seen, first), places(&seen, last));
    let lowest = _mm512_set1_ps(f32::NEG_INFINITY);
    // SAFETY: whole blocks, as the caller promises.
    unsafe {
        let load = |at: usize| _mm512_loadu_ps(scores.add(at));
        let (beginning, ending) = (
            _mm512_mask_blend_ps(begins, lowest, load(first)),
            _mm512_mask_blend_ps(ends, lowest, load(last)),
        );
        let mut largest = _mm512_max_ps(beginning, ending);
        for at in (first + BLOCK..last).step_by(BLOCK) {
            largest = _mm512_max_ps(largest, load(at));
        }
        let largest = _mm512_set1_ps(_mm512_reduce_max_ps(largest));
        let weigh = |scores| {
            let below = _mm512_sub_ps(scores, largest);
            exp2(match scale {
                Some(scale) => _mm512_mul_ps(below, scale),
                None => below,
            })
        };
        let mut sum = _mm512_setzero_ps();
        for at in (0..first).step_by(BLOCK) {
            T::store(to.add(at), _mm512_setzero_ps());
        }
        if first < last {
            sum = _mm512_maskz_mov_ps(begins, weigh(beginning));
            T::store(to.add(first), sum);
        }
        for at in (first + BLOCK..last).step_by(BLOCK) {
            let weights = weigh(load(at));
            sum = _mm512_add_ps(sum, weights);
            T::store(to.add(at), weights);
        }
        let weights = _mm512_maskz_mov_ps(ends, weigh(ending));
        sum = _mm512_add_ps(sum, weights);
        T::store(to.add(last), weights);
        for at in (last + BLOCK..count).step_by(BLOCK) {
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

    /// As many heads of keys as of queries, all of their width counting.
    fn plain(count: usize, size: usize) -> Heads {
        Heads { query: count, key_value: count, size, scale: 1.0 / (size as f32).sqrt() }
    }

    /// All heads over a text that begins at row `first`.
    fn attention<K: MicroKernel>(
        _: Isa<K>,
        all: Heads,
        joined: &[K::Element],
        (first, length): (usize, usize),
        sight: Sight<'_>,
        scratch: &mut Scratch<K::Element>,
        context: &mut [K::Element],
    ) {
        assert_eq!(context.len(), (first + length) * all.width());
        let (joined, context) =
            (&joined[first * all.joined()..], context[first * all.width()..].as_mut_ptr());
        // SAFETY: the CPU has the instructions, or they are emulated; nobody else has the context.
        unsafe {
            let _ready = K::ready();
            for at in 0..all.key_value {
                head::<K>(all, at, joined, length, sight, scratch, context);
            }
        }
    }

    /// One text among others, against the scalar twin; neighbours are NaN, and stay as they were.
    fn check<K: MicroKernel>(
        isa: Isa<K>,
        heads: Heads,
        (first, length): (usize, usize),
        sight: Sight<'_>,
        scale: f32,
        against: Against,
    ) {
        let (joined, width) = (heads.joined(), heads.width());
        let own: Vec<f32> = numbers(length * joined, 9).iter().map(|x| x * scale).collect();
        let own: Vec<K::Element> = rounded(&own);
        let mut all = vec![K::Element::of(f32::NAN); padded_rows(first + length) * joined];
        all[first * joined..][..own.len()].copy_from_slice(&own);
        let all = Guarded::of(&all, against);
        let mut context = Guarded::of(&vec![K::Element::of(1.0); (first + length) * width], against);
        let mut scratch = Scratch::new(length, heads);
        attention(isa, heads, &all, (first, length), sight, &mut scratch, &mut context);
        let expected = scalar::attention(&own, length, heads, |head, query, key| {
            if !sight.of(query, length).contains(&key) {
                return f64::NEG_INFINITY;
            }
            let added = |added: &Added| f64::from(added.of(head, query, key)[0]) * std::f64::consts::LN_2;
            sight.added.map_or(0.0, added)
        });
        // Probabilities and the result are rounded each; what scores are off by, grows with them.
        let scores = (f64::from(scale).powi(2) * heads.size as f64 * f64::from(f32::EPSILON)).min(1.0 / 64.0);
        let bound = f64::from(scale) * (2.0 * rounding::<K::Element>() + scores);
        for (at, (&got, expected)) in context[first * width..].iter().zip(&expected).enumerate() {
            assert!(
                (got.into() - expected).abs() <= bound,
                "{got:?} for {expected} at {at} of {length} tokens, {heads:?}, {}",
                K::SET
            );
        }
        assert!(
            context[..first * width].iter().all(|&value| value == K::Element::of(1.0)),
            "another text's rows"
        );
    }

    #[test]
    fn every_remainder_of_lengths_is_what_the_scalar_twin_says() {
        let all = Sight::default();
        for_each_isa!(|isa| {
            for length in [1, 2, 6, 7, 15, 16, 17, 31, 32, 33, 48, 65] {
                for size in [32, 64, 96] {
                    check(isa, plain(2, size), (3, length), all, 1.0, Against::End);
                }
            }
            check(isa, plain(1, 32), (0, 40), all, 1.0, Against::Start);
            check(isa, plain(1, 64), (0, 130), all, 1.0, Against::End);
            check(isa, plain(1, 256), (0, 9), all, 1.0, Against::End);
        });
    }

    #[test]
    fn queries_see_what_is_near_or_before_them() {
        for_each_isa!(|isa| {
            for length in [1, 5, 16, 33, 70, 130] {
                for reach in [None, Some(0), Some(1), Some(8), Some(16), Some(40), Some(1000)] {
                    for causal in [false, true] {
                        let sight = Sight { causal, reach, added: None };
                        check(isa, plain(2, 32), (1, length), sight, 1.0, Against::End);
                    }
                }
            }
        });
    }

    #[test]
    fn heads_of_queries_share_those_of_keys() {
        let sight = Sight { causal: true, ..Sight::default() };
        for_each_isa!(|isa| {
            for (query, key_value) in [(4, 1), (4, 2), (6, 3)] {
                let heads = Heads { query, key_value, size: 32, scale: 0.3 };
                check(isa, heads, (2, 37), sight, 1.0, Against::End);
            }
        });
    }

    #[test]
    fn numbers_are_added_by_head_and_distance() {
        for_each_isa!(|isa| {
            for length in [1, 16, 33, 50] {
                for longest in [length, length + 7] {
                    let heads = plain(3, 32);
                    let added = Added::new(&numbers(3 * (2 * longest - 1), 4), 3, longest);
                    for reach in [None, Some(5)] {
                        let sight = Sight { causal: false, reach, added: Some(&added) };
                        check(isa, heads, (1, length), sight, 1.0, Against::End);
                    }
                }
            }
        });
    }

    #[test]
    fn large_and_tiny_scores_make_probabilities_all_the_same() {
        for_each_isa!(|isa| {
            for scale in [1e-20, 1e-3, 30.0, 1e6] {
                check(isa, plain(2, 32), (0, 37), Sight::default(), scale, Against::End);
            }
        });
    }

    #[test]
    fn a_scratch_that_was_used_for_a_longer_text_leaves_nothing_behind() {
        for_each_isa!(|isa| {
            let heads = plain(1, 32);
            let joined = rounded(&numbers(padded_rows(64) * 96, 11));
            let mut scratch = Scratch::new(64, heads);
            let run = |length: usize, scratch: &mut Scratch<_>| {
                let mut context = rounded(&vec![0.0; length * 32]);
                attention(isa, heads, &joined, (0, length), Sight::default(), scratch, &mut context);
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
            length in 1usize..100, first in 0usize..5, count in 1usize..4, wide: bool, causal: bool,
            reach in proptest::option::of(0usize..100),
        ) {
            for_each_isa!(|isa| {
                let heads = plain(count, if wide { 64 } else { 32 });
                let sight = Sight { causal, reach, added: None };
                check(isa, heads, (first, length), sight, 1.0, Against::End);
            });
        }
    }
}
