//! Causal attention over the cache, in f32, in one pass over keys and values.
//!
//! ```text
//! for each block of 64 positions:  for each 16 queries:
//!     scores  = q . keys                               q times log2(e) / sqrt(head_dim)
//!     grown   = max(max, ceil(largest score))
//!     weights = 2^(scores - grown)
//!     sum     = sum * 2^(max - grown) + weights
//!     out     = out * 2^(max - grown) + weights . values
//! out / sum
//! ```
//! `max` is a whole number, so that a factor is a power of two, and exact: what a weight is rounded to, where values are
//! bf16, is the same whatever was the largest score when it was made.
//!
//! Keys and values of a block stay in the first-level cache for all queries; one token, which waits for memory, reads them
//! where they are, while those of the next block are fetched. Blocks begin at multiples of 64, whatever tokens come
//! together, so a token gets the same bits alone as among others, as long as all values are finite.
//!
//! Products are added up as tile registers add those of bf16 ([`Product`]): of each 32 dimensions, or positions, the first
//! 16 in order, the others in order, then both to the sum. Vectors do the same with every type, so that all CPUs give the
//! same bits.

use aligned_vec::avec;

use crate::kernels::bf16::{Pairs, Product};
use crate::kernels::memory::LineVec;
use crate::kernels::{Bf16Tiles, Isa, Threads};
use crate::simd::{LANES, Lanes, Level, Work};

use super::cache::{Cache, Cells, Room};
use super::cells::{BLOCK, CHUNK, CacheType, CacheTypes, Vector};
use super::chunks::for_each_chunk;
use super::math::{exp2, in_order, to_bf16};
use super::numbers::Task;
use super::products::{AddProducts, Factors, QUERIES, Tile};

/// Scores or weights of a query and a block.
type Scores = [Vector; BLOCK / LANES];

/// What attention is computed with.
#[derive(Clone, Copy)]
pub struct Means<'t> {
    pub level: Level,
    /// Tile registers where these have them, for keys and values of bf16.
    pub isa: Isa,
    pub threads: &'t Threads,
}

/// `softmax(q k^T / sqrt(head_dim)) v` over all positions up to each token's own.
///
/// `q`: (tokens, heads, head_dim), the first token at position `first`; `width`: numbers of a token.  `out`: the same
/// shape.
pub fn attend(
    cache: &Cache,
    means: Means<'_>,
    (layer, first): (usize, usize),
    q: &[f32],
    width: usize,
    out: &mut [f32],
) {
    let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
    let group = width / kv_heads; // the queries of one key-value head, side by side
    let heads = group / head_dim;
    let CacheTypes { keys, values } = cache.types();
    let for_tiles = [keys, values] == [CacheType::Bf16; 2];
    let tiles = || for_tiles.then(|| means.isa.bf16_tiles()).flatten();
    if q.len() == width {
        for_each_chunk(means.threads, out, group, |kv_head, out| {
            let q = &q[kv_head * group..][..group];
            means.level.run(Head {
                cache,
                tiles: None,
                layer,
                kv_head,
                room: None,
                scratch: &mut Scratch::default(),
                groups: &mut Groups::of(heads, head_dim),
                query: |i| (&q[i * head_dim..][..head_dim], first + 1),
                out,
                place: |i| i * head_dim,
            });
        });
        return;
    }
    // Tokens of one piece of work: many, as each reads all keys and values, but few enough that all threads finish together.
    let pieces = 4 * means.threads.count();
    let together = (q.len() / width / pieces)
        .clamp(8, 32)
        .next_multiple_of(QUERIES.div_ceil(heads));
    for_each_chunk(means.threads, out, together * width, |chunk, out| {
        let (start, tokens) = (chunk * together, out.len() / width);
        let (mut tiles, mut room, mut scratch) = (tiles(), cache.room(), Scratch::default());
        let mut groups = Groups::of(tokens * heads, head_dim);
        for kv_head in 0..kv_heads {
            let place = |i: usize| i / heads * width + kv_head * group + i % heads * head_dim;
            means.level.run(Head {
                cache,
                tiles: tiles.as_mut(),
                layer,
                kv_head,
                room: Some(&mut room),
                scratch: &mut scratch,
                groups: &mut groups,
                query: |i| {
                    (
                        &q[start * width + place(i)..][..head_dim],
                        first + start + i / heads + 1,
                    )
                },
                out,
                place,
            });
        }
    });
}

