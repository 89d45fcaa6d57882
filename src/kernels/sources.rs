//! The block types that can be packed: where their codes and factors are, and how codes move into steps.

use super::contract::STEP;
use super::packed::Packed;
use super::repack::{Factors, Source, repack};
use formats::block::{BlockType, q2_0, q2_k, q4_0, q4_k, q6_k, q8_0, tq1_0, tq2_0};
use rayon::prelude::*;

/// Why a matrix cannot be packed.
#[derive(Debug)]
pub(super) enum PackError {
    /// No integer kernel reads this type.
    Unsupported,
    /// The system has no memory for it.
    Memory(std::io::Error),
}

/// Pack a matrix of any integer type, in parallel. `bytes` holds `rows` rows of whole blocks.
pub(super) fn pack(ty: BlockType, rows: usize, columns: usize, bytes: &[u8]) -> Result<Packed, PackError> {
    match ty {
        BlockType::TQ2_0 => repack::<Tq2_0>(rows, columns, bytes),
        BlockType::TQ1_0 => repack::<Tq1_0>(rows, columns, bytes),
        BlockType::Q2_0 => repack::<Q2_0>(rows, columns, bytes),
        BlockType::Q2_K => repack::<Q2_K>(rows, columns, bytes),
        BlockType::Q4_0 if bytes.par_chunks(q4_0::BYTES << 12).all(TernaryQ4_0::fits) => {
            repack::<TernaryQ4_0>(rows, columns, bytes)
        }
        BlockType::Q4_0 => repack::<Q4_0>(rows, columns, bytes),
        BlockType::Q4_K => repack::<Q4_K>(rows, columns, bytes),
        BlockType::Q6_K => repack::<Q6_K>(rows, columns, bytes),
        BlockType::Q8_0 => repack::<Q8_0>(rows, columns, bytes),
        _ => return Err(PackError::Unsupported),
    }
    .map_err(PackError::Memory)
}

/// Put one row's 32-bit word into vector `vector` of a step.
#[inline(always)]
fn write_word(step: &mut [u8], vector: usize, lane: usize, word: u32) {
    step[64 * vector + 4 * lane..][..4].copy_from_slice(&word.to_le_bytes());
}

/// Put the codes of one row, `BITS` bits in a byte each, into its steps.
#[inline(always)]
fn write_steps<const BITS: usize>(codes: &[u8], lane: usize, steps: &mut [u8]) {
    let codes = codes.as_chunks::<STEP>().0.iter();
    for (codes, step) in codes.zip(steps.chunks_exact_mut(32 * BITS)) {
        let dword = |l: usize| u32::from_le_bytes(codes.as_chunks().0[l]);
        let low = |l: usize| dword(l) & 0x0F0F_0F0F;
        let high = |l: usize| dword(l) >> 4 & 0x0303_0303;
        match BITS {
            2 => write_word(step, 0, lane, dword(0) | dword(1) << 2 | dword(2) << 4 | dword(3) << 6),
            _ => {
                write_word(step, 0, lane, low(0) | low(1) << 4);
                write_word(step, 1, lane, low(2) | low(3) << 4);
                if BITS == 6 {
                    let word = high(0) | high(1) << 2 | high(2) << 4 | high(3) << 6;
                    write_word(step, 2, lane, word);
                }
            }
        }
    }
}

/// Exchange the bits `mask << by` of `a` with the bits `mask` of `b`.
#[inline(always)]
fn exchange(a: &mut u32, b: &mut u32, by: u32, mask: u32) {
    let differ = (*a >> by ^ *b) & mask;
    *b ^= differ;
    *a ^= differ << by;
}

/// Put bytes whose plane p holds the codes of the p-th 32 columns (TQ2_0, Q2_K) where their words are to be:
/// word l of each 16 bytes where plane l will be.
#[inline(always)]
fn write_planes(bytes: &[u8], lane: usize, steps: &mut [u8]) {
    let halves = bytes.as_chunks::<32>().0.iter();
    for (bytes, steps) in halves.zip(steps.as_chunks_mut::<512>().0) {
        for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            write_word(steps, i % 4 * 2 + i / 4, lane, u32::from_le_bytes(*word));
        }
    }
}

