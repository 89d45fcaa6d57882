//! `tqconv verify`: it agrees with what pack writes, and a fault planted in the file is caught by the level that owns it,
//! by name.

use std::path::PathBuf;

use formats::gguf::{File, Layout, TensorInfo, Value};
use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

/// A packed checkpoint to plant faults in.
pub struct Packed {
    pub bench: Bench,
    /// What it was packed from.
    pub checkpoint: PathBuf,
    pub bytes: Vec<u8>,
}

/// What `verify` said.
pub struct Verdict {
    code: i32,
    pub report: Json,
}

impl Packed {
    fn new(fixture: &str, options: &str) -> Self {
        Self::of(data::fixture(fixture), options)
    }

    fn of(checkpoint: PathBuf, options: &str) -> Self {
        let bench = Bench::new();
        let (bytes, _) = bench.pack(&checkpoint, options);
        Self {
            bench,
            checkpoint,
            bytes,
        }
    }

    /// `verify --against` the checkpoint.
    pub fn verify(&self, options: &str) -> Verdict {
        let against = self.checkpoint.to_str().unwrap().to_owned();
        self.verify_with(&format!("--against {against} {options}"))
    }

    fn verify_with(&self, options: &str) -> Verdict {
        let file = self.bench.path("planted.gguf");
        std::fs::write(&file, &self.bytes).unwrap();
        // One thread: engines that wait for each other are slow where the tests themselves fill the processor.
        let mut arguments = vec!["verify", file.to_str().unwrap(), "--json", "--threads", "1"];
        arguments.extend(options.split_whitespace());
        let ran = self.bench.run(&arguments);
        let code = ran.status.code().unwrap();
        assert!(code < 2, "{options}: {}", String::from_utf8_lossy(&ran.stderr));
        Verdict {
            code,
            report: serde_json::from_slice(&ran.stdout).unwrap(),
        }
    }

    fn range(&self, tensor: &str) -> std::ops::Range<usize> {
        let file = File::parse(&self.bytes).unwrap();
        let bytes = file.tensor(tensor).unwrap().1;
        let start = bytes.as_ptr() as usize - self.bytes.as_ptr() as usize;
        start..start + bytes.len()
    }

    /// The bytes of a tensor in the file.
    pub fn tensor(&mut self, name: &str) -> &mut [u8] {
        let range = self.range(name);
        &mut self.bytes[range]
    }

    /// Write the file anew with other keys and tensors.
    pub fn rebuild(&mut self, change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<(TensorInfo, Vec<u8>)>)) {
        let file = File::parse(&self.bytes).unwrap();
        let mut keys = file.metadata().to_vec();
        let tensor = |info: &TensorInfo| (info.clone(), file.tensor(&info.name).unwrap().1.to_vec());
        let mut tensors: Vec<_> = file.tensors().iter().map(tensor).collect();
        change(&mut keys, &mut tensors);
        let infos: Vec<_> = tensors.iter().map(|(info, _)| info.clone()).collect();
        let layout = Layout::new(&keys, &infos).unwrap();
        let mut bytes = layout.header;
        bytes.resize(layout.size as usize, 0);
        for ((_, data), offset) in tensors.iter().zip(layout.offsets) {
            bytes[offset as usize..][..data.len()].copy_from_slice(data);
        }
        self.bytes = bytes;
    }

    fn key(&self, key: &str) -> Value {
        let file = File::parse(&self.bytes).unwrap();
        file.get(key).unwrap().clone()
    }

    pub fn set_key(&mut self, key: &str, value: Value) {
        self.rebuild(|keys, _| {
            let entry = keys.iter_mut().find(|(name, _)| name == key).unwrap();
            assert_ne!(entry.1, value, "the fault changes nothing");
            entry.1 = value;
        });
    }
}

impl Verdict {
    /// Every failed check: level, name, details in one text.
    fn failed(&self) -> Vec<(u64, String, String)> {
        let levels = self.report["levels"].as_array().unwrap();
        let failed = levels.iter().flat_map(|level| {
            let checks = level["checks"].as_array().unwrap();
            let failed = checks.iter().filter(|check| check["pass"] == false);
            failed.map(|check| {
                let details = check["details"].as_array().unwrap();
                let details: Vec<_> = details.iter().map(|d| d.as_str().unwrap()).collect();
                (
                    level["number"].as_u64().unwrap(),
                    check["name"].as_str().unwrap().to_owned(),
                    details.join("\n"),
                )
            })
        });
        failed.collect()
    }

    /// Every check passed, some of them against the checkpoint.
    #[track_caller]
    pub fn assert_agrees(&self) {
        self.assert_passed("agrees");
    }

    /// Every check passed, and none of them knew the checkpoint.
    #[track_caller]
    fn assert_sound(&self) {
        self.assert_passed("sound");
    }

