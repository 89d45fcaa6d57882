//! Deciding: every name, shape and type. Types that depend on the weights are guessed from some rows of each linear;
//! `run` compares them with all rows while they are packed.

use std::ops::Range;

use formats::block::BlockType;
use formats::gguf::TensorInfo;
use formats::safetensors::Dtype;
use rayon::prelude::*;

use super::PackError;
use super::encode::Loss;
use super::graph::{interleaved_row, rope_factors};
use super::metadata::Keys;
use super::numbers::numbers;
use super::options::Options;
use super::row::{DroppedBiases, Facts, Scratch, Ternary};
use super::rule::{Embedding, Larger, Target};
use crate::blueprint::{Linear, Part, Slot};
use crate::model::{Checkpoint, Stored};
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
    /// A table of the checkpoint, in its dtype or converted: embedding and head.
    Table {
        name: String,
        stored: Stored<'a>,
        ty: BlockType,
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
    /// (rows, columns)
    pub shape: (usize, usize),
    /// The length of a head, where the file has its rows in another order than the checkpoint.
    pub interleaved: Option<usize>,
    pub ternary: Ternary<'a>,
    /// The types to try, in order; all of them can hold its rows.
    pub types: Vec<BlockType>,
    /// Which of them it becomes, for all that is known.
    pub chosen: usize,
    /// Whether some rows lose no more than is allowed in it.
    pub promising: bool,
    /// Whether its biases are left out of the file, which has no place for them.
    pub drops_biases: bool,
    /// Why it does not become the smallest type of the rule, if it does not.
    pub larger: Option<Larger>,
}

impl Job<'_> {
    /// Note why it becomes a larger type than the first. `losses`: those of the types, in their order.
    pub fn note_loss(&mut self, losses: &[Loss]) {
        if self.chosen > 0 && !matches!(self.larger, Some(Larger::Width { .. })) {
            let (ty, nmse) = (self.types[0], losses[0].nmse());
            self.larger = Some(Larger::Loss { ty, nmse });
        }
    }

    pub fn ty(&self) -> BlockType {
        self.types[self.chosen]
    }

    /// The row of the checkpoint that stands at `row` of the file.
    pub fn checkpoint_row(&self, row: usize) -> usize {
        self.interleaved.map_or(row, |head_dim| interleaved_row(row, head_dim))
    }

    pub fn row_bytes(&self) -> usize {
        self.ty()
            .row_bytes(self.shape.1)
            .expect("only types that fit are tried")
    }
}

