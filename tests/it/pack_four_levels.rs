//! `tqconv pack IN.gguf` of matrices of four levels, -3u, -u, u and 3u, as SEQ trains them: a unit for each row.

use formats::block::BlockType;
use formats::gguf::{File, Value};
use half::{bf16, f16};

use crate::hostile::input::Gguf;
use crate::pack::Bench;
use crate::pack_gguf::{assert_same_tensors, packed_twice, random, tensor};

const COLUMNS: usize = 512;
const ROWS: usize = 6;
const NAME: &str = "blk.0.ffn_down.weight";

fn codes() -> Vec<i8> {
    random(7, ROWS * COLUMNS)
        .map(|number| [-3, -1, 1, 3][number as usize % 4])
        .collect()
}

/// A number that f16 and bf16 have, with its triple.
fn unit(row: usize) -> f32 {
    (1 + row % 5) as f32 / 64.0
}

/// The bytes of the matrix as its type's published layout has them (families of llama.cpp's ggml-common.h).
fn stored(ty: BlockType) -> Vec<u8> {
    let codes = codes();
    let number = |(index, &code): (usize, &i8)| f32::from(code) * unit(index / COLUMNS);
    let numbers = codes.iter().enumerate().map(number);
    let blocks = codes.chunks(ty.weights()).enumerate();
    let d = |block: usize| {
        f16::from_f32(unit(block * ty.weights() / COLUMNS))
            .to_le_bytes()
            .to_vec()
    };
    let block = |(index, codes): (usize, &[i8])| match ty {
        BlockType::Q4_0 => {
            let byte = |i| (codes[i] + 8) as u8 | ((codes[i + 16] + 8) as u8) << 4;
            [d(index), (0..16).map(byte).collect()].concat()
        }
        BlockType::Q8_0 => [d(index), codes.iter().map(|&code| code as u8).collect()].concat(),
        BlockType::Q2_K => {
            // d * 2 * stored - d * 3, for stored codes 0 to 3.
            let bits = |i: usize, j: usize| ((codes[i / 32 * 128 + j * 32 + i % 32] + 3) / 2) as u8;
            let byte = |i| (0..4).fold(0, |byte, j| byte | bits(i, j) << (2 * j));
            [vec![0x32; 16], (0..64).map(byte).collect(), d(index), d(index)].concat()
        }
        ty => panic!("{ty}"),
    };
    match ty {
        BlockType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
        BlockType::F16 => numbers.flat_map(|w| f16::from_f32(w).to_le_bytes()).collect(),
        BlockType::BF16 => numbers.flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect(),
        _ => blocks.flat_map(block).collect(),
    }
}

fn file(ty: BlockType, bytes: Vec<u8>) -> Gguf {
    let mut file = Gguf {
        keys: vec![],
        tensors: vec![tensor(NAME, ty, &[COLUMNS as u64, ROWS as u64], bytes)],
    };
    file.set("general.architecture", Value::String("hunyuan-dense".into()));
    file
}

#[test]
fn every_source_type_becomes_every_type_that_holds_four_levels() {
    use BlockType::{BF16, F16, F32, Q2_K, Q4_0, Q8_0};
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    for from in [F32, F16, BF16, Q2_K, Q4_0] {
        std::fs::write(&input, file(from, stored(from)).bytes()).unwrap();
        for to in [Q2_K, Q4_0, Q8_0, F16, BF16, F32] {
            let (bytes, report) = bench.pack(&input, &format!("--exact --type {to}").to_lowercase());
            let file = File::parse(&bytes).unwrap();
            let (info, packed) = file.tensor(NAME).unwrap();
            assert!((info.ty, packed) == (to, &stored(to)), "{from} {to}");
            assert_eq!(report["nmse"], 0.0);
        }
        for options in ["", "--for cpu", "--for gpu --exact", "--for ollama"] {
            let files = packed_twice(&bench, &input, options);
            let packed = File::parse(&files[0]).unwrap();
            assert!(packed.tensor(NAME).unwrap().1 == stored(Q2_K), "{from} {options}");
            assert_same_tensors(&files, &format!("{from} {options}"));
        }
    }
}

/// In bf16 the outer level is rounded by itself: 3 * 171 / 16384 is between two numbers.
#[test]
fn levels_that_are_rounded_by_themselves_lose_what_is_told() {
    let bench = Bench::new();
    let (input, output) = (bench.path("in.gguf"), bench.path("new.gguf"));
    let numbers: Vec<f32> = codes()
        .iter()
        .map(|&code| bf16::from_f32(f32::from(code) * 171.0 / 16384.0).to_f32())
        .collect();
    let bytes = numbers.iter().flat_map(|&w| bf16::from_f32(w).to_le_bytes()).collect();
    std::fs::write(&input, file(BlockType::BF16, bytes).bytes()).unwrap();
    let (packed, report) = bench.pack(&input, "");
    let packed = File::parse(&packed).unwrap();
    let (info, data) = packed.tensor(NAME).unwrap();
    let mut found = vec![0.0; numbers.len()];
    info.ty.dequantize_row(data, &mut found).unwrap();
    let square = |(a, b): (&f32, &f32)| f64::from(a - b).powi(2);
    let error: f64 = numbers.iter().zip(&found).map(square).sum();
    let energy: f64 = numbers.iter().map(|&w| f64::from(w).powi(2)).sum();
    let told = report["nmse"].as_f64().unwrap();
    assert_eq!(info.ty, BlockType::Q2_K);
    assert!((1e-7..1e-5).contains(&told), "{told}");
    assert!(
        (told / (error / energy) - 1.0).abs() < 1e-3,
        "{told} is not {}",
        error / energy
    );
    let error = bench.refused(&["pack", input.to_str().unwrap(), output.to_str().unwrap(), "--exact"]);
    assert!(error.contains("loses too much") && error.contains(NAME), "{error}");
}
