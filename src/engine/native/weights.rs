//! What a file has for the forward pass: matrices packed for the kernels, vectors in f32.

use formats::block::BlockType;
use formats::gguf::File;

use super::math;
use crate::blueprint::{self, Norm, Part, Slot};
use crate::engine::EngineError;
use crate::engine::hyper::Hyper;
use crate::kernels::{self, Matrix};

/// The table of tokens, as the file has it.
pub struct Embedding<'file> {
    ty: BlockType,
    row_bytes: usize,
    bytes: &'file [u8],
}

pub struct Layer {
    pub attention_norm: Vec<f32>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub attention_sub_norm: Option<Vec<f32>>,
    pub ffn_norm: Vec<f32>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
    pub ffn_sub_norm: Option<Vec<f32>>,
}

pub struct Linear {
    pub matrix: Matrix,
    pub bias: Option<Vec<f32>>,
}

impl<'file> Embedding<'file> {
    pub fn load(tensors: &Tensors<'_, 'file>, hyper: &Hyper) -> Result<Self, EngineError> {
        let name = Slot::Embedding.gguf_name();
        let (info, bytes) = tensors.get(&name)?;
        let embedding = Embedding {
            ty: info.ty,
            row_bytes: bytes.len() / hyper.dims.vocab,
            bytes,
        };
        // What can go wrong with one row goes wrong with all.
        let row = &bytes[..embedding.row_bytes];
        match info.ty.dequantize_row(row, &mut vec![0.0; hyper.dims.hidden]) {
            Ok(()) => Ok(embedding),
            Err(_) => Err(EngineError::Type {
                name,
                found: info.ty.to_string(),
                expected: "a type that we can dequantize",
            }),
        }
    }

    pub fn read(&self, token: u32, x: &mut [f32]) {
        let row = &self.bytes[token as usize * self.row_bytes..][..self.row_bytes];
        self.ty
            .dequantize_row(row, x)
            .expect("loading has tried the type and the length");
    }
}

impl Layer {
    pub fn load(tensors: &Tensors, index: usize) -> Result<Self, EngineError> {
        let [q, k, v, o, gate, up, down] =
            Part::ALL.map(|part| tensors.linear(blueprint::Linear { layer: index, part }));
        let optional = |norm: Norm| tensors.vector(&norm.gguf_name());
        Ok(Layer {
            attention_norm: tensors.norm(Norm::Attention(index))?,
            q: q?,
            k: k?,
            v: v?,
            o: o?,
            q_norm: optional(Norm::Query(index)),
            k_norm: optional(Norm::Key(index)),
            attention_sub_norm: optional(Norm::AttentionSub(index)),
            ffn_norm: tensors.norm(Norm::FeedForward(index))?,
            gate: gate?,
            up: up?,
            down: down?,
            ffn_sub_norm: optional(Norm::FeedForwardSub(index)),
        })
    }

    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }
}

impl Linear {
    pub fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            math::add(y, bias);
        }
    }
}

/// The file's tensors, as matrices and vectors. [`Hyper::read`] has checked names, shapes and the type of vectors.
pub struct Tensors<'a, 'file> {
    pub file: &'a File<'file>,
    pub options: kernels::Options,
}

impl<'file> Tensors<'_, 'file> {
    fn get(&self, name: &str) -> Result<(&formats::gguf::TensorInfo, &'file [u8]), EngineError> {
        self.file
            .tensor(name)
            .ok_or_else(|| EngineError::MissingTensor { name: name.into() })
    }

    pub fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        let (info, bytes) = self.get(name)?;
        let (rows, columns) = (info.rows() as usize, info.columns() as usize);
        Matrix::new(info.ty, rows, columns, bytes, &self.options).map_err(|source| EngineError::Kernel {
            name: name.into(),
            source,
        })
    }

    fn vector(&self, name: &str) -> Option<Vec<f32>> {
        let (_, bytes) = self.file.tensor(name)?;
        let numbers = bytes.as_chunks().0.iter();
        Some(numbers.map(|&number| f32::from_le_bytes(number)).collect())
    }

    pub fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let name = norm.gguf_name();
        self.vector(&name).ok_or(EngineError::MissingTensor { name })
    }

    fn linear(&self, linear: blueprint::Linear) -> Result<Linear, EngineError> {
        let name = linear.gguf_name();
        Ok(Linear {
            matrix: self.matrix(&format!("{name}.weight"))?,
            bias: self.vector(&format!("{name}.bias")),
        })
    }
}
