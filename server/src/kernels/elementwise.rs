//! Functions of single values and of single rows: activations, exponential, `LayerNorm`.

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_abs_ps, _mm512_add_ps, _mm512_castps_si512,
    _mm512_div_ps, _mm512_fmadd_ps, _mm512_fnmadd_ps, _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps,
    _mm512_mul_ps, _mm512_permutexvar_ps, _mm512_reduce_add_ps, _mm512_roundscale_ps, _mm512_scalef_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
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

/// 2^x, within 1.7e-7 of its value; 0 and infinity where f32 has no such number.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn exp2(x: __m512) -> __m512 {
    let whole = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
    _mm512_scalef_ps(polynomial(&EXP2, _mm512_sub_ps(x, whole)), whole)
}

/// The parameters of a `LayerNorm` (Ba et al., 2016).
#[derive(Debug)]
pub(crate) struct LayerNorm {
    /// One a column.
    pub(crate) weight: Vec<f32>,
    /// One a column.
    pub(crate) bias: Vec<f32>,
    /// Added to the variance.
    pub(crate) eps: f32,
}

impl LayerNorm {
    /// # Panics
    ///
    /// Unless it is of so many columns, and of a number that the kernel can do.
    pub(super) fn check(&self, columns: usize) {
        assert!(
            columns > 0
                && columns.is_multiple_of(BLOCK)
                && [&self.weight, &self.bias].iter().all(|values| values.len() == columns),
            "LayerNorm of {columns}"
        );
    }

    /// Normalises each row of `x` `[rows, columns]` in place. Where operands of products hold less than
    /// an f32, writes them to `rounded` `[rows, columns]`, too, which is not touched otherwise. Columns
    /// are a multiple of [`BLOCK`].
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn forward<K: MicroKernel>(&self, _: Isa<K>, x: &mut [f32], rounded: &mut [K::Element]) {
        let columns = self.weight.len();
        self.check(columns);
        assert!(x.len().is_multiple_of(columns), "whole rows");
        assert!(!K::Element::ROUNDS || rounded.len() >= x.len(), "room for {} rounded values", x.len());
        for (row, x) in x.chunks_exact_mut(columns).enumerate() {
            let rounded = if K::Element::ROUNDS { &mut rounded[row * columns..][..columns] } else { &mut [] };
            // SAFETY: every instruction set includes AVX-512; the sizes were checked.
            unsafe { self.row(x, rounded) };
        }
    }

    /// # Safety
    ///
    /// `x` has `self`'s columns, a multiple of [`BLOCK`]; so has `rounded`, where `T` rounds. The CPU has
    /// AVX-512, and computes with `T`.
    #[target_feature(enable = "avx512f")]
    unsafe fn row<T: Element>(&self, x: &mut [f32], rounded: &mut [T]) {
        let columns = x.len();
        let at = (0..columns).step_by(BLOCK);
        // SAFETY: as the caller promises.
        unsafe {
            let mut sum = _mm512_setzero_ps();
            for at in at.clone() {
                sum = _mm512_add_ps(sum, _mm512_loadu_ps(x.as_ptr().add(at)));
            }
            let mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / columns as f32);
            let mut squares = _mm512_setzero_ps();
            for at in at.clone() {
                let centred = _mm512_sub_ps(_mm512_loadu_ps(x.as_ptr().add(at)), mean);
                squares = _mm512_fmadd_ps(centred, centred, squares);
            }
            let variance = _mm512_reduce_add_ps(squares) / columns as f32;
            let scale = _mm512_set1_ps(1.0 / (variance + self.eps).sqrt());
            for at in at {
                let centred = _mm512_sub_ps(_mm512_loadu_ps(x.as_ptr().add(at)), mean);
                let weight = _mm512_loadu_ps(self.weight.as_ptr().add(at));
                let bias = _mm512_loadu_ps(self.bias.as_ptr().add(at));
                let y = _mm512_fmadd_ps(_mm512_mul_ps(centred, scale), weight, bias);
                _mm512_storeu_ps(x.as_mut_ptr().add(at), y);
                if T::ROUNDS {
                    T::store(rounded.as_mut_ptr().add(at), y);
                }
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
        let functions: [(&str, Vector, fn(f64) -> f64, f64); 3] = [
            ("gelu", gelu, scalar::gelu, 2.5e-8),
            ("gelu_tanh", gelu_tanh, scalar::gelu_tanh, 1e-7),
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

    fn check<K: MicroKernel>(
        isa: Isa<K>,
        columns: usize,
        rows: usize,
        offset: f32,
        scale: f32,
        against: Against,
    ) {
        let norm = LayerNorm { weight: numbers(columns, 1), bias: numbers(columns, 2), eps: 1e-5 };
        let x: Vec<f32> = numbers(columns * rows, 3).iter().map(|x| offset + x * scale).collect();
        let mut y = Guarded::of(&x, against);
        let mut rounded =
            Guarded::of(&vec![K::Element::of(0.0); if K::Element::ROUNDS { x.len() } else { 0 }], against);
        norm.forward(isa, &mut y, &mut rounded);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let expected = scalar::layer_norm(x, &norm.weight, &norm.bias, 1e-5);
            for (at, expected) in expected.into_iter().enumerate() {
                let at = row * columns + at;
                // The mean is off by a rounding of the numbers that it is taken from.
                let bound = 1e-5 + f64::from(f32::EPSILON * 4.0 * offset.abs() / scale);
                assert!((f64::from(y[at]) - expected).abs() <= bound, "{} for {expected} at {at}", y[at]);
                assert!(!K::Element::ROUNDS || rounded[at] == K::Element::of(y[at]), "{} of {}", at, y[at]);
            }
        }
    }

    #[test]
    fn rows_far_from_zero_and_nearly_constant_are_normalised() {
        for_each_isa!(|isa| {
            check(isa, 384, 3, 100.0, 1.0, Against::End);
            check(isa, 16, 1, 0.0, 1e4, Against::Start);
            check(isa, 1024, 2, -3.0, 0.1, Against::End);
        });
    }

    #[test]
    fn a_constant_row_becomes_the_bias() {
        for_each_isa!(|isa| {
            let norm = LayerNorm { weight: vec![2.0; 32], bias: vec![0.5; 32], eps: 1e-12 };
            let mut x = [7.0; 32];
            let mut rounded = rounded(&[0.0; 32]);
            norm.forward(isa, &mut x, &mut rounded);
            assert!(x.iter().all(|x| x.to_bits() == 0.5f32.to_bits()), "{x:?}");
        });
    }

    proptest! {
        #[test]
        fn any_row_is_what_the_scalar_twin_says(blocks in 1usize..70, rows in 1usize..5) {
            for_each_isa!(|isa| {
                check(isa, blocks * BLOCK, rows, 0.0, 1.0, Against::End);
            });
        }
    }
}
