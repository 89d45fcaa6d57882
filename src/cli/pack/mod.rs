//! `tqconv pack`: from a checkpoint, or a GGUF file whose weights are ternary, to a GGUF file.

mod args;
mod choose;
mod next;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::gguf::Value;

use super::{Context, print, print_json, render, stop_signal, texts};
use crate::choose::Chosen;
use crate::model::tokenizer::TokenizerFiles;
use crate::model::{Gguf, is_gguf};
use crate::output::{self, Inputs};
use crate::pack::{Options, Output, PackError, Packed, Plan, Rule, paths};
use crate::simd::Level;

pub use args::PackArgs;
use args::TargetArg;
pub(super) use args::{MAX_NMSE, parse_nmse, parse_pair};
use next::Next;
use report::Report;

/// Pack, and tell what came of it.
pub(super) fn run(args: &PackArgs, context: Context) -> anyhow::Result<ExitCode> {
    // What cannot be opened is said by whoever opens it as what it should be.
    match is_gguf(&args.input).unwrap_or(false) {
        true => pack_gguf(args, &context),
        false => pack_checkpoint(args, &context),
    }
}

fn pack_checkpoint(args: &PackArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let checkpoint = args.checkpoint.open(&args.input)?;
    let target = Target::check(args, Inputs::new(checkpoint.files().iter().chain(&args.text)))?;
    let options = options(args, checkpoint.source.name(), checkpoint.source.organization());
    let files = TokenizerFiles::of(&checkpoint.source)?;
    let (tokenizer, plan) = rayon::join(
        || args.checkpoint.read_tokenizer(&files, &checkpoint),
        || Plan::new(&checkpoint, &options),
    );
    let (mut tokenizer, mut plan) = (tokenizer?, plan.map_err(|error| of_input(error, args))?);
    let mut notes = std::mem::take(&mut tokenizer.notes);
    notes.extend(checkpoint.notes());
    let keys = tokenizer.into_metadata();
    let stop = stop_signal()?; // what was written is then removed
    let chosen = choose::types(args, context, &mut plan, &keys, &stop)?;
    let (packed, found) = write(args, context, plan, &keys, &target, &stop, || {
        texts::notes(&keys, &files)
    })?;
    notes.extend(found);
    tell(args, context, &packed, chosen.as_ref(), &target, notes, start)
}

fn pack_gguf(args: &PackArgs, context: &Context) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    args.checkpoint.none_for_gguf(&args.input)?;
    if args.drop_biases {
        anyhow::bail!(
            "{}: is a GGUF file, whose biases are all kept; leave out --drop-biases",
            args.input.display()
        );
    }
    let gguf = Gguf::open(&args.input)?;
    let text = args.text.as_deref();
    let target = Target::check(args, Inputs::new(gguf.files().map(|(path, _)| path).chain(text)))?;
    let options = options(args, None, None);
    let mut plan = Plan::of_gguf(&gguf, &options).map_err(|error| of_input(error, args))?;
    let stop = stop_signal()?; // what was written is then removed
    let chosen = choose::types(args, context, &mut plan, &[], &stop)?;
    let (packed, ()) = write(args, context, plan, &[], &target, &stop, || ())?;
    tell(args, context, &packed, chosen.as_ref(), &target, vec![], start)
}

/// Where to write, and what not over.
struct Target {
    modelfile: Option<PathBuf>,
    inputs: Inputs,
}

impl Target {
    /// Refuse what cannot be written, before any work.
    fn check(args: &PackArgs, inputs: Inputs) -> anyhow::Result<Self> {
        let modelfile = modelfile(args)?;
        if !args.dry_run {
            check_outputs(args, modelfile.as_deref(), &inputs)?;
        }
        Ok(Self { modelfile, inputs })
    }
}

/// Carry out a plan, with `beside` at the same time. `keys`: those of the tokenizer, for a checkpoint.
fn write<'a, T: Send>(
    args: &PackArgs,
    context: &Context,
    plan: Plan<'a>,
    keys: &[(String, Value)],
    target: &Target,
    stop: &AtomicBool,
    beside: impl FnOnce() -> T + Send,
) -> anyhow::Result<(Packed<'a>, T)> {
    let output = Output {
        path: &args.output,
        replace: args.force,
        inputs: &target.inputs,
    };
    let bar = render::progress_bar("packing", plan.input_bytes(), !context.quiet);
    let written = (!args.dry_run).then_some(&output);
    let progress = |bytes| {
        bar.inc(bytes);
        go_on(stop)
    };
    let (packed, beside) = rayon::join(|| plan.run(keys.to_vec(), written, &progress), beside);
    let packed = packed.map_err(|error| of_input(error, args))?;
    bar.finish_and_clear();
    Ok((packed, beside))
}

/// Whether nobody has asked to stop.
fn go_on(stop: &AtomicBool) -> ControlFlow<()> {
    match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    }
}

/// Write the Modelfile, and tell what came of it all.
fn tell(
    args: &PackArgs,
    context: &Context,
    packed: &Packed,
    chosen: Option<&Chosen>,
    target: &Target,
    notes: Vec<String>,
    start: Instant,
) -> anyhow::Result<ExitCode> {
    let modelfile = target.modelfile.as_deref();
    let paths = paths(&args.output, packed.files);
    if let Some(path) = modelfile.filter(|_| !args.dry_run) {
        let text = next::modelfile_text(&paths[0], &packed.metadata);
        output::write(path, text.as_bytes())?;
    }
    let report = Report {
        args,
        packed,
        chosen,
        next: Next {
            args,
            packed,
            chosen,
            first: &paths[0],
            has_template: next::has_template(&packed.metadata),
            modelfile,
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

fn check_outputs(args: &PackArgs, modelfile: Option<&Path>, inputs: &Inputs) -> anyhow::Result<()> {
    if args.split_max_size.is_none() {
        output::check(&args.output, args.force, inputs)?;
    }
    if let Some(modelfile) = modelfile {
        output::check(modelfile, args.force, inputs)?;
    }
    Ok(())
}

fn options(args: &PackArgs, name: Option<String>, organization: Option<String>) -> Options {
    let rule = Rule {
        target: args.target.into(),
        max_nmse: args.limit(),
        measured: args.max_kld.is_some(),
        ty: args.ty,
        tensor_types: args.tensor_type.clone(),
    };
    Options {
        rule,
        embedding: args.embedding,
        drop_biases: args.drop_biases,
        name,
        organization,
        metadata: args.metadata.clone(),
        hash: args.hash,
        split_max_size: args.split_max_size,
        level: Level::widest(),
    }
}
