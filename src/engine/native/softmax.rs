//! The softmax of attention, made as blocks of positions come: what queries weigh, and what they have found so far.

use aligned_vec::avec;

use crate::kernels::Bf16Tiles;
use crate::kernels::bf16::{Pairs, Product};
use crate::kernels::memory::LineVec;
use crate::simd::{LANES, Lanes};

use super::cells::{BLOCK, CHUNK, CacheType, CacheTypes, Vector};
use super::math::{exp2, in_order, to_bf16};
use super::products::{QUERIES, Tile};

/// Scores of 16 queries and a block, and then their weights.
pub type Scores = [[Tile; 2]; BLOCK / CHUNK];

/// What is computed of 16 queries and a block.
#[derive(Default)]
#[repr(C, align(64))]
pub struct Scratch {
    pub scores: Scores,
    pub packed: Packed,
}

/// Weights of bf16, 32 positions of all queries behind each other.
pub type Packed = [Pairs; BLOCK / CHUNK];

/// Up to 16 queries of a key-value head.
pub struct Queries {
    /// How many there are; the others are zeros.
    pub count: usize,
    types: CacheTypes,
    pub head_dim: usize,
    /// 32 dimensions of all queries behind each other, times log2(e) / sqrt(head_dim), and rounded as keys are.
    pub q: LineVec<[Tile; 2]>,
    /// The same as tile registers take them, where these are used.
    pub pairs: LineVec<Pairs>,
    /// Positions that each is to see.
    seen: [usize; QUERIES],
}

impl Queries {
    /// So many queries, each with the number of positions that it sees. `for_tiles`: `pairs` too, for keys of bf16.
    #[inline(always)]
    pub fn new<'q>(
        types: CacheTypes,
        head_dim: usize,
        count: usize,
        for_tiles: bool,
        query: impl Fn(usize) -> (&'q [f32], usize),
    ) -> Self {
        let chunks = head_dim.div_ceil(CHUNK);
        let mut queries = Self {
            count,
            types,
            head_dim,
            q: avec!([64]| [[[0.0; LANES]; QUERIES]; 2]; chunks),
            pairs: avec!([64]| [[0; CHUNK]; QUERIES]; if for_tiles { chunks } else { 0 }),
            seen: [0; QUERIES],
        };
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        for i in 0..count {
            let (query, sees) = query(i);
            for (tile, query) in queries.q.as_flattened_mut().iter_mut().zip(query.chunks(LANES)) {
                tile[i][..query.len()].copy_from_slice(query);
                for q in &mut tile[i] {
                    *q *= scale;
                }
                if types.keys == CacheType::Bf16 {
                    tile[i].iter_mut().for_each(|q| *q = to_bf16(*q));
                }
            }
            for (pairs, [first, second]) in queries.pairs.iter_mut().zip(queries.q.iter()) {
                pairs[i] = to_pairs(&first[i], &second[i]);
            }
            queries.seen[i] = sees;
        }
        queries
    }

    /// How many positions of the block that begins at `first` each sees, if any does.
    #[inline(always)]
    pub fn seen_of(&self, first: usize) -> Option<[usize; QUERIES]> {
        let seen = self.seen.map(|seen| seen.saturating_sub(first).min(BLOCK));
        (seen != [0; QUERIES]).then_some(seen)
    }
}

/// What a group of 16 queries has found in the positions that it has seen so far.
pub struct Found<'f> {
    /// No less than the largest score of each, and whole.
    max: &'f mut Vector,
    /// Sums of weights, in lanes.
    sums: &'f mut Tile,
    /// (head_dim / 16, rounded up) sums of weighted values.
    pub out: &'f mut [Tile],
}

impl<'f> Found<'f> {
    /// Vectors that it takes.
    pub fn vectors(head_dim: usize) -> usize {
        const { assert!(QUERIES == LANES) };
        1 + QUERIES + QUERIES * head_dim.div_ceil(LANES)
    }

    /// Group number `group` in `memory`.
    #[inline(always)]
    pub fn of(memory: &'f mut [Vector], head_dim: usize, group: usize) -> Self {
        let size = Self::vectors(head_dim);
        let memory = &mut memory[group * size..][..size];
        let (max, others) = memory.split_first_mut().expect("a vector of maxima");
        let (tiles, _) = others.as_chunks_mut();
        let (sums, out) = tiles.split_first_mut().expect("a tile of sums");
        Self { max, sums, out }
    }

