//! What a forward pass is computed with: matrices packed for the kernels, vectors in f32.

use std::borrow::Cow;
use std::sync::Arc;

use formats::block::BlockType;
use formats::gguf::File;

use super::math;
use crate::blueprint::{self, Norm, Part, Slot};
use crate::engine::EngineError;
use crate::engine::hyper::Hyper;
use crate::kernels::{self, Matrix};

/// A tensor as a file has it.
pub struct Tensor<'t> {
    pub ty: BlockType,
    pub rows: usize,
    pub columns: usize,
    pub bytes: Cow<'t, [u8]>,
}

/// Where the weights of a model come from.
pub trait Source<'t>: Sync {
    /// The tensor `name`, if there is one.
    ///
    /// # Errors
    /// It cannot be read.
    fn tensor(&self, name: &str) -> Result<Option<Tensor<'t>>, EngineError>;
}

impl<'t> Source<'t> for File<'t> {
    fn tensor(&self, name: &str) -> Result<Option<Tensor<'t>>, EngineError> {
        Ok(File::tensor(self, name).map(|(info, bytes)| Tensor {
            ty: info.ty,
            rows: info.rows() as usize,
            columns: info.columns() as usize,
            bytes: bytes.into(),
        }))
    }
}

/// What stands before the layers, and behind them.
pub struct Ends<'t> {
    pub(super) embedding: Embedding<'t>,
    pub(super) norm: Vec<f32>,
    pub(super) head: Matrix,
}

/// The table of tokens, as the file has it.
pub(super) struct Embedding<'t> {
    ty: BlockType,
    row_bytes: usize,
    bytes: Cow<'t, [u8]>,
}

/// The weights of a layer. A copy shares its matrices.
#[derive(Clone)]
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

/// A matrix, and the bias of its rows.
#[derive(Clone)]
pub struct Linear {
    pub matrix: Arc<Matrix>,
    pub bias: Option<Vec<f32>>,
}

impl<'t> Ends<'t> {
    /// # Errors
    /// A tensor that is absent or cannot be read; a type that cannot be dequantized or multiplied; no memory.
    pub fn load(tensors: &Tensors<'_, 't>, hyper: &Hyper) -> Result<Self, EngineError> {
        let embedding = Embedding::load(tensors, hyper)?;
        let (head, embedded) = (Slot::Head.gguf_name(), Slot::Embedding.gguf_name());
        let head = match tensors.source.tensor(&head)? {
            Some(tensor) => tensors.matrix_of(&head, &tensor)?,
            None => tensors.matrix(&embedded)?,
        };
        Ok(Self {
            embedding,
            norm: tensors.norm(Norm::Last)?,
            head,
        })
    }
}

impl<'t> Embedding<'t> {
    fn load(tensors: &Tensors<'_, 't>, hyper: &Hyper) -> Result<Self, EngineError> {
        let name = Slot::Embedding.gguf_name();
        let Tensor { ty, bytes, .. } = tensors.get(&name)?;
        let row_bytes = bytes.len() / hyper.dims.vocab;
        // What can go wrong with one row goes wrong with all.
        match ty.dequantize_row(&bytes[..row_bytes], &mut vec![0.0; hyper.dims.hidden]) {
            Ok(()) => Ok(Embedding { ty, row_bytes, bytes }),
            Err(_) => Err(EngineError::Type {
                name,
                found: ty.to_string(),
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
    /// Load layer `index`.
    ///
    /// # Errors
    /// A tensor that is absent or cannot be read; a type that no kernel multiplies; no memory.
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
            q_norm: optional(Norm::Query(index))?,
            k_norm: optional(Norm::Key(index))?,
            attention_sub_norm: optional(Norm::AttentionSub(index))?,
            ffn_norm: tensors.norm(Norm::FeedForward(index))?,
            gate: gate?,
            up: up?,
            down: down?,
            ffn_sub_norm: optional(Norm::FeedForwardSub(index))?,
        })
    }

    /// Its linears, in the order of [`Part::ALL`].
    pub fn linears(&self) -> [&Linear; 7] {
        [&self.q, &self.k, &self.v, &self.o, &self.gate, &self.up, &self.down]
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> [&mut Linear; 7] {
        let Layer {
            q,
            k,
            v,
            o,
            gate,
            up,
            down,
            ..
        } = self;
        [q, k, v, o, gate, up, down]
    }
}

impl Linear {
    pub(super) fn add_bias(&self, y: &mut [f32]) {
        if let Some(bias) = &self.bias {
            math::add(y, bias);
        }
    }
}

/// The tensors of a source, as matrices and vectors. [`Hyper::of`] has checked names, shapes and the type of vectors.
pub struct Tensors<'s, 't> {
    source: &'s dyn Source<'t>,
    options: kernels::Options,
}

impl<'s, 't> Tensors<'s, 't> {
    /// `options`: those of all matrices.
    pub fn new(source: &'s dyn Source<'t>, options: kernels::Options) -> Self {
        Self { source, options }
    }

    fn get(&self, name: &str) -> Result<Tensor<'t>, EngineError> {
        let tensor = self.source.tensor(name)?;
        tensor.ok_or_else(|| EngineError::MissingTensor { name: name.into() })
    }

    /// The matrix `name`, packed for the kernels.
    ///
    /// # Errors
    /// It is absent or cannot be read; a type that no kernel multiplies; no memory.
    pub fn matrix(&self, name: &str) -> Result<Matrix, EngineError> {
        self.matrix_of(name, &self.get(name)?)
    }

    fn matrix_of(&self, name: &str, tensor: &Tensor) -> Result<Matrix, EngineError> {
        let &Tensor { ty, rows, columns, .. } = tensor;
        Matrix::new(ty, rows, columns, &tensor.bytes, &self.options).map_err(|source| EngineError::Kernel {
            name: name.into(),
            source,
        })
    }

    fn vector(&self, name: &str) -> Result<Option<Vec<f32>>, EngineError> {
        let numbers = |tensor: Tensor| -> Vec<f32> {
            let numbers = tensor.bytes.as_chunks().0.iter();
            numbers.map(|&number| f32::from_le_bytes(number)).collect()
        };
        Ok(self.source.tensor(name)?.map(numbers))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let name = norm.gguf_name();
        self.vector(&name)?.ok_or(EngineError::MissingTensor { name })
    }

    fn linear(&self, linear: blueprint::Linear) -> Result<Linear, EngineError> {
        let name = linear.gguf_name();
        Ok(Linear {
            matrix: Arc::new(self.matrix(&format!("{name}.weight"))?),
            bias: self.vector(&format!("{name}.bias"))?,
        })
    }
}
