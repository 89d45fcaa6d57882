//! An architecture that does not exist, from a checkpoint to a proven file: all that adding one takes is `MADE_UP` in
//! `blueprint` (docs/adding.md).

use std::ops::{ControlFlow, Range};
use std::path::Path;

use formats::block::BlockType;
use formats::gguf::{File, Value};
use formats::safetensors::{self, Dtype};
use serde_json::{Value as Json, json};

use crate::blueprint::{Linear, Norm, Part};
use crate::engine::hyper::Hyper;
use crate::engine::native::{CacheTypes, Native, Settings};
use crate::engine::oracle::{Oracle, Precision, Rows, Weights};
use crate::engine::text::TextOptions;
use crate::engine::{Engine, EngineError};
use crate::kernels::ActivationScales;
use crate::metrics;
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

fn options() -> Options {
    Options {
        rule: Rule {
            target: Target::Any,
            max_nmse: 0.0,
            measured: false,
            ty: Some(BlockType::F32),
            tensor_types: vec![],
        },
        embedding: Embedding::Keep,
        drop_biases: false,
        name: None,
        organization: None,
        card: Default::default(),
        metadata: vec![("made-up.context_length".into(), "64".into())],
        hash: false,
        split_max_size: None,
        level: Level::widest(),
    }
}

fn pack(checkpoint: &Checkpoint, path: &Path, options: &Options) {
    let files = TokenizerFiles::of(&checkpoint.source).unwrap();
    let config = &checkpoint.config;
    let tokenizer = tokenizer::read(&files, config.dims.vocab, &config.special_ids, None).unwrap();
    let output = Output {
        path,
        replace: false,
        inputs: &Inputs::new(checkpoint.files()),
    };
    let plan = Plan::new(checkpoint, options).unwrap();
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
    pack(&checkpoint, &path, &options());
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
    both_passes_agree(&file);
    check(&path, checkpoint);
}

/// The file, whose linears are F32 and whose rows are in the checkpoint's order, as the oracle takes it.
struct Packed<'a>(&'a File<'a>, Hyper);

impl Packed<'_> {
    fn numbers(&self, name: &str) -> Vec<f32> {
        let (info, bytes) = self.0.tensor(name).unwrap();
        let mut numbers = vec![0.0; info.weights() as usize];
        info.ty.dequantize_row(bytes, &mut numbers).unwrap();
        numbers
    }

    fn rows(&self, name: &str, bias: Option<Vec<f32>>) -> Result<Box<dyn Rows + '_>, EngineError> {
        let (info, _) = self.0.tensor(name).unwrap();
        Ok(Box::new(Dense {
            columns: info.columns() as usize,
            weights: self.numbers(name),
            bias,
        }))
    }
}

struct Dense {
    columns: usize,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Rows for Dense {
    fn shape(&self) -> (usize, usize) {
        (self.weights.len() / self.columns, self.columns)
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        weights.copy_from_slice(&self.weights[rows.start * self.columns..rows.end * self.columns]);
        for (row, bias) in rows.zip(bias) {
            *bias = self.bias.as_ref().map_or(0.0, |biases| biases[row].into());
        }
        Ok(())
    }
}

impl Weights for Packed<'_> {
    fn hyper(&self) -> &Hyper {
        &self.1
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        self.rows("token_embd.weight", None)
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        self.embedding()
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        let name = Linear { layer, part }.gguf_name();
        let bias = self.numbers(&format!("{name}.bias"));
        self.rows(&format!("{name}.weight"), Some(bias))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        Ok(self.numbers(&norm.gguf_name()))
    }
}

/// The native engine and the oracle predict the same, and something else than without the norms of q and k.
fn both_passes_agree(file: &File) {
    let tokens = [1, 5, 3, 7, 2];
    let oracle = |hyper: Hyper| {
        let weights = &Packed(file, hyper);
        let precision = Precision::Double;
        Oracle { weights, precision }.logits(&tokens).unwrap()
    };
    let hyper = Hyper::read(file).unwrap();
    let expected = oracle(hyper.clone());
    let found = Native::load(file, Settings::new(16, 1))
        .unwrap()
        .logits(&tokens)
        .unwrap();
    let nmse = metrics::nmse(&expected, &found);
    assert!(nmse < 1e-10, "{nmse:e}");
    let mut plain = hyper;
    plain.variant = crate::blueprint::Variant::LLAMA;
    let nmse = metrics::nmse(&expected, &oracle(plain));
    assert!(nmse > 1e-6, "{nmse:e}");
}

/// What level 2 says of a file.
fn proof(path: &Path, checkpoint: Checkpoint) -> impl Fn() -> verify::Report {
    let against = Against {
        origin: verify::Origin::Checkpoint {
            checkpoint: Box::new(checkpoint),
            tokenizer_pre: None,
        },
        name: "made up".into(),
    };
    let options = verify::Options {
        levels: vec![verify::Level::Codes],
        for_ollama: false,
        max_nmse: 0.0,
        metadata: vec![],
        max_kld: None,
        activations: ActivationScales::LlamaCpp,
        cache: CacheTypes::default(),
        text: TextOptions::default(),
        level_4_at_any_size: false,
        threads: 1,
        witness: Program::this(),
    };
    move || verify(path, Some(&against), &options, &|_, _| {}).unwrap()
}

fn failed(report: &verify::Report) -> Vec<&str> {
    report.failures().map(|(_, check)| &*check.name).collect()
}

/// Level 2 agrees, and it is not blind to a norm.
fn check(path: &Path, checkpoint: Checkpoint) {
    let proven = proof(path, checkpoint);
    assert_eq!(proven().verdict, Verdict::Agrees);
    let bytes = std::fs::read(path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let (_, norm) = file.tensor("blk.0.attn_k_norm.weight").unwrap();
    let at = norm.as_ptr() as usize - bytes.as_ptr() as usize;
    let mut changed = bytes.clone();
    changed[at] ^= 1;
    std::fs::write(path, changed).unwrap();
    assert_eq!(failed(&proven()), ["norms"]);
}

#[test]
fn biases_without_a_place_are_lost_only_where_the_user_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), "MadeUpWithoutBiasesForCausalLM");
    let (checkpoint, path) = (open(folder.path()).unwrap(), folder.path().join("out.gguf"));
    let mut options = Options {
        metadata: vec![],
        ..options()
    };
    let error = Plan::new(&checkpoint, &options).err().unwrap().to_string();
    let lost = "llama.cpp's `qwen3` would lose the biases of o_proj, gate_proj, up_proj and down_proj, up to ";
    assert!(error.starts_with(lost) && error.contains("--drop-biases"), "{error}");

    options.drop_biases = true;
    pack(&checkpoint, &path, &options);
    let bytes = std::fs::read(&path).unwrap();
    let file = File::parse(&bytes).unwrap();
    let names = file.tensors().iter().map(|info| &*info.name);
    let biases: Vec<_> = names.filter(|name| name.ends_with(".bias")).collect();
    assert_eq!(biases, ["blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.attn_v.bias"]);
    // What was lost is told, and nothing else is.
    let report = proof(&path, checkpoint)();
    assert_eq!(failed(&report), ["biases"]);
    let (_, check) = report.failures().next().unwrap();
    assert!(
        check.details[0].contains("attn_output.bias' is missing"),
        "{:?}",
        check.details
    );
}
