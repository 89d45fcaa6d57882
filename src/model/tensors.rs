//! The tensors of a checkpoint: one safetensors file, or an index and its shards, mapped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use formats::block::BlockType;
use formats::safetensors::{Dtype, Entry, ShardIndex, Tensor, looks_like, parse_start, start_length};

use super::ModelError;
use crate::files::folder_of;
use crate::mapped::Mapped;

/// The header of a safetensors file or a whole index, read and not mapped: a file that shrinks is an error.
fn read_start(path: &Path, file: &Mapped) -> Result<Vec<u8>, ModelError> {
    let read = |length: usize| {
        let mut start = vec![0; length.min(file.len())];
        match file.read_at(0, &mut start) {
            Ok(()) => Ok(start),
            Err(source) => Err(ModelError::io(path, source)),
        }
    };
    let first = read(8)?;
    match first.first_chunk() {
        // An index has no length in front.
        Some(first) if first.trim_ascii_start().starts_with(b"{") => read(start_length([u8::MAX; 8]) as usize),
        Some(first) => read(start_length(*first) as usize),
        None => Ok(first),
    }
}

/// EMFILE: the process may open no more files.
const TOO_MANY_OPEN: i32 = 24;

/// Shards are held open, so that one that changes is noticed.
fn too_many(index: &Path, shards: usize, open: usize) -> ModelError {
    const BESIDE: usize = 100; // other files, and those of a checkpoint that is inspected
    let problem = format!(
        "Too many open files: its {shards} shards need `ulimit -n {}`, this process could open {open} of them",
        2 * shards + BESIDE
    );
    let source = std::io::Error::new(std::io::ErrorKind::QuotaExceeded, problem);
    ModelError::io(index, source)
}

struct Shard {
    path: PathBuf,
    bytes: Mapped,
}

/// A tensor in its file, to be read a piece at a time: what is read so takes no memory beyond the piece, and a file
/// that shrinks is an error.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Slowest dimension first: a matrix is `[rows, columns]`.
    pub shape: &'a [usize],
    /// The file.
    pub path: &'a Path,
    pub(super) file: &'a Mapped,
    /// Where it starts in the file, in bytes.
    pub(super) start: usize,
}

impl<'a> Stored<'a> {
    /// Bytes of one number: a float, or a byte of codes.
    pub fn number_bytes(self) -> usize {
        self.dtype.bytes().unwrap_or(1)
    }

    /// How many numbers.
    pub fn len(self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no numbers.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// A matrix as rows of the block type that holds its numbers as they are.
    pub fn blocks(self) -> Blocks<'a> {
        let Self {
            shape,
            path,
            file,
            start,
            ..
        } = self;
        let ty = match self.dtype {
            Dtype::F16 => BlockType::F16,
            Dtype::BF16 => BlockType::BF16,
            Dtype::F32 | Dtype::Other(_) => BlockType::F32,
        };
        Blocks {
            ty,
            shape,
            path,
            file,
            start,
        }
    }

    /// The bytes of the numbers from `first` on, as many as `out` takes.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(self, first: usize, out: &mut [u8]) -> std::io::Result<()> {
        let start = self.start + first * self.number_bytes();
        self.file.read_at(start as u64, out)
    }
}

/// Rows as they lie in a file, of any type: what is read of them takes no memory beyond the piece, and a file that
/// shrinks is an error.
#[derive(Clone, Copy)]
pub struct Blocks<'a> {
    /// How they are stored.
    pub ty: BlockType,
    /// (rows, columns)
    pub shape: &'a [usize],
    /// The file.
    pub path: &'a Path,
    pub(super) file: &'a Mapped,
    /// Where they start in the file, in bytes.
    pub(super) start: usize,
}

impl<'a> Blocks<'a> {
    /// How many rows.
    pub fn rows(self) -> usize {
        self.shape[0]
    }

    /// Weights of a row.
    pub fn columns(self) -> usize {
        self.shape[1]
    }

    /// Bytes of a row.
    pub fn row_bytes(self) -> usize {
        self.ty
            .row_bytes(self.columns())
            .expect("whoever opened the file checked the width")
    }

    /// The bytes of the rows from `first` on, as many as `out` takes.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(self, first: usize, out: &mut [u8]) -> std::io::Result<()> {
        self.file.read_at((self.start + first * self.row_bytes()) as u64, out)
    }

    /// How its numbers are stored, where they are floats.
    pub fn dtype(self) -> Option<Dtype> {
        match self.ty {
            BlockType::F32 => Some(Dtype::F32),
            BlockType::F16 => Some(Dtype::F16),
            BlockType::BF16 => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// The same as numbers, where they are floats.
    pub fn numbers(self) -> Option<Stored<'a>> {
        let Self {
            shape,
            path,
            file,
            start,
            ..
        } = self;
        let dtype = self.dtype()?;
        Some(Stored {
            dtype,
            shape,
            path,
            file,
            start,
        })
    }
}

/// All tensors of a checkpoint, mapped.
pub struct Tensors {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, (usize, Entry)>,
    /// What is odd about them, for the user to read.
    pub(super) notes: Vec<String>,
}