/// What is to be packed, and how.
pub struct Plan<'a> {
    pub(super) checkpoint: &'a Checkpoint,
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
        let mut plan = Self {
            checkpoint,
            options,
            entries: vec![],
            jobs: vec![],
            keys: vec![],
        };
        let mut no_block = vec![];
        for (slot, source) in checkpoint.config.slots() {
            plan.add(slot, source, &mut no_block)?;
        }
        if !no_block.is_empty() {
            let types = options.rule.candidates(&no_block[0].0);
            return Err(PackError::NoBlock {
                tensors: no_block,
                types,
            });
        }
        plan.check_names()?;
        plan.guess()?;
        plan.check_biases()?;
        plan.check_for_ollama()?;
        Ok(plan)
    }

    /// Choose the first type of each linear that is within the allowed error on its first rows.
    fn guess(&mut self) -> Result<(), PackError> {
        let max_nmse = self.options.rule.max_nmse;
        self.jobs.par_iter_mut().try_for_each(|job| {
            let rows = job.pieces().swap_remove(0);
            let facts = measure(job, rows, &job.types)?;
            let fits = facts.losses.iter().position(|loss| loss.nmse() <= max_nmse);
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

    /// Biases are left out only where the user says so; in some rows they are looked at, to tell how large they are.
    fn check_biases(&self) -> Result<(), PackError> {
        let dropped: Vec<_> = self.jobs.iter().filter(|job| job.drops_biases).collect();
        if dropped.is_empty() || self.options.drop_biases {
            return Ok(());
        }
        let mut biases = DroppedBiases::default();
        for job in &dropped {
            biases.add(&measure(job, job.pieces().swap_remove(0), &job.types[..1])?);
        }
        let graph = self.checkpoint.config.architecture.graph;
        Err(PackError::LostBiases {
            graph: graph.name,
            linears: Part::ALL
                .into_iter()
                .filter(|part| !graph.bias_slots.contains(part))
                .collect(),
            biases,
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

    /// Plan a tensor of the file, and the bias of a linear. `source`: what the checkpoint calls it, if it has it.
    /// `no_block`: linears that no block type fits, and their columns.
    fn add(
        &mut self,
        slot: Slot,
        source: Option<String>,
        no_block: &mut Vec<(String, usize)>,
    ) -> Result<(), PackError> {
        let config = &self.checkpoint.config;
        let source = source.unwrap_or_default();
        let content = match slot {
            Slot::Linear(linear) => return self.add_linear(linear, no_block),
            Slot::Norm(_) => Content::Numbers(numbers(self.stored(&source), &source)?),
            Slot::Embedding | Slot::Head => self.table(slot, source)?,
            Slot::RopeFactors => Content::Numbers(rope_factors(&config.rope, config.dims.head_dim).unwrap_or_default()),
        };
        self.push(slot.gguf_name(), slot.gguf_shape(&config.dims), content);
        Ok(())
    }

    fn push(&mut self, name: String, shape: Vec<u64>, content: Content<'a>) {
        self.entries.push(Entry { name, shape, content });
    }

    /// Embedding or head.
    fn table(&self, slot: Slot, name: String) -> Result<Content<'a>, PackError> {
        let stored = self.stored(&name);
        let ty = match self.options.embedding {
            Embedding::As(ty) => ty,
            Embedding::Keep => stored_as(stored.dtype),
        };
        let columns = stored.shape[1];
        if ty.row_bytes(columns).is_none() {
            return Err(PackError::Embedding {
                tensor: slot.gguf_name(),
                ty,
                problem: format!("{columns} columns are not a multiple of {}", ty.weights()),
            });
        }
        Ok(Content::Table { name, stored, ty })
    }

    fn add_linear(&mut self, linear: Linear, no_block: &mut Vec<(String, usize)>) -> Result<(), PackError> {
        let config = &self.checkpoint.config;
        let name = format!("{}.weight", linear.gguf_name());
        let (rows, columns) = linear.shape(&config.dims);
        let mut types = self.options.rule.candidates(&name);
        let ty = types[0];
        types.retain(|ty| ty.row_bytes(columns).is_some());
        let larger = (types.first() != Some(&ty)).then_some(Larger::Width { ty, columns });
        if types.is_empty() {
            no_block.push((name, columns));
            return Ok(());
        }
        let graph = config.architecture.graph;
        let (has_bias, has_place) = (
            self.checkpoint.has_bias(linear.part),
            graph.bias_slots.contains(&linear.part),
        );
        let job = self.jobs.len();
        self.push(name.clone(), vec![columns as u64, rows as u64], Content::Linear(job));
        if has_bias && has_place {
            let name = format!("{}.bias", linear.gguf_name());
            self.push(name, vec![rows as u64], Content::Bias(job));
        }
        self.jobs.push(Job {
            name,
            shape: (rows, columns),
            interleaved: graph.interleaves(linear.part).then_some(config.dims.head_dim),
            ternary: Ternary::new(self.checkpoint, linear, self.options.level)?,
            types,
            chosen: 0,
            promising: true,
            drops_biases: has_bias && !has_place,
            larger,
        });
        Ok(())
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

    fn stored(&self, name: &str) -> Stored<'a> {
        self.checkpoint
            .tensors
            .stored(name)
            .expect("Checkpoint::open found every tensor")
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

/// The block type that holds a dtype's numbers as they are.
pub(super) fn stored_as(dtype: Dtype) -> BlockType {
    match dtype {
        Dtype::F16 => BlockType::F16,
        Dtype::BF16 => BlockType::BF16,
        Dtype::F32 | Dtype::Other(_) => BlockType::F32,
    }
}
