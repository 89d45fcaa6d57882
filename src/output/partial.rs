//! One file of an output while it is being written: `NAME.tqconv.partial`, locked by the process that writes it.
//!
//! A process that was killed leaves it behind; the next one that writes the same output takes it and starts over. What is
//! no such leftover is left alone.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
use rustix::io::Errno;

use super::{ATTEMPTS, FileId, OutputError, beside, retry};

/// The temporary files of this process.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(vec![]);

pub(super) fn unfinished() -> MutexGuard<'static, Vec<PathBuf>> {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remove every temporary file of this process, for one that is about to end at once. Waits while outputs get their
/// names, and lets no further one begin.
pub fn remove_unfinished() {
    let mut all = unfinished();
    for path in all.drain(..) {
        // Nothing can be done about a failure here.
        let _ = std::fs::remove_file(path);
    }
    std::mem::forget(all);
}

/// The file is removed when this value goes, unless it has got its name.
pub(super) struct Partial {
    path: PathBuf,
    pub output: PathBuf,
    pub file: File,
    finished: bool,
}

impl Partial {
    /// Make and lock it.
    pub fn create(output: PathBuf) -> Result<Self, OutputError> {
        let path = beside(&output, ".tqconv.partial");
        let before = FileId::at(&output);
        for _ in 0..ATTEMPTS {
            let file = open(&path)?;
            if let Some(partial) = Self::claim(&path, &output, file)? {
                return Ok(partial);
            }
            if FileId::at(&output) != before {
                return Err(OutputError::Busy { path: output });
            }
        }
        Err(OutputError::Busy { path })
    }

    /// Lock `file`, which was opened at `path`. `None` where it is no longer the file of that name: between opening and
    /// locking the process that held the lock has finished or given up.
    fn claim(path: &Path, output: &Path, file: File) -> Result<Option<Self>, OutputError> {
        let path = path.to_owned();
        let failed = |source| OutputError::Io {
            path: path.clone(),
            source,
        };
        match retry(|| flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Err(Errno::WOULDBLOCK) => return Err(OutputError::Busy { path }),
            locked => locked.map_err(|source| failed(source.into()))?,
        }
        let metadata = file.metadata().map_err(failed)?;
        if FileId::at(&path) != Some(FileId::of(&metadata)) {
            return Ok(None);
        }
        // A second name of the file is nobody's leftover.
        if !metadata.is_file() || metadata.nlink() != 1 {
            return Err(OutputError::Foreign { path });
        }
        unfinished().push(path.clone());
        let partial = Self {
            path,
            output: output.into(),
            file,
            finished: false,
        };
        match partial.file.set_len(0) {
            Ok(()) => Ok(Some(partial)),
            Err(source) => Err(partial.failed(source)),
        }
    }

    /// Give the file its length, and blocks of the disk for all of it.
    pub fn reserve(&self, size: u64) -> Result<(), Errno> {
        match retry(|| fallocate(&self.file, FallocateFlags::empty(), 0, size)) {
            // The file system cannot promise blocks: a full disk is then found while writing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => retry(|| rustix::fs::ftruncate(&self.file, size)),
            reserved => reserved,
        }
    }

    /// Whether it has its name.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    pub fn failed(&self, source: io::Error) -> OutputError {
        OutputError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// Give the file its name. `unfinished`: held, so that it is not removed meanwhile.
    pub fn rename(&mut self, unfinished: &mut Vec<PathBuf>) -> Result<(), OutputError> {
        std::fs::rename(&self.path, &self.output).map_err(|source| OutputError::Io {
            path: self.output.clone(),
            source,
        })?;
        unfinished.retain(|path| *path != self.path);
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            let mut unfinished = unfinished();
            // Nothing can be done about a failure here; the error that led here is the one to report.
            let _ = std::fs::remove_file(&self.path);
            unfinished.retain(|path| *path != self.path);
        }
    }
}

/// Not truncated before the lock is held: another process may be writing it. A link is not followed.
fn open(path: &Path) -> Result<File, OutputError> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path);
    opened.map_err(|source| match Errno::from_io_error(&source) {
        Some(Errno::LOOP) => OutputError::Foreign { path: path.into() },
        _ => OutputError::Io {
            path: path.into(),
            source,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_another_process_finished_is_left_alone() {
        let folder = tempfile::TempDir::new().unwrap();
        let output = folder.path().join("out");
        let path = beside(&output, ".tqconv.partial");
        // Opened here, finished there, locked here.
        let opened_early = open(&path).unwrap();
        let mut other = Partial::create(output.clone()).unwrap();
        other.file.set_len(5).unwrap();
        other.rename(&mut unfinished()).unwrap();
        drop(other);
        assert!(Partial::claim(&path, &output, opened_early).unwrap().is_none());
        assert_eq!(std::fs::metadata(&output).unwrap().len(), 5);
        drop(Partial::create(output).unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_process_writes_at_a_time() {
        let folder = tempfile::TempDir::new().unwrap();
        let output = folder.path().join("out");
        let first = Partial::create(output.clone()).unwrap();
        let second = Partial::create(output.clone()).err().unwrap();
        assert!(matches!(second, OutputError::Busy { .. }), "{second}");
        drop(first);
        drop(Partial::create(output).unwrap());
    }
}
