//! PTQ1_0: 128 ternary weights and one scale in 28 bytes (1.75 bits per weight), of PrismML's fork of llama.cpp.
//! Source: `block_ptq1_0` and `dequantize_row_ptq1_0` of the fork's ggml-common.h and ggml-quants.c, branch prism.
//!
//! | bytes  | what                                                              |
//! |--------|-------------------------------------------------------------------|
//! | 0..16  | weights 0..80: weight i is digit i/16 of byte i%16                |
//! | 16..24 | weights 80..120: weight i is digit (i-80)/8 of byte 16 + (i-80)%8 |
//! | 24..26 | weights 120..128: weight i is digit (i-120)/2 of byte 24 + i%2    |
//! | 26..28 | scale, f16 little-endian                                          |
//!
//! digit = code + 1 (0, 1, 2 for -1, 0, +1)      weight = scale * code
//!
//! Digits are those of [TQ1_0](super::tq1_0); bytes 24..26 have four. Every byte value reads as digits, so every block is
//! ternary.

use super::{NotTernary, tq1_0};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 128;
/// Bytes of a block.
pub const BYTES: usize = 28;

/// A block as its meaning.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    stored: &'a [u8; BYTES - 2],
    scale: f16,
}

/// Reads a block in place.
#[inline]
pub fn view(bytes: &[u8; BYTES]) -> View<'_> {
    let [stored @ .., d0, d1] = bytes;
    View {
        stored,
        scale: f16::from_le_bytes([*d0, *d1]),
    }
}

impl View<'_> {
    /// The scale, as stored.
    #[inline]
    pub fn scale(&self) -> f16 {
        self.scale
    }

    /// The codes into place. Never an error: the `Result` is that of the other ternary types.
    #[inline]
    pub fn unpack(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), NotTernary> {
        self.each(codes, |code| code);
        Ok(())
    }

    /// `scale * code` in f32.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        self.each(out, |code| f32::from(code) * scale);
    }

    #[inline]
    fn each<T>(&self, out: &mut [T; WEIGHTS], value: impl Fn(i8) -> T) {
        tq1_0::unpack_run::<16, T>(&self.stored[..16], &mut out[..80], &value);
        tq1_0::unpack_run::<8, T>(&self.stored[16..24], &mut out[80..120], &value);
        tq1_0::unpack_run::<2, T>(&self.stored[24..], &mut out[120..], &value);
    }
}
