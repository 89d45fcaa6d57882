//! Rotary positions, the cache of keys and values, and causal attention over it, in f32.
//!
//! Layout of the cache, for each layer and key-value head:
//! ```text
//! keys    [position / 16][dimension][position % 16]       16 scores at a time, without a sum across lanes
//! values  [dimension / 16][position][dimension % 16]      16 outputs at a time; dimensions padded with zeros
//! ```

use std::array;

use crate::engine::hyper::{Hyper, Pairing};
use crate::kernels::Threads;
use crate::simd::{LANES, Lanes, Level, Work};

use super::chunks::for_each_chunk;
use super::math::softmax;

/// Queries that share one pass over keys and values.
const QUERIES: usize = 4;

type Vector = [f32; LANES];

/// Angles of some consecutive positions.
pub struct Rotation {
    /// (head_dim / 2,) radians a position.
    frequencies: Vec<f64>,
    /// (positions, head_dim / 2) cosine and sine.
    turns: Vec<(f32, f32)>,
    pairing: Pairing,
}

impl Rotation {
    pub fn new(hyper: &Hyper) -> Self {
        let rope = &hyper.rope;
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / hyper.dims.head_dim as f64;
            let factor = rope.factors.as_ref().map_or(1.0, |factors| factors[i]);
            rope.base.powf(exponent) / rope.divisor / factor
        };
        Rotation {
            frequencies: (0..hyper.dims.head_dim / 2).map(frequency).collect(),
            turns: Vec::new(),
            pairing: rope.pairing,
        }
    }

    /// Get ready for the positions `first` to `first + count - 1`.
    pub fn prepare(&mut self, first: usize, count: usize) {
        let turn = |angle: f64| (angle.cos() as f32, angle.sin() as f32);
        let of = |position: usize| self.frequencies.iter().map(move |f| turn(position as f64 * f));
        self.turns = (first..first + count).flat_map(of).collect();
    }

    /// Turn the pairs of every head. `x`: (heads, head_dim) of the position that is `index` after the first.
    pub fn apply(&self, level: Level, index: usize, x: &mut [f32]) {
        let pairs = self.frequencies.len();
        let turns = &self.turns[index * pairs..][..pairs];
        match self.pairing {
            Pairing::Interleaved => level.run(TurnInterleaved { turns, x }),
            Pairing::Halves => level.run(TurnHalves { turns, x }),
        }
    }
}

struct TurnInterleaved<'a> {
    /// (head_dim / 2,) cosine and sine.
    turns: &'a [(f32, f32)],
    /// (heads, head_dim)
    x: &'a mut [f32],
}

impl Work for TurnInterleaved<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        for head in self.x.chunks_exact_mut(2 * self.turns.len()) {
            for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(self.turns) {
                let [a, b] = pair;
                turn_pair(a, b, turn);
            }
        }
    }
}

/// As [`TurnInterleaved`].
struct TurnHalves<'a> {
    turns: &'a [(f32, f32)],
    x: &'a mut [f32],
}

impl Work for TurnHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        for head in self.x.chunks_exact_mut(2 * self.turns.len()) {
            let (first, second) = head.split_at_mut(self.turns.len());
            for ((a, b), turn) in first.iter_mut().zip(second).zip(self.turns) {
                turn_pair(a, b, turn);
            }
        }
    }
}

#[inline(always)]
fn turn_pair(a: &mut f32, b: &mut f32, (cos, sin): &(f32, f32)) {
    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
}

/// Keys and values of every position so far.
pub struct Cache {
    keys: Vec<Vector>,
    values: Vec<Vector>,
    kv_heads: usize,
    head_dim: usize,
    /// Positions, rounded up to whole tiles of 16.
    positions: usize,
}

impl Cache {
    /// Room for `context` positions in each of so many layers. Memory is touched only as it fills.
    pub fn new(hyper: &Hyper, layers: usize, context: usize) -> Self {
        let positions = context.next_multiple_of(LANES);
        let heads = layers * hyper.dims.kv_heads;
        Cache {
            keys: vec![[0.0; LANES]; heads * positions / LANES * hyper.dims.head_dim],
            values: vec![[0.0; LANES]; heads * positions * hyper.dims.head_dim.div_ceil(LANES)],
            kv_heads: hyper.dims.kv_heads,
            head_dim: hyper.dims.head_dim,
            positions,
        }
    }

