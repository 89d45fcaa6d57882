//! F32, F16 and BF16 matrices times f32 activations.
//!
//! Rows stay as they are in the file; four are multiplied at a time, by one token or by four:
//! ```text
//! for each 16 columns:  widen the weights to f32;  for each token:  lanes = fma(weights, activations, lanes)
//! result = lanes added up by halves: i and i + 8, then i and i + 4, i and i + 2, i and i + 1
//! ```
//! 16 lanes are both the speed and better rounding than one long sum. The order is part of the contract, so every
//! kernel gives the same bits.

use super::memory::Region;
use formats::block::BlockType;
use half::{bf16, f16};

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

    /// The weight in `column` of a row.
    pub fn weight(self, row: &[u8], column: usize) -> f32 {
        match self {
            FloatType::F32 => f32::from_le_bytes(row.as_chunks().0[column]),
            FloatType::F16 => f16::from_le_bytes(row.as_chunks().0[column]).to_f32(),
            FloatType::Bf16 => bf16::from_le_bytes(row.as_chunks().0[column]).to_f32(),
        }
    }
}

/// A matrix of floats, rows as in the file.
pub(super) struct Floats {
    pub ty: FloatType,
    pub rows: usize,
    pub columns: usize,
    pub region: Region,
}

impl Floats {
    /// The four rows from `first` on; the last row stands in for those behind the end.
    pub fn rows(&self, first: usize) -> [&[u8]; ROWS] {
        let length = self.columns * self.ty.bytes();
        std::array::from_fn(|i| &self.region[(first + i).min(self.rows - 1) * length..][..length])
    }
}

/// Adds the lanes up by halves.
pub(super) fn sum_of_lanes(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}
