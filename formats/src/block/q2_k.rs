//! Q2_K: 256 two-bit weights in 16 sub-blocks, 84 bytes (2.625 bits per weight).
//! Source: ggml-common.h:295-308, ggml-quants.c:961 (dequantize).
//!
//! | bytes  | what                                                                                 |
//! |--------|--------------------------------------------------------------------------------------|
//! | 0..16  | sub-block j (weights 16j..16j+16): low nibble sc, high nibble m                      |
//! | 16..80 | stored codes; weight i is in byte 16 + 32*(i/128) + i%32, bits 2n..2n+1, n = i%128/32 |
//! | 80..82 | d, f16 little-endian                                                                 |
//! | 82..84 | dmin, f16 little-endian                                                              |
//!
//! weight = d * sc * stored - dmin * m
//!
//! **Ternary form**: dmin = d, m = sc = multiplier, stored code = code + 1 (0, 1, 2). Then
//! weight = d * multiplier * code, and every product is exact in f32: 11 + 4 + 2 bits of significand.
//!
//! **Four levels**: d * sc = 2u and dmin * m = 3u. Then weight = u * code for code = 2 * stored - 3 (-3, -1, 1, 3), exactly.

use super::{Found, NotTernary, planes, ternary};
use half::f16;

/// Weights in a block.
pub const WEIGHTS: usize = 256;
/// Bytes of a block.
pub const BYTES: usize = 84;
/// Weights that share a multiplier.
pub const SUB_BLOCK: usize = 16;
/// Multipliers of a block.
pub const SUB_BLOCKS: usize = WEIGHTS / SUB_BLOCK;
/// The largest multiplier.
pub const MAX_MULTIPLIER: u8 = 15;
/// The largest multiplier of four levels: m is three times it.
pub const MAX_FOUR_LEVEL_MULTIPLIER: u8 = MAX_MULTIPLIER / 3;

/// The block that means `d * multipliers[i / 16] * codes[i]`.
///
/// # Panics
/// Where a code is not -1, 0 or +1, or a multiplier is above 15.
#[inline(always)]
pub fn pack(codes: &[i8; WEIGHTS], d: f16, multipliers: &[u8; SUB_BLOCKS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    pack_into(codes, d, multipliers, &mut bytes);
    bytes
}

/// [`pack`] in place.
///
/// # Panics
/// As there.
#[inline(always)]
pub fn pack_into(codes: &[i8; WEIGHTS], d: f16, multipliers: &[u8; SUB_BLOCKS], block: &mut [u8; BYTES]) {
    ternary::assert_codes(codes);
    assert!(
        multipliers.iter().all(|&m| m <= MAX_MULTIPLIER),
        "a multiplier is above 15"
    );
    let scales = multipliers.map(|m| m | m << 4);
    join(&codes.map(|code| (code + 1) as u8), d, &scales, block);
}

/// The block of four levels that means `d * multipliers[i / 16] * codes[i]`: sc = 2 * multiplier, m = 3 * multiplier.
///
/// # Panics
/// Where a code is not -3, -1, 1 or 3, or a multiplier is above 5.
#[inline(always)]
pub fn pack_four_levels_into(codes: &[i8; WEIGHTS], d: f16, multipliers: &[u8; SUB_BLOCKS], block: &mut [u8; BYTES]) {
    ternary::assert_four_levels(codes);
    assert!(
        multipliers.iter().all(|&m| m <= MAX_FOUR_LEVEL_MULTIPLIER),
        "a multiplier is above 5"
    );
    let scales = multipliers.map(|m| (2 * m) | ((3 * m) << 4));
    join(&codes.map(|code| ((code + 3) / 2) as u8), d, &scales, block);
}

/// `d` for both factors.
#[inline(always)]
fn join(stored: &[u8; WEIGHTS], d: f16, scales: &[u8; SUB_BLOCKS], block: &mut [u8; BYTES]) {
    let [head @ .., d0, d1, m0, m1] = block;
    let (out, rest) = head.split_at_mut(SUB_BLOCKS);
    out.copy_from_slice(scales);
    planes::pack_into(stored, rest.try_into().expect("the rest of the block"));
    [*d0, *d1] = d.to_le_bytes();
    [*m0, *m1] = d.to_le_bytes();
}

/// A block as its fields.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    scales: &'a [u8],
    stored: &'a [u8],
    d: f16,
    dmin: f16,
}

