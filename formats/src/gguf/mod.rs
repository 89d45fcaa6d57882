//! GGUF version 3 (ggml/src/gguf.cpp): header, metadata, tensor infos, then the tensor data.
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `GGUF` |
//! | u32 | version, 3 |
//! | u64, u64 | number of tensors, number of keys |
//! | keys | each: name (u64 length, UTF-8), u32 value type, value |
//! | tensors | each: name, u32 number of dimensions, u64 per dimension (columns first), u32 type, u64 offset |
//! | padding | zeros up to the alignment (32 unless `general.alignment` says otherwise) |
//! | data | the tensors in listing order, each padded to the alignment |
//!
//! All numbers are little-endian. [`File`] reads, [`Layout`] writes; neither opens a file.

mod id42;
mod read;
mod split;
pub mod tokenizer;
mod value;
mod write;

pub use read::File;
pub use split::{part_of, part_path, split_count};
pub use value::{Array, Value};
pub use write::Layout;

use crate::block::BlockType;

/// The alignment of tensor data, in bytes, where `general.alignment` is absent (GGUF_DEFAULT_ALIGNMENT).
pub const ALIGNMENT: u64 = 32;

/// The longest tensor name in bytes (GGML_MAX_NAME - 1).
pub const MAX_NAME: usize = 63;

/// One tensor's name, type and shape.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// For example `blk.0.attn_q.weight`.
    pub name: String,
    /// How its weights are stored.
    pub ty: BlockType,
    /// Columns first: a matrix of `rows` x `columns` has the shape `[columns, rows]`.
    pub shape: Vec<u64>,
}

impl TensorInfo {
    /// Weights in a row: the contiguous dimension.
    pub fn columns(&self) -> u64 {
        self.shape.first().copied().unwrap_or(1)
    }

    /// The product of the shape; the largest `u64` where it does not fit.
    pub fn weights(&self) -> u64 {
        if self.shape.contains(&0) {
            return 0;
        }
        self.shape.iter().fold(1, |product: u64, &n| product.saturating_mul(n))
    }

    /// All weights divided by the columns; 1 for a vector, 0 where there are no weights.
    pub fn rows(&self) -> u64 {
        self.weights().checked_div(self.columns()).unwrap_or(0)
    }

    /// Bytes of the tensor without padding; `None` where they do not fit `u64` or rows do not fill whole blocks.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes_as(self.ty)
    }

    /// [`bytes`](Self::bytes) if it were of type `ty`.
    fn bytes_as(&self, ty: BlockType) -> Option<u64> {
        let (weights, bytes) = (ty.weights() as u64, ty.bytes() as u64);
        if !self.columns().is_multiple_of(weights) {
            return None;
        }
        (self.weights() / weights).checked_mul(bytes)
    }

    /// Type id 42 as PrismML's first builds meant it.
    fn read_as_prism(&mut self) {
        if self.ty == BlockType::Q2_0 {
            self.ty = BlockType::PQ2_0;
        }
    }
}

/// `offset` rounded up to a multiple of `alignment`; `None` beyond `u64`.
fn padded(offset: u64, alignment: u64) -> Option<u64> {
    offset.checked_next_multiple_of(alignment)
}
