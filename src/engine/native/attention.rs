//! Causal attention over the cache, in f32, in one pass over keys and values.
//!
//! ```text
//! for each block of 64 positions:  for each 4 queries:
//!     scores  = q . keys
//!     grown   = max(max, scores)                       the largest score so far
//!     weights = exp(scores - grown)
//!     sum     = sum * exp(max - grown) + weights
//!     out     = out * exp(max - grown) + weights . values
//! out / sum
//! ```
//! Keys and values of a block stay in the first-level cache for all queries. Blocks begin at multiples of 64, whatever
//! tokens come together, so a token gets the same bits alone as among others, as long as all values are finite.

use std::array;

use aligned_vec::avec;

use crate::kernels::Threads;
use crate::kernels::memory::LineVec;
use crate::simd::{LANES, Lanes, Level, Work};

use super::cache::{Cache, Room};
use super::cells::{BLOCK, Vector};
use super::chunks::for_each_chunk;
use super::math::{exp, in_order};

/// Queries whose sums are in registers together.
const QUERIES: usize = 4;
/// Scores or weights of a query and a block.
type Scores = [Vector; BLOCK / LANES];

/// `softmax(q k^T / sqrt(head_dim)) v` over all positions up to each token's own.
///
/// `q`: (tokens, heads, head_dim), the first token at position `first`; `width`: numbers of a token.  `out`: the same
/// shape.
pub fn attend(
    cache: &Cache,
    level: Level,
    (layer, first): (usize, usize),
    q: &[f32],
    width: usize,
    out: &mut [f32],
    threads: &Threads,
) {
    let (kv_heads, head_dim) = (cache.kv_heads(), cache.head_dim());
    let group = width / kv_heads; // the queries of one key-value head, side by side
    let heads = group / head_dim;
    if q.len() == width {
        for_each_chunk(threads, out, group, |kv_head, out| {
            let q = &q[kv_head * group..][..group];
            level.run(Head {
                cache,
                layer,
                kv_head,
                room: &mut cache.room(),
                groups: &mut Group::of(heads, head_dim),
                query: |i| (&q[i * head_dim..][..head_dim], first + 1),
                out,
                place: |i| i * head_dim,
            });
        });
        return;
    }
    /// Tokens of one piece of work: enough queries for a block, few enough that all threads finish together.
    const TOKENS: usize = 8;
    for_each_chunk(threads, out, TOKENS * width, |chunk, out| {
        let (start, tokens) = (chunk * TOKENS, out.len() / width);
        let (mut room, mut groups) = (cache.room(), Group::of(tokens * heads, head_dim));
        for kv_head in 0..kv_heads {
            let place = |i: usize| i / heads * width + kv_head * group + i % heads * head_dim;
            level.run(Head {
                cache,
                layer,
                kv_head,
                room: &mut room,
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
    layer: usize,
    kv_head: usize,
    room: &'a mut Room,
    /// Room for all queries.
    groups: &'a mut [Group],
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
        let mut most = 0;
        for (i, group) in self.groups.iter_mut().enumerate() {
            group.start(array::from_fn(|j| (self.query)(i * QUERIES + j.min(group.count - 1))));
            most = group.seen.into_iter().fold(most, usize::max);
        }
        let blocks = self.cache.blocks(self.layer, self.kv_head).take(most.div_ceil(BLOCK));
        for (block, cells) in blocks.enumerate() {
            let (keys, values) = cells.read(lanes, self.room);
            for group in &mut *self.groups {
                group.add_block(lanes, block * BLOCK, keys, values);
            }
        }
        for (i, group) in self.groups.iter().enumerate() {
            for j in 0..group.count {
                group.finish(j, &mut self.out[(self.place)(i * QUERIES + j)..]);
            }
        }
    }
}

/// Some queries, and what they have seen so far.
struct Group {
    /// How many there are. The last one stands in for those behind it.
    count: usize,
    /// (head_dim,) each, divided by the root of head_dim.
    q: [Vec<f32>; QUERIES],
    /// Positions that each is to see.
    seen: [usize; QUERIES],
    max: [f32; QUERIES],
    /// Sums of weights, in lanes.
    sums: [Vector; QUERIES],
    /// (head_dim / 16,) sums of weighted values.
    out: LineVec<[Vector; QUERIES]>,
}

impl Group {
    /// Room for so many queries.
    fn of(queries: usize, head_dim: usize) -> Vec<Self> {
        let group = |first: usize| Group {
            count: QUERIES.min(queries - first),
            q: array::from_fn(|_| vec![0.0; head_dim]),
            seen: [0; QUERIES],
            max: [0.0; QUERIES],
            sums: [[0.0; LANES]; QUERIES],
            out: avec!([64]| [[0.0; LANES]; QUERIES]; head_dim.div_ceil(LANES)),
        };
        (0..queries).step_by(QUERIES).map(group).collect()
    }

    /// Begin with these queries, each with the number of positions that it sees.
    #[inline(always)]
    fn start(&mut self, queries: [(&[f32], usize); QUERIES]) {
        for ((q, seen), (query, sees)) in self.q.iter_mut().zip(&mut self.seen).zip(queries) {
            let scale = 1.0 / (query.len() as f32).sqrt();
            for (q, query) in q.iter_mut().zip(query) {
                *q = query * scale;
            }
            *seen = sees;
        }
        self.max = [f32::NEG_INFINITY; QUERIES];
        self.sums = [[0.0; LANES]; QUERIES];
        self.out.fill([[0.0; LANES]; QUERIES]);
    }

    /// Go over the block that begins at position `first`.
    #[inline(always)]
    fn add_block(&mut self, lanes: impl Lanes, first: usize, keys: &[Vector], values: &[Vector]) {
        let seen = self.seen.map(|seen| seen.saturating_sub(first).min(BLOCK));
        let count = seen.into_iter().fold(0, usize::max);
        if count == 0 {
            return;
        }
        let head_dim = self.q[0].len();
        let mut scores = [[[0.0; LANES]; QUERIES]; BLOCK / LANES];
        let tiles = &mut scores[..count.div_ceil(LANES)];
        add_products(lanes, array::from_fn(|i| &self.q[i][..]), keys, head_dim, tiles);
        let mut weights = [[[0.0; LANES]; BLOCK / LANES]; QUERIES];
        for i in 0..QUERIES {
            let scores = array::from_fn(|tile| scores[tile][i]);
            let factor;
            (weights[i], factor) = self.weigh(i, scores, seen[i]);
            for out in self.out.iter_mut() {
                for out in &mut out[i] {
                    *out *= factor;
                }
            }
        }
        let weights = array::from_fn(|i| &weights[i].as_flattened()[..count]);
        add_products(lanes, weights, values, BLOCK, &mut self.out);
    }

    /// The weights of the first `seen` scores of query `i`, and the factor of all that came before.
    #[inline(always)]
    fn weigh(&mut self, i: usize, mut scores: Scores, seen: usize) -> (Scores, f32) {
        if seen < BLOCK {
            scores.as_flattened_mut()[seen..].fill(f32::NEG_INFINITY);
        }
        let max = largest(&scores, self.max[i]);
        for score in scores.as_flattened_mut() {
            *score = exp(*score - max);
        }
        if seen < BLOCK {
            scores.as_flattened_mut()[seen..].fill(0.0);
        }
        let factor = exp(self.max[i] - max);
        self.max[i] = max;
        let [a, b, c, d] = scores;
        for lane in 0..LANES {
            let sum = (a[lane] + b[lane]) + (c[lane] + d[lane]);
            self.sums[i][lane] = self.sums[i][lane].mul_add(factor, sum);
        }
        (scores, factor)
    }

    /// The output of query `i`, to the first numbers of `out`.
    #[inline(always)]
    fn finish(&self, i: usize, out: &mut [f32]) {
        let factor = 1.0 / in_order(&self.sums[i]);
        for (out, sums) in out[..self.q[i].len()].chunks_mut(LANES).zip(self.out.iter()) {
            for (out, sum) in out.iter_mut().zip(sums[i]) {
                *out = sum * factor;
            }
        }
    }
}

/// The largest of all scores and `max`.
#[inline(always)]
fn largest(scores: &Scores, max: f32) -> f32 {
    let mut maxima = [max; LANES];
    for scores in scores {
        for (max, score) in maxima.iter_mut().zip(scores) {
            *max = larger(*score, *max);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            maxima[lane] = larger(maxima[lane + half], maxima[lane]);
        }
        half /= 2;
    }
    maxima[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// Add `sum_i factors_i vectors_i` of each query, in this order, to each of `sums`, whose vectors begin `apart` apart:
/// the scores of 16 positions, where the factors are a query's dimensions, or 16 dimensions of the output, where they
/// are the weights of positions.
#[inline(always)]
fn add_products<L: Lanes>(
    lanes: L,
    factors: [&[f32]; QUERIES],
    vectors: &[Vector],
    apart: usize,
    sums: &mut [[Vector; QUERIES]],
) {
    let tile = |tile: usize| &vectors[tile * apart..][..factors[0].len()];
    let (fours, rest) = match L::REGISTERS {
        32 => sums.as_chunks_mut::<4>(),
        _ => (&mut [][..], sums),
    };
    let done = 4 * fours.len();
    for (i, sums) in fours.iter_mut().enumerate() {
        add_tiles(lanes, factors, array::from_fn(|t| tile(4 * i + t)), sums);
    }
    for (i, sums) in rest.iter_mut().enumerate() {
        add_tiles(lanes, factors, [tile(done + i)], array::from_mut(sums));
    }
}

/// The same for `T` sums in registers. All slices are equally long.
#[inline(always)]
fn add_tiles<L: Lanes, const T: usize>(
    lanes: L,
    factors: [&[f32]; QUERIES],
    vectors: [&[Vector]; T],
    sums: &mut [[Vector; QUERIES]; T],
) {
    let count = factors[0].len();
    let (factors, vectors) = (factors.map(|f| &f[..count]), vectors.map(|v| &v[..count]));
    let mut in_registers = [[lanes.splat(0.0); QUERIES]; T];
    for t in 0..T {
        for q in 0..QUERIES {
            in_registers[t][q] = lanes.load(&sums[t][q]);
        }
    }
    for i in 0..count {
        let mut vector = [lanes.splat(0.0); T];
        for t in 0..T {
            vector[t] = lanes.load(&vectors[t][i]);
        }
        for q in 0..QUERIES {
            let factor = lanes.splat(factors[q][i]);
            for t in 0..T {
                in_registers[t][q] = lanes.fma(factor, vector[t], in_registers[t][q]);
            }
        }
    }
    for t in 0..T {
        for q in 0..QUERIES {
            sums[t][q] = lanes.store(in_registers[t][q]);
        }
    }
}

#[cfg(test)]
mod tests;