/// Reads a block in place.
#[inline]
pub fn view(bytes: &[u8; BYTES]) -> View<'_> {
    let [head @ .., d0, d1, m0, m1] = bytes;
    let (scales, stored) = head.split_at(SUB_BLOCKS);
    View {
        scales,
        stored,
        d: f16::from_le_bytes([*d0, *d1]),
        dmin: f16::from_le_bytes([*m0, *m1]),
    }
}

impl View<'_> {
    /// The factor of all multipliers, as stored.
    #[inline]
    pub fn d(&self) -> f16 {
        self.d
    }

    /// The multiplier of each sub-block; an error where the block is not of the ternary form.
    #[inline]
    pub fn multipliers(&self) -> Result<[u8; SUB_BLOCKS], NotTernary> {
        let (d, dmin) = (self.d, self.dmin);
        if d.to_bits() != dmin.to_bits() {
            let found = Found::Factors { d, dmin };
            return Err(NotTernary { weight: 0, found });
        }
        let mut multipliers = [0; SUB_BLOCKS];
        for (j, (multiplier, byte)) in multipliers.iter_mut().zip(self.scales).enumerate() {
            let (scale, minimum) = (byte & 15, byte >> 4);
            if scale != minimum {
                return Err(NotTernary {
                    weight: j * SUB_BLOCK,
                    found: Found::Multipliers { scale, minimum },
                });
            }
            *multiplier = scale;
        }
        Ok(multipliers)
    }

    /// The codes; an error where a stored code is 3. They mean `d * multiplier * code` only where
    /// [`multipliers`](Self::multipliers) finds the ternary form.
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

    /// Codes -3, -1, 1 and 3 and a scale for each sub-block into place; the index of the first weight of a sub-block that has
    /// another form.
    #[inline]
    pub fn unpack_four_levels(&self, codes: &mut [i8; WEIGHTS], scales: &mut [f32; SUB_BLOCKS]) -> Result<(), usize> {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (j, (scale, byte)) in scales.iter_mut().zip(self.scales).enumerate() {
            let two_units = d * f32::from(byte & 15);
            let three_units = dmin * f32::from(byte >> 4);
            // Exact: 11 + 4 + 2 bits of significand.
            if 3.0 * two_units != 2.0 * three_units {
                return Err(j * SUB_BLOCK);
            }
            *scale = two_units / 2.0;
        }
        planes::unpack(self.stored, codes, |stored| 2 * stored as i8 - 3);
        Ok(())
    }

    /// `d * sc * stored - dmin * m` in f32, for every block, ternary or not.
    #[inline]
    pub fn dequantize(&self, out: &mut [f32; WEIGHTS]) {
        let mut stored = [0; WEIGHTS];
        planes::unpack(self.stored, &mut stored, |stored| stored);
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        for (i, (w, stored)) in out.iter_mut().zip(stored).enumerate() {
            let byte = self.scales[i / SUB_BLOCK];
            let scale = d * f32::from(byte & 15);
            let minimum = dmin * f32::from(byte >> 4);
            *w = scale * f32::from(stored) - minimum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_as_documented() {
        let mut codes = [0; WEIGHTS];
        codes[130] = 1; // byte 16 + 32 + 2, bits 0..1
        let mut multipliers = [1; SUB_BLOCKS];
        multipliers[8] = 15; // weights 128..144
        let mut expected = [0b01_01_01_01; BYTES];
        expected[..16].fill(0x11);
        expected[8] = 0xff;
        expected[50] = 0b01_01_01_10;
        expected[80..].copy_from_slice(&[0x00, 0x3c, 0x00, 0x3c]); // 1.0 twice
        assert_eq!(pack(&codes, f16::ONE, &multipliers), expected);
    }

    #[test]
    #[should_panic(expected = "a multiplier is above 15")]
    fn a_wide_multiplier_is_not_packed() {
        pack(&[0; WEIGHTS], f16::ONE, &[16; SUB_BLOCKS]);
    }
}