    #[track_caller]
    fn assert_passed(&self, verdict: &str) {
        assert_eq!(self.failed(), [], "{:#}", self.report["levels"]);
        assert_eq!(self.code, 0);
        assert_eq!(self.report["verdict"], verdict);
    }

    /// The check `name` of `level` failed and says `detail`; of the other checks only `also` failed.
    #[track_caller]
    pub fn assert_caught(&self, level: u64, name: &str, detail: &str, also: &[&str]) {
        let failed = self.failed();
        let caught = failed.iter().find(|(l, n, _)| *l == level && n == name);
        let (_, _, details) = caught.unwrap_or_else(|| panic!("not caught: {failed:?}"));
        assert!(details.contains(detail), "{details}");
        for (_, other, details) in &failed {
            let expected = other == name || also.contains(&other.as_str());
            assert!(expected, "{other} failed, too: {details}");
        }
        assert_eq!(self.code, 1);
        assert_eq!(self.report["verdict"], "disagrees");
    }

    fn check(&self, level: u64, name: &str) -> &Json {
        let levels = self.report["levels"].as_array().unwrap();
        let level = levels.iter().find(|l| l["number"] == level).unwrap();
        let mut checks = level["checks"].as_array().unwrap().iter();
        checks.find(|check| check["name"] == name).unwrap()
    }

    pub fn found(&self, level: u64, name: &str) -> f64 {
        self.check(level, name)["found"].as_f64().unwrap()
    }

    /// Mean KLD and top-1 agreement of an engine with the oracle.
    fn agreement(&self, engine: &str) -> (f64, f64) {
        assert_eq!(self.report["text"]["oracle"], true);
        let tested = self.report["text"]["tested"].as_array().unwrap();
        let named = |facts: &&Json| facts["engine"]["name"].as_str().unwrap().starts_with(engine);
        let facts = tested.iter().find(named).unwrap();
        let kld = facts["kld_nats"].as_array().unwrap().iter();
        let kld: Vec<f64> = kld.map(|kld| kld.as_f64().unwrap()).collect();
        (
            kld.iter().sum::<f64>() / kld.len() as f64,
            facts["top1"].as_f64().unwrap(),
        )
    }

    fn status(&self, level: u64) -> &str {
        let levels = self.report["levels"].as_array().unwrap();
        let level = levels.iter().find(|l| l["number"] == level).unwrap();
        level["status"].as_str().unwrap()
    }
}

/// Weights of kjv lie in rows of 256 or 768; a Q4_0 block is 18 bytes for 32 of them, the scale first.
const Q4_0_ROW: usize = 256 / 32 * 18;
/// What notices a file that computes something else.
const FILE_LOGITS: [&str; 2] = ["file against oracle: worst KLD", "file against oracle: logit NMSE"];
/// What notices a changed weight beside the check that names it.
const LOSS: &str = "recorded NMSE, off by";
/// What notices another tokenizer beside the check that names the difference.
const TEXTS: &str = "texts split as tokenizer.json splits them";

#[test]
fn agrees_with_what_pack_writes() {
    for options in [
        "",
        "--exact",
        "--type q2_0 --embedding q8_0",
        "--type f32",
        "--type tq2_0 --max-nmse 1",
    ] {
        let packed = Packed::new("kjv", options);
        let limits = if options.contains("tq2_0") { "--max-nmse 1" } else { "" };
        let verdict = packed.verify(limits);
        verdict.assert_agrees();
        for level in 1..=4 {
            assert_eq!(verdict.status(level), "passed", "{options}: level {level}");
        }
    }
}

#[test]
fn agrees_on_every_corner() {
    for corner in std::fs::read_dir(data::fixture("corners")).unwrap() {
        let corner = format!("corners/{}", corner.unwrap().file_name().to_str().unwrap());
        for options in ["", "--type q4_0 --max-nmse 1", "--type f16 --max-nmse 1", "--type f32"] {
            let packed = Packed::new(&corner, options);
            let verdict = packed.verify("--levels 1,2,3,4 --tokens 64 --max-nmse 1");
            println!("{corner} {options}");
            verdict.assert_agrees();
        }
    }
}

#[test]
fn logits_are_within_what_8_bit_activations_cost() {
    // Limits of the project: 5e-4 nats and 98.5 % for the types that hold the weights exactly, 1.2e-3 nats for Q2_K.
    for (options, kld, top1) in [
        ("--type q2_0", 5e-4, 0.985),
        ("--exact", 5e-4, 0.985),
        ("", 1.2e-3, 0.96),
    ] {
        let verdict = Packed::new("kjv", options).verify("--levels 4");
        for engine in engines() {
            let (found, same) = verdict.agreement(engine);
            println!("{options}: {engine}: mean KLD {found:.2e}, top-1 {same:.4}");
            assert!(found < kld && same >= top1);
        }
    }
}

