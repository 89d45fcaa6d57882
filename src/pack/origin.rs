//! What is packed: a checkpoint, or a GGUF file.

use std::io;
use std::path::Path;

use crate::model::{Checkpoint, Gguf};

/// What is packed.
#[derive(Clone, Copy)]
pub enum Origin<'a> {
    /// A checkpoint: its linears become ternary as its training scheme says.
    Checkpoint(&'a Checkpoint),
    /// A GGUF file: its matrices whose data is ternary become another type.
    Gguf(&'a Gguf),
}

impl<'a> Origin<'a> {
    /// The files of weights, with their lengths.
    pub fn files(self) -> Vec<(&'a Path, usize)> {
        let length = |(path, bytes): (&'a Path, &'a [u8])| (path, bytes.len());
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensors.files().map(length).collect(),
            Self::Gguf(gguf) => gguf.files().map(length).collect(),
        }
    }

    /// Bytes of all files of weights together.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensors.bytes(),
            Self::Gguf(gguf) => gguf.bytes(),
        }
    }

    /// Bytes of one of the files, from `start` on.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read_file(self, path: &Path, start: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensors.read_file(path, start, out),
            Self::Gguf(gguf) => gguf.read_file(path, start, out),
        }
    }

    /// The first file that was written to since it was opened.
    pub fn changed(self) -> Option<&'a Path> {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.tensors.changed(),
            Self::Gguf(gguf) => gguf.changed(),
        }
    }
}