    /// Store keys and values of the positions from `first` on in `layer`. `k`, `v`: (tokens, kv_heads, head_dim).
    pub fn store(&mut self, layer: usize, first: usize, k: &[f32], v: &[f32], threads: &Threads) {
        let &mut Cache {
            kv_heads,
            head_dim,
            positions,
            ..
        } = self;
        let (keys, values) = (self.keys_per_head(), self.values_per_head());
        let of_layer = |per_head: usize| layer * kv_heads * per_head..(layer + 1) * kv_heads * per_head;
        for_each_chunk(threads, &mut self.keys[of_layer(keys)], keys, |head, keys| {
            let of_head = k.chunks_exact(head_dim).skip(head).step_by(kv_heads);
            for (position, k) in (first..).zip(of_head) {
                let tile = &mut keys[position / LANES * head_dim..][..head_dim];
                for (dimension, k) in tile.iter_mut().zip(k) {
                    dimension[position % LANES] = *k;
                }
            }
        });
        for_each_chunk(threads, &mut self.values[of_layer(values)], values, |head, values| {
            let of_head = v.chunks_exact(head_dim).skip(head).step_by(kv_heads);
            for (position, v) in (first..).zip(of_head) {
                for (piece, v) in v.chunks(LANES).enumerate() {
                    values[piece * positions + position][..v.len()].copy_from_slice(v);
                }
            }
        });
    }

    /// `softmax(q k^T / sqrt(head_dim)) v` over all positions up to each token's own.
    ///
    /// `q`: (tokens, heads, head_dim), the first token at position `first`.  `out`: the same shape.
    pub fn attend(
        &self,
        level: Level,
        (layer, first): (usize, usize),
        q: &[f32],
        width: usize,
        out: &mut [f32],
        threads: &Threads,
    ) {
        let tokens = q.len() / width;
        let group = width / self.kv_heads; // the queries of one key-value head, side by side
        if tokens == 1 {
            for_each_chunk(threads, out, group, |kv_head, out| {
                let queries = q[kv_head * group..][..group].chunks_exact(self.head_dim);
                let queries: Vec<_> = queries.map(|q| (q, first + 1)).collect();
                level.run(self.head(layer, kv_head, &queries, |i, y| {
                    out[i * self.head_dim..][..self.head_dim].copy_from_slice(y)
                }));
            });
            return;
        }
        /// Tokens of one piece of work: enough queries for full passes, few enough that all threads finish together.
        const TOKENS: usize = 8;
        for_each_chunk(threads, out, TOKENS * width, |chunk, out| {
            let tokens = chunk * TOKENS..chunk * TOKENS + out.len() / width;
            let heads = group / self.head_dim;
            for kv_head in 0..self.kv_heads {
                let query = |i: usize| {
                    let token = tokens.start + i / heads;
                    let start = token * width + kv_head * group + i % heads * self.head_dim;
                    (&q[start..][..self.head_dim], first + token + 1)
                };
                let queries: Vec<_> = (0..tokens.len() * heads).map(query).collect();
                level.run(self.head(layer, kv_head, &queries, |i, y| {
                    let start = i / heads * width + kv_head * group + i % heads * self.head_dim;
                    out[start..][..self.head_dim].copy_from_slice(y);
                }));
            }
        });
    }

    /// Attention of `queries`, each with the number of positions that it sees, over one key-value head. `done` takes
    /// the output of each query.
    fn head<'a, F: FnMut(usize, &[f32])>(
        &'a self,
        layer: usize,
        kv_head: usize,
        queries: &'a [(&'a [f32], usize)],
        done: F,
    ) -> Head<'a, F> {
        let head = layer * self.kv_heads + kv_head;
        Head {
            keys: &self.keys[head * self.keys_per_head()..][..self.keys_per_head()],
            values: &self.values[head * self.values_per_head()..][..self.values_per_head()],
            head_dim: self.head_dim,
            positions: self.positions,
            queries,
            done,
        }
    }

    fn keys_per_head(&self) -> usize {
        self.positions / LANES * self.head_dim
    }

    fn values_per_head(&self) -> usize {
        self.positions * self.head_dim.div_ceil(LANES)
    }
}