fn engines() -> &'static [&'static str] {
    if cfg!(feature = "llama") {
        &["native", "llama.cpp"]
    } else {
        &["native"]
    }
}

/// One link: what it costs, and how activations are rounded at its end.
fn link<'a>(verdict: &'a Verdict, cause: &str, to: &str, activations: Option<&str>) -> (f64, f64, &'a Json) {
    let links = verdict.report["text"]["links"].as_array().unwrap();
    let is = |link: &&Json| {
        link["link"] == cause && link["to"] == to && link["activations"] == activations.map_or(Json::Null, Json::from)
    };
    let found: Vec<_> = links.iter().filter(is).collect();
    assert_eq!(found.len(), 1, "{cause} {to} {activations:?}: {links:?}");
    let number = |key: &str| found[0][key].as_f64().unwrap();
    assert!(number("perplexity") > 1.0 && number("top1") <= 1.0);
    (number("mean_kld_nats"), number("perplexity"), found[0])
}

/// What is exact costs nothing, more scales for activations cost less, and each engine is compared with what rounds
/// activations as it does itself.
#[test]
fn each_link_has_its_cost() {
    let exact = Packed::new("kjv", "--exact").verify("--levels 4");
    exact.assert_agrees();
    let (kld, perplexity, _) = link(&exact, "weights", "file", None);
    assert!(kld < 1e-9, "{kld}");
    assert!((perplexity / exact.report["text"]["reference"]["perplexity"].as_f64().unwrap() - 1.0).abs() < 1e-6);

    let packed = Packed::new("kjv", "");
    let verdict = packed.verify("--levels 4 --activations per-32");
    verdict.assert_agrees();
    let (weights, ..) = link(&verdict, "weights", "file", None);
    assert_eq!(weights, verdict.found(4, "file against oracle: mean KLD"));
    let (per_32, ..) = link(&verdict, "activations", "rounded", Some("per-32"));
    link(&verdict, "engine", "native", Some("per-32"));
    let native = verdict.found(4, "native against file: mean KLD");
    let tested = verdict.report["text"]["tested"].as_array().unwrap();
    let name = tested[1]["engine"]["kernel"].as_str().unwrap();
    assert!(name.contains("activations per 32"), "{name}");

    let verdict = packed.verify("--levels 4");
    let (per_256, ..) = link(&verdict, "activations", "rounded", Some("llama.cpp"));
    println!("weights {weights:.2e}, per 32 {per_32:.2e}, per 256 {per_256:.2e}, native {native:.2e}");
    assert!(
        per_32 < 0.5 * per_256 && native < 0.5 * per_256,
        "{per_32} {native} {per_256}"
    );
}

/// Keys and values of fewer bits cost what the reference says that they cost: both round the same numbers in the same
/// groups, and where weights are F32, nothing else.
#[test]
fn a_smaller_cache_costs_what_rounding_keys_and_values_costs() {
    let packed = Packed::new("kjv", "--type f32 --exact --embedding f32");
    let costs = |types: [&str; 2]| {
        let [k, v] = types;
        let verdict = packed.verify(&format!("--levels 4 --cache-type-k {k} --cache-type-v {v}"));
        let links = verdict.report["text"]["links"].as_array().unwrap();
        let of = |cause: &str, to: &str| {
            let link = links
                .iter()
                .find(|link| link["link"] == cause && link["to"] == to)
                .unwrap();
            assert_eq!([&link["cache_type_k"], &link["cache_type_v"]], types, "{link}");
            link["mean_kld_nats"].as_f64().unwrap()
        };
        let tested = verdict.report["text"]["tested"].as_array().unwrap();
        let name = &tested
            .iter()
            .find(|tested| tested["engine"]["name"] == "native")
            .unwrap()["engine"];
        assert_eq!([&name["cache_type_k"], &name["cache_type_v"]], types, "{name}");
        let (rounded, engine) = (of("activations", "rounded"), of("engine", "native"));
        println!("{types:?}: rounded {rounded:.2e}, the engine from that {engine:.2e}");
        [rounded, engine]
    };
    assert_eq!(costs(["f32", "f32"])[0], 0.0);
    let all = [
        ["f16", "f16"],
        ["bf16", "bf16"],
        ["bf16", "f32"],
        ["f32", "bf16"],
        ["q8_0", "f32"],
        ["f32", "q8_0"],
        ["q8_0", "q8_0"],
    ];
    for types in all {
        let [rounded, engine] = costs(types);
        assert!(
            rounded > 1e-8 && engine < 0.1 * rounded,
            "{types:?}: {rounded} {engine}"
        );
    }
}

