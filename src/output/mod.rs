//! Outputs: written beside their names, then renamed, so that a file under its final name is always whole, and never one
//! of the files that are read.

mod error;
mod files;
mod partial;

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::files::folder_of;

pub use error::OutputError;
pub use files::Files;
pub use partial::remove_unfinished;

/// Which file a path leads to, through links and under any of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }

    /// `None` where there is no such file.
    fn at(path: &Path) -> Option<Self> {
        Some(Self::of(&std::fs::metadata(path).ok()?))
    }
}

/// The files that are read, which no output may replace.
#[derive(Clone, Debug, Default)]
pub struct Inputs(Vec<FileId>);

impl Inputs {
    /// The files that `paths` lead to.
    pub fn new<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Self {
        let ids = paths.into_iter().filter_map(|path| FileId::at(path.as_ref()));
        Self(ids.collect())
    }

    /// These, and those that `paths` lead to.
    pub fn and<P: AsRef<Path>>(mut self, paths: impl IntoIterator<Item = P>) -> Self {
        self.0.extend(Self::new(paths).0);
        self
    }
}

/// Check that `output` can be created: called before the work, so that nobody waits for a refusal.
///
/// # Errors
/// It is there and `replace` is false, it is one of `inputs`, it is not a file, or its folder is missing or read-only.
pub fn check(output: &Path, replace: bool, inputs: &Inputs) -> Result<(), OutputError> {
    let path = || output.to_owned();
    if output.as_os_str().as_bytes().iter().any(u8::is_ascii_control) {
        return Err(OutputError::Name { path: path() });
    }
    if output == Path::new("-") {
        let found = "the standard output, which cannot be written to here and there";
        return Err(OutputError::NoFile { path: path(), found });
    }
    let folder = folder_of(output);
    if !folder.is_dir() {
        return Err(OutputError::NoFolder { path: folder.into() });
    }
    if output.file_name().is_none() || output.is_dir() {
        let found = "a folder";
        return Err(OutputError::NoFile { path: path(), found });
    }
    if let Ok(metadata) = std::fs::metadata(output) {
        if !metadata.is_file() {
            let found = "a device or a pipe";
            return Err(OutputError::NoFile { path: path(), found });
        }
        if inputs.0.contains(&FileId::of(&metadata)) {
            return Err(OutputError::SameFile { path: path() });
        }
        if !replace {
            return Err(OutputError::Exists { path: path() });
        }
    }
    // A file without a name: nothing of it is left even if the process is killed.
    match tempfile::tempfile_in(folder) {
        Ok(_) => Ok(()),
        Err(source) => Err(OutputError::Io {
            path: folder.into(),
            source,
        }),
    }
}

/// Write a small file whole: beside `path`, then renamed. A link at `path` is replaced, not followed.
///
/// # Errors
/// It cannot be written; what was there before is as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), OutputError> {
    let failed = |source| OutputError::Io {
        path: path.into(),
        source,
    };
    let folder = folder_of(path);
    let mut file = tempfile::Builder::new()
        .prefix(".tqconv-")
        .permissions(std::fs::Permissions::from_mode(0o666)) // less the umask, as for any new file
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    sync(file.as_file()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    sync_folder(folder).map_err(failed)
}

/// How often a call is made again that a signal has interrupted.
const ATTEMPTS: u32 = 100;

/// Do `call` until no signal interrupts it, for so long as that makes sense.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

/// Wait until the disk has the file.
fn sync(file: &std::fs::File) -> io::Result<()> {
    Ok(retry(|| rustix::fs::fsync(file))?)
}

/// Wait until the disk has the names in `folder`: a power cut could undo a rename otherwise.
fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = std::fs::File::open(folder)?;
    match retry(|| rustix::fs::fsync(&opened)) {
        // Not every file system can sync a folder; a folder that may be written and not read is no fault either.
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF) => Ok(()),
        synced => Ok(synced?),
    }
}

/// The name of `path` with `ending` after it.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    folder_of(path).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_interrupted_for_ever_ends() {
        let mut calls = 0;
        let interrupted = retry(|| {
            calls += 1;
            Err::<(), _>(Errno::INTR)
        });
        assert_eq!((interrupted, calls), (Err(Errno::INTR), ATTEMPTS));
        let mut calls = 0;
        let done = retry(|| {
            calls += 1;
            if calls < 3 { Err(Errno::INTR) } else { Ok(calls) }
        });
        assert_eq!(done, Ok(3));
    }

    #[test]
    fn an_input_is_known_under_each_of_its_names() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("input"), "x").unwrap();
        std::fs::hard_link(path("input"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("input"), path("soft")).unwrap();
        std::fs::write(path("other"), "x").unwrap();
        for read in ["input", "hard", "soft"] {
            let inputs = Inputs::new([path(read)]);
            for output in ["input", "hard", "soft"] {
                let error = check(&path(output), true, &inputs).unwrap_err();
                assert!(matches!(error, OutputError::SameFile { .. }), "{error}");
            }
            check(&path("other"), true, &inputs).unwrap();
            check(&path("new"), false, &inputs).unwrap();
        }
    }

    #[test]
    fn a_small_file_replaces_a_link_and_leaves_nothing_else() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("target"), "kept").unwrap();
        std::os::unix::fs::symlink(path("target"), path("link")).unwrap();
        write(&path("link"), b"new").unwrap();
        assert_eq!(std::fs::read(path("target")).unwrap(), b"kept");
        assert_eq!(std::fs::read(path("link")).unwrap(), b"new");
        assert!(!path("link").is_symlink());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
