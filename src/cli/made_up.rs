//! An architecture that does not exist, from a checkpoint to a proven file: what adding one takes is an entry of the table
//! (`blueprint::table::made_up`), and nothing here or there names it (docs/adding.md).

use std::ops::ControlFlow;
use std::path::Path;

use formats::block::BlockType;
use formats::gguf::{File, Value};
use formats::safetensors::{self, Dtype};
use serde_json::{Value as Json, json};

use crate::model::tokenizer::{self, TokenizerFiles};
use crate::model::{Checkpoint, Source, TrainingOverrides};
use crate::output::Inputs;
use crate::pack::{Embedding, Options, Output, Plan, Rule, Target};
use crate::simd::Level;
use crate::verify::{self, Against, Verdict, verify};
use crate::witness::Program;

/// Name, bf16 numbers and shape of a tensor.
type Tensor = (String, Vec<u8>, Vec<usize>);

/// `fixtures/tiny` with norms of q and k, as `architecture`.
fn write_checkpoint(folder: &Path, architecture: &str) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny");
    let config = std::fs::read(tiny.join("config.json")).unwrap();
    let mut config: Json = serde_json::from_slice(&config).unwrap();
    config["architectures"] = json!([architecture]);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(tiny.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut tensors = read_tensors(&tiny);
    for (name, first) in [("q_norm", 0x3f80), ("k_norm", 0x3f00)] {
        let numbers = (0..16).flat_map(|number: u16| (first + number).to_le_bytes()).collect();
        tensors.push((format!("model.layers.0.self_attn.{name}.weight"), numbers, vec![16]));
    }
    write_tensors(&folder.join("model.safetensors"), &tensors);
}

fn read_tensors(folder: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = safetensors::parse(&bytes).unwrap().into_iter().map(|entry| {
        let view = entry.view(&bytes);
        assert_eq!(view.dtype, Dtype::BF16);
        (entry.name.clone(), view.bytes.to_vec(), view.shape.to_vec())
    });
    tensors.collect()
}

fn write_tensors(path: &Path, tensors: &[Tensor]) {
    let (mut header, mut data) = (json!({}), vec![]);
    for (name, bytes, shape) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        header[name] = json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]});
        data.extend(bytes);
    }
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length, header.as_bytes(), &data].concat()).unwrap();
}

fn open(folder: &Path) -> anyhow::Result<Checkpoint> {
    let source = Source::find(folder, None, None)?;
    Ok(Checkpoint::open(source, &TrainingOverrides::default())?)
}

fn pack(checkpoint: &Checkpoint, path: &Path) {
    let options = Options {
        rule: Rule {
            target: Target::Any,
            max_nmse: 0.0,
            ty: Some(BlockType::F32),
            tensor_types: vec![],
        },
        embedding: Embedding::Keep,
        name: None,
        organization: None,
        metadata: vec![("made-up.context_length".into(), "64".into())],
        hash: false,
        split_max_size: None,
        level: Level::widest(),
    };
    let files = TokenizerFiles::of(&checkpoint.source).unwrap();
    let config = &checkpoint.config;
    let tokenizer = tokenizer::read(&files, config.dims.vocab, &config.special_ids, None).unwrap();
    let output = Output {
        path,
        replace: false,
        inputs: &Inputs::new(checkpoint.files()),
    };
    let plan = Plan::new(checkpoint, &options).unwrap();
    let progress = |_| ControlFlow::Continue(());
    plan.run(tokenizer.into_metadata(), Some(&output), &progress).unwrap();
}

const TENSORS: &str = "token_embd.weight blk.0.attn_norm.weight blk.0.attn_q.weight blk.0.attn_q.bias \
    blk.0.attn_k.weight blk.0.attn_k.bias blk.0.attn_v.weight blk.0.attn_v.bias blk.0.attn_q_norm.weight \
    blk.0.attn_k_norm.weight blk.0.attn_output.weight blk.0.attn_output.bias blk.0.ffn_norm.weight \
    blk.0.ffn_gate.weight blk.0.ffn_gate.bias blk.0.ffn_up.weight blk.0.ffn_up.bias blk.0.ffn_down.weight \
    blk.0.ffn_down.bias output_norm.weight";

#[test]
fn a_made_up_architecture_is_packed_and_proven() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), "MadeUpForCausalLM");
    let (checkpoint, path) = (open(folder.path()).unwrap(), folder.path().join("out.gguf"));
    pack(&checkpoint, &path);
    let bytes = std::fs::read(&path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let names: Vec<_> = file.tensors().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names.join(" "), TENSORS);
    assert_eq!(file.get("general.architecture"), Some(&Value::String("made-up".into())));
    assert_eq!(file.get("made-up.block_count"), Some(&Value::U32(1)));
    let (_, norm) = file.tensor("blk.0.attn_q_norm.weight").unwrap();
    let second = f32::from_bits((0x3f80 + 1) << 16);
    assert_eq!(norm[4..8], second.to_le_bytes());
    // Pairs of the rotation are the halves of a head: rows stay where they are.
    let tensors = read_tensors(folder.path());
    let (_, latent, _) = tensors
        .iter()
        .find(|(name, ..)| name.ends_with("q_proj.weight"))
        .unwrap();
    let (_, weights) = file.tensor("blk.0.attn_q.weight").unwrap();
    let signs = weights.as_chunks::<4>().0.iter().zip(latent.as_chunks::<2>().0);
    let nonzero = signs.filter(|(weight, _)| f32::from_le_bytes(**weight) != 0.0);
    let (same, all) = nonzero.fold((0, 0), |(same, all), (weight, latent)| {
        (same + usize::from(weight[3] >> 7 == latent[1] >> 7), all + 1)
    });
    assert!(all > 500 && same == all, "{same} of {all}");
    check(&path, checkpoint);
}

/// Level 2 agrees, and it is not blind to a norm.
fn check(path: &Path, checkpoint: Checkpoint) {
    let against = Against {
        checkpoint,
        tokenizer_pre: None,
        name: "made up".into(),
    };
    let options = verify::Options {
        levels: vec![verify::Level::Codes],
        for_ollama: false,
        max_nmse: 0.0,
        metadata: vec![],
        max_kld: None,
        text: verify::TextOptions::default(),
        level_4_at_any_size: false,
        threads: 1,
        witness: Program::this(),
    };
    let proven = || verify(path, Some(&against), &options, &|_, _| {}).unwrap();
    assert_eq!(proven().verdict, Verdict::Agrees);
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let (_, norm) = file.tensor("blk.0.attn_k_norm.weight").unwrap();
    let at = norm.as_ptr() as usize - bytes.as_ptr() as usize;
    let mut changed = bytes.clone();
    changed[at] ^= 1;
    std::fs::write(path, changed).unwrap();
    let report = proven();
    let checks = report.levels.iter().flat_map(|level| &level.checks);
    let failed: Vec<_> = checks.filter(|check| !check.pass).map(|check| &*check.name).collect();
    assert_eq!(failed, ["norms"]);
}

#[test]
fn what_its_graph_has_no_place_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), "MadeUpWithoutBiasesForCausalLM");
    let error = open(folder.path()).err().unwrap().to_string();
    let lost = "llama.cpp's `made-up-without-biases` would lose the offline biases of o_proj, gate_proj, up_proj and \
                down_proj; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM";
    assert!(error.contains(lost), "{error}");
}