/// See [`Cache::head`].
struct Head<'a, F> {
    keys: &'a [Vector],
    values: &'a [Vector],
    head_dim: usize,
    positions: usize,
    queries: &'a [(&'a [f32], usize)],
    done: F,
}

impl<F: FnMut(usize, &[f32])> Work for Head<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(mut self, lanes: impl Lanes) {
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let pieces = self.head_dim.div_ceil(LANES);
        let mut scores: [Vec<Vector>; QUERIES] = array::from_fn(|_| Vec::new());
        let mut out = vec![[[0.0; LANES]; QUERIES]; pieces];
        for (batch, queries) in self.queries.chunks(QUERIES).enumerate() {
            // The last query stands in for those behind the end.
            let query: [_; QUERIES] = array::from_fn(|i| queries[i.min(queries.len() - 1)]);
            let seen = query.iter().map(|(_, seen)| *seen).max().unwrap_or(0);
            scores.iter_mut().for_each(Vec::clear);
            let tiles = self.keys.chunks_exact(self.head_dim);
            for tile in tiles.take(seen.div_ceil(LANES)) {
                let of_tile = sums_of_products(lanes, query.map(|(q, _)| q), tile);
                for (scores, of_tile) in scores.iter_mut().zip(of_tile) {
                    scores.push(of_tile.map(|score| score * scale));
                }
            }
            for (scores, (_, seen)) in scores.iter_mut().zip(query) {
                let (own, later) = scores.as_flattened_mut().split_at_mut(seen);
                softmax(own);
                later.fill(0.0);
            }
            let weights: [&[f32]; QUERIES] = array::from_fn(|i| &scores[i].as_flattened()[..seen]);
            let values = self.values.chunks_exact(self.positions);
            for (out, values) in out.iter_mut().zip(values) {
                *out = sums_of_products(lanes, weights, &values[..seen]);
            }
            for i in 0..queries.len() {
                let y: Vec<f32> = out.iter().flat_map(|piece| piece[i]).collect();
                (self.done)(batch * QUERIES + i, &y[..self.head_dim]);
            }
        }
    }
}