/// llama.cpp rounds as it always does, and is compared with that.
#[test]
#[cfg(feature = "llama")]
fn finer_activations_are_ours_and_llama_cpp_keeps_its_own() {
    let verdict = Packed::new("kjv", "").verify("--levels 4 --activations per-32");
    verdict.assert_agrees();
    let [ours, theirs] = ["per-32", "llama.cpp"].map(|way| link(&verdict, "activations", "rounded", Some(way)).0);
    link(&verdict, "engine", "llama.cpp", Some("llama.cpp"));
    let engine = verdict.found(4, "llama.cpp against file: mean KLD");
    println!("ours {ours:.2e}, theirs {theirs:.2e}, llama.cpp {engine:.2e}");
    assert!(ours < 0.5 * theirs && engine > 0.7 * theirs && engine < 1.5 * theirs);
}

#[test]
fn perplexities_are_those_of_the_reference() {
    let Some(text) = data::find("kjv-tequila/valid.txt") else {
        return;
    };
    // golden.md: PyTorch and llama.cpp, 40 windows of 256 tokens.
    for (options, expected) in [
        ("--type f32", 15.4047),
        ("--type q2_0", 15.4051),
        ("--exact", 15.4069),
        ("", 15.4177),
    ] {
        let packed = Packed::new("kjv", options);
        let text = text.to_str().unwrap();
        let verdict = packed.verify(&format!("--levels 4 --tokens 10240 --window 256 --text {text}"));
        let near = |engine: &Json, expected: f64| {
            let found = engine["perplexity"].as_f64().unwrap();
            println!("{options}: {}: perplexity {found:.4}", engine["engine"]["name"]);
            assert!((found / expected - 1.0).abs() < 1e-3, "{found}, expected {expected}");
        };
        let facts = &verdict.report["text"];
        near(&facts["reference"], 15.4047);
        for engine in facts["tested"].as_array().unwrap() {
            near(engine, expected);
        }
        let exact = !options.is_empty();
        for engine in engines() {
            let (kld, same) = verdict.agreement(engine);
            println!("{options}: {engine}: mean KLD {kld:.2e}, top-1 {same:.4}");
            assert!(kld < if exact { 5e-4 } else { 1.2e-3 });
            assert!(same >= 0.985 || !exact);
        }
    }
}

#[test]
fn a_flipped_code_is_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    // Row 5, column 40: the low nibble of the block's weights 0 to 15.
    let byte = &mut packed.tensor("blk.2.ffn_up.weight")[5 * Q4_0_ROW + 18 + 2 + 8];
    *byte = (*byte & 0xf0) | if *byte & 15 == 8 { 9 } else { 8 };
    let verdict = packed.verify("--levels 1,2");
    verdict.assert_caught(2, "codes", "tensor 'blk.2.ffn_up.weight' row 5 column 40", &[LOSS]);
    assert_eq!(verdict.found(2, "codes"), 1.0);
}

#[test]
fn a_scale_off_by_one_step_is_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.tensor("blk.1.attn_v.weight")[3 * Q4_0_ROW + 18] ^= 1;
    let place = "tensor 'blk.1.attn_v.weight' row 3 columns 32 to 63";
    packed.verify("--levels 1,2").assert_caught(2, "scales", place, &[LOSS]);
}

#[test]
fn a_merged_scale_off_by_one_step_is_caught() {
    let mut packed = Packed::new("kjv", "");
    // d and dmin of the third block of Q2_K, so that the block keeps its ternary form.
    let block = &mut packed.tensor("blk.1.ffn_down.weight")[2 * 84..][..84];
    let d = u16::from_le_bytes([block[80], block[81]]) + 1;
    block[80..82].copy_from_slice(&d.to_le_bytes());
    block[82..84].copy_from_slice(&d.to_le_bytes());
    let place = "tensor 'blk.1.ffn_down.weight' row 0 columns 512 to 767";
    packed
        .verify("--levels 1,2")
        .assert_caught(2, "merged scales", place, &[LOSS]);
}

#[test]
fn a_block_that_is_not_ternary_is_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.tensor("blk.1.ffn_gate.weight")[7 * 84 + 82] ^= 1;
    let place = "tensor 'blk.1.ffn_gate.weight' row 7";
    packed
        .verify("--levels 1,2")
        .assert_caught(2, "codes", place, &[LOSS, "weight NMSE (blk.1.ffn_gate)"]);
}

#[test]
fn one_changed_bias_is_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.tensor("blk.3.ffn_down.bias")[4 * 17] ^= 1;
    let place = "tensor 'blk.3.ffn_down.bias' row 17";
    packed.verify("--levels 1,2").assert_caught(2, "biases", place, &[]);
}

