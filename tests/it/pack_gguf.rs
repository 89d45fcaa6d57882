//! `tqconv pack IN.gguf`: codes and scales of every source type in every target type, through an independent reader.

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use half::{bf16, f16};

use crate::hostile::input::Gguf;
use crate::pack::Bench;

const COLUMNS: usize = 512;
const ROWS: usize = 6;

/// Codes of a matrix: -1, 0 or 1, all kinds of neighbours.
fn codes(rows: usize) -> Vec<i8> {
    let mut state = 88172645463325252u64;
    let code = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % 3) as i8 - 1
    };
    (0..rows * COLUMNS).map(code).collect()
}

/// The scale of 256 weights: numbers that f16 and bf16 have.
fn scale(group: usize) -> f32 {
    (1 + group % 5) as f32 / 64.0
}

/// The bytes of a matrix as its type's published layout has them, written here and not by the codecs.
fn stored(ty: BlockType, codes: &[i8]) -> Vec<u8> {
    let number = |(index, &code): (usize, &i8)| f32::from(code) * scale(index / 256);
    let numbers = codes.iter().enumerate().map(number);
    match ty {
        BlockType::F32 => return numbers.flat_map(f32::to_le_bytes).collect(),
        BlockType::F16 => return numbers.flat_map(|w| f16::from_f32(w).to_le_bytes()).collect(),
        BlockType::BF16 => return numbers.flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect(),
        _ => {}
    }
    let mut bytes = vec![];
    for (block, codes) in codes.chunks(ty.weights()).enumerate() {
        let d = f16::from_f32(scale(block * ty.weights() / 256)).to_le_bytes();
        // `count` codes of 2 bits in each byte: weight j * stride + i in bits 2j.
        let two_bits = |at: &dyn Fn(usize, usize) -> usize, length: usize| -> Vec<u8> {
            let byte = |i| (0..4).fold(0, |byte, j| byte | ((codes[at(i, j)] + 1) as u8) << (2 * j));
            (0..length).map(byte).collect()
        };
        let spread = |i: usize, j: usize| i / 32 * 128 + j * 32 + i % 32;
        let next = |i: usize, j: usize| i * 4 + j;
        match ty {
            BlockType::TQ2_0 => {
                bytes.extend(two_bits(&spread, 64));
                bytes.extend(d);
            }
            BlockType::Q2_0 | BlockType::PQ2_0 => {
                bytes.extend(d);
                bytes.extend(two_bits(&next, ty.weights() / 4));
            }
            BlockType::Q2_K => {
                bytes.extend([0x11; 16]);
                bytes.extend(two_bits(&spread, 64));
                bytes.extend(d);
                bytes.extend(d);
            }
            BlockType::Q4_0 => {
                bytes.extend(d);
                bytes.extend((0..16).map(|i| (codes[i] + 8) as u8 | ((codes[i + 16] + 8) as u8) << 4));
            }
            BlockType::Q8_0 => {
                bytes.extend(d);
                bytes.extend(codes.iter().map(|&code| code as u8));
            }
            BlockType::PTQ1_0 => {
                // Digit n of byte b is ((b * 3^n mod 256) * 3) >> 8: the byte is the value of five digits, rounded up.
                let digits = |indices: Vec<usize>| {
                    let value = (0..5).fold(0u32, |value, n| {
                        value * 3 + indices.get(n).map_or(0, |&index| (codes[index] + 1) as u32)
                    });
                    (value * 256).div_ceil(243) as u8
                };
                bytes.extend((0..16).map(|m| digits((0..5).map(|n| 16 * n + m).collect())));
                bytes.extend((0..8).map(|m| digits((0..5).map(|n| 80 + 8 * n + m).collect())));
                bytes.extend((0..2).map(|h| digits((0..4).map(|n| 120 + 2 * n + h).collect())));
                bytes.extend(d);
            }
            ty => panic!("{ty}"),
        }
    }
    bytes
}

fn tensor(name: &str, ty: BlockType, shape: &[u64], bytes: Vec<u8>) -> (TensorInfo, Vec<u8>) {
    let (name, shape) = (name.into(), shape.to_vec());
    (TensorInfo { name, ty, shape }, bytes)
}

