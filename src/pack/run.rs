//! Doing: all weights are read once, and what they become is written.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::block::BlockType;
use formats::gguf::{Layout as FileLayout, TensorInfo, Value};

use super::biases::DroppedBiases;
use super::encode::Loss;
use super::hash::source_hashes;
use super::layout::{Layout, paths};
use super::metadata::{self, Keys};
use super::numbers::number_bytes;
use super::origin::Origin;
use super::pass::Pass;
use super::plan::{Content, Entry, Job, Plan, measure};
use super::row::Facts;
use super::rule::Larger;
use super::{PackError, Progress};
use crate::output::{Files, Inputs};

/// Where to write.
#[derive(Clone, Debug)]
pub struct Output<'a> {
    /// The file, or what the names of several files are made from.
    pub path: &'a Path,
    /// Whether files of that name are replaced.
    pub replace: bool,
    /// What must not be replaced.
    pub inputs: &'a Inputs,
}

impl Output<'_> {
    fn create(&self, layout: &Layout) -> Result<Files, PackError> {
        let paths = paths(self.path, layout.files.len());
        let sizes = layout.files.iter().map(|file| file.size);
        let files: Vec<_> = paths.into_iter().zip(sizes).collect();
        Ok(Files::create(&files, self.replace, self.inputs)?)
    }
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
    pub origin: Origin<'a>,
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
    /// How many of these were chosen among weights of equal magnitude.
    pub ties: u64,
    /// The largest bias, as a magnitude.
    pub largest_bias: f64,
    /// The biases that are left out, where the file has no place for some.
    pub dropped: Option<DroppedBiases>,
    /// The loss over all linears.
    pub loss: Loss,
    /// The linear with the largest NMSE, and that.
    pub worst: Option<(String, f64)>,
    /// How many linears are not of the smallest type of the rule, and why the first of them is not.
    pub larger: Option<(usize, Larger)>,
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
        if job.is_table {
            return;
        }
        let (ty, loss) = (job.ty(), facts.losses[job.chosen]);
        let (rows, columns) = job.shape;
        self.ternary_weights += (rows * columns) as u64;
        self.ternary_bytes += (rows * job.row_bytes()) as u64;
        self.dead_weights += facts.dead;
        self.ties += facts.ties;
        self.largest_bias = facts
            .biases
            .iter()
            .map(|bias| bias.abs())
            .fold(self.largest_bias, f64::max);
        if job.drops_biases {
            let dropped = self.dropped.get_or_insert_default();
            dropped.add(&facts.biases, loss.energy);
        }
        self.loss = self.loss + loss;
        if let Some(why) = job.larger {
            self.larger.get_or_insert((0, why)).0 += 1;
        }
        *self.linears.entry(ty).or_default() += 1;
        if self.worst.as_ref().is_none_or(|(_, worst)| loss.nmse() > *worst) {
            self.worst = Some((job.name.clone(), loss.nmse()));
        }
    }
}

impl<'a> Plan<'a> {
    /// Read all weights once, and write `output` if there is one. `tokenizer`: its keys, for a checkpoint. `progress` is
    /// told the bytes of weights read.
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
        self.keys = self.keys(tokenizer)?;
        let (origin, hash) = (self.origin, self.options.hash);
        let refused = AtomicBool::new(false);
        let go_on = || !refused.load(Ordering::Relaxed) && progress(0).is_continue();
        let (settled, hashes) = rayon::join(
            || {
                let settled = self.settle(output, progress);
                refused.store(settled.is_err(), Ordering::Relaxed);
                settled
            },
            || match hash {
                true => source_hashes(origin, go_on),
                false => Ok(vec![]),
            },
        );
        let ((facts, files), hashes) = (settled?, hashes?);
        if let Some(path) = origin.changed() {
            return Err(PackError::Changed { path: path.into() });
        }
        let mut summary = Summary::default();
        for (job, facts) in self.jobs.iter().zip(&facts) {
            summary.add(job, facts);
        }
        metadata::set_found(&mut self.keys, summary.main_type(), summary.loss, hashes);
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
            origin,
            items: items.collect(),
            metadata: self.keys,
            files: layout.files.len(),
            summary,
        })
    }

    /// The keys of the output, those that depend on the weights with any value. `tokenizer`: its keys, for a checkpoint.
    ///
    /// # Errors
    /// A key that cannot be set as the options have it.
    pub fn keys(&self, tokenizer: Keys) -> Result<Keys, PackError> {
        let (weights, files) = (self.numbers(), self.hashed_files());
        match self.origin {
            Origin::Checkpoint(checkpoint) => metadata::keys(checkpoint, self.options, tokenizer, weights, files),
            Origin::Gguf(gguf) => metadata::keys_of_gguf(gguf, self.options, files),
        }
    }

    /// Read all weights, and write them where there is an `output`, until every linear has become the first of its
    /// types that is within the allowed error.
    fn settle(
        &mut self,
        output: Option<&Output>,
        progress: &Progress,
    ) -> Result<(Vec<Facts>, Option<Files>), PackError> {
        // Nothing is written where some rows show already that it would be in vain.
        let mut writing = output.filter(|_| self.jobs.iter().all(|job| job.promising));
        loop {
            self.check_for_ollama()?;
            let layout = self.layout()?;
            let files = writing.map(|output| output.create(&layout)).transpose()?;
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
            if job.first_fit(&losses, max_nmse).is_none() {
                let untried = &job.types[losses.len()..];
                if !untried.is_empty() {
                    losses.extend(measure(job, 0..job.shape.0, untried)?.losses);
                }
            }
            let fits = job.first_fit(&losses, max_nmse);
            let least = losses.iter().copied().min_by(|a, b| a.nmse().total_cmp(&b.nmse()));
            loss = loss + fits.map(|index| losses[index]).or(least).unwrap_or_default();
            match (fits, least) {
                (Some(index), _) => {
                    held &= index == job.chosen;
                    job.chosen = index;
                    job.note_loss(&losses);
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

    /// Where everything goes, as the types are now.
    fn layout(&self) -> Result<Layout, PackError> {
        Layout::new(&self.keys, &self.infos(), self.options.split_max_size)
    }

    /// The names of the input files, if their hashes are to be noted.
    fn hashed_files(&self) -> Option<Vec<String>> {
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let files = self.origin.files();
        let names = files.into_iter().map(|(path, _)| name(path));
        self.options.hash.then(|| names.collect())
    }

    /// Write all but the weights: the start of each file, norms and biases.
    fn put_numbers(&self, files: &Files, layout: &Layout, facts: &[Facts]) -> Result<(), PackError> {
        for (file, FileLayout { header, .. }) in layout.files.iter().enumerate() {
            files.put(file, header, 0)?;
        }
        for (entry, Entry { content, .. }) in self.entries.iter().enumerate() {
            let bytes = match content {
                Content::Numbers(numbers) => number_bytes(numbers.iter().copied()),
                Content::Bias(job) => facts[*job].bias_bytes(),
                Content::Table { .. } | Content::Linear(_) => continue,
            };
            let (file, offset) = layout.place(entry);
            files.put(file, &bytes, offset)?;
        }
        Ok(())
    }
}
