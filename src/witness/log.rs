//! What the child wrote to stderr: the last of it.

use std::io::{ErrorKind, Read};

/// Bytes that are kept.
const KEPT: usize = 16 << 10;
/// Lines of the last words.
const LINES: usize = 5;
/// Characters of a line that are shown.
const LONGEST: usize = 300;

/// The end of a stream.
#[derive(Default)]
pub(super) struct Log {
    bytes: Vec<u8>,
    /// The stream has ended.
    pub ended: bool,
}

impl Log {
    /// Take what is there, without waiting for more.
    pub fn take(&mut self, stream: &mut impl Read) {
        let mut buffer = [0; 4096];
        while !self.ended {
            match stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => {
                    self.bytes.extend(&buffer[..count]);
                    let surplus = self.bytes.len().saturating_sub(KEPT);
                    self.bytes.drain(..surplus);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.ended = true,
            }
        }
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The last lines with something in them, cut where they are long.
    pub fn last_words(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.bytes);
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
        let mut log = Log::default();
        let text: String = (0..9000).map(|i| format!("line {i}\n\n")).collect();
        log.take(&mut (text + &"x".repeat(400)).as_bytes());
        assert!(log.ended && log.bytes.len() <= KEPT);
        let words = log.last_words();
        assert_eq!(words[..2], ["line 8996", "line 8997"]);
        assert_eq!(words[4], "x".repeat(LONGEST));
        log.clear();
        assert!(log.last_words().is_empty());
    }
}