impl Tensors {
    /// Map one safetensors file, or all shards of an index.
    ///
    /// # Errors
    /// A file that is missing or not sound, or an index that does not agree with its shards.
    pub fn open(weights: &Path) -> Result<Self, ModelError> {
        let mut tensors = Self {
            path: weights.into(),
            shards: vec![],
            entries: BTreeMap::new(),
            notes: vec![],
        };
        let bytes = Mapped::open(weights).map_err(|source| ModelError::io(weights, source))?;
        let start = read_start(weights, &bytes)?;
        let is_index = start.trim_ascii_start().first() == Some(&b'{') && !looks_like(&start);
        if !is_index {
            tensors.add(weights.into(), bytes, &start)?;
            return Ok(tensors);
        }
        let index = ShardIndex::parse(&start).map_err(|source| ModelError::format(weights, source))?;
        let folder = folder_of(weights);
        let files: BTreeSet<_> = index.files.values().collect();
        for file in &files {
            let path = folder.join(file);
            if !path.exists() {
                return Err(ModelError::MissingFile {
                    path: weights.into(),
                    missing: file.to_string(),
                    remedy: "the index lists it: fetch the missing shard".into(),
                });
            }
            let opened = Mapped::open(&path);
            let bytes = opened.map_err(|source| match source.raw_os_error() {
                Some(TOO_MANY_OPEN) => too_many(weights, files.len(), tensors.shards.len()),
                _ => ModelError::io(&path, source),
            })?;
            let start = read_start(&path, &bytes)?;
            tensors.add(path, bytes, &start)?;
        }
        tensors.check_index(&index)?;
        tensors.note_total_size(&index);
        Ok(tensors)
    }

    fn add(&mut self, path: PathBuf, bytes: Mapped, start: &[u8]) -> Result<(), ModelError> {
        let entries = parse_start(start, bytes.len() as u64).map_err(|source| ModelError::format(&path, source))?;
        let shard = self.shards.len();
        for entry in entries {
            let name = entry.name.clone();
            if let Some((first, _)) = self.entries.insert(name.clone(), (shard, entry)) {
                let first = self.shards[first].path.clone();
                return Err(ModelError::TwoFiles {
                    first,
                    second: path,
                    tensor: name,
                });
            }
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    fn check_index(&self, index: &ShardIndex) -> Result<(), ModelError> {
        let problem = |problem| {
            Err(ModelError::Index {
                path: self.path.clone(),
                problem,
            })
        };
        for (name, file) in &index.files {
            match self.entries.get(name) {
                None => {
                    return problem(format!("says tensor '{name}' is in {file}, which does not hold it"));
                }
                Some((shard, _)) if !self.shards[*shard].path.ends_with(file) => {
                    let found = self.shards[*shard].path.display();
                    return problem(format!("says tensor '{name}' is in {file}, it is in {found}"));
                }
                Some(_) => {}
            }
        }
        match self.entries.iter().find(|(name, _)| !index.files.contains_key(*name)) {
            Some((name, (shard, _))) => {
                let found = self.shards[*shard].path.display();
                problem(format!("does not list tensor '{name}', which is in {found}"))
            }
            None => Ok(()),
        }
    }

    /// Some writers count a tensor that two names share twice, so that a wrong sum is no fault.
    fn note_total_size(&mut self, index: &ShardIndex) {
        let found: u64 = self.entries.values().map(|(_, entry)| entry.range.len() as u64).sum();
        if let Some(total) = index.total_size.filter(|&total| total != found) {
            self.notes.push(format!(
                "{}: 'metadata.total_size' is {total}, the tensors have {found} bytes",
                self.path.display()
            ));
        }
    }

    /// The file, or the index of the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards.iter().map(|shard| (shard.path.as_path(), &*shard.bytes))
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.len() as u64).sum()
    }

    /// Call tensors what `names` says; those that it does not have keep theirs.
    pub(super) fn rename(&mut self, names: &BTreeMap<String, String>) {
        let entries = std::mem::take(&mut self.entries);
        let renamed = entries.into_iter().map(|(name, entry)| match names.get(&name) {
            Some(plain) => (plain.clone(), entry),
            None => (name, entry),
        });
        self.entries = renamed.collect();
    }

    /// What the file calls the tensor called `name` here.
    pub(super) fn written_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.written(name).unwrap_or(name)
    }

    /// The same, where there is such a tensor.
    pub(super) fn written(&self, name: &str) -> Option<&str> {
        let (_, entry) = self.entries.get(name)?;
        Some(&entry.name)
    }

    /// The names of all tensors.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.keys().map(String::as_str)
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<'_>)> {
        self.entries
            .iter()
            .map(|(name, (shard, entry))| (name.as_str(), entry.view(&self.shards[*shard].bytes)))
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (shard, entry) = self.entries.get(name)?;
        Some(entry.view(&self.shards[*shard].bytes))
    }

    /// The tensor called `name`, to be read a piece at a time.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (shard, entry) = self.entries.get(name)?;
        let shard = &self.shards[*shard];
        Some(Stored {
            dtype: entry.dtype,
            shape: &entry.shape,
            path: &shard.path,
            file: &shard.bytes,
            start: entry.range.start,
        })
    }

    /// Bytes of one of the files, from `start` on.
    ///
    /// # Errors
    /// They cannot be read, or there is no such file.
    pub fn read_file(&self, path: &Path, start: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self.shards.iter().find(|shard| shard.path == path) {
            Some(shard) => shard.bytes.read_at(start, out),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// The first file that was written to, or made longer or shorter, since it was opened.
    pub fn changed(&self) -> Option<&Path> {
        self.shards
            .iter()
            .find(|shard| !shard.bytes.is_unchanged().unwrap_or(false))
            .map(|shard| shard.path.as_path())
    }

    /// The file that holds the tensor called `name`.
    pub fn file_of(&self, name: &str) -> &Path {
        self.entries
            .get(name)
            .map_or(&self.path, |(shard, _)| &self.shards[*shard].path)
    }
}
