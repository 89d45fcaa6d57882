//! Deciding: every name, shape, type, size and offset. Types that depend on the weights are guessed from some rows of
//! each linear, and held against all rows while they are packed.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::block::BlockType;
use formats::gguf::{Layout as FileLayout, TensorInfo, Value};
use formats::safetensors::Dtype;
use rayon::prelude::*;

use super::encode::Loss;
use super::hash::source_hashes;
use super::layout::Layout;
use super::metadata::{self, Keys};
use super::output::{Files, Output};
use super::pass::Pass;
use super::row::{Bench, Facts, Ternary, numbers};
use super::rule::{Embedding, Rule, Target, ollama_reads};
use super::{PackError, Progress};
use crate::kernels::level::Level;
use crate::model::{
    Checkpoint, EMBEDDING, FINAL_NORM, HEAD, Linear, Part, Stored, attention_norm,
    feed_forward_norm,
};

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the type of each linear is found.
    pub rule: Rule,
    /// How embedding and head are stored.
    pub embedding: Embedding,
    /// `general.name`
    pub name: Option<String>,
    /// `general.organization`
    pub organization: Option<String>,
    /// Keys over those that are derived, as text: the type is that of the key, string for a new one.
    pub metadata: Vec<(String, String)>,
    /// Whether to note the sha256 of each input file, for provenance.
    pub hash: bool,
    /// The most bytes of an output file; more become several files. One tensor is never cut.
    pub split_max_size: Option<u64>,
    /// Which instructions to use: the output is the same with any.
    pub level: Level,
}

/// One tensor of the output.
pub struct Item {
    /// Its name, type and shape in the file.
    pub info: TensorInfo,
    /// What storing it lost, for a linear.
    pub loss: Option<Loss>,
    /// Which file it is in, from 0.
    pub file: usize,
    /// Where it starts in that file.
    pub offset: u64,
}

/// What was packed, or would be.
pub struct Packed<'a> {
    /// From what.
    pub checkpoint: &'a Checkpoint,
    /// Keys and values of the first file, in file order.
    pub metadata: Vec<(String, Value)>,
    /// Tensors, in file order.
    pub items: Vec<Item>,
    /// How many files; [`paths`](super::paths) has their names.
    pub files: usize,
    /// What a person wants to know of it.
    pub summary: Summary,
}

/// The figures of a pack.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Weights of all linears.
    pub ternary_weights: u64,
    /// Bytes of all linears without their biases.
    pub ternary_bytes: u64,
    /// How many of the ternary weights are in the dead zone.
    pub dead_weights: u64,
    /// The largest bias, as a magnitude.
    pub largest_bias: f64,
    /// The loss over all linears.
    pub loss: Loss,
    /// The linear with the largest NMSE, and that.
    pub worst: Option<(String, f64)>,
    /// How many linears became each type.
    pub linears: BTreeMap<BlockType, usize>,
    /// Bytes of the output.
    pub bytes: u64,
}

impl Summary {
    /// Bits that a ternary weight takes, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.ternary_bytes as f64 / self.ternary_weights as f64
    }

    /// The share of ternary weights in the dead zone, 0 to 1.
    pub fn dead_share(&self) -> f64 {
        self.dead_weights as f64 / self.ternary_weights as f64
    }

    /// The type of most linears.
    pub fn main_type(&self) -> BlockType {
        self.linears
            .iter()
            .max_by_key(|(_, count)| **count)
            .map_or(BlockType::F32, |(ty, _)| *ty)
    }

    fn add(&mut self, job: &Job, facts: &Facts) {
        let (ty, loss) = (job.ty(), facts.losses[job.chosen]);
        let (rows, columns) = job.shape;
        self.ternary_weights += (rows * columns) as u64;
        self.ternary_bytes += (rows * job.row_bytes()) as u64;
        self.dead_weights += facts.dead;
        self.largest_bias = facts
            .biases
            .iter()
            .map(|bias| bias.abs())
            .fold(self.largest_bias, f64::max);
        self.loss = self.loss + loss;
        *self.linears.entry(ty).or_default() += 1;
        if self
            .worst
            .as_ref()
            .is_none_or(|(_, worst)| loss.nmse() > *worst)
        {
            self.worst = Some((job.name.clone(), loss.nmse()));
        }
    }
}

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
        name: &'static str,
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
    pub linear: Linear,
    /// As GGUF has it.
    pub name: String,
    /// (rows, columns)
    pub shape: (usize, usize),
    pub ternary: Ternary<'a>,
    /// The types to try, in order; all of them can hold its rows.
    pub types: Vec<BlockType>,
    /// Which of them it becomes, for all that is known.
    pub chosen: usize,
    /// Whether some rows lose no more than is allowed in it.
    pub promising: bool,
}

