//! The files of one output: made together, finished together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::partial::{Partial, unfinished};
use super::{Inputs, OutputError, beside, check};
use crate::files::folder_of;
use crate::system::{free_space, reserve, sync_folder, write_all_at};

/// Time between two requests to the disk to take what was written.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

/// An output while it is being written. What is not finished is removed.
pub struct Files(Vec<Partial>);

impl Files {
    /// Make the files, with room for every byte on the disk. `files`: paths and sizes in bytes, all in one folder.
    ///
    /// # Errors
    /// As [`check`] for each; the disk is too small.
    pub fn create(files: &[(PathBuf, u64)], replace: bool, inputs: &Inputs) -> Result<Self, OutputError> {
        let check_all = || files.iter().try_for_each(|(path, _)| check(path, replace, inputs));
        check_all()?;
        let folder = files.first().map_or(Path::new("."), |(path, _)| folder_of(path));
        let free = free_space(folder);
        let mut made = Self(vec![]);
        for (path, _) in files {
            made.0.push(Partial::create(path.clone())?);
        }
        if put_back_all(files) {
            check_all()?;
        }
        for (partial, (_, size)) in made.0.iter().zip(files) {
            reserve(&partial.file, *size).map_err(|source| match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OutputError::NoSpace {
                    path: folder.into(),
                    needed: files.iter().map(|(_, size)| size).sum(),
                    free,
                },
                _ => partial.failed(source),
            })?;
        }
        Ok(made)
    }

    /// Write `bytes` into one of the files.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn put(&self, file: usize, bytes: &[u8], at: u64) -> Result<(), OutputError> {
        let partial = &self.0[file];
        write_all_at(&partial.file, bytes, at).map_err(|source| partial.failed(source))
    }

    /// Do `work`, which writes, while the disk is told again and again to take what was written: little is then left to
    /// wait for at the end.
    ///
    /// # Errors
    /// Those of `work`; the disk fails, which it tells only once.
    pub fn sync_during<R: Send, E: From<OutputError> + Send>(
        &self,
        work: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E> {
        let (done, finished) = mpsc::channel::<()>();
        let sync_all = move || {
            while finished.recv_timeout(SYNC_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                for partial in &self.0 {
                    partial.file.sync_data().map_err(|source| partial.failed(source))?;
                }
            }
            Ok::<(), OutputError>(())
        };
        std::thread::scope(|scope| {
            // Without a thread for it all is synced at the end.
            let syncing = std::thread::Builder::new().spawn_scoped(scope, sync_all);
            let result = work();
            drop(done);
            let synced = syncing.map(|syncing| syncing.join().expect("syncing does not panic"));
            let result = result?;
            synced.unwrap_or(Ok(()))?;
            Ok(result)
        })
    }

    /// Wait for the disk, then give the files their names. Old files of these names are put back where that fails.
    ///
    /// # Errors
    /// The disk fails, or a file cannot get its name.
    pub fn finish(mut self) -> Result<(), OutputError> {
        for partial in &self.0 {
            partial.file.sync_all().map_err(|source| partial.failed(source))?;
        }
        let Some(first) = self.0.first().map(|partial| partial.output.clone()) else {
            return Ok(());
        };
        match self.0.as_mut_slice() {
            [one] => one.rename(&mut unfinished())?,
            several => replace(several)?,
        }
        let folder = folder_of(&first);
        sync_folder(folder).map_err(|source| OutputError::Io {
            path: folder.into(),
            source,
        })
    }
}

/// Where the old file of this name is kept until all new ones have their names.
fn aside(output: &Path) -> PathBuf {
    beside(output, ".tqconv.replaced")
}

/// Undo what a process that was killed had begun in [`replace`], or finish it where only the old files were left to be
/// removed; whether there was anything. The caller has locked all files.
fn put_back_all(files: &[(PathBuf, u64)]) -> bool {
    let is_aside = |(path, _): &&(PathBuf, u64)| aside(path).symlink_metadata().is_ok();
    let kept: Vec<_> = files.iter().filter(is_aside).collect();
    let is_complete = files.first().is_some_and(|(first, _)| first.exists());
    for (path, _) in &kept {
        match is_complete {
            true => drop(std::fs::remove_file(aside(path))),
            false => put_back(path),
        }
    }
    !kept.is_empty()
}