/// Rows of one head of q or k, back in the checkpoint's order: first the even ones, then the odd ones.
fn unpermute(bytes: &mut [u8], row_bytes: usize, head_dim: usize) {
    for head in bytes.chunks_exact_mut(head_dim * row_bytes) {
        let rows: Vec<_> = head.chunks_exact(row_bytes).map(<[u8]>::to_vec).collect();
        let plain = rows.iter().step_by(2).chain(rows.iter().skip(1).step_by(2));
        let plain: Vec<u8> = plain.flatten().copied().collect();
        head.copy_from_slice(&plain);
    }
}

#[test]
fn unpermuted_rows_are_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    unpermute(packed.tensor("blk.1.attn_q.weight"), Q4_0_ROW, 64);
    let place = "tensor 'blk.1.attn_q.weight' holds its rows in the checkpoint's order";
    let also = ["scales", "weight NMSE (blk.1.attn_q)", LOSS];
    packed.verify("--levels 1,2").assert_caught(2, "codes", place, &also);
}

#[test]
fn an_unpermuted_bias_is_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    unpermute(packed.tensor("blk.2.attn_k.bias"), 4, 64);
    let place = "tensor 'blk.2.attn_k.bias' holds its rows in the checkpoint's order";
    packed.verify("--levels 1,2").assert_caught(2, "biases", place, &[]);
}

#[test]
fn swapped_tensors_are_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    let gate = packed.tensor("blk.0.ffn_gate.weight").to_vec();
    let up = packed.tensor("blk.0.ffn_up.weight").to_vec();
    packed.tensor("blk.0.ffn_gate.weight").copy_from_slice(&up);
    packed.tensor("blk.0.ffn_up.weight").copy_from_slice(&gate);
    let verdict = packed.verify("--levels 1,2");
    let also = [
        "scales",
        "weight NMSE (blk.0.ffn_gate)",
        "weight NMSE (blk.0.ffn_up)",
        LOSS,
    ];
    for (tensor, holds) in [("ffn_gate", "up_proj"), ("ffn_up", "gate_proj")] {
        let place = format!("tensor 'blk.0.{tensor}.weight' holds model.layers.0.mlp.{holds}");
        verdict.assert_caught(2, "codes", &place, &also);
    }
    // What level 2 finds wrong is no excuse for the logits, whatever is allowed.
    for limit in ["", "--max-nmse 1"] {
        let verdict = packed.verify(&format!("--levels 4 --tokens 128 {limit}"));
        verdict.assert_caught(4, "file against oracle: mean KLD", "", &FILE_LOGITS);
    }
}

#[test]
fn a_missing_tensor_is_caught() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.rebuild(|_, tensors| tensors.retain(|(info, _)| info.name != "blk.3.ffn_up.weight"));
    let verdict = packed.verify("");
    let absent = "tensor 'blk.3.ffn_up.weight' is absent";
    let lost = ["codes", "weight NMSE (blk.3.ffn_up)", LOSS];
    verdict.assert_caught(1, "the architecture's tensors", absent, &lost);
    let missing = "tensor 'blk.3.ffn_up.weight' is missing";
    let also = ["the architecture's tensors", lost[1], LOSS];
    verdict.assert_caught(2, "codes", missing, &also);
    // No engine is given such a file, and that is not taken for agreement.
    assert_eq!([3, 4].map(|level| verdict.status(level)), ["not_checked"; 2]);
}

#[test]
fn left_out_biases_are_caught_although_they_are_small() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.rebuild(|_, tensors| tensors.retain(|(info, _)| !info.name.ends_with(".bias")));
    let verdict = packed.verify("");
    // llama.cpp loads the file, and the logits are hardly off: only the file in full precision shows it.
    let missing = "tensor 'blk.0.attn_q.bias' is missing";
    let also = [FILE_LOGITS[0], FILE_LOGITS[1], "file against oracle: mean KLD"];
    verdict.assert_caught(2, "biases", missing, &also);
    verdict.assert_caught(
        4,
        "file against oracle: mean KLD",
        "",
        &[&also[..2], &["biases"]].concat(),
    );
    assert_eq!(verdict.found(2, "biases"), 10240.0);
}

#[test]
fn wrong_token_ids_are_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.set_key("tokenizer.ggml.eos_token_id", Value::U32(7));
    let place = "key 'tokenizer.ggml.eos_token_id' is 7 (u32), expected 1 (u32)";
    packed
        .verify("--levels 1,2")
        .assert_caught(2, "tokenizer keys", place, &[]);
}

#[test]
fn swapped_tokens_are_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.rebuild(|keys, _| {
        let tokens = keys.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens");
        let Some((_, Value::Array(formats::gguf::Array::String(tokens)))) = tokens else {
            panic!("no tokens")
        };
        tokens.swap(300, 301);
    });
    let verdict = packed.verify("--levels 1,2");
    verdict.assert_caught(2, "tokens", "token 300 is", &["tokenizer keys", TEXTS]);
}

