//! What can be wrong with a row of blocks.

use super::BlockType;
use half::f16;
use std::fmt;

/// What can be done with rows of some types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// [`BlockType::dequantize_row`]
    Dequantized,
    /// [`BlockType::quantize_row`]
    Quantized,
    /// [`BlockType::unpack_ternary_row`]
    ReadAsTernary,
    /// [`BlockType::unpack_four_level_row`]
    ReadAsFourLevels,
}

impl Verb {
    /// The types for which it can be done, asked of the codecs with an empty row.
    fn supported(self) -> String {
        let can = |ty: &&BlockType| match self {
            Verb::Dequantized => ty.dequantize_row(&[], &mut []).is_ok(),
            Verb::Quantized => ty.quantize_row(&[], &mut []).is_ok(),
            Verb::ReadAsTernary => ty.is_ternary_container(),
            Verb::ReadAsFourLevels => ty.unpack_four_level_row(&[], &mut [], &mut []).is_ok(),
        };
        let names: Vec<_> = BlockType::ALL.iter().filter(can).map(|ty| ty.name()).collect();
        names.join(", ")
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Dequantized => "dequantized",
            Verb::Quantized => "quantized",
            Verb::ReadAsTernary => "read as ternary",
            Verb::ReadAsFourLevels => "read as four levels",
        })
    }
}

/// A row that cannot be read or written as asked.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum BlockError {
    /// The codec for this type and direction does not exist here.
    #[error("{ty} rows cannot be {verb}, supported: {}", .verb.supported())]
    Unsupported {
        /// The type asked for.
        ty: BlockType,
        /// What was to be done with the row.
        verb: Verb,
    },
    /// The number of weights is not a multiple of the block.
    #[error("{columns} columns are not a whole number of {ty} blocks of {}", .ty.weights())]
    PartialBlock {
        /// The type of the row.
        ty: BlockType,
        /// Weights in the row.
        columns: usize,
    },
    /// A slice has the wrong length for the number of weights.
    #[error("a {ty} row of {columns} columns has {found} {unit}, expected {expected}")]
    Length {
        /// The type of the row.
        ty: BlockType,
        /// Weights in the row.
        columns: usize,
        /// What the slice counts: `bytes` or `scales`.
        unit: &'static str,
        /// Length of the slice.
        found: usize,
        /// Length that belongs to `columns`.
        expected: usize,
    },
    /// A weight that the type cannot hold: NaN, infinite, or beyond the type's range.
    #[error("weight {weight} is {value}, {ty} holds -{limit} to {limit}")]
    OutOfRange {
        /// The type of the row.
        ty: BlockType,
        /// Index of the weight in the row.
        weight: usize,
        /// The weight.
        value: f32,
        /// The largest magnitude that the type takes.
        limit: f32,
    },
    /// A block that is valid for its type, but not of the ternary form.
    #[error("{ty} row is not ternary: {source}")]
    NotTernary {
        /// The type of the row.
        ty: BlockType,
        /// Which weight, counted in the row, and why.
        source: NotTernary,
    },
    /// A block that is valid for its type, but does not hold four levels.
    #[error("{ty} row is not of four levels: weight {weight} is not -3, -1, 1 or 3 times its scale")]
    NotFourLevel {
        /// The type of the row.
        ty: BlockType,
        /// Index of the weight in the row.
        weight: usize,
    },
}

/// The first weight of a block or row that is not `scale * code` with a code of -1, 0 or +1.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("weight {weight} has {found}")]
pub struct NotTernary {
    /// Index of the weight.
    pub weight: usize,
    /// What is stored there.
    pub found: Found,
}

/// What a block holds in place of a ternary weight.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Found {
    /// A stored code other than `zero - 1`, `zero` and `zero + 1`.
    #[error("stored code {stored}, expected {}, {zero} or {}", .zero - 1, .zero + 1)]
    Code {
        /// The stored code.
        stored: i16,
        /// The stored code that means 0 in this type.
        zero: i16,
    },
    /// A Q2_K block whose two f16 factors differ, so that no stored code means 0.
    #[error("d {d} and dmin {dmin} in its block, expected equal bits")]
    Factors {
        /// Factor of the stored codes.
        d: f16,
        /// Factor of the minimum.
        dmin: f16,
    },
    /// A Q2_K sub-block whose two multipliers differ.
    #[error("scale multiplier {scale} and minimum multiplier {minimum} in its sub-block, expected equal")]
    Multipliers {
        /// Low nibble: multiplier of `d`.
        scale: u8,
        /// High nibble: multiplier of `dmin`.
        minimum: u8,
    },
}