/// A file with a matrix, one of three experts, a norm, and an embedding in Q6_K that no one looks into.
fn source(ty: BlockType) -> Gguf {
    let columns = COLUMNS as u64;
    let matrix = |name, shape: &[u64]| {
        let rows = shape[1..].iter().product::<u64>() as usize;
        tensor(name, ty, shape, stored(ty, &codes(rows)))
    };
    let mut file = Gguf {
        keys: vec![],
        tensors: vec![],
    };
    file.set("general.architecture", Value::String("qwen3moe".into()));
    file.set("general.file_type", Value::U32(1));
    file.set("qwen3moe.context_length", Value::U32(77));
    file.tensors = vec![
        tensor(
            "token_embd.weight",
            BlockType::Q6_K,
            &[columns, 2],
            (0..840u32).map(|i| i as u8).collect(),
        ),
        tensor(
            "blk.0.attn_norm.weight",
            BlockType::F32,
            &[columns],
            1.5f32.to_le_bytes().repeat(COLUMNS),
        ),
        matrix("blk.0.attn_q.weight", &[columns, ROWS as u64]),
        matrix("blk.0.ffn_up_exps.weight", &[columns, 2, 3]),
    ];
    file
}

/// What an independent reader finds of a tensor: its type and bytes; None where it does not know the type.
fn second_reader(path: &std::path::Path, name: &str) -> Option<(u32, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let mut container = gguf_rs::get_gguf_container(path.to_str().unwrap()).ok()?;
    let model = container.decode().ok()?;
    let found = model.tensors().iter().find(|tensor| tensor.name == name).unwrap();
    let start = (model.data_offset() + found.offset) as usize;
    Some((found.kind, bytes[start..start + found.size as usize].to_vec()))
}

#[test]
fn every_source_type_becomes_every_target_type_with_its_codes_and_scales() {
    use BlockType::{BF16, F16, F32, PQ2_0, PTQ1_0, Q2_0, Q2_K, Q4_0, Q8_0, TQ1_0, TQ2_0};
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    let mut read_by_the_other = 0;
    for from in [F32, F16, BF16, TQ2_0, Q2_0, Q2_K, Q4_0, Q8_0, PQ2_0, PTQ1_0] {
        let source = source(from);
        std::fs::write(&input, source.bytes()).unwrap();
        for to in [TQ1_0, TQ2_0, Q2_0, Q2_K, Q4_0, Q8_0, F16, BF16, F32] {
            let (bytes, report) = bench.pack(&input, &format!("--exact --type {to}").to_lowercase());
            let file = File::parse(&bytes).unwrap();
            let path = bench.path("out.gguf");
            for (info, data) in &source.tensors {
                let (found, packed) = file.tensor(&info.name).unwrap();
                assert_eq!(found.shape, info.shape, "{from} {to}");
                if !matches!(&*info.name, "blk.0.attn_q.weight" | "blk.0.ffn_up_exps.weight") {
                    assert_eq!((found.ty, packed), (info.ty, &data[..]), "{from} {to} {}", info.name);
                    continue;
                }
                assert_eq!(found.ty, to);
                let codes = codes(info.rows() as usize);
                let mut w = vec![0.0; codes.len()];
                to.dequantize_row(packed, &mut w).unwrap();
                for (index, (&w, &code)) in w.iter().zip(&codes).enumerate() {
                    assert_eq!(
                        w,
                        f32::from(code) * scale(index / 256),
                        "{from} {to} {} {index}",
                        info.name
                    );
                }
                if to != TQ1_0 {
                    // Where blocks are larger than a source's, this is its bytes as the layout has them.
                    let expected = stored(to, &codes);
                    let minus_zero = matches!(to, F32 | F16 | BF16);
                    assert!(minus_zero || packed == expected, "{from} {to} {}", info.name);
                }
                if let Some((ty, theirs)) = second_reader(&path, &info.name) {
                    assert_eq!((ty, &theirs[..]), (to.id(), packed), "{from} {to}");
                    read_by_the_other += 1;
                }
            }
            assert_eq!(report["nmse"], 0.0);
            assert_eq!(file.get("qwen3moe.context_length"), Some(&Value::U32(77)));
            assert_eq!(file.get("general.file_type"), to.file_type().map(Value::U32).as_ref());
        }
    }
    assert!(read_by_the_other > 100, "{read_by_the_other}");
}

#[test]
fn the_rule_chooses_the_type_and_packing_again_changes_nothing() {
    let bench = Bench::new();
    let (input, again) = (bench.path("in.gguf"), bench.path("again.gguf"));
    for from in [BlockType::F16, BlockType::TQ2_0, BlockType::Q2_0, BlockType::PQ2_0] {
        std::fs::write(&input, source(from).bytes()).unwrap();
        for (options, to) in [
            ("", BlockType::Q2_K),
            ("--for cpu", BlockType::TQ2_0),
            ("--for gpu --exact", BlockType::Q2_0),
            ("--for ollama", BlockType::Q2_K),
        ] {
            let (first, _) = bench.pack(&input, options);
            std::fs::write(&again, &first).unwrap();
            let (second, _) = bench.pack(&again, options);
            let (first, second) = (File::parse(&first).unwrap(), File::parse(&second).unwrap());
            assert_eq!(
                first.tensor("blk.0.attn_q.weight").unwrap().0.ty,
                to,
                "{from} {options}"
            );
            for info in first.tensors() {
                assert_eq!(first.tensor(&info.name), second.tensor(&info.name), "{from} {options}");
            }
        }
    }
}

