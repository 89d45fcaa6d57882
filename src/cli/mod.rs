//! The command line: arguments, progress, tables, JSON, exit codes. Only this room prints.

mod bench;
mod checkpoint;
mod diff;
mod inspect;
mod pack;
mod render;
mod report;
mod run;
mod texts;
mod verify;

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser, Subcommand};

/// Pack Tequila ternary checkpoints into GGUF files for llama.cpp and Ollama, and prove the result.
///
/// A checkpoint trained with Tequila (arXiv 2509.23809) holds latent weights. `pack` makes them ternary exactly as
/// training did, folds the dead zone into one bias per output row, and writes a file that runs as it is.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Threads to work with [default: all processors]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
}

const EXAMPLES: &str = "\
Examples:
  tqconv inspect my-checkpoint/                        what it is, and how it was trained
  tqconv pack my-checkpoint/ model.gguf                for llama.cpp anywhere, and for Ollama
  tqconv pack my-checkpoint/ model.gguf --exact        not one bit of the weights lost
  tqconv pack my-checkpoint/ model.gguf --dry-run      what would be written
  tqconv verify model.gguf --against my-checkpoint/    prove it

Exit codes: 0 done or agrees, 1 disagrees, 2 could not (bad input or bad request); `run`, when interrupted, 130.";

#[derive(Subcommand)]
enum Command {
    Pack(Box<pack::PackArgs>),
    Verify(Box<verify::VerifyArgs>),
    Run(run::RunArgs),
    Inspect(inspect::InspectArgs),
    Diff(Box<diff::DiffArgs>),
    Bench(bench::BenchArgs),
    /// Print the completion script of a shell
    ///
    /// For example: tqconv completions bash > ~/.local/share/bash-completion/completions/tqconv
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What every command needs to know of how it was called.
#[derive(Clone, Copy)]
struct Context {
    /// Whether progress may be shown.
    progress: bool,
}

/// What a process that was interrupted ends with.
const INTERRUPTED: u8 = 130;

/// Set when the user interrupts. A second time ends the process at once.
fn stop_signal() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, INTERRUPTED.into(), stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

/// Run the command that `cli` holds.
///
/// # Errors
/// Whatever kept it from being done; the text says where, what was found, and what to do.
pub fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads as usize)
            .build_global()?;
    }
    let context = Context {
        progress: !cli.quiet,
    };
    match cli.command {
        Command::Pack(args) => pack::run(&args, context),
        Command::Verify(args) => verify::run(&args, context),
        Command::Run(args) => run::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Diff(args) => diff::run(&args, context),
        Command::Bench(args) => bench::run(&args),
        Command::Completions { shell } => {
            let mut script = vec![];
            clap_complete::generate(shell, &mut Cli::command(), "tqconv", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
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
    if let Some((end, _)) = line.char_indices().nth(LONGEST_MESSAGE) {
        line.truncate(end);
        line += "...";
    }
    printable(line.trim(), |_, _| false)
}

/// Names and texts come from somebody else's file: control characters in them, with which a terminal could be made to
/// show something else, are written as escapes, except those that `keep` is true for.
fn printable(text: &str, keep: impl Fn(char, &str) -> bool) -> String {
    let mut printable = String::with_capacity(text.len());
    for (at, char) in text.char_indices() {
        if char.is_control() && !keep(char, &text[at + char.len_utf8()..]) {
            printable.extend(char.escape_debug());
        } else {
            printable.push(char);
        }
    }
    printable
}

/// Line ends, tabs, and the colours that reports have: `ESC [ digits ; ... m`.
fn is_layout(char: char, rest: &str) -> bool {
    let is_colour = || {
        let rest = rest.strip_prefix('[')?;
        rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
            .chars()
            .next()
    };
    match char {
        '\n' | '\t' => true,
        '\u{1b}' => is_colour() == Some('m'),
        _ => false,
    }
}

/// Write `text` to stdout; that nobody reads on is no error.
fn print(text: &str) -> anyhow::Result<ExitCode> {
    let text = printable(text, is_layout);
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Write a value to stdout as JSON.
fn print_json(value: &serde_json::Value) -> anyhow::Result<ExitCode> {
    print(&format!("{value:#}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let text = "\u{1b}[1;32mok\u{1b}[0m\tname\u{1b}]0;title\u{7}\u{9b}2J\r\n";
        let shown = "\u{1b}[1;32mok\u{1b}[0m\tname\\u{1b}]0;title\\u{7}\\u{9b}2J\\r\n";
        assert_eq!(printable(text, is_layout), shown);
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
