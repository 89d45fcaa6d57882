//! The weights of the file.

use std::ops::Range;

use formats::block::BlockType;
use formats::gguf::File;

use crate::blueprint::{Linear, Norm, Part};
use crate::engine::EngineError;
use crate::engine::hyper::{Hyper, Pairing};
use crate::engine::native::{CacheType, CacheTypes};
use crate::engine::oracle::{AttentionRounding, Rounding, Rows, Weights};
use crate::kernels::ActivationScales;

/// The file, its blocks dequantized.
pub struct Stored<'a> {
    pub(super) file: &'a File<'a>,
    hyper: Hyper,
    /// How the file has the rows of q and k.
    pairing: Pairing,
    rounded: Rounded,
}

/// How numbers are rounded where they are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rounded {
    pub activations: ActivationScales,
    pub cache: CacheTypes,
}

impl Rounded {
    /// As llama.cpp has it, with keys and values in f32.
    pub const AS_LLAMA_CPP: Self = Self {
        activations: ActivationScales::LlamaCpp,
        cache: CacheTypes {
            keys: CacheType::F32,
            values: CacheType::F32,
        },
    };
}

impl<'a> Stored<'a> {
    /// # Errors
    /// Those of [`Hyper::read`].
    pub fn new(file: &'a File<'a>) -> Result<Self, EngineError> {
        let mut hyper = Hyper::read(file)?;
        // The oracle is given rows in Hugging Face's order.
        let pairing = std::mem::replace(&mut hyper.rope.pairing, Pairing::Halves);
        Ok(Self {
            file,
            hyper,
            pairing,
            rounded: Rounded::AS_LLAMA_CPP,
        })
    }

    /// The same, with numbers rounded in this way where they are.
    pub fn with_rounding(self, rounded: Rounded) -> Self {
        Self { rounded, ..self }
    }

    pub fn rounded(&self) -> Rounded {
        self.rounded
    }

    pub(super) fn rows(&self, name: &str, interleaved: bool) -> Result<StoredRows<'a>, EngineError> {
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
            interleaved: interleaved.then_some(self.hyper.dims.head_dim),
            activations: self.rounded.activations,
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
        let interleaved = self.pairing == Pairing::Interleaved && matches!(part, Part::Q | Part::K);
        let name = Linear { layer, part }.gguf_name();
        Ok(Box::new(self.rows(&name, interleaved)?))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let name = norm.gguf_name();
        match self.file.tensor(&name) {
            Some((_, bytes)) => Ok(floats(bytes).collect()),
            None => Err(EngineError::MissingTensor { name }),
        }
    }

    /// In the order of the file, which decides what shares a scale.
    fn round_head(&self, key: &mut [f64], value: &mut [f64]) {
        let CacheTypes { keys, values } = self.rounded.cache;
        let place = |row| match self.pairing {
            Pairing::Interleaved => interleaved(row, key.len()),
            Pairing::Halves => row,
        };
        let places: Vec<_> = (0..key.len()).map(place).collect();
        let mut in_file = vec![0.0; key.len()];
        places.iter().zip(&*key).for_each(|(&place, key)| in_file[place] = *key);
        rounding(keys).apply(&mut in_file);
        places.iter().zip(key).for_each(|(&place, key)| *key = in_file[place]);
        rounding(values).apply(value);
    }

    fn attention_rounding(&self) -> AttentionRounding {
        let CacheTypes { keys, values } = self.rounded.cache;
        let [queries, weights] = [keys, values].map(|ty| match ty {
            CacheType::Bf16 => Rounding::Bf16,
            CacheType::F32 | CacheType::F16 | CacheType::Q8_0 => Rounding::None,
        });
        AttentionRounding { queries, weights }
    }
}

fn rounding(ty: CacheType) -> Rounding {
    match ty {
        CacheType::F32 => Rounding::None,
        CacheType::F16 => Rounding::F16,
        CacheType::Bf16 => Rounding::Bf16,
        CacheType::Q8_0 => Rounding::Q8_0,
    }
}

/// Where a file whose pairs are beside each other has row `row` of the checkpoint.
fn interleaved(row: usize, head_dim: usize) -> usize {
    let (within, half) = (row % head_dim, head_dim / 2);
    row - within + 2 * (within % half) + within / half
}

/// The numbers of a tensor of F32.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))
}

/// A matrix of the file, and its bias.
pub(super) struct StoredRows<'a> {
    pub(super) ty: BlockType,
    bytes: &'a [u8],
    bias: Option<&'a [u8]>,
    shape: (usize, usize),
    /// The length of a head, where the rows of each lie in the order in which llama.cpp turns them: the members of a pair
    /// beside each other.
    interleaved: Option<usize>,
    activations: ActivationScales,
}

impl StoredRows<'_> {
    /// Where the file has row `row` of the checkpoint.
    fn place(&self, row: usize) -> usize {
        self.interleaved.map_or(row, |head_dim| interleaved(row, head_dim))
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

    /// As llama.cpp's CPU backend does for a type (ggml-cpu.c, `vec_dot_type`), or with other scales.
    fn rounding(&self) -> Rounding {
        let columns = self.shape.1;
        match (self.ty, self.activations) {
            (BlockType::F32, _) => Rounding::None,
            (BlockType::F16, _) => Rounding::F16,
            (BlockType::BF16, _) => Rounding::Bf16,
            (BlockType::Q2_0 | BlockType::Q4_0, ActivationScales::Fast) => match columns {
                _ if columns.is_multiple_of(256) => Rounding::K(256),
                _ if columns.is_multiple_of(128) => Rounding::K(128),
                _ if columns.is_multiple_of(64) => Rounding::K(64),
                _ => Rounding::Q8_0,
            },
            (BlockType::Q2_0 | BlockType::Q4_0 | BlockType::Q8_0, _) => Rounding::Q8_0,
            (_, ActivationScales::Per32) => Rounding::Q8_0,
            (_, ActivationScales::Per64) => Rounding::K(64),
            (_, ActivationScales::LlamaCpp | ActivationScales::Fast) => Rounding::K(256),
        }
    }
}

#[cfg(test)]
mod tests;
