//! The weights of the checkpoint.

use std::ops::Range;

use formats::safetensors::Tensor;

use super::super::VerifyError;
use super::super::latent::{self, LatentRow};
use crate::engine::EngineError;
use crate::engine::oracle::{Config, Norm, Part, Rope, RopeScaling, Rows, Weights};
use crate::model::{self, Checkpoint, EMBEDDING, FINAL_NORM, HEAD, Linear, attention_norm, feed_forward_norm};

/// The checkpoint: linears are made ternary by the formula, row by row.
pub struct Latent<'a> {
    checkpoint: &'a Checkpoint,
    config: Config,
}

impl<'a> Latent<'a> {
    pub fn new(checkpoint: &'a Checkpoint) -> Self {
        let config = &checkpoint.config;
        let scaling = match config.rope.scaling {
            model::RopeScaling::None => RopeScaling::None,
            model::RopeScaling::Linear { factor } => RopeScaling::Linear { factor },
            model::RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low_freq_factor,
                high_frequency_factor: high_freq_factor,
                original_context,
            },
        };
        let config = Config {
            vocab: config.vocab_size,
            hidden: config.hidden_size,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            norm_epsilon: config.rms_norm_eps.into(),
            rope: Rope {
                theta: config.rope.theta,
                scaling,
            },
        };
        Self { checkpoint, config }
    }

    fn tensor(&self, name: &str) -> Tensor<'_> {
        let tensor = self.checkpoint.tensors.get(name);
        tensor.expect("Checkpoint::open found every tensor")
    }
}

impl Weights for Latent<'_> {
    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        Ok(Box::new(Table(self.tensor(EMBEDDING))))
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        if self.checkpoint.config.tied_head {
            self.embedding()
        } else {
            Ok(Box::new(Table(self.tensor(HEAD))))
        }
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        let part = match part {
            Part::Q => model::Part::Q,
            Part::K => model::Part::K,
            Part::V => model::Part::V,
            Part::O => model::Part::O,
            Part::Gate => model::Part::Gate,
            Part::Up => model::Part::Up,
            Part::Down => model::Part::Down,
        };
        let latent = latent::Latent::new(self.checkpoint, Linear { layer, part });
        Ok(Box::new(latent.map_err(weights_error)?))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let tensor = self.tensor(&match norm {
            Norm::Attention(layer) => attention_norm(layer),
            Norm::FeedForward(layer) => feed_forward_norm(layer),
            Norm::Last => FINAL_NORM.into(),
        });
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

/// A table of the checkpoint: embedding or head.
struct Table<'a>(Tensor<'a>);

impl Rows for Table<'_> {
    fn shape(&self) -> (usize, usize) {
        (self.0.shape[0], self.0.shape[1])
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        self.0.read_f32(rows.start * self.0.shape[1], weights);
        bias.fill(0.0);
        Ok(())
    }
}