/// Attention over one key-value head.
struct Head<'a, Q, P> {
    cache: &'a Cache,
    tiles: Option<&'a mut Bf16Tiles>,
    layer: usize,
    kv_head: usize,
    /// Where numbers become f32 for all queries; without it each is read straight from the cache.
    room: Option<&'a mut Room>,
    scratch: &'a mut Scratch,
    /// Room for all queries.
    groups: &'a mut Groups,
    /// Each query, (head_dim,), and the number of positions that it sees.
    query: Q,
    out: &'a mut [f32],
    /// Where in `out` the output of a query begins.
    place: P,
}

impl<'q, Q: Fn(usize) -> (&'q [f32], usize), P: Fn(usize) -> usize> Work for Head<'_, Q, P> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Groups { queries, found } = self.groups;
        let mut most = 0;
        for (i, (queries, found)) in queries.iter_mut().zip(&mut *found).enumerate() {
            queries.start(self.cache.types(), |j| (self.query)(i * QUERIES + j));
            found.start(queries.count);
            most = queries.seen.into_iter().fold(most, usize::max);
        }
        let blocks = self.cache.blocks(self.layer, self.kv_head, most.div_ceil(BLOCK));
        match self.tiles {
            Some(tiles) => in_tiles(lanes, tiles, queries, found, blocks, self.scratch),
            None => in_vectors(lanes, queries, found, blocks, self.room, self.scratch),
        }
        for (i, (queries, found)) in queries.iter().zip(found).enumerate() {
            for j in 0..queries.count {
                let out = &mut self.out[(self.place)(i * QUERIES + j)..];
                found.finish(j, &mut out[..queries.head_dim()]);
            }
        }
    }
}

/// Go over all blocks, in vectors.
#[inline(always)]
fn in_vectors<'c>(
    lanes: impl Lanes,
    queries: &[Queries],
    found: &mut [Found],
    blocks: impl Iterator<Item = Cells<'c>>,
    mut room: Option<&mut Room>,
    scratch: &mut Scratch,
) {
    let Scratch { scores, weights, .. } = scratch;
    for (i, cells) in blocks.enumerate() {
        let floats = match &mut room {
            None => None,
            Some(room) => Some([
                cells.keys.in_floats(lanes, &mut room.keys),
                cells.values.in_floats(lanes, &mut room.values),
            ]),
        };
        for (queries, found) in queries.iter().zip(&mut *found) {
            let Some(seen) = queries.seen_of(i * BLOCK) else {
                continue;
            };
            let most = seen.iter().fold(0, |most, seen| most.max(*seen));
            let of_keys = Factors {
                count: queries.count,
                numbers: &queries.q,
                width: queries.head_dim(),
                used: queries.head_dim(),
            };
            let wanted = &mut scores[..most.div_ceil(LANES)];
            wanted.fill([[0.0; LANES]; QUERIES]);
            let task = AddProducts {
                lanes,
                factors: of_keys,
                apart: cells.keys.tile(),
                sums: wanted,
            };
            match floats {
                Some([keys, _]) => task.run(keys),
                None => cells.keys.stream(task),
            }
            let factors = found.weigh(lanes, queries, &seen, scores, weights);
            found.fit(lanes, &factors);
            let of_values = Factors {
                count: queries.count,
                numbers: weights.as_flattened().as_flattened(),
                width: BLOCK,
                used: most,
            };
            let task = AddProducts {
                lanes,
                factors: of_values,
                apart: cells.values.tile(),
                sums: &mut found.out,
            };
            match floats {
                Some([_, values]) => task.run(values),
                None => cells.values.stream(task),
            }
        }
    }
}

/// The same in tiles. The values of some queries are multiplied behind the scores of the next ones: while tiles are at work,
/// vectors are at half their speed, so that both take turns.
#[inline(always)]
fn in_tiles<'c>(
    lanes: impl Lanes,
    tiles: &mut Bf16Tiles,
    queries: &[Queries],
    found: &mut [Found],
    blocks: impl Iterator<Item = Cells<'c>>,
    scratch: &mut Scratch,
) {
    let Scratch { scores, packed, .. } = scratch;
    let mut before = None;
    for (i, cells) in blocks.enumerate() {
        let (keys, values) = (cells.keys.pairs(), cells.values.pairs());
        for (group, queries) in queries.iter().enumerate() {
            let Some(seen) = queries.seen_of(i * BLOCK) else {
                continue;
            };
            tiles.multiply(Product::new(&queries.pairs, keys, scores));
            if let Some((group, values)) = before.replace((group, values)) {
                found[group].add_values(tiles, packed, values);
            }
            let found = &mut found[group];
            let factors = found.weigh(lanes, queries, &seen, scores, packed);
            found.fit(lanes, &factors);
        }
    }
    if let Some((group, values)) = before {
        found[group].add_values(tiles, packed, values);
    }
}

