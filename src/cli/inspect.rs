//! `tqconv inspect`: what a checkpoint or a GGUF file holds, and who can run it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use rayon::prelude::*;
use serde_json::json;

use super::text::shown;
use super::{lossy, print, print_json, render};
use crate::mapped::{Mapped, Model};
use crate::model::{
    Checkpoint, Config, ConfigFile, ModelError, Scheme, Source, Tensors, TrainingOverrides, check_latent,
};
use crate::pack::{Embedding, Options, Plan, Rule, Target, ollama_reads};
use crate::simd::Level;

/// Show what a checkpoint or a GGUF file holds
///
/// A checkpoint: its shape, how it was trained, the share of its weights in the dead zone, and what `pack` would make
/// of it. A GGUF file: its metadata, types and sizes, the dead zone, and which engines load it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv inspect my-checkpoint/        its shape, its training, what `pack` would make of it
  tqconv inspect model.gguf --all      every key and every tensor")]
pub struct InspectArgs {
    /// A folder with a checkpoint, a safetensors file, its index, or a GGUF file
    path: PathBuf,
    /// List every tensor and every key
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show it.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let path = &args.path;
    if path.is_dir() {
        return inspect_checkpoint(args);
    }
    if is_gguf(path)? {
        let model = Model::open(path)?;
        let file = model.parse()?;
        let gguf = Gguf {
            path,
            file: &file,
            bytes: model.bytes(),
        };
        return if args.json {
            print_json(&gguf.json())
        } else {
            print(&gguf.text(args.all))
        };
    }
    inspect_checkpoint(args)
}

/// By its name or by its first bytes.
fn is_gguf(path: &Path) -> anyhow::Result<bool> {
    let named = path.extension().is_some_and(|extension| extension == "gguf");
    let file = Mapped::open(path).with_context(|| path.display().to_string())?;
    Ok(named || file.starts_with(b"GGUF"))
}

/// What a stored type needs of an engine: measured or read in the engines' sources, see docs/types.md.
fn engines(ty: BlockType) -> &'static str {
    match ty {
        BlockType::TQ1_0 | BlockType::TQ2_0 => {
            "llama.cpp since September 2024; CPU, Metal (TQ2_0), Vulkan; not CUDA; not Ollama"
        }
        BlockType::Q2_0 => "llama.cpp b10015 and later; fast on CUDA, Metal, Vulkan and Arm, slow on x86; not Ollama",
        ty if ollama_reads(ty) => "every llama.cpp and Ollama",
        _ => "llama.cpp; not Ollama",
    }
}

struct Gguf<'a> {
    path: &'a Path,
    file: &'a File<'a>,
    bytes: u64,
}

/// The tensors of one type.
#[derive(Default)]
struct Share {
    tensors: usize,
    weights: u64,
    bytes: u64,
    /// Weights with code 0, in tensors that are ternary.
    dead: u64,
    /// Weights of tensors that are ternary.
    ternary: u64,
}

