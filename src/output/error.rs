//! What can keep a file from being written.

use std::io;
use std::path::PathBuf;

use crate::system::MAKE_FOLDER;

/// An output that cannot be written: whatever was there before is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The system refuses.
    #[error("{}: {source}; check that it can be written, and that there is room", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there already.
    #[error("{}: exists already; replace it with --force, or name another output", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },
    /// It is one of the files that are read.
    #[error("{}: is one of the input's files; name another output", path.display())]
    SameFile {
        /// The output.
        path: PathBuf,
    },
    /// It is something other than a file.
    #[error("{}: is {found}; name a file", path.display())]
    NoFile {
        /// The output.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Its name would spoil a line of text or a shell's command.
    #[error("{}: the name holds a control character; name another output", path.display())]
    Name {
        /// The output.
        path: PathBuf,
    },
    /// Its folder is not there.
    #[error("{}: no such folder; create it with `{} {}`, or name another output", path.display(), MAKE_FOLDER, path.display())]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Another process is writing it.
    #[error("{}: another process is writing it; wait for it, or name another output", path.display())]
    Busy {
        /// The output, or its temporary file.
        path: PathBuf,
    },
    /// The name of a temporary file is taken by something that no earlier run has left.
    #[error("{}: is needed for a temporary file, and is not a leftover of one; move it away, or name another output", path.display())]
    Foreign {
        /// The temporary file.
        path: PathBuf,
    },
    /// The disk is too small.
    #[error(
        "{}: the output takes {needed} bytes{}; make room, or name another folder", path.display(), free_text(*free)
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// Bytes of the output.
        needed: u64,
        /// Bytes that were free, where the file system says.
        free: Option<u64>,
    },
}

fn free_text(free: Option<u64>) -> String {
    free.map_or(String::new(), |free| format!(", {free} are free"))
}
