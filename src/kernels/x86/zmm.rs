//! How codes, scales and results come into 512-bit vectors.

use crate::kernels::contract::{MR, Panel, Runs};
use crate::kernels::packed::RowGroup;
use std::arch::x86_64::*;

/// `G` row groups times a panel; the number is [`crate::kernels::packed::Format::shift`].
pub(super) type Product<const G: usize> =
    unsafe fn(&[RowGroup<'_>; G], Option<u32>, Runs, &Panel<'_>, &mut [[f32; MR]]);

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The four planes of a step, each code in its byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<const BITS: usize>(step: &[u8]) -> [__m512i; 4] {
    let nibbles = |mask: i8| {
        let (a, b, mask) = (load(&step[..64]), load(&step[64..128]), _mm512_set1_epi8(mask));
        [
            _mm512_and_si512(a, mask),
            _mm512_and_si512(_mm512_srli_epi16(a, 4), mask),
            _mm512_and_si512(b, mask),
            _mm512_and_si512(_mm512_srli_epi16(b, 4), mask),
        ]
    };
    match BITS {
        2 => {
            let (codes, mask) = (load(step), _mm512_set1_epi8(3));
            [
                _mm512_and_si512(codes, mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 2), mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask),
            ]
        }
        4 => nibbles(15),
        6 => {
            let low = nibbles(15);
            let (high, mask) = (load(&step[128..]), _mm512_set1_epi8(0x30));
            [
                _mm512_or_si512(low[0], _mm512_and_si512(_mm512_slli_epi16(high, 4), mask)),
                _mm512_or_si512(low[1], _mm512_and_si512(_mm512_slli_epi16(high, 2), mask)),
                _mm512_or_si512(low[2], _mm512_and_si512(high, mask)),
                _mm512_or_si512(low[3], _mm512_and_si512(_mm512_srli_epi16(high, 2), mask)),
            ]
        }
        _ => [
            load(&step[..64]),
            load(&step[64..128]),
            load(&step[128..192]),
            load(&step[192..]),
        ],
    }
}

/// The four 2-bit planes where they are: 1, 4, 16 and 64 times the code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn in_place(step: &[u8]) -> [__m512i; 4] {
    let codes = load(step);
    [
        _mm512_and_si512(codes, _mm512_set1_epi8(0x03)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0x0C)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0x30)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0xC0u8 as i8)),
    ]
}

/// 16 f16 as f32.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
pub(super) fn halves(bytes: &[u8; 32]) -> __m512 {
    // SAFETY: 32 bytes are there.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

/// The scales of group `group` of the weights: as [`RowGroup::scale`] has them.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
pub(super) fn scales_of(weights: &RowGroup<'_>, group: usize) -> __m512 {
    let (f16s, multipliers) = weights.factors(group);
    match multipliers {
        None => halves(f16s),
        Some(bytes) => _mm512_mul_ps(
            halves(f16s),
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_bytes(bytes))),
        ),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8]) -> __m512i {
    let bytes = &bytes[..64];
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(floats: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats are there.
    unsafe { _mm512_loadu_ps(floats.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(floats: &mut [f32; 16], vector: __m512) {
    // SAFETY: there is room for 16 floats.
    unsafe { _mm512_storeu_ps(floats.as_mut_ptr(), vector) }
}
