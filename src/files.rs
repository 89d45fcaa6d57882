//! Files that are read: which may be opened, and how much of one is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The folder of a file, as one that has a name in messages: `.` where only the file's name is given.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Open the regular file at `path`.
///
/// # Errors
/// The file is not there or not readable; [`io::ErrorKind::InvalidInput`] where it is not a regular file (a folder, a
/// device, a pipe).
pub fn open(path: &Path) -> io::Result<File> {
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    File::open(path)
}

/// All of the regular file at `path`; `None` where it has more than `limit` bytes.
///
/// # Errors
/// Those of [`open`]; it cannot be read.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, 4).unwrap().as_deref(), Some(&b"1234"[..]));
        assert!(read(&path, 3).unwrap().is_none());
        assert_eq!(read(folder.path(), 4).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(
            read(&folder.path().join("none"), 4).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_name_alone_lies_in_this_folder() {
        assert_eq!(folder_of(Path::new("model.gguf")), Path::new("."));
        assert_eq!(folder_of(Path::new("a/model.gguf")), Path::new("a"));
    }
}
