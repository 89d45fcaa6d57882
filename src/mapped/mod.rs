//! The one memory map: a whole file as bytes, and the file itself for those who read it piece by piece.

mod model;

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::{files, system};

pub use model::{Model, OpenError, Part};

/// A file's bytes, mapped read-only.
pub struct Mapped {
    file: File,
    state: State,
    map: Option<Mmap>,
}

/// What a file that was written to differs in.
#[derive(PartialEq)]
struct State {
    length: u64,
    modified: Option<SystemTime>,
}

impl State {
    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
        })
    }
}

impl Mapped {
    /// Map the regular file at `path`.
    ///
    /// # Errors
    /// The file is not there, not readable, or not a regular file (a directory, a device, a pipe).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = files::open(path)?;
        let state = State::of(&file)?;
        let map = match state.length {
            0 => None,
            // SAFETY: the map is read-only, and whoever looks at it takes the bytes for numbers, for which every pattern is
            // valid, or copies them before checking them. That nobody else shortens or writes the file meanwhile is the
            // condition that no program can ensure (SECURITY.md, "Not promised"); it would end the process or change
            // numbers.
            _ => Some(unsafe { Mmap::map(&file) }?),
        };
        Ok(Self { file, state, map })
    }

    /// Read the bytes from `start` on into `out`: an error where the file has become shorter, which would kill a
    /// process that looks at the map.
    ///
    /// # Errors
    /// The bytes cannot be read.
    pub fn read_at(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        system::read_exact_at(&self.file, out, start)
    }

    /// Whether the file has its length and time of writing still.
    ///
    /// # Errors
    /// They cannot be asked for.
    pub fn is_unchanged(&self) -> io::Result<bool> {
        Ok(State::of(&self.file)? == self.state)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }
}
