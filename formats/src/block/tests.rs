//! Every codec through its row functions: round trips, refusals, lengths.

use super::*;
use half::f16;
use proptest::prelude::*;

/// The ternary containers with one scale a block, as `pack` of a row.
fn pack_row(ty: BlockType, codes: &[i8], scales: &[f16]) -> Vec<u8> {
    fn blocks<const WEIGHTS: usize, const BYTES: usize>(
        pack: fn(&[i8; WEIGHTS], f16) -> [u8; BYTES],
        codes: &[i8],
        scales: &[f16],
    ) -> Vec<u8> {
        let (blocks, rest) = codes.as_chunks();
        assert_eq!((blocks.len(), rest.len()), (scales.len(), 0));
        blocks
            .iter()
            .zip(scales)
            .flat_map(|(codes, scale)| pack(codes, *scale))
            .collect()
    }
    match ty {
        BlockType::TQ1_0 => blocks(tq1_0::pack, codes, scales),
        BlockType::TQ2_0 => blocks(tq2_0::pack, codes, scales),
        BlockType::Q2_0 => blocks(q2_0::pack, codes, scales),
        BlockType::Q4_0 => blocks(q4_0::pack, codes, scales),
        BlockType::Q8_0 => blocks(q8_0::pack, codes, scales),
        _ => panic!("{ty} has no single scale"),
    }
}

const ONE_SCALE: [BlockType; 5] = [
    BlockType::TQ1_0,
    BlockType::TQ2_0,
    BlockType::Q2_0,
    BlockType::Q4_0,
    BlockType::Q8_0,
];

fn codes(columns: usize) -> impl Strategy<Value = Vec<i8>> {
    prop::collection::vec(-1i8..=1, columns)
}

/// Any f16 that is a number: subnormal, zero, largest, of either sign.
fn scale() -> impl Strategy<Value = f16> {
    any::<u16>()
        .prop_map(f16::from_bits)
        .prop_filter("finite", |scale| scale.is_finite())
}

proptest! {
    #[test]
    fn one_scale_blocks_return_what_was_packed(
        ty in prop::sample::select(&ONE_SCALE),
        codes in codes(512),
        scales in prop::collection::vec(scale(), 16),
    ) {
        let run = ty.scale_run().unwrap();
        let scales = &scales[..512 / run];
        let row = pack_row(ty, &codes, scales);
        prop_assert_eq!(Some(row.len()), ty.row_bytes(512));

        let mut found_codes = vec![99; 512];
        let mut found_scales = vec![f32::NAN; 512 / run];
        ty.unpack_ternary_row(&row, &mut found_codes, &mut found_scales).unwrap();
        prop_assert_eq!(&found_codes, &codes);
        for (found, scale) in found_scales.iter().zip(scales) {
            prop_assert_eq!(found.to_bits(), scale.to_f32().to_bits());
        }

        let mut weights = vec![f32::NAN; 512];
        ty.dequantize_row(&row, &mut weights).unwrap();
        for (i, weight) in weights.iter().enumerate() {
            prop_assert_eq!(*weight, scales[i / run].to_f32() * f32::from(codes[i]));
        }
    }

    #[test]
    fn q2_k_returns_what_was_packed(
        codes in codes(256),
        d in scale(),
        multipliers in prop::array::uniform16(0u8..=15),
    ) {
        let block = q2_k::pack(codes.as_slice().try_into().unwrap(), d, &multipliers);
        let view = q2_k::view(&block);
        prop_assert_eq!(view.codes().unwrap().to_vec(), codes.clone());
        prop_assert_eq!(view.multipliers().unwrap(), multipliers);
        prop_assert_eq!(view.d().to_bits(), d.to_bits());

        let mut found_codes = [99; 256];
        let mut scales = [f32::NAN; 16];
        BlockType::Q2_K.unpack_ternary_row(&block, &mut found_codes, &mut scales).unwrap();
        let mut weights = [f32::NAN; 256];
        BlockType::Q2_K.dequantize_row(&block, &mut weights).unwrap();
        for i in 0..256 {
            let scale = f64::from(d.to_f32()) * f64::from(multipliers[i / 16]);
            prop_assert_eq!(f64::from(scales[i / 16]), scale);
            prop_assert_eq!(f64::from(weights[i]), scale * f64::from(codes[i]));
        }
        prop_assert_eq!(found_codes.as_slice(), &codes);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for &ty in BlockType::ALL {
            let columns = bytes.len() / ty.bytes() * ty.weights();
            let row = &bytes[..bytes.len() / ty.bytes() * ty.bytes()];
            let _ = ty.dequantize_row(row, &mut vec![0.0; columns]);
            let run = ty.scale_run().unwrap_or(1);
            let _ = ty.unpack_ternary_row(row, &mut vec![0; columns], &mut vec![0.0; columns / run]);
        }
    }

    #[test]
    fn no_numbers_make_a_writer_panic(
        bits in prop::collection::vec(any::<u32>(), 256),
        exponents in prop::sample::select(&[0x7f80_0000u32, 0x3f80_0000, 0x0780_0000, 0]),
    ) {
        let number = |bits| f32::from_bits(bits & (0x807f_ffff | exponents));
        let x: Vec<f32> = bits.into_iter().map(number).collect();
        for &ty in BlockType::ALL {
            let _ = ty.quantize_row(&x, &mut vec![0; ty.row_bytes(256).unwrap()]);
        }
    }
}

