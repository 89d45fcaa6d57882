//! Causal attention over the cache, in f32, in one pass over keys and values.
//!
//! ```text
//! for each span of 1024 positions:
//!     for each block of 64 positions:  for each 16 queries:
//!         scores  = q . keys                           q times log2(e) / sqrt(head_dim)
//!         grown   = max(max, ceil(largest score))
//!         weights = 2^(scores - grown)
//!         sum     = sum * 2^(max - grown) + weights
//!         out     = out * 2^(max - grown) + weights . values
//!     larger  = max(max of all, max)                   of all spans before
//!     sum of all = sum of all * 2^(max of all - larger) + sum * 2^(max - larger),  out of all likewise
//! out of all / sum of all
//! ```
//! `max` is a whole number, so that a factor is a power of two, and exact: what a weight is rounded to, where values are
//! bf16, is the same whatever was the largest score when it was made.
//!
//! Keys and values of a block stay in the first-level cache for all queries; one token, which waits for memory, reads them
//! where they are, while those of the next block are fetched. Behind a long text spans can go to several threads, so that
//! these have work, however few tokens and heads there are. Blocks and spans begin at multiples of their size, whatever
//! tokens come together and however many threads there are, so a token gets the same bits alone as among others, as long as
//! all values are finite.
//!
//! Products are added up as tile registers add those of bf16 ([`Product`]): of each 32 dimensions, or positions, the first
//! 16 in order, the others in order, then both to the sum. Vectors do the same with every type, so that all CPUs give the
//! same bits.

use std::ops::Range;

use aligned_vec::avec;

use crate::kernels::bf16::Product;
use crate::kernels::memory::LineVec;
use crate::kernels::{Bf16Tiles, Isa, Threads};
use crate::simd::{LANES, Lanes, Level, Work};

use super::cache::{Cache, Cells, Room};
use super::cells::{BLOCK, CacheType, CacheTypes, Vector};
use super::chunks::for_each_chunk;
use super::numbers::Task;
use super::products::{AddProducts, Factors, QUERIES};
use super::softmax::{Found, Queries, Scratch};

/// Blocks of a span: what is found in its positions is found without those before.
const SPAN: usize = 16;
/// Most vectors of what is found in spans apart: 64 MiB.
const MOST_APART: usize = 1 << 20;

/// What attention is computed with.
pub struct Attention {
    level: Level,
    /// Tile registers where these have them, for keys and values of bf16.
    isa: Isa,
    /// What each piece of work finds.
    found: LineVec<Vector>,
}

impl Attention {
    pub fn new(level: Level, isa: Isa) -> Self {
        Self {
            level,
            isa,
            found: LineVec::new(0),
        }
    }

    /// `softmax(q k^T / sqrt(head_dim)) v` over all positions up to each token's own.
    ///
    /// `q`: (tokens, heads, head_dim), the first token at position `first`; `width`: numbers of a token. `out`: the same
    /// shape.
    pub fn attend(
        &mut self,
        cache: &Cache,
        threads: &Threads,
        (layer, first): (usize, usize),
        q: &[f32],
        width: usize,
        out: &mut [f32],
    ) {
        let wanted = 4 * threads.count(); // pieces of work, for all threads to finish together
        let batch = Batch::new(cache, (layer, first), (q, width), wanted);
        let (kv_heads, pieces) = (cache.kv_heads(), batch.pieces());
        let stretch = batch.stretch(wanted);
        let stretches = batch.blocks().div_ceil(stretch);
        self.found.resize(stretches * batch.per_stretch(), [0.0; LANES]);
        for_each_chunk(threads, &mut self.found, batch.per_piece(), |i, found| {
            let (part, piece) = (i / pieces, i % pieces);
            let start = part / kv_heads * stretch;
            self.level.run(Stretch {
                batch: &batch,
                isa: self.isa,
                kv_head: part % kv_heads,
                piece,
                blocks: start..start + stretch,
                found,
            });
        });
        let found = &self.found;
        for_each_chunk(threads, out, batch.together * width, |piece, out| {
            self.level.run(Output {
                batch: &batch,
                piece,
                found,
                out,
            });
        });
    }
}

/// Tokens of a text that come together.
struct Batch<'a> {
    cache: &'a Cache,
    layer: usize,
    /// The position of the first token.
    first: usize,
    /// (tokens, width)
    q: &'a [f32],
    width: usize,
    /// Heads that share keys and values.
    heads: usize,
    /// Tokens of a piece of work.
    together: usize,
}

