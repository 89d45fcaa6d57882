//! The output: written beside its final name, then renamed, so that a file under its final name is always whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use super::PackError;
use super::layout::{Layout, paths};
use crate::model::folder_of;

/// Time between two requests to the disk to take what was written.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// Where to write.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// The file, or what the names of several files are made from.
    pub path: &'a Path,
    /// Whether files of that name are replaced.
    pub replace: bool,
}

/// Check that `output` can be created: called before the work, so that nobody waits for a refusal.
///
/// # Errors
/// It is there and `replace` is false, it is one of `inputs`, it is no file, or its folder is missing.
pub fn check_output(output: &Path, replace: bool, inputs: &[&Path]) -> Result<(), PackError> {
    let path = || output.to_owned();
    let folder = folder_of(output);
    if !folder.is_dir() {
        return Err(PackError::NoFolder {
            path: folder.into(),
        });
    }
    if output.file_name().is_none() || output.is_dir() {
        return Err(PackError::NoFile {
            path: path(),
            found: "a folder",
        });
    }
    let Ok(metadata) = std::fs::metadata(output) else {
        return Ok(());
    };
    if !metadata.is_file() {
        return Err(PackError::NoFile {
            path: path(),
            found: "a device or a pipe",
        });
    }
    let canonical = output.canonicalize().ok();
    if inputs
        .iter()
        .any(|input| input.canonicalize().ok() == canonical)
    {
        return Err(PackError::SameFile { path: path() });
    }
    if replace {
        Ok(())
    } else {
        Err(PackError::Exists { path: path() })
    }
}

impl Output<'_> {
    /// Make the files that `layout` asks for, with room for every byte on the disk.
    ///
    /// # Errors
    /// As [`check_output`] for each; the disk is too small.
    pub(super) fn create(&self, layout: &Layout, inputs: &[&Path]) -> Result<Files, PackError> {
        let paths = paths(self.path, layout.files.len());
        for path in &paths {
            check_output(path, self.replace, inputs)?;
        }
        let free = free_bytes(folder_of(self.path));
        let mut files = Files(vec![]);
        for path in paths {
            files.0.push(Partial::create(path)?);
        }
        for (partial, file) in files.0.iter().zip(&layout.files) {
            partial.reserve(file.size).map_err(|source| match source {
                Errno::NOSPC | Errno::DQUOT => PackError::NoSpace {
                    path: folder_of(self.path).into(),
                    needed: layout.size(),
                    free,
                },
                source => partial.failed(source.into()),
            })?;
        }
        Ok(files)
    }
}

/// Bytes that may be written to the file system of `folder`, where it says.
fn free_bytes(folder: &Path) -> Option<u64> {
    let found = statvfs(folder).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

/// The output while it is being written. What is not finished is removed.
pub(super) struct Files(Vec<Partial>);

impl Files {
    pub fn put(&self, file: usize, bytes: &[u8], at: u64) -> Result<(), PackError> {
        let partial = &self.0[file];
        partial
            .file
            .write_all_at(bytes, at)
            .map_err(|source| partial.failed(source))
    }

    /// Do `work`, which writes, while the disk is told again and again to take what was written: little is then left to
    /// wait for at the end.
    ///
    /// # Errors
    /// Those of `work`; the disk fails, which it tells only once.
    pub fn sync_during<R: Send>(
        &self,
        work: impl FnOnce() -> Result<R, PackError>,
    ) -> Result<R, PackError> {
        let (done, finished) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            let syncing = scope.spawn(move || {
                while finished.recv_timeout(SYNC_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    for partial in &self.0 {
                        let synced = partial.file.sync_data();
                        synced.map_err(|source| partial.failed(source))?;
                    }
                }
                Ok::<(), PackError>(())
            });
            let result = work()?;
            drop(done);
            syncing.join().expect("syncing does not panic")?;
            Ok(result)
        })
    }

    /// Wait for the disk, then give the files their names: the first last, as it is the one that models are opened by.
    /// Of several files that are replaced the first goes before any other is, so that nobody opens a mixture.
    pub fn finish(self) -> Result<(), PackError> {
        for partial in &self.0 {
            let synced = partial.file.sync_all();
            synced.map_err(|source| partial.failed(source))?;
        }
        if let [first, _, ..] = self.0.as_slice() {
            match std::fs::remove_file(&first.output) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(PackError::Io {
                        path: first.output.clone(),
                        source,
                    });
                }
                _ => {}
            }
        }
        self.0.into_iter().rev().try_for_each(Partial::finish)
    }
}

/// One file of the output while it is being written: `NAME.partial`. A process that was killed leaves it behind; the
/// next one that writes the same output takes it and starts over.
struct Partial {
    path: PathBuf,
    output: PathBuf,
    file: File,
    finished: bool,
}

impl Partial {
    fn create(output: PathBuf) -> Result<Self, PackError> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = folder_of(&output).join(name);
        let failed = |source| PackError::Io {
            path: path.clone(),
            source,
        };
        // Not truncated before the lock is held: another process may be writing it.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PackError::Busy { path }),
            Err(TryLockError::Error(source)) => return Err(PackError::Io { path, source }),
        }
        let partial = Self {
            path,
            output,
            file,
            finished: false,
        };
        partial
            .file
            .set_len(0)
            .map_err(|source| partial.failed(source))?;
        Ok(partial)
    }

    /// Give the file its length, and blocks of the disk for all of it.
    fn reserve(&self, size: u64) -> Result<(), Errno> {
        match fallocate(&self.file, FallocateFlags::empty(), 0, size) {
            // The file system cannot promise blocks: a full disk is then found while writing.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => rustix::fs::ftruncate(&self.file, size),
            reserved => reserved,
        }
    }

    fn failed(&self, source: io::Error) -> PackError {
        PackError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn finish(mut self) -> Result<(), PackError> {
        std::fs::rename(&self.path, &self.output).map_err(|source| PackError::Io {
            path: self.output.clone(),
            source,
        })?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing can be done about a failure here; the error that led here is the one to report.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
