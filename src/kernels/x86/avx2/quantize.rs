//! AVX2: activations to codes of 8 bits, as the scalar kernel rounds them.

use super::load;
use crate::kernels::contract::Grouping;
use crate::kernels::scalar::{scales_k, scales_q8_0};
use std::arch::x86_64::*;

/// See [`Kernel::quantize`](crate::kernels::kernel::Kernel::quantize).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
    let group = grouping.group();
    for ((x, codes), scale) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).zip(scales) {
        let mut largest = _mm256_setzero_ps();
        for x in x.as_chunks().0 {
            // A NaN in the first operand gives the second.
            largest = _mm256_max_ps(absolute(load(x)), largest);
        }
        let largest = largest_of(largest);
        let inverse;
        (inverse, *scale) = match grouping {
            Grouping::Q8_0 => scales_q8_0(largest),
            _ => scales_k(first_of_magnitude(x, largest)),
        };
        let inverse = _mm256_set1_ps(inverse);
        for (x, codes) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
            let code = |i: usize| {
                let scaled = _mm256_mul_ps(inverse, load(&x.as_chunks().0[i]));
                let code = _mm256_cvtps_epi32(scaled);
                // A NaN became i32::MIN and is to be 0; all other codes are from -127 to 127.
                _mm256_and_si256(code, _mm256_cmpgt_epi32(code, _mm256_set1_epi32(-128)))
            };
            let words = |i: usize| _mm256_packs_epi32(code(i), code(i + 1));
            // The packs work within 128-bit lanes; the permutation puts the dwords in order.
            let bytes = _mm256_packs_epi16(words(0), words(2));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            // SAFETY: there is room for 32 codes.
            unsafe {
                let to = codes.as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm256_permutevar8x32_epi32(bytes, order));
            }
        }
    }
}

/// See [`Kernel::sums`](crate::kernels::kernel::Kernel::sums).
#[target_feature(enable = "avx2")]
pub(super) fn sums_of_steps(codes: &[i8], sums: &mut [i32]) {
    for (codes, sums) in codes.as_chunks::<32>().0.iter().zip(sums.as_chunks_mut::<2>().0) {
        // SAFETY: 32 codes are there.
        let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        let dwords = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let twos = _mm256_add_epi32(dwords, _mm256_shuffle_epi32::<0b10_11_00_01>(dwords));
        let all = _mm256_add_epi32(twos, _mm256_shuffle_epi32::<0b01_00_11_10>(twos));
        *sums = [_mm256_extract_epi32::<0>(all), _mm256_extract_epi32::<4>(all)];
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest_of(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

/// The first of `x` whose magnitude is `largest`; 0 where there is none, that is, where `largest` is 0 or all are NaN.
#[inline]
#[target_feature(enable = "avx2")]
fn first_of_magnitude(x: &[f32], largest: f32) -> f32 {
    for x in x.as_chunks().0 {
        let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(absolute(load(x)), _mm256_set1_ps(largest));
        let found = _mm256_movemask_ps(equal);
        if found != 0 {
            return x[found.trailing_zeros() as usize];
        }
    }
    0.0
}

#[inline]
#[target_feature(enable = "avx2")]
fn absolute(x: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
}