impl Job<'_> {
    pub fn ty(&self) -> BlockType {
        self.types[self.chosen]
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
    options: &'a Options,
    pub(super) entries: Vec<Entry<'a>>,
    pub(super) jobs: Vec<Job<'a>>,
    keys: Keys,
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
        let config = &checkpoint.config;
        plan.add_table("token_embd.weight", EMBEDDING)?;
        if let Some(factors) = config.rope.llama3_factors(config.head_dim) {
            plan.add_numbers("rope_freqs.weight", factors);
        }
        let mut no_block = vec![];
        for linear in Linear::all(config) {
            if let Some((norm, name)) = norm_before(linear) {
                plan.add_norm(&name, &norm)?;
            }
            plan.add_linear(linear, &mut no_block)?;
        }
        plan.add_norm("output_norm.weight", FINAL_NORM)?;
        if !config.tied_head {
            plan.add_table("output.weight", HEAD)?;
        }
        if !no_block.is_empty() {
            let types = options.rule.candidates(&no_block[0].0);
            return Err(PackError::NoBlock {
                tensors: no_block,
                types,
            });
        }
        plan.guess()?;
        plan.check_for_ollama()?;
        Ok(plan)
    }

    /// Read all weights once, and write `output` if there is one. `tokenizer`: its keys. `progress` is told the bytes of
    /// weights read.
    ///
    /// Where a linear turns out to lose more than its sampled rows promised, all types are measured on all its rows,
    /// and the output is begun anew with the right one.
    ///
    /// # Errors
    /// Any [`PackError`]. Nothing is left behind, and what was there before is as it was.
    pub fn run(
        mut self,
        tokenizer: Keys,
        output: Option<&Output>,
        progress: &Progress,
    ) -> Result<Packed<'a>, PackError> {
        let weights = self
            .entries
            .iter()
            .map(|entry| entry.shape.iter().product::<u64>());
        let (weights, files) = (weights.sum(), self.hashed_files());
        self.keys = metadata::keys(self.checkpoint, self.options, tokenizer, weights, files)?;
        let (tensors, hash) = (&self.checkpoint.tensors, self.options.hash);
        let refused = AtomicBool::new(false);
        let go_on = || !refused.load(Ordering::Relaxed) && progress(0).is_continue();
        let (settled, hashes) = rayon::join(
            || {
                let settled = self.settle(output, progress);
                refused.store(settled.is_err(), Ordering::Relaxed);
                settled
            },
            || match hash {
                true => source_hashes(tensors, go_on),
                false => Ok(vec![]),
            },
        );
        let ((facts, files), hashes) = (settled?, hashes?);
        if let Some(path) = tensors.changed() {
            return Err(PackError::Changed { path: path.into() });
        }
        let mut summary = Summary::default();
        for (job, facts) in self.jobs.iter().zip(&facts) {
            summary.add(job, facts);
        }
        metadata::set_found(&mut self.keys, self.options, &summary, hashes);
        let layout = self.layout()?;
        summary.bytes = layout.size();
        if let Some(files) = files {
            self.put_numbers(&files, &layout, &facts)?;
            files.finish()?;
        }
        let items = self.infos().into_iter().enumerate().map(|(entry, info)| {
            let loss = match self.entries[entry].content {
                Content::Linear(job) => Some(facts[job].losses[self.jobs[job].chosen]),
                _ => None,
            };
            let (file, offset) = layout.place(entry);
            Item {
                info,
                loss,
                file,
                offset,
            }
        });
        Ok(Packed {
            checkpoint: self.checkpoint,
            items: items.collect(),
            metadata: self.keys,
            files: layout.files.len(),
            summary,
        })
    }

    /// Read all weights, and write them where there is an `output`, until every linear has become the first of its
    /// types that is within the allowed error.
    fn settle(
        &mut self,
        output: Option<&Output>,
        progress: &Progress,
    ) -> Result<(Vec<Facts>, Option<Files>), PackError> {
        let inputs: Vec<_> = self
            .checkpoint
            .tensors
            .files()
            .map(|(path, _)| path)
            .collect();
        // Nothing is written where some rows show already that it would be in vain.
        let mut writing = output.filter(|_| self.jobs.iter().all(|job| job.promising));
        loop {
            self.check_for_ollama()?;
            let layout = self.layout()?;
            let files = writing
                .map(|output| output.create(&layout, &inputs))
                .transpose()?;
            let sink = files.as_ref().map(|files| (files, &layout));
            let pass = Pass {
                plan: self,
                sink,
                progress,
            };
            let facts = match &files {
                Some(files) => files.sync_during(|| pass.run()),
                None => pass.run(),
            }?;
            if self.held(&facts)? && files.is_some() == output.is_some() {
                return Ok((facts, files));
            }
            writing = output;
        }
    }

    /// Whether each linear became what it should; else it is known afterwards what that is.
    fn held(&mut self, facts: &[Facts]) -> Result<bool, PackError> {
        let max_nmse = self.options.rule.max_nmse;
        let (mut held, mut refused, mut loss) = (true, vec![], Loss::default());
        let mut types = vec![];
        for (job, facts) in self.jobs.iter_mut().zip(facts) {
            let mut losses = facts.losses.clone();
            if !losses.iter().any(|loss| loss.nmse() <= max_nmse) {
                let untried = &job.types[losses.len()..];
                if !untried.is_empty() {
                    losses.extend(measure(self.checkpoint, job, 0..job.shape.0, untried)?.losses);
                }
            }
            let fits = losses.iter().position(|loss| loss.nmse() <= max_nmse);
            let least = losses
                .iter()
                .copied()
                .min_by(|a, b| a.nmse().total_cmp(&b.nmse()));
            loss = loss
                + fits
                    .map(|index| losses[index])
                    .or(least)
                    .unwrap_or_default();
            match (fits, least) {
                (Some(index), _) => {
                    held &= index == job.chosen;
                    job.chosen = index;
                }
                (None, least) => {
                    refused.push((job.name.clone(), least.unwrap_or_default().nmse()));
                    types.clone_from(&job.types);
                }
            }
        }
        if refused.is_empty() {
            return Ok(held);
        }
        Err(PackError::Lossy {
            tensors: refused,
            overall: loss.nmse(),
            max_nmse,
            types,
        })
    }

    /// Choose the first type of each linear that is within the allowed error on its first rows.
    fn guess(&mut self) -> Result<(), PackError> {
        let (checkpoint, max_nmse) = (self.checkpoint, self.options.rule.max_nmse);
        self.jobs.par_iter_mut().try_for_each(|job| {
            let rows = job.pieces(&checkpoint.config).swap_remove(0);
            let facts = measure(checkpoint, job, rows, &job.types)?;
            let fits = facts.losses.iter().position(|loss| loss.nmse() <= max_nmse);
            job.promising = fits.is_some();
            job.chosen = fits.unwrap_or(job.types.len() - 1);
            if max_nmse == 0.0 && job.promising {
                // What loses on some rows loses on all: it need not be looked at again.
                job.types.drain(..job.chosen);
                job.chosen = 0;
            }
            Ok(())
        })
    }

    fn add_numbers(&mut self, name: &str, numbers: Vec<f32>) {
        self.entries.push(Entry {
            name: name.into(),
            shape: vec![numbers.len() as u64],
            content: Content::Numbers(numbers),
        });
    }

    fn add_norm(&mut self, name: &str, source: &str) -> Result<(), PackError> {
        let numbers = numbers(self.stored(source), source)?;
        self.add_numbers(name, numbers);
        Ok(())
    }

    fn add_table(&mut self, name: &str, source: &'static str) -> Result<(), PackError> {
        let stored = self.stored(source);
        let ty = match self.options.embedding {
            Embedding::As(ty) => ty,
            Embedding::Keep => stored_as(stored.dtype),
        };
        let (rows, columns) = (stored.shape[0], stored.shape[1]);
        if ty.row_bytes(columns).is_none() {
            let problem = format!("{columns} columns are no multiple of {}", ty.weights());
            return Err(PackError::Embedding {
                tensor: name.into(),
                ty,
                problem,
            });
        }
        self.entries.push(Entry {
            name: name.into(),
            shape: vec![columns as u64, rows as u64],
            content: Content::Table {
                name: source,
                stored,
                ty,
            },
        });
        Ok(())
    }

    fn add_linear(
        &mut self,
        linear: Linear,
        no_block: &mut Vec<(String, usize)>,
    ) -> Result<(), PackError> {
        let name = format!("{}.weight", linear.gguf_name());
        let (rows, columns) = linear.shape(&self.checkpoint.config);
        let mut types = self.options.rule.candidates(&name);
        types.retain(|ty| ty.row_bytes(columns).is_some());
        if types.is_empty() {
            no_block.push((name, columns));
            return Ok(());
        }
        let job = self.jobs.len();
        let entry = |name: String, shape, content| Entry {
            name,
            shape,
            content,
        };
        self.entries.push(entry(
            name.clone(),
            vec![columns as u64, rows as u64],
            Content::Linear(job),
        ));
        self.entries.push(entry(
            format!("{}.bias", linear.gguf_name()),
            vec![rows as u64],
            Content::Bias(job),
        ));
        self.jobs.push(Job {
            linear,
            name,
            shape: (rows, columns),
            ternary: Ternary::new(self.checkpoint, linear, self.options.level)?,
            types,
            chosen: 0,
            promising: true,
        });
        Ok(())
    }

    /// Which instructions to use.
    pub(super) fn level(&self) -> Level {
        self.options.level
    }

    /// Where everything goes, as the types are now.
    fn layout(&self) -> Result<Layout, PackError> {
        Layout::new(&self.keys, &self.infos(), self.options.split_max_size)
    }

    fn check_for_ollama(&self) -> Result<(), PackError> {
        let refused = self.infos().into_iter().find(|info| !ollama_reads(info.ty));
        match refused.filter(|_| self.options.rule.target == Target::Ollama) {
            None => Ok(()),
            Some(info) => Err(PackError::Ollama {
                tensor: info.name,
                ty: info.ty,
            }),
        }
    }

    fn infos(&self) -> Vec<TensorInfo> {
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

    /// The names of the input files, if their hashes are to be noted.
    fn hashed_files(&self) -> Option<Vec<String>> {
        let name = |path: &Path| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let files = self.checkpoint.tensors.files().map(|(path, _)| name(path));
        self.options.hash.then(|| files.collect())
    }

    /// Write all but the weights: the start of each file, norms and biases.
    fn put_numbers(
        &self,
        files: &Files,
        layout: &Layout,
        facts: &[Facts],
    ) -> Result<(), PackError> {
        for (file, FileLayout { header, .. }) in layout.files.iter().enumerate() {
            files.put(file, header, 0)?;
        }
        for (entry, Entry { content, .. }) in self.entries.iter().enumerate() {
            let numbers: Vec<f32> = match content {
                Content::Numbers(numbers) => numbers.clone(),
                Content::Bias(job) => facts[*job].biases.iter().map(|&bias| bias as f32).collect(),
                Content::Table { .. } | Content::Linear(_) => continue,
            };
            let bytes: Vec<_> = numbers
                .iter()
                .flat_map(|number| number.to_le_bytes())
                .collect();
            let (file, offset) = layout.place(entry);
            files.put(file, &bytes, offset)?;
        }
        Ok(())
    }

    fn stored(&self, name: &str) -> Stored<'a> {
        self.checkpoint
            .tensors
            .stored(name)
            .expect("Checkpoint::open found every tensor")
    }
}