/// What is computed of 16 queries and a block.
#[derive(Default)]
#[repr(C, align(64))]
struct Scratch {
    scores: [Tile; BLOCK / LANES],
    weights: [Scores; QUERIES],
    packed: Packed,
}

/// Weights of bf16, 32 positions of all queries behind each other.
type Packed = [Pairs; BLOCK / CHUNK];

/// Where the weights of queries go.
trait Weights {
    /// Take those of query `i`.
    fn put<L: Lanes>(&mut self, lanes: L, i: usize, weights: [L::Numbers; BLOCK / LANES]);
}

impl Weights for [Scores; QUERIES] {
    #[inline(always)]
    fn put<L: Lanes>(&mut self, lanes: L, i: usize, weights: [L::Numbers; BLOCK / LANES]) {
        for (to, weights) in self[i].iter_mut().zip(weights) {
            *to = lanes.store(weights);
        }
    }
}

impl Weights for Packed {
    #[inline(always)]
    fn put<L: Lanes>(&mut self, lanes: L, i: usize, [a, b, c, d]: [L::Numbers; BLOCK / LANES]) {
        self[0][i] = lanes.pairs(a, b);
        self[1][i] = lanes.pairs(c, d);
    }
}

/// All queries, 16 together, and what they have seen so far.
struct Groups {
    queries: Vec<Queries>,
    found: Vec<Found>,
}

impl Groups {
    /// Room for so many queries.
    fn of(queries: usize, head_dim: usize) -> Self {
        let counts = (0..queries).step_by(QUERIES).map(|first| QUERIES.min(queries - first));
        Self {
            queries: counts.clone().map(|count| Queries::of(count, head_dim)).collect(),
            found: counts.map(|_| Found::of(head_dim)).collect(),
        }
    }
}

/// Up to 16 queries of a key-value head.
struct Queries {
    /// How many there are; the others are zeros.
    count: usize,
    types: CacheTypes,
    /// (QUERIES, head_dim), times log2(e) / sqrt(head_dim), and rounded as keys are.
    q: LineVec<f32>,
    /// The same for tiles: 32 dimensions of all queries behind each other.
    pairs: LineVec<Pairs>,
    /// Positions that each is to see.
    seen: [usize; QUERIES],
}

impl Queries {
    fn of(count: usize, head_dim: usize) -> Self {
        Self {
            count,
            types: CacheTypes::default(),
            q: avec!([64]| 0.0; QUERIES * head_dim),
            pairs: avec!([64]| [[0; CHUNK]; QUERIES]; head_dim.div_ceil(CHUNK)),
            seen: [0; QUERIES],
        }
    }

    fn head_dim(&self) -> usize {
        self.q.len() / QUERIES
    }

    /// Begin with these queries, each with the number of positions that it sees.
    #[inline(always)]
    fn start<'q>(&mut self, types: CacheTypes, query: impl Fn(usize) -> (&'q [f32], usize)) {
        let head_dim = self.head_dim();
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        self.types = types;
        for (i, q) in self.q.chunks_exact_mut(head_dim).enumerate().take(self.count) {
            let (query, sees) = query(i);
            for (q, query) in q.iter_mut().zip(query) {
                *q = query * scale;
            }
            if types.keys == CacheType::Bf16 {
                q.iter_mut().for_each(|q| *q = to_bf16(*q));
                for (pairs, q) in self.pairs.iter_mut().zip(q.chunks(CHUNK)) {
                    pairs[i] = to_pairs(q);
                }
            }
            self.seen[i] = sees;
        }
    }

    /// How many positions of the block that begins at `first` each sees, if any does.
    #[inline(always)]
    fn seen_of(&self, first: usize) -> Option<[usize; QUERIES]> {
        let seen = self.seen.map(|seen| seen.saturating_sub(first).min(BLOCK));
        (seen != [0; QUERIES]).then_some(seen)
    }
}

