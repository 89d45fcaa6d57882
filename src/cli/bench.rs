//! `tqconv bench`: the speed of matrix products, ours and llama.cpp's, side by side.

use crate::kernels::bench::{Case, Outcome, Seconds, measure};
use crate::kernels::{Isa, Options, Precision};
use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use formats::block::BlockType;
use std::process::ExitCode;
use std::time::Duration;

/// Measure matrix products against llama.cpp's ggml and against what this machine can do at most.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Shapes of the weight matrices
    #[arg(long = "shape", value_name = "ROWSxCOLUMNS", value_delimiter = ',', value_parser = shape,
          default_values = ["2048x2048", "8192x2048", "2048x8192"])]
    shapes: Vec<(usize, usize)>,
    /// Types of the weights
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = block_type,
          default_values = ["tq2_0", "q2_0", "q2_k"])]
    types: Vec<BlockType>,
    /// Tokens in one product; 1 is decode
    #[arg(long, value_delimiter = ',', default_values = ["1", "8", "128"])]
    tokens: Vec<usize>,
    /// Numbers of threads to measure with, the same on both sides
    #[arg(long, value_name = "N", value_delimiter = ',', default_values = ["1", "2"])]
    thread_counts: Vec<usize>,
    /// Instructions for our side: scalar, avx2, avxvnni, avx512vnni, neon-dotprod or neon-i8mm
    #[arg(long)]
    isa: Option<Isa>,
    /// Quantize the activations of Q2_0 and Q4_0 in groups of 64 to 256, not of 32 as llama.cpp does
    #[arg(long)]
    fast: bool,
    /// Keep one matrix in the cache; without this many are read from memory in turn
    #[arg(long)]
    hot: bool,
    /// Seconds for each case
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn shape(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| text.parse().ok().filter(|&n: &usize| n > 0);
    text.split_once('x')
        .and_then(|(rows, columns)| Some((number(rows)?, number(columns)?)))
        .ok_or_else(|| format!("'{text}' is no shape such as 2048x8192"))
}

fn block_type(text: &str) -> Result<BlockType, String> {
    BlockType::from_name(text).ok_or_else(|| format!("no block type is called '{text}'"))
}

/// Measure, print as it goes, and say nothing about good or bad: exit code 0.
pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let isa = args.isa.unwrap_or(Isa::best());
    let precision = if args.fast {
        Precision::Fast
    } else {
        Precision::Exact
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
                        tokens: tokens.max(1),
                        threads: threads.max(1),
                        hot: args.hot,
                        options: Options { isa, precision },
                        time: Duration::try_from_secs_f64(args.seconds).context("--seconds")?,
                    };
                    outcomes.push(measure(&case)?);
                }
            }
        }
    }
    if args.json {
        return super::print_json(&serde_json::to_value(&outcomes)?);
    }
    #[cfg(feature = "llama")]
    let witness = format!("ggml: {}\n", crate::kernels::ggml::system());
    #[cfg(not(feature = "llama"))]
    let witness = "built without llama.cpp, so there is nothing to compare with\n";
    super::print(&format!("{}\n{witness}", table(&outcomes)))
}

fn table(outcomes: &[Outcome]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "type",
        "rows x columns",
        "tokens",
        "threads",
        "ours us",
        "ggml us",
        "ratio",
        "GB/s",
        "of read",
        "GMAC/s",
        "of peak",
        "kernel",
    ]);
    for o in outcomes {
        let micro = |s: Seconds| {
            format!(
                "{:.1} ({:.1}..{:.1})",
                s.median * 1e6,
                s.p10 * 1e6,
                s.p90 * 1e6
            )
        };
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        let none = || "-".to_string();
        table.add_row([
            o.ty.clone(),
            format!(
                "{}x{}{}",
                o.rows,
                o.columns,
                if o.hot { " hot" } else { "" }
            ),
            o.tokens.to_string(),
            o.threads.to_string(),
            micro(o.ours),
            o.ggml.map_or_else(none, micro),
            o.ratio.map_or_else(none, |ratio| format!("{ratio:.2}x")),
            format!("{:.1}", o.read),
            percent(o.read / o.machine_read),
            format!("{:.0}", o.macs),
            o.machine_macs
                .map_or_else(none, |peak| percent(o.macs / peak)),
            o.kernel.clone(),
        ]);
    }
    for column in table.column_iter_mut().skip(2).take(9) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
