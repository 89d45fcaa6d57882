//! The block codecs against bytes made by ggml (`fixtures/blocks`), without ggml.

use half::f16;
use std::{fs, path::Path};
use tqconv_formats::block::{BlockType, q2_0, tq1_0, tq2_0};

const COLUMNS: usize = 512;

fn fixture(name: &str) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/blocks");
    fs::read(dir.join(name)).unwrap_or_else(|error| panic!("fixtures/blocks/{name}: {error}"))
}

fn floats(name: &str) -> Vec<f32> {
    let bytes = fixture(name);
    let (floats, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{name} is no whole number of f32");
    floats.iter().copied().map(f32::from_le_bytes).collect()
}

fn file(ty: BlockType, kind: &str) -> String {
    format!("{}.{kind}", ty.name().to_lowercase())
}

#[test]
fn rows_dequantize_to_ggml_s_weights() {
    use BlockType::*;
    for ty in [F16, BF16, Q4_0, Q8_0, Q2_K, Q4_K, Q6_K, TQ1_0, TQ2_0, Q2_0] {
        let expected = floats(&file(ty, "weights"));
        let mut found = vec![f32::NAN; COLUMNS];
        ty.dequantize_row(&fixture(&file(ty, "row")), &mut found).unwrap();
        assert_eq!(expected.len(), COLUMNS);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{ty}: weight {i}");
        }
    }
}

#[test]
fn weights_quantize_to_ggml_s_bytes() {
    use BlockType::*;
    let x = floats("input.weights");
    for ty in [F16, BF16, Q8_0, Q4_K, Q6_K] {
        let mut row = vec![0; ty.row_bytes(COLUMNS).unwrap()];
        ty.quantize_row(&x, &mut row).unwrap();
        assert!(row == fixture(&file(ty, "quantized")), "{ty} bytes differ");
    }
}

#[test]
fn codes_pack_to_ggml_s_bytes() {
    let codes: Vec<i8> = fixture("input.codes").iter().map(|b| *b as i8).collect();
    let scale = f16::from_f32(0.0123);
    let packed = |ty| -> Vec<u8> {
        let (blocks, _) = codes.as_chunks::<256>();
        let (small_blocks, _) = codes.as_chunks::<64>();
        match ty {
            BlockType::TQ1_0 => blocks.iter().flat_map(|c| tq1_0::pack(c, scale)).collect(),
            BlockType::TQ2_0 => blocks.iter().flat_map(|c| tq2_0::pack(c, scale)).collect(),
            _ => small_blocks.iter().flat_map(|c| q2_0::pack(c, scale)).collect(),
        }
    };
    for ty in [BlockType::TQ1_0, BlockType::TQ2_0, BlockType::Q2_0] {
        assert_eq!(packed(ty), fixture(&file(ty, "packed")), "{ty}");
    }
}
