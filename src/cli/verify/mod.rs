//! `tqconv verify`: the proof of a file, as a table, as JSON and as a page.

mod attest;
mod charts;
mod page;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use super::activations::ActivationsArgs;
use super::cache::CacheArgs;
use super::checkpoint::CheckpointArgs;
use super::evidence::{FileDigest, Machine, command_line, files_of_checkpoint, now};
use super::json::{Document, print_json};
use super::pack::{MAX_NMSE, parse_nmse, parse_pair};
use super::text::shown_json;
use super::{Context, card, print, render};
use crate::engine::text::TextOptions;
use crate::mapped::Model;
use crate::model::is_gguf;
use crate::output::{self, Inputs};
use crate::verify::{self, Against, Level, Options, Origin, Report, Status, Verdict};
use crate::witness::Program;
pub(super) use attest::Verification;
use page::Evidence;
use text::Text;

/// Verify a GGUF file against what it was packed from, and what it computes against what it should
///
/// Level 1 looks at the layout as three readers see it, level 2 at every code, scale, bias, table and key, level 3 at
/// the products of our kernels and of ggml's, level 4 at the logits of an exact forward pass, of our engine and of
/// llama.cpp, level 5 at their speed. Each check tells what was found, its limit, and where the limit comes from.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv verify model.gguf --against my-checkpoint/                        levels 1 to 4
  tqconv verify model.gguf --against my-checkpoint/ --report proof.html    with a page to look at
  tqconv verify model.gguf --against my-checkpoint/ --attest proof.json    with a statement to sign
  tqconv verify model.gguf --against original.gguf                         one that was packed from a GGUF file
  tqconv verify model.gguf --levels 1                                      the layout alone")]
pub struct VerifyArgs {
    /// The GGUF file
    file: PathBuf,
    /// What it was packed from: a checkpoint (a folder, a model.safetensors, or a model.safetensors.index.json), or a
    /// GGUF file
    #[arg(long, value_name = "IN")]
    against: Option<PathBuf>,
    /// Which levels, as in 1,2,4 or 1-3 [default: 1-4]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = levels)]
    levels: Option<Vec<Levels>>,
    /// Level 5, too: time both engines
    #[arg(long)]
    speed: bool,
    /// Check the file by the stricter rules of a program, too
    #[arg(long = "for", value_name = "WHAT")]
    target: Option<TargetArg>,
    /// The relative squared error that storing a matrix may have added
    #[arg(
        long,
        value_name = "NMSE",
        default_value_t = MAX_NMSE,
        value_parser = parse_nmse,
        help_heading = "Limits"
    )]
    max_nmse: f64,
    /// The mean KLD from the checkpoint that an engine may have, in nats a token, beside the limits that follow from the
    /// model
    #[arg(long, value_name = "NATS", value_parser = parse_nmse, help_heading = "Limits")]
    max_kld: Option<f64>,
    /// What the engines are to predict: the text of a file
    #[arg(long, value_name = "FILE", conflicts_with = "prompt", help_heading = "Text")]
    text: Option<PathBuf>,
    /// What the engines are to predict
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    prompt: Option<String>,
    /// Predictions to compare at most
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Text")]
    tokens: usize,
    /// Tokens that see each other: the text is cut into windows of so many
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = window, help_heading = "Text")]
    window: usize,
    #[command(flatten)]
    rounding: ActivationsArgs,
    #[command(flatten)]
    cache: CacheArgs,
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// A key that `pack` was told to set, and its value; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, help_heading = "Checkpoint")]
    metadata: Vec<(String, String)>,
    /// Write a statement that can be signed, too: digests, checks, limits, engines (in-toto, docs/attestation.md)
    #[arg(long, value_name = "FILE.json", help_heading = "Output")]
    attest: Option<PathBuf>,
    /// A statement without times and the command: the same bytes from the same files on the same machine
    #[arg(long, requires = "attest", help_heading = "Output")]
    reproducible: bool,
    /// Write a page to look at, too
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Put the figures into the README.md that `pack --card` has written
    #[arg(long, value_name = "FILE.md", help_heading = "Output")]
    card: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum TargetArg {
    /// `ollama create`
    Ollama,
}

fn window(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(window) if window > 1 => Ok(window),
        _ => Err("expected a whole number of at least 2".into()),
    }
}

