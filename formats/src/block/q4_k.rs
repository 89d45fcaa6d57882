//! Q4_K: 256 four-bit weights in 8 sub-blocks, 144 bytes (4.5 bits per weight).
//! Source: ggml-common.h:325-339, ggml-quants.c:1458 (quantize) and :1530 (dequantize).
//!
//! | bytes   | what                                                                              |
//! |---------|-----------------------------------------------------------------------------------|
//! | 0..2    | d, f16 little-endian                                                              |
//! | 2..4    | dmin, f16 little-endian                                                           |
//! | 4..16   | S: the 6-bit sc and m of sub-block j (weights 32j..32j+32), see below             |
//! | 16..144 | stored codes; weight i is in byte 16 + 32*(i/64) + i%32, low nibble for i%64 < 32, else high |
//!
//! weight = d * sc * stored - dmin * m
//!
//! | j      | sc                                        | m                                     |
//! |--------|-------------------------------------------|---------------------------------------|
//! | 0..4   | low 6 bits of S\[j\]                      | low 6 bits of S\[j+4\]                |
//! | 4..8   | low nibble of S\[j+4\], high 2 of S\[j-4\] | high nibble of S\[j+4\], high 2 of S\[j\] |

use super::fit;
use half::f16;
use std::array;

/// Weights in a block.
pub const WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = 144;
const SUB_BLOCK: usize = 32;
const SUB_BLOCKS: usize = WEIGHTS / SUB_BLOCK;
/// The largest 6-bit multiplier.
const MAX_MULTIPLIER: u8 = 63;

/// A near block to `x`, the one that ggml finds: each sub-block gets the line `scale * stored -
/// minimum` of least squared error, weighted by rms(x) + |x|, among 22 tried; scales and minima are
/// rounded to 63rds of the largest one, and the codes are rounded anew with what is stored.
#[inline(always)]
pub fn quantize(x: &[f32; WEIGHTS]) -> [u8; BYTES] {
    let sub_blocks = array::from_fn(|j| array::from_fn(|i| x[SUB_BLOCK * j + i]));
    let lines = fit::lines::<SUB_BLOCKS>(&sub_blocks);
    let mut stored = lines.stored;
    let (d, scales) = to_sixty_thirds(&lines.scale);
    let (dmin, minima) = to_sixty_thirds(&lines.minimum);
    for (j, x) in sub_blocks.iter().enumerate() {
        let scale = d.to_f32() * f32::from(scales[j]);
        let minimum = dmin.to_f32() * f32::from(minima[j]);
        if scale != 0.0 {
            stored[j] = x.map(|x| fit::nearest((x + minimum) / scale).clamp(0, 15) as u8);
        }
    }

    let mut bytes = [0; BYTES];
    bytes[..2].copy_from_slice(&d.to_le_bytes());
    bytes[2..4].copy_from_slice(&dmin.to_le_bytes());
    bytes[4..16].copy_from_slice(&pack_multipliers(&scales, &minima));
    let (outs, _) = bytes[16..].as_chunks_mut::<SUB_BLOCK>();
    for (out, pair) in outs.iter_mut().zip(stored.as_chunks::<2>().0) {
        for (byte, (low, high)) in out.iter_mut().zip(pair[0].iter().zip(pair[1])) {
            *byte = low | high << 4;
        }
    }
    bytes
}

/// `values`, none negative, as d * multiplier with d = max / 63.
#[inline(always)]
fn to_sixty_thirds(values: &[f32; SUB_BLOCKS]) -> (f16, [u8; SUB_BLOCKS]) {
    let limit = f32::from(MAX_MULTIPLIER);
    // Not `f32::max`, which may return -0 for a minimum of -0, and so flip the sign bit of d.
    let largest = values
        .iter()
        .fold(0.0, |largest, &v| if v > largest { v } else { largest });
    let inverse = if largest > 0.0 { limit / largest } else { 0.0 };
    let multipliers = values.map(|v| (fit::nearest(inverse * v) as u8).min(MAX_MULTIPLIER));
    (f16::from_f32(largest / limit), multipliers)
}

#[inline(always)]
fn pack_multipliers(scales: &[u8; SUB_BLOCKS], minima: &[u8; SUB_BLOCKS]) -> [u8; 12] {
    let mut s = [0; 12];
    for j in 0..4 {
        s[j] = scales[j] | scales[j + 4] >> 4 << 6;
        s[j + 4] = minima[j] | minima[j + 4] >> 4 << 6;
        s[j + 8] = scales[j + 4] & 15 | minima[j + 4] << 4;
    }
    s
}

/// (sc, m) of sub-block `j`.
fn multipliers(s: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (s[j] & 63, s[j + 4] & 63),
        _ => (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4),
    }
}

/// `d * sc * stored - dmin * m` in f32.
pub fn dequantize(bytes: &[u8; BYTES], out: &mut [f32; WEIGHTS]) {
    let d = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let dmin = f16::from_le_bytes([bytes[2], bytes[3]]).to_f32();
    let (_, stored) = bytes.split_at(16);
    let (sub_blocks, _) = out.as_chunks_mut::<SUB_BLOCK>();
    for (j, sub_block) in sub_blocks.iter_mut().enumerate() {
        let (sc, m) = multipliers(&bytes[4..16], j);
        let (scale, minimum) = (d * f32::from(sc), dmin * f32::from(m));
        let nibbles = &stored[SUB_BLOCK * (j / 2)..][..SUB_BLOCK];
        for (w, byte) in sub_block.iter_mut().zip(nibbles) {
            *w = scale * f32::from(byte >> (4 * (j % 2)) & 15) - minimum;
        }
    }
}
