//! The steps in AVX-512.

use std::arch::x86_64::*;

use super::{LANES, Lanes, ONE};

/// AVX-512 F, BW, DQ and VL: a value exists only where the processor has them.
#[derive(Clone, Copy)]
pub struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The processor has AVX-512 F, BW, DQ and VL.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl Lanes for Avx512 {
    type Numbers = __m512;
    type Sums = [__m512d; 2];
    type Mask = __mmask16;
    const REGISTERS: usize = 32;

    #[inline(always)]
    fn zero(self) -> [__m512d; 2] {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { [_mm512_setzero_pd(); 2] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }

    #[inline(always)]
    fn halves(self, x: &[u16; LANES]) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
    }

    #[inline(always)]
    fn bytes(self, x: &[i8; LANES]) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))) }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    fn store(self, x: __m512) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) };
        out
    }

    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn plus(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn minus(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn larger(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn power_of_two(self, shifted: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(shifted));
            _mm512_castsi512_ps(_mm512_add_epi32(exponent, _mm512_set1_epi32(ONE)))
        }
    }

    #[inline(always)]
    fn to_bf16(self, x: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe {
            let rounded = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
            _mm512_castsi512_ps(_mm512_and_epi32(rounded, _mm512_set1_epi32(-0x1_0000)))
        }
    }

    #[inline(always)]
    fn pairs(self, low: __m512, high: __m512) -> [u16; 2 * LANES] {
        let mut out = [0; 2 * LANES];
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is stored.
        unsafe {
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
            let pairs = _mm512_or_epi32(low, _mm512_castps_si512(high));
            _mm512_storeu_si512(out.as_mut_ptr().cast(), pairs);
        }
        out
    }

    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_reduce_max_ps(x) }
    }

    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe { _mm512_abs_ps(x) }
    }

    #[inline(always)]
    fn add(self, [low, high]: [__m512d; 2], x: __m512) -> [__m512d; 2] {
        // SAFETY: Avx512 is the proof of its instructions.
        unsafe {
            let x_low = _mm512_cvtps_pd(_mm512_castps512_ps256(x));
            let x_high = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x));
            [_mm512_add_pd(low, x_low), _mm512_add_pd(high, x_high)]
        }
    }

    #[inline(always)]
    fn add_where(self, sums: [__m512d; 2], mask: u16, x: __m512) -> [__m512d; 2] {
        // SAFETY: Avx512 is the proof of its instructions.
        self.add(sums, unsafe { _mm512_maskz_mov_ps(mask, x) })
    }

    #[inline(always)]
    fn split(self, w: __m512, delta: __m512) -> ([i8; LANES], u16) {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let minus_delta = _mm512_xor_ps(_mm512_set1_ps(-0.0), delta);
            let plus = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(w, delta);
            let minus = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(w, minus_delta);
            let codes = _mm_sub_epi8(_mm_movm_epi8(minus), _mm_movm_epi8(plus));
            let mut out = [0; LANES];
            _mm_storeu_si128(out.as_mut_ptr().cast(), codes);
            (out, !(plus ^ minus))
        }
    }

    #[inline(always)]
    fn active(self, codes: &[i8; LANES]) -> u16 {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            _mm_test_epi8_mask(codes, codes)
        }
    }

    #[inline(always)]
    fn count(self, mask: u16) -> u32 {
        mask.count_ones()
    }

    #[inline(always)]
    fn sums(self, [low, high]: [__m512d; 2]) -> [f64; LANES] {
        let mut sums = [0.0; LANES];
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            _mm512_storeu_pd(sums.as_mut_ptr(), low);
            _mm512_storeu_pd(sums.as_mut_ptr().add(LANES / 2), high);
        }
        sums
    }

    #[inline(always)]
    fn first_least(self, numbers: &[f64; LANES]) -> usize {
        // SAFETY: Avx512 is the proof of its instructions; the array is as long as what is loaded or stored.
        let is_least = unsafe {
            let low = _mm512_loadu_pd(numbers.as_ptr());
            let high = _mm512_loadu_pd(numbers.as_ptr().add(LANES / 2));
            let least = _mm512_set1_pd(_mm512_reduce_min_pd(_mm512_min_pd(low, high)));
            let low = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(low, least);
            let high = _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(high, least);
            u16::from(low) | u16::from(high) << 8
        };
        (is_least.trailing_zeros() as usize).min(LANES - 1)
    }
}
