//! Q8_0: 32 eight-bit weights and one scale in 34 bytes (8.5 bits per weight).
//! Source: ggml-common.h:240-245, ggml-quants.c:276 (quantize) and :553 (dequantize).
//!
//! | bytes | what                                       |
//! |-------|--------------------------------------------|
//! | 0..2  | scale, f16 little-endian                   |
//! | 2..34 | stored codes; weight i is in byte 2 + i, i8 |
//!
//! weight = scale * stored code      ternary form: stored code = code (-1, 0, +1)

use super::{NotTernary, fit, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 32;
/// Bytes of a block.
pub const BYTES: usize = 34;

/// The block that means `scale * codes[i]`.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], scale: f16) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let [d0, d1, out @ ..] = &mut bytes;
    [*d0, *d1] = scale.to_le_bytes();
    for (byte, code) in out.iter_mut().zip(codes) {
        *byte = *code as u8;
    }
    bytes
}

/// The nearest block to `x`: scale = max |x| / 127, stored code = round(x / scale), half away
/// from zero. The codes follow the scale before it is rounded to f16.
#[inline(always)]
pub fn quantize(x: &[f32; WEIGHTS]) -> [u8; BYTES] {
    // On the bits of |x|, whose order is that of the numbers: an integer maximum vectorises.
    let largest = x.iter().fold(0, |largest, x| largest.max(x.abs().to_bits()));
    let scale = f32::from_bits(largest) / 127.0;
    // A scale so small that its reciprocal overflows is 0 in f16: so are its codes.
    let inverse = match 1.0 / scale {
        inverse if inverse.is_finite() => inverse,
        _ => 0.0,
    };
    let mut stored = [0; WEIGHTS];
    for (code, x) in stored.iter_mut().zip(x) {
        // A whole number already; unlike `as`, which saturates, this is vector code.
        *code = fit::nearest((x * inverse).round()) as i8;
    }
    pack(&stored, f16::from_f32(scale))
}

/// A block as its meaning.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    scale: f16,
    stored: &'a [u8; WEIGHTS],
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

    /// The codes; an error where a stored code is not -1, 0 or +1.
    #[inline]
    pub fn codes(&self) -> Result<[i8; WEIGHTS], NotTernary> {
        let mut codes = [0; WEIGHTS];
        self.unpack(&mut codes)?;
        Ok(codes)
    }

    /// [`codes`](Self::codes) into place.
    #[inline]
    pub fn unpack(&self, codes: &mut [i8; WEIGHTS]) -> Result<(), NotTernary> {
        *codes = self.stored.map(|stored| stored as i8);
        ternary::check_codes(codes, 0)
    }

    /// `scale * stored code` in f32, for every stored code.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let scale = self.scale.to_f32();
        for (w, stored) in out.iter_mut().zip(self.stored) {
            *w = f32::from(*stored as i8) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[0] = -1;
        codes[31] = 1;
        let mut expected = [0; BYTES];
        expected[..3].copy_from_slice(&[0x00, 0x3c, 0xff]); // 1.0, -1
        expected[33] = 1;
        assert_eq!(pack(&codes, f16::ONE), expected);
    }

    #[test]
    fn ties_round_away_from_zero() {
        let mut x = [0.0; WEIGHTS];
        x[..4].copy_from_slice(&[127.0, 2.5, -2.5, 0.49]);
        let block = quantize(&x);
        assert_eq!(block[..6], [0x00, 0x3c, 127, 3, -3i8 as u8, 0]);
    }
}
