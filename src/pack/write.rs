//! Writing what was planned: beside the output, then renamed, so that a file under its final name is always whole.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::plan::{Content, Item, Plan, importance};
use super::row::{Row, Ternary, encode};
use super::{PackError, Progress};
use crate::model::{Checkpoint, Linear};

/// Bytes that one thread encodes before it writes them.
const PIECE: usize = 1 << 20;

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

fn folder_of(output: &Path) -> &Path {
    match output.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The output while it is being written: `NAME.partial`, removed unless it is finished.
struct Partial {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl Partial {
    fn create(output: &Path, size: u64) -> Result<Self, PackError> {
        let mut name = output.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let path = folder_of(output).join(name);
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
            file,
            finished: false,
        };
        partial
            .file
            .set_len(0)
            .and_then(|()| partial.file.set_len(size))
            .map_err(|source| partial.io(source))?;
        Ok(partial)
    }

    fn io(&self, source: io::Error) -> PackError {
        PackError::Io {
            path: self.path.clone(),
            source,
        }
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<(), PackError> {
        self.file
            .write_all_at(bytes, at)
            .map_err(|source| self.io(source))
    }

    fn finish(mut self, output: &Path) -> Result<(), PackError> {
        self.file.sync_all().map_err(|source| self.io(source))?;
        std::fs::rename(&self.path, output).map_err(|source| PackError::Io {
            path: output.into(),
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

impl Plan<'_> {
    /// Write the file. `progress` is told the bytes of weights read.
    ///
    /// # Errors
    /// The output cannot be written, or the input is not what it was when it was planned. Nothing is left behind.
    pub fn write(&self, output: &Path, progress: &Progress) -> Result<(), PackError> {
        let partial = Partial::create(output, self.layout.size)?;
        partial.put(&self.layout.header, 0)?;
        for (item, &offset) in self.items.iter().zip(&self.layout.offsets) {
            match &item.content {
                Content::Numbers(numbers) => {
                    let bytes: Vec<_> = numbers
                        .iter()
                        .flat_map(|number| number.to_le_bytes())
                        .collect();
                    partial.put(&bytes, offset)?;
                }
                Content::Table(source) => {
                    write_table(self.checkpoint, item, source, &partial, offset, progress)?
                }
                Content::Linear { linear, .. } => {
                    write_linear(self.checkpoint, item, *linear, &partial, offset)?;
                    progress(self.checkpoint.linear(*linear).weight.bytes.len() as u64);
                }
            }
        }
        partial.finish(output)
    }
}

fn write_table(
    checkpoint: &Checkpoint,
    item: &Item,
    source: &str,
    partial: &Partial,
    offset: u64,
    progress: &Progress,
) -> Result<(), PackError> {
    let tensor = checkpoint
        .tensors
        .get(source)
        .expect("Checkpoint::open found every tensor");
    let columns = tensor.shape[1];
    let row_bytes = item
        .info
        .ty
        .row_bytes(columns)
        .expect("the plan checked the width");
    pieces(tensor.shape[0], row_bytes)
        .into_par_iter()
        .try_for_each(|rows| {
            let mut numbers = vec![0.0; columns];
            let mut bytes = vec![0; rows.len() * row_bytes];
            for (row, bytes) in rows.clone().zip(bytes.chunks_exact_mut(row_bytes)) {
                tensor.read_f32(row * columns, &mut numbers);
                item.info
                    .ty
                    .quantize_row(&numbers, bytes)
                    .map_err(|problem| PackError::Embedding {
                        tensor: item.info.name.clone(),
                        ty: item.info.ty,
                        problem: problem.to_string(),
                    })?;
            }
            progress((tensor.bytes.len() / tensor.shape[0] * rows.len()) as u64);
            partial.put(&bytes, offset + (rows.start * row_bytes) as u64)
        })
}

fn write_linear(
    checkpoint: &Checkpoint,
    item: &Item,
    linear: Linear,
    partial: &Partial,
    offset: u64,
) -> Result<(), PackError> {
    let Content::Linear { losses, .. } = &item.content else {
        unreachable!("the caller looked")
    };
    let changed = || {
        let tensor = format!("{}.weight", linear.checkpoint_name());
        PackError::Changed {
            path: checkpoint.tensors.file_of(&tensor).into(),
            tensor,
        }
    };
    let (rows, columns) = linear.shape(&checkpoint.config);
    let row_bytes = item
        .info
        .ty
        .row_bytes(columns)
        .expect("the plan checked the width");
    let ternary = Ternary::new(checkpoint, linear).map_err(|_| changed())?;
    let importance = importance(checkpoint, linear);
    pieces(rows, row_bytes)
        .into_par_iter()
        .try_for_each_init(Row::default, |row, piece| {
            let mut bytes = vec![0; piece.len() * row_bytes];
            for (index, bytes) in piece.clone().zip(bytes.chunks_exact_mut(row_bytes)) {
                ternary
                    .split(linear.checkpoint_row(index, &checkpoint.config), row)
                    .map_err(|_| changed())?;
                let loss = encode(item.info.ty, row, &importance, bytes).map_err(|_| changed())?;
                if loss != losses[index] {
                    return Err(changed());
                }
            }
            partial.put(&bytes, offset + (piece.start * row_bytes) as u64)
        })
}

/// The rows in runs of about a [`PIECE`] of output.
fn pieces(rows: usize, row_bytes: usize) -> Vec<std::ops::Range<usize>> {
    let step = (PIECE / row_bytes.max(1)).max(1);
    (0..rows)
        .step_by(step)
        .map(|start| start..(start + step).min(rows))
        .collect()
}
