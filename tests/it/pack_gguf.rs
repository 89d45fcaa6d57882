//! `tqconv pack IN.gguf`: codes and scales of every source type in every target type, through an independent reader.

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use half::{bf16, f16};

use crate::hostile::input::Gguf;
use crate::pack::Bench;

const COLUMNS: usize = 512;
const ROWS: usize = 6;
const MATRICES: [&str; 2] = ["blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"];

/// Numbers without a pattern, the same for the same seed.
pub fn random(seed: u64, count: usize) -> impl Iterator<Item = u64> {
    let mut state = 88172645463325252 ^ seed << 32;
    (0..count).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// Codes of a matrix: -1, 0 or 1, all kinds of neighbours.
pub fn codes(seed: u64, count: usize) -> Vec<i8> {
    random(seed, count).map(|number| (number % 3) as i8 - 1).collect()
}

/// The scale of 256 weights: numbers that f16 and bf16 have.
fn scale(group: usize) -> f32 {
    (1 + group % 5) as f32 / 64.0
}

/// The bytes of a matrix as its type's published layout has them, written here and not by the codecs.
pub fn stored(ty: BlockType, codes: &[i8]) -> Vec<u8> {
    let number = |(index, &code): (usize, &i8)| f32::from(code) * scale(index / 256);
    let numbers = codes.iter().enumerate().map(number);
    match ty {
        BlockType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
        BlockType::F16 => numbers.flat_map(|w| f16::from_f32(w).to_le_bytes()).collect(),
        BlockType::BF16 => numbers.flat_map(|w| bf16::from_f32(w).to_le_bytes()).collect(),
        ty => {
            let blocks = codes.chunks(ty.weights()).enumerate();
            blocks
                .flat_map(|(index, codes)| block(ty, codes, scale(index * ty.weights() / 256)))
                .collect()
        }
    }
}

/// A block: ggml-common.h of llama.cpp, for the last two types of PrismML's fork.
fn block(ty: BlockType, codes: &[i8], scale: f32) -> Vec<u8> {
    let d = f16::from_f32(scale).to_le_bytes().to_vec();
    // Four codes a byte, the first in the lowest bits: neighbours, or weights that are 32 apart.
    let two_bits = |length: usize, at: &dyn Fn(usize, usize) -> usize| -> Vec<u8> {
        let byte = |i| (0..4).fold(0, |byte, j| byte | ((codes[at(i, j)] + 1) as u8) << (2 * j));
        (0..length).map(byte).collect()
    };
    let spread = |i: usize, j: usize| i / 32 * 128 + j * 32 + i % 32;
    let next = |i: usize, j: usize| i * 4 + j;
    // Digit n of byte b is ((b * 3^n mod 256) * 3) >> 8: the byte is the fraction of five digits, rounded up. Digit n of
    // the i-th of `bytes` bytes is that of weight start + n * bytes + i.
    let five = |start: usize, bytes: usize, digits: usize| -> Vec<u8> {
        let digit = |i, n| {
            if n < digits {
                (codes[start + n * bytes + i] + 1) as u32
            } else {
                0
            }
        };
        let value = |i| (0..5).fold(0, |value, n| value * 3 + digit(i, n));
        (0..bytes).map(|i| (value(i) * 256).div_ceil(243) as u8).collect()
    };
    match ty {
        BlockType::TQ1_0 => [five(0, 32, 5), five(160, 16, 5), five(240, 4, 4), d],
        BlockType::TQ2_0 => [two_bits(64, &spread), d, vec![], vec![]],
        BlockType::Q2_0 | BlockType::PQ2_0 => [d, two_bits(ty.weights() / 4, &next), vec![], vec![]],
        BlockType::Q2_K => [vec![0x11; 16], two_bits(64, &spread), d.clone(), d],
        BlockType::Q4_0 => {
            let byte = |i| (codes[i] + 8) as u8 | ((codes[i + 16] + 8) as u8) << 4;
            [d, (0..16).map(byte).collect(), vec![], vec![]]
        }
        BlockType::Q8_0 => [d, codes.iter().map(|&code| code as u8).collect(), vec![], vec![]],
        BlockType::PTQ1_0 => [five(0, 16, 5), five(80, 8, 5), five(120, 2, 4), d],
        ty => panic!("{ty}"),
    }
    .concat()
}

pub fn tensor(name: &str, ty: BlockType, shape: &[u64], bytes: Vec<u8>) -> (TensorInfo, Vec<u8>) {
    let (name, shape) = (name.into(), shape.to_vec());
    (TensorInfo { name, ty, shape }, bytes)
}

/// A file with a matrix, one of three experts, a norm, and an embedding in Q6_K that no one looks into.
fn source(ty: BlockType) -> Gguf {
    let columns = COLUMNS as u64;
    let matrix = |name, shape: &[u64]| {
        let rows = shape[1..].iter().product::<u64>() as usize;
        tensor(name, ty, shape, stored(ty, &codes(0, rows * COLUMNS)))
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
            (0..840).map(|i| (i % 59) as u8).collect(),
        ),
        tensor(
            "blk.0.attn_norm.weight",
            BlockType::F32,
            &[columns],
            1.5f32.to_le_bytes().repeat(COLUMNS),
        ),
        matrix(MATRICES[0], &[columns, ROWS as u64]),
        matrix(MATRICES[1], &[columns, 2, 3]),
    ];
    file
}

