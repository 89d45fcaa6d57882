//! TQ1_0: 256 ternary weights and one scale in 54 bytes (1.6875 bits per weight).
//! Source: ggml-common.h:275-281, ggml-quants.c:2317 (quantize) and :2429 (dequantize).
//!
//! | bytes  | what                                                                   |
//! |--------|------------------------------------------------------------------------|
//! | 0..32  | weights 0..160: weight i is digit i/32 of byte i%32                    |
//! | 32..48 | weights 160..240: weight i is digit (i-160)/16 of byte 32 + (i-160)%16 |
//! | 48..52 | weights 240..256: weight i is digit (i-240)/4 of byte 48 + (i-240)%4   |
//! | 52..54 | scale, f16 little-endian                                               |
//!
//! digit = code + 1 (0, 1, 2 for -1, 0, +1)      weight = scale * code
//!
//! A byte holds five base-3 digits, digit 0 the most significant, as the fraction v / 243 scaled to
//! 256: byte = ceil(v * 256 / 243). Digit n is then (byte * 3^n mod 256) * 3 >> 8. Bytes 48..52
//! have four digits and a fifth that is 0. Every byte value reads as five digits, so every block is
//! ternary.

use super::{NotTernary, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = 54;

/// The block that means `scale * codes[i]`.
///
/// # Panics
/// Where a code is not -1, 0 or +1.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], scale: f16) -> [u8; BYTES] {
    ternary::assert_codes(codes);
    let mut bytes = [0; BYTES];
    pack_run::<32>(&codes[..160], &mut bytes[..32]);
    pack_run::<16>(&codes[160..240], &mut bytes[32..48]);
    pack_run::<4>(&codes[240..], &mut bytes[48..52]);
    bytes[52..].copy_from_slice(&scale.to_le_bytes());
    bytes
}

/// `codes`: (digits, STRIDE) with 4 or 5 digits.  `bytes`: (STRIDE,) out.
#[inline(always)]
fn pack_run<const STRIDE: usize>(codes: &[i8], bytes: &mut [u8]) {
    let mut values = [0u16; STRIDE];
    let (digits, _) = codes.as_chunks::<STRIDE>();
    for digit in digits {
        for (value, code) in values.iter_mut().zip(digit) {
            *value = 3 * *value + (code + 1) as u16;
        }
    }
    let missing = 5 - digits.len() as u32;
    for (byte, value) in bytes.iter_mut().zip(values) {
        *byte = (value * 3u16.pow(missing) * 256).div_ceil(243) as u8;
    }
}

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

    /// The codes. Never an error: the `Result` is that of the other ternary types.
    #[inline]
    pub fn codes(&self) -> Result<[i8; WEIGHTS], NotTernary> {
        let mut codes = [0; WEIGHTS];
        self.unpack(&mut codes)?;
        Ok(codes)
    }

    /// [`codes`](Self::codes) into place.
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
        unpack_run::<32, T>(&self.stored[..32], &mut out[..160], &value);
        unpack_run::<16, T>(&self.stored[32..48], &mut out[160..240], &value);
        unpack_run::<4, T>(&self.stored[48..], &mut out[240..], &value);
    }
}

/// `bytes`: (STRIDE,).  `out`: (digits, STRIDE) of `value(digit - 1)`.
#[inline]
pub(super) fn unpack_run<const STRIDE: usize, T>(bytes: &[u8], out: &mut [T], value: &impl Fn(i8) -> T) {
    let (digits, _) = out.as_chunks_mut::<STRIDE>();
    for (digit, power) in digits.iter_mut().zip([1u8, 3, 9, 27, 81]) {
        for (slot, byte) in digit.iter_mut().zip(bytes) {
            let fraction = byte.wrapping_mul(power);
            *slot = value(((u16::from(fraction) * 3) >> 8) as i8 - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[0] = -1; // byte 0, digit 0: v = 01111 in base 3 = 40
        codes[224] = 1; // byte 32, digit 4: v = 11112 = 122
        codes[255] = 1; // byte 51, digit 3: v = 11120 = 123
        let mut expected = [128; BYTES]; // v = 11111 = 121, 121 * 256 / 243 = 127.5
        expected[0] = 43; // 42.1
        expected[32] = 129; // 128.5
        expected[48..51].fill(127); // v = 11110 = 120, 126.4
        expected[51] = 130; // 129.6
        expected[52..].copy_from_slice(&[0x00, 0x3c]); // 1.0
        assert_eq!(pack(&codes, f16::ONE), expected);
    }

    #[test]
    fn each_of_the_243_bytes_reads_back() {
        for v in 0..243i32 {
            let mut codes = [0; WEIGHTS];
            for n in 0..5 {
                codes[32 * n] = (v / 3i32.pow(4 - n as u32) % 3 - 1) as i8;
            }
            let block = pack(&codes, f16::ONE);
            assert_eq!(i32::from(block[0]), (v * 256 + 242) / 243);
            assert_eq!(view(&block).codes(), Ok(codes));
        }
    }
}
