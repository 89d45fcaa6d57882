//! `tqconv run`: text from a GGUF file, by the native engine or by llama.cpp.

use std::borrow::Cow;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use formats::gguf::File;
use serde_json::json;

use super::activations::ActivationsArgs;
use super::text::shown_json;
use super::{Context, INTERRUPTED, stop_signal};
use crate::engine::Generate;
use crate::engine::hyper::Hyper;
use crate::engine::llamacpp::{self, Model};
use crate::engine::native::{Native, Settings};
use crate::engine::sample::Sampler;
use crate::engine::text::Text;
use crate::mapped;
use crate::witness::Program;

/// Generate text with a GGUF file
///
/// Continues the prompt and prints the whole text as it comes, until Ctrl-C at the latest. The last line, on stderr,
/// says how fast it went and by which kernel. The native engine runs the file's ternary weights on kernels of our own;
/// llama.cpp runs the same file as anybody else's would.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv run model.gguf -p \"In the beginning\"         continue a text
  tqconv run model.gguf -p - < story.txt              continue standard input
  tqconv run model.gguf -p \"Once\" --temp 0.8 --seed 7   draw tokens")]
pub struct RunArgs {
    /// The GGUF file
    model: PathBuf,
    /// The text to continue; - reads it from standard input
    #[arg(short, long, default_value = "", hide_default_value = true)]
    prompt: String,
    /// Take special tokens that the prompt writes out, such as <|user|>, for those tokens
    #[arg(long)]
    special: bool,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    tokens: usize,
    /// How freely tokens are drawn; 0 takes the most likely one each time
    #[arg(long, alias = "temp", value_name = "T", default_value = "0", value_parser = parse_temperature)]
    temperature: f64,
    /// Draw from the fewest tokens that together have this probability
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse_share)]
    top_p: f64,
    /// Where the draws start: the same seed draws the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What computes
    #[arg(long, value_enum, default_value_t = EngineArg::Native)]
    engine: EngineArg,
    #[command(flatten)]
    rounding: ActivationsArgs,
    /// Print JSON, at the end
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum EngineArg {
    /// Packed weights on our kernels
    Native,
    /// llama.cpp, as it was built into this program or named by --llama
    #[value(name = "llama.cpp", alias = "llama")]
    LlamaCpp,
}

fn parse_temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(temperature) if (0.0..f64::INFINITY).contains(&temperature) => Ok(temperature),
        _ => Err("expected a number that is not negative, for example 0.8".into()),
    }
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a probability from 0 to 1, for example 0.95".into()),
    }
}

/// Run the command.
///
/// # Errors
/// A file that cannot be read or run, or a prompt that does not fit the model's context.
pub fn run(args: &RunArgs, context: &Context) -> anyhow::Result<ExitCode> {
    run_file(args, context).with_context(|| args.model.display().to_string())
}

fn run_file(args: &RunArgs, called: &Context) -> anyhow::Result<ExitCode> {
    if matches!(args.engine, EngineArg::LlamaCpp) {
        args.rounding.of_llama_cpp()?;
    }
    let model = mapped::Model::open(&args.model)?;
    let file = model.parse()?;
    let hyper = Hyper::read(&file)?;
    let text = Text::from_gguf(&file)?;
    let written = prompt(&args.prompt)?;
    let prompt = if args.special {
        text.encode_with_specials(&written, true)
    } else {
        text.encode(&written, true)
    };
    if prompt.is_empty() {
        anyhow::bail!("there is no text to continue; give one with -p TEXT");
    }
    // The last token is printed and not run, so it needs no place in the context.
    let context = (prompt.len() + args.tokens.saturating_sub(1)).min(hyper.context).max(1);
    let job = Job {
        args,
        quiet: called.quiet,
        written: &written,
        text: &text,
        prompt: &prompt,
    };
    let threads = rayon::current_num_threads();
    match args.engine {
        EngineArg::Native => {
            let settings = Settings::new(context, threads).with_activations(args.rounding.activations);
            let mut engine = Native::load(&file, settings)?;
            let load_time = engine.load_time();
            job.run(&mut engine, load_time)
        }
        EngineArg::LlamaCpp => run_llamacpp(&job, &called.witness, &file, context, threads),
    }
}

/// The text to continue: as given, or all of standard input without its last line end.
fn prompt(given: &str) -> anyhow::Result<Cow<'_, str>> {
    if given != "-" {
        return Ok(given.into());
    }
    let mut text = io::read_to_string(io::stdin()).context("standard input")?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text.into())
}

fn run_llamacpp(job: &Job, program: &Program, file: &File, context: usize, threads: usize) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let model = Model::load(program, &job.args.model, file)?;
    let mut engine = model.session(llamacpp::Settings {
        context,
        threads,
        exact_cache: false,
    })?;
    job.run(&mut engine, start.elapsed())
}

/// What is to be generated.
struct Job<'a> {
    args: &'a RunArgs,
    quiet: bool,
    /// The text to continue.
    written: &'a str,
    text: &'a Text,
    prompt: &'a [u32],
}

