//! `tqconv bench`: the speed of matrix products, ours and llama.cpp's, side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use formats::block::BlockType;

use super::activations::ActivationsArgs;
use super::render;
use crate::bench::{Case, LoadFacts, Outcome, Rate, Seconds, SpeedFacts, Workload, measure, race};
use crate::engine::EngineError;
use crate::engine::threads_text;
use crate::kernels::{Isa, Options};
use crate::mapped::Model;
use crate::witness::{Program, Witness, WitnessError};

/// Measure speed, ours and llama.cpp's, in one run
///
/// With a GGUF file: prefill and decode of the whole model by both engines, in turn. Without: single matrix products
/// against llama.cpp's ggml, and as a share of what this machine reads from memory ("of read") and of what its dot
/// instruction does on registers alone ("of dots", which the kernel avx512lookup can pass).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  tqconv bench model.gguf                         prefill and decode, ours and llama.cpp's
  tqconv bench --type tq2_0 --shape 2048x8192     one matrix product")]
pub struct BenchArgs {
    /// A packed model; without one, matrix products are measured
    model: Option<PathBuf>,
    /// Tokens of a prefill, with a model
    #[arg(long, value_name = "N", default_value = "128", value_parser = count(65536), requires = "model")]
    prefill: usize,
    /// Tokens decoded after it, with a model
    #[arg(long, value_name = "N", default_value = "32", value_parser = count(65536), requires = "model")]
    decode: usize,
    /// Runs of each engine, with a model
    #[arg(long, value_name = "N", default_value = "5", value_parser = count(1000), requires = "model")]
    runs: usize,
    /// Shapes of the weight matrices
    #[arg(long = "shape", value_name = "ROWSxCOLUMNS", value_delimiter = ',', value_parser = shape,
          default_values = ["2048x2048", "8192x2048", "2048x8192"], conflicts_with = "model")]
    shapes: Vec<(usize, usize)>,
    /// Types of the weights
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = block_type,
          default_values = ["tq2_0", "q2_0", "q2_k"], conflicts_with = "model")]
    types: Vec<BlockType>,
    /// Tokens in one product; 1 is decode
    #[arg(long, value_name = "N", value_delimiter = ',', default_values = ["1", "8", "128"],
          value_parser = count(65536), conflicts_with = "model")]
    tokens: Vec<usize>,
    /// Numbers of threads to measure with, the same on both sides
    #[arg(long, value_name = "N", value_delimiter = ',', default_values = ["1", "2"], value_parser = super::threads)]
    thread_counts: Vec<usize>,
    /// Instructions for our side: scalar, avx2, avxvnni, avx512vnni, avx512lookup, neon-dotprod or neon-i8mm
    #[arg(long, conflicts_with = "model")]
    isa: Option<Isa>,
    #[command(flatten)]
    rounding: ActivationsArgs,
    /// Keep one matrix in the cache; without this many are read from memory in turn
    #[arg(long, conflicts_with = "model")]
    hot: bool,
    /// Seconds for each case
    #[arg(long, default_value = "1", value_parser = seconds, conflicts_with = "model")]
    seconds: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A number of 1 to `most`.
fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    match seconds {
        Some(Ok(seconds)) => Ok(seconds),
        _ => Err(format!("'{text}' is not a number of seconds such as 0.5")),
    }
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
    text.split_once('x')
        .and_then(|(rows, columns)| Some((number(rows)?, number(columns)?)))
        .filter(|&(rows, columns)| rows.checked_mul(columns).is_some_and(|n| n <= 1 << 31))
        .ok_or_else(|| format!("'{text}' is no shape such as 2048x8192, of at most 2^31 weights"))
}

fn block_type(text: &str) -> Result<BlockType, String> {
    BlockType::from_name(text).ok_or_else(|| format!("no block type is called '{text}'"))
}

/// Measure and print; nothing is good or bad here: exit code 0.
///
/// # Errors
/// The model cannot be read, or does not load.
pub fn run(args: &BenchArgs, program: &Program) -> Result<ExitCode> {
    match &args.model {
        Some(model) => bench_model(args, program, model),
        None => bench_products(args, program),
    }
}

fn bench_model(args: &BenchArgs, program: &Program, model: &Path) -> Result<ExitCode> {
    let place = || model.display().to_string();
    let opened = Model::open(model)?;
    let file = opened.parse()?;
    let mut outcomes = vec![];
    for &threads in &args.thread_counts {
        let workload = Workload {
            prefill: args.prefill,
            decode: args.decode,
            runs: args.runs,
            patience: Duration::from_secs(600),
            activations: args.rounding.activations,
            ..Workload::new(threads)
        };
        let (facts, missing) = race(model, &file, program, workload, &|_| {}).with_context(place)?;
        if let Some(error) = missing.filter(|error| !is_not_built_in(error)) {
            return Err(error).with_context(place);
        }
        outcomes.push(facts);
    }
    if args.json {
        return super::print_json(&serde_json::to_value(&outcomes)?);
    }
    let mut text: String = outcomes.iter().map(speed_text).collect();
    if !program.has_llama() {
        text += &without_llama();
    }
    super::print(&text)
}