impl<'a> Batch<'a> {
    fn new(cache: &'a Cache, (layer, first): (usize, usize), (q, width): (&'a [f32], usize), wanted: usize) -> Self {
        let heads = width / cache.kv_heads() / cache.head_dim();
        // Many in each piece, as it reads all keys and values, but enough pieces.
        let together = (q.len() / width * cache.kv_heads() / wanted).clamp(8, 32);
        Self {
            cache,
            layer,
            first,
            q,
            width,
            heads,
            together: together.next_multiple_of(QUERIES.div_ceil(heads)),
        }
    }

    fn tokens(&self) -> usize {
        self.q.len() / self.width
    }

    fn pieces(&self) -> usize {
        self.tokens().div_ceil(self.together)
    }

    /// Groups of queries of a piece.
    fn groups(&self) -> usize {
        (self.together.min(self.tokens()) * self.heads).div_ceil(QUERIES)
    }

    /// Vectors of what a piece finds in a stretch for a head of keys and values.
    fn per_piece(&self) -> usize {
        self.groups() * Found::vectors(self.cache.head_dim())
    }

    /// The same of all pieces, for all heads.
    fn per_stretch(&self) -> usize {
        self.cache.kv_heads() * self.pieces() * self.per_piece()
    }

    /// Blocks of a piece of work, of which there are to be so many. Those of one span, or all: several spans that begin
    /// behind others would be added up in another order, to other bits.
    fn stretch(&self, wanted: usize) -> usize {
        let few = self.cache.kv_heads() * self.pieces() < wanted;
        let fits = self.blocks().div_ceil(SPAN) * self.per_stretch() <= MOST_APART;
        if few && fits { SPAN } else { self.blocks() }
    }

    /// Blocks that the last token sees.
    fn blocks(&self) -> usize {
        (self.first + self.tokens()).div_ceil(BLOCK)
    }

    /// The tokens of a piece.
    fn piece(&self, piece: usize) -> Range<usize> {
        let first = piece * self.together;
        first..self.tokens().min(first + self.together)
    }

    /// Where query `i` of a piece is, from the first number of the piece on.
    fn place(&self, kv_head: usize, i: usize) -> usize {
        let (heads, head_dim) = (self.heads, self.cache.head_dim());
        i / heads * self.width + (kv_head * heads + i % heads) * head_dim
    }

    /// The queries of a piece to a head of keys and values.
    #[inline(always)]
    fn queries(&self, piece: usize, kv_head: usize, for_tiles: bool) -> Vec<Queries> {
        let (tokens, heads, head_dim) = (self.piece(piece), self.heads, self.cache.head_dim());
        let (count, q) = (tokens.len() * heads, &self.q[tokens.start * self.width..]);
        let mut groups = Vec::new();
        for start in (0..count).step_by(QUERIES) {
            let query = |i: usize| {
                let seen = self.first + tokens.start + (start + i) / heads + 1;
                (&q[self.place(kv_head, start + i)..][..head_dim], seen)
            };
            let count = QUERIES.min(count - start);
            groups.push(Queries::new(self.cache.types(), head_dim, count, for_tiles, query));
        }
        groups
    }
}

/// What the queries of a piece find in the blocks of one span, or of all.
struct Stretch<'a> {
    batch: &'a Batch<'a>,
    isa: Isa,
    kv_head: usize,
    piece: usize,
    /// Numbers of blocks; what no query sees of them is left out.
    blocks: Range<usize>,
    /// (groups, [`Found::vectors`])
    found: &'a mut [Vector],
}

impl Work for Stretch<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Batch {
            cache, layer, first, ..
        } = *self.batch;
        let head_dim = cache.head_dim();
        let seen = (first + self.batch.piece(self.piece).end).div_ceil(BLOCK);
        let range = self.blocks.start..self.blocks.end.min(seen);
        let mut blocks = cache.blocks(layer, self.kv_head, range.clone());
        let one = self.batch.tokens() == 1; // which reads everything straight from the cache
        let CacheTypes { keys, values } = cache.types();
        let for_tiles = !one && [keys, values] == [CacheType::Bf16; 2];
        let mut tiles = for_tiles.then(|| self.isa.bf16_tiles()).flatten();
        let mut room = (!one && tiles.is_none()).then(|| cache.room());
        let queries = self.batch.queries(self.piece, self.kv_head, tiles.is_some());
        let mut scratch = Scratch::default();
        let mut of_span = LineVec::new(0);
        Found::clear_all(self.found, head_dim);
        for start in range.clone().step_by(SPAN) {
            let is_first = start == range.start;
            let found = if is_first {
                &mut *self.found
            } else {
                of_span.resize(self.found.len(), [0.0; LANES]);
                Found::clear_all(&mut of_span, head_dim);
                &mut *of_span
            };
            let span = blocks.by_ref().take(SPAN);
            match &mut tiles {
                Some(tiles) => in_tiles(lanes, tiles, &queries, found, span, &mut scratch),
                None => in_vectors(lanes, &queries, found, span, room.as_mut(), &mut scratch),
            }
            if !is_first {
                let groups = of_span.chunks_exact(Found::vectors(head_dim));
                for (group, of_span) in groups.enumerate().take(queries.len()) {
                    Found::of(self.found, head_dim, group).add(lanes, queries[group].count, of_span);
                }
            }
        }
    }
}