    /// Nothing yet.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.max.fill(f32::MIN); // finite: of what is not seen no difference is NaN
        self.sums.fill([0.0; LANES]);
        self.out.fill([[0.0; LANES]; QUERIES]);
    }

    /// Nothing yet of all groups that lie in `memory`.
    #[inline(always)]
    pub fn clear_all(memory: &'f mut [Vector], head_dim: usize) {
        for group in memory.chunks_exact_mut(Self::vectors(head_dim)) {
            Found::of(group, head_dim, 0).clear();
        }
    }

    /// Add what the first `count` queries of a group have found elsewhere.
    #[inline(always)]
    pub fn add(&mut self, lanes: impl Lanes, count: usize, other: &[Vector]) {
        let (max, others) = other.split_first().expect("a vector of maxima");
        let ours = self.grow(lanes, max);
        let [theirs] = exp2(lanes, [lanes.minus(lanes.load(max), lanes.load(self.max))]);
        let theirs = lanes.store(theirs);
        let tiles = [&mut *self.sums].into_iter().chain(&mut *self.out);
        for (tile, other) in tiles.zip(others.as_chunks::<QUERIES>().0) {
            for i in 0..count {
                let other = lanes.mul(lanes.load(&other[i]), lanes.splat(theirs[i]));
                tile[i] = lanes.store(lanes.fma(lanes.load(&tile[i]), lanes.splat(ours[i]), other));
            }
        }
    }

    /// Make weights of the first `seen` scores of each query, 0 for the others, in their place or `packed`; the factors of
    /// what was weighed before.
    #[inline(always)]
    pub fn weigh(
        &mut self,
        lanes: impl Lanes,
        queries: &Queries,
        seen: &[usize; QUERIES],
        scores: &mut Scores,
        mut packed: Option<&mut Packed>,
    ) -> [f32; QUERIES] {
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        for i in 0..queries.count {
            if seen[i] < BLOCK {
                for (tile, scores) in scores.as_flattened_mut().iter_mut().enumerate() {
                    scores[i][seen[i].saturating_sub(tile * LANES).min(LANES)..].fill(f32::NEG_INFINITY);
                }
            }
            let [a, b, c, d] = row(lanes, scores, i);
            largest[i] = lanes.largest(lanes.larger(lanes.larger(a, b), lanes.larger(c, d)));
        }
        let factors = self.grow(lanes, &largest);
        for i in 0..queries.count {
            let max = lanes.splat(self.max[i]);
            let mut row = row(lanes, scores, i);
            for scores in &mut row {
                *scores = lanes.minus(*scores, max);
            }
            row = exp2(lanes, row);
            if queries.types.values == CacheType::Bf16 {
                for weights in &mut row {
                    *weights = lanes.to_bf16(*weights);
                }
            }
            if seen[i] < BLOCK {
                row = first(lanes, row, seen[i]);
            }
            let [a, b, c, d] = row;
            let sum = lanes.plus(lanes.plus(a, b), lanes.plus(c, d));
            let before = lanes.load(&self.sums[i]);
            self.sums[i] = lanes.store(lanes.fma(before, lanes.splat(factors[i]), sum));
            match &mut packed {
                Some([first, second]) => {
                    first[i] = lanes.pairs(a, b);
                    second[i] = lanes.pairs(c, d);
                }
                None => {
                    for (tile, weights) in scores.as_flattened_mut().iter_mut().zip(row) {
                        tile[i] = lanes.store(weights);
                    }
                }
            }
        }
        factors
    }

    /// Let `max` be as large as the next scores; the factors of what was weighed before.
    #[inline(always)]
    fn grow(&mut self, lanes: impl Lanes, largest: &[f32; QUERIES]) -> [f32; QUERIES] {
        let before = lanes.load(self.max);
        for i in 0..QUERIES {
            let largest = largest[i].ceil();
            self.max[i] = if largest > self.max[i] { largest } else { self.max[i] };
        }
        let [factors] = exp2(lanes, [lanes.minus(before, lanes.load(self.max))]);
        lanes.store(factors)
    }

    /// Make the sums of weighted values fit the next weights. A subnormal sum becomes 0, as tile registers take it.
    #[inline(always)]
    pub fn fit(&mut self, lanes: impl Lanes, factors: &[f32; QUERIES]) {
        for (i, &factor) in factors.iter().enumerate() {
            if factor != 1.0 {
                for out in self.out.iter_mut() {
                    let mut sums = lanes.store(lanes.mul(lanes.load(&out[i]), lanes.splat(factor)));
                    for sum in &mut sums {
                        *sum = if sum.abs() < f32::MIN_POSITIVE { 0.0 } else { *sum };
                    }
                    out[i] = sums;
                }
            }
        }
    }

    /// Add the values of a block by their weights.
    #[inline(always)]
    pub fn add_values(&mut self, tiles: &mut Bf16Tiles, weights: &Packed, values: &[Pairs]) {
        let values = &values[..weights.len() * self.out.len()];
        tiles.multiply(Product::adding(weights, values, self.out));
    }

    /// The output of query `i`, (head_dim,). No zero is negative: its sign would tell what it was added up from.
    #[inline(always)]
    pub fn finish(&self, i: usize, out: &mut [f32]) {
        let factor = 1.0 / in_order(&self.sums[i]);
        for (out, sums) in out.chunks_mut(LANES).zip(self.out.iter()) {
            for (out, sum) in out.iter_mut().zip(sums[i]) {
                *out = sum * factor + 0.0;
            }
        }
    }
}

/// The scores of query `i`.
#[inline(always)]
fn row<L: Lanes>(lanes: L, scores: &Scores, i: usize) -> [L::Numbers; BLOCK / LANES] {
    let mut row = [lanes.splat(0.0); BLOCK / LANES];
    for (row, tile) in row.iter_mut().zip(scores.as_flattened()) {
        *row = lanes.load(&tile[i]);
    }
    row
}

/// The first `count` weights, and zeros.
#[inline(always)]
fn first<L: Lanes>(lanes: L, mut row: [L::Numbers; BLOCK / LANES], count: usize) -> [L::Numbers; BLOCK / LANES] {
    for (tile, weights) in row.iter_mut().enumerate() {
        let mut some = lanes.store(*weights);
        some[count.saturating_sub(tile * LANES).min(LANES)..].fill(0.0);
        *weights = lanes.load(&some);
    }
    row
}

/// 32 numbers of bf16 as tiles take them: in pairs, one of the first half and one of the second.
#[inline(always)]
fn to_pairs(first: &Vector, second: &Vector) -> [u16; CHUNK] {
    let mut pairs = [[0; 2]; CHUNK / 2];
    for (pair, numbers) in pairs.iter_mut().zip(first.iter().zip(second)) {
        *pair = [numbers.0, numbers.1].map(|number| (number.to_bits() >> 16) as u16);
    }
    bytemuck::cast(pairs)
}
