//! Scores and outputs of attention: sums of products of a block's vectors with numbers of each query.

#![allow(
    clippy::needless_range_loop,
    reason = "an index names the same vector, query or sum in several arrays of registers"
)]

use std::array;
use std::hint::black_box;
use std::ops::Range;

use crate::simd::{LANES, Lanes};

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
    /// 16 numbers of each query, and then the next 16.
    pub tiles: &'f [[Tile; 2]],
    /// How many of each query count.
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
        let (several, rest) = match L::REGISTERS {
            32 => self.sums.as_chunks_mut::<4>(),
            _ => (&mut [][..], self.sums),
        };
        for few in 0..self.factors.count.div_ceil(FEW) {
            let done = 4 * several.len();
            for (i, sums) in several.iter_mut().enumerate() {
                let starts = array::from_fn(|t| (4 * i + t) * self.apart);
                add_tiles(self.lanes, &self.factors, few, numbers, starts, sums);
            }
            for (i, sums) in rest.iter_mut().enumerate() {
                let sums = array::from_mut(sums);
                add_tiles(self.lanes, &self.factors, few, numbers, [(done + i) * self.apart], sums);
            }
        }
    }
}

/// The same for `T` sums, whose vectors begin at `starts`, of the `few`-th four queries.
#[inline(always)]
fn add_tiles<L: Lanes, const T: usize>(
    lanes: L,
    factors: &Factors<'_>,
    few: usize,
    numbers: impl Numbers,
    starts: [usize; T],
    sums: &mut [Tile; T],
) {
    let used = factors.used;
    for (i, [first, second]) in factors.tiles.iter().take(used.div_ceil(CHUNK)).enumerate() {
        let start = i * CHUNK;
        let (middle, end) = (used.min(start + LANES), used.min(start + CHUNK));
        let [first, second] = [first, second].map(|tile| &tile.as_chunks().0[few]);
        let mut first_half = sum_products(lanes, first, numbers, starts, start..middle);
        black_box(&mut first_half); // stays in memory: registers do not hold the sums of both halves
        let second_half = sum_products(lanes, second, numbers, starts, middle..end);
        for t in 0..T {
            let sums: &mut [_; FEW] = &mut sums[t].as_chunks_mut().0[few];
            for i in 0..FEW {
                let sum = lanes.plus(lanes.load(&first_half[t][i]), lanes.load(&second_half[t][i]));
                sums[i] = lanes.store(lanes.plus(lanes.load(&sums[i]), sum));
            }
        }
    }
}

/// `sum_i factors_i vectors_i`, of up to 16 vectors, those in `range` from each of `starts` on.
#[inline(always)]
fn sum_products<L: Lanes, N: Numbers, const T: usize>(
    lanes: L,
    factors: &[Vector; FEW],
    numbers: N,
    starts: [usize; T],
    range: Range<usize>,
) -> [[Vector; FEW]; T] {
    // No closures, which are not compiled for the level where they are not inlined.
    let count = range.len();
    let mut runs = [numbers.run(lanes, starts[0] + range.start, count); T];
    for t in 1..T {
        runs[t] = numbers.run(lanes, starts[t] + range.start, count);
    }
    let mut sums = [[lanes.splat(0.0); FEW]; T];
    // No more than 16, which the compiler cannot tell.
    for i in 0..count.min(LANES) {
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
    let mut out = [[[0.0; LANES]; FEW]; T];
    for t in 0..T {
        for query in 0..FEW {
            out[t][query] = lanes.store(sums[t][query]);
        }
    }
    out
}
