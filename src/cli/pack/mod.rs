//! `tqconv pack`: from a checkpoint to a GGUF file.

mod args;
mod next;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Context, print, print_json, render, stop_signal, texts};
use crate::model::Checkpoint;
use crate::model::tokenizer::TokenizerFiles;
use crate::output::{self, Inputs};
use crate::pack::{Options, Output, PackError, Plan, Rule, paths};
use crate::simd::Level;

pub use args::PackArgs;
use args::TargetArg;
pub(super) use args::{MAX_NMSE, parse_nmse, parse_pair};
use next::Next;
use report::Report;

/// Pack, and tell what came of it.
pub(super) fn run(args: &PackArgs, context: Context) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let checkpoint = args.checkpoint.open(&args.input)?;
    let inputs = Inputs::new(checkpoint.files());
    let modelfile = modelfile(args)?;
    if !args.dry_run {
        check_outputs(args, modelfile.as_deref(), &inputs)?;
    }
    let options = options(args, &checkpoint);
    let files = TokenizerFiles::of(&checkpoint.source)?;
    let (tokenizer, plan) = rayon::join(
        || args.checkpoint.read_tokenizer(&files, &checkpoint),
        || Plan::new(&checkpoint, &options),
    );
    let (mut tokenizer, plan) = (tokenizer?, plan.map_err(|error| of_input(error, args))?);
    let mut notes = std::mem::take(&mut tokenizer.notes);
    notes.extend(checkpoint.notes());
    let output = Output {
        path: &args.output,
        replace: args.force,
        inputs: &inputs,
    };
    let bar = render::progress_bar("packing", checkpoint.tensors.bytes(), !context.quiet);
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
    notes.extend(found);
    let packed = packed.map_err(|error| of_input(error, args))?;
    bar.finish_and_clear();
    let paths = paths(&args.output, packed.files);
    if let Some(path) = modelfile.as_ref().filter(|_| !args.dry_run) {
        let text = next::modelfile_text(&paths[0], &packed.metadata);
        output::write(path, text.as_bytes())?;
    }
    let report = Report {
        args,
        packed: &packed,
        next: Next {
            args,
            first: &paths[0],
            has_template: next::has_template(&packed.metadata),
            modelfile: modelfile.as_deref(),
        },
        paths: &paths,
        notes,
        time: start.elapsed(),
    };
    if args.json {
        print_json(&report.json())
    } else if context.quiet && !args.dry_run {
        Ok(ExitCode::SUCCESS)
    } else {
        print(&report.text())
    }
}

/// The error with the name of the input, where it is not the output's.
fn of_input(error: PackError, args: &PackArgs) -> anyhow::Error {
    match error {
        PackError::Output(_) | PackError::Interrupted | PackError::Metadata { .. } => error.into(),
        error => anyhow::Error::new(error).context(args.input.display().to_string()),
    }
}

/// Where the Modelfile goes, if one is asked for.
fn modelfile(args: &PackArgs) -> anyhow::Result<Option<PathBuf>> {
    if args.target != TargetArg::Ollama {
        return Ok(None);
    }
    if args.split_max_size.is_some() {
        anyhow::bail!(
            "--for ollama: Ollama reads no model that is split into several files; leave out --split-max-size"
        );
    }
    if args.output.to_str().is_none() {
        anyhow::bail!(
            "{}: the Modelfile of --for ollama cannot hold a name that is not UTF-8; name another output",
            args.output.display()
        );
    }
    let modelfile = args.output.with_extension("Modelfile");
    if modelfile == args.output {
        anyhow::bail!(
            "{}: the Modelfile of --for ollama goes there; name the output {}",
            modelfile.display(),
            args.output.with_extension("gguf").display()
        );
    }
    Ok(Some(modelfile))
}

/// Refuse what cannot be written, before any work.
fn check_outputs(args: &PackArgs, modelfile: Option<&Path>, inputs: &Inputs) -> anyhow::Result<()> {
    if args.split_max_size.is_none() {
        output::check(&args.output, args.force, inputs)?;
    }
    if let Some(modelfile) = modelfile {
        output::check(modelfile, args.force, inputs)?;
    }
    Ok(())
}

fn options(args: &PackArgs, checkpoint: &Checkpoint) -> Options {
    let rule = Rule {
        target: args.target.into(),
        max_nmse: args.limit(),
        ty: args.ty,
        tensor_types: args.tensor_type.clone(),
    };
    Options {
        rule,
        embedding: args.embedding,
        drop_biases: args.drop_biases,
        name: checkpoint.source.name(),
        organization: checkpoint.source.organization(),
        metadata: args.metadata.clone(),
        hash: args.hash,
        split_max_size: args.split_max_size,
        level: Level::widest(),
    }
}
