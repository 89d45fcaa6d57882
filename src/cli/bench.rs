//! `tqconv bench`: the speed of matrix products, ours and llama.cpp's, side by side.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use super::activations::ActivationsArgs;
use super::cache::CacheArgs;
use super::json::{Document, print_json};
use super::{lossy, render};
use crate::bench::{
    Case, EngineSpeed, Line, LoadFacts, Outcome, Rate, Seconds, SpeedFacts, TokenCost, Workload, measure, race,
};
use crate::engine::EngineError;
use crate::engine::threads_text;
use crate::kernels::{Isa, KernelError, Options};
use crate::mapped::Model;
use crate::witness::{Witness, WitnessError};

/// Measure speed, ours and llama.cpp's, in one run
///
/// With a GGUF file: prefill and decode of the whole model by both engines, in turn. Without: single matrix products
/// against llama.cpp's ggml, and as a share of what this machine reads from memory ("of read") and of what its dot
/// instruction does from the first-level cache ("of dots", which the kernel avx512lookup can pass).
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
    /// Instructions of our matrix products: scalar, avx2, avxvnni, avx512vnni, avx512lookup, amx, neon-dotprod or
    /// neon-i8mm
    #[arg(long, value_parser = available)]
    isa: Option<Isa>,
    #[command(flatten)]
    rounding: ActivationsArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Keep one matrix in the cache; without this many are read from memory in turn
    #[arg(long, conflicts_with = "model")]
    hot: bool,
    /// Seconds for each case
    #[arg(long, default_value = "1", value_parser = seconds, conflicts_with = "model")]
    seconds: Duration,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `tqconv bench --json`: of a model, or of single products.
#[derive(Serialize, JsonSchema)]
pub(super) struct BenchReport {
    /// The model, where one was measured.
    path: Option<String>,
    /// The model, once for each number of threads.
    models: Vec<SpeedFacts>,
    /// Single products.
    products: Vec<Outcome>,
    /// What products with one token take besides reading, where several sizes were measured.
    one_token: Vec<TokenCost>,
}

