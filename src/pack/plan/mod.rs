//! Deciding: every name, shape and type. Types that depend on the weights are guessed from some rows of each linear;
//! `run` compares them with all rows while they are packed.

mod checkpoint;
mod gguf;

use std::collections::BTreeMap;
use std::ops::Range;

use formats::block::BlockType;
use formats::gguf::TensorInfo;
use rayon::prelude::*;

use super::PackError;
use super::encode::Loss;
use super::graph::interleaved_row;
use super::metadata::Keys;
use super::naming::file_name;
use super::options::Options;
use super::origin::Origin;
use super::rounded::{Data, Rounded, look_at};
use super::row::{Facts, Scratch, Ternary};
use super::rule::{Embedding, Larger, TERNARY_TABLES, Target};
use super::ternary::Levels;
use crate::model::{Blocks, Checkpoint, Gguf};
use crate::simd::Level;

/// A tensor of the output, and where it comes from.
pub(super) struct Entry<'a> {
    pub name: String,
    /// As GGUF has it: fastest dimension first.
    pub shape: Vec<u64>,
    pub content: Content<'a>,
}

/// Where the numbers of a tensor come from.
pub(super) enum Content<'a> {
    /// These: norms, rotary factors.
    Numbers(Vec<f32>),
    /// Rows of the input, as they are or converted: embedding and head, and what is copied of a GGUF file.
    Table {
        /// As the input has it.
        name: String,
        blocks: Blocks<'a>,
        ty: BlockType,
        /// The length of a head, where the file has its rows in another order.
        interleaved: Option<usize>,
    },
    /// The weights of a job.
    Linear(usize),
    /// The biases of a job.
    Bias(usize),
}

/// A linear to be packed.
pub(super) struct Job<'a> {
    /// As GGUF has it.
    pub name: String,
    /// Whether it is embedding or head, and no linear.
    pub is_table: bool,
    /// (rows, columns)
    pub shape: (usize, usize),
    /// The length of a head, where the file has its rows in another order than the checkpoint.
    pub interleaved: Option<usize>,
    pub ternary: Ternary<'a>,
    /// The types to try, in order; all of them can hold its rows.
    pub types: Vec<BlockType>,
    /// How many of the first types must lose nothing: those before the input's own, where that was packed with a loss.
    /// Else a file packed again with the same request could become smaller, and lose once more.
    pub exact: usize,
    /// Which of them it becomes, for all that is known.
    pub chosen: usize,
    /// Whether some rows lose no more than is allowed in it.
    pub promising: bool,
    /// Whether its type was chosen for what it does to the output, whatever it loses.
    pub is_chosen: bool,
    /// Whether its biases are left out of the file, which has no place for them.
    pub drops_biases: bool,
    /// Why it does not become the smallest type of the rule, if it does not.
    pub larger: Option<Larger>,
}

impl Job<'_> {
    /// The first of its types that is within the allowed error. `losses`: those of the types, in their order.
    pub fn first_fit(&self, losses: &[Loss], max_nmse: f64) -> Option<usize> {
        let max_nmse = if self.is_chosen { f64::INFINITY } else { max_nmse };
        let allowed = |index| if index < self.exact { 0.0 } else { max_nmse };
        let mut losses = losses.iter().enumerate();
        losses.position(|(index, loss)| loss.nmse() <= allowed(index))
    }

    /// Note why it becomes a larger type than the first. `losses`: those of the types, in their order.
    pub fn note_loss(&mut self, losses: &[Loss]) {
        if self.chosen > 0 && !matches!(self.larger, Some(Larger::Width { .. })) {
            let (ty, nmse) = (self.types[0], losses[0].nmse());
            self.larger = Some(match self.exact {
                0 => Larger::Loss { ty, nmse },
                _ => Larger::LossAgain { ty, nmse },
            });
        }
    }

    pub fn ty(&self) -> BlockType {
        self.types[self.chosen]
    }

    /// The row of the checkpoint that stands at `row` of the file.
    pub fn checkpoint_row(&self, row: usize) -> usize {
        source_row(self.interleaved, row)
    }

    pub fn row_bytes(&self) -> usize {
        self.ty()
            .row_bytes(self.shape.1)
            .expect("only types that fit are tried")
    }
}

/// The row of the input that stands at `row` of the file, where heads of `interleaved` rows are interleaved.
pub(super) fn source_row(interleaved: Option<usize>, row: usize) -> usize {
    interleaved.map_or(row, |head_dim| interleaved_row(row, head_dim))
}

