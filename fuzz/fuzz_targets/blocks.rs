//! Block codecs: any bytes can be read; ternary blocks return what was packed; floats that fit come back finite.
#![no_main]

use formats::block::{BlockType, q2_0, q2_k, q4_0, q8_0, tq1_0, tq2_0};
use half::f16;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let ty = BlockType::ALL[usize::from(first) % BlockType::ALL.len()];
    read(ty, rest);
    quantize(ty, rest);
    pack(rest);
});

/// Any bytes as a row.
fn read(ty: BlockType, bytes: &[u8]) {
    let blocks = bytes.len() / ty.bytes();
    let row = &bytes[..blocks * ty.bytes()];
    let mut weights = vec![f32::NAN; blocks * ty.weights()];
    let readable = ty.dequantize_row(row, &mut weights).is_ok();
    let Some(run) = ty.scale_run() else { return };
    assert!(readable);
    let mut codes = vec![99; weights.len()];
    let mut scales = vec![f32::NAN; weights.len() / run];
    let means = |codes: &[i8], scales: &[f32], levels: &[i8]| {
        for (i, (weight, &code)) in weights.iter().zip(codes).enumerate() {
            assert!(levels.contains(&code));
            if scales[i / run].is_finite() {
                assert_eq!(*weight, scales[i / run] * f32::from(code), "{ty}, weight {i}");
            }
        }
    };
    if ty.unpack_ternary_row(row, &mut codes, &mut scales).is_ok() {
        means(&codes, &scales, &[-1, 0, 1]);
    }
    if ty.unpack_four_level_row(row, &mut codes, &mut scales).is_ok() {
        means(&codes, &scales, &[-3, -1, 1, 3]);
    }
}

/// Any floats as weights.
fn quantize(ty: BlockType, bytes: &[u8]) {
    let floats: Vec<f32> = bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f32::from_le_bytes(bytes))
        .collect();
    let x = &floats[..floats.len() / ty.weights() * ty.weights()];
    let mut row = vec![0; ty.row_bytes(x.len()).expect("whole blocks")];
    if ty.quantize_row(x, &mut row).is_ok() {
        let mut back = vec![f32::NAN; x.len()];
        ty.dequantize_row(&row, &mut back).expect("what is written can be read");
        assert!(x.iter().all(|x| x.is_finite()));
        assert!(back.iter().all(|x| !x.is_nan()), "{ty}: {x:?} became {back:?}");
    }
}

/// Any codes and a scale, packed and unpacked by every codec.
fn pack(bytes: &[u8]) {
    let Some((head, codes)) = bytes.split_first_chunk::<10>() else {
        return;
    };
    let scale = f16::from_le_bytes([head[0], head[1]]);
    let mut row = [0i8; 256];
    for (code, byte) in row.iter_mut().zip(codes.iter().chain(std::iter::repeat(&1))) {
        *code = (byte % 3) as i8 - 1;
    }
    let (small, tiny) = (row.first_chunk().expect("256"), row.first_chunk().expect("256"));
    expect(BlockType::TQ1_0, &tq1_0::pack(&row, scale), &row, scale);
    expect(BlockType::TQ2_0, &tq2_0::pack(&row, scale), &row, scale);
    expect(BlockType::Q2_0, &q2_0::pack(small, scale), small, scale);
    expect(BlockType::Q4_0, &q4_0::pack(tiny, scale), tiny, scale);
    expect(BlockType::Q8_0, &q8_0::pack(tiny, scale), tiny, scale);
    let multipliers: [u8; 16] = std::array::from_fn(|i| head[2 + i / 2] >> (4 * (i % 2)) & 15);
    let block = q2_k::pack(&row, scale, &multipliers);
    let mut codes = [99; 256];
    BlockType::Q2_K
        .unpack_ternary_row(&block, &mut codes, &mut [0.0; 16])
        .expect("ternary");
    for (i, (found, &code)) in codes.iter().zip(&row).enumerate() {
        assert_eq!(*found, code, "Q2_K, weight {i}");
    }
}

fn expect(ty: BlockType, block: &[u8], codes: &[i8], scale: f16) {
    let (mut found, mut scales) = (vec![99; codes.len()], [0.0]);
    ty.unpack_ternary_row(block, &mut found, &mut scales).expect("ternary");
    assert_eq!(found, codes, "{ty}");
    assert!(scales[0].to_bits() == scale.to_f32().to_bits() || scale.is_nan());
}