impl Document for BenchReport {
    const SCHEMA: &'static str = "tqconv.bench/1";
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

/// An instruction set that is here.
fn available(text: &str) -> Result<Isa, String> {
    let isa = text.parse()?;
    match Isa::available().contains(&isa) {
        true => Ok(isa),
        false => Err(KernelError::Isa { isa }.to_string()),
    }
}

fn block_type(text: &str) -> Result<BlockType, String> {
    BlockType::from_name(text).ok_or_else(|| format!("no block type is called '{text}'"))
}

/// Measure and print; nothing is good or bad here: exit code 0.
///
/// # Errors
/// The model cannot be read, or does not load.
pub(super) fn run(args: &BenchArgs, context: &super::Context) -> Result<ExitCode> {
    match &args.model {
        Some(model) => bench_model(args, context, model),
        None => bench_products(args, context),
    }
}

fn bench_model(args: &BenchArgs, context: &super::Context, model: &Path) -> Result<ExitCode> {
    let place = || model.display().to_string();
    let opened = Model::open(model)?;
    let file = opened.parse()?;
    let bar = render::spinner(!context.quiet);
    let progress = |doing: &str, share| render::show(&bar, doing, share);
    let mut outcomes = vec![];
    for &threads in &args.thread_counts {
        let workload = Workload {
            prefill: args.prefill,
            decode: args.decode,
            runs: args.runs,
            patience: Duration::from_secs(600),
            isa: args.isa.unwrap_or(Isa::best()),
            activations: args.rounding.activations,
            cache: args.cache.types(),
            ..Workload::new(threads)
        };
        let (facts, missing) = race(model, &file, &context.witness, workload, &progress).with_context(place)?;
        if let Some(error) = missing.filter(|error| !is_not_built_in(error)) {
            return Err(error).with_context(place);
        }
        outcomes.push(facts);
    }
    bar.finish_and_clear();
    if args.json {
        return print_json(&BenchReport {
            path: Some(lossy(model)),
            models: outcomes,
            products: vec![],
            one_token: vec![],
        });
    }
    let mut text: String = outcomes
        .iter()
        .map(|speed| speed_text(speed, context.verbose))
        .collect();
    if !context.witness.has_llama() {
        text += &without_llama();
    }
    super::print(&text)
}

/// Both engines beside each other, what it took to load ours, and the ratio of the medians last. `verbose`: with the names
/// of the kernels.
pub(super) fn speed_text(speed: &SpeedFacts, verbose: bool) -> String {
    let mut text = format!(
        "\nspeed with {}: prefill of {} tokens, decode of {}\n  tokens a second, medians of {} runs in turn (slowest to \
         fastest)\n",
        threads_text(speed.threads),
        speed.prefill_tokens,
        speed.decode_tokens,
        speed.runs,
    );
    let rate = |rate: Rate| {
        let digits = usize::from(rate.max < 100.0);
        let [median, min, max] = [rate.median, rate.min, rate.max].map(|rate| format!("{rate:.digits$}"));
        format!("{median} ({min} to {max})")
    };
    let rows = speed.engines.iter().map(|engine| {
        let name = match verbose {
            true => engine.name.to_string(),
            false => engine.name.short.into(),
        };
        vec![
            format!("  {name}"),
            rate(engine.prefill),
            rate(engine.decode),
            format!("{:.1} GB/s", engine.read_rate),
            render::percent(engine.read_rate / speed.bandwidth),
        ]
    });
    let head = ["  engine", ">prefill", ">decode", ">reads", ">of memory"];
    text += &render::table(&head, rows.collect());
    text += &tokens_text(speed);
    text += &load_text(&speed.load);
    text += &cache_text(speed);
    if let [ours, theirs] = &speed.engines[..] {
        text += &format!(
            "  ours to theirs: prefill {:.2}x, decode {:.2}x\n",
            ours.prefill.median / theirs.prefill.median,
            ours.decode.median / theirs.decode.median
        );
    }
    text
}

/// What a decoded token takes: to read weights, keys and values as fast as memory gives them, and besides.
fn tokens_text(speed: &SpeedFacts) -> String {
    let of_engine = |engine: &EngineSpeed| {
        let bytes = engine.bytes_per_token + engine.cache_bytes_per_token;
        let reading = bytes as f64 / 1e9 / speed.bandwidth;
        let besides = 1.0 / engine.decode.median - reading;
        format!("{} {:.1} + {:.1} ms", engine.name.short, reading * 1e3, besides * 1e3)
    };
    let engines: Vec<_> = speed.engines.iter().map(of_engine).collect();
    format!(
        "  memory reads {:.1} GB/s; a token takes, for weights and cache + the rest:\n    {}\n",
        speed.bandwidth,
        engines.join(", ")
    )
}

/// The first load may wait for the disk; the rate is of the second.
fn load_text(load: &LoadFacts) -> String {
    format!(
        "  our engine loads in {:.3} s with {} (the first time {:.3} s):\n    {} of weights in the file at {:.2} GB/s, in {} of \
         memory\n",
        load.seconds,
        threads_text(load.threads),
        load.first_seconds,
        render::bytes(load.stored_bytes),
        load.stored_rate,
        render::bytes(load.packed_bytes),
    )
}

/// What keys and values of the whole context take in our engine, and what each engine keeps them in.
fn cache_text(speed: &SpeedFacts) -> String {
    let engines = speed.engines.iter().map(|engine| &engine.name);
    let caches = engines.filter_map(|name| Some(format!("{}: {}", name.short, name.cache()?)));
    format!(
        "  keys and values of {} tokens take {} in our engine\n    {}\n",
        speed.prefill_tokens + speed.decode_tokens,
        render::bytes(speed.cache_bytes),
        caches.collect::<Vec<_>>().join("; ")
    )
}

fn bench_products(args: &BenchArgs, context: &super::Context) -> Result<ExitCode> {
    args.cache
        .unused("single products have no keys and values", "name a model")?;
    let options = Options {
        isa: args.isa.unwrap_or(Isa::best()),
        activations: args.rounding.activations,
        ..Options::default()
    };
    let mut witness = match Witness::start(&context.witness) {
        Ok(witness) => Some(witness),
        Err(WitnessError::NotBuiltIn) => None,
        Err(error) => return Err(error.into()),
    };
    let bar = render::spinner(!context.quiet);
    let all = args.types.len() * args.shapes.len() * args.tokens.len() * args.thread_counts.len();
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
                    let doing = format!("{ty}, {rows} x {columns}, {tokens} tokens");
                    render::show(&bar, &doing, Some(outcomes.len() as f64 / all as f64));
                    outcomes.push(measure(&case, witness.as_mut()).map_err(|error| anyhow!(error))?);
                }
            }
        }
    }
    bar.finish_and_clear();
    let costs = TokenCost::of(&outcomes);
    if args.json {
        return print_json(&BenchReport {
            path: None,
            models: vec![],
            products: outcomes,
            one_token: costs,
        });
    }
    let ggml = witness.map_or_else(without_llama, |witness| {
        format!("{}\n{}", witness.build(), ggml_text(args.isa, witness.system()))
    });
    super::print(&(table(&outcomes, context.verbose) + &costs_text(&costs) + &disturbed_text(&outcomes) + &ggml))
}

/// Width that lines of words are filled to.
const WIDTH: usize = 80;

