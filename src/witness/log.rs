//! What the child wrote to stderr: the last of it.

use std::io::{ErrorKind, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are kept.
const KEPT: usize = 16 << 10;
/// Lines of the last words.
const LINES: usize = 5;
/// Characters of a line that are shown.
const LONGEST: usize = 300;

/// A stream that has been silent for so long has told all that its writer wrote before.
const QUIET: Duration = Duration::from_millis(100);
/// What a stream that is never silent gets.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The end of a stream, which one thread reads and another asks for.
#[derive(Default)]
pub(super) struct Log {
    kept: Mutex<Kept>,
    more: Condvar,
}

#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    /// The stream has ended.
    ended: bool,
}

impl Log {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read the stream to its end.
    pub fn keep(&self, mut stream: impl Read) {
        let mut buffer = [0; 4096];
        loop {
            let count = match stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap_or(0),
            };
            let mut kept = self.kept();
            kept.bytes.extend(&buffer[..count]);
            let surplus = kept.bytes.len().saturating_sub(KEPT);
            kept.bytes.drain(..surplus);
            kept.ended = count == 0;
            self.more.notify_all();
            if count == 0 {
                return;
            }
        }
    }

    pub fn clear(&self) {
        self.kept().bytes.clear();
    }

    /// The last lines with something in them, cut where they are long, once the stream is quiet.
    pub fn last_words(&self) -> Vec<String> {
        let begin = Instant::now();
        let mut kept = self.kept();
        while !kept.ended && begin.elapsed() < LONGEST_WAIT {
            let waited = self
                .more
                .wait_timeout(kept, QUIET)
                .unwrap_or_else(PoisonError::into_inner);
            kept = waited.0;
            if waited.1.timed_out() {
                break;
            }
        }
        let text = String::from_utf8_lossy(&kept.bytes);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.iter().skip(lines.len().saturating_sub(LINES));
        last.map(|line| line.chars().take(LONGEST).collect()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let log = Log::default();
        let text: String = (0..9000).map(|i| format!("line {i}\n\n")).collect();
        log.keep((text + &"x".repeat(400)).as_bytes());
        assert!(log.kept().bytes.len() <= KEPT);
        let words = log.last_words();
        assert_eq!(words[..2], ["line 8996", "line 8997"]);
        assert_eq!(words[4], "x".repeat(LONGEST));
        log.clear();
        assert!(log.last_words().is_empty());
    }
}
