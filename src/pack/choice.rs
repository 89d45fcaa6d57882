//! A plan whose types are chosen elsewhere, by more than the weights: what its tensors are in any type, before anything
//! is written, and the types that they get.

use std::ops::{ControlFlow, Range};

use formats::block::BlockType;
use formats::gguf::TensorInfo;
use rayon::prelude::*;

use super::PackError;
use super::encode::Loss;
use super::numbers::number_bytes;
use super::pass::Pass;
use super::plan::{Content, Plan, measure};
use super::row::Scratch;
use super::rule::Larger;

/// A linear, and what it may become.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Its weights in the file.
    pub name: String,
    /// (rows, columns)
    pub shape: (usize, usize),
    /// The types to choose from, smallest first, and what each loses.
    pub types: Vec<(BlockType, Loss)>,
}

impl Plan<'_> {
    /// The linears whose types are to be chosen, in the order of the file. Reads all their weights.
    ///
    /// # Errors
    /// Those of reading and encoding their rows.
    pub fn choices(&self) -> Result<Vec<Choice>, PackError> {
        let linears = self.jobs.par_iter().filter(|job| !job.is_table);
        let choice = linears.map(|job| {
            let losses = measure(job, 0..job.shape.0, &job.types)?.losses;
            let types = job.types.iter().copied().zip(losses).enumerate();
            // As in a rule: an input that was packed with a loss loses nothing more.
            let allowed = types.filter(|(index, (_, loss))| *index >= job.exact || loss.error == 0.0);
            Ok(Choice {
                name: job.name.clone(),
                shape: job.shape,
                types: allowed.map(|(_, of_type)| of_type).collect(),
            })
        });
        choice.collect()
    }

    /// Give each of the [`choices`](Self::choices) its type, whatever it loses.
    pub fn choose(&mut self, types: &[BlockType]) {
        let linears = self.jobs.iter_mut().filter(|job| !job.is_table);
        for (job, &ty) in linears.zip(types) {
            job.types = vec![ty];
            (job.exact, job.chosen, job.promising, job.is_chosen) = (0, 0, true, true);
            job.larger = job.larger.filter(|why| matches!(why, Larger::Width { .. }));
        }
    }

    /// The tensors of the output, in its order, as the types are now.
    pub fn tensors(&self) -> Vec<TensorInfo> {
        self.infos()
    }

    /// The bytes of a tensor, by its place in [`tensors`](Self::tensors). `ty`: of a linear.
    ///
    /// # Errors
    /// Those of reading and encoding its rows.
    pub fn encoded(&self, tensor: usize, ty: BlockType) -> Result<Vec<u8>, PackError> {
        match &self.entries[tensor].content {
            Content::Numbers(numbers) => Ok(number_bytes(numbers.iter().copied())),
            Content::Bias(job) => {
                let job = &self.jobs[*job];
                Ok(measure(job, 0..job.shape.0, &[BlockType::F32])?.bias_bytes())
            }
            Content::Table { blocks, ty, .. } => self.encoded_rows(tensor, (blocks.rows(), blocks.columns()), *ty),
            Content::Linear(job) => {
                let job = &self.jobs[*job];
                let ty = if job.is_table { job.ty() } else { ty };
                self.encoded_rows(tensor, job.shape, ty)
            }
        }
    }

    fn encoded_rows(
        &self,
        tensor: usize,
        (rows, columns): (usize, usize),
        ty: BlockType,
    ) -> Result<Vec<u8>, PackError> {
        let row_bytes = ty.row_bytes(columns).expect("the plan checked the width");
        let pass = Pass {
            plan: self,
            sink: None,
            progress: &|_| ControlFlow::Continue(()),
        };
        let pieces = pass.pieces_of(tensor);
        let step = pieces.first().map_or(1, |piece| piece.len());
        let mut bytes = vec![0; rows * row_bytes];
        let encode = |scratch: &mut Scratch, (out, rows): (&mut [u8], Range<usize>)| {
            match &self.entries[tensor].content {
                Content::Linear(job) => {
                    let job = &self.jobs[*job];
                    let rows = rows.map(|row| job.checkpoint_row(row));
                    job.ternary.encode(rows, &[ty], true, scratch)?;
                }
                _ => pass.table(tensor, rows, scratch)?,
            }
            out.copy_from_slice(&scratch.out);
            Ok::<_, PackError>(())
        };
        bytes
            .par_chunks_mut((step * row_bytes).max(1))
            .zip(pieces)
            .try_for_each_init(Scratch::default, encode)?;
        Ok(bytes)
    }
}