/// The instructions that ggml was built for: our `isa` does not bind it.
fn ggml_text(isa: Option<Isa>, system: &str) -> String {
    let bound = match isa {
        Some(isa) => format!(" --isa {isa} binds our side alone: a fair ratio takes a llama.cpp built for the same."),
        None => String::new(),
    };
    let on = |flag: &str| {
        flag.trim_start_matches("CPU : ")
            .strip_suffix(" = 1")
            .map(str::to_owned)
    };
    let built: Vec<_> = system.split(" | ").filter_map(on).collect();
    filled(&format!(
        "ggml uses what it was built for: {}.{bound}",
        built.join(", ")
    ))
}

/// Words in lines of up to [`WIDTH`] columns.
fn filled(words: &str) -> String {
    let mut lines = vec![String::new()];
    for word in words.split(' ') {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.len() + 1 + word.len() <= WIDTH {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("  {word}"));
        }
    }
    lines.join("\n") + "\n"
}

/// Time as a + b x bytes over the shapes, for one token.
fn costs_text(costs: &[TokenCost]) -> String {
    if costs.is_empty() {
        return String::new();
    }
    let cells = |line: Option<Line>| match line {
        Some(line) => [format!("{:.1}", line.fixed * 1e6), format!("{:.1}", line.rate)],
        None => ["-".into(), "-".into()],
    };
    let row = |cost: &TokenCost| {
        let lines = [Some(cost.ours), cost.ggml].map(cells);
        let names = [cost.ty.clone(), cost.threads.to_string()];
        names.into_iter().chain(lines.into_iter().flatten()).collect()
    };
    let head = ["type", ">threads", ">ours us", ">GB/s", ">ggml us", ">GB/s"];
    let table = render::table(&head, costs.iter().map(row).collect());
    format!("\none token: a fixed time, and the weights at a rate\n{table}")
}

/// Cases of which more than a tenth was measured while something else ran.
fn disturbed_text(outcomes: &[Outcome]) -> String {
    let disturbed = outcomes
        .iter()
        .filter_map(|o| Some((o, o.disturbed.filter(|&turns| 10 * turns > o.turns)?)));
    let line = |(o, disturbed): (&Outcome, usize)| {
        let Outcome {
            turns,
            ty,
            rows,
            columns,
            tokens,
            ..
        } = o;
        let (s, threads) = (if *tokens == 1 { "" } else { "s" }, threads_text(o.threads));
        format!("  {disturbed} of {turns} turns of {ty} {rows}x{columns}, {tokens} token{s}, {threads}\n")
    };
    let lines: String = disturbed.map(line).collect();
    match lines.is_empty() {
        true => lines,
        false => {
            filled("\ndisturbed, as the dot instruction ran below 90 % of its best (trust the ratios, not the times):")
                + &lines
        }
    }
}

fn without_llama() -> String {
    format!("llama.cpp was not measured: {}\n", WitnessError::NotBuiltIn)
}

fn is_not_built_in(error: &EngineError) -> bool {
    matches!(error, EngineError::Witness(WitnessError::NotBuiltIn))
}

/// `verbose`: with the spread, the absolute figures and the names of the kernels.
fn table(outcomes: &[Outcome], verbose: bool) -> String {
    let row = |o: &Outcome| {
        let micro = |s: Seconds| match verbose {
            true => format!("{:.1} ({:.1}..{:.1})", s.median * 1e6, s.p10 * 1e6, s.p90 * 1e6),
            false => format!("{:.1}", s.median * 1e6),
        };
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let none = || "-".to_string();
        let brief = [
            ("type", o.ty.clone()),
            (
                "shape",
                format!("{}x{}{}", o.rows, o.columns, if o.hot { " hot" } else { "" }),
            ),
            (">tokens", o.tokens.to_string()),
            (">threads", o.threads.to_string()),
            (">ours us", micro(o.ours)),
            (">ggml us", o.ggml.map_or_else(none, micro)),
            (">ratio", o.ratio.map_or_else(none, |ratio| format!("{ratio:.2}x"))),
            (">of read", percent(o.read / o.machine_read)),
            (
                ">of dots",
                o.machine_macs.map_or_else(none, |peak| percent(o.macs / peak)),
            ),
        ];
        let more = [
            (">GB/s", format!("{:.1}", o.read)),
            (">GMAC/s", format!("{:.0}", o.macs)),
            ("kernel", o.kernel.clone()),
        ];
        let shown = if verbose { more.len() } else { 0 };
        brief.into_iter().chain(more.into_iter().take(shown)).unzip()
    };
    let rows: Vec<(Vec<&str>, Vec<String>)> = outcomes.iter().map(row).collect();
    let head = rows.first().map_or(vec![], |(head, _)| head.clone());
    render::table(&head, rows.into_iter().map(|(_, cells)| cells).collect())
}

#[cfg(test)]
mod tests;
