//! One file of an output while it is being written: `NAME.tqconv.partial`, locked by the process that writes it.
//!
//! A process that was killed leaves it behind; the next one that writes the same output takes it and starts over. What is
//! no such leftover is left alone.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{OutputError, beside};
use crate::system::{FileId, links, open_own};

/// How often a file is opened again that another process has finished meanwhile.
const ATTEMPTS: u32 = 100;

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
        let before = FileId::at(&output).ok();
        for _ in 0..ATTEMPTS {
            let file = open(&path)?;
            if let Some(partial) = Self::claim(&path, &output, file)? {
                return Ok(partial);
            }
            if FileId::at(&output).ok() != before {
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
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(OutputError::Busy { path }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
            Ok(()) => {}
        }
        if FileId::at(&path).ok() != Some(FileId::of(&file).map_err(failed)?) {
            return Ok(None);
        }
        // A second name of the file is nobody's leftover.
        if !file.metadata().map_err(failed)?.is_file() || links(&file).map_err(failed)? != 1 {
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

    /// Free its name again, where it has it. Removed while it is open, a file keeps its name on some Windows.
    pub fn rename_back(&mut self, unfinished: &mut Vec<PathBuf>) {
        if self.finished && std::fs::rename(&self.output, &self.path).is_ok() {
            unfinished.push(self.path.clone());
            self.finished = false;
        }
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

/// Not truncated before the lock is held: another process may be writing it.
fn open(path: &Path) -> Result<File, OutputError> {
    match open_own(path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(OutputError::Foreign { path: path.into() }),
        Err(source) => Err(OutputError::Io {
            path: path.into(),
            source,
        }),
    }
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