#[test]
fn a_lost_merge_is_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.rebuild(|keys, _| {
        let merges = keys.iter_mut().find(|(key, _)| key == "tokenizer.ggml.merges");
        let Some((_, Value::Array(formats::gguf::Array::String(merges)))) = merges else {
            panic!("no merges")
        };
        merges.pop();
    });
    let verdict = packed.verify("--levels 1,2");
    verdict.assert_caught(2, "merges", "merge 1789 is None", &["tokenizer keys", TEXTS]);
}

#[test]
fn a_wrong_rope_factor_is_caught() {
    let mut packed = Packed::new("corners/channel-f32-llama3-untied", "");
    let factors = packed.tensor("rope_freqs.weight");
    let last = factors.last_chunk_mut::<4>().unwrap();
    *last = (f32::from_le_bytes(*last) * 1.001).to_le_bytes();
    let place = "tensor 'rope_freqs.weight' factor";
    packed
        .verify("--levels 1,2")
        .assert_caught(2, "rotary factors", place, &[]);
}

#[test]
fn wrong_keys_norms_and_tables_are_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.set_key("llama.rope.freq_base", Value::F32(10001.0));
    let place = "key 'llama.rope.freq_base' is 10001.0 (f32), expected 10000.0 (f32)";
    packed.verify("--levels 1,2").assert_caught(2, "model keys", place, &[]);

    let mut packed = Packed::new("kjv", "");
    packed.tensor("blk.1.ffn_norm.weight")[4 * 9 + 2] ^= 1;
    let place = "tensor 'blk.1.ffn_norm.weight' column 9";
    packed.verify("--levels 1,2").assert_caught(2, "norms", place, &[]);

    let mut packed = Packed::new("kjv", "");
    packed.tensor("token_embd.weight")[2 * (256 * 100 + 3)] ^= 1;
    let place = "tensor 'token_embd.weight' row 100 column 3";
    packed.verify("--levels 1,2").assert_caught(2, "embedding", place, &[]);

    let mut packed = Packed::new("kjv", "--embedding q8_0");
    packed.tensor("token_embd.weight")[..2].copy_from_slice(&half::f16::from_f32(9.0).to_le_bytes());
    packed
        .verify("--levels 1,2")
        .assert_caught(2, "embedding NMSE (Q8_0)", "", &[]);
}

#[test]
fn what_computes_something_else_is_caught_by_its_logits() {
    let mut packed = Packed::new("kjv", "");
    packed.set_key("llama.rope.freq_base", Value::F32(1e6));
    // The engines run the file right: the file is wrong.
    let verdict = packed.verify("--levels 4 --tokens 128");
    verdict.assert_caught(4, "file against oracle: mean KLD", "", &FILE_LOGITS);

    let mut packed = Packed::new("kjv", "--exact");
    unpermute(packed.tensor("blk.1.attn_q.weight"), Q4_0_ROW, 64);
    let verdict = packed.verify("--levels 4 --tokens 128");
    verdict.assert_caught(4, "file against oracle: mean KLD", "", &FILE_LOGITS);

    let Some(checkpoint) = data::find("smol8-tequila") else {
        return;
    };
    let mut packed = Packed::of(checkpoint, "");
    let base = packed.key("llama.rope.freq_base");
    packed.set_key("llama.rope.freq_base", Value::F32(base.as_f32().unwrap() / 2.0));
    let verdict = packed.verify("--levels 4 --tokens 128");
    verdict.assert_caught(4, "file against oracle: mean KLD", "", &FILE_LOGITS);
}

#[test]
fn a_trained_checkpoint_of_real_shapes_agrees() {
    let Some(checkpoint) = data::find("smol8-tequila") else {
        return;
    };
    // Its activations have outliers: rounded 256 at a time they cost a KLD of 3e-3, 32 at a time 8e-4.
    for options in ["", "--exact", "--exact --for gpu"] {
        Packed::of(checkpoint.clone(), options)
            .verify("--levels 1,2,3,4 --tokens 256")
            .assert_agrees();
    }
}

#[test]
fn few_predictions_are_no_reason_to_disagree() {
    let packed = Packed::new("kjv", "");
    for tokens in [1, 2, 3, 5, 8, 13, 21] {
        packed.verify(&format!("--levels 4 --tokens {tokens}")).assert_agrees();
    }
}

