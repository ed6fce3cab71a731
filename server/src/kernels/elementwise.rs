//! Functions of single values and of single rows: activations, exponential, norms.

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512,
    _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_maskz_sub_ps, _mm512_max_ps,
    _mm512_min_ps, _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use super::element::Element;
use super::gemm::{BLOCK, Isa, MicroKernel};

/// t Φ(−t), what GELU lacks to t for t ≥ 0 and to 0 for −t, piece by piece: polynomials of the
/// distance to the nearest multiple of [`PIECE`], a column each, their constants in the first row.
/// (The largest error of each is least: Lawson's algorithm on Chebyshev nodes. The first column is
/// exact to the second term, so that tiny numbers keep all their digits.)
#[rustfmt::skip]
const TAIL: [[f32; 16]; 6] = [
    [
        0.0, 0.132_686_33, 0.169_970_51, 0.146_581_34,
        0.100_210_81, 0.056_993_18, 0.027_505_06, 0.011_372_674,
        0.004_049_693_2, 0.001_245_639_6, 0.000_331_565_04, 7.646_422e-5,
        1.528_961_2e-5, 2.652_235_3e-6, 3.992_684_6e-7, 5.217_59e-8,
    ],
    [
        0.5, 0.214_384_6, 0.000_774_300_54, -0.108_066_71,
        -0.127_469_2, -0.098_577_92, -0.059_189_748, -0.029_068_526,
        -0.011_945_644, -0.004_157_196_3, -0.001_233_816_4, -0.000_313_692_8,
        -6.852_933_4e-5, -1.289_125_7e-5, -2.091_423_3e-6, -2.929_754_7e-7,
    ],
    [
        -0.398_940_5, -0.345_705_06, -0.216_444_18, -0.077_803_11,
        0.016_186_32, 0.052_126_63, 0.048_602_56, 0.031_115_813,
        0.015_512_01, 0.006_297_019_3, 0.002_126_486_3, 0.000_604_593_8,
        0.000_145_808_94, 2.997_744_2e-5, 5.272_598e-6, 7.954_199e-7,
    ],
    [
        -6.812_746e-5, 0.089_691_32, 0.129_390_95, 0.108_627_625,
        0.056_666_12, 0.010_414_055, -0.012_645_679_5, -0.016_092_047,
        -0.011_080_153, -0.005_575_579, -0.002_217_525_2, -0.000_720_657_8,
        -0.000_194_770_65, -4.424_507e-5, -8.507_112e-6, -1.391_195_5e-6,
    ],
    [
        0.067_394_97, 0.046_728_253, 0.004_880_781, -0.028_404_301,
        -0.035_832_774, -0.023_608_955, -0.007_774_309_7, 0.001_629_033_6,
        0.004_021_539, 0.003_014_615_5, 0.001_525_965_2, 0.000_592_074_24,
        0.000_184_593_9, 4.734_624_2e-5, 1.012_847_1e-5, 1.823_208_2e-6,
    ],
    [
        -0.005_014_946_7, -0.018_940_71, -0.022_633_513, -0.011_256_562,
        0.002_627_705, 0.008_834_119, 0.007_148_161, 0.002_892_137,
        2.550_828_7e-5, -0.000_835_008_05, -0.000_671_492_54, -0.000_335_033_1,
        -0.000_124_557_16, -3.666_094_6e-5, -8.791_982_5e-6, -1.746_348_6e-6,
    ],
];

/// The width of a piece.
const PIECE: f32 = 0.375;

/// Where the last piece nearly ends. Beyond, t Φ(−t) is less than 2e-8, and what it is there is taken.
const LAST: f32 = 5.8;

/// 2^x for |x| ≤ ½, within 9.1e-8 of its value (the same fit, of the relative error; 2⁰ is 1).
#[expect(clippy::approx_constant, reason = "it is fitted, and happens to be near")]
const EXP2: [f32; 6] = [1.0, 0.693_147, 0.240_222_42, 0.055_507_336, 0.009_671_513, 0.001_326_472_7];

