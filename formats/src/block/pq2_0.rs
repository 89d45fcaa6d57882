//! PQ2_0: 128 two-bit weights and one scale in 34 bytes (2.125 bits per weight), of PrismML's fork of llama.cpp. Its first
//! builds wrote the same blocks under the id of [Q2_0](super::q2_0), see [`gguf::File`](crate::gguf::File::legacy_q2_0).
//! Source: `block_pq2_0` and `dequantize_row_pq2_0` of the fork's ggml-common.h and ggml-quants.c, branch prism.
//!
//! | bytes | what                                                         |
//! |-------|--------------------------------------------------------------|
//! | 0..2  | scale, f16 little-endian                                     |
//! | 2..34 | stored codes; weight i is in byte 2 + i/4, bits 2n..2n+1, n = i%4 |
//!
//! stored code = code + 1 (0, 1, 2 for -1, 0, +1; 3 is +2 and not ternary)      weight = scale * code

use super::{NotTernary, q2_0, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 128;
/// Bytes of a block.
pub const BYTES: usize = 34;

/// A block as its meaning.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    scale: f16,
    stored: &'a [u8; BYTES - 2],
}

/// Reads a block in place.
#[inline]
pub fn view(bytes: &[u8; BYTES]) -> View<'_> {
    let [d0, d1, stored @ ..] = bytes;
    View {
        scale: f16::from_le_bytes([*d0, *d1]),
        stored,
    }
}

impl View<'_> {
    /// The scale, as stored.
    #[inline]
    pub fn scale(&self) -> f16 {
        self.scale
    }

    /// The codes into place; an error where a stored code is 3.
    #[inline]
    pub fn unpack(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), NotTernary> {
        q2_0::unpack_quads(self.stored, codes, |code| code);
        ternary::check_codes(codes, 1)
    }

    /// `scale * (stored code - 1)` in f32, also for the stored code 3.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        q2_0::unpack_quads(self.stored, out, |code| f32::from(code) * scale);
    }
}
