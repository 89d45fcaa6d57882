//! Scores and outputs of attention: sums of products of a block's vectors with numbers of each query.

#![allow(
    clippy::needless_range_loop,
    reason = "an index names the same vector, query or sum in several arrays of registers"
)]

use std::array;
use std::ops::Range;

use crate::simd::Lanes;

use super::cells::{CHUNK, Vector};
use super::numbers::{Numbers, Run, Task};

/// Queries that go over a block together: the rows of a tile.
pub const QUERIES: usize = 16;
/// Queries whose sums are in vector registers together.
const FEW: usize = 4;
/// 16 numbers of each query.
pub type Tile = [Vector; QUERIES];

/// Numbers of each query that vectors are multiplied with.
pub struct Factors<'f> {
    /// How many queries there are.
    pub count: usize,
    /// (QUERIES, width)
    pub numbers: &'f [f32],
    pub width: usize,
    /// How many of each there are.
    pub used: usize,
}

/// Add `sum_i factors_i vectors_i` of each query to each of `sums`: the scores of 16 positions, where the factors are a
/// query's dimensions, or 16 dimensions of the output, where they are the weights of positions.
pub struct AddProducts<'a, L> {
    pub lanes: L,
    pub factors: Factors<'a>,
    /// Those of each sum begin so many vectors behind those of the one before.
    pub apart: usize,
    pub sums: &'a mut [Tile],
}

impl<L: Lanes> Task for AddProducts<'_, L> {
    #[inline(always)]
    fn run(self, numbers: impl Numbers) {
        let Factors {
            count,
            numbers: factors,
            width,
            used,
        } = self.factors;
        for first in (0..count).step_by(FEW) {
            let factors = array::from_fn(|i| &factors[(first + i) * width..][..used]);
            let (several, rest) = match L::REGISTERS {
                32 => self.sums.as_chunks_mut::<4>(),
                _ => (&mut [][..], &mut *self.sums),
            };
            let done = 4 * several.len();
            for (i, sums) in several.iter_mut().enumerate() {
                let starts = array::from_fn(|t| (4 * i + t) * self.apart);
                add_tiles(self.lanes, factors, numbers, starts, first, sums);
            }
            for (i, sums) in rest.iter_mut().enumerate() {
                let sums = array::from_mut(sums);
                add_tiles(self.lanes, factors, numbers, [(done + i) * self.apart], first, sums);
            }
        }
    }
}

/// The same for `T` sums of the queries from `first` on, whose vectors begin at `starts`. All factors are equally many.
#[inline(always)]
fn add_tiles<L: Lanes, const T: usize>(
    lanes: L,
    factors: [&[f32]; FEW],
    numbers: impl Numbers,
    starts: [usize; T],
    first: usize,
    sums: &mut [Tile; T],
) {
    let count = factors[0].len();
    for start in (0..count).step_by(CHUNK) {
        let (middle, end) = (count.min(start + CHUNK / 2), count.min(start + CHUNK));
        let first_half = sum_products(lanes, factors, numbers, starts, start..middle);
        let second_half = sum_products(lanes, factors, numbers, starts, middle..end);
        for t in 0..T {
            for i in 0..FEW {
                let sum = lanes.plus(first_half[t][i], second_half[t][i]);
                let sums = &mut sums[t][first + i];
                *sums = lanes.store(lanes.plus(lanes.load(sums), sum));
            }
        }
    }
}

/// `sum_i factors_i vectors_i`
#[inline(always)]
fn sum_products<L: Lanes, N: Numbers, const T: usize>(
    lanes: L,
    mut factors: [&[f32]; FEW],
    numbers: N,
    starts: [usize; T],
    range: Range<usize>,
) -> [[L::Numbers; FEW]; T] {
    // No closures, which are not compiled for the level where they are not inlined.
    let count = range.len();
    for factors in &mut factors {
        *factors = &factors[range.start..][..count];
    }
    let mut runs = [numbers.run(lanes, starts[0] + range.start, count); T];
    for t in 1..T {
        runs[t] = numbers.run(lanes, starts[t] + range.start, count);
    }
    let mut sums = [[lanes.splat(0.0); FEW]; T];
    for i in 0..count {
        let mut vector = [lanes.splat(0.0); T];
        for t in 0..T {
            vector[t] = runs[t].vector(lanes, i);
        }
        for query in 0..FEW {
            let factor = lanes.splat(factors[query][i]);
            for t in 0..T {
                sums[t][query] = lanes.fma(factor, vector[t], sums[t][query]);
            }
        }
    }
    sums
}
