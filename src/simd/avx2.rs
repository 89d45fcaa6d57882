//! The steps in AVX2.

use std::arch::x86_64::*;

use super::{LANES, Lanes, ONE};

/// AVX2, FMA, F16C and POPCNT: a value exists only where the processor has them.
#[derive(Clone, Copy)]
pub struct Avx2(());

impl Avx2 {
    /// # Safety
    /// The processor has AVX2, FMA, F16C and POPCNT.
    pub unsafe fn new() -> Self {
        Self(())
    }
}

impl Lanes for Avx2 {
    type Numbers = [__m256; 2];
    type Sums = [__m256d; 4];
    /// All bits of a lane.
    type Mask = [__m256; 2];
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn zero(self) -> [__m256d; 4] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_setzero_pd(); 4] }
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(LANES / 2))] }
    }

    #[inline(always)]
    fn halves(self, x: &[u16; LANES]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let halves = _mm256_loadu_si256(x.as_ptr().cast());
            [
                _mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
                _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(halves)),
            ]
        }
    }

    #[inline(always)]
    fn bytes(self, x: &[i8; LANES]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let bytes = _mm_loadu_si128(x.as_ptr().cast());
            let low = _mm256_cvtepi8_epi32(bytes);
            let high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes));
            [_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)]
        }
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_set1_ps(x); 2] }
    }

    #[inline(always)]
    fn store(self, x: [__m256; 2]) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        for (out, x) in out.as_chunks_mut::<{ LANES / 2 }>().0.iter_mut().zip(x) {
            // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
        }
        out
    }

    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn plus(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn minus(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn larger(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn power_of_two(self, mut x: [__m256; 2]) -> [__m256; 2] {
        for x in &mut x {
            // SAFETY: Avx2 is the proof of its instructions.
            unsafe {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(*x));
                *x = _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(ONE)));
            }
        }
        x
    }

    #[inline(always)]
    fn to_bf16(self, mut x: [__m256; 2]) -> [__m256; 2] {
        for x in &mut x {
            // SAFETY: Avx2 is the proof of its instructions.
            unsafe {
                let rounded = _mm256_add_epi32(_mm256_castps_si256(*x), _mm256_set1_epi32(0x8000));
                *x = _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(-0x1_0000)));
            }
        }
        x
    }

    #[inline(always)]
    fn pairs(self, low: [__m256; 2], high: [__m256; 2]) -> [u16; 2 * LANES] {
        let mut out = [0; 2 * LANES];
        for (out, (low, high)) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(low.into_iter().zip(high)) {
            // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is stored.
            unsafe {
                let low = _mm256_srli_epi32::<16>(_mm256_castps_si256(low));
                let pairs = _mm256_or_si256(low, _mm256_castps_si256(high));
                _mm256_storeu_si256(out.as_mut_ptr().cast(), pairs);
            }
        }
        out
    }

    #[inline(always)]
    fn largest(self, [low, high]: [__m256; 2]) -> f32 {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe {
            let eight = _mm256_max_ps(low, high);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn abs(self, x: [__m256; 2]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            [_mm256_andnot_ps(sign, x[0]), _mm256_andnot_ps(sign, x[1])]
        }
    }

    #[inline(always)]
    fn add(self, [a, b, c, d]: [__m256d; 4], [low, high]: [__m256; 2]) -> [__m256d; 4] {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe {
            [
                _mm256_add_pd(a, _mm256_cvtps_pd(_mm256_castps256_ps128(low))),
                _mm256_add_pd(b, _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(low))),
                _mm256_add_pd(c, _mm256_cvtps_pd(_mm256_castps256_ps128(high))),
                _mm256_add_pd(d, _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(high))),
            ]
        }
    }

    #[inline(always)]
    fn add_where(
        self,
        sums: [__m256d; 4],
        [mask_low, mask_high]: [__m256; 2],
        [low, high]: [__m256; 2],
    ) -> [__m256d; 4] {
        // SAFETY: Avx2 is the proof of its instructions.
        let x = unsafe { [_mm256_and_ps(mask_low, low), _mm256_and_ps(mask_high, high)] };
        self.add(sums, x)
    }

    #[inline(always)]
    fn split(self, w: [__m256; 2], delta: [__m256; 2]) -> ([i8; LANES], [__m256; 2]) {
        // SAFETY: Avx2 is the proof of its instructions.
        unsafe {
            let (low, high) = (codes(w[0], delta[0]), codes(w[1], delta[1]));
            let zero = _mm256_setzero_si256();
            let dead = [
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, zero)),
                _mm256_castsi256_ps(_mm256_cmpeq_epi32(high, zero)),
            ];
            // Packing takes turns between the halves of its operands: quarters 0 2 1 3.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            let mut out = [0; LANES];
            _mm_storeu_si128(out.as_mut_ptr().cast(), bytes);
            (out, dead)
        }
    }

    #[inline(always)]
    fn active(self, codes: &[i8; LANES]) -> [__m256; 2] {
        // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let codes = _mm_loadu_si128(codes.as_ptr().cast());
            let zero = _mm_setzero_si128();
            // All bits where a code is not 0.
            let active = _mm_xor_si128(_mm_cmpeq_epi8(codes, zero), _mm_set1_epi8(-1));
            let low = _mm256_cvtepi8_epi32(active);
            let high = _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(active, active));
            [_mm256_castsi256_ps(low), _mm256_castsi256_ps(high)]
        }
    }

    #[inline(always)]
    fn count(self, [low, high]: [__m256; 2]) -> u32 {
        // SAFETY: Avx2 is the proof of its instructions.
        let bits = unsafe { _mm256_movemask_ps(low) | _mm256_movemask_ps(high) << 8 };
        bits.count_ones()
    }

    #[inline(always)]
    fn sums(self, sums: [__m256d; 4]) -> [f64; LANES] {
        let mut out = [0.0; LANES];
        for (out, sums) in out.as_chunks_mut::<4>().0.iter_mut().zip(sums) {
            // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr(), sums) }
        }
        out
    }

    #[inline(always)]
    fn first_least(self, numbers: &[f64; LANES]) -> usize {
        let mut is_least = 0;
        // SAFETY: Avx2 is the proof of its instructions; the array is as long as what is loaded or stored.
        unsafe {
            let a = _mm256_loadu_pd(numbers.as_ptr());
            let b = _mm256_loadu_pd(numbers.as_ptr().add(4));
            let c = _mm256_loadu_pd(numbers.as_ptr().add(8));
            let d = _mm256_loadu_pd(numbers.as_ptr().add(12));
            let least = _mm256_min_pd(_mm256_min_pd(a, b), _mm256_min_pd(c, d));
            let least = _mm256_min_pd(least, _mm256_permute4x64_pd::<0b01_00_11_10>(least));
            let least = _mm256_min_pd(least, _mm256_permute_pd::<0b0101>(least));
            for quarter in [d, c, b, a] {
                let equal = _mm256_cmp_pd::<_CMP_EQ_OQ>(quarter, least);
                is_least = is_least << 4 | _mm256_movemask_pd(equal);
            }
        }
        (is_least.trailing_zeros() as usize).min(LANES - 1)
    }
}

/// The codes of eight weights.
///
/// # Safety
/// The processor has AVX2.
#[inline(always)]
unsafe fn codes(w: __m256, delta: __m256) -> __m256i {
    // SAFETY: the caller's word.
    unsafe {
        let minus_delta = _mm256_xor_ps(_mm256_set1_ps(-0.0), delta);
        let plus = _mm256_cmp_ps::<_CMP_GE_OQ>(w, delta);
        let minus = _mm256_cmp_ps::<_CMP_LE_OQ>(w, minus_delta);
        _mm256_sub_epi32(_mm256_castps_si256(minus), _mm256_castps_si256(plus))
    }
}
