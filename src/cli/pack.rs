//! `tqconv pack`: from a checkpoint to a GGUF file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use formats::block::BlockType;
use serde_json::json;

use super::checkpoint::CheckpointArgs;
use super::{Context, print, print_json, render, stop_signal, texts};
use crate::kernels::level::Level;
use crate::model::tokenizer::TokenizerFiles;
use crate::model::{Checkpoint, LambdaSource, Training};
use crate::pack::{
    Embedding, Options, Output, PACKABLE, Packed, Plan, Rule, Target, check_output, paths,
};
use crate::tequila::Granularity;

/// What storing a matrix may add in relative squared error, unless told otherwise: on a trained checkpoint Q2_K's 5.2e-5
/// cost 0.08 % of perplexity, TQ2_0's 2.6e-3 cost 0.43 %.
pub(super) const MAX_NMSE: f64 = 1e-4;

/// Pack a checkpoint into a GGUF file
///
/// The weights become ternary exactly as training did, lambda times the sum of the dead zone becomes one bias per
/// output row, and each linear is stored in the smallest block type that loads and is fast where the file is to run
/// (--for), within the error that you allow (--max-nmse). Nothing falls back silently: what cannot be written as
/// asked is refused before anything is written, and --dry-run shows what would be.
#[derive(Args)]
pub struct PackArgs {
    /// A folder with a checkpoint, a model.safetensors, or a model.safetensors.index.json
    input: PathBuf,
    /// The GGUF file to write
    output: PathBuf,

    /// Where the file is to run
    #[arg(long = "for", value_enum, default_value_t = TargetArg::Any, value_name = "WHERE", help_heading = "Types")]
    target: TargetArg,
    /// The relative squared error that storing a matrix may add
    #[arg(long, value_name = "NMSE", default_value_t = MAX_NMSE, value_parser = parse_nmse, help_heading = "Types")]
    max_nmse: f64,
    /// Lose nothing: the same as --max-nmse 0
    #[arg(long, conflicts_with = "max_nmse", help_heading = "Types")]
    exact: bool,
    /// Store all linears as this type: tq2_0, tq1_0, q2_0, q2_k, q4_0, q8_0, f16, bf16 or f32
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type, help_heading = "Types")]
    ty: Option<BlockType>,
    /// Store the linears whose GGUF name contains TEXT as TYPE, for example ffn_down=q4_0; can be repeated
    #[arg(long, value_name = "TEXT=TYPE", value_parser = parse_tensor_type, help_heading = "Types")]
    tensor_type: Vec<(String, BlockType)>,
    /// Store embedding and head as this type: keep (the checkpoint's), f32, f16, bf16, q8_0, q6_k or q4_k
    #[arg(long, value_name = "TYPE", default_value = "keep", value_parser = parse_embedding, help_heading = "Types")]
    embedding: Embedding,

    #[command(flatten)]
    checkpoint: CheckpointArgs,

    /// Set a key of the output, for example general.name="My Model"; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, help_heading = "Output")]
    metadata: Vec<(String, String)>,
    /// Note the sha256 of each input file in the output: takes about a second per 2 GB of the largest file
    #[arg(long, help_heading = "Output")]
    hash: bool,
    /// Write several files of at most this size, for example 2G or 500M, named as llama.cpp's gguf-split names them
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Output")]
    split_max_size: Option<u64>,
    /// Replace the output if it is there
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// Decide everything, show it, write nothing
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TargetArg {
    /// llama.cpp on every backend, and Ollama
    Any,
    /// llama.cpp on x86 processors: adds TQ2_0
    Cpu,
    /// llama.cpp on GPUs: adds Q2_0
    Gpu,
    /// llama.cpp on Arm processors: adds Q2_0
    Arm,
    /// Ollama: as any, held to Ollama's own rules, with a Modelfile
    Ollama,
}

