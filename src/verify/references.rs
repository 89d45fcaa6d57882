//! Where the reference passes of level 4 get their weights: [`Latent`] from the checkpoint, by the formula; [`Stored`] from
//! the file, as its types spell them out; [`Turned`] from both.

use std::ops::Range;

use formats::block::BlockType;
use formats::gguf::File;
use formats::safetensors::Tensor;

use super::VerifyError;
use super::latent::{self, LatentRow};
use super::tables::table_limit;
use crate::engine::EngineError;
use crate::engine::hyper::{Hyper, Pairing, Rope, Variant};
use crate::engine::oracle::{Norm, Part, Rounding, Rows, Weights};
use crate::model::{
    self, Checkpoint, EMBEDDING, FINAL_NORM, HEAD, Linear, RopeScaling, attention_norm, feed_forward_norm,
};

/// The checkpoint: linears are made ternary by the formula, row by row.
pub(super) struct Latent<'a> {
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
            vocab: config.vocab_size,
            hidden: config.hidden_size,
            layers: config.layers,
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            ffn: config.intermediate_size,
            context: config.context_length,
            norm_epsilon: config.rms_norm_eps.into(),
            rope: Rope {
                base: config.rope.theta,
                divisor,
                factors: latent::rope_factors(config),
                pairing: Pairing::Halves,
            },
            variant: Variant::LLAMA,
        };
        Self { checkpoint, hyper }
    }

    fn tensor(&self, name: &str) -> Tensor<'_> {
        let tensor = self.checkpoint.tensors.get(name);
        tensor.expect("Checkpoint::open found every tensor")
    }
}

impl Weights for Latent<'_> {
    fn hyper(&self) -> &Hyper {
        &self.hyper
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
            Norm::Query(_) | Norm::Key(_) | Norm::AttentionSub(_) | Norm::FeedForwardSub(_) => {
                unreachable!("a Llama has no such norm (Variant::LLAMA)")
            }
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

/// The file, its blocks dequantized.
pub(super) struct Stored<'a> {
    file: &'a File<'a>,
    hyper: Hyper,
    /// How the file has the rows of q and k.
    pairing: Pairing,
}

impl<'a> Stored<'a> {
    /// # Errors
    /// Those of [`Hyper::read`].
    pub fn new(file: &'a File<'a>) -> Result<Self, EngineError> {
        let mut hyper = Hyper::read(file)?;
        // The oracle is given rows in Hugging Face's order.
        let pairing = std::mem::replace(&mut hyper.rope.pairing, Pairing::Halves);
        Ok(Self { file, hyper, pairing })
    }

    fn rows(&self, name: &str, interleaved: bool) -> Result<StoredRows<'a>, EngineError> {
        let (info, bytes) = self
            .file
            .tensor(&format!("{name}.weight"))
            .ok_or_else(|| EngineError::MissingTensor {
                name: format!("{name}.weight"),
            })?;
        Ok(StoredRows {
            ty: info.ty,
            bytes,
            bias: self.file.tensor(&format!("{name}.bias")).map(|(_, bytes)| bytes),
            shape: (info.rows() as usize, info.columns() as usize),
            interleaved: interleaved.then_some(self.hyper.head_dim),
        })
    }
}

impl Weights for Stored<'_> {
    fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        Ok(Box::new(self.rows("token_embd", false)?))
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        match self.file.tensor("output.weight") {
            Some(_) => Ok(Box::new(self.rows("output", false)?)),
            None => self.embedding(),
        }
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        let interleaved = self.pairing == Pairing::Interleaved;
        let (name, interleaved) = match part {
            Part::Q => ("attn_q", interleaved),
            Part::K => ("attn_k", interleaved),
            Part::V => ("attn_v", false),
            Part::O => ("attn_output", false),
            Part::Gate => ("ffn_gate", false),
            Part::Up => ("ffn_up", false),
            Part::Down => ("ffn_down", false),
        };
        let name = format!("blk.{layer}.{name}");
        Ok(Box::new(self.rows(&name, interleaved)?))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let name = match norm {
            Norm::Attention(layer) => format!("blk.{layer}.attn_norm.weight"),
            Norm::Query(layer) => format!("blk.{layer}.attn_q_norm.weight"),
            Norm::Key(layer) => format!("blk.{layer}.attn_k_norm.weight"),
            Norm::AttentionSub(layer) => format!("blk.{layer}.attn_sub_norm.weight"),
            Norm::FeedForward(layer) => format!("blk.{layer}.ffn_norm.weight"),
            Norm::FeedForwardSub(layer) => format!("blk.{layer}.ffn_sub_norm.weight"),
            Norm::Last => "output_norm.weight".into(),
        };
        match self.file.tensor(&name) {
            Some((_, bytes)) => Ok(floats(bytes).collect()),
            None => Err(EngineError::MissingTensor { name }),
        }
    }
}

