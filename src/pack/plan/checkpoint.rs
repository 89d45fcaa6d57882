//! The tensors that a checkpoint gives, in the order of the blueprint.

use super::super::PackError;
use super::super::biases::DroppedBiases;
use super::super::graph::rope_factors;
use super::super::numbers::numbers;
use super::super::row::Ternary;
use super::{Content, Job, Plan, measure, source_row};
use crate::blueprint::{Linear, Part, Slot};
use crate::model::{Checkpoint, Stored};

impl<'a> Plan<'a> {
    /// Plan all tensors; gives the linears that no block type fits, and their columns.
    pub(super) fn add_checkpoint(&mut self, checkpoint: &'a Checkpoint) -> Result<Vec<(String, usize)>, PackError> {
        let mut no_block = vec![];
        for (slot, source) in checkpoint.config.slots() {
            self.add(checkpoint, slot, source, &mut no_block)?;
        }
        Ok(no_block)
    }

    /// Plan a tensor of the file, and the bias of a linear. `source`: what the checkpoint calls it, if it has it.
    fn add(
        &mut self,
        checkpoint: &'a Checkpoint,
        slot: Slot,
        source: Option<String>,
        no_block: &mut Vec<(String, usize)>,
    ) -> Result<(), PackError> {
        let config = &checkpoint.config;
        let source = source.unwrap_or_default();
        let content = match slot {
            Slot::Linear(linear) if checkpoint.is_ternary(linear) => {
                return self.add_linear(checkpoint, linear, no_block);
            }
            Slot::Linear(linear) => return self.add_kept(checkpoint, linear),
            Slot::Norm(_) => Content::Numbers(numbers(stored(checkpoint, &source), &source)?),
            Slot::Embedding | Slot::Head => {
                let blocks = stored(checkpoint, &source).blocks();
                self.embedding(&slot.gguf_name(), source, blocks)?
            }
            Slot::RopeFactors => Content::Numbers(rope_factors(&config.rope, config.dims.head_dim).unwrap_or_default()),
        };
        self.push(slot.gguf_name(), slot.gguf_shape(&config.dims), content);
        Ok(())
    }

    fn add_linear(
        &mut self,
        checkpoint: &'a Checkpoint,
        linear: Linear,
        no_block: &mut Vec<(String, usize)>,
    ) -> Result<(), PackError> {
        let config = &checkpoint.config;
        let name = format!("{}.weight", linear.gguf_name());
        let (rows, columns) = linear.shape(&config.dims);
        let (types, larger) = self.types(self.options.rule.candidates(&name), columns);
        if types.is_empty() {
            no_block.push((name, columns));
            return Ok(());
        }
        let graph = config.architecture.graph;
        let (has_bias, has_place) = (checkpoint.has_bias(linear), graph.bias_slots.contains(&linear.part));
        let job = self.jobs.len();
        self.push(name.clone(), vec![columns as u64, rows as u64], Content::Linear(job));
        if has_bias && has_place {
            let name = format!("{}.bias", linear.gguf_name());
            self.push(name, vec![rows as u64], Content::Bias(job));
        }
        self.jobs.push(Job {
            name,
            is_table: false,
            shape: (rows, columns),
            interleaved: interleaved(checkpoint, linear),
            ternary: Ternary::new(checkpoint, linear, self.options.level)?,
            types,
            exact: 0,
            chosen: 0,
            promising: true,
            is_chosen: false,
            drops_biases: has_bias && !has_place,
            larger,
        });
        Ok(())
    }

    /// Biases are left out only where the user says so; in some rows they are looked at, to tell how large they are.
    pub(super) fn check_biases(&self, checkpoint: &Checkpoint) -> Result<(), PackError> {
        let dropped: Vec<_> = self.jobs.iter().filter(|job| job.drops_biases).collect();
        if dropped.is_empty() || self.options.drop_biases {
            return Ok(());
        }
        let mut biases = DroppedBiases::default();
        for job in &dropped {
            let facts = measure(job, job.pieces().swap_remove(0), &job.types[..1])?;
            biases.add(&facts.biases, facts.losses[0].energy);
        }
        let graph = checkpoint.config.architecture.graph;
        Err(PackError::LostBiases {
            graph: graph.name,
            linears: Part::ALL
                .into_iter()
                .filter(|part| !graph.bias_slots.contains(part))
                .collect(),
            biases,
        })
    }

    /// A linear that is not ternary stays what it is.
    fn add_kept(&mut self, checkpoint: &'a Checkpoint, linear: Linear) -> Result<(), PackError> {
        let (rows, columns) = linear.shape(&checkpoint.config.dims);
        let (blocks, interleaved) = (checkpoint.weight(linear).blocks(), interleaved(checkpoint, linear));
        let content = Content::Table {
            name: format!("{}.weight", linear.checkpoint_name()),
            blocks,
            ty: blocks.ty,
            interleaved,
        };
        self.push(
            format!("{}.weight", linear.gguf_name()),
            vec![columns as u64, rows as u64],
            content,
        );
        let Some(bias) = checkpoint.own_bias(linear) else {
            return Ok(());
        };
        let bias = numbers(bias, &format!("{}.bias", linear.checkpoint_name()))?;
        let bias: Vec<f32> = (0..rows).map(|row| bias[source_row(interleaved, row)]).collect();
        let graph = checkpoint.config.architecture.graph;
        if graph.bias_slots.contains(&linear.part) {
            let name = format!("{}.bias", linear.gguf_name());
            self.push(name, vec![rows as u64], Content::Numbers(bias));
        } else if !self.options.drop_biases {
            let weights = numbers(
                checkpoint.weight(linear),
                &format!("{}.weight", linear.checkpoint_name()),
            )?;
            let mut biases = DroppedBiases::default();
            biases.add(
                &bias.into_iter().map(f64::from).collect::<Vec<_>>(),
                weights.into_iter().map(|w| f64::from(w).powi(2)).sum(),
            );
            let (graph, linears) = (graph.name, vec![linear.part]);
            return Err(PackError::LostBiases { graph, linears, biases });
        }
        Ok(())
    }
}

/// The length of a head, where the file has the rows of a linear in another order.
fn interleaved(checkpoint: &Checkpoint, linear: Linear) -> Option<usize> {
    let config = &checkpoint.config;
    let interleaves = config.architecture.graph.interleaves(linear.part);
    interleaves.then_some(config.dims.head_dim)
}

fn stored<'a>(checkpoint: &'a Checkpoint, name: &str) -> Stored<'a> {
    checkpoint
        .tensors
        .stored(name)
        .expect("Checkpoint::open found every tensor")
}