/// What `write_planes` left: word l and plane p change places.
#[inline(always)]
fn finish_planes(steps: &mut [u8]) {
    for steps in steps.as_chunks_mut::<512>().0 {
        for at in (0..128).step_by(4) {
            let mut words: [u32; 4] = std::array::from_fn(|plane| {
                u32::from_le_bytes(*steps[128 * plane + at..].first_chunk().expect("four bytes"))
            });
            let [a, b, c, d] = &mut words;
            exchange(a, c, 4, 0x0F0F_0F0F);
            exchange(b, d, 4, 0x0F0F_0F0F);
            exchange(a, b, 2, 0x3333_3333);
            exchange(c, d, 2, 0x3333_3333);
            for (plane, word) in words.into_iter().enumerate() {
                steps[128 * plane + at..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// Put bytes of four consecutive codes (Q2_0) where their words are to be.
#[inline(always)]
fn write_bytes(bytes: &[u8], lane: usize, steps: &mut [u8]) {
    for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        write_word(steps, i, lane, u32::from_le_bytes(*word));
    }
}

/// What `write_bytes` left: in each word, byte and place change places.
#[inline(always)]
fn finish_bytes(steps: &mut [u8]) {
    for bytes in steps.as_chunks_mut::<4>().0 {
        let word = u32::from_le_bytes(*bytes);
        let differ = (word ^ word >> 12) & 0x0000_F0F0;
        let word = word ^ differ ^ differ << 12;
        let differ = (word ^ word >> 6) & 0x00CC_00CC;
        *bytes = (word ^ differ ^ differ << 6).to_le_bytes();
    }
}

/// The four 2-bit planes of 32 bytes: `codes[32 p + m] = bytes[m] >> 2p & 3` (Q6_K).
#[inline(always)]
fn planes_of_32(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (plane, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * plane) & 3;
            }
        }
    }
}

/// Low nibbles, then high nibbles (Q4_0).
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

#[inline(always)]
fn two(block: &[u8], at: usize) -> [u8; 2] {
    [block[at], block[at + 1]]
}

/// 256 weights: 64 bytes of planes, d. (formats::block::tq2_0)
struct Tq2_0;
impl Source for Tq2_0 {
    const BLOCK: usize = tq2_0::WEIGHTS;
    const BYTES: usize = tq2_0::BYTES;
    const GROUP: usize = tq2_0::WEIGHTS;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_planes(&block[..64], lane, steps);
    }
    #[inline(always)]
    fn finish(steps: &mut [u8]) {
        finish_planes(steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 64))
    }
}

/// 256 weights: five base-3 digits in each of 48 bytes, four in each of 4 bytes, d. (formats::block::tq1_0)
struct Tq1_0;
impl Source for Tq1_0 {
    const BLOCK: usize = tq1_0::WEIGHTS;
    const BYTES: usize = tq1_0::BYTES;
    const GROUP: usize = tq1_0::WEIGHTS;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        let digits = |bytes: &[u8], codes: &mut [u8]| {
            let mut power = 1u8;
            for codes in codes.chunks_exact_mut(bytes.len()) {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
                }
                power = power.wrapping_mul(3);
            }
        };
        digits(&block[..32], &mut codes[..160]);
        digits(&block[32..48], &mut codes[160..240]);
        digits(&block[48..52], &mut codes[240..]);
        write_steps::<2>(&codes, lane, steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 52))
    }
}