/// The numbers of a tensor of F32.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))
}

/// A matrix of the file, and its bias.
struct StoredRows<'a> {
    ty: BlockType,
    bytes: &'a [u8],
    bias: Option<&'a [u8]>,
    shape: (usize, usize),
    /// The length of a head, where the rows of each lie in the order in which llama.cpp turns them: the members of a pair
    /// beside each other.
    interleaved: Option<usize>,
}

impl StoredRows<'_> {
    /// Where the file has row `row` of the checkpoint.
    fn place(&self, row: usize) -> usize {
        let Some(head_dim) = self.interleaved else {
            return row;
        };
        let (within, half) = (row % head_dim, head_dim / 2);
        row - within + 2 * (within % half) + within / half
    }
}

impl Rows for StoredRows<'_> {
    fn shape(&self) -> (usize, usize) {
        self.shape
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        let (all, columns) = self.shape;
        let row_bytes = self.bytes.len() / all;
        for ((row, weights), bias) in rows.zip(weights.chunks_exact_mut(columns)).zip(bias) {
            let place = self.place(row);
            let bytes = &self.bytes[place * row_bytes..][..row_bytes];
            let read = self.ty.dequantize_row(bytes, weights);
            read.map_err(|error| EngineError::Weights(Box::new(error)))?;
            let stored = self.bias.and_then(|biases| floats(biases).nth(place));
            *bias = stored.unwrap_or(0.0).into();
        }
        Ok(())
    }

    /// As llama.cpp's CPU backend does for a type (ggml-cpu.c, `vec_dot_type`).
    fn rounding(&self) -> Rounding {
        match self.ty {
            BlockType::F32 => Rounding::None,
            BlockType::F16 => Rounding::F16,
            BlockType::BF16 => Rounding::Bf16,
            BlockType::Q2_0 | BlockType::Q4_0 | BlockType::Q8_0 => Rounding::Q8_0,
            _ => Rounding::Q8K,
        }
    }
}

/// The checkpoint, with what storing each row lost turned round or not, by chance: another file that is as far from the
/// checkpoint as this one, as long as this one is no further from it than it may be.
pub(super) struct Turned<'a> {
    pub latent: &'a Latent<'a>,
    pub stored: &'a Stored<'a>,
    /// The NMSE that storing a linear may have added.
    pub max_nmse: f64,
}

impl Weights for Turned<'_> {
    fn hyper(&self) -> &Hyper {
        self.latent.hyper()
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        let stored = self.stored.rows("token_embd", false)?;
        self.table(self.latent.embedding()?, stored)
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        match self.stored.file.tensor("output.weight") {
            Some(_) => self.table(self.latent.head()?, self.stored.rows("output", false)?),
            None => self.embedding(),
        }
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        Ok(Box::new(TurnedRows {
            latent: self.latent.linear(layer, part)?,
            stored: self.stored.linear(layer, part)?,
            max_nmse: self.max_nmse + SCALE_ROUNDED,
            ternary: true,
        }))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        self.latent.norm(norm)
    }
}

impl<'a> Turned<'a> {
    fn table(&self, latent: Box<dyn Rows + 'a>, stored: StoredRows<'a>) -> Result<Box<dyn Rows + 'a>, EngineError> {
        Ok(Box::new(TurnedRows {
            latent,
            max_nmse: table_limit(stored.ty).unwrap_or(ROUNDED),
            stored: Box::new(stored),
            ternary: false,
        }))
    }
}

/// What storing a scale as F16 may cost, relative and squared; it is no part of `--max-nmse`, which counts from there.
const SCALE_ROUNDED: f64 = 1.0 / (1u64 << 22) as f64;

/// What rounding a number to BF16 may cost, relative and squared; to F16, less.
const ROUNDED: f64 = 1.0 / (1u64 << 16) as f64;

struct TurnedRows<'a> {
    latent: Box<dyn Rows + 'a>,
    stored: Box<dyn Rows + 'a>,
    max_nmse: f64,
    /// Whether a weight of another sign is a wrong code.
    ternary: bool,
}

impl Rows for TurnedRows<'_> {
    fn shape(&self) -> (usize, usize) {
        self.latent.shape()
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        let columns = self.shape().1;
        let mut stored = vec![0.0; weights.len()];
        self.stored.read(rows.clone(), &mut stored, bias)?;
        self.latent.read(rows.clone(), weights, bias)?;
        let nmse = nmse(weights, &stored);
        if nmse == 0.0 {
            return Ok(());
        }
        let share = (self.max_nmse / nmse).sqrt().min(1.0) as f32;
        let pairs = weights.chunks_exact_mut(columns).zip(stored.chunks_exact(columns));
        for (row, (weights, stored)) in rows.zip(pairs) {
            if self.ternary && another_code(weights, stored) {
                continue;
            }
            let sign = if heads(row) { share } else { -share };
            for (weight, stored) in weights.iter_mut().zip(stored) {
                *weight += sign * (stored - *weight);
            }
        }
        Ok(())
    }
}