/// Both engines beside each other, what it took to load ours, and the ratio of the medians last.
pub(super) fn speed_text(speed: &SpeedFacts) -> String {
    let mut text = format!(
        "\nspeed with {}, medians of {} runs in turn (slowest to fastest): prefill of {} tokens, decode of {}; \
         memory reads {:.1} GB/s\n",
        threads_text(speed.threads),
        speed.runs,
        speed.prefill_tokens,
        speed.decode_tokens,
        speed.bandwidth
    );
    let rate = |rate: Rate| format!("{:.1} tok/s ({:.1} to {:.1})", rate.median, rate.min, rate.max);
    let rows = speed.engines.iter().map(|engine| {
        vec![
            format!("  {}", engine.name),
            rate(engine.prefill),
            rate(engine.decode),
            format!("{:.2} GB/s", engine.read_rate),
            render::percent(engine.read_rate / speed.bandwidth),
        ]
    });
    let head = ["  engine", ">prefill", ">decode", ">weights", ">of memory"];
    text += &render::table(&head, rows.collect());
    text += &load_text(&speed.load);
    if let [ours, theirs] = &speed.engines[..] {
        text += &format!(
            "  ours to theirs: prefill {:.2}x, decode {:.2}x\n",
            ours.prefill.median / theirs.prefill.median,
            ours.decode.median / theirs.decode.median
        );
    }
    text
}

/// The first load may wait for the disk; the rate is of the second.
fn load_text(load: &LoadFacts) -> String {
    format!(
        "  our engine loads in {:.3} s with {} (the first time {:.3} s): {} of weights in the file at {:.2} GB/s, packed into \
         {} of memory\n",
        load.seconds,
        threads_text(load.threads),
        load.first_seconds,
        render::bytes(load.stored_bytes),
        load.stored_rate,
        render::bytes(load.packed_bytes),
    )
}

fn bench_products(args: &BenchArgs, program: &Program) -> Result<ExitCode> {
    let options = Options {
        isa: args.isa.unwrap_or(Isa::best()),
        activations: args.rounding.activations,
    };
    let mut witness = match Witness::start(program) {
        Ok(witness) => Some(witness),
        Err(WitnessError::NotBuiltIn) => None,
        Err(error) => return Err(error.into()),
    };
    let mut outcomes = Vec::new();
    for &ty in &args.types {
        for &(rows, columns) in &args.shapes {
            for &tokens in &args.tokens {
                for &threads in &args.thread_counts {
                    let case = Case {
                        ty,
                        rows,
                        columns,
                        tokens,
                        threads,
                        hot: args.hot,
                        options,
                        time: args.seconds,
                    };
                    outcomes.push(measure(&case, witness.as_mut()).map_err(|error| anyhow!(error))?);
                }
            }
        }
    }
    if args.json {
        return super::print_json(&serde_json::to_value(&outcomes)?);
    }
    let ggml = witness.map_or_else(without_llama, |witness| {
        format!("{}: {}\n", witness.build(), witness.system())
    });
    super::print(&(table(&outcomes) + &ggml))
}

fn without_llama() -> String {
    format!("llama.cpp was not measured: {}\n", WitnessError::NotBuiltIn)
}

fn is_not_built_in(error: &EngineError) -> bool {
    matches!(error, EngineError::Witness(WitnessError::NotBuiltIn))
}

fn table(outcomes: &[Outcome]) -> String {
    const HEAD: [&str; 12] = [
        "type",
        "rows x columns",
        ">tokens",
        ">threads",
        ">ours us",
        ">ggml us",
        ">ratio",
        ">GB/s",
        ">of read",
        ">GMAC/s",
        ">of dots",
        "kernel",
    ];
    let row = |o: &Outcome| {
        let micro = |s: Seconds| format!("{:.1} ({:.1}..{:.1})", s.median * 1e6, s.p10 * 1e6, s.p90 * 1e6);
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let none = || "-".to_string();
        vec![
            o.ty.clone(),
            format!("{}x{}{}", o.rows, o.columns, if o.hot { " hot" } else { "" }),
            o.tokens.to_string(),
            o.threads.to_string(),
            micro(o.ours),
            o.ggml.map_or_else(none, micro),
            o.ratio.map_or_else(none, |ratio| format!("{ratio:.2}x")),
            format!("{:.1}", o.read),
            percent(o.read / o.machine_read),
            format!("{:.0}", o.macs),
            o.machine_macs.map_or_else(none, |peak| percent(o.macs / peak)),
            o.kernel.clone(),
        ]
    };
    render::table(&HEAD, outcomes.iter().map(row).collect())
}
