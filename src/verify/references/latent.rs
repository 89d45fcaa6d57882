//! The weights of the checkpoint.

use std::ops::Range;

use formats::safetensors::Tensor;

use super::super::VerifyError;
use super::super::latent::{self, LatentRow};
use crate::blueprint::{Linear, Norm, Part, Slot};
use crate::engine::EngineError;
use crate::engine::hyper::{Hyper, Pairing, Rope};
use crate::engine::oracle::{Rows, Weights};
use crate::model::{Checkpoint, RopeScaling};

/// The checkpoint: linears are made ternary by the formula, row by row.
pub struct Latent<'a> {
    checkpoint: &'a Checkpoint,
    hyper: Hyper,
}

impl<'a> Latent<'a> {
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        let config = &checkpoint.config;
        let divisor = match config.rope.scaling {
            RopeScaling::Linear { factor } => factor,
            _ => 1.0,
        };
        let hyper = Hyper {
            dims: config.dims,
            context: config.context_length,
            norm_epsilon: config.rms_norm_eps.into(),
            rope: Rope {
                base: config.rope.base(config.dims.head_dim),
                divisor,
                factors: latent::rope_factors(config),
                pairing: Pairing::Halves,
            },
            variant: config.variant,
        };
        Self { checkpoint, hyper }
    }

    fn tensor(&self, slot: Slot) -> Tensor<'_> {
        let name = self.checkpoint.config.architecture.checkpoint_name(slot);
        let tensor = self.checkpoint.tensors.get(&name.unwrap_or_default());
        tensor.expect("Checkpoint::open found every tensor")
    }

    fn table(&self, slot: Slot) -> Box<dyn Rows + '_> {
        Box::new(Table {
            weights: self.tensor(slot),
            bias: None,
        })
    }
}

impl Weights for Latent<'_> {
    fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        Ok(self.table(Slot::Embedding))
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        if self.checkpoint.config.tied_head {
            self.embedding()
        } else {
            Ok(self.table(Slot::Head))
        }
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        let linear = Linear { layer, part };
        if !self.checkpoint.is_ternary(linear) {
            let bias = format!("{}.bias", linear.checkpoint_name());
            return Ok(Box::new(Table {
                weights: self.tensor(Slot::Linear(linear)),
                bias: self.checkpoint.tensors.get(&bias),
            }));
        }
        let latent = latent::Latent::new(self.checkpoint, linear);
        Ok(Box::new(latent.map_err(weights_error)?))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let tensor = self.tensor(Slot::Norm(norm));
        let mut numbers = vec![0.0; tensor.len()];
        tensor.read_f32(0, &mut numbers);
        Ok(numbers)
    }
}

fn weights_error(error: VerifyError) -> EngineError {
    EngineError::Weights(Box::new(error))
}

impl Rows for latent::Latent<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        let mut scratch = LatentRow::default();
        for ((row, weights), bias) in rows.zip(weights.chunks_exact_mut(self.columns)).zip(bias) {
            let dense = self.dense(row, &mut scratch, weights);
            *bias = dense.map_err(weights_error)?;
        }
        Ok(())
    }
}

/// A matrix of the checkpoint that is not made ternary: embedding, head, a linear that is stored as it is.
struct Table<'a> {
    weights: Tensor<'a>,
    bias: Option<Tensor<'a>>,
}

impl Rows for Table<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.weights.shape[0], self.weights.shape[1])
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        self.weights.read_f32(rows.start * self.weights.shape[1], weights);
        let mut own = vec![0.0; bias.len()];
        if let Some(bias) = self.bias {
            bias.read_f32(rows.start, &mut own);
        }
        bias.iter_mut().zip(own).for_each(|(bias, own)| *bias = own.into());
        Ok(())
    }
}
