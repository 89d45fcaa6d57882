//! `tqconv diff`: how two files differ.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use formats::gguf::File;
use schemars::JsonSchema;
use serde::Serialize;

use super::checkpoint::CheckpointArgs;
use super::json::{Document, print_json};
use super::pack::parse_nmse;
use super::text::shown;
use super::{Context, lossy, print, render};
use crate::mapped::Model;
use crate::model::Checkpoint;
use crate::model::tokenizer::{Tokenizer, TokenizerFiles};
use crate::verify::{Differences, KeyDifference, KeyValue, Side, Stored, TensorDifference, diff};

/// Show how two GGUF files differ, or a GGUF file and a checkpoint
///
/// Keys are compared by type and value, tensors by type, shape and number; for tensors of one shape the NMSE of B
/// against A is told. A checkpoint stands for the file that it gives by the formula, with nothing lost but the rounding
/// of scales to f16. The order is that of A; what only B has comes last.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv diff old.gguf new.gguf                             what changed
  tqconv diff model.gguf my-checkpoint/ --max-nmse 1e-4     what differs beyond the rounding of Q2_K")]
pub struct DiffArgs {
    /// A GGUF file or a checkpoint
    a: PathBuf,
    /// A GGUF file or a checkpoint
    b: PathBuf,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// Take tensors for equal whose NMSE is at most this, whatever their types
    #[arg(long, value_name = "NMSE", default_value_t = 0.0, value_parser = parse_nmse, help_heading = "Limits")]
    max_nmse: f64,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

pub(super) fn run(args: &DiffArgs, context: Context) -> anyhow::Result<ExitCode> {
    let (a, b) = (
        Input::open(&args.a, &args.checkpoint)?,
        Input::open(&args.b, &args.checkpoint)?,
    );
    let (a, b) = (a.parse()?, b.parse()?);
    let bar = render::spinner(!context.quiet);
    let mut found = diff(&a.side(), &b.side(), &|doing, share| {
        render::show(&bar, doing, share);
    })
    .with_context(|| format!("{} and {}", args.a.display(), args.b.display()))?;
    bar.finish_and_clear();
    found.allow(args.max_nmse);
    if args.json {
        print_json(&DiffReport {
            path_a: lossy(&args.a),
            path_b: lossy(&args.b),
            equal: found.is_empty(),
            differences: &found,
        })?;
    } else {
        print(&text(&args.a, &args.b, &found))?;
    }
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

/// `tqconv diff --json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct DiffReport<'a> {
    path_a: String,
    path_b: String,
    /// Whether nothing differs, but for what `--max-nmse` allows.
    equal: bool,
    #[serde(flatten)]
    differences: &'a Differences,
}

impl Document for DiffReport<'_> {
    const SCHEMA: &'static str = "tqconv.diff/1";
}

/// What a path names.
enum Input {
    Gguf(Model),
    Checkpoint(Box<Checkpoint>, Box<Tokenizer>),
}

/// The same, read.
enum Parsed<'a> {
    Gguf(Box<File<'a>>),
    Checkpoint(&'a Checkpoint, &'a Tokenizer),
}

impl Input {
    fn open(path: &Path, args: &CheckpointArgs) -> anyhow::Result<Self> {
        let part_of_checkpoint = |extension: &std::ffi::OsStr| extension == "safetensors" || extension == "json";
        if path.is_dir() || path.extension().is_some_and(part_of_checkpoint) {
            let checkpoint = args.open(path)?;
            let files = TokenizerFiles::of(&checkpoint.source)?;
            let tokenizer = args.read_tokenizer(&files, &checkpoint)?;
            return Ok(Self::Checkpoint(checkpoint.into(), tokenizer.into()));
        }
        Ok(Self::Gguf(Model::open(path)?))
    }

    fn parse(&self) -> anyhow::Result<Parsed<'_>> {
        Ok(match self {
            Self::Gguf(model) => Parsed::Gguf(model.parse()?.into()),
            Self::Checkpoint(checkpoint, tokenizer) => Parsed::Checkpoint(checkpoint, tokenizer),
        })
    }
}

impl Parsed<'_> {
    fn side(&self) -> Side<'_> {
        match self {
            Self::Gguf(file) => Side::Gguf(file),
            Self::Checkpoint(checkpoint, tokenizer) => Side::Checkpoint(checkpoint, tokenizer),
        }
    }
}

fn text(a: &Path, b: &Path, found: &Differences) -> String {
    let [a, b] = [a, b].map(|path| shown(&lossy(path)));
    let same = format!("{} keys and {} tensors", found.same_keys, found.same_tensors);
    if found.is_empty() {
        return format!("{a} and {b} are equal: {same}\n");
    }
    let mut text = format!(
        "{a} and {b} differ in {} keys and {} tensors; equal are {same}\n",
        found.keys.len(),
        found.tensors.len()
    );
    if !found.keys.is_empty() {
        let cell = |value: &Option<KeyValue>| value.as_ref().map_or("-".into(), key_text);
        let row = |key: &KeyDifference| vec![format!("  {}", key.name), cell(&key.a), cell(&key.b)];
        let rows = found.keys.iter().map(row).collect();
        text += &format!("\n{}", render::table(&["  key", "A", "B"], rows));
    }
    if !found.tensors.is_empty() {
        let cell = |stored: &Option<Stored>| stored.as_ref().map_or("-".into(), stored_text);
        let row = |tensor: &TensorDifference| {
            let first = tensor.first.map(|place| {
                format!(
                    "row {} column {}: {:e}, {:e}",
                    place.row, place.column, place.a, place.b
                )
            });
            vec![
                format!("  {}", tensor.name),
                cell(&tensor.a),
                cell(&tensor.b),
                tensor.nmse.map_or("-".into(), render::small),
                first.unwrap_or_default(),
            ]
        };
        let rows = found.tensors.iter().map(row).collect();
        let head = ["  tensor", "A", "B", ">NMSE", "first difference: A, B"];
        text += &format!("\n{}", render::table(&head, rows));
    }
    text
}

/// A value of a key, a long one cut short.
fn key_text(value: &KeyValue) -> String {
    const SHOWN: usize = 60;
    let text = value.value.as_ref().map(ToString::to_string);
    let Some(length) = value.length else {
        let text = text.unwrap_or_default();
        return match text.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}... ({})", &text[..end], value.ty),
            None => format!("{text} ({})", value.ty),
        };
    };
    match (value.index, text) {
        (Some(index), Some(text)) => format!("list of {length}, at {index} {text}"),
        _ => format!("list of {length}"),
    }
}

/// `Q2_K 512 x 256`
fn stored_text(stored: &Stored) -> String {
    let shape: Vec<_> = stored.shape.iter().map(u64::to_string).collect();
    format!("{} {}", stored.ty.unwrap_or("formula"), shape.join(" x "))
}
