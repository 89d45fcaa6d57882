//! F32, F16 and BF16 matrices times f32 activations.
//!
//! 16 rows are interleaved column by column, so that a vector lane is a row, no sum is taken across lanes, and one
//! token reads one stream:
//! ```text
//! weights [row / 16][column][row % 16]
//! for each column c:  chains[c % 2] = fma(weight, activation, chains[c % 2])
//! result = chains[0] + chains[1]
//! ```
//! Two chains let one token keep up with memory, and leave room for several tokens in the registers. The order is part
//! of the contract, so every kernel gives the same bits.

use super::contract::MR;
use super::memory::Region;
use formats::block::BlockType;
use half::{bf16, f16};
use rayon::prelude::*;

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
        bytes_of(self as usize)
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

/// The types as numbers, where the compiler is to know them.
pub(super) const F32: usize = FloatType::F32 as usize;
pub(super) const F16: usize = FloatType::F16 as usize;
pub(super) const BF16: usize = FloatType::Bf16 as usize;

/// Bytes of a weight of one of these.
pub(super) const fn bytes_of(ty: usize) -> usize {
    if ty == F32 { 4 } else { 2 }
}

/// A matrix of floats, 16 rows interleaved.
pub(super) struct Floats {
    pub ty: FloatType,
    pub rows: usize,
    pub columns: usize,
    pub region: Region,
}

impl Floats {
    /// Lay out `rows` rows as they are in the file.
    pub fn pack(ty: FloatType, rows: usize, columns: usize, bytes: &[u8]) -> std::io::Result<Floats> {
        let length = columns * MR * ty.bytes();
        let mut region = Region::zeroed(rows.div_ceil(MR) * length)?;
        let groups = region
            .par_chunks_mut(length.max(1))
            .zip(bytes.par_chunks(length.max(1)));
        groups.for_each(|(to, rows)| match ty {
            FloatType::F32 => {
                let to = to.as_chunks_mut::<4>().0;
                interleave(rows.as_chunks::<4>().0, columns, MR, to);
            }
            FloatType::F16 | FloatType::Bf16 => {
                let to = to.as_chunks_mut::<2>().0;
                interleave(rows.as_chunks::<2>().0, columns, MR, to);
            }
        });
        Ok(Floats {
            ty,
            rows,
            columns,
            region,
        })
    }

    /// The weights of row group `index`.
    pub fn group(&self, index: usize) -> &[u8] {
        let length = self.columns * MR * self.ty.bytes();
        &self.region[index * length..][..length]
    }
}

/// `to[column * width + row] = rows[row * columns + column]`, where `to` has room for `width` rows.
pub(super) fn interleave<T: Copy>(rows: &[T], columns: usize, width: usize, to: &mut [T]) {
    /// Columns at a time: what they fill stays in the first-level cache until every row has been there.
    const RUN: usize = 64;
    for first in (0..columns).step_by(RUN) {
        let run = first..columns.min(first + RUN);
        for (lane, row) in rows.chunks_exact(columns).enumerate() {
            let to = to[first * width + lane..].iter_mut().step_by(width);
            for (to, from) in to.zip(&row[run.clone()]) {
                *to = *from;
            }
        }
    }
}
