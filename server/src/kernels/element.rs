//! What the operands of products are made of: bfloat16, or f32.
//!
//! Both are multiplied by the same code, 64 bytes and in these 32 bits at a time: 16 times two
//! bfloat16, or 16 f32. What differs is here.
//!
//! # Instructions
//!
//! Nothing here enables more than AVX-512 F, so that code for f32 is compiled for CPUs that have no
//! more. A function that enables AVX-512 BF16 could not be inlined into code that is generic; so its
//! two instructions are assembly.

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_storeu_ps,
};
use std::fmt::Debug;

use half::bf16;

use super::buffer::Number;
use super::encoder::Common;

/// An operand's element.
pub(crate) trait Element: Number + Debug + PartialEq + Into<f64> + Send + Sync + 'static {
    /// How many are 64 bytes: a cache line, a register, the row of a tile. Depths are padded to it.
    const STEP: usize = 64 / size_of::<Self>();

    /// How many neighbours of the depth share 32 bits.
    const GROUP: usize = 4 / size_of::<Self>();

    /// Whether it holds less than an f32.
    const ROUNDS: bool;

    /// What a width is padded to.
    fn padded(width: usize) -> usize {
        width.next_multiple_of(Self::STEP)
    }

    /// The nearest one; of two, the even one.
    fn of(value: f32) -> Self;

    /// The same number as an f32.
    fn widen(self) -> f32;

    /// Where operands are the residual stream: `state` itself, or what `LayerNorm` `rounded` of it.
    fn operands<'a>(state: &'a Common<f32>, rounded: &'a Common<Self>) -> &'a Common<Self>;

    /// 16 elements, each in the lower part of its 32 bits.
    ///
    /// # Safety
    ///
    /// They can be read, and the CPU has AVX-512 F.
    unsafe fn load(from: *const Self) -> __m512i;

    /// Stores 16 values, rounded as [`Self::of`] does.
    ///
    /// # Safety
    ///
    /// `to` has room for them, and the CPU has AVX-512 F and computes with this element.
    unsafe fn store(to: *mut Self, values: __m512);

    /// `sum` plus, in each 32 bits, the product of `a` and `b`: for bfloat16, of both pairs.
    ///
    /// # Safety
    ///
    /// The CPU has AVX-512 F and computes with this element.
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512;
}

impl Element for bf16 {
    const ROUNDS: bool = true;

    fn of(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline]
    fn widen(self) -> f32 {
        // What `to_f32` does, but without a look at NaN, which would stay one.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn operands<'a>(_: &'a Common<f32>, rounded: &'a Common<Self>) -> &'a Common<Self> {
        rounded
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512i {
        // SAFETY: as the caller promises.
        _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut Self, values: __m512) {
        let rounded: __m256i;
        // SAFETY: as the caller promises.
        unsafe {
            asm!(
                "vcvtneps2bf16 {rounded:y}, {values}",
                rounded = lateout(ymm_reg) rounded,
                values = in(zmm_reg) values,
                options(pure, nomem, nostack, preserves_flags),
            );
            _mm256_storeu_si256(to.cast(), rounded);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply_add(mut sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            asm!(
                "vdpbf16ps {sum}, {a}, {b}",
                sum = inout(zmm_reg) sum,
                a = in(zmm_reg) a,
                b = in(zmm_reg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }
}

impl Element for f32 {
    const ROUNDS: bool = false;

    fn of(value: f32) -> Self {
        value
    }

    #[inline]
    fn widen(self) -> f32 {
        self
    }

    fn operands<'a>(state: &'a Common<f32>, _: &'a Common<Self>) -> &'a Common<Self> {
        state
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const Self) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store(to: *mut Self, values: __m512) {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_ps(to, values) };
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply_add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum)
    }
}
