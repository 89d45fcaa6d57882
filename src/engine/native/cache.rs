//! The cache of keys and values.
//!
//! For each layer, 64 positions and all heads behind the 64 before, so that memory is touched as it fills; of each head:
//! ```text
//! keys    [position / 16][dimension][position % 16]       16 scores at a time, without a sum across lanes
//! values  [dimension / 16][position][dimension % 16]      16 outputs at a time; dimensions padded with zeros
//! ```

use crate::engine::hyper::Dims;
use crate::kernels::Threads;
use crate::kernels::bf16::Pairs;
use crate::kernels::memory::LineVec;
use crate::simd::{LANES, Lanes};

use super::cells::{BLOCK, CacheTypes, Order, Vector};
use super::chunks::for_each_chunk;

/// Keys and values of every position so far.
pub struct Cache {
    /// (layers, blocks, kv_heads) of keys, then values, behind `start` numbers that are not used.
    memory: Vec<f32>,
    /// The first number that begins a cache line: reading a vector that lies in two of them takes twice as long.
    start: usize,
    types: CacheTypes,
    kv_heads: usize,
    head_dim: usize,
    /// Of a layer.
    blocks: usize,
}

/// Keys and values of a head in a block.
pub struct Cells<'c> {
    types: CacheTypes,
    head_dim: usize,
    keys: &'c [Vector],
    values: &'c [Vector],
}

/// Where keys and values of a head in a block become f32, if they are not.
pub struct Room {
    keys: LineVec<Vector>,
    values: LineVec<Vector>,
}

impl Cache {
    /// Room for `context` positions in each of so many layers of a model, whose heads the types divide
    /// ([`CacheTypes::check`]). Memory is touched only as it fills.
    pub fn new(types: CacheTypes, dims: &Dims, layers: usize, context: usize) -> Self {
        let mut cache = Cache {
            memory: Vec::new(),
            start: 0,
            types,
            kv_heads: dims.kv_heads,
            head_dim: dims.head_dim,
            blocks: context.div_ceil(BLOCK),
        };
        let numbers = layers * cache.per_layer() * LANES;
        // As zeros of the system, which takes memory only when it is touched.
        cache.memory = vec![0.0; numbers + LANES];
        cache.start = cache.memory.as_ptr().align_offset(size_of::<Vector>()).min(LANES);
        cache.memory.truncate(cache.start + numbers);
        cache
    }

    fn vectors(&self) -> &[Vector] {
        self.memory[self.start..].as_chunks().0
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
        self.keys() + self.types.values.units(Order::Values, self.head_dim)
    }

    fn per_layer(&self) -> usize {
        self.blocks * self.kv_heads * self.per_head()
    }

    /// Keys and values of a head in block after block.
    pub fn blocks(&self, layer: usize, kv_head: usize) -> impl Iterator<Item = Cells<'_>> {
        let heads = self.vectors()[layer * self.per_layer()..][..self.per_layer()].chunks_exact(self.per_head());
        heads.skip(kv_head).step_by(self.kv_heads).map(|head| {
            let (keys, values) = head.split_at(self.keys());
            Cells {
                types: self.types,
                head_dim: self.head_dim,
                keys,
                values,
            }
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
        let vectors = self.memory[self.start..].as_chunks_mut().0;
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

impl<'c> Cells<'c> {
    /// Keys and values of bf16, as they are kept.
    pub fn pairs(&self) -> (&'c [Pairs], &'c [Pairs]) {
        (bytemuck::cast_slice(self.keys), bytemuck::cast_slice(self.values))
    }

    /// Keys and values, in f32.
    #[inline(always)]
    pub fn read<'r>(&'r self, lanes: impl Lanes, room: &'r mut Room) -> (&'r [Vector], &'r [Vector]) {
        let CacheTypes { keys, values } = self.types;
        (
            keys.read(lanes, Order::Keys, self.keys, self.head_dim, &mut room.keys),
            values.read(lanes, Order::Values, self.values, self.head_dim, &mut room.values),
        )
    }
}