/// What was generated, and how fast.
#[derive(Default)]
struct Outcome {
    tokens: Vec<u32>,
    text: String,
    stopped: Stop,
    prefill: Duration,
    /// Tokens run one at a time: those of `tokens` that another one followed.
    decoded: usize,
    decode: Duration,
}

/// Why generation stopped.
#[derive(Clone, Copy, Default)]
enum Stop {
    /// As many tokens as asked for.
    #[default]
    Length,
    /// The model ended the text.
    End,
    /// The context is full.
    Context,
    /// The pipe that is written to is closed.
    Closed,
    /// The user has interrupted it.
    Interrupted,
}

impl Job<'_> {
    fn run(&self, engine: &mut dyn Generate, load_time: Duration) -> anyhow::Result<ExitCode> {
        let outcome = if self.args.json {
            self.generate(engine, &mut io::sink())?
        } else {
            self.generate(engine, &mut io::stdout().lock())?
        };
        if self.args.json {
            self.print_json(engine, &outcome, load_time)?;
        } else if !self.quiet {
            self.print_speed(engine, &outcome, load_time);
        }
        Ok(match outcome.stopped {
            Stop::Interrupted => ExitCode::from(INTERRUPTED),
            _ => ExitCode::SUCCESS,
        })
    }

    /// Continue the prompt, writing the text to `out` as it comes.
    fn generate(&self, engine: &mut dyn Generate, out: &mut dyn Write) -> anyhow::Result<Outcome> {
        let args = self.args;
        let mut outcome = Outcome::default();
        let mut sampler = Sampler::new(args.temperature, args.top_p, args.seed);
        let mut decoder = self.text.decoder();

        let start = Instant::now();
        let mut logits = engine.feed(self.prompt).context("the prompt cannot be run")?;
        outcome.prefill = start.elapsed();
        let stop = stop_signal()?;
        let mut open = write_text(out, self.written)?;
        while outcome.tokens.len() < args.tokens {
            let token = sampler.pick(&logits);
            if self.text.is_end(token) {
                outcome.stopped = Stop::End;
                break;
            }
            outcome.tokens.push(token);
            let piece = decoder.push(token);
            open = open && write_text(out, &piece)?;
            outcome.text += &piece;
            if !open {
                outcome.stopped = Stop::Closed;
                break;
            }
            if outcome.tokens.len() == args.tokens {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                outcome.stopped = Stop::Interrupted;
                break;
            }
            if self.prompt.len() + outcome.decoded == engine.context() {
                outcome.stopped = Stop::Context;
                break;
            }
            let start = Instant::now();
            logits = engine.feed(&[token])?;
            outcome.decode += start.elapsed();
            outcome.decoded += 1;
        }
        let rest = decoder.finish();
        outcome.text += &rest;
        if open {
            write_text(out, &format!("{rest}\n"))?;
        }
        Ok(outcome)
    }

    fn print_speed(&self, engine: &dyn Generate, outcome: &Outcome, load_time: Duration) {
        let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.1}"));
        let (prefill, decode) = self.rates(outcome);
        // Nobody may be listening on stderr either; the text has been delivered all the same.
        let _ = writeln!(
            io::stderr(),
            "prompt: {} tokens, {} tok/s; generated: {} tokens, {} tok/s{}; loaded in {:.2} s; {}",
            self.prompt.len(),
            rate(prefill),
            outcome.tokens.len(),
            rate(decode),
            outcome.stopped.remark(),
            load_time.as_secs_f64(),
            engine.name(),
        );
    }

    fn print_json(&self, engine: &dyn Generate, outcome: &Outcome, load_time: Duration) -> anyhow::Result<()> {
        let (prefill, decode) = self.rates(outcome);
        let report = json!({
            "engine": engine.name(),
            "prompt": self.written,
            "prompt_tokens": self.prompt,
            "text": outcome.text,
            "tokens": outcome.tokens,
            "stopped": outcome.stopped.name(),
            "load_seconds": load_time.as_secs_f64(),
            "prefill_tokens_per_second": prefill,
            "decode_tokens_per_second": decode,
        });
        let report = shown_json(&format!("{report:#}\n"));
        write_text(&mut io::stdout().lock(), &report)?;
        Ok(())
    }

    /// Prefill and decode in tok/s; `None` where nothing was run.
    fn rates(&self, outcome: &Outcome) -> (Option<f64>, Option<f64>) {
        let rate = |tokens: usize, time: Duration| (tokens > 0).then(|| tokens as f64 / time.as_secs_f64());
        (
            rate(self.prompt.len(), outcome.prefill),
            rate(outcome.decoded, outcome.decode),
        )
    }
}

impl Stop {
    fn name(self) -> &'static str {
        match self {
            Stop::Length => "length",
            Stop::End => "end",
            Stop::Context => "context",
            Stop::Closed => "closed",
            Stop::Interrupted => "interrupted",
        }
    }

    fn remark(self) -> &'static str {
        match self {
            Stop::Length | Stop::Closed => "",
            Stop::End => " (the model ended the text)",
            Stop::Context => " (the context is full)",
            Stop::Interrupted => " (interrupted)",
        }
    }
}

/// Write and flush; false where the pipe is closed (EPIPE), which is not an error.
fn write_text(out: &mut dyn Write, text: &str) -> io::Result<bool> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}