/// What each of `types` loses on `rows` of a linear, in the order of the file.
fn measure(
    checkpoint: &Checkpoint,
    job: &Job,
    rows: Range<usize>,
    types: &[BlockType],
) -> Result<Facts, PackError> {
    let config = &checkpoint.config;
    let pieces: Vec<_> = job
        .pieces(config)
        .into_iter()
        .filter(|piece| piece.start < rows.end && rows.start < piece.end)
        .collect();
    let facts = pieces
        .into_par_iter()
        .map_init(Bench::default, |bench, piece| {
            let rows = piece.map(|row| job.linear.checkpoint_row(row, config));
            job.ternary.encode(rows, types, false, bench)
        });
    Ok(facts
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .fold(Facts::default(), Facts::and))
}

/// The norm that a layer applies before this linear, where the linear is the first to use it: its name in the
/// checkpoint and in the file.
fn norm_before(linear: Linear) -> Option<(String, String)> {
    match linear.part {
        Part::Q => Some((
            attention_norm(linear.layer),
            format!("blk.{}.attn_norm.weight", linear.layer),
        )),
        Part::Gate => Some((
            feed_forward_norm(linear.layer),
            format!("blk.{}.ffn_norm.weight", linear.layer),
        )),
        _ => None,
    }
}

/// The block type that holds a dtype's numbers as they are.
pub(super) fn stored_as(dtype: Dtype) -> BlockType {
    match dtype {
        Dtype::F16 => BlockType::F16,
        Dtype::BF16 => BlockType::BF16,
        Dtype::F32 | Dtype::Other(_) => BlockType::F32,
    }
}