pub(super) fn run(args: &VerifyArgs, context: Context) -> anyhow::Result<ExitCode> {
    let against = match &args.against {
        None => None,
        Some(path) => Some(Against {
            origin: origin(path, &args.checkpoint)?,
            name: path.display().to_string(),
        }),
    };
    let inputs = inputs(args, against.as_ref());
    if let Some(path) = &args.card {
        output::check(path, true, &inputs)?;
        card::check(path)?;
    }
    let inputs = inputs.and(&args.card);
    for output in [&args.report, &args.attest].into_iter().flatten() {
        output::check(output, true, &inputs)?;
    }
    if args.report.is_some() && args.report == args.attest {
        bail!("--attest: the page of --report goes there; name another file");
    }
    let options = options(args, context.witness)?;
    let bar = render::spinner(!context.quiet);
    let report = verify::verify(&args.file, against.as_ref(), &options, &|doing, share| {
        render::show(&bar, doing, share);
    })
    .with_context(|| args.file.display().to_string())?;
    bar.finish_and_clear();
    if args.report.is_some() || args.attest.is_some() {
        write_proof(args, &report, against.as_ref())?;
    }
    if let Some(path) = &args.card {
        output::write(path, card::verified(path, &report)?.as_bytes())?;
    }
    if args.json {
        print_json(&report)?;
    } else {
        let text = Text {
            colour: context.colour,
            verbose: context.verbose,
        };
        print(&match context.quiet {
            true => text.verdict(&report),
            false => text.report(&report),
        })?;
    }
    Ok(match report.verdict {
        Verdict::Agrees | Verdict::Sound => ExitCode::SUCCESS,
        Verdict::Disagrees => ExitCode::from(1),
        Verdict::NothingChecked if measured(&report) => ExitCode::SUCCESS,
        Verdict::NothingChecked => ExitCode::from(2),
    })
}

/// Write the page and the statement.
fn write_proof(args: &VerifyArgs, report: &Report, against: Option<&Against>) -> anyhow::Result<()> {
    let subjects = FileDigest::of_all(&parts(&Model::open(&args.file)?))?;
    let against = FileDigest::of_all(&against.map_or(vec![], files))?;
    if let Some(path) = &args.report {
        let evidence = Evidence {
            date: now(),
            command: command_line(),
            machine: Machine::this(),
            subjects: &subjects,
            against: &against,
        };
        output::write(path, page::page(report, &evidence).as_bytes())?;
    }
    if let Some(path) = &args.attest {
        let statement = attest::statement(report, &subjects, &against, args.reproducible)?;
        output::write(path, format!("{}\n", shown_json(&format!("{statement:#}"))).as_bytes())?;
    }
    Ok(())
}

/// The files of a model.
fn parts(model: &Model) -> Vec<PathBuf> {
    model.parts().iter().map(|part| part.path.clone()).collect()
}

/// The files of what it was packed from.
fn files(against: &Against) -> Vec<PathBuf> {
    match &against.origin {
        Origin::Checkpoint { checkpoint, .. } => files_of_checkpoint(checkpoint),
        Origin::Gguf(model) => parts(model),
    }
}

impl Document for Report {
    const SCHEMA: &'static str = "tqconv.verify/1";
}

/// What the file was packed from.
fn origin(path: &Path, args: &CheckpointArgs) -> anyhow::Result<Origin> {
    // What cannot be opened is said by whoever opens it as what it should be.
    if !is_gguf(path).unwrap_or(false) {
        return Ok(Origin::Checkpoint {
            checkpoint: Box::new(args.open(path)?),
            tokenizer_pre: args.tokenizer_pre.clone(),
        });
    }
    args.none_for_gguf(path)?;
    Ok(Origin::Gguf(Model::open(path)?))
}

/// Every file that is read, which the page must not replace.
fn inputs(args: &VerifyArgs, against: Option<&Against>) -> Inputs {
    let against = match against.map(|against| &against.origin) {
        None => vec![],
        Some(Origin::Checkpoint { checkpoint, .. }) => checkpoint.files(),
        Some(Origin::Gguf(model)) => parts(model),
    };
    let named = [Some(&args.file), args.text.as_ref()].into_iter().flatten();
    Inputs::new(named.chain(&against))
}

fn measured(report: &Report) -> bool {
    report.levels.iter().any(|level| level.status == Status::Measured)
}

fn options(args: &VerifyArgs, witness: Program) -> anyhow::Result<Options> {
    let mut text = TextOptions {
        tokens: args.tokens,
        window: args.window,
        ..TextOptions::default()
    };
    if let Some(path) = &args.text {
        text.text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        text.source = path.display().to_string();
    } else if let Some(prompt) = &args.prompt {
        text.text = prompt.clone();
        text.source = "prompt".into();
    }
    let asked: Option<Vec<Level>> =
        (args.levels.as_ref()).map(|some| some.iter().flat_map(|some| some.0).copied().collect());
    let level_4_at_any_size = asked.as_ref().is_some_and(|levels| levels.contains(&Level::Logits));
    let mut levels = asked.unwrap_or_else(|| Level::ALL[..4].to_vec());
    if args.speed {
        levels.push(Level::Speed);
    }
    Ok(Options {
        level_4_at_any_size,
        levels,
        for_ollama: args.target.is_some(),
        max_nmse: args.max_nmse,
        metadata: args.metadata.clone(),
        max_kld: args.max_kld,
        activations: args.rounding.activations,
        cache: args.cache.types(),
        text,
        threads: rayon::current_num_threads(),
        witness,
    })
}

/// One level or a range of them.
#[derive(Clone)]
struct Levels(&'static [Level]);

fn levels(text: &str) -> Result<Levels, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let place = |text: &str| {
        let number: u8 = text.parse().ok()?;
        Level::ALL.iter().position(|level| level.number() == number)
    };
    match (place(first), place(last)) {
        (Some(first), Some(last)) if first <= last => Ok(Levels(&Level::ALL[first..=last])),
        _ => Err("expected levels from 1 to 5, as in 1,2,4 or 1-3".into()),
    }
}
