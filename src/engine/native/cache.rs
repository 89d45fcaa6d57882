//! The cache of keys and values.
//!
//! For each layer, 64 positions and all heads behind the 64 before, so that memory is touched as it fills; of each head:
//! ```text
//! keys    [position / 16][dimension][position % 16]       16 scores at a time, without a sum across lanes
//! values  [dimension / 16][position][dimension % 16]      16 outputs at a time; dimensions padded with zeros
//! ```

use crate::kernels::Threads;
use crate::simd::LANES;

use super::chunks::for_each_chunk;

pub type Vector = [f32; LANES];

/// Positions of a block.
pub const BLOCK: usize = 64;

/// Keys and values of every position so far.
pub struct Cache {
    /// (layers, blocks, kv_heads) of keys, then values.
    memory: Vec<Vector>,
    kv_heads: usize,
    head_dim: usize,
    /// Of a layer.
    blocks: usize,
}

impl Cache {
    /// Room for `context` positions in each of so many layers. Memory is touched only as it fills.
    pub fn new(layers: usize, kv_heads: usize, head_dim: usize, context: usize) -> Self {
        let mut cache = Cache {
            memory: Vec::new(),
            kv_heads,
            head_dim,
            blocks: context.div_ceil(BLOCK),
        };
        cache.memory = vec![[0.0; LANES]; layers * cache.per_layer()];
        cache
    }

    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Vectors of the keys of a head in a block.
    fn keys(&self) -> usize {
        BLOCK / LANES * self.head_dim
    }

    /// Vectors of a head in a block.
    fn per_head(&self) -> usize {
        self.keys() + self.head_dim.div_ceil(LANES) * BLOCK
    }

    fn per_layer(&self) -> usize {
        self.blocks * self.kv_heads * self.per_head()
    }

    /// Keys and values of a head in block after block.
    pub fn blocks(&self, layer: usize, kv_head: usize) -> impl Iterator<Item = (&[Vector], &[Vector])> {
        let heads = self.memory[layer * self.per_layer()..][..self.per_layer()].chunks_exact(self.per_head());
        heads
            .skip(kv_head)
            .step_by(self.kv_heads)
            .map(|head| head.split_at(self.keys()))
    }

    /// Store keys and values of the positions from `first` on in `layer`. `k`, `v`: (tokens, kv_heads, head_dim).
    pub fn store(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32], threads: &Threads) {
        let &mut Cache { kv_heads, head_dim, .. } = self;
        let (per_head, key_vectors) = (self.per_head(), self.keys());
        let (start, last) = (first / BLOCK, first + k.len() / (kv_heads * head_dim));
        let per_block = kv_heads * per_head;
        let at = layer * self.per_layer();
        let blocks = &mut self.memory[at + start * per_block..at + last.div_ceil(BLOCK) * per_block];
        for_each_chunk(threads, blocks, per_block, |block, heads| {
            let positions = (start + block) * BLOCK..(start + block + 1) * BLOCK;
            for (kv_head, head) in heads.chunks_exact_mut(per_head).enumerate() {
                let (keys, values) = head.split_at_mut(key_vectors);
                for position in positions.start.max(first)..positions.end.min(last) {
                    let i = position % BLOCK;
                    let number = ((position - first) * kv_heads + kv_head) * head_dim;
                    let tile = &mut keys[i / LANES * head_dim..][..head_dim];
                    for (dimension, k) in tile.iter_mut().zip(&k[number..]) {
                        dimension[i % LANES] = *k;
                    }
                    for (piece, v) in v[number..][..head_dim].chunks(LANES).enumerate() {
                        values[piece * BLOCK + i][..v.len()].copy_from_slice(v);
                    }
                }
            }
        });
    }
}