impl From<TargetArg> for Target {
    fn from(arg: TargetArg) -> Self {
        match arg {
            TargetArg::Any => Target::Any,
            TargetArg::Cpu => Target::Cpu,
            TargetArg::Gpu => Target::Gpu,
            TargetArg::Arm => Target::Arm,
            TargetArg::Ollama => Target::Ollama,
        }
    }
}

fn parse_nmse(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(nmse) if (0.0..).contains(&nmse) => Ok(nmse),
        _ => Err("expected a number that is not negative, for example 1e-4".into()),
    }
}

/// `2G`, `500M`: units of 1000, as llama.cpp has them.
fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix(['M', 'G']) {
        Some(digits) if text.ends_with('M') => (digits, 1_000_000),
        Some(digits) => (digits, 1_000_000_000),
        None => (text, 1),
    };
    let size = digits.parse().ok().and_then(|n: u64| n.checked_mul(unit));
    size.filter(|&size| size > 0)
        .ok_or_else(|| "expected a number of bytes, for example 2G or 500M".into())
}

fn parse_type(text: &str) -> Result<BlockType, String> {
    one_of(text, &PACKABLE)
}

fn parse_embedding(text: &str) -> Result<Embedding, String> {
    use BlockType::{BF16, F16, F32, Q4_K, Q6_K, Q8_0};
    match text {
        "keep" => Ok(Embedding::Keep),
        text => one_of(text, &[F32, F16, BF16, Q8_0, Q6_K, Q4_K]).map(Embedding::As),
    }
}

fn one_of(text: &str, types: &[BlockType]) -> Result<BlockType, String> {
    let found = types
        .iter()
        .copied()
        .find(|ty| ty.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names: Vec<_> = types
            .iter()
            .map(|ty| ty.name().to_ascii_lowercase())
            .collect();
        format!("expected one of {}", names.join(", "))
    })
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.into(), value.into()))
        .ok_or_else(|| "expected KEY=VALUE".into())
}

fn parse_tensor_type(text: &str) -> Result<(String, BlockType), String> {
    let (name, ty) = parse_pair(text)?;
    Ok((name, parse_type(&ty)?))
}

/// Pack, and tell what came of it.
pub(super) fn run(args: &PackArgs, context: Context) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let checkpoint = args.checkpoint.open(&args.input)?;
    let modelfile =
        matches!(args.target, TargetArg::Ollama).then(|| args.output.with_extension("Modelfile"));
    if !args.dry_run {
        let source = &checkpoint.source;
        if args.split_max_size.is_none() {
            check_output(&args.output, args.force, &[&source.weights, &source.config])?;
        }
        if let Some(modelfile) = &modelfile {
            check_output(modelfile, args.force, &[])?;
        }
    }
    let options = options(args, &checkpoint);
    let input = || args.input.display().to_string();
    let files = TokenizerFiles::of(&checkpoint.source)?;
    let (tokenizer, plan) = rayon::join(
        || args.checkpoint.read_tokenizer(&files, &checkpoint),
        || Plan::new(&checkpoint, &options).with_context(input),
    );
    let (mut tokenizer, plan) = (tokenizer?, plan?);
    let mut notes = std::mem::take(&mut tokenizer.notes);
    notes.extend(checkpoint.notes());
    let output = Output {
        path: &args.output,
        replace: args.force,
    };
    let bar = render::progress_bar("packing", checkpoint.tensors.bytes(), context.progress);
    let stop = stop_signal()?; // the output is then removed
    let written = (!args.dry_run).then_some(&output);
    let keys = tokenizer.into_metadata();
    let progress = |bytes| {
        bar.inc(bytes);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let (packed, found) = rayon::join(
        || plan.run(keys.clone(), written, &progress),
        || texts::notes(&keys, &files),
    );
    let packed = packed.with_context(input)?;
    notes.extend(found);
    bar.finish_and_clear();
    if let Some(path) = modelfile.as_ref().filter(|_| !args.dry_run) {
        let has_template = packed
            .metadata
            .iter()
            .any(|(key, _)| key == "tokenizer.chat_template");
        std::fs::write(
            path,
            modelfile_text(&paths(&args.output, packed.files)[0], has_template),
        )
        .with_context(|| path.display().to_string())?;
    }
    let report = Report {
        args,
        packed: &packed,
        paths: paths(&args.output, packed.files),
        notes,
        time: start.elapsed(),
        modelfile,
    };
    if args.json {
        print_json(&report.json())
    } else {
        print(&report.text())
    }
}

