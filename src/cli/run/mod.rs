//! `tqconv run`: text from a GGUF file, by the native engine or by llama.cpp.

mod generate;
mod prompt;
mod template;

use std::io::{self, BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use formats::gguf::File;

use super::activations::ActivationsArgs;
use super::cache::CacheArgs;
use super::{Context, INTERRUPTED, stop_signal};
use crate::engine::Generate;
use crate::engine::hyper::Hyper;
use crate::engine::llamacpp::{self, Model};
use crate::engine::native::{Native, Settings};
use crate::engine::sample::{Sampler, Sampling};
use crate::engine::text::Text;
use crate::mapped;
use crate::witness::Program;
pub(super) use generate::RunReport;
use generate::{Job, Outcome, Stop};
use prompt::Conversation;
pub use template::{SUBCOMMAND as TEMPLATE, serve as serve_template};

/// Generate text with a GGUF file
///
/// A model with a chat template answers; any other continues the text. Text is printed as it comes, until Ctrl-C at the
/// latest; the last line, on stderr, says how fast it went. Without a text, a terminal is asked for one after the other.
/// The native engine runs the file's ternary weights on kernels of our own; llama.cpp runs the same file as anybody else's
/// would.
#[derive(Args)]
#[command(after_help = "\
Examples:
  tqconv run model.gguf \"In the beginning\"                  continue a text, or answer it
  tqconv run chat.gguf --system \"Be brief\"                 a conversation
  tqconv run model.gguf -f story.txt -n -1                  a file, until the model ends the text
  tqconv run model.gguf < story.txt                         the same from standard input
  tqconv run model.gguf \"Once\" --temp 0.8 --top-k 40 --seed 7   draw tokens")]
pub struct RunArgs {
    /// The GGUF file
    model: PathBuf,
    /// The text to continue, or to answer; - reads it from standard input
    #[arg(value_name = "TEXT")]
    text: Option<String>,
    /// The same
    #[arg(short, long, value_name = "TEXT", conflicts_with = "text")]
    prompt: Option<String>,
    /// The same, in a file
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["text", "prompt"])]
    file: Option<PathBuf>,
    /// What a model that answers is told first
    #[arg(long, visible_alias = "system-prompt", value_name = "TEXT")]
    system: Option<String>,
    /// Continue the text as it is, although the file has a chat template
    #[arg(long, conflicts_with = "system")]
    no_chat: bool,
    /// Take special tokens that a text to be continued writes out, such as <|user|>, for those tokens
    #[arg(long)]
    special: bool,
    /// Most tokens to generate; -1: until the model ends the text, or the context is full
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, allow_negative_numbers = true, value_parser = parse_tokens)]
    tokens: i64,
    /// Tokens that the context holds [default: as many as are needed, 4096 where that is not known]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ctx_size: Option<u32>,
    /// How freely tokens are drawn; 0 takes the most likely one each time
    #[arg(long, visible_alias = "temperature", value_name = "T", default_value = "0", value_parser = parse_temperature)]
    temp: f64,
    /// Draw from so many most likely tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    top_k: usize,
    /// Draw from the fewest tokens that together have this probability
    #[arg(long, value_name = "P", default_value = "1", value_parser = parse_share)]
    top_p: f64,
    /// Draw from tokens that have at least this share of the most likely one's probability
    #[arg(long, value_name = "P", default_value = "0", value_parser = parse_share)]
    min_p: f64,
    /// What the logits of tokens that came lately are divided by; 1: nothing
    #[arg(long, value_name = "X", default_value = "1", value_parser = parse_penalty)]
    repeat_penalty: f64,
    /// How many tokens came lately
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_last_n: usize,
    /// Where the draws start: the same seed draws the same tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// What computes
    #[arg(long, value_enum, default_value_t = EngineArg::Native)]
    engine: EngineArg,
    #[command(flatten)]
    rounding: ActivationsArgs,
    #[command(flatten)]
    cache: CacheArgs,
    /// Print JSON, at the end
    #[arg(long)]
    pub(super) json: bool,
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

fn parse_penalty(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(penalty) if penalty > 0.0 && f64::is_finite(penalty) => Ok(penalty),
        _ => Err("expected a number above 0, for example 1.1".into()),
    }
}

fn parse_tokens(text: &str) -> Result<i64, String> {
    match text.parse() {
        Ok(tokens) if tokens >= -1 => Ok(tokens),
        _ => Err("expected a number of tokens, or -1 for as many as come".into()),
    }
}

impl RunArgs {
    /// How many tokens are generated at most.
    fn most_tokens(&self) -> usize {
        usize::try_from(self.tokens).unwrap_or(usize::MAX)
    }

    fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last: self.repeat_last_n,
        }
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
        let why = "llama.cpp keeps keys and values in f16 here";
        args.cache.unused(why, "pass --engine native")?;
    }
    let model = mapped::Model::open(&args.model)?;
    let file = model.parse()?;
    let hyper = Hyper::read(&file)?;
    let text = Text::from_gguf(&file)?;
    let template = text.chat_template().filter(|_| !args.no_chat);
    let chat = template.map(|template| Conversation::new(called, &file, &text, template, args.system.as_deref()));
    if args.system.is_some() && chat.is_none() {
        bail!("--system is for a file with a chat template, which this one has not; write it into the text");
    }
    let work = match (prompt::given(args)?, chat) {
        (Some(written), None) => Work::Text(continued(args, &text, written)?),
        (Some(said), Some(mut chat)) => {
            chat.say("user", said);
            Work::Text(chat.prompt()?)
        }
        (None, Some(_)) if args.json => bail!("--json tells of one text: give it on the command line"),
        (None, Some(chat)) => Work::Talk(chat),
        (None, None) => bail!("there is no text to continue; give one after the file's name"),
    };
    let (context, threads) = (
        work.context(args).min(hyper.context).max(1),
        rayon::current_num_threads(),
    );
    let job = Job {
        args,
        called,
        text: &text,
    };
    match args.engine {
        EngineArg::Native => {
            let settings = Settings::new(context, threads)
                .with_activations(args.rounding.activations)
                .with_cache(args.cache.types());
            let mut engine = Native::load(&file, settings)?;
            let load_time = engine.load_time();
            work.run(&job, &mut engine, load_time)
        }
        EngineArg::LlamaCpp => run_llamacpp(work, &job, &called.witness, &file, context),
    }
}

/// A text to continue, as text and as tokens.
fn continued(args: &RunArgs, text: &Text, written: String) -> anyhow::Result<(String, Vec<u32>)> {
    let tokens = match args.special {
        true => text.encode_with_specials(&written, true),
        false => text.encode(&written, true),
    };
    if tokens.is_empty() {
        bail!("there is no text to continue; give one after the file's name");
    }
    Ok((written, tokens))
}

fn run_llamacpp(work: Work, job: &Job, program: &Program, file: &File, context: usize) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let model = Model::load(program, &job.args.model, file)?;
    let mut engine = model.session(llamacpp::Settings {
        context,
        threads: rayon::current_num_threads(),
        exact_cache: false,
    })?;
    work.run(job, &mut engine, start.elapsed())
}

/// What there is to do.
enum Work<'a> {
    /// One text, as text and as tokens.
    Text((String, Vec<u32>)),
    /// Somebody at a terminal.
    Talk(Conversation<'a>),
}

impl Work<'_> {
    /// How many tokens the context is to hold.
    fn context(&self, args: &RunArgs) -> usize {
        const USUAL: usize = 4096;
        if let Some(size) = args.ctx_size {
            return size as usize;
        }
        match self {
            // The last token is printed and not run, so it needs no place.
            Self::Text((_, tokens)) if args.tokens >= 0 => tokens.len() + args.most_tokens().saturating_sub(1),
            Self::Text((_, tokens)) => USUAL.max(2 * tokens.len()),
            Self::Talk(_) => USUAL,
        }
    }

    fn run(self, job: &Job, engine: &mut dyn Generate, load_time: Duration) -> anyhow::Result<ExitCode> {
        let outcome = match self {
            Self::Text((written, tokens)) => {
                let stop = stop_signal()?;
                let chats = job.text.chat_template().is_some() && !job.args.no_chat;
                let shown = if chats { "" } else { &*written };
                let mut out: Box<dyn Write> = match job.args.json {
                    true => Box::new(io::sink()),
                    false => Box::new(io::stdout().lock()),
                };
                let mut sampler = Sampler::new(job.args.sampling(), job.args.seed);
                let outcome = job.generate(engine, &mut sampler, (shown, &tokens), &mut *out, &stop)?;
                if job.args.json {
                    job.print_json(engine, &outcome, (written, tokens), load_time)?;
                }
                outcome
            }
            Self::Talk(chat) => talk(job, engine, chat)?,
        };
        if !job.args.json && !job.called.quiet {
            job.print_speed(engine, &outcome, load_time);
        }
        Ok(match outcome.stopped {
            Stop::Interrupted => ExitCode::from(INTERRUPTED),
            _ => ExitCode::SUCCESS,
        })
    }
}

/// One turn after the other, until the input ends. Ctrl-C ends an answer, and the process where none is being given. What
/// was measured is of all turns.
fn talk(job: &Job, engine: &mut dyn Generate, mut chat: Conversation) -> anyhow::Result<Outcome> {
    let mut sampler = Sampler::new(job.args.sampling(), job.args.seed);
    let (mut all, mut lines) = (Outcome::default(), io::stdin().lock().lines());
    let stop = stop_signal()?;
    loop {
        let _ = write!(io::stderr(), "> ");
        // As if there had been one already: the next interrupt ends the process.
        stop.store(true, Ordering::Relaxed);
        let Some(line) = lines.next() else {
            let _ = writeln!(io::stderr());
            all.stopped = Stop::default();
            return Ok(all);
        };
        let line = line.context("standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        chat.say("user", line);
        let (_, tokens) = chat.prompt()?;
        stop.store(false, Ordering::Relaxed);
        let turn = job.generate(engine, &mut sampler, ("", &tokens), &mut io::stdout().lock(), &stop)?;
        chat.say("assistant", turn.text.clone());
        all.add(turn);
        if matches!(all.stopped, Stop::Context | Stop::Closed) {
            return Ok(all);
        }
    }
}
