//! Keys or values of a head in a block of the cache, as f32, f16, bf16 or Q8_0.
//!
//! The numbers of all types lie in the order of their [`Order`]. Those of bf16 are in pairs, of 32 vectors one of the first
//! half and one of the second in one, as tile registers take them, and dimensions are padded with zeros to a multiple of 32:
//! ```text
//! keys    [position / 16][dimension / 32][dimension % 16][position % 16][dimension / 16 % 2]
//! values  [dimension / 16][position / 32][position % 16][dimension % 16][position / 16 % 2]
//! ```
//! Those of Q8_0 are codes, and behind them are the scales, one for 32 dimensions of a position:
//! ```text
//! scales  [position / 16][dimension / 32][position % 16]
//! ```

use aligned_vec::avec;
use formats::block::q8_0;
use half::f16;

use crate::engine::EngineError;
use crate::engine::hyper::Dims;
use crate::kernels::memory::LineVec;
use crate::simd::LANES;

use super::math::to_bf16;

/// 16 numbers, or 64 bytes of a cache that holds others.
pub type Vector = [f32; LANES];

/// Positions of a block.
pub const BLOCK: usize = 64;
/// Products of bf16 that a tile instruction adds to a sum.
pub const CHUNK: usize = 32;

/// What keys or values are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// As they are computed.
    #[default]
    F32,
    /// Each rounded to half precision; infinite above 65504.
    F16,
    /// Each rounded to bfloat16, as are the queries and weights that they are multiplied with.
    Bf16,
    /// Codes of 8 bits, and an f16 scale for 32 dimensions of a head: ggml's Q8_0.
    Q8_0,
}

/// What keys are kept in, and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheTypes {
    /// What keys are kept in.
    pub keys: CacheType,
    /// What values are kept in.
    pub values: CacheType,
}

impl CacheTypes {
    /// # Errors
    /// A type that heads of so many numbers have no whole number of groups of.
    pub fn check(self, head_dim: usize) -> Result<(), EngineError> {
        let divides = |ty: &CacheType| head_dim.is_multiple_of(ty.group());
        match [self.keys, self.values].into_iter().find(|ty| !divides(ty)) {
            None => Ok(()),
            Some(ty) => Err(EngineError::CacheType {
                ty: ty.name(),
                group: ty.group(),
                head_dim,
            }),
        }
    }

    /// Bytes of a position in all layers.
    pub fn bytes(self, dims: &Dims) -> usize {
        const { assert!(size_of::<Vector>() == BLOCK) };
        dims.layers * dims.kv_heads * self.units(dims.head_dim)
    }

    /// 64 bytes each, for keys and values of a head in a block.
    pub fn units(self, head_dim: usize) -> usize {
        self.keys.units(Order::Keys, head_dim) + self.values.units(Order::Values, head_dim)
    }
}

/// How numbers lie in a block.
#[derive(Clone, Copy)]
pub enum Order {
    /// `[position / 16][dimension][position % 16]`
    Keys,
    /// `[dimension / 16][position][dimension % 16]`
    Values,
}

impl CacheType {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0];

    /// As in ggml, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Dimensions of a head that share a scale, and of which it has a whole number of groups.
    pub fn group(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 => q8_0::WEIGHTS,
        }
    }

    /// The dimensions of a head as they are kept.
    pub fn dimensions(self, head_dim: usize) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Q8_0 => head_dim,
            Self::Bf16 => head_dim.next_multiple_of(CHUNK),
        }
    }

    /// Vectors of numbers of a head.
    fn vectors(self, order: Order, head_dim: usize) -> usize {
        order.vectors(self.dimensions(head_dim))
    }

    /// 64 bytes each, for the numbers of a head.
    pub fn units(self, order: Order, head_dim: usize) -> usize {
        let vectors = self.vectors(order, head_dim);
        match self {
            Self::F32 => vectors,
            Self::F16 | Self::Bf16 => vectors / 2,
            Self::Q8_0 => vectors / 4 + vectors / 64,
        }
    }

    /// Where a head's numbers become f32: nowhere, where they are.
    pub fn room(self, order: Order, head_dim: usize) -> LineVec<Vector> {
        let vectors = match self {
            Self::F32 => 0,
            Self::F16 | Self::Bf16 | Self::Q8_0 => self.vectors(order, head_dim),
        };
        avec!([64]| [0.0; LANES]; vectors)
    }

    /// Write `x`, (head_dim,), the numbers of the position that is `i` after the first, to the `cells` of a head.
    pub fn write(self, order: Order, cells: &mut [Vector], i: usize, x: &[f32]) {
        match self {
            Self::F32 => order.write(cells, i, x.len(), x.iter().copied()),
            Self::F16 => {
                let halves = x.iter().map(|x| f16::from_f32(*x).to_bits());
                order.write(bytemuck::cast_slice_mut(cells), i, x.len(), halves);
            }
            Self::Bf16 => {
                let halves = x.iter().map(|x| (to_bf16(*x).to_bits() >> 16) as u16);
                order.write_pairs(bytemuck::cast_slice_mut(cells), i, self.dimensions(x.len()), halves);
            }
            Self::Q8_0 => {
                let (codes, scales) = cells.split_at_mut(order.vectors(x.len()) / 4);
                let blocks = || x.as_chunks().0.iter().map(q8_0::quantize);
                let of_block = |block: [u8; q8_0::BYTES]| block.into_iter().skip(2).map(|code| code as i8);
                order.write(bytemuck::cast_slice_mut(codes), i, x.len(), blocks().flat_map(of_block));
                let of_blocks = blocks().map(|block| q8_0::view(&block).scale().to_bits());
                let groups = x.len() / q8_0::WEIGHTS;
                Order::Keys.write(bytemuck::cast_slice_mut(scales), i, groups, of_blocks);
            }
        }
    }
}

impl Order {
    /// Of the numbers of a block.
    pub fn vectors(self, head_dim: usize) -> usize {
        match self {
            Self::Keys => BLOCK / LANES * head_dim,
            Self::Values => head_dim.div_ceil(LANES) * BLOCK,
        }
    }

    /// Write the numbers of a position: so many `dimensions`.
    fn write<T>(self, to: &mut [[T; LANES]], i: usize, dimensions: usize, numbers: impl Iterator<Item = T>) {
        for (dimension, number) in numbers.enumerate() {
            let (vector, lane) = self.place(i, dimension, dimensions);
            to[vector][lane] = number;
        }
    }

    /// The same, two vectors in one.
    fn write_pairs<T>(self, to: &mut [[[T; 2]; LANES]], i: usize, dimensions: usize, numbers: impl Iterator<Item = T>) {
        for (dimension, number) in numbers.enumerate() {
            let (vector, lane) = self.place(i, dimension, dimensions);
            let (chunk, half, i) = (vector / CHUNK, vector / (CHUNK / 2) % 2, vector % (CHUNK / 2));
            to[chunk * (CHUNK / 2) + i][lane][half] = number;
        }
    }

    /// The vector and the lane of a number of position `i`.
    fn place(self, i: usize, dimension: usize, dimensions: usize) -> (usize, usize) {
        match self {
            Self::Keys => (i / LANES * dimensions + dimension, i % LANES),
            Self::Values => (dimension / LANES * BLOCK + i, dimension % LANES),
        }
    }
}
