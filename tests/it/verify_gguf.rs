//! `tqconv verify --against IN.gguf`: it agrees with what `pack IN.gguf` writes, and names what was changed.

use formats::gguf::Value;

use crate::data;
use crate::pack::Bench;
use crate::verify::{Packed, Verdict};

/// kjv in Q2_K, packed again.
fn repacked(options: &str) -> Packed {
    let bench = Bench::new();
    let source = bench.path("source.gguf");
    let (bytes, _) = bench.pack(&data::fixture("kjv"), "--type q2_k");
    std::fs::write(&source, bytes).unwrap();
    let (bytes, _) = bench.pack(&source, options);
    Packed {
        bench,
        checkpoint: source,
        bytes,
    }
}

fn verify(packed: &Packed) -> Verdict {
    packed.verify("--levels 1-2")
}

#[test]
fn agrees_with_what_pack_writes_from_a_gguf_file() {
    for options in ["--type q4_0", "--type q2_0 --embedding q8_0", "--for ollama"] {
        let packed = repacked(options);
        let verdict = packed.verify("--tokens 64");
        verdict.assert_agrees();
        assert_eq!(verdict.found(2, "weight NMSE"), 0.0, "{options}");
        assert_eq!(verdict.report["text"]["oracle"], true, "{options}");
    }
}

#[test]
fn a_changed_code_is_not_the_source_s() {
    let mut packed = repacked("--type q4_0");
    // Codes follow the scale; 7, 8 and 9 are -1, 0 and 1.
    let bytes = packed.tensor("blk.1.ffn_up.weight");
    bytes[2] = if bytes[2] & 15 == 8 {
        bytes[2] + 1
    } else {
        (bytes[2] & 0xf0) | 8
    };
    let nmse = "weight NMSE (blk.1.ffn_up)";
    let place = "tensor 'blk.1.ffn_up.weight' row 0 column 0: code";
    verify(&packed).assert_caught(2, "codes", place, &[nmse]);
}

#[test]
fn a_scale_off_by_one_step_is_not_the_source_s() {
    let mut packed = repacked("--type q4_0");
    packed.tensor("blk.1.ffn_up.weight")[0] ^= 1;
    let place = "tensor 'blk.1.ffn_up.weight' row 0 columns 0 to 31: scale";
    verify(&packed).assert_caught(2, "scales", place, &[]);
}

#[test]
fn a_changed_copy_is_caught() {
    let mut packed = repacked("--type q4_0");
    packed.tensor("blk.2.attn_norm.weight")[1] ^= 1;
    let place = "tensor 'blk.2.attn_norm.weight' has other bytes";
    verify(&packed).assert_caught(2, "copied tensors", place, &[]);
}

#[test]
fn a_missing_and_a_new_tensor_are_caught() {
    let mut packed = repacked("--type q4_0");
    packed.rebuild(|_, tensors| {
        let bias = tensors.iter_mut().find(|(info, _)| info.name == "blk.0.attn_q.bias");
        bias.unwrap().0.name = "blk.0.attn_q.bios".into();
    });
    let verdict = packed.verify("--levels 2");
    verdict.assert_caught(2, "copied tensors", "tensor 'blk.0.attn_q.bias' is missing", &[]);
    verdict.assert_caught(2, "copied tensors", "'blk.0.attn_q.bios' is in this file alone", &[]);
}

#[test]
fn a_changed_key_is_caught() {
    let mut packed = repacked("--type q4_0");
    packed.set_key("llama.context_length", Value::U32(77));
    let verdict = packed.verify("--levels 2");
    verdict.assert_caught(2, "copied keys", "key 'llama.context_length' is 77", &[]);
}

#[test]
fn options_of_a_checkpoint_mean_nothing_for_a_gguf_file() {
    let packed = repacked("--type q4_0");
    let (file, against) = (packed.bench.path("out.gguf"), packed.checkpoint.to_str().unwrap());
    let error = packed.bench.refused(&[
        "verify",
        file.to_str().unwrap(),
        "--against",
        against,
        "--lambda",
        "0.5",
    ]);
    assert!(error.contains("leave it out"), "{error}");
}