/// What queries have seen so far.
#[repr(C, align(64))]
struct Found {
    /// No less than the largest score, and whole.
    max: [f32; QUERIES],
    /// Sums of weights, in lanes.
    sums: [Vector; QUERIES],
    /// (head_dim / 16,) sums of weighted values.
    out: LineVec<Tile>,
}

impl Found {
    fn of(head_dim: usize) -> Self {
        Self {
            max: [0.0; QUERIES],
            sums: [[0.0; LANES]; QUERIES],
            out: avec!([64]| [[0.0; LANES]; QUERIES]; head_dim.div_ceil(LANES)),
        }
    }

    /// Nothing yet, for so many queries.
    #[inline(always)]
    fn start(&mut self, count: usize) {
        self.max[..count].fill(f32::NEG_INFINITY);
        self.sums.fill([0.0; LANES]);
        self.out.fill([[0.0; LANES]; QUERIES]);
    }

    /// Make weights of the first `seen` scores of each query, 0 for the others; the factors of what was weighed before.
    #[inline(always)]
    fn weigh(
        &mut self,
        lanes: impl Lanes,
        queries: &Queries,
        seen: &[usize; QUERIES],
        scores: &mut [Tile; BLOCK / LANES],
        weights: &mut impl Weights,
    ) -> [f32; QUERIES] {
        let mut largest = [f32::NEG_INFINITY; QUERIES];
        for i in 0..queries.count {
            if seen[i] < BLOCK {
                for (tile, scores) in scores.iter_mut().enumerate() {
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
            weights.put(lanes, i, row);
        }
        factors
    }

    /// Let `max` be as large as the next scores; the factors of what was weighed before.
    #[inline(always)]
    fn grow(&mut self, lanes: impl Lanes, largest: &[f32; QUERIES]) -> [f32; QUERIES] {
        let before = lanes.load(&self.max);
        for (max, largest) in self.max.iter_mut().zip(largest) {
            let largest = largest.ceil();
            *max = if largest > *max { largest } else { *max };
        }
        let [factors] = exp2(lanes, [lanes.minus(before, lanes.load(&self.max))]);
        lanes.store(factors)
    }

    /// Make the sums of weighted values fit the next weights.
    #[inline(always)]
    fn fit(&mut self, lanes: impl Lanes, factors: &[f32; QUERIES]) {
        for (i, &factor) in factors.iter().enumerate() {
            if factor != 1.0 {
                for out in self.out.iter_mut() {
                    out[i] = lanes.store(lanes.mul(lanes.load(&out[i]), lanes.splat(factor)));
                }
            }
        }
    }

    /// Add the values of a block by their weights.
    #[inline(always)]
    fn add_values(&mut self, tiles: &mut Bf16Tiles, weights: &Packed, values: &[Pairs]) {
        let values = &values[..weights.len() * self.out.len()];
        tiles.multiply(Product::adding(weights, values, &mut self.out));
    }

    /// The output of query `i`, (head_dim,).
    #[inline(always)]
    fn finish(&self, i: usize, out: &mut [f32]) {
        let factor = 1.0 / in_order(&self.sums[i]);
        for (out, sums) in out.chunks_mut(LANES).zip(self.out.iter()) {
            for (out, sum) in out.iter_mut().zip(sums[i]) {
                *out = sum * factor;
            }
        }
    }
}

/// The scores of query `i`.
#[inline(always)]
fn row<L: Lanes>(lanes: L, scores: &[Tile; BLOCK / LANES], i: usize) -> [L::Numbers; BLOCK / LANES] {
    let mut row = [lanes.splat(0.0); BLOCK / LANES];
    for tile in 0..row.len() {
        row[tile] = lanes.load(&scores[tile][i]);
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

/// Up to 32 numbers of bf16 as tiles take them: in pairs, one of the first half and one of the second.
#[inline(always)]
fn to_pairs(numbers: &[f32]) -> [u16; CHUNK] {
    let mut pairs = [[0; 2]; CHUNK / 2];
    for (i, number) in numbers.iter().enumerate() {
        pairs[i % (CHUNK / 2)][i / (CHUNK / 2)] = (number.to_bits() >> 16) as u16;
    }
    bytemuck::cast(pairs)
}

#[cfg(test)]
mod tests;