/// What an independent reader finds of a tensor: its type, and its bytes, of which it does not know the length for every
/// type; None where it does not know the type.
fn second_reader(path: &std::path::Path, name: &str, length: usize) -> Option<(u32, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let mut container = gguf_rs::get_gguf_container(path.to_str().unwrap()).ok()?;
    let model = container.decode().ok()?;
    let found = model.tensors().iter().find(|tensor| tensor.name == name).unwrap();
    let start = (model.data_offset() + found.offset) as usize;
    Some((found.kind, bytes[start..][..length].to_vec()))
}

#[test]
fn every_source_type_becomes_every_target_type_with_its_codes_and_scales() {
    use BlockType::{BF16, F16, F32, PQ2_0, PTQ1_0, Q2_0, Q2_K, Q4_0, Q8_0, TQ1_0, TQ2_0};
    let bench = Bench::new();
    let (input, output) = (bench.path("in.gguf"), bench.path("out.gguf"));
    let mut read_by_the_other = 0;
    for from in [F32, F16, BF16, TQ1_0, TQ2_0, Q2_0, Q2_K, Q4_0, Q8_0, PQ2_0, PTQ1_0] {
        let source = source(from);
        std::fs::write(&input, source.bytes()).unwrap();
        for to in [TQ1_0, TQ2_0, Q2_0, Q2_K, Q4_0, Q8_0, F16, BF16, F32] {
            let (bytes, report) = bench.pack(&input, &format!("--exact --type {to}").to_lowercase());
            let file = File::parse(&bytes).unwrap();
            for (info, data) in &source.tensors {
                let (found, packed) = file.tensor(&info.name).unwrap();
                let (ty, expected) = match MATRICES.contains(&&*info.name) {
                    true => (to, stored(to, &codes(0, info.weights() as usize))),
                    false => (info.ty, data.clone()),
                };
                assert_eq!((found.ty, &found.shape), (ty, &info.shape), "{from} {to}");
                assert!(packed == expected, "{from} {to} {}", info.name);
                if let Some(theirs) = second_reader(&output, &info.name, packed.len()) {
                    assert!(theirs == (ty.id(), expected), "{from} {to} {}", info.name);
                    read_by_the_other += 1;
                }
            }
            assert_eq!(report["nmse"], 0.0);
            assert_eq!(file.get("qwen3moe.context_length"), Some(&Value::U32(77)));
            assert_eq!(file.get("general.file_type"), to.file_type().map(Value::U32).as_ref());
        }
    }
    assert!(read_by_the_other > 300, "{read_by_the_other}");
}

/// Pack what `bench` has as in.gguf, then what came of it: both files.
pub fn packed_twice(bench: &Bench, input: &std::path::Path, options: &str) -> [Vec<u8>; 2] {
    let again = bench.path("again.gguf");
    let (first, _) = bench.pack(input, options);
    std::fs::write(&again, &first).unwrap();
    let (second, _) = bench.pack(&again, options);
    [first, second]
}

pub fn assert_same_tensors([first, second]: &[Vec<u8>; 2], what: &str) {
    let (first, second) = (File::parse(first).unwrap(), File::parse(second).unwrap());
    assert_eq!(first.tensors(), second.tensors(), "{what}");
    for info in first.tensors() {
        assert!(
            first.tensor(&info.name) == second.tensor(&info.name),
            "{what}: {}",
            info.name
        );
    }
}

#[test]
fn the_rule_chooses_the_type_and_packing_again_changes_nothing() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    for from in [BlockType::F16, BlockType::TQ2_0, BlockType::Q2_0, BlockType::PQ2_0] {
        std::fs::write(&input, source(from).bytes()).unwrap();
        for (options, to) in [
            ("", BlockType::Q2_K),
            ("--for cpu", BlockType::TQ2_0),
            ("--for gpu --exact", BlockType::Q2_0),
            ("--for ollama --embedding q8_0", BlockType::Q2_K),
        ] {
            let files = packed_twice(&bench, &input, options);
            let first = File::parse(&files[0]).unwrap();
            assert_eq!(first.tensor(MATRICES[0]).unwrap().0.ty, to, "{from} {options}");
            assert_same_tensors(&files, &format!("{from} {options}"));
        }
    }
}

#[test]
fn packing_a_packed_checkpoint_again_changes_nothing() {
    let bench = Bench::new();
    let unchanged = |checkpoint: &str, options: &str| {
        let files = packed_twice(&bench, &crate::data::fixture(checkpoint), options);
        assert_same_tensors(&files, &format!("{checkpoint} {options}"));
    };
    for checkpoint in [
        "corners/group128",
        "corners/across-rows",
        "corners/channel-f32-llama3-untied",
        "kjv",
    ] {
        unchanged(checkpoint, "");
        unchanged(checkpoint, "--exact");
        unchanged(checkpoint, "--for cpu --max-nmse 2.3e-3");
        unchanged(checkpoint, "--for gpu");
        unchanged(checkpoint, "--type f16 --max-nmse 1 --embedding q8_0");
    }
    unchanged("kjv", "--type tq2_0 --max-nmse 1");
    unchanged("kjv", "--embedding q4_k --tensor-type ffn_down=q4_0");
}