/// The output of a piece.
struct Output<'a> {
    batch: &'a Batch<'a>,
    piece: usize,
    /// (stretches, kv_heads, pieces, groups, [`Found::vectors`])
    found: &'a [Vector],
    /// (tokens, width)
    out: &'a mut [f32],
}

impl Work for Output<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Batch { cache, .. } = *self.batch;
        let (head_dim, kv_heads) = (cache.head_dim(), cache.kv_heads());
        let size = Found::vectors(head_dim);
        let mut total = avec!([64]| [0.0; LANES]; size);
        let mut total = Found::of(&mut total, head_dim, 0);
        let queries = self.batch.piece(self.piece).len() * self.batch.heads;
        let per_piece = self.batch.per_piece();
        let per_head = self.batch.pieces() * per_piece;
        for kv_head in 0..kv_heads {
            let of_first = &self.found[kv_head * per_head + self.piece * per_piece..];
            let stretches = of_first.chunks(kv_heads * per_head);
            for (group, start) in (0..queries).step_by(QUERIES).enumerate() {
                let count = QUERIES.min(queries - start);
                total.clear();
                for found in stretches.clone() {
                    total.add(lanes, count, &found[group * size..][..size]);
                }
                for i in 0..count {
                    let place = self.batch.place(kv_head, start + i);
                    total.finish(i, &mut self.out[place..][..head_dim]);
                }
            }
        }
    }
}

/// Go over blocks, each with its number, in vectors.
#[inline(always)]
fn in_vectors<'c>(
    lanes: impl Lanes,
    queries: &[Queries],
    found: &mut [Vector],
    blocks: impl Iterator<Item = (usize, Cells<'c>)>,
    mut room: Option<&mut Room>,
    scratch: &mut Scratch,
) {
    let scores = &mut scratch.scores;
    for (i, cells) in blocks {
        let floats = match &mut room {
            None => None,
            Some(room) => Some([
                cells.keys.in_floats(lanes, &mut room.keys),
                cells.values.in_floats(lanes, &mut room.values),
            ]),
        };
        for (group, queries) in queries.iter().enumerate() {
            let Some(seen) = queries.seen_of(i * BLOCK) else {
                continue;
            };
            let mut found = Found::of(found, queries.head_dim, group);
            let most = seen.iter().fold(0, |most, seen| most.max(*seen));
            let of_keys = Factors {
                count: queries.count,
                tiles: &queries.q,
                used: queries.head_dim,
            };
            let wanted = &mut scores.as_flattened_mut()[..most.div_ceil(LANES)];
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
            let factors = found.weigh(lanes, queries, &seen, scores, None);
            found.fit(lanes, &factors);
            let of_values = Factors {
                count: queries.count,
                tiles: scores,
                used: most,
            };
            let task = AddProducts {
                lanes,
                factors: of_values,
                apart: cells.values.tile(),
                sums: found.out,
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
    found: &mut [Vector],
    blocks: impl Iterator<Item = (usize, Cells<'c>)>,
    scratch: &mut Scratch,
) {
    let Scratch { scores, packed } = scratch;
    let mut before = None;
    for (i, cells) in blocks {
        let (keys, values) = (cells.keys.pairs(), cells.values.pairs());
        for (group, queries) in queries.iter().enumerate() {
            let Some(seen) = queries.seen_of(i * BLOCK) else {
                continue;
            };
            tiles.multiply(Product::new(&queries.pairs, keys, scores.as_flattened_mut()));
            if let Some((group, values)) = before.replace((group, values)) {
                Found::of(found, queries.head_dim, group).add_values(tiles, packed, values);
            }
            let mut found = Found::of(found, queries.head_dim, group);
            let factors = found.weigh(lanes, queries, &seen, scores, Some(packed));
            found.fit(lanes, &factors);
        }
    }
    if let Some((group, values)) = before {
        Found::of(found, queries[group].head_dim, group).add_values(tiles, packed, values);
    }
}

#[cfg(test)]
mod tests;
