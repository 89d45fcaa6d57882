//! `tqconv pack`: from a checkpoint, or a GGUF file whose weights are ternary, to a GGUF file.

mod args;
mod next;
mod report;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use formats::gguf::Value;

use super::{Context, card, print, print_json, render, stop_signal, texts};
use crate::model::card::Card;
use crate::model::tokenizer::TokenizerFiles;
use crate::model::{Gguf, is_gguf};
use crate::output::{self, Inputs};
use crate::pack::{Options, Output, PackError, Packed, Plan, Rule, paths};
use crate::simd::Level;

pub use args::PackArgs;
use args::TargetArg;
pub(super) use args::{MAX_NMSE, parse_nmse, parse_pair};
use next::Next;
pub(super) use next::ollama_name;
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
    let target = Target::check(args, Inputs::new(checkpoint.files()))?;
    let (source, card_note) = match checkpoint.source.card() {
        Ok(card) => (card, None),
        Err(why) => (Card::default(), Some(why)),
    };
    let mut options = options(args);
    options.name = checkpoint.source.name();
    options.organization = checkpoint.source.organization();
    options.card = source;
    let files = TokenizerFiles::of(&checkpoint.source)?;
    let (tokenizer, plan) = rayon::join(
        || args.checkpoint.read_tokenizer(&files, &checkpoint),
        || Plan::new(&checkpoint, &options),
    );
    let (mut tokenizer, plan) = (tokenizer?, plan.map_err(|error| of_input(error, args))?);
    let mut notes = std::mem::take(&mut tokenizer.notes);
    notes.extend(checkpoint.notes());
    notes.extend(card_note);
    let keys = tokenizer.into_metadata();
    let (packed, found) = write(args, context, plan, &keys, &target, || texts::notes(&keys, &files))?;
    notes.extend(found);
    tell(args, context, &packed, &target, notes, start)
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
    let target = Target::check(args, Inputs::new(gguf.files().map(|(path, _)| path)))?;
    let options = options(args);
    let plan = Plan::of_gguf(&gguf, &options).map_err(|error| of_input(error, args))?;
    let (packed, ()) = write(args, context, plan, &[], &target, || ())?;
    tell(args, context, &packed, &target, vec![], start)
}

/// Where to write, and what not over.
struct Target {
    modelfile: Option<PathBuf>,
    card: Option<PathBuf>,
    inputs: Inputs,
}

impl Target {
    /// Refuse what cannot be written, before any work.
    fn check(args: &PackArgs, inputs: Inputs) -> anyhow::Result<Self> {
        let modelfile = modelfile(args)?;
        let card = args.card.then(|| card::beside(&args.output));
        if !args.dry_run {
            if args.split_max_size.is_none() {
                output::check(&args.output, args.force, &inputs)?;
            }
            for small in modelfile.iter().chain(&card) {
                output::check(small, args.force, &inputs)?;
            }
        }
        Ok(Self {
            modelfile,
            card,
            inputs,
        })
    }
}

/// Carry out a plan, with `beside` at the same time. `keys`: those of the tokenizer, for a checkpoint.
fn write<'a, T: Send>(
    args: &PackArgs,
    context: &Context,
    plan: Plan<'a>,
    keys: &[(String, Value)],
    target: &Target,
    beside: impl FnOnce() -> T + Send,
) -> anyhow::Result<(Packed<'a>, T)> {
    let output = Output {
        path: &args.output,
        replace: args.force,
        inputs: &target.inputs,
    };
    let bar = render::progress_bar("packing", plan.input_bytes(), !context.quiet);
    let stop = stop_signal()?; // the output is then removed
    let written = (!args.dry_run).then_some(&output);
    let progress = |bytes| {
        bar.inc(bytes);
        match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    let (packed, beside) = rayon::join(|| plan.run(keys.to_vec(), written, &progress), beside);
    let packed = packed.map_err(|error| of_input(error, args))?;
    bar.finish_and_clear();
    Ok((packed, beside))
}

/// Write Modelfile and card, and tell what came of it all.
fn tell(
    args: &PackArgs,
    context: &Context,
    packed: &Packed,
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
        next: Next {
            args,
            first: &paths[0],
            has_template: next::has_template(&packed.metadata),
            modelfile,
        },
        paths: &paths,
        card: target.card.as_deref(),
        notes,
        time: start.elapsed(),
    };
    if let Some(path) = target.card.as_deref().filter(|_| !args.dry_run) {
        output::write(path, report.card().text().as_bytes())?;
    }
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

/// All but what is told of a checkpoint.
fn options(args: &PackArgs) -> Options {
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
        name: None,
        organization: None,
        card: Card::default(),
        metadata: args.metadata.clone(),
        hash: args.hash,
        split_max_size: args.split_max_size,
        level: Level::widest(),
    }
}
