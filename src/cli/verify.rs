//! `tqconv verify`: the proof of a file, as a table, as JSON and as a page.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use clap::builder::styling::{AnsiColor, Style};

use super::checkpoint::CheckpointArgs;
use super::pack::{MAX_NMSE, parse_nmse, parse_pair};
use super::text::shown;
use super::{Context, print, print_json, render, report};
use crate::metrics::mean;
use crate::output::{self, Inputs};
use crate::verify::{self, Against, Check, Level, Limit, Options, Report, Status, TextOptions, Verdict};
use crate::witness::Program;

/// Prove a GGUF file: hold it against its checkpoint, and what it computes against what it should
///
/// Level 1 looks at the layout as three readers see it, level 2 at every code, scale, bias, table and key, level 3 at
/// the products of our kernels and of ggml's, level 4 at the logits of an exact forward pass, of our engine and of
/// llama.cpp, level 5 at their speed. Each check tells what was found, its limit, and where the limit comes from.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv verify model.gguf --against my-checkpoint/                        levels 1 to 4
  tqconv verify model.gguf --against my-checkpoint/ --report proof.html    with a page to look at
  tqconv verify model.gguf --levels 1                                      the layout alone")]
pub struct VerifyArgs {
    /// The GGUF file
    file: PathBuf,
    /// The checkpoint that it was packed from: a folder, a model.safetensors, or a model.safetensors.index.json
    #[arg(long, value_name = "IN")]
    against: Option<PathBuf>,
    /// Which levels, as in 1,2,4 or 1-3 [default: 1-4]
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = levels)]
    levels: Option<Vec<RangeInclusive<u8>>>,
    /// Level 5, too: time both engines
    #[arg(long)]
    speed: bool,
    /// Hold the file to the stricter rules of a program, too
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
    checkpoint: CheckpointArgs,
    /// A key that `pack` was told to set, and its value; can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, help_heading = "Checkpoint")]
    metadata: Vec<(String, String)>,
    /// Write a page to look at, too
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Print JSON
    #[arg(long, help_heading = "Output")]
    json: bool,
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
            checkpoint: args.checkpoint.open(path)?,
            tokenizer_pre: args.checkpoint.tokenizer_pre.clone(),
            name: path.display().to_string(),
        }),
    };
    if let Some(report) = &args.report {
        output::check(report, true, &inputs(args, against.as_ref()))?;
    }
    let options = options(args, context.witness)?;
    let bar = render::spinner(!context.quiet);
    let report = verify::verify(&args.file, against.as_ref(), &options, &|doing, share| {
        render::show(&bar, doing, share);
    })
    .with_context(|| args.file.display().to_string())?;
    bar.finish_and_clear();
    if args.json {
        print_json(&serde_json::to_value(&report)?)?;
    } else {
        let text = Text { colour: context.colour };
        print(&text.report(&report))?;
    }
    if let Some(path) = &args.report {
        output::write(path, report::page(&report).as_bytes())?;
    }
    Ok(match report.verdict {
        Verdict::Agrees | Verdict::Sound => ExitCode::SUCCESS,
        Verdict::Disagrees => ExitCode::from(1),
        Verdict::NothingChecked if measured(&report) => ExitCode::SUCCESS,
        Verdict::NothingChecked => ExitCode::from(2),
    })
}

/// Every file that is read, which the page must not replace.
fn inputs(args: &VerifyArgs, against: Option<&Against>) -> Inputs {
    let checkpoint = against.map_or(vec![], |against| against.checkpoint.files());
    let named = [Some(&args.file), args.text.as_ref()].into_iter().flatten();
    Inputs::new(named.chain(&checkpoint))
}

fn measured(report: &Report) -> bool {
    let measured = |level: &Level| level.status == Status::Measured;
    report.levels.iter().any(measured)
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
    let asked: Option<Vec<u8>> = (args.levels.as_ref()).map(|ranges| ranges.iter().cloned().flatten().collect());
    let level_4_at_any_size = asked.as_ref().is_some_and(|levels| levels.contains(&4));
    let mut levels = asked.unwrap_or_else(|| vec![1, 2, 3, 4]);
    if args.speed {
        levels.push(5);
    }
    Ok(Options {
        level_4_at_any_size,
        levels,
        for_ollama: args.target.is_some(),
        max_nmse: args.max_nmse,
        metadata: args.metadata.clone(),
        max_kld: args.max_kld,
        text,
        threads: rayon::current_num_threads(),
        witness,
    })
}

/// One level or a range of them.
fn levels(text: &str) -> Result<RangeInclusive<u8>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if 1 <= first && first <= last && last <= 5 => Ok(first..=last),
        _ => Err("expected levels from 1 to 5, as in 1,2,4 or 1-3".into()),
    }
}

/// The report for a terminal.
struct Text {
    colour: bool,
}

impl Text {
    fn report(&self, report: &Report) -> String {
        let mut text = self.verdict(report);
        for level in &report.levels {
            text += &self.level(level);
        }
        text += &facts(report);
        for note in &report.notes {
            text += &format!("note: {}\n", shown(note));
        }
        text
    }

