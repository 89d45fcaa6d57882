//! A GGUF model as something to be packed: its keys, and its tensors as rows that are read a piece at a time.

use std::io;
use std::path::Path;

use formats::gguf::{TensorInfo, Value};

use super::tensors::Blocks;
use crate::mapped::{Mapped, Model, OpenError, Part};

/// A tensor, and where it is.
struct Tensor {
    info: TensorInfo,
    /// (rows, columns): whatever lies beyond two dimensions, such as experts, one below the other.
    shape: [usize; 2],
    part: usize,
    start: usize,
}

/// A GGUF model: one file, or all files of a split.
pub struct Gguf {
    files: Model,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

impl Gguf {
    /// Map the file at `path`, and where it is the first of several the others.
    ///
    /// # Errors
    /// A file that cannot be read, or that breaks its format's rules.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let files = Model::open(path)?;
        let file = files.parse()?;
        let place = |info: &TensorInfo| {
            // A tensor without weights may lie nowhere.
            let (_, bytes) = file.tensor(&info.name).expect("its own tensor");
            let (part, start) = files.place(bytes).unwrap_or_default();
            Tensor {
                info: info.clone(),
                shape: [info.rows() as usize, info.columns() as usize],
                part,
                start,
            }
        };
        let tensors = file.tensors().iter().map(place).collect();
        let metadata = file.metadata().to_vec();
        drop(file);
        Ok(Self {
            files,
            metadata,
            tensors,
        })
    }

    /// Keys and values, in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// What the keys of the model begin with.
    pub fn architecture(&self) -> &str {
        let found = self.metadata.iter().find(|(key, _)| key == "general.architecture");
        found.and_then(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// All tensors, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&TensorInfo, Blocks<'_>)> {
        self.tensors.iter().map(|tensor| {
            let part = &self.files.parts()[tensor.part];
            let blocks = Blocks {
                ty: tensor.info.ty,
                shape: &tensor.shape,
                path: &part.path,
                file: &part.bytes,
                start: tensor.start,
            };
            (&tensor.info, blocks)
        })
    }

    /// The files, the first first.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.files
            .parts()
            .iter()
            .map(|part| (part.path.as_path(), &*part.bytes))
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.bytes()
    }

    /// Bytes of one of the files, from `start` on.
    ///
    /// # Errors
    /// They cannot be read, or there is no such file.
    pub fn read_file(&self, path: &Path, start: u64, out: &mut [u8]) -> io::Result<()> {
        match self.files.parts().iter().find(|part| part.path == path) {
            Some(part) => part.bytes.read_at(start, out),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The first file that was written to, or made longer or shorter, since it was opened.
    pub fn changed(&self) -> Option<&Path> {
        let changed = |part: &&Part| !part.bytes.is_unchanged().unwrap_or(false);
        self.files.parts().iter().find(changed).map(|part| part.path.as_path())
    }
}

/// Whether the file at `path` says that it is a GGUF file.
///
/// # Errors
/// It is not a regular file, or cannot be opened.
pub fn is_gguf(path: &Path) -> io::Result<bool> {
    let (file, mut magic) = (Mapped::open(path)?, [0; 4]);
    Ok(file.read_at(0, &mut magic).is_ok() && magic == *b"GGUF")
}