/// A polynomial of x, its coefficients from the constant on.
#[inline]
#[target_feature(enable = "avx512f")]
fn polynomial<const N: usize>(coefficients: &[f32; N], x: __m512) -> __m512 {
    let mut y = _mm512_set1_ps(coefficients[N - 1]);
    for &coefficient in coefficients[..N - 1].iter().rev() {
        y = _mm512_fmadd_ps(y, x, _mm512_set1_ps(coefficient));
    }
    y
}

/// x Φ(x) (Hendrycks and Gimpel, 2016), within 2.1e-8 and the rounding of the result.
///
/// That is more than bfloat16 asks for, and takes no longer there than half as many digits do: it is
/// one table look-up a term of the polynomial, whatever their number of pieces.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn gelu(x: __m512) -> __m512 {
    /// Added to a small number it leaves its nearest integer in the lowest bits.
    const SHIFT: f32 = 12_582_912.0;
    let last = _mm512_set1_ps(LAST);
    // The second operand is the result where x is NaN: it stays NaN.
    let t = _mm512_min_ps(last, _mm512_abs_ps(x));
    let shift = _mm512_set1_ps(SHIFT);
    let shifted = _mm512_fmadd_ps(t, _mm512_set1_ps(1.0 / PIECE), shift);
    let at = _mm512_fnmadd_ps(_mm512_sub_ps(shifted, shift), _mm512_set1_ps(PIECE), t);
    let term = |row: &[f32; 16]| {
        // SAFETY: 16 elements.
        let row = unsafe { _mm512_loadu_ps(row.as_ptr()) };
        _mm512_permutexvar_ps(_mm512_castps_si512(shifted), row)
    };
    let [first @ .., highest] = &TAIL;
    let mut lacks = term(highest);
    for row in first.iter().rev() {
        lacks = _mm512_fmadd_ps(lacks, at, term(row));
    }
    _mm512_sub_ps(relu(x), lacks)
}

/// GELU by its tanh approximation: ½x(1 + tanh(√(2/π)(x + 0.044715x³))), here as x times the
/// logistic function of twice the argument.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn gelu_tanh(x: __m512) -> __m512 {
    // 2 √(2/π) log₂e, and the same times 0.044715.
    let inner = polynomial(&[-2.302_208_2, -0.102_943_24], _mm512_mul_ps(x, x));
    let one = _mm512_set1_ps(1.0);
    _mm512_div_ps(x, _mm512_add_ps(one, exp2(_mm512_mul_ps(inner, x))))
}

/// max(0, x).
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn relu(x: __m512) -> __m512 {
    // The second operand is the result where x is NaN: not hidden.
    _mm512_max_ps(_mm512_setzero_ps(), x)
}

/// x times the logistic function of it (Elfwing et al., 2017).
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn silu(x: __m512) -> __m512 {
    let falling = exp2(_mm512_mul_ps(x, _mm512_set1_ps(-std::f32::consts::LOG2_E)));
    _mm512_div_ps(x, _mm512_add_ps(_mm512_set1_ps(1.0), falling))
}

/// 2^x, within 1.7e-7 of its value; 0 and infinity where f32 has no such number.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp2(x: __m512) -> __m512 {
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    _mm512_scalef_ps(polynomial(&EXP2, _mm512_sub_ps(x, whole)), whole)
}

/// The parameters of a `LayerNorm` (Ba et al., 2016) or an `RMSNorm` (Zhang and Sennrich, 2019).
#[derive(Debug)]
pub(crate) struct Norm {
    /// One a column.
    pub(crate) weight: Vec<f32>,
    /// One a column.
    pub(crate) bias: Vec<f32>,
    /// Added to the variance, or to the mean of squares.
    pub(crate) eps: f32,
    /// Whether the mean is subtracted first, as `LayerNorm` does it.
    pub(crate) centred: bool,
    /// How many columns count: those beyond are padding, where all rows and parameters are zero.
    pub(crate) columns: usize,
}

impl Norm {
    /// With parameters for `width` columns, padding included.
    ///
    /// # Panics
    ///
    /// Where there are fewer.
    pub(crate) fn padded(mut self, width: usize) -> Self {
        assert!(self.weight.len() <= width, "a norm of {} columns in {width}", self.weight.len());
        self.weight.resize(width, 0.0);
        self.bias.resize(width, 0.0);
        self
    }