/// What is to be packed, and how.
pub struct Plan<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) options: &'a Options,
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) jobs: Vec<Job<'a>>,
    pub(super) keys: Keys,
}

impl<'a> Plan<'a> {
    /// Decide all that can be decided without reading all weights.
    ///
    /// # Errors
    /// Any [`PackError`] about the request; numbers that are not finite in what was read.
    pub fn new(checkpoint: &'a Checkpoint, options: &'a Options) -> Result<Self, PackError> {
        let mut plan = Self::empty(Origin::Checkpoint(checkpoint), options);
        let no_block = plan.add_checkpoint(checkpoint)?;
        let plan = plan.decided(no_block)?;
        plan.check_biases(checkpoint)?;
        Ok(plan)
    }

    /// The same for a GGUF file: matrices whose data is ternary are packed, all else is copied. Reads a sample of every
    /// matrix.
    ///
    /// # Errors
    /// Any [`PackError`] about the request or the file.
    pub fn of_gguf(gguf: &'a Gguf, options: &'a Options) -> Result<Self, PackError> {
        let mut plan = Self::empty(Origin::Gguf(gguf), options);
        let no_block = plan.add_gguf(gguf)?;
        plan.decided(no_block)
    }

    fn empty(origin: Origin<'a>, options: &'a Options) -> Self {
        Self {
            origin,
            options,
            entries: vec![],
            jobs: vec![],
            keys: vec![],
        }
    }

    /// The plan, where it can be done. `no_block`: linears that no block type fits, and their columns.
    fn decided(mut self, no_block: Vec<(String, usize)>) -> Result<Self, PackError> {
        if !no_block.is_empty() {
            let types = self.options.rule.candidates(&no_block[0].0);
            return Err(PackError::NoBlock {
                tensors: no_block,
                types,
            });
        }
        self.check_names()?;
        self.guess()?;
        self.check_for_ollama()?;
        Ok(self)
    }

    /// Choose the first type of each linear that is within the allowed error on its first rows.
    fn guess(&mut self) -> Result<(), PackError> {
        let max_nmse = self.options.rule.max_nmse;
        self.jobs.par_iter_mut().try_for_each(|job| {
            let rows = job.pieces().swap_remove(0);
            let facts = measure(job, rows, &job.types)?;
            let fits = job.first_fit(&facts.losses, max_nmse);
            job.promising = fits.is_some();
            job.chosen = fits.unwrap_or(job.types.len() - 1);
            job.note_loss(&facts.losses);
            if max_nmse == 0.0 && job.promising {
                // What loses on some rows loses on all: it need not be looked at again.
                job.types.drain(..job.chosen);
                job.chosen = 0;
            }
            Ok(())
        })
    }

    /// Every part of a name that was given a type is in the name of a linear.
    fn check_names(&self) -> Result<(), PackError> {
        let known = |text: &str| self.jobs.iter().any(|job| job.name.contains(text));
        let mut texts = self.options.rule.tensor_types.iter().map(|(text, _)| text);
        match texts.find(|text| !known(text)) {
            None => Ok(()),
            Some(text) => Err(PackError::NoTensor {
                text: text.clone(),
                example: self.jobs[0].name.clone(),
            }),
        }
    }

    fn push(&mut self, name: String, shape: Vec<u64>, content: Content<'a>) {
        self.entries.push(Entry { name, shape, content });
    }

