//! Q2_0: 64 two-bit weights and one scale in 18 bytes (2.25 bits per weight).
//! Source: ggml-common.h:187-192, ggml-quants.c:74 (quantize) and :439 (dequantize).
//!
//! | bytes | what                                                         |
//! |-------|--------------------------------------------------------------|
//! | 0..2  | scale, f16 little-endian                                     |
//! | 2..18 | stored codes; weight i is in byte 2 + i/4, bits 2n..2n+1, n = i%4 |
//!
//! stored code = code + 1 (0, 1, 2 for -1, 0, +1; 3 is +2 and not ternary)      weight = scale * code

use super::{NotTernary, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 64;
/// Bytes of a block.
pub const BYTES: usize = 18;

/// The block that means `scale * codes[i]`.
///
/// # Panics
/// Where a code is not -1, 0 or +1.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], scale: f16) -> [u8; BYTES] {
    ternary::assert_codes(codes);
    let mut bytes = [0; BYTES];
    let [d0, d1, stored @ ..] = &mut bytes;
    [*d0, *d1] = scale.to_le_bytes();
    let (quads, _) = codes.as_chunks::<4>();
    for (byte, quad) in stored.iter_mut().zip(quads) {
        let [a, b, c, d] = quad.map(|code| (code + 1) as u8);
        *byte = a | b << 2 | c << 4 | d << 6;
    }
    bytes
}

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

    /// The codes; an error where a stored code is 3.
    #[inline]
    pub fn codes(&self) -> Result<[i8; WEIGHTS], NotTernary> {
        let mut codes = [0; WEIGHTS];
        self.unpack(&mut codes)?;
        Ok(codes)
    }

    /// [`codes`](Self::codes) into place.
    #[inline]
    pub fn unpack(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), NotTernary> {
        unpack_quads(self.stored, codes, |code| code);
        ternary::check_codes(codes, 1)
    }

    /// `scale * (stored code - 1)` in f32, also for the stored code 3.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        unpack_quads(self.stored, out, |code| f32::from(code) * scale);
    }
}

/// `stored`: four weights a byte, in their order.  `out`: (4 * bytes,) of `value(stored code - 1)`.
#[inline]
pub(super) fn unpack_quads<T>(stored: &[u8], out: &mut [T], value: impl Fn(i8) -> T) {
    let (quads, _) = out.as_chunks_mut::<4>();
    for (quad, byte) in quads.iter_mut().zip(stored) {
        *quad = [0, 2, 4, 6].map(|shift| value((byte >> shift & 3) as i8 - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[0] = -1; // byte 2, bits 0..1
        codes[6] = 1; // byte 3, bits 4..5
        codes[63] = 1; // byte 17, bits 6..7
        let mut expected = [0b01_01_01_01; BYTES];
        expected[..2].copy_from_slice(&[0x00, 0x3c]); // 1.0
        expected[2] = 0b01_01_01_00;
        expected[3] = 0b01_10_01_01;
        expected[17] = 0b10_01_01_01;
        assert_eq!(pack(&codes, f16::ONE), expected);
    }
}