/// Give several files their names in the place of others: the first goes first and comes last, as it is the one that
/// models are opened by, so that nobody opens a mixture.
fn replace(partials: &mut [Partial]) -> Result<(), OutputError> {
    let mut unfinished = unfinished();
    let mut kept = vec![];
    let replaced = (|| {
        for partial in &*partials {
            match std::fs::rename(&partial.output, aside(&partial.output)) {
                Ok(()) => kept.push(partial.output.clone()),
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(OutputError::Io {
                        path: partial.output.clone(),
                        source,
                    });
                }
            }
        }
        let mut last_to_first = partials.iter_mut().rev();
        last_to_first.try_for_each(|partial| partial.rename(&mut unfinished))
    })();
    if replaced.is_err() {
        partials
            .iter_mut()
            .for_each(|partial| partial.rename_back(&mut unfinished));
    }
    for output in kept.iter().rev() {
        match &replaced {
            Ok(()) => drop(std::fs::remove_file(aside(output))),
            Err(_) => put_back(output),
        }
    }
    replaced
}

/// Nothing can be done where this fails, too: the file keeps the name that it has.
fn put_back(output: &Path) {
    let aside = aside(output);
    if std::fs::rename(&aside, output).is_err() && std::fs::hard_link(&aside, output).is_ok() {
        let _ = std::fs::remove_file(aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn paths(folder: &TempDir) -> [PathBuf; 3] {
        ["1", "2", "3"].map(|name| folder.path().join(name))
    }

    fn write(paths: &[PathBuf], text: &str) {
        paths.iter().for_each(|path| std::fs::write(path, text).unwrap());
    }

    /// What the files hold, and how many others there are.
    fn found(folder: &TempDir) -> ([Option<String>; 3], usize) {
        let texts = paths(folder).map(|path| std::fs::read_to_string(path).ok());
        let all = std::fs::read_dir(folder.path()).unwrap().count();
        let others = all - texts.iter().flatten().count();
        (texts, others)
    }

    fn all(text: &str) -> [Option<String>; 3] {
        [(); 3].map(|()| Some(text.into()))
    }

    fn create(folder: &TempDir) -> Result<Files, OutputError> {
        let files = paths(folder).map(|path| (path, 3));
        let files = Files::create(&files, true, &Inputs::default())?;
        (0..3).try_for_each(|file| files.put(file, b"new", 0))?;
        Ok(files)
    }

    #[test]
    fn several_files_are_replaced_together() {
        let folder = TempDir::new().unwrap();
        write(&paths(&folder), "old");
        create(&folder).unwrap().finish().unwrap();
        assert_eq!(found(&folder), (all("new"), 0));
    }

    #[test]
    fn where_one_cannot_get_its_name_all_old_ones_are_put_back() {
        for lost in 0..3 {
            let folder = TempDir::new().unwrap();
            write(&paths(&folder), "old");
            let files = create(&folder).unwrap();
            let elsewhere = TempDir::new().unwrap();
            let partial = beside(&paths(&folder)[lost], ".tqconv.partial");
            std::fs::rename(partial, elsewhere.path().join("lost")).unwrap();
            files.finish().unwrap_err();
            assert_eq!(found(&folder), (all("old"), 0), "file {lost}");
        }
    }

    #[test]
    fn what_a_killed_process_had_set_aside_is_put_back() {
        // Killed when some of the new ones had their names, and when all had.
        for (named, expected) in [(2, "old"), (3, "new")] {
            let folder = TempDir::new().unwrap();
            let paths = paths(&folder);
            write(&paths.each_ref().map(|path| aside(path)), "old");
            write(&paths[3 - named..], "new");
            drop(create(&folder).unwrap());
            assert_eq!(found(&folder), (all(expected), 0));
        }
    }
}