/// `sum_i factors_i vectors_i` of each query, in this order: the scores of 16 positions, where the factors are its
/// dimensions, or 16 dimensions of the output, where they are the weights of positions. All (n,).
#[inline(always)]
fn sums_of_products(lanes: impl Lanes, [a, b, c, d]: [&[f32]; QUERIES], vectors: &[Vector]) -> [Vector; QUERIES] {
    // One by one: an array of sums would be kept in memory.
    let zero = lanes.splat(0.0);
    let (mut of_a, mut of_b, mut of_c, mut of_d) = (zero, zero, zero, zero);
    for ((((vector, a), b), c), d) in vectors.iter().zip(a).zip(b).zip(c).zip(d) {
        let vector = lanes.load(vector);
        of_a = lanes.fma(lanes.splat(*a), vector, of_a);
        of_b = lanes.fma(lanes.splat(*b), vector, of_b);
        of_c = lanes.fma(lanes.splat(*c), vector, of_c);
        of_d = lanes.fma(lanes.splat(*d), vector, of_d);
    }
    [
        lanes.store(of_a),
        lanes.store(of_b),
        lanes.store(of_c),
        lanes.store(of_d),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;

    /// Numbers in -2..2 without a pattern.
    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        let number = |i: usize| (i * 7919 + seed * 104_729) % 1009;
        (0..count).map(|i| number(i) as f32 / 252.0 - 2.0).collect()
    }

    /// One layer with keys and values of the first positions.
    fn filled(head_dim: usize, k: &[f32], v: &[f32]) -> Cache {
        let positions = 48;
        let mut cache = Cache {
            keys: vec![[0.0; LANES]; KV_HEADS * positions / LANES * head_dim],
            values: vec![[0.0; LANES]; KV_HEADS * positions * head_dim.div_ceil(LANES)],
            kv_heads: KV_HEADS,
            head_dim,
            positions,
        };
        cache.store(0, 0, k, v, &Threads::new(1));
        cache
    }

    /// Attention of one head of a token that sees `seen` positions, as it is written down, in f64.
    fn plain(q: &[f32], k: &[f32], v: &[f32], kv_head: usize, seen: usize) -> Vec<f64> {
        let head_dim = q.len();
        let at = |x: &[f32], position: usize, i: usize| f64::from(x[(position * KV_HEADS + kv_head) * head_dim + i]);
        let score = |position: usize| {
            let dot: f64 = (0..head_dim).map(|i| f64::from(q[i]) * at(k, position, i)).sum();
            (dot / (head_dim as f64).sqrt()).exp()
        };
        let scores: Vec<f64> = (0..seen).map(score).collect();
        let total: f64 = scores.iter().sum();
        let output = |i: usize| {
            (0..seen)
                .map(|position| scores[position] * at(v, position, i))
                .sum::<f64>()
                / total
        };
        (0..head_dim).map(output).collect()
    }

    #[test]
    fn every_level_attends_with_the_same_bits() {
        // 24: ends inside a vector.
        for head_dim in [16, 24, 64] {
            let (width, stored) = (HEADS * head_dim, 37);
            let (k, v) = (
                numbers(1, stored * KV_HEADS * head_dim),
                numbers(2, stored * KV_HEADS * head_dim),
            );
            let cache = filled(head_dim, &k, &v);
            for tokens in [1, 3, 9] {
                let (q, first) = (numbers(3, tokens * width), stored - tokens);
                let attend = |level| {
                    let mut out = vec![f32::NAN; q.len()];
                    cache.attend(level, (0, first), &q, width, &mut out, &Threads::new(2));
                    out
                };
                let expected = attend(Level::BASELINE);
                for level in Level::available() {
                    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(
                        bits(attend(level)),
                        bits(expected.clone()),
                        "{} {head_dim} {tokens}",
                        level.name()
                    );
                }
                for (i, (q, found)) in q
                    .chunks_exact(head_dim)
                    .zip(expected.chunks_exact(head_dim))
                    .enumerate()
                {
                    let (token, kv_head) = (i / HEADS, i % HEADS / (HEADS / KV_HEADS));
                    let exact = plain(q, &k, &v, kv_head, first + token + 1);
                    let error = found.iter().zip(exact).map(|(y, exact)| (f64::from(*y) - exact).abs());
                    assert!(error.fold(0.0, f64::max) < 1e-5, "{head_dim} {tokens} {i}");
                }
            }
        }
    }

    #[test]
    fn every_level_turns_with_the_same_bits() {
        for (pairs, pairing) in [1, 12, 32]
            .iter()
            .flat_map(|&pairs| [(pairs, Pairing::Interleaved), (pairs, Pairing::Halves)])
        {
            let mut rotation = Rotation {
                frequencies: (0..pairs).map(|i| 1.0 / (i + 1) as f64).collect(),
                turns: Vec::new(),
                pairing,
            };
            rotation.prepare(5, 2);
            let x = numbers(4, HEADS * 2 * pairs);
            let turned = |level| {
                let mut x = x.clone();
                rotation.apply(level, 1, &mut x);
                x
            };
            let expected = turned(Level::BASELINE);
            for level in Level::available() {
                assert_eq!(turned(level), expected, "{} {pairs} {pairing:?}", level.name());
            }
            // The last pair of the first head.
            let (a, b) = match pairing {
                Pairing::Interleaved => (2 * pairs - 2, 2 * pairs - 1),
                Pairing::Halves => (pairs - 1, 2 * pairs - 1),
            };
            let (sin, cos) = (6.0 / pairs as f64).sin_cos();
            let exact = f64::from(x[a]) * cos - f64::from(x[b]) * sin;
            assert!((f64::from(expected[a]) - exact).abs() < 1e-6, "{pairs} {pairing:?}");
        }
    }
}
