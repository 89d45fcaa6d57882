//! What memory and time work may take: it follows from the size of the work, with room to spare, so that only what hangs
//! or runs wild meets a limit.

use std::time::Duration;

use super::process::Cost;
use super::protocol::{Products, Settings};

/// Bytes of memory that the child may have beside what its work explains: code, threads, tables, buffers.
const BASE_MEMORY: u64 = 1 << 30;
/// Bytes that ggml and llama.cpp make of a byte of a header: a string of one letter is 9 bytes there, and 80 with its place
/// in lists and tables.
const HEADER_MEMORY: u64 = 16;
/// Bytes that splitting makes of a byte of text, and bytes of other work that it costs as much time as.
const TEXT_MEMORY: u64 = 256;
const TEXT_WORK: u64 = 1000;
/// Tokens that llama.cpp computes at a time (n_ubatch).
const MICRO_BATCH: u64 = 512;
/// Bytes a second that are read, copied or repacked, and multiplications a second: a hundredth of what a slow computer
/// does.
const BYTES_PER_SECOND: f64 = 10e6;
const MACS_PER_SECOND: f64 = 100e6;

/// Characters in a row without a change between space and no space that llama.cpp is given to split.
pub const LONGEST_RUN: usize = 1 << 20;
/// Bytes of stack that `std::regex` takes for each of them, doubled: 8 MiB overflow at 26 150.
const STACK_PER_CHARACTER: usize = 640;
const STACK: usize = 8 << 20;

/// What some work reads and computes, from which its limits follow.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Size {
    /// Bytes that are read, copied or written.
    pub bytes: u64,
    /// Multiplications.
    pub macs: u64,
    /// Bytes of memory while it lasts.
    pub memory: u64,
}

/// What a model makes llama.cpp read, keep and compute.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelSize {
    /// Bytes of the file.
    pub file: u64,
    /// Bytes of its keys and of the list of its tensors.
    pub header: u64,
    /// Multiplications for each token: weights.
    pub weights: u64,
    /// Multiplications for each token and each token that it sees.
    pub attention: u64,
    /// Keys and values of a token, all layers together.
    pub cache: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Numbers that a layer makes of one token.
    pub activations: u64,
    /// Logits of a token.
    pub vocab: u64,
}

impl Size {
    /// Of reading or copying.
    pub fn bytes(bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// Of reading a header.
    pub fn header(bytes: u64) -> Self {
        Self {
            memory: HEADER_MEMORY * bytes,
            ..Self::bytes(bytes)
        }
    }

    /// Of splitting or joining a text of so many bytes.
    pub fn text(bytes: usize, stack: usize) -> Self {
        let bytes = bytes as u64;
        Self {
            memory: stack as u64 + TEXT_MEMORY * bytes,
            ..Self::bytes(TEXT_WORK * bytes)
        }
    }

    /// Of making products, and of computing each once.
    pub fn products(products: &Products, weights: u64) -> Self {
        let [rows, columns, tokens] = [products.rows, products.columns, products.tokens].map(|n| n as u64);
        let count = (products.graphs * products.batch) as u64;
        let bytes = count * (weights + 4 * rows * tokens) + 4 * columns * tokens;
        Self {
            bytes,
            macs: count * rows * columns * tokens,
            memory: 2 * (weights + bytes) + thread_memory(products.threads),
        }
    }

    /// The limits for it, in a child that holds so many bytes.
    pub fn cost(self, held: u64, patience: Duration) -> Cost {
        let seconds = self.bytes as f64 / BYTES_PER_SECOND + self.macs as f64 / MACS_PER_SECOND;
        Cost {
            memory: BASE_MEMORY + held + self.memory,
            time: 3 * patience + Duration::from_secs_f64(seconds),
        }
    }
}

impl ModelSize {
    /// Bytes that a loaded model takes beside the mapped file: the weights that are repacked, and the vocabulary.
    pub(super) fn memory(&self) -> u64 {
        2 * self.file + HEADER_MEMORY * self.header
    }

    /// Bytes that a context of so many tokens takes: keys and values, logits, and what a layer computes.
    pub(super) fn context_memory(&self, settings: &Settings) -> u64 {
        let context = settings.context as u64;
        let batch = context.min(MICRO_BATCH);
        let lasting = context * (self.cache + self.vocab);
        let layer = batch * (self.activations + context * self.heads);
        2 * 4 * lasting + 4 * 4 * layer + thread_memory(settings.threads)
    }

    /// Of running tokens after `used` others.
    pub(super) fn run(&self, tokens: usize, used: usize) -> Size {
        let (tokens, seen) = (tokens as u64, (used + tokens) as u64);
        Size {
            bytes: 4 * tokens * self.vocab + self.file,
            macs: tokens * (self.weights + seen * self.attention),
            memory: 0,
        }
    }
}

/// Bytes of data that so many threads take: mostly stack that is not used.
fn thread_memory(threads: usize) -> u64 {
    (threads as u64) << 24
}

/// Bytes of stack for splitting a text with so many characters in a row.
pub(super) fn stack(run: usize) -> usize {
    STACK + STACK_PER_CHARACTER * run
}

/// The most characters in a row that are all space, or all not. A regular expression of a tokenizer matches no more.
pub(super) fn longest_run(text: &str) -> usize {
    let (mut longest, mut run, mut space) = (0, 0, false);
    for char in text.chars() {
        run = if char.is_whitespace() == space { run + 1 } else { 1 };
        space = char.is_whitespace();
        longest = longest.max(run);
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_run_is_of_space_or_of_no_space() {
        assert_eq!(longest_run(""), 0);
        assert_eq!(longest_run("ab \n\t c"), 4);
        assert_eq!(longest_run("äöüß a"), 4);
    }
}
