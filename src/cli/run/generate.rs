//! From a prompt to text, token by token, and how fast that was.

use std::io::{self, ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;

use super::RunArgs;
use crate::cli::json::{Document, text_of};
use crate::cli::{Context, lossy};
use crate::engine::native::CacheTypes;
use crate::engine::sample::Sampler;
use crate::engine::text::Text;
use crate::engine::{EngineName, Generate};

/// `tqconv run --json`.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct RunReport {
    path: String,
    engine: EngineName,
    /// The text that was continued: of a chat as its template writes it.
    prompt: String,
    /// The same as tokens.
    prompt_tokens: Vec<u32>,
    /// What was generated.
    text: String,
    /// The same as tokens.
    tokens: Vec<u32>,
    stopped: Stop,
    load_seconds: f64,
    prefill_tokens_per_second: Option<f64>,
    /// Absent where less than two tokens were generated.
    decode_tokens_per_second: Option<f64>,
}

impl Document for RunReport {
    const SCHEMA: &'static str = "tqconv.run/1";
}

/// How texts are generated.
pub struct Job<'a> {
    pub args: &'a RunArgs,
    pub called: &'a Context,
    pub text: &'a Text,
}

/// What was generated, and how fast.
#[derive(Default)]
pub struct Outcome {
    /// Tokens of the prompt that were run.
    prompt: usize,
    tokens: Vec<u32>,
    pub text: String,
    pub stopped: Stop,
    prefill: Duration,
    /// Tokens run one at a time: those of `tokens` that another one followed.
    decoded: usize,
    decode: Duration,
}

/// Why generation stopped.
#[derive(Clone, Copy, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
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

impl Outcome {
    /// One turn more.
    pub fn add(&mut self, turn: Self) {
        self.prompt += turn.prompt;
        self.tokens.extend(turn.tokens);
        self.stopped = turn.stopped;
        self.prefill += turn.prefill;
        self.decoded += turn.decoded;
        self.decode += turn.decode;
    }

    /// Prefill and decode in tok/s; `None` where nothing was run.
    fn rates(&self) -> (Option<f64>, Option<f64>) {
        let rate = |tokens: usize, time: Duration| (tokens > 0).then(|| tokens as f64 / time.as_secs_f64());
        (rate(self.prompt, self.prefill), rate(self.decoded, self.decode))
    }
}

impl Job<'_> {
    /// Continue a prompt from an empty context, writing the text to `out` as it comes. `prompt`: what of it is written,
    /// and its tokens.
    pub fn generate(
        &self,
        engine: &mut dyn Generate,
        sampler: &mut Sampler,
        prompt: (&str, &[u32]),
        out: &mut dyn Write,
        stop: &AtomicBool,
    ) -> anyhow::Result<Outcome> {
        let (shown, prompt) = prompt;
        let (most, mut outcome) = (self.args.most_tokens(), Outcome::default());
        let mut decoder = self.text.decoder();
        let start = Instant::now();
        engine.reset();
        let mut logits = engine.feed(prompt).context("the prompt cannot be run")?;
        (outcome.prefill, outcome.prompt) = (start.elapsed(), prompt.len());
        prompt.iter().for_each(|&token| sampler.accept(token));
        let mut open = write_text(out, shown)?;
        while outcome.tokens.len() < most {
            let token = sampler.pick(&logits);
            if self.text.is_end(token) {
                outcome.stopped = Stop::End;
                break;
            }
            sampler.accept(token);
            outcome.tokens.push(token);
            let piece = decoder.push(token);
            open = open && write_text(out, &piece)?;
            outcome.text += &piece;
            if !open {
                outcome.stopped = Stop::Closed;
                break;
            }
            if outcome.tokens.len() == most {
                break;
            }
            if stop.load(Ordering::Relaxed) {
                outcome.stopped = Stop::Interrupted;
                break;
            }
            if prompt.len() + outcome.decoded == engine.context() {
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

    pub fn print_speed(&self, engine: &dyn Generate, outcome: &Outcome, load_time: Duration) {
        let rate = |rate: Option<f64>| rate.map_or("-".into(), |rate| format!("{rate:.1}"));
        let (prefill, decode) = outcome.rates();
        let name = engine.name();
        // What is as usual is told by -v: the line is to fit 80 columns.
        let cache = name
            .cache()
            .filter(|_| self.args.cache.types() != CacheTypes::default());
        let by = match (self.called.verbose, cache) {
            (true, _) => format!("loaded in {:.2} s; {name}", load_time.as_secs_f64()),
            (false, Some(cache)) => format!("{}, {cache}", name.short),
            (false, None) => name.short.into(),
        };
        // Nobody may be listening on stderr either; the text has been delivered all the same.
        let _ = writeln!(
            io::stderr(),
            "prompt: {} tokens, {} tok/s; generated: {} tokens, {} tok/s{}; {by}",
            outcome.prompt,
            rate(prefill),
            outcome.tokens.len(),
            rate(decode),
            outcome.stopped.remark(),
        );
    }

    /// `prompt`: as text and as tokens.
    pub fn print_json(
        &self,
        engine: &dyn Generate,
        outcome: &Outcome,
        prompt: (String, Vec<u32>),
        load_time: Duration,
    ) -> anyhow::Result<()> {
        let (prefill, decode) = outcome.rates();
        let report = RunReport {
            path: lossy(&self.args.model),
            engine: engine.name(),
            prompt: prompt.0,
            prompt_tokens: prompt.1,
            text: outcome.text.clone(),
            tokens: outcome.tokens.clone(),
            stopped: outcome.stopped,
            load_seconds: load_time.as_secs_f64(),
            prefill_tokens_per_second: prefill,
            decode_tokens_per_second: decode,
        };
        write_text(&mut io::stdout().lock(), &text_of(&report)?)?;
        Ok(())
    }
}

impl Stop {
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
