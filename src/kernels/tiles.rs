//! The order in which a product is computed: in tiles of row groups and panels, several threads at once.

use super::activations::Activations;
use super::contract::{MR, Tile};
use super::threads::Threads;
use std::ops::Range;

/// Pieces of work for each thread: enough that a delayed thread holds up little.
const CHUNKS_PER_THREAD: usize = 4;

/// `y` (tokens, rows), made a tile at a time: `product(groups, panels, out)` is to add the product of these row
/// groups with these panels to `out`, which is 0 before, as [`super::kernel::Gemm::multiply`] has it.
pub(super) fn for_tiles(
    rows: usize,
    x: &Activations,
    y: &mut [f32],
    threads: &Threads,
    tile: Tile,
    product: impl Fn(Range<usize>, Range<usize>, &mut [[f32; MR]]) + Sync,
) {
    let y = Output::new(y, rows);
    let panels: Vec<_> = x.panels().collect();
    for_chunks(rows.div_ceil(MR), tile.least, threads, |chunk| {
        let mut out = Vec::new();
        for groups in pieces(chunk, tile.groups) {
            for here in pieces(0..panels.len(), tile.panels) {
                let width: usize = panels[here.clone()].iter().map(|(_, width)| width).sum();
                out.clear();
                out.resize(groups.len() * width, [0.0; MR]);
                product(groups.clone(), here.clone(), &mut out);
                let mut rest = &out[..];
                for (tokens, width) in &panels[here] {
                    let (out, others) = rest.split_at(groups.len() * width);
                    rest = others;
                    // SAFETY: the rows of these groups belong to this chunk alone.
                    unsafe { y.write(groups.clone(), tokens.clone(), out.chunks_exact(*width)) };
                }
            }
        }
    });
}

/// `task` for every chunk of 0..count, on all threads, as many chunks on each; no chunk is shorter than `least` where
/// that leaves one for each thread.
fn for_chunks(count: usize, least: usize, threads: &Threads, task: impl Fn(Range<usize>) + Sync) {
    let chunks = match threads.count() {
        1 => 1,
        threads => (count / least / threads).clamp(1, CHUNKS_PER_THREAD) * threads,
    };
    let chunks = chunks.min(count);
    threads.run(chunks, |i| task(piece(0..count, i, chunks)));
}

/// `range` in as few pieces of up to `most` as there can be, all about as long.
fn pieces(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most);
    (0..count).map(move |i| piece(range.clone(), i, count))
}

/// Piece `i` of `count`.
fn piece(range: Range<usize>, i: usize, count: usize) -> Range<usize> {
    let at = |i: usize| range.start + range.len() * i / count;
    at(i)..at(i + 1)
}

/// The product (tokens, rows), written by several threads at once.
struct Output<'a> {
    start: *mut f32,
    length: usize,
    rows: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose caller promises that no two write the same rows.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    fn new(y: &'a mut [f32], rows: usize) -> Output<'a> {
        Output {
            start: y.as_mut_ptr(),
            length: y.len(),
            rows,
            owner: std::marker::PhantomData,
        }
    }

    /// Write some row groups of some tokens. `results` has those of a group's tokens, then perhaps some that do not
    /// count.
    ///
    /// # Safety
    /// No two calls may run at the same time for the same row group.
    unsafe fn write<'r>(
        &self,
        groups: Range<usize>,
        tokens: Range<usize>,
        results: impl Iterator<Item = &'r [[f32; MR]]>,
    ) {
        for (group, results) in groups.zip(results) {
            let first = group * MR;
            let count = MR.min(self.rows - first);
            for (token, result) in tokens.clone().zip(results) {
                let at = token * self.rows + first;
                assert!(at + count <= self.length);
                // SAFETY: inside the slice that this was made from, and by the caller's promise not shared.
                let y = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) };
                match y.first_chunk_mut() {
                    Some(y) => *y = *result,
                    None => y.copy_from_slice(&result[..count]),
                }
            }
        }
    }
}