/// Every second block of 256 weights has two scales that Q2_K makes one: after that TQ2_0 loses less than before.
#[test]
fn what_was_packed_with_a_loss_does_not_lose_once_more() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    let scale = |group: usize| [1.0, 0.97, 1.0, 14.0 / 15.0][group % 4];
    let number = |(index, &code): (usize, &i8)| f16::from_f32(f32::from(code) * scale(index / 128)).to_le_bytes();
    let mut file = source(BlockType::F16);
    for name in MATRICES {
        let (_, bytes) = file.tensor(name);
        *bytes = codes(0, ROWS * COLUMNS).iter().enumerate().flat_map(number).collect();
    }
    std::fs::write(&input, file.bytes()).unwrap();
    let options = "--for cpu --max-nmse 6.5e-4";
    let files = packed_twice(&bench, &input, options);
    let [first, second] = files.each_ref().map(|bytes| File::parse(bytes).unwrap());
    assert_eq!(first.tensor(MATRICES[0]).unwrap().0.ty, BlockType::Q2_K);
    assert_same_tensors(&files, options);
    // TQ2_0 by itself would be within the limit, and that something was lost is not forgotten.
    let again = bench.path("again.gguf");
    bench.pack(&again, "--type tq2_0 --max-nmse 6.5e-4");
    assert_eq!(second.get("tqconv.weight_nmse"), Some(&Value::F64(0.0)));
    assert_eq!(second.get("tqconv.source.weight_nmse"), first.get("tqconv.weight_nmse"));
    std::fs::write(&again, &files[1]).unwrap();
    assert_same_tensors(&[files[1].clone(), bench.pack(&again, options).0], "a third time");
}

#[test]
fn a_split_model_is_packed_as_a_whole() {
    let bench = Bench::new();
    let (input, whole) = (bench.path("in.gguf"), bench.path("whole.gguf"));
    std::fs::write(&input, source(BlockType::TQ2_0).bytes()).unwrap();
    let (expected, _) = bench.pack(&input, "--for gpu");
    let parts = tqconv::pack::paths(&whole, 3);
    let arguments = [
        "pack",
        input.to_str().unwrap(),
        whole.to_str().unwrap(),
        "--for",
        "cpu",
        "--split-max-size",
        "3000",
    ];
    assert!(bench.run(&arguments).status.success());
    assert!(parts.iter().all(|part| part.exists()));
    let (found, _) = bench.pack(&parts[0], "--for gpu");
    assert!(found == expected);
}

/// Rows that the sample did not have may share scales over fewer weights than those that it had.
#[test]
fn runs_may_be_shorter_where_nobody_looked() {
    let bench = Bench::new();
    let input = bench.path("in.gguf");
    let rows = 128 * 66; // of which every second 128 are looked at
    let mut numbers: Vec<f32> = codes(0, rows * COLUMNS).into_iter().map(f32::from).collect();
    numbers[COLUMNS * 200..][32..64].iter_mut().for_each(|w| *w *= 0.5);
    let mut file = source(BlockType::F16);
    let bytes: Vec<u8> = numbers.iter().flat_map(|&w| f16::from_f32(w).to_le_bytes()).collect();
    let matrix = tensor(
        MATRICES[0],
        BlockType::F16,
        &[COLUMNS as u64, rows as u64],
        bytes.clone(),
    );
    file.tensors = vec![matrix];
    std::fs::write(&input, file.bytes()).unwrap();
    let (packed, _) = bench.pack(&input, "--exact --type q4_0");
    let file = File::parse(&packed).unwrap();
    let (_, packed) = file.tensor(MATRICES[0]).unwrap();
    let mut found = vec![0.0; numbers.len()];
    BlockType::Q4_0.dequantize_row(packed, &mut found).unwrap();
    assert!(found == numbers);
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
        (BlockType::Q2_0, &stored(BlockType::Q2_0, &codes(0, ROWS * COLUMNS))[..])
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
        stored(BlockType::F16, &codes(0, 4 * COLUMNS)),
    );
    std::fs::write(&input, file.bytes()).unwrap();
    assert_eq!(ty(&bench.pack(&input, "").0), BlockType::F16);
    assert_eq!(ty(&bench.pack(&input, "--embedding q8_0").0), BlockType::Q8_0);
    assert_eq!(
        ty(&bench.pack(&input, "--tensor-type token_embd=q4_0").0),
        BlockType::Q4_0
    );
    // What no engine would read does not stay.
    let table = stored(BlockType::PQ2_0, &codes(0, 4 * COLUMNS));
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
    let error = refused(&sound, &["--drop-biases"]);
    assert!(error.contains("leave out --drop-biases"), "{error}");
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
