//! F32, F16 and BF16 matrices times f32 activations.
//!
//! Four rows are multiplied at a time, by one token or by four, and lie so in memory that they are one stream:
//! 16 weights of each row, then the next 16 of each. (Four rows read side by side come from memory at half the speed.)
//! ```text
//! for each 16 columns:  for each row:  widen the weights to f32;  for each token:  lanes = fma(weights, activations, lanes)
//! result = lanes added up by halves: i and i + 8, then i and i + 4, i and i + 2, i and i + 1
//! ```
//! 16 lanes are both the speed and better rounding than one long sum. The order is part of the contract, so every
//! kernel gives the same bits. Rows and activations end in zeros up to a multiple of 16.

use super::memory::Region;
use formats::block::BlockType;
use half::{bf16, f16};
use rayon::prelude::*;

/// Rows in a tile.
pub(super) const ROWS: usize = 4;
/// Tokens in a tile; one token is done alone.
pub(super) const TOKENS: usize = 4;
/// Sums that run side by side.
pub(super) const LANES: usize = 16;

/// `[row][token]`
pub(super) type Tile = [[f32; TOKENS]; ROWS];

/// The types of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    pub fn of(ty: BlockType) -> Option<FloatType> {
        match ty {
            BlockType::F32 => Some(FloatType::F32),
            BlockType::F16 => Some(FloatType::F16),
            BlockType::BF16 => Some(FloatType::Bf16),
            _ => None,
        }
    }

    /// Bytes of a weight.
    pub fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }

    /// Weight `index` of a run of weights.
    pub fn weight(self, weights: &[u8], index: usize) -> f32 {
        match self {
            FloatType::F32 => f32::from_le_bytes(weights.as_chunks().0[index]),
            FloatType::F16 => f16::from_le_bytes(weights.as_chunks().0[index]).to_f32(),
            FloatType::Bf16 => bf16::from_le_bytes(weights.as_chunks().0[index]).to_f32(),
        }
    }
}

/// 16 activations, or as many as are left and zeros.
pub(super) type Piece = [f32; LANES];

/// A matrix of floats, four rows in one stream.
pub(super) struct Floats {
    pub ty: FloatType,
    pub rows: usize,
    pub columns: usize,
    pub region: Region,
}

impl Floats {
    /// Lay out `rows` rows as they are in the file.
    pub fn pack(
        ty: FloatType,
        rows: usize,
        columns: usize,
        bytes: &[u8],
    ) -> std::io::Result<Floats> {
        let length = group_bytes(ty, columns);
        let mut region = Region::zeroed(rows.div_ceil(ROWS) * length)?;
        let (row_bytes, piece) = (columns * ty.bytes(), LANES * ty.bytes());
        let groups = region
            .par_chunks_mut(length.max(1))
            .zip(bytes.par_chunks((ROWS * row_bytes).max(1)));
        groups.for_each(|(to, rows)| {
            for (row, from) in rows.chunks_exact(row_bytes).enumerate() {
                for (to, from) in to.chunks_exact_mut(ROWS * piece).zip(from.chunks(piece)) {
                    to[row * piece..][..from.len()].copy_from_slice(from);
                }
            }
        });
        Ok(Floats {
            ty,
            rows,
            columns,
            region,
        })
    }

    /// Four rows: for each piece of 16 columns the weights of one row, then those of the next.
    pub fn group(&self, index: usize) -> &[u8] {
        let length = group_bytes(self.ty, self.columns);
        &self.region[index * length..][..length]
    }
}

fn group_bytes(ty: FloatType, columns: usize) -> usize {
    columns.div_ceil(LANES) * ROWS * LANES * ty.bytes()
}

/// Adds the lanes up by halves.
#[inline]
pub(super) fn sum_of_lanes(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