#[test]
fn a_limit_for_the_kld_is_the_user_s() {
    let packed = Packed::new("kjv", "");
    packed.verify("--levels 4 --tokens 128 --max-kld 1e-3").assert_agrees();
    let verdict = packed.verify("--levels 4 --tokens 128 --max-kld 1e-5");
    let names = engines().iter().map(|engine| format!("{engine}: mean KLD from oracle"));
    let names: Vec<_> = names.collect();
    let also: Vec<_> = names.iter().map(String::as_str).collect();
    verdict.assert_caught(4, &names[0], "", &also);
    let file = packed.bench.path("planted.gguf");
    for option in ["--max-kld", "--max-nmse"] {
        for value in ["nan", "-1", "x"] {
            let error = packed
                .bench
                .run(&["verify", file.to_str().unwrap(), &format!("{option}={value}")]);
            assert_eq!(error.status.code(), Some(2), "{option} {value}");
        }
    }
}

#[test]
fn a_truncated_file_is_caught() {
    let mut packed = Packed::new("kjv", "");
    packed.bytes.truncate(packed.bytes.len() - 100);
    let verdict = packed.verify("");
    verdict.assert_caught(1, "our reader", "it is truncated", &[]);
    for level in 2..=4 {
        assert_eq!(verdict.status(level), "not_checked");
    }
}

#[test]
fn a_nan_is_caught_before_any_engine_meets_it() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.tensor("blk.0.attn_v.weight")[..2].copy_from_slice(&half::f16::NAN.to_le_bytes());
    let place = "tensor 'blk.0.attn_v.weight' row 0 column 0 is NaN";
    packed
        .verify("--levels 1")
        .assert_caught(1, "finite numbers", place, &[]);
}

#[test]
fn broken_tokenizer_keys_are_caught_without_a_checkpoint() {
    let mut packed = Packed::new("kjv", "");
    packed.set_key("tokenizer.ggml.bos_token_id", Value::I32(0));
    let verdict = packed.verify_with("--levels 1");
    verdict.assert_caught(1, "tokenizer keys", "of type i32, expected u32", &[]);
    packed.set_key("tokenizer.ggml.bos_token_id", Value::U32(5000));
    let verdict = packed.verify_with("--levels 1");
    verdict.assert_caught(1, "tokenizer keys", "5000, the vocabulary has 2048 tokens", &[]);
}

#[test]
fn without_a_checkpoint_nothing_is_taken_for_proven() {
    let packed = Packed::new("kjv", "");
    // A checkpoint that no level looks at proves nothing either.
    packed.verify("--levels 1,3").assert_sound();
    packed.verify("--levels 4 --tokens 8").assert_agrees();
    let verdict = packed.verify_with("");
    verdict.assert_sound();
    assert_eq!(verdict.status(2), "not_checked");
    let level_4 = &verdict.report["levels"][3];
    assert_eq!(level_4["not_checked"][0]["what"], "the oracle");
    // The two engines witness each other, to within what 8-bit activations cost either of them.
    if cfg!(feature = "llama") {
        assert!(verdict.found(4, "llama.cpp against file: mean KLD") < 5e-4);
    }
}

#[test]
fn ollama_s_rules_are_checked_when_asked_for() {
    Packed::new("kjv", "--exact")
        .verify("--levels 1 --for ollama")
        .assert_sound();
    let packed = Packed::new("kjv", "--type q2_0");
    packed.verify("--levels 1").assert_sound();
    let verdict = packed.verify("--levels 1 --for ollama");
    verdict.assert_caught(1, "Ollama's types", "tensor 'blk.0.attn_q.weight' is Q2_0", &[]);
    let mut packed = Packed::new("kjv", "--exact");
    packed.set_key("llama.context_length", Value::U64(1024));
    let verdict = packed.verify_with("--levels 1 --for ollama");
    let place = "key 'llama.context_length' is of type u64, expected u32";
    verdict.assert_caught(1, "Ollama's keys", place, &["the architecture's tensors"]);
}

#[test]
fn what_cannot_be_verified_is_an_error() {
    let bench = Bench::new();
    let (bytes, _) = bench.pack(&data::fixture("kjv"), "");
    let file = bench.path("out.gguf");
    let file = file.to_str().unwrap();
    assert!(bench.refused(&["verify", "nowhere.gguf"]).contains("nowhere.gguf"));
    let checkpoint = data::fixture("kjv/model.safetensors");
    let error = bench.refused(&["verify", checkpoint.to_str().unwrap()]);
    assert!(error.contains("not a GGUF file"), "{error}");
    let error = bench.refused(&["verify", file, "--against", "nowhere"]);
    assert!(error.contains("nowhere"), "{error}");
    for levels in ["0", "6", "3-1", "1-", "one"] {
        let ran = bench.run(&["verify", file, "--levels", levels]);
        let error = String::from_utf8(ran.stderr).unwrap();
        assert!(error.contains("levels from 1 to 5"), "{error}");
        assert_eq!(ran.status.code(), Some(2));
    }
    assert!(!bytes.is_empty());
}

