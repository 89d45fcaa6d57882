//! One reading of all weights: pieces of rows are read, made into blocks and written, each by one thread from start to
//! end, so that reading, computing and writing of different pieces overlap.
//!
//! A piece and what it becomes fit the processor's cache, and are all the memory that a thread needs. Weights are read
//! with `pread`, not through the map: nothing of the input stays resident in the process, and a file that shrinks is an
//! error instead of a signal. The file cache is left alone, as the checkpoint may be read again.

use std::ops::{ControlFlow, Range};

use formats::block::{BlockError, BlockType};
use formats::safetensors::Dtype;
use rayon::prelude::*;

use super::layout::Layout;
use super::numbers::{NotFinite, check_finite, widen};
use super::plan::{Content, Entry, Job, Plan, source_row};
use super::row::{Facts, Scratch};
use super::{PackError, Progress};
use crate::model::Blocks;
use crate::output::Files;
use crate::simd::{Lanes, Work};

/// Numbers in a piece.
const PIECE: usize = 1 << 17;
/// The most numbers of a head that is read at once: 4 times the largest in use.
const MAX_HEAD: usize = 1 << 24;

/// All weights read once.
pub struct Pass<'p, 'a> {
    /// What they become.
    pub plan: &'p Plan<'a>,
    /// Where to write them, if at all.
    pub sink: Option<(&'p Files, &'p Layout)>,
    /// Told the bytes of weights read.
    pub progress: &'p Progress<'p>,
}

/// Rows of a tensor.
struct Piece {
    entry: usize,
    rows: Range<usize>,
}

impl Job<'_> {
    /// The rows in runs that are read at once: whole heads, where their rows are not in the checkpoint's order; single
    /// rows where a head is too large.
    pub fn pieces(&self) -> Vec<Range<usize>> {
        pieces_of_heads(self.shape, self.interleaved)
    }
}

/// The same for a matrix of any kind. `shape`: (rows, columns).
fn pieces_of_heads(shape: (usize, usize), interleaved: Option<usize>) -> Vec<Range<usize>> {
    match interleaved {
        Some(head_dim) if head_dim * shape.1 <= MAX_HEAD => pieces(shape, head_dim),
        Some(_) => (0..shape.0).map(|row| row..row + 1).collect(),
        None => pieces(shape, 1),
    }
}

/// `shape`: (rows, columns).  Each piece but the last is a multiple of `together` rows.
fn pieces(shape: (usize, usize), together: usize) -> Vec<Range<usize>> {
    let (rows, columns) = shape;
    let step = (PIECE / columns).max(1).next_multiple_of(together);
    (0..rows)
        .step_by(step)
        .map(|start| start..(start + step).min(rows))
        .collect()
}

impl Pass<'_, '_> {
    /// Do it; gives what was found of each job. The same with any number of threads: pieces depend on the shapes alone,
    /// and what is found of them is added up in their order.
    pub fn run(&self) -> Result<Vec<Facts>, PackError> {
        let found = self
            .pieces()
            .into_par_iter()
            .map_init(Scratch::default, |scratch, piece| self.work(&piece, scratch))
            .collect::<Result<Vec<_>, PackError>>()?;
        let mut facts = vec![Facts::default(); self.plan.jobs.len()];
        for (job, found) in found.into_iter().flatten() {
            facts[job] = std::mem::take(&mut facts[job]).merge(found);
        }
        Ok(facts)
    }

    fn pieces(&self) -> Vec<Piece> {
        let of_entry = |entry| {
            let pieces = self.pieces_of(entry).into_iter();
            pieces.map(move |rows| Piece { entry, rows })
        };
        (0..self.plan.entries.len()).flat_map(of_entry).collect()
    }

    /// The rows of a tensor that are encoded, in runs that are read at once.
    pub fn pieces_of(&self, entry: usize) -> Vec<Range<usize>> {
        match &self.plan.entries[entry].content {
            Content::Table { blocks, .. } if blocks.shape.contains(&0) => vec![],
            Content::Table {
                blocks, interleaved, ..
            } => pieces_of_heads((blocks.rows(), blocks.columns()), *interleaved),
            Content::Linear(job) => self.plan.jobs[*job].pieces(),
            Content::Numbers(_) | Content::Bias(_) => vec![],
        }
    }

    /// Read, make and write a piece; gives what was found of a job's rows.
    fn work(&self, piece: &Piece, scratch: &mut Scratch) -> Result<Option<(usize, Facts)>, PackError> {
        let rows = piece.rows.clone();
        let (row_bytes, found) = match &self.plan.entries[piece.entry].content {
            Content::Linear(index) => {
                let job = &self.plan.jobs[*index];
                let facts = self.linear(job, rows, scratch)?;
                (job.ternary.row_bytes(), Some((*index, facts)))
            }
            Content::Table { blocks, .. } => {
                self.table(piece.entry, rows, scratch)?;
                (blocks.row_bytes(), None)
            }
            Content::Numbers(_) | Content::Bias(_) => return Ok(None),
        };
        if let Some((files, layout)) = self.sink {
            let (file, offset) = layout.place(piece.entry);
            let before = scratch.out.len() / piece.rows.len() * piece.rows.start;
            files.put(file, &scratch.out, offset + before as u64)?;
        }
        match (self.progress)((piece.rows.len() * row_bytes) as u64) {
            ControlFlow::Continue(()) => Ok(found),
            ControlFlow::Break(()) => Err(PackError::Interrupted),
        }
    }

    fn linear(&self, job: &Job, rows: Range<usize>, scratch: &mut Scratch) -> Result<Facts, PackError> {
        let rows = rows.map(|row| job.checkpoint_row(row));
        let write = self.sink.is_some();
        job.ternary.encode(rows, &job.types[..=job.chosen], write, scratch)
    }