fn options(args: &PackArgs, checkpoint: &Checkpoint) -> Options {
    let rule = Rule {
        target: args.target.into(),
        max_nmse: if args.exact { 0.0 } else { args.max_nmse },
        ty: args.ty,
        tensor_types: args.tensor_type.clone(),
    };
    Options {
        rule,
        embedding: args.embedding,
        name: checkpoint.source.name(),
        metadata: args.metadata.clone(),
        hash: args.hash,
        split_max_size: args.split_max_size,
        level: Level::widest(),
    }
}

/// What `ollama create -f` reads. A model without a chat template gets the prompt as it is.
fn modelfile_text(output: &Path, has_template: bool) -> String {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let template = if has_template {
        ""
    } else {
        "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n"
    };
    format!("FROM ./{name}\n{template}")
}

/// What there is to tell of a pack.
struct Report<'a> {
    args: &'a PackArgs,
    packed: &'a Packed<'a>,
    paths: Vec<PathBuf>,
    notes: Vec<String>,
    time: Duration,
    modelfile: Option<PathBuf>,
}

impl Report<'_> {
    fn text(&self) -> String {
        let mut text = if self.args.dry_run {
            self.tensors()
        } else {
            String::new()
        };
        text += &self.headline();
        text += &render::facts(&self.facts());
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        if !self.args.dry_run {
            text += &self.next();
        }
        text
    }

    fn headline(&self) -> String {
        let (output, bytes) = (
            self.paths[0].display(),
            render::bytes(self.packed.summary.bytes),
        );
        match self.args.dry_run {
            true => format!("\n{output} would be written: {bytes}\n"),
            false => format!("{output}: {bytes} in {}\n", render::seconds(self.time)),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        const WORTH_A_RATE: u64 = 100_000_000; // bytes; below, starting up takes most of the time
        let (summary, training) = (&self.packed.summary, &self.packed.checkpoint.training);
        let linears: Vec<_> = summary
            .linears
            .iter()
            .map(|(ty, count)| format!("{count} x {ty}"))
            .collect();
        let input = self.packed.checkpoint.tensors.bytes();
        let rate = input as f64 / 1e9 / self.time.as_secs_f64();
        let mut facts = vec![
            ("training", training_text(training)),
            (
                "linears",
                format!(
                    "{}: {} weights, {:.4} bits per weight",
                    linears.join(", "),
                    render::count(summary.ternary_weights),
                    summary.bits_per_weight()
                ),
            ),
            ("weight NMSE", self.loss()),
            ("dead zone", render::percent(summary.dead_share())),
            ("largest bias", render::small(summary.largest_bias)),
            ("embedding", self.packed.items[0].info.ty.to_string()),
        ];
        if !self.args.dry_run && input >= WORTH_A_RATE {
            facts.push((
                "speed",
                format!("{rate:.2} GB/s of input ({})", render::bytes(input)),
            ));
        }
        facts
    }

    fn loss(&self) -> String {
        let summary = &self.packed.summary;
        match &summary.worst {
            Some((name, worst)) if *worst > 0.0 => {
                format!(
                    "{} over all, {} in the worst ({name})",
                    render::small(summary.loss.nmse()),
                    render::small(*worst)
                )
            }
            _ => "0: every scale and code is stored as trained".into(),
        }
    }

    fn tensors(&self) -> String {
        let rows = self.packed.items.iter().map(|item| {
            let nmse = item.loss.map(|loss| render::small(loss.nmse()));
            let shape: Vec<_> = item.info.shape.iter().rev().map(u64::to_string).collect();
            let bytes = item.info.bytes().map_or(String::new(), render::bytes);
            vec![
                item.info.name.clone(),
                item.info.ty.to_string(),
                shape.join(" x "),
                bytes,
                nmse.unwrap_or_default(),
            ]
        });
        render::table(
            &["tensor", "type", ">rows x columns", ">size", ">NMSE"],
            rows.collect(),
        )
    }

    fn next(&self) -> String {
        let output = shell_quoted(&self.paths[0]);
        match &self.modelfile {
            None => format!(
                "run it:  llama-cli -m {output} -p \"...\"\nprove it:  tqconv verify {output} --against {}\n",
                shell_quoted(&self.args.input)
            ),
            Some(modelfile) => {
                let stem = self
                    .args
                    .output
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .to_lowercase();
                format!(
                    "run it:  ollama create {stem} -f {} && ollama run {stem}\nor:      llama-cli -m {output} -p \"...\"\n",
                    shell_quoted(modelfile)
                )
            }
        }
    }

    fn json(&self) -> serde_json::Value {
        let (packed, summary) = (self.packed, &self.packed.summary);
        let tensors: Vec<_> = packed
            .items
            .iter()
            .map(|item| {
                json!({
                    "name": item.info.name, "type": item.info.ty.name(), "shape": item.info.shape,
                    "file": item.file, "offset_bytes": item.offset, "bytes": item.info.bytes(),
                    "nmse": item.loss.map(|loss| loss.nmse()),
                })
            })
            .collect();
        let linears: serde_json::Map<_, _> = summary
            .linears
            .iter()
            .map(|(ty, count)| (ty.name().into(), json!(count)))
            .collect();
        json!({
            "output": self.args.output, "files": self.paths, "written": !self.args.dry_run, "bytes": summary.bytes,
            "seconds": self.time.as_secs_f64(), "input_bytes": packed.checkpoint.tensors.bytes(),
            "training": training_json(&packed.checkpoint.training),
            "linears": linears, "ternary_weights": summary.ternary_weights,
            "bits_per_weight": summary.bits_per_weight(), "dead_share": summary.dead_share(),
            "largest_bias": summary.largest_bias, "nmse": summary.loss.nmse(),
            "worst_nmse": summary.worst.as_ref().map(|(_, nmse)| nmse),
            "worst_tensor": summary.worst.as_ref().map(|(name, _)| name),
            "modelfile": self.modelfile, "notes": self.notes, "tensors": tensors,
        })
    }
}

/// How a checkpoint was trained, in a few words.
pub(super) fn training_text(training: &Training) -> String {
    let lambda = match training.lambda {
        LambdaSource::Fixed(lambda) => format!("lambda {lambda}"),
        LambdaSource::Learned => "learned lambda".into(),
    };
    format!(
        "{}, {}, {lambda}",
        training.lambda.method(),
        granularity(training.granularity)
    )
}

/// How a checkpoint was trained, with the names of config.json.
pub(super) fn training_json(training: &Training) -> serde_json::Value {
    let lambda = match training.lambda {
        LambdaSource::Fixed(lambda) => Some(lambda),
        LambdaSource::Learned => None,
    };
    json!({
        "quant_method": training.lambda.method(), "granularity": granularity(training.granularity), "lambda": lambda,
    })
}

fn granularity(granularity: Granularity) -> String {
    match granularity {
        Granularity::Group(size) => format!("per_group {size}"),
        Granularity::Channel => "per_channel".into(),
        Granularity::Tensor => "per_tensor".into(),
    }
}

/// A path as one would type it in a shell.
fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if text.chars().all(plain) {
        text
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