/// The error of a row of two blocks whose second block is `block`, its first one all zero.
fn second_block(ty: BlockType, block: &[u8]) -> BlockError {
    let columns = 2 * ty.weights();
    let mut row = match ty {
        BlockType::Q2_K => q2_k::pack(&[0; 256], f16::ONE, &[1; 16]).to_vec(),
        _ => pack_row(ty, &vec![0; ty.weights()], &[f16::ONE]),
    };
    row.extend(block);
    let mut scales = vec![0.0; columns / ty.scale_run().unwrap()];
    ty.unpack_ternary_row(&row, &mut vec![0; columns], &mut scales)
        .unwrap_err()
}

#[test]
fn a_code_that_is_not_ternary_is_named_by_its_place_in_the_row() {
    let mut tq2_0 = tq2_0::pack(&[0; 256], f16::ONE);
    tq2_0[33] |= 0b11 << 4; // weight 128 + 2*32 + 1
    let error = second_block(BlockType::TQ2_0, &tq2_0);
    assert_eq!(
        error.to_string(),
        "TQ2_0 row is not ternary: weight 449 has stored code 3, expected 0, 1 or 2"
    );

    let mut q2_0 = q2_0::pack(&[0; 64], f16::ONE);
    q2_0[17] |= 0b11 << 6; // weight 63
    let error = second_block(BlockType::Q2_0, &q2_0);
    assert_eq!(
        error.to_string(),
        "Q2_0 row is not ternary: weight 127 has stored code 3, expected 0, 1 or 2"
    );

    let mut q4_0 = q4_0::pack(&[0; 32], f16::ONE);
    q4_0[2] = 0x68; // weight 16
    let error = second_block(BlockType::Q4_0, &q4_0);
    assert_eq!(
        error.to_string(),
        "Q4_0 row is not ternary: weight 48 has stored code 6, expected 7, 8 or 9"
    );

    let mut q8_0 = q8_0::pack(&[0; 32], f16::ONE);
    q8_0[2] = -128i8 as u8;
    let error = second_block(BlockType::Q8_0, &q8_0);
    assert_eq!(
        error.to_string(),
        "Q8_0 row is not ternary: weight 32 has stored code -128, expected -1, 0 or 1"
    );
}

