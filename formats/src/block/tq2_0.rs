//! TQ2_0: 256 ternary weights and one scale in 66 bytes (2.0625 bits per weight).
//! Source: ggml-common.h:283-288, ggml-quants.c:2383 (quantize) and :2468 (dequantize).
//!
//! | bytes  | what                                                                             |
//! |--------|----------------------------------------------------------------------------------|
//! | 0..64  | stored codes; weight i is in byte 32*(i/128) + i%32, bits 2n..2n+1, n = i%128/32 |
//! | 64..66 | scale, f16 little-endian                                                         |
//!
//! stored code = code + 1 (0, 1, 2 for -1, 0, +1; 3 has no meaning)      weight = scale * code

use super::{NotTernary, planes, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = 66;

/// The block that means `scale * codes[i]`.
///
/// # Panics
/// Where a code is not -1, 0 or +1.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], scale: f16) -> [u8; BYTES] {
    ternary::assert_codes(codes);
    let mut bytes = [0; BYTES];
    let [stored @ .., d0, d1] = &mut bytes;
    planes::pack_into(&codes.map(|code| (code + 1) as u8), stored);
    [*d0, *d1] = scale.to_le_bytes();
    bytes
}

/// A block as its meaning.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    stored: &'a [u8; planes::BYTES],
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
        planes::unpack(self.stored, codes, |stored| stored as i8 - 1);
        ternary::check_codes(codes, 1)
    }

    /// `scale * (stored code - 1)` in f32, also for the stored code 3.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        planes::unpack(self.stored, out, |stored| f32::from(stored as i8 - 1) * scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[0] = -1; // byte 0, bits 0..1
        codes[33] = 1; // byte 1, bits 2..3
        codes[255] = 1; // byte 63, bits 6..7
        let mut expected = [0b01_01_01_01; BYTES];
        expected[0] = 0b01_01_01_00;
        expected[1] = 0b01_01_10_01;
        expected[63] = 0b10_01_01_01;
        expected[64..].copy_from_slice(&[0x00, 0x3c]); // 1.0
        assert_eq!(pack(&codes, f16::ONE), expected);
    }

    #[test]
    #[should_panic(expected = "a code is not -1, 0 or +1")]
    fn a_wide_code_is_not_packed() {
        let mut codes = [0; WEIGHTS];
        codes[200] = 2;
        pack(&codes, f16::ONE);
    }
}
