//! The arguments of `tqconv pack`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use formats::block::BlockType;

use crate::cli::checkpoint::CheckpointArgs;
use crate::pack::{Embedding, PACKABLE, TABLES, TERNARY_TABLES, Target};

/// What storing a matrix may add in relative squared error, unless told otherwise: on a trained checkpoint Q2_K's 5.2e-5
/// cost 0.08 % of perplexity, TQ2_0's 2.6e-3 cost 0.43 %.
pub(in crate::cli) const MAX_NMSE: f64 = 1e-4;

/// Pack a checkpoint, or a GGUF file with ternary weights, into a GGUF file
///
/// The weights become ternary exactly as training did, lambda times the sum of the dead zone becomes one bias per
/// output row, and each linear is stored in the smallest block type that loads and is fast where the file is to run
/// (--for), within the error that you allow (--max-nmse). Nothing falls back silently: what cannot be written as
/// asked is refused before anything is written, and --dry-run shows what would be.
///
/// Of a GGUF file, the matrices that are ternary already are stored anew by the same rule, with their codes and scales;
/// all else is copied.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv pack my-checkpoint/ model.gguf                       for llama.cpp anywhere, and for Ollama
  tqconv pack my-checkpoint/ model.gguf --exact --for gpu     not one bit of the weights lost, for GPUs
  tqconv pack my-checkpoint/ model.gguf --embedding q8_0      a smaller embedding
  tqconv pack my-checkpoint/ model.gguf --dry-run             what every tensor would become
  tqconv pack my-checkpoint/                                  named by model, size and type, in this folder
  tqconv pack my-checkpoint/ model.gguf --max-kld 0.002       the smallest file that predicts so much alike
  tqconv pack bonsai.gguf model.gguf --for ollama             a GGUF file in types that Ollama reads")]
pub struct PackArgs {
    /// A folder with a checkpoint, a model.safetensors, a model.safetensors.index.json, or a GGUF file
    pub(super) input: PathBuf,
    /// The GGUF file to write, or a folder for it: named like Name-1B-Q2_K.gguf, as without OUT in this one
    pub(super) output: Option<PathBuf>,

    /// Where the file is to run
    #[arg(long = "for", value_enum, default_value_t = TargetArg::Any, value_name = "WHERE", help_heading = "Types")]
    pub(super) target: TargetArg,
    /// The relative squared error that storing a matrix may add
    #[arg(long, value_name = "NMSE", default_value_t = MAX_NMSE, value_parser = parse_nmse, help_heading = "Types")]
    pub(super) max_nmse: f64,
    /// Lose nothing: the same as --max-nmse 0
    #[arg(long, conflicts_with = "max_nmse", help_heading = "Types")]
    pub(super) exact: bool,
    /// Choose the types by what they do to the output: the smallest file whose mean KLD on a text is at most this, in nats
    /// a token
    #[arg(long, value_name = "NATS", value_parser = parse_kld, conflicts_with_all = ["max_nmse", "exact"], help_heading = "Types")]
    pub(super) max_kld: Option<f64>,
    /// The text that --max-kld measures on, a file of UTF-8 [default: a built-in one]
    #[arg(long, value_name = "FILE", requires = "max_kld", help_heading = "Types")]
    pub(super) text: Option<PathBuf>,
    /// Store all linears as this type: tq2_0, tq1_0, q2_0, q2_k, q4_0, q8_0, f16, bf16 or f32
    #[arg(long = "type", value_name = "TYPE", value_parser = parse_type, help_heading = "Types")]
    pub(super) ty: Option<BlockType>,
    /// Store the linears whose GGUF name contains TEXT as TYPE, for example ffn_down=q4_0; can be repeated
    #[arg(long, value_name = "TEXT=TYPE", value_parser = parse_tensor_type, help_heading = "Types")]
    pub(super) tensor_type: Vec<(String, BlockType)>,
    /// Store embedding and head as this type: keep (the checkpoint's), f32, f16, bf16, q8_0, q6_k or q4_k; where they are
    /// ternary themselves, tq2_0, tq1_0, q2_0, q2_k or q4_0
    #[arg(long, value_name = "TYPE", default_value = "keep", value_parser = parse_embedding, help_heading = "Types")]
    pub(super) embedding: Embedding,

    /// Leave out biases that the model's architecture in llama.cpp has no place for: the output changes
    #[arg(long, help_heading = "Types")]
    pub(super) drop_biases: bool,

    #[command(flatten)]
    pub(super) checkpoint: CheckpointArgs,

    /// Set a key of the output, for example general.name="My Model"; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, help_heading = "Output")]
    pub(super) metadata: Vec<(String, String)>,
    /// Note the sha256 of each input file in the output: takes about a second per 2 GB of the largest file
    #[arg(long, help_heading = "Output")]
    pub(super) hash: bool,
    /// Write README.md beside the output, too: a card for the Hugging Face Hub, with license, language and base model as
    /// the checkpoint's own card has them
    #[arg(long, help_heading = "Output")]
    pub(super) card: bool,
    /// Write a manifest, too: the sha256 of each file that was written or read, the request, what was lost
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    pub(super) manifest: Option<PathBuf>,
    /// Write several files of at most this size, for example 2G or 500M, named as llama.cpp's gguf-split names them
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Output")]
    pub(super) split_max_size: Option<u64>,
    /// Replace the output if it is there
    #[arg(long, help_heading = "Output")]
    pub(super) force: bool,
    /// Decide everything, show it, write nothing
    #[arg(long, help_heading = "Output")]
    pub(super) dry_run: bool,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(in crate::cli) json: bool,
}

impl PackArgs {
    /// The relative squared error that storing a matrix may add.
    pub(super) fn limit(&self) -> f64 {
        if self.exact { 0.0 } else { self.max_nmse }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum TargetArg {
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

/// A limit: not negative, not NaN; infinite where anything is allowed.
pub(in crate::cli) fn parse_nmse(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(nmse) if (0.0..).contains(&nmse) => Ok(nmse),
        _ => Err("expected a number that is not negative, for example 1e-4".into()),
    }
}

/// A budget: a number above 0.
fn parse_kld(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(kld) if kld > 0.0 && kld.is_finite() => Ok(kld),
        _ => Err("expected a number above 0, for example 0.002".into()),
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
    match text {
        "keep" => Ok(Embedding::Keep),
        text => one_of(text, &[&TABLES[..], &TERNARY_TABLES].concat()).map(Embedding::As),
    }
}

fn one_of(text: &str, types: &[BlockType]) -> Result<BlockType, String> {
    let found = types.iter().copied().find(|ty| ty.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| {
        let names: Vec<_> = types.iter().map(|ty| ty.name().to_ascii_lowercase()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// `KEY=VALUE`
pub(in crate::cli) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(key, _)| !key.is_empty());
    pair.map(|(key, value)| (key.into(), value.into()))
        .ok_or_else(|| "expected KEY=VALUE".into())
}

fn parse_tensor_type(text: &str) -> Result<(String, BlockType), String> {
    let (name, ty) = parse_pair(text)?;
    Ok((name, parse_type(&ty)?))
}
