//! `tqconv pack`: from a checkpoint, or a GGUF file whose weights are ternary, to a GGUF file.

mod args;
mod choose;
mod json;
mod manifest;
mod next;
mod report;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::bail;
use formats::block::BlockType;
use formats::gguf::Value;

use super::json::{print_json, text_of};
use super::{Context, card, ollama, print, render, stop_signal, texts};
use crate::choose::Chosen;
use crate::files::folder_of;
use crate::model::card::Card;
use crate::model::tokenizer::TokenizerFiles;
use crate::model::{Gguf, is_gguf};
use crate::output::{self, Inputs};
use crate::pack::{Options, Output, PackError, Packed, Plan, Rule, paths};
use crate::simd::Level;

pub use args::PackArgs;
use args::TargetArg;
pub(super) use args::{MAX_NMSE, parse_nmse, parse_pair};
pub(super) use json::PackReport;
pub(super) use manifest::Manifest;
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
    let (name, inputs) = (
        checkpoint.source.name(),
        Inputs::new(checkpoint.files().iter().chain(&args.text)),
    );
    let named = Target::named(args, &inputs)?;
    let (source, card_note) = match checkpoint.source.card() {
        Ok(card) => (card, None),
        Err(why) => (Card::default(), Some(why)),
    };
    let mut options = options(args);
    options.name = name.clone();
    options.organization = checkpoint.source.organization();
    options.card = source;
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
    let target = match named {
        Some(target) => target,
        None => Target::unnamed(args, inputs, &plan.file_name(&name.unwrap_or_default()))?,
    };
    notes.extend(card_note);
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
    let inputs = Inputs::new(gguf.files().map(|(path, _)| path).chain(text));
    let named = Target::named(args, &inputs)?;
    let options = options(args);
    let mut plan = Plan::of_gguf(&gguf, &options).map_err(|error| of_input(error, args))?;
    let stop = stop_signal()?; // what was written is then removed
    let chosen = choose::types(args, context, &mut plan, &[], &stop)?;
    let target = match named {
        Some(target) => target,
        None => Target::unnamed(args, inputs, &plan.file_name(&name_of_gguf(&args.input)))?,
    };
    let (packed, ()) = write(args, context, plan, &[], &target, &stop, || ())?;
    tell(args, context, &packed, chosen.as_ref(), &target, vec![], start)
}

/// The name of a model in a GGUF file: its file's, without the type.
fn name_of_gguf(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.rsplit_once(['-', '.']) {
        Some((name, ty)) if BlockType::from_name(&ty.to_ascii_lowercase()).is_some() => name.into(),
        _ => stem.into(),
    }
}

/// Where to write, and what not over.
struct Target {
    output: PathBuf,
    modelfile: Option<PathBuf>,
    card: Option<PathBuf>,
    inputs: Inputs,
}

impl Target {
    /// The output that was named, refused before any work where it cannot be written; `None` where a folder was named, or
    /// nothing.
    fn named(args: &PackArgs, inputs: &Inputs) -> anyhow::Result<Option<Self>> {
        match &args.output {
            Some(path) if !path.is_dir() => Self::check(args, path.clone(), inputs.clone()).map(Some),
            _ => Ok(None),
        }
    }

    /// The output `name` in the folder that was named, or in this one.
    fn unnamed(args: &PackArgs, inputs: Inputs, name: &str) -> anyhow::Result<Self> {
        let folder = args.output.clone().unwrap_or_default();
        Self::check(args, folder.join(name), inputs)
    }

    fn check(args: &PackArgs, output: PathBuf, inputs: Inputs) -> anyhow::Result<Self> {
        let modelfile = modelfile(args, &output)?;
        let card = args.card.then(|| card::beside(&output));
        if !args.dry_run {
            if args.split_max_size.is_none() {
                output::check(&output, args.force, &inputs)?;
            }
            for beside in [&modelfile, &card, &args.manifest].into_iter().flatten() {
                output::check(beside, args.force, &inputs)?;
                if *beside == output {
                    bail!("{}: the model goes there; name another file", beside.display());
                }
            }
        }
        if let (Some(card), Some(manifest)) = (&card, &args.manifest)
            && manifest.file_name() == card.file_name()
            && folder_of(manifest).canonicalize().ok() == folder_of(card).canonicalize().ok()
        {
            bail!(
                "{}: the card of --card goes there; name another manifest",
                manifest.display()
            );
        }
        Ok(Self {
            output,
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
    stop: &AtomicBool,
    beside: impl FnOnce() -> T + Send,
) -> anyhow::Result<(Packed<'a>, T)> {
    let output = Output {
        path: &target.output,
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

/// Write Modelfile and card, and tell what came of it all.
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
    let paths = paths(&target.output, packed.files);
    if let Some(path) = modelfile.filter(|_| !args.dry_run) {
        let text = ollama::modelfile(&paths[0], &packed.metadata);
        output::write(path, text.as_bytes())?;
    }
    if let Some(path) = args.manifest.as_deref().filter(|_| !args.dry_run) {
        let manifest = Manifest::new(args, packed, &paths)?;
        output::write(path, text_of(&manifest)?.as_bytes())?;
    }
    let report = Report {
        args,
        packed,
        output: &target.output,
        chosen,
        next: Next {
            args,
            output: &target.output,
            packed,
            chosen,
            first: &paths[0],
            has_template: packed.metadata.iter().any(|(key, _)| key == "tokenizer.chat_template"),
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
        print_json(&PackReport::new(&report))
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
fn modelfile(args: &PackArgs, output: &Path) -> anyhow::Result<Option<PathBuf>> {
    if args.target != TargetArg::Ollama {
        return Ok(None);
    }
    if args.split_max_size.is_some() {
        anyhow::bail!(
            "--for ollama: Ollama reads no model that is split into several files; leave out --split-max-size"
        );
    }
    if output.to_str().is_none() {
        anyhow::bail!(
            "{}: the Modelfile of --for ollama cannot hold a name that is not UTF-8; name another output",
            output.display()
        );
    }
    let modelfile = output.with_extension("Modelfile");
    if modelfile == output {
        anyhow::bail!(
            "{}: the Modelfile of --for ollama goes there; name the output {}",
            modelfile.display(),
            output.with_extension("gguf").display()
        );
    }
    Ok(Some(modelfile))
}

/// All but what is told of a checkpoint.
fn options(args: &PackArgs) -> Options {
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
        name: None,
        organization: None,
        card: Card::default(),
        metadata: args.metadata.clone(),
        hash: args.hash,
        split_max_size: args.split_max_size,
        level: Level::widest(),
    }
}