#[test]
fn q2_k_of_another_form_is_refused() {
    let ternary = q2_k::pack(&[0; 256], f16::ONE, &[3; 16]);
    let with = |at: usize, byte: u8| {
        let mut block = ternary;
        block[at] = byte;
        second_block(BlockType::Q2_K, &block).to_string()
    };
    assert_eq!(
        with(83, 0),
        "Q2_K row is not ternary: weight 256 has d 1 and dmin 0 in its block, expected equal bits"
    );
    assert_eq!(
        with(5, 0x23),
        "Q2_K row is not ternary: weight 336 has scale multiplier 3 and minimum multiplier 2 \
         in its sub-block, expected equal"
    );
    assert_eq!(
        with(16, 0x57),
        "Q2_K row is not ternary: weight 256 has stored code 3, expected 0, 1 or 2"
    );
}

#[test]
fn lengths_are_checked() {
    let ty = BlockType::TQ2_0;
    let partial = BlockError::PartialBlock { ty, columns: 255 };
    assert_eq!(ty.dequantize_row(&[0; 66], &mut [0.0; 255]), Err(partial));
    assert_eq!(
        partial.to_string(),
        "255 columns are not a whole number of TQ2_0 blocks of 256"
    );

    let short = ty.dequantize_row(&[0; 65], &mut [0.0; 256]).unwrap_err();
    assert_eq!(
        short.to_string(),
        "a TQ2_0 row of 256 columns has 65 bytes, expected 66"
    );
    let scales = ty.unpack_ternary_row(&[0; 66], &mut [0; 256], &mut [0.0; 2]);
    assert_eq!(
        scales.unwrap_err().to_string(),
        "a TQ2_0 row of 256 columns has 2 scales, expected 1"
    );
    let long = BlockType::F16.quantize_row(&[0.0; 3], &mut [0; 7]);
    assert_eq!(
        long.unwrap_err().to_string(),
        "a F16 row of 3 columns has 7 bytes, expected 6"
    );
}

#[test]
fn a_type_without_a_codec_is_named() {
    let error = BlockType::IQ4_NL.dequantize_row(&[0; 18], &mut [0.0; 32]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "IQ4_NL rows cannot be dequantized, supported: \
         F32, F16, Q4_0, Q8_0, Q2_K, Q4_K, Q6_K, BF16, TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0"
    );
    let error = BlockType::TQ2_0.quantize_row(&[0.0; 256], &mut [0; 66]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "TQ2_0 rows cannot be quantized, supported: F32, F16, Q8_0, Q4_K, Q6_K, BF16"
    );
    let error = BlockType::F16.unpack_ternary_row(&[0; 2], &mut [0], &mut [0.0]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "F16 rows cannot be read as ternary, supported: Q4_0, Q8_0, Q2_K, TQ1_0, TQ2_0, Q2_0, PQ2_0, PTQ1_0"
    );
}

#[test]
fn a_weight_that_does_not_fit_is_refused() {
    let mut row = [0; 4];
    for (ty, value) in [
        (BlockType::F16, 65505.0),
        (BlockType::F16, f32::NAN),
        (BlockType::BF16, f32::MAX),
        (BlockType::BF16, f32::NEG_INFINITY),
    ] {
        let error = ty.quantize_row(&[1.0, value], &mut row).unwrap_err();
        assert!(
            matches!(error, BlockError::OutOfRange { weight: 1, .. }),
            "{ty} {value}: {error}"
        );
    }
    assert_eq!(BlockType::F16.quantize_row(&[65504.0, -0.0], &mut row), Ok(()));
    assert_eq!(row, [0xff, 0x7b, 0, 0x80]);
}

/// A Q2_K block whose weights are `d * sc * stored - dmin * m` with stored = (code + 3) / 2.  `codes`: -3, -1, 1 or 3.
fn four_level_q2_k(codes: &[i8], d: f16, dmin: f16, multipliers: [u8; 16]) -> Vec<u8> {
    let mut block = multipliers.to_vec();
    block.resize(80, 0);
    for (i, code) in codes.iter().enumerate() {
        block[16 + 32 * (i / 128) + i % 32] |= (((code + 3) / 2) as u8) << (2 * (i % 128 / 32));
    }
    block.extend(d.to_le_bytes());
    block.extend(dmin.to_le_bytes());
    block
}