/// Id 42 with blocks of 128 weights, as PrismML's first builds wrote them.
#[test]
fn legacy_blocks_become_types_that_llama_cpp_reads() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    let mut legacy = source(BlockType::PQ2_0).bytes();
    let start = File::parse(&legacy).unwrap().data_start() as usize;
    let ids: Vec<_> = (0..start - 4)
        .filter(|&at| legacy[at..at + 4] == 142u32.to_le_bytes())
        .collect();
    assert_eq!(ids.len(), 2);
    ids.iter()
        .for_each(|&at| legacy[at..at + 4].copy_from_slice(&42u32.to_le_bytes()));
    assert!(File::parse(&legacy).unwrap().legacy_q2_0());
    std::fs::write(&input, &legacy).unwrap();
    let (bytes, _) = bench.pack(&input, "--exact --for gpu");
    let file = File::parse(&bytes).unwrap();
    assert!(!file.legacy_q2_0());
    let (info, packed) = file.tensor("blk.0.ffn_up_exps.weight").unwrap();
    assert_eq!(
        (info.ty, packed),
        (BlockType::Q2_0, &stored(BlockType::Q2_0, &codes(6))[..])
    );
}

#[test]
fn tables_are_converted_or_packed_when_that_is_asked_for() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    let ty = |bytes: &[u8]| File::parse(bytes).unwrap().tensor("token_embd.weight").unwrap().0.ty;
    let mut file = source(BlockType::TQ2_0);
    file.tensors[0] = tensor(
        "token_embd.weight",
        BlockType::F16,
        &[COLUMNS as u64, 4],
        stored(BlockType::F16, &codes(4)),
    );
    std::fs::write(&input, file.bytes()).unwrap();
    assert_eq!(ty(&bench.pack(&input, "").0), BlockType::F16);
    assert_eq!(ty(&bench.pack(&input, "--embedding q8_0").0), BlockType::Q8_0);
    assert_eq!(
        ty(&bench.pack(&input, "--tensor-type token_embd=q4_0").0),
        BlockType::Q4_0
    );
    // What no engine would read does not stay.
    let table = stored(BlockType::PQ2_0, &codes(4));
    file.tensors[0] = tensor("token_embd.weight", BlockType::PQ2_0, &[COLUMNS as u64, 4], table);
    std::fs::write(&input, file.bytes()).unwrap();
    assert_eq!(ty(&bench.pack(&input, "").0), BlockType::Q2_K);
    assert_eq!(ty(&bench.pack(&input, "--embedding f16").0), BlockType::F16);
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let bench = Bench::new();
    let (input, output) = (bench.path("in.gguf"), bench.path("new.gguf"));
    let refused = |file: &Gguf, options: &[&str]| {
        std::fs::write(&input, file.bytes()).unwrap();
        let arguments = ["pack", input.to_str().unwrap(), output.to_str().unwrap()];
        bench.refused(&[&arguments[..], options].concat())
    };
    let sound = source(BlockType::Q2_0);
    let error = refused(&sound, &["--lambda", "1"]);
    assert!(error.contains("--lambda") && error.contains("leave it out"), "{error}");
    let error = refused(&sound, &["--for", "ollama", "--type", "tq2_0"]);
    assert!(error.contains("Ollama does not read"), "{error}");
    let mut embedding = source(BlockType::Q2_0);
    embedding.tensors[0] = tensor("token_embd.weight", BlockType::Q8_1, &[COLUMNS as u64, 1], vec![0; 576]);
    let error = refused(&embedding, &["--for", "ollama"]);
    assert!(error.contains("token_embd.weight"), "{error}");
    std::fs::write(&input, sound.bytes()).unwrap();
    let path = input.to_str().unwrap();
    let error = bench.refused(&["pack", path, path, "--force"]);
    assert!(error.contains("is one of the input's files"), "{error}");
    // One scale for 256 weights cannot be two.
    let mut two = source(BlockType::Q2_0);
    let bytes = &mut two.tensor("blk.0.attn_q.weight").1;
    bytes[..2].copy_from_slice(&f16::from_f32(0.7).to_le_bytes());
    let error = refused(&two, &["--exact", "--type", "tq2_0"]);
    assert!(
        error.contains("loses too much") && error.contains("blk.0.attn_q.weight"),
        "{error}"
    );
}