    /// Rows of the input that become `tensor`. `name`: as the input has it.
    fn table(&self, tensor: &str, name: String, blocks: Blocks<'a>, ty: BlockType) -> Result<Content<'a>, PackError> {
        let columns = blocks.columns();
        if ty.row_bytes(columns).is_none() {
            return Err(PackError::Embedding {
                tensor: tensor.into(),
                ty,
                problem: format!("{columns} columns are not a multiple of {}", ty.weights()),
            });
        }
        Ok(Content::Table {
            name,
            blocks,
            ty,
            interleaved: None,
        })
    }

    /// Embedding or head, called `tensor` in the file and `name` in the input, as the options have it.
    fn embedding(&mut self, tensor: &str, name: String, blocks: Blocks<'a>) -> Result<Content<'a>, PackError> {
        let ty = match self.options.embedding {
            Embedding::As(ty) => ty,
            Embedding::Keep => blocks.ty,
        };
        let content = self.table(tensor, name, blocks, ty)?;
        match TERNARY_TABLES.contains(&ty) && ty != blocks.ty {
            true => self.ternary_table(tensor, blocks, ty),
            false => Ok(content),
        }
    }

    /// A table whose numbers are ternary, as a type that holds only such.
    fn ternary_table(&mut self, tensor: &str, blocks: Blocks<'a>, ty: BlockType) -> Result<Content<'a>, PackError> {
        let (name, level) = (tensor.to_owned(), self.options.level);
        let (levels, run) = match look_at(blocks).map_err(|source| PackError::read(blocks.path, source))? {
            Data::Rounded { levels, run } if levels == Levels::Three => (levels, run),
            _ => {
                let (tensor, problem) = (name, "its numbers are not ternary".into());
                return Err(PackError::Embedding { tensor, ty, problem });
            }
        };
        let source = Rounded {
            name: name.clone(),
            blocks,
            levels,
            run,
            level,
        };
        self.jobs.push(Job {
            ternary: Ternary::alone(name.clone(), blocks.columns(), source, level),
            name,
            is_table: true,
            drops_biases: false,
            shape: (blocks.rows(), blocks.columns()),
            interleaved: None,
            types: vec![ty],
            exact: 0,
            chosen: 0,
            promising: true,
            is_chosen: false,
            larger: None,
        });
        Ok(Content::Linear(self.jobs.len() - 1))
    }

    /// The types to try of `types`, all of which hold its codes, for a linear of so many columns, and why the smallest is
    /// not among them; none where its columns fill blocks of none.
    fn types(&self, mut types: Vec<BlockType>, columns: usize) -> (Vec<BlockType>, Option<Larger>) {
        let ty = types[0];
        types.retain(|ty| ty.row_bytes(columns).is_some());
        let larger = (types.first() != Some(&ty)).then_some(Larger::Width { ty, columns });
        (types, larger)
    }

    /// Numbers of all tensors together.
    pub(super) fn numbers(&self) -> u64 {
        self.entries
            .iter()
            .map(|entry| entry.shape.iter().product::<u64>())
            .sum()
    }

    /// What a file of the model called `name` is called, for what is known of its types before all weights are read.
    pub fn file_name(&self, name: &str) -> String {
        let mut counts = BTreeMap::<_, usize>::new();
        for job in self.jobs.iter().filter(|job| !job.is_table) {
            *counts.entry(job.ty()).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count);
        file_name(name, self.numbers(), most.map_or(BlockType::F32, |(ty, _)| ty))
    }

    /// Bytes of the files that are read.
    pub fn input_bytes(&self) -> u64 {
        self.origin.bytes()
    }

    /// Which instructions to use.
    pub(super) fn level(&self) -> Level {
        self.options.level
    }

    pub(super) fn check_for_ollama(&self) -> Result<(), PackError> {
        let refused = self.infos().into_iter().find(|info| !info.ty.ollama_reads());
        match refused.filter(|_| self.options.rule.target == Target::Ollama) {
            None => Ok(()),
            Some(info) => Err(PackError::Ollama {
                tensor: info.name,
                ty: info.ty,
            }),
        }
    }

    pub(super) fn infos(&self) -> Vec<TensorInfo> {
        let ty = |content: &Content| match content {
            Content::Numbers(_) | Content::Bias(_) => BlockType::F32,
            Content::Table { ty, .. } => *ty,
            Content::Linear(job) => self.jobs[*job].ty(),
        };
        self.entries
            .iter()
            .map(|entry| TensorInfo {
                name: entry.name.clone(),
                ty: ty(&entry.content),
                shape: entry.shape.clone(),
            })
            .collect()
    }
}

/// What each of `types` loses on `rows` of a linear, in the order of the file.
pub(super) fn measure(job: &Job, rows: Range<usize>, types: &[BlockType]) -> Result<Facts, PackError> {
    let pieces: Vec<_> = job
        .pieces()
        .into_iter()
        .filter(|piece| piece.start < rows.end && rows.start < piece.end)
        .collect();
    let facts = pieces.into_par_iter().map_init(Scratch::default, |scratch, piece| {
        let rows = piece.map(|row| job.checkpoint_row(row));
        job.ternary.encode(rows, types, false, scratch)
    });
    Ok(facts
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .fold(Facts::default(), Facts::merge))
}