impl Gguf<'_> {
    fn shares(&self) -> BTreeMap<BlockType, Share> {
        let mut shares = BTreeMap::<_, Share>::new();
        for info in self.file.tensors() {
            let share = shares.entry(info.ty).or_default();
            let weights = info.weights();
            share.tensors += 1;
            share.weights += weights;
            share.bytes += info.bytes().unwrap_or(0);
            if let Some(dead) = self.dead_weights(info) {
                share.dead += dead;
                share.ternary += weights;
            }
        }
        shares
    }

    /// How many weights of a ternary matrix have code 0; `None` for one that is not ternary.
    fn dead_weights(&self, info: &TensorInfo) -> Option<u64> {
        let run = info.ty.scale_run()?;
        let (_, data) = self.file.tensor(&info.name)?;
        // Without weights a row may have any width.
        let columns = usize::try_from(info.columns()).ok().filter(|_| !data.is_empty())?;
        let row_bytes = info.ty.row_bytes(columns)?;
        data.par_chunks_exact(row_bytes)
            .map_init(
                || (vec![0; columns], vec![0.0; columns / run]),
                |(codes, scales), row| {
                    info.ty.unpack_ternary_row(row, codes, scales).ok()?;
                    Some(codes.iter().filter(|&&code| code == 0).count() as u64)
                },
            )
            .sum()
    }

    fn engines(&self) -> Vec<(BlockType, &'static str)> {
        let mut types: Vec<_> = self.file.tensors().iter().map(|info| info.ty).collect();
        types.sort_unstable();
        types.dedup();
        types.into_iter().map(|ty| (ty, engines(ty))).collect()
    }

    fn text(&self, all: bool) -> String {
        let file = self.file;
        let mut text = format!(
            "{}: GGUF version {}, {} tensors, {} keys, {}\n\n",
            shown(&lossy(self.path)),
            file.version(),
            file.tensors().len(),
            file.metadata().len(),
            render::bytes(self.bytes)
        );
        let keys = file
            .metadata()
            .iter()
            .filter(|(_, value)| all || !matches!(value, Value::Array(_)));
        let shown: Vec<_> = keys.map(|(key, value)| (key.as_str(), brief(value))).collect();
        text += &render::facts(&shown);
        let rows = self.shares().into_iter().map(|(ty, share)| {
            let dead = if share.ternary > 0 {
                render::percent(share.dead as f64 / share.ternary as f64)
            } else {
                String::new()
            };
            let (tensors, weights) = (share.tensors.to_string(), render::count(share.weights));
            vec![
                ty.to_string(),
                tensors,
                weights,
                render::bytes(share.bytes),
                dead,
                engines(ty).into(),
            ]
        });
        text += "\n";
        text += &render::table(
            &["type", ">tensors", ">weights", ">size", ">dead zone", "runs on"],
            rows.collect(),
        );
        if all {
            let rows = file.tensors().iter().map(|info| {
                let shape: Vec<_> = info.shape.iter().rev().map(u64::to_string).collect();
                vec![
                    info.name.clone(),
                    info.ty.to_string(),
                    shape.join(" x "),
                    info.bytes().map_or(String::new(), render::bytes),
                ]
            });
            text += "\n";
            text += &render::table(&["tensor", "type", ">rows x columns", ">size"], rows.collect());
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let metadata: serde_json::Map<_, _> = self
            .file
            .metadata()
            .iter()
            .map(|(key, value)| (key.clone(), listed(value)))
            .collect();
        let tensors: Vec<_> = self
            .file
            .tensors()
            .iter()
            .map(|info| json!({"name": info.name, "type": info.ty.name(), "shape": info.shape, "bytes": info.bytes()}))
            .collect();
        let types: serde_json::Map<_, _> = self
            .shares()
            .into_iter()
            .map(|(ty, share)| {
                let dead = (share.ternary > 0).then(|| share.dead as f64 / share.ternary as f64);
                let facts = json!({
                    "tensors": share.tensors, "weights": share.weights, "bytes": share.bytes, "dead_share": dead,
                    "runs_on": engines(ty),
                });
                (ty.name().to_owned(), facts)
            })
            .collect();
        let ollama = self.engines().iter().all(|(ty, _)| ollama_reads(*ty));
        json!({
            "path": lossy(self.path), "kind": "gguf", "version": self.file.version(), "bytes": self.bytes,
            "alignment_bytes": self.file.alignment(), "ollama": ollama, "types": types, "metadata": metadata,
            "tensors": tensors,
        })
    }
}

/// A value as JSON, which takes many times its memory: of a list longer than any vocabulary only the length.
fn listed(value: &Value) -> serde_json::Value {
    const MAX: usize = 1 << 22;
    match value {
        Value::Array(array) if array.len() > MAX => value.brief().into(),
        value => value.to_json(),
    }
}

/// The start of a value.
fn brief(value: &Value) -> String {
    const WIDTH: usize = 72;
    let text = match value {
        Value::Array(array) => format!(
            "{} of {} values: {}",
            value.type_name(),
            array.len(),
            array.first(WIDTH).to_json()
        ),
        Value::String(text) => shown(text),
        value => value.to_json().to_string(),
    };
    if text.chars().count() <= WIDTH {
        text
    } else {
        text.chars().take(WIDTH).chain("...".chars()).collect()
    }
}

