//! The blocks of PrismML's fork, written weight by weight from their published layout.

use half::f16;
use proptest::prelude::*;
use tqconv_formats::block::BlockType::{PQ2_0, PTQ1_0};
use tqconv_formats::block::{BlockError, BlockType};

const WEIGHTS: usize = 128;

/// Two bits a weight, from the lowest; `stored`: 0 to 3.
fn pq2_0(stored: &[u8], scale: f16) -> Vec<u8> {
    let mut block = scale.to_le_bytes().to_vec();
    block.resize(34, 0);
    for (weight, stored) in stored.iter().enumerate() {
        block[2 + weight / 4] |= stored << (2 * (weight % 4));
    }
    block
}

/// The byte of a weight, and which of its five digits it is.
fn place(weight: usize) -> (usize, u32) {
    let (byte, digit) = match weight {
        0..80 => (weight % 16, weight / 16),
        80..120 => (16 + (weight - 80) % 8, (weight - 80) / 8),
        _ => (24 + (weight - 120) % 2, (weight - 120) / 2),
    };
    (byte, digit as u32)
}

/// Five base-3 digits a byte, the first the most significant, as a fraction of 256, rounded up; `stored`: 0 to 2.
fn ptq1_0(stored: &[u8], scale: f16) -> Vec<u8> {
    let mut values = [0u32; 26];
    for (weight, &stored) in stored.iter().enumerate() {
        let (byte, digit) = place(weight);
        values[byte] += u32::from(stored) * 3u32.pow(4 - digit);
    }
    let mut block: Vec<u8> = values.iter().map(|value| (value * 256).div_ceil(243) as u8).collect();
    block.extend(scale.to_le_bytes());
    block
}

/// Codes and scales.
type Ternary = (Vec<i8>, Vec<f32>);

/// The weights of a row, and what it is read as.
fn read(ty: BlockType, row: &[u8]) -> (Vec<f32>, Result<Ternary, BlockError>) {
    let columns = row.len() / ty.bytes() * ty.weights();
    let mut weights = vec![f32::NAN; columns];
    ty.dequantize_row(row, &mut weights).unwrap();
    let (mut codes, mut scales) = (vec![99; columns], vec![f32::NAN; columns / WEIGHTS]);
    let ternary = ty.unpack_ternary_row(row, &mut codes, &mut scales);
    (weights, ternary.map(|()| (codes, scales)))
}

#[test]
fn the_types_are_the_fork_s() {
    for (id, ty, name, bytes) in [(142, PQ2_0, "PQ2_0", 34), (143, PTQ1_0, "PTQ1_0", 28)] {
        assert_eq!(BlockType::from_id(id), Some(ty));
        assert_eq!((ty.name(), ty.weights(), ty.bytes()), (name, WEIGHTS, bytes));
        assert!(ty.is_prism());
    }
    assert_eq!(BlockType::ALL.iter().filter(|ty| ty.is_prism()).count(), 2);
}

/// Bytes by hand: 1.0 is 00 3c, five digits 11111 are 121 (128 as a fraction), 1111 are 120 of 243 (127).
#[test]
fn ptq1_0_bytes_are_as_published() {
    let mut block = [128; 28];
    block[24..].copy_from_slice(&[127, 127, 0x00, 0x3c]);
    assert_eq!(read(PTQ1_0, &block).0, [0.0; WEIGHTS]);

    block[15] = 129; // 11112, 122
    block[16] = 43; // 01111, 40
    block[25] = 130; // 1112, 123 of 243
    let mut expected = [0.0; WEIGHTS];
    expected[79] = 1.0; // digit 4 of byte 15
    expected[80] = -1.0; // digit 0 of byte 16
    expected[127] = 1.0; // digit 3 of byte 25
    assert_eq!(read(PTQ1_0, &block).0, expected);
}

#[test]
fn pq2_0_bytes_are_as_published() {
    let mut block = [0b01_01_01_01; 34];
    block[..2].copy_from_slice(&[0x00, 0x3c]);
    block[2] = 0b01_01_01_00; // weight 0
    block[33] = 0b10_01_01_01; // weight 127
    let mut expected = [0.0; WEIGHTS];
    (expected[0], expected[127]) = (-1.0, 1.0);
    assert_eq!(read(PQ2_0, &block).0, expected);
}

#[test]
fn plus_two_is_read_and_is_not_ternary() {
    let mut row = pq2_0(&[1; WEIGHTS], f16::ONE);
    let mut stored = [1; WEIGHTS];
    stored[70] = 3;
    row.extend(pq2_0(&stored, f16::from_f32(0.25)));
    let (weights, ternary) = read(PQ2_0, &row);
    assert_eq!(weights[WEIGHTS + 70], 0.5);
    assert_eq!(
        ternary.unwrap_err().to_string(),
        "PQ2_0 row is not ternary: weight 198 has stored code 3, expected 0, 1 or 2"
    );
}

#[test]
fn every_byte_of_ptq1_0_reads_as_its_digits() {
    for value in 0..243u32 {
        let mut stored = [1; WEIGHTS];
        for digit in 0..5 {
            stored[3 + 16 * digit] = (value / 3u32.pow(4 - digit as u32) % 3) as u8;
        }
        let (_, ternary) = read(PTQ1_0, &ptq1_0(&stored, f16::ONE));
        let expected: Vec<i8> = stored.iter().map(|&stored| stored as i8 - 1).collect();
        assert_eq!(ternary.unwrap().0, expected, "{value}");
    }
}

proptest! {
    #[test]
    fn rows_are_read_as_written(
        stored in prop::collection::vec(0u8..=2, 2 * WEIGHTS),
        bits in prop::array::uniform2(0u16..0x7c00),
        negative in any::<bool>(),
    ) {
        let scales = bits.map(|bits| f16::from_bits(bits | u16::from(negative) << 15));
        for (ty, write) in [(PQ2_0, pq2_0 as fn(&[u8], f16) -> Vec<u8>), (PTQ1_0, ptq1_0)] {
            let row: Vec<u8> = stored.chunks(WEIGHTS).zip(scales).flat_map(|(block, scale)| write(block, scale)).collect();
            prop_assert_eq!(Some(row.len()), ty.row_bytes(stored.len()));
            let (weights, ternary) = read(ty, &row);
            let (codes, found) = ternary.unwrap();
            for (i, &stored) in stored.iter().enumerate() {
                let scale = scales[i / WEIGHTS].to_f32();
                prop_assert_eq!(codes[i], stored as i8 - 1);
                prop_assert_eq!(found[i / WEIGHTS].to_bits(), scale.to_bits());
                prop_assert_eq!(weights[i], scale * f32::from(codes[i]));
            }
        }
    }
}
