//! The chat template of a file, applied in a process of its own: it is somebody else's program, and what it takes of
//! memory and time is limited from outside.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

use crate::engine::text::Chat;
use crate::system::limit_memory;

/// Starts the process.
pub const SUBCOMMAND: &str = "chat-template";

/// Bytes.
const MEMORY: u64 = 512 << 20;
/// How long the parent waits.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest text.
const LONGEST: u64 = 16 << 20;

const REMEDY: &str = "pass --no-chat to continue the text as it is";

/// The text that the model is to continue. `program`: this one.
///
/// # Errors
/// The template refuses, is no template, or takes too much.
pub fn apply(program: &Path, chat: &Chat) -> anyhow::Result<String> {
    let mut child = Command::new(program)
        .arg(SUBCOMMAND)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("the chat template cannot be applied: no process can be started")?;
    let answer = answer(&mut child, chat);
    let _ = child.kill();
    let _ = child.wait();
    match answer?.split_at_checked(1) {
        Some(("+", text)) => Ok(text.into()),
        Some(("-", problem)) => bail!("the chat template cannot be applied: {problem}; {REMEDY}"),
        _ => bail!("the chat template takes more time, memory or text than it may; {REMEDY}"),
    }
}

/// All that the child says; nothing where it was ended.
fn answer(child: &mut Child, chat: &Chat) -> anyhow::Result<String> {
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("the chat template cannot be applied: the process has no pipes");
    };
    // A child that has ended already says why not.
    let _ = input.write_all(&serde_json::to_vec(chat)?);
    drop(input);
    let (found, answered) = mpsc::channel();
    let read = move || {
        let mut text = vec![];
        let read = output.take(LONGEST).read_to_end(&mut text);
        let _ = found.send(read.map(|_| text));
    };
    std::thread::Builder::new()
        .spawn(read)
        .context("no thread can be started")?;
    match answered.recv_timeout(PATIENCE) {
        Ok(text) => {
            String::from_utf8(text?).map_err(|_| anyhow!("the chat template gives text that is not UTF-8; {REMEDY}"))
        }
        Err(_) => Ok(String::new()),
    }
}

/// The other end: `+` and the text, or `-` and why there is none.
pub fn serve() -> ExitCode {
    // Where the system keeps no limit, steps are counted, and the parent waits no longer than it does.
    let _ = limit_memory(MEMORY);
    let mut input = vec![];
    let answer = io::stdin()
        .read_to_end(&mut input)
        .map_err(|error| error.to_string())
        .and_then(|_| serde_json::from_slice::<Chat>(&input).map_err(|error| error.to_string()))
        .and_then(|chat| chat.text().map_err(|error| format!("{error:#}")));
    let (mark, text) = match answer {
        Ok(text) => ("+", text),
        Err(problem) => ("-", problem),
    };
    let mut out = io::stdout().lock();
    match out
        .write_all(mark.as_bytes())
        .and_then(|()| out.write_all(text.as_bytes()))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
