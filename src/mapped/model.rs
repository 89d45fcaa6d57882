//! A GGUF model under the name that a person gives: one file, or all files of a split.

use std::io;
use std::path::{Path, PathBuf};

use formats::FormatError;
use formats::gguf::{File, part_of, part_path, split_count};

use super::Mapped;

/// A model that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file that cannot be read.
    #[error("{}: {source}; check the name, and that you may read it", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder.
    #[error("{}: is a folder, expected a GGUF file; pack a checkpoint first: `tqconv pack FOLDER model.gguf`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// A part that is not the first.
    #[error("{}: is part {number} of a model; name the first, {}", path.display(), first.display())]
    Part {
        /// The file.
        path: PathBuf,
        /// Which part it is, from 1.
        number: usize,
        /// The first part.
        first: PathBuf,
    },
    /// A file that breaks its format's rules.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// How.
        source: FormatError,
    },
}

/// One file of a model.
pub struct Part {
    /// Where it is.
    pub path: PathBuf,
    /// All of it.
    pub bytes: Mapped,
}

impl Part {
    fn open(path: PathBuf) -> Result<Self, OpenError> {
        match Mapped::open(&path) {
            Ok(bytes) => Ok(Self { path, bytes }),
            Err(source) => Err(OpenError::Io { path, source }),
        }
    }

    /// The file alone.
    ///
    /// # Errors
    /// What [`File::parse`] finds.
    pub fn parse(&self) -> Result<File<'_>, OpenError> {
        File::parse(&self.bytes).map_err(|source| OpenError::Format {
            path: self.path.clone(),
            source,
        })
    }
}

/// The files of a model, mapped.
pub struct Model(Vec<Part>);

impl Model {
    /// Map the file at `path`, and where it is the first of several the others, which stand beside it.
    ///
    /// # Errors
    /// A file is missing or cannot be read, or it is another part than the first.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        if path.is_dir() {
            return Err(OpenError::Folder { path: path.into() });
        }
        let mut parts = vec![Part::open(path.into())?];
        let Some((prefix, number, count)) = part_of(path) else {
            return Ok(Self(parts));
        };
        // A name alone makes no part; what cannot be read at all is found later.
        if count > 1 && parts[0].parse().is_ok_and(|file| split_count(&file) == count) {
            if number > 1 {
                let first = part_path(&prefix, 1, count);
                let path = path.into();
                return Err(OpenError::Part { path, number, first });
            }
            for number in 2..=count {
                parts.push(Part::open(part_path(&prefix, number, count))?);
            }
        }
        Ok(Self(parts))
    }

    /// The files, the first first.
    pub fn parts(&self) -> &[Part] {
        &self.0
    }

    /// The file that `bytes`, a part of what [`parse`](Self::parse) gives, lie in, from 0, and where they start there.
    pub fn place(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        let start = bytes.as_ptr().addr();
        let place = |part: &Part| start.checked_sub(part.bytes.as_ptr().addr());
        let within = |part: &Part| place(part).is_some_and(|start| start + bytes.len() <= part.bytes.len());
        let part = self.0.iter().position(within)?;
        Some((part, place(&self.0[part])?))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// The model that the files hold together.
    ///
    /// # Errors
    /// What [`File::parse`] and [`File::join`] find.
    pub fn parse(&self) -> Result<File<'_>, OpenError> {
        let parts = self.0.iter().map(Part::parse).collect::<Result<_, _>>()?;
        File::join(parts).map_err(|source| OpenError::Format {
            path: self.0[0].path.clone(),
            source,
        })
    }
}
