//! Q4_0: 32 four-bit weights and one scale in 18 bytes (4.5 bits per weight).
//! Source: ggml-common.h:194-199, ggml-quants.c:459 (dequantize).
//!
//! | bytes | what                                                                      |
//! |-------|---------------------------------------------------------------------------|
//! | 0..2  | scale, f16 little-endian                                                  |
//! | 2..18 | stored codes; weight i is in byte 2 + i%16, low nibble for i < 16, else high |
//!
//! stored code = code + 8 (7, 8, 9 for -1, 0, +1; others are not ternary)      weight = scale * code

use super::{NotTernary, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = 18;
/// The stored code of a zero weight.
const ZERO: i8 = 8;

/// The block that means `scale * codes[i]`.
///
/// # Panics
/// Where a code is not between -8 and 7.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], scale: f16) -> [u8; BYTES] {
    ternary::assert_four_bits(codes);
    let mut bytes = [0; BYTES];
    let [d0, d1, stored @ ..] = &mut bytes;
    [*d0, *d1] = scale.to_le_bytes();
    let (low, high) = codes.split_at(WEIGHTS / 2);
    for ((byte, low), high) in stored.iter_mut().zip(low).zip(high) {
        *byte = (low + ZERO) as u8 | ((high + ZERO) as u8) << 4;
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

    /// The codes; an error where a stored code is not 7, 8 or 9.
    #[inline]
    pub fn codes(&self) -> Result<[i8; WEIGHTS], NotTernary> {
        let mut codes = [0; WEIGHTS];
        self.unpack(&mut codes)?;
        Ok(codes)
    }

    /// [`codes`](Self::codes) into place.
    #[inline]
    pub fn unpack(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), NotTernary> {
        *codes = self.wide_codes();
        ternary::check_codes(codes, ZERO)
    }

    /// Codes of four levels into place; the index of a weight whose stored code is not 5, 7, 9 or 11.
    #[inline]
    pub fn unpack_four_levels(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), usize> {
        *codes = self.wide_codes();
        ternary::check_four_levels(codes)
    }

    /// `scale * (stored code - 8)` in f32, for every stored code.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        for (w, code) in out.iter_mut().zip(self.wide_codes()) {
            *w = f32::from(code) * scale;
        }
    }

    /// Stored code - 8 of each weight: -8..=7, ternary or not.
    #[inline]
    fn wide_codes(&self) -> [i8; WEIGHTS] {
        let mut codes = [0; WEIGHTS];
        let (low, high) = codes.split_at_mut(WEIGHTS / 2);
        for ((byte, low), high) in self.stored.iter().zip(low).zip(high) {
            *low = (byte & 15) as i8 - ZERO;
            *high = (byte >> 4) as i8 - ZERO;
        }
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[1] = 1; // byte 3, low nibble
        codes[16] = -1; // byte 2, high nibble
        let mut expected = [0x88; BYTES];
        expected[..2].copy_from_slice(&[0x00, 0x3c]); // 1.0
        expected[2] = 0x78;
        expected[3] = 0x89;
        assert_eq!(pack(&codes, f16::ONE), expected);
    }
}
