//! The command line: arguments, progress, tables, JSON, exit codes. Only this room prints.

mod activations;
mod bench;
mod cache;
mod card;
mod checkpoint;
mod diff;
mod evidence;
mod inspect;
mod json;
#[cfg(test)]
mod made_up;
#[cfg(test)]
mod made_up_scheme;
mod ollama;
mod pack;
mod render;
mod run;
mod shell;
mod text;
mod texts;
mod verify;

use std::error::Error as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anstream::{AutoStream, ColorChoice};
use anyhow::Context as _;
use clap::{CommandFactory, Parser, Subcommand};

use crate::output;
use crate::pack::PackError;
use crate::system;
use crate::witness::{self, Program};

/// What `--version` tells beyond `-V`. The library itself is asked only in a child: a test compares.
const LONG_VERSION: &str = if cfg!(feature = "llama") {
    concat!(
        env!("CARGO_PKG_VERSION"),
        "\nllama.cpp 0.6.0-dev, ggml 0.26.0, linked in"
    )
} else {
    concat!(
        env!("CARGO_PKG_VERSION"),
        "\nno llama.cpp linked in; --llama PATH names one"
    )
};

/// Pack Tequila ternary checkpoints into GGUF files for llama.cpp and Ollama, and prove the result.
///
/// A checkpoint trained with Tequila (arXiv 2509.23809) holds latent weights. `pack` makes them ternary exactly as
/// training did, folds the dead zone into one bias per output row, and writes a file that runs as it is.
#[derive(Parser)]
#[command(version, long_version = LONG_VERSION, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, help_heading = "General")]
    quiet: bool,
    /// Say more: every check, the names of kernels
    #[arg(short, long, global = true, help_heading = "General", conflicts_with = "quiet")]
    verbose: bool,
    /// When to paint results: auto paints on a terminal, as NO_COLOR, CLICOLOR, CLICOLOR_FORCE and TERM allow
    #[arg(long, global = true, help_heading = "General", value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
    /// Threads to work with [default: all processors]
    #[arg(long, global = true, help_heading = "General", value_name = "N", value_parser = threads)]
    threads: Option<usize>,
    /// The llama.cpp to verify and to compare with, in place of the one that is linked in: libllama, or the folder that
    /// holds it with its ggml libraries
    #[arg(
        long,
        global = true,
        help_heading = "General",
        env = "TQCONV_LLAMA",
        hide_env_values = true,
        value_name = "PATH"
    )]
    llama: Option<PathBuf>,
    /// The program whose child is llama.cpp, where it is not this one
    #[arg(long, global = true, hide = true, value_name = "PROGRAM")]
    witness: Option<PathBuf>,
    /// Seconds that llama.cpp may give no sign of life
    #[arg(long, global = true, hide = true, value_name = "SECONDS")]
    witness_patience: Option<f64>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    fn paints(self) -> bool {
        match self {
            Self::Auto => AutoStream::choice(&io::stdout()) != ColorChoice::Never,
            Self::Always => true,
            Self::Never => false,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  tqconv inspect my-checkpoint/                        what it is, and how it was trained
  tqconv pack my-checkpoint/ model.gguf                for llama.cpp anywhere, and for Ollama
  tqconv pack my-checkpoint/ model.gguf --exact        not one bit of the weights lost
  tqconv pack my-checkpoint/ model.gguf --dry-run      what would be written
  tqconv verify model.gguf --against my-checkpoint/    prove it

Exit codes: 0 done or agrees, 1 disagrees, 2 could not (bad input or bad request), 130 interrupted.";

#[derive(Subcommand)]
enum Command {
    Pack(Box<pack::PackArgs>),
    Verify(Box<verify::VerifyArgs>),
    Run(Box<run::RunArgs>),
    Inspect(inspect::InspectArgs),
    Diff(Box<diff::DiffArgs>),
    Bench(bench::BenchArgs),
    /// Print the completion script of a shell
    #[command(after_help = "\
Examples:
  tqconv completions bash > ~/.local/share/bash-completion/completions/tqconv
  tqconv completions fish > ~/.config/fish/completions/tqconv.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Write a man page of each command into a folder
    #[command(after_help = "\
Examples:
  tqconv man ~/.local/share/man/man1     then: man tqconv-pack")]
    Man {
        /// The folder, which must be there
        folder: PathBuf,
    },
    /// Be the process that applies a chat template
    #[command(name = run::TEMPLATE, hide = true)]
    Template,
    /// Be the process that runs llama.cpp
    #[command(name = witness::SUBCOMMAND, hide = true)]
    Witness {
        /// The library to load
        library: Option<PathBuf>,
    },
}

/// A number of threads.
fn threads(text: &str) -> Result<usize, String> {
    const MOST: usize = 512;
    match text.parse() {
        Ok(threads) if (1..=MOST).contains(&threads) => Ok(threads),
        _ => Err(format!(
            "expected 1 to {MOST}: llama.cpp has room for no more threads (GGML_MAX_N_THREADS)"
        )),
    }
}

impl Command {
    /// Whether results are wanted as JSON.
    fn json(&self) -> bool {
        match self {
            Self::Pack(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Run(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Diff(args) => args.json,
            Self::Bench(args) => args.json,
            Self::Completions { .. } | Self::Man { .. } | Self::Template | Self::Witness { .. } => false,
        }
    }
}

/// What every command needs to know of how it was called.
struct Context {
    /// Whether only results and errors are wanted.
    quiet: bool,
    /// Whether more than the usual is wanted.
    verbose: bool,
    /// Whether results are painted.
    colour: bool,
    /// The program whose child is llama.cpp.
    witness: Program,
}

/// What a process ends with whose command line makes no sense.
const USAGE: u8 = 2;

/// What a process that was interrupted ends with.
const INTERRUPTED: u8 = 130;

/// What the process ends with after `error`.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref() {
        Some(PackError::Interrupted) => INTERRUPTED,
        _ => 2,
    }
}

/// Set when the user interrupts. A second time ends the process at once; what was not finished is removed all the same.
fn stop_signal() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    system::on_interrupt(move || {
        if asked.swap(true, Ordering::Relaxed) {
            output::remove_unfinished();
            std::process::exit(INTERRUPTED.into());
        }
    })?;
    Ok(stop)
}

/// Start all threads, so that a lack of them is an error and no panic later.
fn start_threads(threads: Option<usize>) -> anyhow::Result<()> {
    let built = rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .build_global();
    match built {
        // Without a cause: a process that runs several commands has its threads already.
        Err(error) if error.source().is_some() => Err(error).context("the threads cannot be started"),
        _ => Ok(()),
    }
}

/// Parse the command line, run the command, and tell what kept it from being done.
pub fn main() -> ExitCode {
    let (json, done) = match Cli::try_parse() {
        Ok(cli) => (cli.command.json(), run(cli)),
        // Help and versions, too.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let _ = error.print();
            if std::env::args_os().any(|word| word == "--json") {
                tell_json(error.to_string().lines().next().unwrap_or_default().into(), USAGE);
            }
            return ExitCode::from(USAGE);
        }
    };
    done.unwrap_or_else(|error| {
        let (message, exit_code) = (message(&error), exit_code(&error));
        // Nobody may be listening, or the disk behind stderr be full.
        let _ = writeln!(io::stderr(), "error: {message}");
        if json {
            tell_json(message, exit_code);
        }
        ExitCode::from(exit_code)
    })
}