fn inspect_checkpoint(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let source = match Source::find(&args.path, None, None) {
        // Weights without a config.json can still be listed.
        Err(ModelError::MissingFile { missing, .. }) if missing == "config.json" && args.path.is_file() => {
            let found = Found {
                tensors: Tensors::open(&args.path)?,
                config: None,
                weights: None,
                training: None,
                plan: None,
            };
            return found.show(args);
        }
        source => source?,
    };
    let file = ConfigFile::read(&source.config)?;
    let training = file.training(&TrainingOverrides::default());
    let config = file.config();
    let tensors = Tensors::open(&source.weights)?;
    let weights = check_latent(&tensors, &file);
    let plan = match (&weights, &training, &config) {
        (Ok(()), Ok(_), Ok(_)) => Some(PackPreview::new(source).map_err(|error| format!("{error:#}"))),
        _ => None,
    };
    let text = |error: ModelError| error.to_string();
    Found {
        tensors,
        config: Some(config.map_err(text)),
        weights: Some(weights.map_err(text)),
        training: Some(training.map_err(text)),
        plan,
    }
    .show(args)
}

/// What was found of a checkpoint; each part that could not be had, with the reason.
struct Found {
    tensors: Tensors,
    config: Option<Result<Config, String>>,
    /// Whether they are latent ones.
    weights: Option<Result<(), String>>,
    training: Option<Result<Scheme, String>>,
    plan: Option<Result<PackPreview, String>>,
}

/// What `pack` would make of a checkpoint.
struct PackPreview {
    linears: String,
    bytes: u64,
    nmse: f64,
    dead_share: f64,
    largest_bias: f64,
    notes: Vec<String>,
}

impl PackPreview {
    fn new(source: Source) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(source, &TrainingOverrides::default())?;
        let options = Options {
            rule: Rule {
                target: Target::Any,
                max_nmse: super::pack::MAX_NMSE,
                ty: None,
                tensor_types: vec![],
            },
            embedding: Embedding::Keep,
            name: None,
            organization: None,
            metadata: vec![],
            hash: false,
            split_max_size: None,
            level: Level::widest(),
        };
        let summary = Plan::new(&checkpoint, &options)?
            .run(vec![], None, &|_| ControlFlow::Continue(()))?
            .summary;
        let linears: Vec<_> = summary
            .linears
            .iter()
            .map(|(ty, count)| format!("{count} x {ty}"))
            .collect();
        Ok(Self {
            linears: linears.join(", "),
            bytes: summary.bytes,
            nmse: summary.loss.nmse(),
            dead_share: summary.dead_share(),
            largest_bias: summary.largest_bias,
            notes: checkpoint.notes(),
        })
    }
}

impl Found {
    fn show(&self, args: &InspectArgs) -> anyhow::Result<ExitCode> {
        if args.json {
            print_json(&self.json(&args.path))
        } else {
            print(&self.text(args))
        }
    }

    fn dtypes(&self) -> BTreeMap<String, (usize, u64)> {
        let mut dtypes = BTreeMap::<_, (usize, u64)>::new();
        for (_, tensor) in self.tensors.iter() {
            let (tensors, bytes) = dtypes.entry(tensor.dtype.to_string()).or_default();
            *tensors += 1;
            *bytes += tensor.bytes.len() as u64;
        }
        dtypes
    }

