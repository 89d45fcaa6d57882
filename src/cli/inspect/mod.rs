//! `tqconv inspect`: what a checkpoint or a GGUF file holds, and who can run it.

mod checkpoint;
mod gguf;
mod json;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;

use super::json::print_json;
use super::print;
use crate::mapped::{Mapped, Model};
use gguf::Gguf;
pub(super) use json::InspectReport;

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
    /// List every tensor and every key, and in JSON the values of lists
    #[arg(short, long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Show it.
pub(super) fn run(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let path = &args.path;
    if path.is_dir() {
        return checkpoint::inspect(args);
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
            print_json(&gguf.json(args.all))
        } else {
            print(&gguf.text(args.all))
        };
    }
    checkpoint::inspect(args)
}

/// By its name or by its first bytes.
fn is_gguf(path: &Path) -> anyhow::Result<bool> {
    let named = path.extension().is_some_and(|extension| extension == "gguf");
    let file = Mapped::open(path).with_context(|| path.display().to_string())?;
    Ok(named || file.starts_with(b"GGUF"))
}
