//! Q6_K: 256 six-bit weights in 16 sub-blocks, 210 bytes (6.5625 bits per weight).
//! Source: ggml-common.h:363-369, ggml-quants.c:1870 (quantize) and :1940 (dequantize).
//!
//! | bytes    | what                                                                                    |
//! |----------|-----------------------------------------------------------------------------------------|
//! | 0..128   | low 4 bits; weight i is in byte 64*(i/128) + i%64, low nibble for i%128 < 64, else high |
//! | 128..192 | high 2 bits; weight i is in byte 128 + 32*(i/128) + i%32, bits 2n..2n+1, n = i%128/32   |
//! | 192..208 | sc of sub-block j (weights 16j..16j+16), i8                                             |
//! | 208..210 | d, f16 little-endian                                                                    |
//!
//! weight = d * sc * (stored - 32)

use super::{fit, planes};
use half::f16;
use std::array;

/// Weights in a block.
pub const WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = 210;
const SUB_BLOCK: usize = 16;
const SUB_BLOCKS: usize = WEIGHTS / SUB_BLOCK;
/// The stored code of a zero weight.
const ZERO: i32 = 32;
const LOW: usize = 128;

/// A near block to `x`, the one that ggml finds: each sub-block gets the scale of least squared
/// error, weighted by x^2, among 19 tried; scales are rounded to 128ths of the largest one, and the
/// codes are rounded anew with what is stored.
#[inline(always)]
pub fn quantize(x: &[f32; WEIGHTS]) -> [u8; BYTES] {
    let sub_blocks = array::from_fn(|j| array::from_fn(|i| x[SUB_BLOCK * j + i]));
    let (mut stored, scales) = fit::scales::<SUB_BLOCKS>(&sub_blocks);

    let largest = fit::largest_magnitude(&scales);
    if largest.abs() < fit::NOTHING {
        return [0; BYTES];
    }
    let inverse = -128.0 / largest;
    let d = f16::from_f32(1.0 / inverse);
    let multipliers = scales.map(|scale| fit::nearest(inverse * scale).min(127) as i8);
    for ((x, codes), multiplier) in sub_blocks.iter().zip(&mut stored).zip(multipliers) {
        let scale = d.to_f32() * f32::from(multiplier);
        if scale != 0.0 {
            *codes = x.map(|x| (fit::nearest(x / scale).clamp(-ZERO, ZERO - 1) + ZERO) as u8);
        }
    }

    let stored: [u8; WEIGHTS] = array::from_fn(|i| stored[i / SUB_BLOCK][i % SUB_BLOCK]);
    let mut bytes = [0; BYTES];
    bytes[..LOW].copy_from_slice(&pack_low(&stored));
    bytes[LOW..192].copy_from_slice(&planes::pack(&stored.map(|stored| stored >> 4)));
    bytes[192..208].copy_from_slice(&multipliers.map(|multiplier| multiplier as u8));
    bytes[208..].copy_from_slice(&d.to_le_bytes());
    bytes
}

#[inline(always)]
fn pack_low(stored: &[u8; WEIGHTS]) -> [u8; LOW] {
    let mut bytes = [0; LOW];
    let (outs, _) = bytes.as_chunks_mut::<64>();
    for (out, half) in outs.iter_mut().zip(stored.as_chunks::<128>().0) {
        for (m, byte) in out.iter_mut().enumerate() {
            *byte = half[m] & 15 | half[64 + m] << 4;
        }
    }
    bytes
}

/// `d * sc * (stored - 32)` in f32.
pub fn dequantize(bytes: &[u8; BYTES], out: &mut [f32; WEIGHTS]) {
    let mut stored = [0; WEIGHTS];
    planes::unpack(&bytes[LOW..192], &mut stored, |high| high << 4);
    for (half, low) in stored
        .as_chunks_mut::<128>()
        .0
        .iter_mut()
        .zip(bytes[..LOW].as_chunks::<64>().0)
    {
        let (first, second) = half.split_at_mut(64);
        for ((first, second), byte) in first.iter_mut().zip(second).zip(low) {
            *first |= byte & 15;
            *second |= byte >> 4;
        }
    }

    let d = f16::from_le_bytes([bytes[208], bytes[209]]).to_f32();
    for (i, (w, stored)) in out.iter_mut().zip(stored).enumerate() {
        let sc = bytes[192 + i / SUB_BLOCK] as i8;
        *w = d * f32::from(sc) * (f32::from(stored) - ZERO as f32);
    }
}