    /// # Panics
    ///
    /// Unless it is of rows so wide, and of a number that the kernel can do.
    pub(super) fn check(&self, width: usize) {
        assert!(
            width > 0
                && width.is_multiple_of(BLOCK)
                && (1..=width).contains(&self.columns)
                && [&self.weight, &self.bias].iter().all(|values| values.len() == width),
            "a norm of {} columns in {width}",
            self.columns
        );
    }

    /// Normalises each row of `x` `[rows, width]` in place. Where operands of products hold less than
    /// an f32, writes them to `rounded` `[rows, width]`, too, which is not touched otherwise.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn forward<K: MicroKernel>(&self, _: Isa<K>, x: &mut [f32], rounded: &mut [K::Element]) {
        self.check_rows(x.len());
        assert!(!K::Element::ROUNDS || rounded.len() >= x.len(), "room for {} rounded values", x.len());
        // SAFETY: every instruction set includes AVX-512; the sizes were checked.
        unsafe { self.in_place(x, rounded) };
    }

    /// Writes the normalised rows of `x` `[rows, width]` to `to` `[rows, width]`.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn apart<K: MicroKernel>(&self, _: Isa<K>, x: &[f32], to: &mut [K::Element]) {
        self.check_rows(x.len());
        assert_eq!(to.len(), x.len(), "as many values");
        // SAFETY: every instruction set includes AVX-512; the sizes were checked.
        unsafe { self.into(x, to) };
    }

    /// Adds the normalised rows of `x` `[rows, width]` to those of `to` `[rows, width]`.
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn add<K: MicroKernel>(&self, _: Isa<K>, x: &[f32], to: &mut [f32]) {
        self.check_rows(x.len());
        assert_eq!(to.len(), x.len(), "as many values");
        // SAFETY: every instruction set includes AVX-512; the sizes were checked.
        unsafe { self.onto(x, to) };
    }

    fn check_rows(&self, values: usize) {
        let width = self.weight.len();
        self.check(width);
        assert!(values.is_multiple_of(width), "whole rows of {width}, and no {values} values");
    }

    /// # Safety
    ///
    /// As [`Self::forward`] checks it; the CPU has AVX-512, and computes with `T`.
    #[target_feature(enable = "avx512f")]
    unsafe fn in_place<T: Element>(&self, x: &mut [f32], rounded: &mut [T]) {
        for at in (0..x.len()).step_by(self.weight.len()) {
            let to = x[at..].as_mut_ptr();
            let rounded = if T::ROUNDS { rounded[at..].as_mut_ptr() } else { rounded.as_mut_ptr() };
            // SAFETY: whole rows; each value is read for the last time before it is written.
            unsafe {
                self.row(to, |column, y| {
                    _mm512_storeu_ps(to.add(column), y);
                    if T::ROUNDS {
                        T::store(rounded.add(column), y);
                    }
                });
            }
        }
    }

    /// # Safety
    ///
    /// As [`Self::apart`] checks it; the CPU has AVX-512, and computes with `T`.
    #[target_feature(enable = "avx512f")]
    unsafe fn into<T: Element>(&self, x: &[f32], to: &mut [T]) {
        for at in (0..x.len()).step_by(self.weight.len()) {
            let to = to[at..].as_mut_ptr();
            // SAFETY: whole rows.
            unsafe { self.row(x[at..].as_ptr(), |column, y| T::store(to.add(column), y)) };
        }
    }

    /// # Safety
    ///
    /// As [`Self::add`] checks it; the CPU has AVX-512.
    #[target_feature(enable = "avx512f")]
    unsafe fn onto(&self, x: &[f32], to: &mut [f32]) {
        for at in (0..x.len()).step_by(self.weight.len()) {
            let to = to[at..].as_mut_ptr();
            // SAFETY: whole rows.
            unsafe {
                self.row(x[at..].as_ptr(), |column, y| {
                    let to = to.add(column);
                    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), y));
                });
            }
        }
    }

    /// # Safety
    ///
    /// `x` has as many columns as there are parameters, which were checked. The CPU has AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn row(&self, x: *const f32, store: impl Fn(usize, __m512)) {
        let at = (0..self.weight.len()).step_by(BLOCK);
        let count = self.columns as f32;
        // SAFETY: as the caller promises.
        unsafe {
            let load = |at: usize| _mm512_loadu_ps(x.add(at));
            let mut mean = _mm512_setzero_ps();
            if self.centred {
                for at in at.clone() {
                    mean = _mm512_add_ps(mean, load(at));
                }
                mean = _mm512_set1_ps(_mm512_reduce_add_ps(mean) / count);
            }
            let mut squares = _mm512_setzero_ps();
            // Padding is zero, and so is not its distance to the mean.
            let whole = self.columns / BLOCK * BLOCK;
            for at in (0..whole).step_by(BLOCK) {
                let centred = _mm512_sub_ps(load(at), mean);
                squares = _mm512_fmadd_ps(centred, centred, squares);
            }
            if whole < self.columns {
                let there = u16::MAX >> (BLOCK - (self.columns - whole));
                let centred = _mm512_maskz_sub_ps(there, load(whole), mean);
                squares = _mm512_fmadd_ps(centred, centred, squares);
            }
            let variance = _mm512_reduce_add_ps(squares) / count;
            let scale = _mm512_set1_ps(1.0 / (variance + self.eps).sqrt());
            for at in at {
                let centred = _mm512_sub_ps(load(at), mean);
                let weight = _mm512_loadu_ps(self.weight.as_ptr().add(at));
                let bias = _mm512_loadu_ps(self.bias.as_ptr().add(at));
                store(at, _mm512_fmadd_ps(_mm512_mul_ps(centred, scale), weight, bias));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::tests::{avx512, for_each_isa, numbers, rounded};
    use super::super::guarded::{Against, Guarded};
    use super::super::scalar;
    use super::*;

    type Vector = unsafe fn(__m512) -> __m512;

    /// `function` of each value.
    fn map(values: &[f32], function: Vector) -> Vec<f32> {
        let mut padded = values.to_vec();
        padded.resize(values.len().next_multiple_of(BLOCK), 0.0);
        for values in padded.chunks_exact_mut(BLOCK) {
            // SAFETY: the callers ask the CPU first; 16 values each.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), function(_mm512_loadu_ps(values.as_ptr()))) };
        }
        padded.truncate(values.len());
        padded
    }

    #[test]
    fn activations_are_within_their_bounds_everywhere() {
        if avx512::<f32>().is_none() {
            return;
        }
        let mut values: Vec<f32> = (-400_000..=400_000).map(|x| x as f32 * 3e-5).collect();
        values.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-42, 50.0, -50.0, 1e10, -1e10, 1e30]);
        let functions: [(&str, Vector, fn(f64) -> f64, f64); 4] = [
            ("gelu", gelu, scalar::gelu, 2.5e-8),
            ("gelu_tanh", gelu_tanh, scalar::gelu_tanh, 1e-7),
            ("silu", silu, scalar::silu, 1e-7),
            ("relu", relu, |x| x.max(0.0), 0.0),
        ];
        for (name, vector, exact, bound) in functions {
            for (x, y) in values.iter().zip(map(&values, vector)) {
                let expected = exact(f64::from(*x));
                let off = (f64::from(y) - expected).abs();
                assert!(
                    off <= bound + expected.abs() * f64::from(f32::EPSILON),
                    "{name}({x}) = {y}, not {expected}"
                );
            }
        }
        assert!(map(&[f32::NAN], gelu)[0].is_nan() && map(&[f32::NAN], relu)[0].is_nan(), "NaN stays NaN");
    }

    #[test]
    fn powers_of_two_are_exact_enough_from_nothing_to_infinity() {
        if avx512::<f32>().is_none() {
            return;
        }
        let exponents: Vec<f32> = (-150_000..128_000).map(|x| x as f32 * 1e-3).collect();
        for (x, y) in exponents.iter().zip(map(&exponents, exp2)) {
            let expected = f64::from(*x).exp2();
            // Below 2⁻¹²⁶ numbers are denormal: the last bit is worth more.
            assert!(
                (f64::from(y) - expected).abs() <= expected * 1.7e-7 + 1.5e-45,
                "2^{x} = {y}, not {expected}"
            );
        }
        assert!(map(&[1e30], exp2)[0].is_infinite() && map(&[-1e30], exp2)[0].to_bits() == 0);
    }

    /// Rows of so many columns that count, padded to `width`.
    fn check<K: MicroKernel>(
        isa: Isa<K>,
        (columns, width): (usize, usize),
        rows: usize,
        (offset, scale): (f32, f32),
        against: Against,
    ) {
        for centred in [true, false] {
            let norm =
                Norm { weight: numbers(columns, 1), bias: numbers(columns, 2), eps: 1e-5, centred, columns };
            let norm = norm.padded(width);
            let mut x: Vec<f32> = numbers(width * rows, 3).iter().map(|x| offset + x * scale).collect();
            x.chunks_exact_mut(width).for_each(|row| row[columns..].fill(0.0));
            let zeros = || vec![K::Element::of(0.0); x.len()];
            let mut y = Guarded::of(&x, against);
            let mut rounded = Guarded::of(&if K::Element::ROUNDS { zeros() } else { vec![] }, against);
            norm.forward(isa, &mut y, &mut rounded);
            let from = Guarded::of(&x, against);
            let mut apart = Guarded::of(&zeros(), against);
            norm.apart(isa, &from, &mut apart);
            let mut sums = Guarded::of(&vec![1.0; x.len()], against);
            norm.add(isa, &from, &mut sums);
            for (row, x) in x.chunks_exact(width).enumerate() {
                let expected = scalar::norm(x, &norm).into_iter().chain(std::iter::repeat(0.0));
                for (at, expected) in expected.take(width).enumerate() {
                    let at = row * width + at;
                    // The mean is off by a rounding of the numbers that it is taken from.
                    let bound = 1e-5 + f64::from(f32::EPSILON * 4.0 * offset.abs() / scale);
                    assert!((f64::from(y[at]) - expected).abs() <= bound, "{} for {expected} at {at}", y[at]);
                    let operand = K::Element::of(y[at]);
                    assert!(!K::Element::ROUNDS || rounded[at] == operand, "{at} of {}", y[at]);
                    assert_eq!(apart[at], operand, "apart at {at}");
                    assert!((sums[at] - y[at] - 1.0).abs() < 1e-5, "{} at {at}, of {}", sums[at], y[at]);
                }
            }
        }
    }

    #[test]
    fn rows_far_from_zero_and_nearly_constant_are_normalised() {
        for_each_isa!(|isa| {
            check(isa, (384, 384), 3, (100.0, 1.0), Against::End);
            check(isa, (16, 16), 1, (0.0, 1e4), Against::Start);
            check(isa, (1024, 1024), 2, (-3.0, 0.1), Against::End);
        });
    }

    #[test]
    fn padding_does_not_count_and_stays_zero() {
        for_each_isa!(|isa| {
            for (columns, width) in [(1, 16), (15, 16), (17, 32), (312, 320), (48, 64), (33, 64)] {
                check(isa, (columns, width), 3, (5.0, 1.0), Against::End);
            }
        });
    }

    #[test]
    fn a_constant_row_becomes_the_bias() {
        for_each_isa!(|isa| {
            let (weight, bias) = (vec![2.0; 32], vec![0.5; 32]);
            let norm = Norm { weight, bias, eps: 1e-12, centred: true, columns: 32 };
            let mut x = [7.0; 32];
            let mut rounded = rounded(&[0.0; 32]);
            norm.forward(isa, &mut x, &mut rounded);
            assert!(x.iter().all(|x| x.to_bits() == 0.5f32.to_bits()), "{x:?}");
        });
    }

    proptest! {
        #[test]
        fn any_row_is_what_the_scalar_twin_says(columns in 1usize..1100, rows in 1usize..5) {
            for_each_isa!(|isa| {
                check(isa, (columns, columns.next_multiple_of(BLOCK)), rows, (0.0, 1.0), Against::End);
            });
        }
    }
}