/// An error on stdout. Where that cannot be written, stderr has it all the same.
fn tell_json(message: String, exit_code: u8) {
    let _ = json::print_json(&json::ErrorReport { message, exit_code });
}

/// The JSON schema of each document that `--json` prints, and its name: `tqconv.pack/1`.
pub fn schemas() -> Vec<(&'static str, serde_json::Value)> {
    vec![
        json::schema::<pack::PackReport>(),
        json::schema::<pack::Manifest>(),
        json::schema::<crate::verify::Report>(),
        json::schema::<verify::Verification<'_>>(),
        json::schema::<inspect::InspectReport>(),
        json::schema::<diff::DiffReport<'_>>(),
        json::schema::<run::RunReport>(),
        json::schema::<bench::BenchReport>(),
        json::schema::<json::ErrorReport>(),
    ]
}

/// Run the command that `cli` holds.
///
/// # Errors
/// Whatever kept it from being done; the text says where, what was found, and what to do.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let mut witness = cli.witness.map_or_else(Program::this, Program::at);
    if let Some(library) = cli.llama {
        witness = witness.with_library(library);
    }
    if let Some(seconds) = cli.witness_patience {
        witness = witness.with_patience(Duration::try_from_secs_f64(seconds)?);
    }
    let context = Context {
        quiet: cli.quiet,
        verbose: cli.verbose,
        colour: cli.color.paints(),
        witness,
    };
    system::survive_size_limit()?;
    if !matches!(
        cli.command,
        Command::Completions { .. } | Command::Man { .. } | Command::Template
    ) {
        start_threads(cli.threads)?;
    }
    match cli.command {
        Command::Pack(args) => pack::run(&args, context),
        Command::Verify(args) => verify::run(&args, context),
        Command::Run(args) => run::run(&args, &context),
        Command::Inspect(args) => inspect::run(&args),
        Command::Diff(args) => diff::run(&args, context),
        Command::Bench(args) => bench::run(&args, &context),
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "tqconv", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Command::Man { folder } => {
            clap_mangen::generate_to(Cli::command(), &folder).with_context(|| folder.display().to_string())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Template => Ok(run::serve_template()),
        Command::Witness { library } => Ok(witness::serve(library.as_deref())),
    }
}

/// Characters: names in a file may have a gibibyte.
const LONGEST_MESSAGE: usize = 4000;

/// An error as one line: what happened, then each cause, and nothing that another part of the line tells already.
pub fn message(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if cause.contains(&line) {
            line = cause;
        } else if !line.contains(&cause) {
            line += &format!(": {cause}");
        }
    }
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    if let Some(hint) = io_error.and_then(system::limit_hint) {
        line += &format!("; {hint}");
    }
    if let Some((end, _)) = line.char_indices().nth(LONGEST_MESSAGE) {
        line.truncate(end);
        line += "...";
    }
    text::shown(line.trim())
}

/// A path as text: what is not UTF-8 in it is replaced.
fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Write `text` to stdout; a closed pipe (EPIPE) is not an error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    write_out(&text::report(text))
}

fn write_out(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("standard output"),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_message_is_one_line_and_tells_each_cause_once() {
        let cause = std::io::Error::other("no\u{1b}[2J\nroom");
        let error = anyhow::Error::new(cause).context("x.gguf: no\u{1b}[2J\nroom");
        assert_eq!(message(&error), "x.gguf: no\\u{1b}[2J\\nroom");
        let error = error.context("outer");
        assert_eq!(message(&error), "outer: x.gguf: no\\u{1b}[2J\\nroom");
    }
}
