//! The cache of keys and values.
//!
//! For each layer, 64 positions and all heads behind the 64 before, so that memory is touched as it fills; of each head:
//! ```text
//! keys    [position / 16][dimension][position % 16]       16 scores at a time, without a sum across lanes
//! values  [dimension / 16][position][dimension % 16]      16 outputs at a time; dimensions padded with zeros
//! ```

use std::ops::Range;

use crate::engine::EngineError;
use crate::engine::hyper::Dims;
use crate::kernels::Threads;
use crate::kernels::memory::{LineVec, Region};
use crate::simd::LANES;

use super::cells::{BLOCK, CacheTypes, Order, Vector};
use super::chunks::for_each_chunk;
use super::numbers::Kept;

/// Keys and values of every position so far.
pub struct Cache {
    /// (layers, blocks, kv_heads) of keys, then values.
    memory: Region,
    types: CacheTypes,
    kv_heads: usize,
    head_dim: usize,
    /// Of a layer.
    blocks: usize,
}

/// Keys and values of a head in a block.
pub struct Cells<'c> {
    pub keys: Kept<'c>,
    pub values: Kept<'c>,
}

/// Where keys and values of a head in a block become f32, if they are not.
pub struct Room {
    pub keys: LineVec<Vector>,
    pub values: LineVec<Vector>,
}

impl Cache {
    /// Room for `context` positions in each of so many layers of a model, whose heads the types divide
    /// ([`CacheTypes::check`]). Memory is touched only as it fills.
    ///
    /// # Errors
    /// The system gives no such memory.
    pub fn new(types: CacheTypes, dims: &Dims, layers: usize, context: usize) -> Result<Self, EngineError> {
        let blocks = context.div_ceil(BLOCK);
        let per_block = layers * dims.kv_heads * types.units(dims.head_dim) * size_of::<Vector>();
        let bytes = blocks.saturating_mul(per_block);
        let memory = Region::zeroed(bytes).map_err(|source| EngineError::CacheMemory { bytes, source })?;
        Ok(Cache {
            memory,
            types,
            kv_heads: dims.kv_heads,
            head_dim: dims.head_dim,
            blocks,
        })
    }

    fn vectors(&self) -> &[Vector] {
        bytemuck::cast_slice(&self.memory)
    }

    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub fn types(&self) -> CacheTypes {
        self.types
    }

    /// All of it, filled or not.
    pub fn bytes(&self) -> usize {
        size_of_val(self.vectors())
    }

    pub fn room(&self) -> Room {
        Room {
            keys: self.types.keys.room(Order::Keys, self.head_dim),
            values: self.types.values.room(Order::Values, self.head_dim),
        }
    }

    /// Units of the keys of a head in a block.
    fn keys(&self) -> usize {
        self.types.keys.units(Order::Keys, self.head_dim)
    }

    /// Units of a head in a block.
    fn per_head(&self) -> usize {
        self.types.units(self.head_dim)
    }

    fn per_layer(&self) -> usize {
        self.blocks * self.kv_heads * self.per_head()
    }

    /// Keys and values of a head in some blocks, each with its number.
    pub fn blocks(
        &self,
        layer: usize,
        kv_head: usize,
        blocks: Range<usize>,
    ) -> impl Iterator<Item = (usize, Cells<'_>)> {
        let per_block = self.kv_heads * self.per_head();
        let layer = &self.vectors()[layer * self.per_layer()..][..self.per_layer()];
        blocks.clone().map(move |i| {
            let head = &layer[i * per_block + kv_head * self.per_head()..][..self.per_head()];
            let (keys, values) = head.split_at(self.keys());
            let kept = |ty, order, cells| Kept {
                ty,
                order,
                head_dim: self.head_dim,
                cells,
                next: if i + 1 < blocks.end {
                    per_block * size_of::<Vector>()
                } else {
                    0
                },
            };
            let cells = Cells {
                keys: kept(self.types.keys, Order::Keys, keys),
                values: kept(self.types.values, Order::Values, values),
            };
            (i, cells)
        })
    }

    /// Store keys and values of the positions from `first` on in `layer`. `k`, `v`: (tokens, kv_heads, head_dim).
    pub fn store(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32], threads: &Threads) {
        let &mut Cache {
            kv_heads,
            head_dim,
            types,
            ..
        } = self;
        let (per_head, key_units) = (self.per_head(), self.keys());
        let (start, last) = (first / BLOCK, first + k.len() / (kv_heads * head_dim));
        let per_block = kv_heads * per_head;
        let at = layer * self.per_layer();
        let vectors: &mut [Vector] = bytemuck::cast_slice_mut(&mut self.memory);
        let blocks = &mut vectors[at + start * per_block..at + last.div_ceil(BLOCK) * per_block];
        for_each_chunk(threads, blocks, per_block, |block, heads| {
            let positions = (start + block) * BLOCK..(start + block + 1) * BLOCK;
            if first <= positions.start {
                heads.fill([0.0; LANES]); // what an earlier text left there, finite or not
            }
            for (kv_head, head) in heads.chunks_exact_mut(per_head).enumerate() {
                let (keys, values) = head.split_at_mut(key_units);
                for position in positions.start.max(first)..positions.end.min(last) {
                    let number = ((position - first) * kv_heads + kv_head) * head_dim;
                    let [k, v] = [k, v].map(|x| &x[number..][..head_dim]);
                    types.keys.write(Order::Keys, keys, position % BLOCK, k);
                    types.values.write(Order::Values, values, position % BLOCK, v);
                }
            }
        });
    }
}
