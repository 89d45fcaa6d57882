//! The seam between what a matrix is read from and what its rows are encoded to: whatever gives [`TernaryRow`]s can be
//! packed.

use std::ops::Range;

use formats::block::BlockType;

use super::PackError;
use super::ternary::TernaryRow;

/// A matrix whose rows can be had in ternary form.
///
/// Threads take pieces of rows: a piece is [read](Self::read), then each of its rows is [made ternary](Self::row), each
/// thread in an [`Input`] of its own.
pub trait TernaryRows: Send + Sync {
    /// Bytes that a row takes in the input.
    fn row_bytes(&self) -> usize;

    /// The type whose blocks the rows are already, if they are: as this type they are copied, and lose nothing.
    fn stored_as(&self) -> Option<BlockType> {
        None
    }

    /// Read `rows` and all that they share scales with.
    ///
    /// # Errors
    /// A file that cannot be read; a number that is not finite.
    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError>;

    /// Make row `index`, one of those that were read, ternary; gives what its zeros are.
    ///
    /// # Errors
    /// A number that is not finite.
    fn row(&self, index: usize, input: &mut Input, row: &mut TernaryRow) -> Result<DeadZone, PackError>;
}

/// The zeros of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DeadZone {
    /// How many they are.
    pub weights: usize,
    /// What they add to the output all the same: the row's offline bias. 0 where training has none.
    pub bias: f64,
    /// How many of them were chosen among weights of equal magnitude.
    pub ties: usize,
}

/// Rows as they were read, and room to work on one of them. A source uses of it what it needs.
#[derive(Default)]
pub struct Input {
    /// The weights as they are in the file, by the index of a byte in the flattened matrix.
    pub weights: Window<u8>,
    /// The tensor beside them, likewise.
    pub beside: Window<u8>,
    /// The scales of groups that cross rows, by the index of the group.
    pub scales: Window<f32>,
    /// What a weight of such a group must reach to be active.
    pub deltas: Window<f32>,
    /// One row, or one group that crosses rows.
    pub latent: LatentRow,
}

/// Latent weights that are worked on.
#[derive(Default)]
pub struct LatentRow {
    /// (columns,)
    pub w: Vec<f32>,
    /// The row of the tensor beside the weights: (columns,), or one number.
    pub beside: Vec<f32>,
    /// Of each group. (groups,)
    pub sums: Vec<f64>,
    /// Of each run of equal scale, what a weight must reach to be active. (runs,)
    pub deltas: Vec<f32>,
}

/// A part of a sequence: its elements from `first` on.
#[derive(Default)]
pub struct Window<T> {
    /// Index in the sequence of the first element of `data`.
    pub first: usize,
    /// The elements.
    pub data: Vec<T>,
}

impl<T> Window<T> {
    /// The elements of `range`, as the sequence counts them.
    #[inline(always)]
    pub fn get(&self, range: Range<usize>) -> &[T] {
        &self.data[range.start - self.first..range.end - self.first]
    }
}