fn four_level_q4_0(codes: &[i8], scale: f16) -> Vec<u8> {
    let mut block = scale.to_le_bytes().to_vec();
    block.extend((0..16).map(|i| (codes[i] + 8) as u8 | ((codes[16 + i] + 8) as u8) << 4));
    block
}

/// What a row of four levels is read as, and that its weights are that.
fn read_four_levels(ty: BlockType, row: &[u8]) -> Result<(Vec<i8>, Vec<f32>), BlockError> {
    let columns = row.len() / ty.bytes() * ty.weights();
    let run = ty.scale_run().unwrap();
    let (mut codes, mut scales) = (vec![99; columns], vec![f32::NAN; columns / run]);
    ty.unpack_four_level_row(row, &mut codes, &mut scales)?;
    let mut weights = vec![f32::NAN; columns];
    ty.dequantize_row(row, &mut weights).unwrap();
    for (i, weight) in weights.iter().enumerate() {
        assert_eq!(*weight, scales[i / run] * f32::from(codes[i]), "{ty}, weight {i}");
    }
    Ok((codes, scales))
}

proptest! {
    #[test]
    fn four_levels_are_read_as_written(
        codes in prop::collection::vec(prop::sample::select(&[-3i8, -1, 1, 3]), 256),
        unit in scale(),
        fifth in 0u8..=5,
    ) {
        let row: Vec<u8> = codes.chunks(32).flat_map(|codes| four_level_q4_0(codes, unit)).collect();
        prop_assert_eq!(read_four_levels(BlockType::Q4_0, &row).unwrap(), (codes.clone(), vec![unit.to_f32(); 8]));

        // d = dmin = u; also other multipliers in the ratio 2 : 3, and none.
        let mut multipliers = [2 | 3 << 4; 16];
        multipliers[5] = (2 * fifth) | ((3 * fifth) << 4);
        let block = four_level_q2_k(&codes, unit, unit, multipliers);
        let (found, scales) = read_four_levels(BlockType::Q2_K, &block).unwrap();
        prop_assert_eq!(&found, &codes);
        for (j, scale) in scales.into_iter().enumerate() {
            prop_assert_eq!(scale, unit.to_f32() * if j == 5 { f32::from(fifth) } else { 1.0 });
        }
    }
}

/// The ratio may be in the factors as well as in the multipliers.
#[test]
fn four_levels_of_q2_k_may_have_two_factors() {
    let (d, dmin) = (f16::from_f32(0.5), f16::from_f32(0.75));
    let block = four_level_q2_k(&[-3; 256], d, dmin, [0x11; 16]);
    assert_eq!(
        read_four_levels(BlockType::Q2_K, &block),
        Ok((vec![-3; 256], vec![0.25; 16]))
    );
}

#[test]
fn a_row_that_is_not_of_four_levels_is_refused() {
    let mut row = four_level_q4_0(&[1; 32], f16::ONE);
    row.extend(q4_0::pack(&[0; 32], f16::ONE));
    let error = read_four_levels(BlockType::Q4_0, &row).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Q4_0 row is not of four levels: weight 32 is not -3, -1, 1 or 3 times its scale"
    );

    let mut multipliers = [2 | 3 << 4; 16];
    multipliers[3] = 2 | 2 << 4; // ternary
    let mut row = four_level_q2_k(&[1; 256], f16::ONE, f16::ONE, [2 | 3 << 4; 16]);
    row.extend(four_level_q2_k(&[1; 256], f16::ONE, f16::ONE, multipliers));
    let error = read_four_levels(BlockType::Q2_K, &row).unwrap_err();
    assert_eq!(
        error,
        BlockError::NotFourLevel {
            ty: BlockType::Q2_K,
            weight: 256 + 48
        }
    );

    let error = BlockType::TQ2_0.unpack_four_level_row(&[0; 66], &mut [0; 256], &mut [0.0]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "TQ2_0 rows cannot be read as four levels, supported: Q4_0, Q2_K"
    );
}