/// 64 weights: d, four codes a byte. (formats::block::q2_0)
struct Q2_0;
impl Source for Q2_0 {
    const BLOCK: usize = q2_0::WEIGHTS;
    const BYTES: usize = q2_0::BYTES;
    const GROUP: usize = q2_0::WEIGHTS;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_bytes(&block[2..18], lane, steps);
    }
    #[inline(always)]
    fn finish(steps: &mut [u8]) {
        finish_bytes(steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// 256 weights: 16 bytes of 4-bit multipliers, 64 bytes of planes, d, dmin. (formats::block::q2_k)
#[allow(non_camel_case_types)]
struct Q2_K;
impl Source for Q2_K {
    const BLOCK: usize = q2_k::WEIGHTS;
    const BYTES: usize = q2_k::BYTES;
    const GROUP: usize = q2_k::SUB_BLOCK;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = None;
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_planes(&block[16..80], lane, steps);
    }
    #[inline(always)]
    fn finish(steps: &mut [u8]) {
        finish_planes(steps);
    }
    #[inline(always)]
    fn uniform(block: &[u8]) -> bool {
        block[..16] == [block[0]; 16]
    }
    #[inline(always)]
    fn factors(block: &[u8], group: usize) -> Factors {
        let both = block[group];
        Factors::new(two(block, 80), both & 15, two(block, 82), both >> 4)
    }
}

/// 32 weights: d, low nibbles, high nibbles; code 8 means 0. (formats::block::q4_0)
struct Q4_0;
impl Source for Q4_0 {
    const BLOCK: usize = q4_0::WEIGHTS;
    const BYTES: usize = q4_0::BYTES;
    const GROUP: usize = q4_0::WEIGHTS;
    const BITS: usize = 4;
    const SHIFT: Option<u32> = Some(3);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 32];
        nibbles(&block[2..18], &mut codes);
        write_steps::<4>(&codes, lane, steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// Q4_0 whose codes are all 7, 8 or 9: the same in two bits.
struct TernaryQ4_0;
impl TernaryQ4_0 {
    /// Whether every code of these whole blocks is 7, 8 or 9.
    fn fits(blocks: &[u8]) -> bool {
        let fits = |nibble: u8| nibble.wrapping_sub(7) <= 2;
        blocks.as_chunks::<{ q4_0::BYTES }>().0.iter().all(|block| {
            block[2..]
                .iter()
                .fold(true, |all, byte| all & fits(byte & 15) & fits(byte >> 4))
        })
    }
}
impl Source for TernaryQ4_0 {
    const BLOCK: usize = q4_0::WEIGHTS;
    const BYTES: usize = q4_0::BYTES;
    const GROUP: usize = q4_0::WEIGHTS;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let words: [u32; 4] = std::array::from_fn(|l| u32::from_le_bytes(block[2..18].as_chunks().0[l]));
        for (nibble, step) in steps.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // No nibble is below 7, so nothing is borrowed from a neighbour.
            let dword = |l: usize| (words[l] >> (4 * nibble) & 0x0F0F_0F0F) - 0x0707_0707;
            write_word(step, 0, lane, dword(0) | dword(1) << 2 | dword(2) << 4 | dword(3) << 6);
        }
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// 256 weights: d, dmin, 12 bytes of 6-bit multipliers, nibbles by runs of 64. (formats::block::q4_k)
#[allow(non_camel_case_types)]
struct Q4_K;
impl Source for Q4_K {
    const BLOCK: usize = q4_k::WEIGHTS;
    const BYTES: usize = q4_k::BYTES;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const SHIFT: Option<u32> = None;
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        for (bytes, codes) in block[16..144].chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            nibbles(bytes, codes);
        }
        write_steps::<4>(&codes, lane, steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], j: usize) -> Factors {
        let s = &block[4..16];
        let (multiplier, minimum_multiplier) = match j {
            0..4 => (s[j] & 63, s[j + 4] & 63),
            _ => (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4),
        };
        Factors::new(two(block, 0), multiplier, two(block, 2), minimum_multiplier)
    }
}

/// 256 weights: 128 bytes of low nibbles, 64 bytes of high 2-bit planes, 16 i8 multipliers, d; code 32 means 0.
/// (formats::block::q6_k)
#[allow(non_camel_case_types)]
struct Q6_K;
impl Source for Q6_K {
    const BLOCK: usize = q6_k::WEIGHTS;
    const BYTES: usize = q6_k::BYTES;
    const GROUP: usize = 16;
    const BITS: usize = 6;
    const SHIFT: Option<u32> = Some(5);
    const MULTIPLIED: bool = true;
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        planes_of_32(&block[128..192], &mut codes);
        for (low, codes) in block[..128].chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
            for (l, low) in low.iter().enumerate() {
                codes[l] = codes[l] << 4 | low & 15;
                codes[64 + l] = codes[64 + l] << 4 | low >> 4;
            }
        }
        write_steps::<6>(&codes, lane, steps);
    }
    #[inline(always)]
    fn factors(block: &[u8], group: usize) -> Factors {
        Factors::new(two(block, 208), block[192 + group], [0; 2], 0)
    }
}

/// 32 weights: d, i8 codes; stored here as code + 128. (formats::block::q8_0)
struct Q8_0;
impl Source for Q8_0 {
    const BLOCK: usize = q8_0::WEIGHTS;
    const BYTES: usize = q8_0::BYTES;
    const GROUP: usize = q8_0::WEIGHTS;
    const BITS: usize = 8;
    const SHIFT: Option<u32> = Some(7);
    #[inline(always)]
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_bytes(&block[2..34], lane, steps);
    }
    #[inline(always)]
    fn finish(steps: &mut [u8]) {
        steps.iter_mut().for_each(|code| *code ^= 0x80);
    }
    #[inline(always)]
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}