/// Whether a weight of `stored` cannot stand for the trained one: it has another sign, or is none for a zero. One that is too
/// small to be stored is a loss of its own.
fn another_code(trained: &[f32], stored: &[f32]) -> bool {
    let pairs = trained.iter().zip(stored);
    pairs.fold(false, |found, (&a, &b)| {
        found | ((b != 0.0) & ((a == 0.0) | ((a < 0.0) != (b < 0.0)))) // no early exit: it vectorises
    })
}

/// [`metrics::nmse`](crate::metrics::nmse), with sums in f32 within pieces: it is only asked how near it is to a limit.
fn nmse(trained: &[f32], stored: &[f32]) -> f64 {
    const LANES: usize = 16;
    const PIECE: usize = 256 * LANES;
    let (mut error, mut energy) = (0.0, 0.0);
    for (trained, stored) in trained.chunks(PIECE).zip(stored.chunks(PIECE)) {
        let (mut errors, mut energies) = ([0f32; LANES], [0f32; LANES]);
        for (a, b) in trained.chunks(LANES).zip(stored.chunks(LANES)) {
            for (lane, (&a, &b)) in a.iter().zip(b).enumerate() {
                errors[lane] += (a - b) * (a - b);
                energies[lane] += a * a;
            }
        }
        error += f64::from(errors.iter().sum::<f32>());
        energy += f64::from(energies.iter().sum::<f32>());
    }
    if error == 0.0 { 0.0 } else { error / energy }
}

/// The toss of a coin (the finalizer of SplitMix64).
fn heads(row: usize) -> bool {
    let mut x = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Held<'a>(&'a [f32], usize);

    impl Rows for Held<'_> {
        fn shape(&self) -> (usize, usize) {
            (self.0.len() / self.1, self.1)
        }

        fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
            weights.copy_from_slice(&self.0[rows.start * self.1..rows.end * self.1]);
            bias.fill(0.0);
            Ok(())
        }
    }

    fn turned(latent: &[f32], stored: &[f32], columns: usize, max_nmse: f64) -> Vec<f32> {
        let rows = TurnedRows {
            latent: Box::new(Held(latent, columns)),
            stored: Box::new(Held(stored, columns)),
            max_nmse,
            ternary: true,
        };
        let count = rows.shape().0;
        let mut weights = vec![0.0; latent.len()];
        rows.read(0..count, &mut weights, &mut vec![0.0; count]).unwrap();
        weights
    }

    #[test]
    fn losses_are_turned_round_row_by_row() {
        let latent = [1.0, 0.0, -1.0, 1.0].repeat(64);
        let stored: Vec<f32> = latent.iter().map(|w| w * 1.25).collect();
        let found = turned(&latent, &stored, 4, 1.0);
        let mut kinds = [0, 0];
        for row in found.chunks(4) {
            assert!(row == [0.75, 0.0, -0.75, 0.75] || row == [1.25, 0.0, -1.25, 1.25]);
            kinds[usize::from(row[0] > 1.0)] += 1;
        }
        assert!(kinds.iter().all(|&kind| kind > 16), "{kinds:?}");
    }

    #[test]
    fn more_than_is_allowed_is_no_excuse() {
        let latent = [1.0, 0.0, -1.0, 1.0].repeat(64);
        // The NMSE is 4; 0.01 is allowed, which is a tenth of the weight.
        let stored: Vec<f32> = latent.iter().map(|w| w * 3.0).collect();
        for row in turned(&latent, &stored, 4, 0.01).chunks(4) {
            assert!((row[0] - 1.0).abs() - 0.1 < 1e-6 && row[1] == 0.0);
        }
        // Another code is none at all.
        let stored: Vec<f32> = latent.iter().map(|w| -w).collect();
        assert_eq!(turned(&latent, &stored, 4, 9.0), latent);
        let stored: Vec<f32> = latent.iter().map(|w| w + 0.1).collect();
        assert_eq!(turned(&latent, &stored, 4, 9.0), latent);
        // What is too small for the type is a loss.
        assert_ne!(turned(&latent, &[0.0; 256], 4, 9.0), latent);
    }

    #[test]
    fn an_interleaved_row_is_found() {
        let rows = StoredRows {
            ty: BlockType::F32,
            bytes: &[],
            bias: None,
            shape: (12, 1),
            interleaved: Some(6),
        };
        // Dimensions 0, 3 of a head of 6 stand first, then 1, 4: transformers' pairs.
        let places: Vec<_> = (0..12).map(|row| rows.place(row)).collect();
        assert_eq!(places, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