    fn verdict(&self, report: &Report) -> String {
        let checks = report.levels.iter().map(|level| level.checks.len()).sum::<usize>();
        let failed: Vec<_> = report.failures().collect();
        let file = shown(&report.file);
        let against = report.held_against().map(shown);
        if report.verdict == Verdict::Disagrees {
            let head = match &against {
                Some(against) => format!("{file} disagrees with {against}"),
                None => format!("{file} is not sound"),
            };
            let mut text = format!(
                "{}: {} of {checks} checks failed\n",
                self.paint(&head, RED),
                failed.len()
            );
            for (level, check) in failed {
                text += &format!("  level {level}, {}\n", shown(&check.name));
                for detail in &check.details {
                    text += &format!("    {}\n", shown(detail));
                }
            }
            return text;
        }
        if report.verdict == Verdict::NothingChecked {
            return format!("{file}: {}\n", self.paint("nothing was checked", YELLOW));
        }
        let head = match &against {
            Some(against) => self.paint(&format!("{file} agrees with {against}"), GREEN),
            None => self.paint(
                &format!("{file} is sound, but was not held against a checkpoint"),
                YELLOW,
            ),
        };
        let levels: Vec<_> = report
            .levels
            .iter()
            .filter(|level| level.status == Status::Passed)
            .map(|level| level.number.to_string())
            .collect();
        format!(
            "{head}: all {checks} checks passed ({} {})\n",
            if levels.len() == 1 { "level" } else { "levels" },
            levels.join(", ")
        )
    }

    fn level(&self, level: &Level) -> String {
        let status = match level.status {
            Status::Passed => self.paint("passed", GREEN),
            Status::Failed => self.paint("failed", RED),
            Status::NotChecked => self.paint("not checked", YELLOW),
            Status::Measured => "measured".into(),
        };
        let mut text = format!("\nlevel {} {}: {status}\n", level.number, level.name);
        let rows: Vec<_> = level.checks.iter().map(row).collect();
        if !rows.is_empty() {
            let head = ["", "check", ">found", ">limit", "from"];
            text += &render::marked_table(&head, rows, |row, mark| {
                self.paint(mark, if level.checks[row].pass { GREEN } else { RED })
            });
        }
        for not in &level.not_checked {
            text += &format!(
                "  {}: {}: {}\n",
                self.paint("not checked", YELLOW),
                shown(&not.what),
                shown(&not.why)
            );
        }
        text
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.into()
        }
    }
}

fn row(check: &Check) -> Vec<String> {
    vec![
        if check.pass { "  ok" } else { "FAIL" }.into(),
        check.name.clone(),
        found(check),
        limit(check),
        check.origin.into(),
    ]
}

const RED: Style = AnsiColor::Red.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();

/// What was found, with its unit: `0 wrong of 3 145 728 codes`, `1.7e-4 nats/token`.
pub(super) fn found(check: &Check) -> String {
    match check.of {
        Some(of) => format!(
            "{} wrong of {} {}",
            render::count(check.found as u64),
            render::count(of),
            check.unit
        ),
        None => quantity(check.found, check.unit),
    }
}

/// The limit, with the unit of what was found: `<= 5.0e-4 nats`; `0` where things are counted.
pub(super) fn limit(check: &Check) -> String {
    match (check.of, check.limit) {
        (Some(_), _) => "0".into(),
        (None, Limit::AtMost(limit)) => format!("<= {}", quantity(limit, check.unit)),
        (None, Limit::AtLeast(limit)) => format!(">= {}", quantity(limit, check.unit)),
    }
}

/// `native` of `native (kernel, threads)`.
pub(super) fn short(name: &str) -> &str {
    name.split(" (").next().unwrap_or(name)
}

fn quantity(value: f64, unit: &str) -> String {
    if unit == "share" {
        return render::percent(value);
    }
    let number = match value.abs() {
        0.01..1000.0 => format!("{value:.2}"),
        _ => render::small(value),
    };
    format!("{number} {unit}").trim_end().to_owned()
}

/// Figures that are no checks: perplexities, speeds.
fn facts(report: &Report) -> String {
    let mut text = String::new();
    if let Some(facts) = &report.text {
        text += &format!(
            "\nover {} predictions of {}, windows of {} tokens\n",
            render::count(facts.tokens as u64),
            shown(&facts.source),
            facts.window
        );
        let engines = std::iter::once(&facts.reference).chain(&facts.tested);
        let rows = engines.map(|engine| {
            let from = |value: Option<String>| value.unwrap_or_default();
            vec![
                format!("  {}", engine.name),
                format!("{:.4}", engine.perplexity),
                from((!engine.kld.is_empty()).then(|| quantity(mean(&engine.kld), "nats/token"))),
                from(engine.top1.map(render::percent)),
            ]
        });
        let reference = short(&facts.reference.name);
        let kld = format!(">mean KLD from {reference}");
        text += &render::table(&["", ">perplexity", &kld, ">top-1"], rows.collect());
        text += &format!(
            "rounded activations cost this model {}\n",
            quantity(facts.rounding, "nats/token")
        );
    }
    if let Some(speed) = &report.speed {
        text += &super::bench::speed_text(speed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!(quantity(0.985, "share"), "98.5 %");
        assert_eq!(quantity(1.7e-4, "nats/token"), "1.7e-4 nats/token");
        assert_eq!(quantity(0.25, ""), "0.25");
    }
}
