//! The one memory map: a whole file as bytes.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file's bytes, mapped read-only.
pub struct Mapped(Option<Mmap>);

impl Mapped {
    /// Map the regular file at `path`.
    ///
    /// # Errors
    /// The file is not there, not readable, or not a regular file (a directory, a device, a pipe).
    pub fn open(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        if metadata.len() == 0 {
            return Ok(Self(None));
        }
        let file = File::open(path)?;
        // SAFETY: the map is read-only and private to this value; the bytes are only ever read as numbers, for which
        // every bit pattern is valid, so that another process writing the file can change results but not break rules.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self(Some(map)))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or(&[])
    }
}
