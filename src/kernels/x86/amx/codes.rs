//! Packed codes as blocks for the tile registers: signed bytes, times their multipliers where there are some.
//!
//! The 64 bytes of a step, byte 4r + b with bits 2l, are the four rows l = 0..4 of a block with a code in each byte: 16
//! rows of the matrix, four columns of each. So a block is four steps, and nothing is shuffled.

use super::registers::Block;
use crate::kernels::contract::{Line, MR};
use crate::kernels::x86::fetch_to_l2;
use crate::kernels::x86::zmm::{load, load_bytes};
use std::arch::x86_64::*;

/// Bytes of a step.
pub(super) const STEP_BYTES: usize = 64;
/// The steps of a block.
pub(super) type Steps = [[u8; STEP_BYTES]; 4];

/// Some blocks of a row group in the packed layout.
#[derive(Clone, Copy)]
pub(super) struct PackedBlocks<'a, const K: usize> {
    pub steps: &'a [Steps; K],
    /// As many that are wanted later, to be fetched beside.
    pub later: &'a [Steps; K],
    /// Those of each row, for `STEP << shift` columns each; empty where codes are not multiplied.
    pub multipliers: &'a [[u8; MR]],
    pub shift: u32,
}

impl<const K: usize> PackedBlocks<'_, K> {
    /// Unpack step `step` of block `index`. (Without features of its own, so that it is inlined always.)
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW and GFNI.
    #[inline(always)]
    pub unsafe fn unpack_step<const MULTIPLIED: bool>(&self, index: usize, step: usize, block: &mut Block) {
        let codes = &self.steps[index][step];
        fetch_to_l2(&self.later[index][step]);
        // SAFETY: the caller has the instructions.
        unsafe {
            let planes = match MULTIPLIED {
                false => signed(load(codes)),
                true => times(load(codes), &self.multipliers[(4 * index + step) >> self.shift]),
            };
            for (row, plane) in block.as_chunks_mut::<4>().0[step].iter_mut().zip(planes) {
                store(row, plane);
            }
        }
    }
}

/// The four planes of a step, 0, 1 and 2 as -1, 0 and 1. Of those, bit 0 is the inverse of the code's lower bit, all
/// others are the inverse of the two bits' difference.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn signed(codes: __m512i) -> [__m512i; 4] {
    const INVERSE: i32 = 0xFF;
    // The highest byte says what bits make bit 0.
    let matrix = |plane: usize| _mm512_set1_epi64((0x0103_0303_0303_0303u64 << (2 * plane)) as i64);
    [
        _mm512_gf2p8affine_epi64_epi8::<INVERSE>(codes, matrix(0)),
        _mm512_gf2p8affine_epi64_epi8::<INVERSE>(codes, matrix(1)),
        _mm512_gf2p8affine_epi64_epi8::<INVERSE>(codes, matrix(2)),
        _mm512_gf2p8affine_epi64_epi8::<INVERSE>(codes, matrix(3)),
    ]
}

/// The same, times the multiplier of each row, which is at most 15: -m, 0 and m are looked up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn times(codes: __m512i, multipliers: &[u8; MR]) -> [__m512i; 4] {
    let multipliers = _mm512_cvtepu8_epi32(load_bytes(multipliers));
    let negative = _mm512_sub_epi32(_mm512_setzero_si512(), multipliers);
    let table = _mm512_or_si512(
        _mm512_and_si512(negative, _mm512_set1_epi32(0xFF)),
        _mm512_slli_epi32::<16>(multipliers),
    );
    // Each 16 bytes of the table are four rows.
    let rows = _mm512_set4_epi32(0x0C0C_0C0C, 0x0808_0808, 0x0404_0404, 0);
    let look_up = |codes: __m512i| {
        const AND_OR: i32 = 0xEA;
        let numbers = _mm512_ternarylogic_epi32::<AND_OR>(codes, _mm512_set1_epi8(3), rows);
        _mm512_shuffle_epi8(table, numbers)
    };
    [
        look_up(codes),
        look_up(_mm512_srli_epi16::<2>(codes)),
        look_up(_mm512_srli_epi16::<4>(codes)),
        look_up(_mm512_srli_epi16::<6>(codes)),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(line: &mut Line, vector: __m512i) {
    // SAFETY: a line is 64 bytes.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), vector) }
}