    fn text(&self, args: &InspectArgs) -> String {
        let (files, tensors) = (self.tensors.files().count(), self.tensors.iter().count());
        let mut text = format!(
            "{}: safetensors, {files} file{}, {tensors} tensors, {}\n\n",
            shown(&lossy(&args.path)),
            if files == 1 { "" } else { "s" },
            render::bytes(self.tensors.bytes())
        );
        let mut facts: Vec<_> = self
            .dtypes()
            .into_iter()
            .map(|(dtype, (tensors, bytes))| ("dtype", format!("{dtype}: {tensors} tensors, {}", render::bytes(bytes))))
            .collect();
        match &self.config {
            None => facts.push(("model", "no config.json beside it".into())),
            Some(Err(problem)) => facts.push(("model", problem.clone())),
            Some(Ok(config)) => facts.extend(config_facts(config)),
        }
        if let Some(Err(problem)) = &self.weights {
            facts.push(("weights", problem.clone()));
        }
        match &self.training {
            None => {}
            // Weights that are of another family say why it is so.
            Some(Err(_)) if matches!(self.weights, Some(Err(_))) => {}
            Some(Err(problem)) => facts.push(("training", problem.clone())),
            Some(Ok(scheme)) => facts.push(("training", scheme.training().text())),
        }
        match &self.plan {
            None => {}
            Some(Err(problem)) => facts.push(("pack", problem.clone())),
            Some(Ok(preview)) => facts.extend(preview.facts()),
        }
        text += &render::facts(&facts);
        if let Some(Ok(preview)) = &self.plan {
            for note in &preview.notes {
                text += &format!("note: {note}\n");
            }
        }
        if args.all {
            let rows = self.tensors.iter().map(|(name, tensor)| {
                let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
                vec![
                    name.into(),
                    tensor.dtype.to_string(),
                    shape.join(" x "),
                    render::bytes(tensor.bytes.len() as u64),
                ]
            });
            text += "\n";
            text += &render::table(&["tensor", "dtype", ">rows x columns", ">size"], rows.collect());
        }
        text
    }

    fn json(&self, path: &Path) -> serde_json::Value {
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                json!({"name": name, "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "bytes": tensor.bytes.len()})
            })
            .collect();
        let result = |result: Option<Result<serde_json::Value, String>>| match result {
            None => serde_json::Value::Null,
            Some(Ok(value)) => value,
            Some(Err(problem)) => json!({"problem": problem}),
        };
        let config = self.config.as_ref().map(|config| match config {
            Ok(config) => Ok(json!({
                "architecture": format!("{:?}", config.architecture), "layers": config.layers,
                "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
                "heads": config.heads, "kv_heads": config.kv_heads, "head_dim": config.head_dim,
                "vocab_size": config.vocab_size, "context_length": config.context_length,
                "tied_head": config.tied_head,
            })),
            Err(problem) => Err(problem.clone()),
        });
        let weights = self.weights.as_ref().map(|weights| match weights {
            Ok(()) => Ok("latent".into()),
            Err(problem) => Err(problem.clone()),
        });
        let training = self.training.as_ref().map(|training| match training {
            Ok(scheme) => Ok(scheme.training().json()),
            Err(problem) => Err(problem.clone()),
        });
        let pack = self.plan.as_ref().map(|plan| match plan {
            Ok(preview) => Ok(json!({
                "linears": preview.linears, "bytes": preview.bytes, "nmse": preview.nmse,
                "dead_share": preview.dead_share, "largest_bias": preview.largest_bias, "notes": preview.notes,
            })),
            Err(problem) => Err(problem.clone()),
        });
        json!({
            "path": lossy(path), "kind": "checkpoint", "bytes": self.tensors.bytes(), "config": result(config),
            "weights": result(weights), "training": result(training), "pack": result(pack), "tensors": tensors,
        })
    }
}

impl PackPreview {
    fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("dead zone", render::percent(self.dead_share)),
            ("largest bias", render::small(self.largest_bias)),
            (
                "pack makes",
                format!(
                    "{}, {}, weight NMSE {}",
                    self.linears,
                    render::bytes(self.bytes),
                    render::small(self.nmse)
                ),
            ),
        ]
    }
}

fn config_facts(config: &Config) -> Vec<(&'static str, String)> {
    vec![
        (
            "model",
            format!(
                "{:?}, {} layers, hidden {}, feed-forward {}, {} heads / {} kv of {}",
                config.architecture,
                config.layers,
                config.hidden_size,
                config.intermediate_size,
                config.heads,
                config.kv_heads,
                config.head_dim
            ),
        ),
        (
            "tokens",
            format!(
                "vocabulary {}, context {}, head {}",
                config.vocab_size,
                config.context_length,
                if config.tied_head {
                    "tied to the embedding"
                } else {
                    "of its own"
                }
            ),
        ),
    ]
}
