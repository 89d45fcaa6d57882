//! The order in which a product is computed: in tiles of row groups and panels, several threads at once.

use super::contract::{MR, Tile};
use super::memory::{LineVec, fetch};
use super::threads::Threads;
use std::ops::Range;

/// Pieces of work for each thread: enough that a delayed thread holds up little.
const CHUNKS_PER_THREAD: usize = 4;

/// `y` (tokens, rows), made a tile at a time: `product(groups, panels, out)` is to put the product of these row groups
/// with these panels into `out`. `panels`: the tokens of each, and how many are interleaved there.
pub(super) fn for_tiles(
    rows: usize,
    panels: impl Iterator<Item = (Range<usize>, usize)>,
    y: &mut [f32],
    threads: &Threads,
    tile: Tile,
    product: impl Fn(Range<usize>, Range<usize>, &mut Out<'_>) + Sync,
) {
    let y = Output::new(y, rows);
    let panels: Vec<_> = panels.collect();
    for_chunks(rows.div_ceil(MR), tile.least, threads, |chunk| {
        let mut results = LineVec::new(0);
        for groups in pieces(chunk, tile.groups) {
            for here in pieces(0..panels.len(), tile.panels) {
                results.clear();
                let mut out = Out {
                    y: &y,
                    groups: groups.clone(),
                    panels: &panels[here.clone()],
                    placed: 0,
                    results: &mut results,
                };
                product(groups.clone(), here, &mut out);
                out.place_the_rest();
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

/// Where the product of some row groups with some panels goes. Nobody else writes there meanwhile.
pub(super) struct Out<'a> {
    y: &'a Output<'a>,
    groups: Range<usize>,
    /// The tokens of each panel, and how many are interleaved there.
    panels: &'a [(Range<usize>, usize)],
    /// So many panels need no results.
    placed: usize,
    /// (panels, row groups, width), none before somebody asks for them.
    results: &'a mut LineVec<[f32; MR]>,
}

impl<'a> Out<'a> {
    /// Results of some panels: (panels, row groups, width), 0 before. They are put into the product when the tile is done.
    pub fn results(&mut self, panels: Range<usize>) -> &mut [[f32; MR]] {
        let length = |panels: Range<usize>| {
            let widths = self.panels[panels].iter().map(|(_, width)| width);
            self.groups.len() * widths.sum::<usize>()
        };
        let (before, here) = (length(0..panels.start), length(panels));
        self.results.resize(length(0..self.panels.len()), [0.0; MR]);
        &mut self.results[before..][..here]
    }

    /// The product itself, for the results of the first `panels` panels.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "written by x86-64's tiles"))]
    pub fn in_place(&mut self, panels: usize) -> Squares<'_> {
        self.placed = panels;
        Squares {
            y: self.y,
            groups: self.groups.clone(),
            panels: &self.panels[..panels],
        }
    }

    fn place_the_rest(self) {
        if self.results.is_empty() {
            return;
        }
        let mut rest = &self.results[..];
        for (i, (tokens, width)) in self.panels.iter().enumerate() {
            let (results, others) = rest.split_at(self.groups.len() * width);
            rest = others;
            if i >= self.placed {
                // SAFETY: nobody else writes there.
                unsafe { self.y.write(self.groups.clone(), tokens.clone(), results) };
            }
        }
    }
}

/// The product of some row groups with some panels, in squares: those of a row group and a panel. Nobody else writes there
/// meanwhile.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "written by x86-64's tiles"))]
pub(super) struct Squares<'a> {
    y: &'a Output<'a>,
    groups: Range<usize>,
    panels: &'a [(Range<usize>, usize)],
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "written by x86-64's tiles"))]
impl Squares<'_> {
    /// Put the results (row groups, tokens) of some row groups and a panel there; tokens and rows that are not there do
    /// not count.
    #[inline]
    pub fn put(&mut self, panel: usize, groups: Range<usize>, results: &[[f32; MR]]) {
        let (groups, tokens) = (self.within(groups), self.panels[panel].0.clone());
        // SAFETY: nobody else writes there.
        unsafe { self.y.write(groups, tokens, results) };
    }

    /// The results (tokens) of a row group and a panel that were put there.
    pub fn get(&self, panel: usize, group: usize, results: &mut [[f32; MR]]) {
        let groups = self.within(group..group + 1);
        for (token, result) in self.panels[panel].0.clone().zip(results) {
            // SAFETY: nobody else writes there.
            let there = unsafe { self.y.row(token, groups.clone()) };
            result[..there.len()].copy_from_slice(there);
        }
    }

    /// Row groups of all, from those of these.
    fn within(&self, groups: Range<usize>) -> Range<usize> {
        let first = self.groups.start;
        assert!(first + groups.end <= self.groups.end);
        first + groups.start..first + groups.end
    }

    /// Make ready to write the results of token `token` of a panel and of two row groups from `group` on.
    #[inline(always)]
    pub fn expect(&self, panel: usize, group: usize, token: usize) {
        let first = (self.panels[panel].0.start + token) * self.y.rows + (self.groups.start + group) * MR;
        for i in [0, MR, 2 * MR - 1] {
            fetch(self.y.start.wrapping_add(first + i).cast());
        }
    }
}

/// The product (tokens, rows), written by several threads at once.
struct Output<'a> {
    start: *mut f32,
    length: usize,
    rows: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: whoever writes or reads there promises that nobody else does so in the same row groups.
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

    /// Write some row groups of some tokens. `results`: (row groups, width), of which the first are those of the tokens.
    ///
    /// # Safety
    /// No two calls may run at the same time for the same row group.
    #[inline]
    unsafe fn write(&self, groups: Range<usize>, tokens: Range<usize>, results: &[[f32; MR]]) {
        let width = results.len() / groups.len();
        for (i, token) in tokens.enumerate() {
            // SAFETY: by the caller's promise.
            let y = unsafe { self.row(token, groups.clone()) };
            let mut results = results[i..].iter().step_by(width);
            let (whole, rest) = y.as_chunks_mut();
            for (y, result) in whole.iter_mut().zip(&mut results) {
                *y = *result;
            }
            if let Some(result) = results.next() {
                rest.copy_from_slice(&result[..rest.len()]);
            }
        }
    }

    /// Some row groups of a token.
    ///
    /// # Safety
    /// No two may be there at the same time of the same row group.
    #[inline]
    #[allow(clippy::mut_from_ref, reason = "the caller promises that it is the only one")]
    unsafe fn row(&self, token: usize, groups: Range<usize>) -> &mut [f32] {
        let rows = groups.start * MR..self.rows.min(groups.end * MR);
        let at = token * self.rows + rows.start;
        assert!(at + rows.len() <= self.length);
        // SAFETY: inside the slice that this was made from, and by the caller's promise not shared.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), rows.len()) }
    }
}
