//! Functions of single values and of single rows: activations, exponential, `LayerNorm`.

use std::arch::x86_64::{
    __m512, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm512_add_ps, _mm512_div_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_roundscale_ps,
    _mm512_scalef_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_sub_ps,
};

use half::bf16;

use super::cpu::Isa;
use super::gemm::{BLOCK, round};

/// `erf(x/√2)/x` as a polynomial in x², fitted up to |x| = 4.25 so that the largest error of GELU
/// is least (Lawson's algorithm on Chebyshev nodes). Beyond, it grows past 1 and is cut there.
const ERF: [f32; 9] = [
    0.797_638_4,
    -0.132_380_56,
    0.019_437_559,
    -0.002_158_156_4,
    0.000_176_978_36,
    -1.029_503_5e-5,
    3.972_322e-7,
    -9.030_62e-9,
    9.094_161e-11,
];

/// 2^x for |x| ≤ ½, within 2.6e-6 of its value (the same fit, of the relative error).
const EXP2: [f32; 5] = [0.999_999_3, 0.693_121_8, 0.240_247_46, 0.055_917_9, 0.009_570_086];

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

/// x Φ(x) (Hendrycks and Gimpel, 2016), within 4.4e-5: a hundredth of what bfloat16 rounds off
/// where the error is largest, near |x| = 4.3.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn gelu(x: __m512) -> __m512 {
    let one = _mm512_set1_ps(1.0);
    let erf = _mm512_mul_ps(polynomial(&ERF, _mm512_mul_ps(x, x)), x);
    let erf = _mm512_max_ps(_mm512_min_ps(erf, one), _mm512_sub_ps(_mm512_setzero_ps(), one));
    let half = _mm512_mul_ps(x, _mm512_set1_ps(0.5));
    _mm512_fmadd_ps(half, erf, half)
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

/// 2^x, within 3e-6 of its value; 0 and infinity where f32 has no such number.
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
    /// Normalises each row of `x` `[rows, columns]` in place, and writes it to `rounded`, too;
    /// columns are a multiple of [`BLOCK`].
    ///
    /// # Panics
    ///
    /// Where a size does not fit.
    pub(crate) fn forward(&self, _: Isa, x: &mut [f32], rounded: &mut [bf16]) {
        let columns = self.weight.len();
        assert!(
            columns > 0 && columns.is_multiple_of(BLOCK) && self.bias.len() == columns,
            "LayerNorm of {columns}"
        );
        assert!(
            x.len().is_multiple_of(columns) && rounded.len() >= x.len(),
            "room for {} rounded values",
            x.len()
        );
        for (x, rounded) in x.chunks_exact_mut(columns).zip(rounded.chunks_exact_mut(columns)) {
            // SAFETY: every instruction set includes AVX-512; the sizes were checked.
            unsafe { self.row(x, rounded) };
        }
    }

    /// # Safety
    ///
    /// `x` and `rounded` have `self`'s columns, a multiple of [`BLOCK`].
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn row(&self, x: &mut [f32], rounded: &mut [bf16]) {
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
                round(rounded.as_mut_ptr().add(at), y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::tests::{numbers, sets};
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
        if sets().is_empty() {
            return;
        }
        let mut values: Vec<f32> = (-400_000..=400_000).map(|x| x as f32 * 3e-5).collect();
        values.extend([0.0, -0.0, f32::MIN_POSITIVE, 1e-42, 50.0, -50.0, 1e10, -1e10, 1e30]);
        let functions: [(&str, Vector, fn(f64) -> f64, f64); 3] = [
            ("gelu", gelu, scalar::gelu, 4.5e-5),
            ("gelu_tanh", gelu_tanh, scalar::gelu_tanh, 2e-5),
            ("relu", relu, |x| x.max(0.0), 0.0),
        ];
        for (name, vector, exact, bound) in functions {
            for (x, y) in values.iter().zip(map(&values, vector)) {
                let expected = exact(f64::from(*x));
                let off = (f64::from(y) - expected).abs();
                assert!(off <= bound + expected.abs() * 1e-5, "{name}({x}) = {y}, not {expected}");
            }
        }
        assert!(map(&[f32::NAN], gelu)[0].is_nan() && map(&[f32::NAN], relu)[0].is_nan(), "NaN stays NaN");
    }

    #[test]
    fn powers_of_two_are_exact_enough_from_nothing_to_infinity() {
        if sets().is_empty() {
            return;
        }
        let exponents: Vec<f32> = (-150_000..=128_000).map(|x| x as f32 * 1e-3).collect();
        for (x, y) in exponents.iter().zip(map(&exponents, exp2)) {
            let expected = f64::from(*x).exp2();
            // Below 2⁻¹²⁶ numbers are denormal: the last bit is worth more.
            assert!(
                (f64::from(y) - expected).abs() <= expected * 3e-6 + 1.5e-45,
                "2^{x} = {y}, not {expected}"
            );
        }
        assert!(map(&[1e30], exp2)[0].is_infinite() && map(&[-1e30], exp2)[0].to_bits() == 0);
    }

    fn check(isa: Isa, columns: usize, rows: usize, offset: f32, scale: f32, against: Against) {
        let norm = LayerNorm { weight: numbers(columns, 1), bias: numbers(columns, 2), eps: 1e-5 };
        let x: Vec<f32> = numbers(columns * rows, 3).iter().map(|x| offset + x * scale).collect();
        let mut y = Guarded::of(&x, against);
        let mut rounded = Guarded::of(&vec![bf16::ZERO; x.len()], against);
        norm.forward(isa, &mut y, &mut rounded);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let expected = scalar::layer_norm(x, &norm.weight, &norm.bias, 1e-5);
            for (at, expected) in expected.into_iter().enumerate() {
                let at = row * columns + at;
                // The mean is off by a rounding of the numbers that it is taken from.
                let bound = 1e-5 + f64::from(f32::EPSILON * 4.0 * offset.abs() / scale);
                assert!((f64::from(y[at]) - expected).abs() <= bound, "{} for {expected} at {at}", y[at]);
                assert_eq!(rounded[at], bf16::from_f32(y[at]));
            }
        }
    }

    #[test]
    fn rows_far_from_zero_and_nearly_constant_are_normalised() {
        for isa in sets() {
            check(isa, 384, 3, 100.0, 1.0, Against::End);
            check(isa, 16, 1, 0.0, 1e4, Against::Start);
            check(isa, 1024, 2, -3.0, 0.1, Against::End);
        }
    }

    #[test]
    fn a_constant_row_becomes_the_bias() {
        for isa in sets() {
            let norm = LayerNorm { weight: vec![2.0; 32], bias: vec![0.5; 32], eps: 1e-12 };
            let (mut x, mut rounded) = ([7.0; 32], [bf16::ZERO; 32]);
            norm.forward(isa, &mut x, &mut rounded);
            assert!(x.iter().all(|x| x.to_bits() == 0.5f32.to_bits()), "{x:?}");
        }
    }

    proptest! {
        #[test]
        fn any_row_is_what_the_scalar_twin_says(blocks in 1usize..70, rows in 1usize..5) {
            for isa in sets() {
                check(isa, blocks * BLOCK, rows, 0.0, 1.0, Against::End);
            }
        }
    }
}
