//! Activations to 8 bits with AVX-512.

use super::zmm::{load_floats, store};
use crate::kernels::contract::Grouping;
use std::arch::x86_64::*;

/// Groups whose scales are found together, one in each lane.
const SCALES_AT_ONCE: usize = 16;
/// So many activations ahead are fetched, so that their scales are found without a wait.
const FETCHED_AHEAD: usize = 2048;

/// See [`Kernel::quantize`](crate::kernels::kernel::Kernel::quantize).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
    let group = grouping.group();
    let several = x
        .chunks(SCALES_AT_ONCE * group)
        .zip(codes.chunks_mut(SCALES_AT_ONCE * group))
        .zip(scales.chunks_mut(SCALES_AT_ONCE));
    for ((x, codes), scales) in several {
        let mut extremes = [0.0; SCALES_AT_ONCE];
        for (x, extreme) in x.chunks_exact(group).zip(&mut extremes) {
            let x = x.as_chunks().0;
            *extreme = match grouping {
                Grouping::Q8_0 => largest_magnitude(x),
                _ => first_extreme(x),
            };
        }
        let (inverses, found) = match grouping {
            Grouping::Q8_0 => scales_q8_0(&extremes),
            _ => scales_k(&extremes),
        };
        scales.copy_from_slice(&found[..scales.len()]);
        let groups = x.chunks_exact(group).zip(codes.chunks_exact_mut(group));
        for ((x, codes), inverse) in groups.zip(inverses) {
            let inverse = _mm512_set1_ps(inverse);
            for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut::<16>().0) {
                _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(FETCHED_AHEAD).cast());
                let scaled = _mm512_mul_ps(inverse, load_floats(x));
                // Rounds to even, and none above 127; a NaN becomes i32::MIN, whose low byte is 0.
                let code = _mm512_cvtps_epi32(scaled);
                // SAFETY: there is room for 16 codes.
                unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code)) };
            }
        }
    }
}

/// See [`Kernel::sums`](crate::kernels::kernel::Kernel::sums).
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn sums_of_steps(codes: &[i8], sums: &mut [i32]) {
    let fours = codes.as_chunks::<64>().0.iter().zip(sums.as_chunks_mut().0);
    for (codes, sums) in fours {
        *sums = four_sums(codes);
    }
    let done = codes.len() / 64;
    let last = codes[64 * done..].as_chunks::<16>().0;
    for (codes, sum) in last.iter().zip(&mut sums[4 * done..]) {
        *sum = codes.iter().map(|&code| i32::from(code)).sum();
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn four_sums(codes: &[i8; 64]) -> [i32; 4] {
    // SAFETY: 64 codes are there.
    let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
    let dwords = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
    let pairs = _mm512_add_epi32(dwords, _mm512_shuffle_epi32::<0b10_11_00_01>(dwords));
    let all = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b01_00_11_10>(pairs));
    let firsts = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all));
    let mut sums = [0; 4];
    // SAFETY: there is room for four sums.
    unsafe { _mm_storeu_si128(sums.as_mut_ptr().cast(), firsts) };
    sums
}

/// (1 / scale, scale) of 16 groups, as [`crate::kernels::scalar::scales_k`] has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_k(extremes: &[f32; 16]) -> ([f32; 16], [f32; 16]) {
    let inverse = _mm512_div_ps(_mm512_set1_ps(-127.0), load_floats(extremes));
    let finite = finite(inverse);
    let scale = _mm512_maskz_div_ps(finite, _mm512_set1_ps(1.0), inverse);
    pair(_mm512_maskz_mov_ps(finite, inverse), scale)
}

/// (1 / scale, scale rounded to f16) of 16 groups, as [`crate::kernels::scalar::scales_q8_0`] has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_q8_0(largest: &[f32; 16]) -> ([f32; 16], [f32; 16]) {
    let (largest, limit) = (load_floats(largest), _mm512_set1_ps(127.0));
    let inverse = _mm512_div_ps(limit, largest);
    let scale = _mm512_div_ps(largest, limit);
    let scale = _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scale));
    pair(_mm512_maskz_mov_ps(finite(inverse), inverse), scale)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn finite(x: __m512) -> __mmask16 {
    _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::INFINITY))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pair(a: __m512, b: __m512) -> ([f32; 16], [f32; 16]) {
    let mut pair = ([0.0; 16], [0.0; 16]);
    store(&mut pair.0, a);
    store(&mut pair.1, b);
    pair
}

/// The largest magnitude. NaNs do not count.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest_magnitude(x: &[[f32; 16]]) -> f32 {
    let mut largest = _mm512_setzero_ps();
    for x in x {
        // A NaN in the first operand gives the second.
        largest = _mm512_max_ps(_mm512_abs_ps(load_floats(x)), largest);
    }
    _mm512_reduce_max_ps(largest)
}

/// The first of `x` whose magnitude is the largest; 0 where there is none, that is, where all are 0 or NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn first_extreme(x: &[[f32; 16]]) -> f32 {
    let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for x in x {
        let x = load_floats(x);
        // A NaN in the first operand gives the second.
        (low, high) = (_mm512_min_ps(x, low), _mm512_max_ps(x, high));
    }
    let (low, high) = (_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high));
    if -low == high {
        let first = x.as_flattened().iter().find(|x| x.abs() == high);
        return first.copied().unwrap_or_default();
    }
    if -low > high { low } else { high }
}