#[test]
fn the_fault_is_named_and_the_verdict_is_last() {
    let mut packed = Packed::new("kjv", "--exact");
    packed.tensor("blk.3.ffn_down.bias")[4 * 17] ^= 1;
    let file = packed.bench.path("planted.gguf");
    std::fs::write(&file, &packed.bytes).unwrap();
    let against = packed.checkpoint.to_str().unwrap();
    let arguments = [
        "verify",
        file.to_str().unwrap(),
        "--against",
        against,
        "--levels",
        "1-2",
    ];
    let ran = packed.bench.run(&arguments);
    let text = String::from_utf8(ran.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines.last().unwrap().ends_with("1 of 23 checks failed"), "{text}");
    let fault = lines.iter().position(|line| line.starts_with("  FAIL biases")).unwrap();
    assert!(lines[fault + 1].contains("'blk.3.ffn_down.bias' row 17"), "{text}");
    assert!(!text.contains('\u{1b}'), "colour where there is no terminal");
    assert!(text.contains("1 wrong of 10 240 biases"), "{text}");
}

#[test]
fn bench_refuses_what_it_would_not_measure() {
    let bench = Bench::new();
    let elsewhere = match cfg!(target_arch = "aarch64") {
        true => "--isa=amx",
        false => "--isa=neon-dotprod",
    };
    for (arguments, said) in [
        (&["--tokens=0"][..], "0 is not in 1..=65536"),
        (&["--thread-counts=0"], "expected 1 to 512: llama.cpp has room"),
        (&["--thread-counts=100000"], "expected 1 to 512: llama.cpp has room"),
        (&["--seconds=-1"], "'-1' is not a number of seconds such as 0.5"),
        (&["--shape=99999x99999"], "of at most 2^31 weights"),
        (&["--prefill=4"], "<MODEL>"),
        (&["model.gguf", "--runs=0"], "0 is not in 1..=1000"),
        (&["model.gguf", "--hot"], "'--hot'"),
        (&["model.gguf", "--isa=mmx"], "no instruction set is called 'mmx'"),
        (&["model.gguf", elsewhere], "here: the CPU lacks it"),
        (&[elsewhere], "here: the CPU lacks it"),
    ] {
        let ran = bench.run(&[&["bench"], arguments].concat());
        let text = String::from_utf8(ran.stderr).unwrap();
        assert!(
            ran.status.code() == Some(2) && text.contains(said),
            "{arguments:?}: {text}"
        );
    }
}

#[test]
fn bench_tells_what_loading_costs() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "--type q4_0");
    let file = bench.path("out.gguf");
    let arguments = [
        "bench",
        file.to_str().unwrap(),
        "--runs=1",
        "--prefill=4",
        "--decode=1",
        "--thread-counts=1",
        "--threads=1",
    ];
    let ran = bench.run(&[&arguments[..], &["--json"]].concat());
    let facts: Json = serde_json::from_slice(&ran.stdout).unwrap();
    let (load, ours) = (&facts["models"][0]["load"], &facts["models"][0]["engines"][0]);
    let number = |key: &str| load[key].as_f64().unwrap();
    assert_eq!(load["threads"], 1);
    assert_eq!(
        (&ours["engine"]["name"], &ours["engine"]["threads"]),
        (&"native".into(), &1.into())
    );
    assert_eq!(load["packed_bytes"], ours["bytes_per_token"]);
    let rate = number("stored_bytes") / 1e9 / number("seconds");
    assert!((number("stored_gb_per_second") / rate - 1.0).abs() < 1e-9 && number("first_seconds") > 0.0);

    let text = String::from_utf8(bench.run(&arguments).stdout).unwrap();
    let line = &text[text.find("our engine loads in").unwrap()..];
    for unit in [
        " s with 1 thread ",
        " GB/s, ",
        "B of weights in the file",
        "B of memory",
    ] {
        assert!(line.contains(unit), "{line}");
    }
}

/// The page holds itself: no link, no script from elsewhere.
#[test]
fn the_page_is_self_contained() {
    let packed = Packed::new("kjv", "");
    let page = packed.bench.path("page.html");
    packed
        .verify(&format!("--levels 1,2,3,4 --tokens 64 --report {}", page.display()))
        .assert_agrees();
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"));
    for part in ["blk.3.ffn_down", "<svg", "prefers-color-scheme: dark", "agrees"] {
        assert!(page.contains(part), "{part}");
    }
    for outside in ["http://", "https://", "src=", "@import", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn names_are_escaped_in_the_page() {
    let mut packed = Packed::new("kjv", "");
    let name = Value::String("<b>\"bold\" & 'quoted'</b>".into());
    packed.set_key("general.name", name);
    let page = packed.bench.path("page.html");
    packed
        .verify(&format!("--levels 1 --report {}", page.display()))
        .assert_sound();
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("&lt;b&gt;&quot;bold&quot; &amp;") && !page.contains("<b>\"bold"));
}