    /// Rows of a table, as they are or converted, into `scratch.out`.
    pub fn table(&self, entry: usize, rows: Range<usize>, scratch: &mut Scratch) -> Result<(), PackError> {
        let Entry {
            name: tensor,
            content:
                Content::Table {
                    name,
                    blocks,
                    ty,
                    interleaved,
                },
            ..
        } = &self.plan.entries[entry]
        else {
            return Ok(());
        };
        let columns = blocks.columns();
        read_rows(*blocks, rows.clone(), *interleaved, scratch)?;
        let kept = *ty == blocks.ty;
        let row_bytes = ty.row_bytes(columns).expect("the plan checked the width");
        if !kept {
            scratch.out.resize(rows.len() * row_bytes, 0);
        }
        scratch.numbers.resize(columns, 0.0);
        let stored_rows = scratch.bytes.chunks_exact(blocks.row_bytes());
        for (at, (row, bytes)) in rows.zip(stored_rows).enumerate() {
            let row = source_row(*interleaved, row);
            let work = ConvertRow {
                bytes,
                ty: blocks.ty,
                dtype: blocks.dtype(),
                numbers: &mut scratch.numbers,
                out: (!kept).then(|| (*ty, &mut scratch.out[at * row_bytes..][..row_bytes])),
            };
            self.plan.level().run(work).map_err(|error| match error {
                RowError::NotFinite(NotFinite { index: column }) => PackError::NotFinite {
                    path: blocks.path.into(),
                    tensor: name.clone(),
                    row,
                    column,
                    value: scratch.numbers[column],
                },
                RowError::Block(problem) => PackError::Embedding {
                    tensor: tensor.clone(),
                    ty: *ty,
                    problem: problem.to_string(),
                },
            })?;
        }
        if kept {
            std::mem::swap(&mut scratch.bytes, &mut scratch.out);
        }
        Ok(())
    }
}

/// Read `rows` of the file into `scratch.bytes`, in its order.
fn read_rows(
    blocks: Blocks,
    rows: Range<usize>,
    interleaved: Option<usize>,
    scratch: &mut Scratch,
) -> Result<(), PackError> {
    let bytes = &mut scratch.bytes;
    bytes.resize(rows.len() * blocks.row_bytes(), 0);
    let read = match interleaved {
        None => blocks.read(rows.start, bytes),
        Some(_) => {
            let mut rows = rows.zip(bytes.chunks_exact_mut(blocks.row_bytes()));
            rows.try_for_each(|(row, bytes)| blocks.read(source_row(interleaved, row), bytes))
        }
    };
    read.map_err(|source| PackError::read(blocks.path, source))
}

/// Why a row of a table cannot be stored.
enum RowError {
    NotFinite(NotFinite),
    Block(BlockError),
}

/// Look at a row of a table, and convert it where it is to become another type. Blocks that stay are not looked at.
struct ConvertRow<'t> {
    bytes: &'t [u8],
    ty: BlockType,
    /// Where they are floats.
    dtype: Option<Dtype>,
    /// Room for the numbers. (columns,)
    numbers: &'t mut [f32],
    out: Option<(BlockType, &'t mut [u8])>,
}

impl Work for ConvertRow<'_> {
    type Output = Result<(), RowError>;

    #[inline(always)]
    fn run(self, _: impl Lanes) -> Self::Output {
        match (self.dtype, &self.out) {
            (Some(dtype), None) if all_finite(self.bytes, dtype) => return Ok(()),
            (Some(dtype), _) => widen(self.bytes, dtype, self.numbers),
            (None, None) => return Ok(()),
            (None, Some(_)) => self
                .ty
                .dequantize_row(self.bytes, self.numbers)
                .map_err(RowError::Block)?,
        }
        check_finite(self.numbers).map_err(RowError::NotFinite)?;
        match self.out {
            None => Ok(()),
            Some((ty, out)) => ty.quantize_row(self.numbers, out).map_err(RowError::Block),
        }
    }
}

/// Whether no number is infinite or NaN: the exponent of those is all ones.
#[inline(always)]
fn all_finite(bytes: &[u8], dtype: Dtype) -> bool {
    #[inline(always)]
    fn all_finite_16(bytes: &[u8], exponent: u16) -> bool {
        let finite = |&number: &[u8; 2]| u16::from_le_bytes(number) & exponent != exponent;
        let numbers = bytes.as_chunks().0;
        numbers.iter().fold(true, |all, number| all & finite(number))
    }
    match dtype {
        Dtype::F16 => all_finite_16(bytes, 0x7C00),
        Dtype::F32 => {
            let finite = |&number: &[u8; 4]| f32::from_le_bytes(number).is_finite();
            let numbers = bytes.as_chunks().0;
            numbers.iter().fold(true, |all, number| all & finite(number))
        }
        _ => all_finite_16(bytes, 0x7F80), // bf16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finite_bits_are_finite_numbers() {
        for dtype in [Dtype::F16, Dtype::BF16] {
            for bits in 0..=u16::MAX {
                let (bytes, mut number) = (bits.to_le_bytes(), [0.0]);
                widen(&bytes, dtype, &mut number);
                assert_eq!(all_finite(&bytes, dtype), number[0].is_finite(), "{bits:#x}");
            }
        }
        let (finite, infinite) = (f32::MAX.to_le_bytes(), f32::INFINITY.to_le_bytes());
        assert!(all_finite(&finite, Dtype::F32) && !all_finite(&infinite, Dtype::F32));
        assert!(!all_finite(&[finite, infinite].concat(), Dtype::F32));
    }
}
