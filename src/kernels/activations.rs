//! Activations as 8-bit codes: the right-hand side of every integer product.
//!
//! ```text
//! for each token, for each group of activations:
//!     scale = the group's largest magnitude / 127        (K: with the sign of -(that activation))
//!     code  = round_half_even(x / scale)
//! ```
//! Two groupings of ggml, bit for bit, because what llama.cpp computes depends on them:
//! `Q8_K` for TQ1_0, TQ2_0 and the K types (ggml-quants.c:2769), `Q8_0` for Q2_0, Q4_0 and Q8_0
//! (arch/x86/quants.c:302). `K(64)` and `K(128)` are Q8_K's rule on shorter groups.
//!
//! Tokens are interleaved in panels of up to 16, so that a kernel reads them in one stream whatever the
//! row length: rows at a stride of a power of two would fall into the same few cache sets.

use super::Isa;
use super::contract::{FloatPanel, Grouping, Lines, NR, Panel, STEP};
use super::floats;
use super::kernel::{Backend, Kernel};
use super::lines::{LINE, LineStore};
use super::threads::{Threads, lock};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::{Mutex, OnceLock};

/// The activations of some tokens, ready for every matrix that wants this [`Grouping`].
///
/// Make one and use it again: it keeps its memory.
///
/// What is interleaved lies panel by panel, `width` numbers for each item: see `Panel` and `FloatPanel`.
pub struct Activations {
    backend: Backend,
    grouping: Grouping,
    columns: usize,
    tokens: usize,
    /// (panels, columns, width), where there are no codes.
    floats: Vec<f32>,
    /// Where there are lines, made when a product asks for it.
    interleaved: OnceLock<Interleaved>,
    lines: LineStore,
    /// Memory for panels that are being filled.
    spare: Mutex<Vec<Rows>>,
}

/// All panels.
#[derive(Default)]
struct Interleaved {
    /// (panels, columns / 4, width)
    dwords: Vec<i32>,
    /// (panels, columns / group, width)
    scales: Vec<f32>,
    /// (panels, [`sums_per_token`], width)
    sums: Vec<i32>,
}

/// Words between two rows, so that rows of 2^n words do not fall into the same cache sets.
const APART: usize = 16;

/// The tokens of one panel, one behind the other.
#[derive(Default)]
struct Rows {
    codes: Vec<i32>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Activations {
    /// Empty, to be filled by [`Activations::quantize`] with the instructions of `isa`.
    ///
    /// # Panics
    /// Where the CPU does not have `isa`.
    pub fn new(isa: Isa) -> Activations {
        Activations::of(isa.backend().unwrap_or_else(|| panic!("this CPU has no {isa}")))
    }

    /// The same for a backend.
    pub(super) fn of(backend: Backend) -> Activations {
        Activations {
            backend,
            grouping: Grouping::Float,
            columns: 0,
            tokens: 0,
            floats: Vec::new(),
            interleaved: OnceLock::new(),
            lines: LineStore::default(),
            spare: Mutex::new(Vec::new()),
        }
    }

    /// How the activations are grouped.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Activations of one token.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Take `x` (tokens, columns).
    ///
    /// A NaN becomes code 0, as in ggml; a group with an infinity gets a scale that makes the product NaN or infinite.
    ///
    /// # Panics
    /// Where `columns` is not a multiple of the group, or `x` is not a whole number of rows.
    pub fn quantize(&mut self, x: &[f32], columns: usize, grouping: Grouping, threads: &Threads) {
        let group = grouping.group();
        assert!(columns.is_multiple_of(group), "{columns} columns in groups of {group}");
        assert!(
            x.len().is_multiple_of(columns.max(1)),
            "{} activations in rows of {columns}",
            x.len()
        );
        (self.grouping, self.columns) = (grouping, columns);
        self.tokens = x.len().checked_div(columns).unwrap_or(0);
        self.lines.clear();
        match grouping {
            Grouping::Float => return self.take_floats(x, |x| x, threads),
            Grouping::F16 => return self.take_floats(x, |x| f16::from_f32(x).to_f32(), threads),
            Grouping::Bf16 => return self.take_floats(x, |x| bf16::from_f32(x).to_f32(), threads),
            Grouping::Q8_0 | Grouping::K(_) => {}
        }
        let backend = self.backend;
        let enough = backend.lines.is_some_and(|least| self.tokens >= least);
        if enough && group.is_multiple_of(LINE) {
            return self.fill_lines(x, backend.gemv, threads);
        }
        let mut interleaved = self.interleaved.take().unwrap_or_default();
        if self.tokens == 1 {
            // A panel of one is the row itself.
            interleaved.resize(1, columns, group);
            let Interleaved { dwords, scales, sums } = &mut interleaved;
            let codes = bytemuck::cast_slice_mut(dwords);
            backend.gemv.quantize(x, grouping, codes, scales);
            backend.gemv.sums(codes, &mut sums[..columns / STEP]);
            fill_longer_sums(sums, columns, group, 1);
        } else {
            interleaved.resize(self.padded(), columns, group);
            let panels = interleaved.panels(columns, group).zip(x.chunks(NR * columns));
            let panels: Vec<_> = panels.map(Mutex::new).collect();
            threads.run(panels.len(), |i| {
                let (panel, x) = &mut *lock(&panels[i]);
                with_rows(&self.spare, |rows| {
                    rows.quantize(x, panel.width, backend.gemv, columns, grouping);
                    rows.interleave(group, backend.gemv, panel);
                });
            });
        }
        let _ = self.interleaved.set(interleaved);
    }

    /// Take `x`, and make its lines.
    fn fill_lines(&mut self, x: &[f32], kernel: &dyn Kernel, threads: &Threads) {
        let (columns, grouping) = (self.columns, self.grouping);
        let panels = self.tokens.div_ceil(NR);
        self.interleaved.take();
        let lines = self.lines.make(panels, columns, grouping.group());
        let panels: Vec<_> = lines.into_iter().zip(x.chunks(NR * columns)).map(Mutex::new).collect();
        threads.run(panels.len(), |i| {
            let (lines, x) = &mut *lock(&panels[i]);
            with_rows(&self.spare, |rows| {
                let mut tokens = x.chunks(columns);
                for token in 0..NR {
                    rows.quantize(tokens.next().unwrap_or(&[]), 1, kernel, columns, grouping);
                    let (codes, scales, _) = rows.row(0, columns, grouping.group());
                    lines.put(token, codes, scales);
                }
            });
        });
    }

    /// Whether there are lines.
    pub(super) fn has_lines(&self) -> bool {
        self.lines.are_there()
    }

    /// Make ready what all products but those of lines read.
    pub(super) fn interleave(&self, threads: &Threads) {
        let (columns, group) = (self.columns, self.grouping.group());
        self.interleaved.get_or_init(|| {
            let mut interleaved = Interleaved::default();
            interleaved.resize(self.padded(), columns, group);
            let panels: Vec<_> = interleaved.panels(columns, group).map(Mutex::new).collect();
            threads.run(panels.len(), |i| {
                let panel = &mut *lock(&panels[i]);
                with_rows(&self.spare, |rows| {
                    rows.resize(panel.width, columns, group);
                    for token in 0..panel.width {
                        let (codes, scales, _) = rows.row(token, columns, group);
                        self.lines.row(i, token, codes, scales);
                    }
                    rows.interleave(group, self.backend.gemv, panel);
                });
            });
            drop(panels);
            interleaved
        });
    }

    /// Tokens of all panels, those that are not there included.
    fn padded(&self) -> usize {
        self.panels().map(|(_, width)| width).sum()
    }

    /// Interleave `x`, rounded.
    fn take_floats(&mut self, x: &[f32], round: impl Fn(f32) -> f32 + Sync, threads: &Threads) {
        let columns = self.columns;
        self.floats.clear();
        self.floats.resize(self.padded() * columns, 0.0);
        let panel = (NR * columns).max(1);
        let panels: Vec<_> = self
            .floats
            .chunks_mut(panel)
            .zip(x.chunks(panel))
            .map(Mutex::new)
            .collect();
        threads.run(panels.len(), |i| {
            let (to, x) = &mut *lock(&panels[i]);
            floats::interleave(x, columns, to.len() / columns, to);
            to.iter_mut().for_each(|x| *x = round(*x));
        });
    }

    /// The tokens of each panel, and how many are interleaved there.
    pub(super) fn panels(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let tokens = self.tokens;
        (0..tokens).step_by(NR).map(move |first| {
            let width = panel_width(tokens - first);
            (first..tokens.min(first + NR), width)
        })
    }

    /// Panel `index`, where there are no codes.
    pub(super) fn float_panel(&self, index: usize) -> FloatPanel<'_> {
        let first = index * NR;
        let width = panel_width(self.tokens - first);
        FloatPanel {
            width,
            x: &self.floats[first * self.columns..][..width * self.columns],
        }
    }

    /// Some columns of panel `index`, whole groups, with the sums of runs of `run` of them.
    pub(super) fn panel(&self, index: usize, columns: Range<usize>, run: usize) -> Panel<'_> {
        let (first, group) = (index * NR, self.grouping.group());
        let width = panel_width(self.tokens - first);
        // A number for each `each` columns, in lists of `list` numbers a token, of which the first `skip` are others.
        let range = |each: usize, list: usize, skip: usize| {
            let number = |column: usize| first * list + (skip + column / each) * width;
            number(columns.start)..number(columns.end)
        };
        let shorter: usize = run_lengths(run).map(|run| self.columns / run).sum();
        let skip = shorter - self.columns / run;
        let all = self.interleaved.get().expect("made ready before");
        Panel {
            width,
            group,
            dwords: &all.dwords[range(4, self.columns / 4, 0)],
            scales: &all.scales[range(group, self.columns / group, 0)],
            sums: &all.sums[range(run, sums_per_token(self.columns, group), skip)],
            lines: Lines::default(),
        }
    }

    /// The tokens of each 16, where there are lines.
    pub(super) fn line_panels(&self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let tokens = self.tokens;
        (0..tokens)
            .step_by(NR)
            .map(move |first| (first..tokens.min(first + NR), NR))
    }

    /// Some columns of 16 tokens, whole spans or the last, as lines alone.
    pub(super) fn line_panel(&self, index: usize, columns: Range<usize>) -> Panel<'_> {
        let group = self.grouping.group();
        let (scales, lines) = self.lines.of_panel(index, columns, group);
        Panel {
            width: NR,
            group,
            dwords: &[],
            scales,
            sums: &[],
            lines,
        }
    }
}

/// Width of the panel that begins where `tokens` tokens are left.
fn panel_width(tokens: usize) -> usize {
    match tokens {
        1 => 1,
        2..=12 => tokens.next_multiple_of(4),
        _ => NR,
    }
}

/// A panel that is being filled.
struct PanelMut<'a> {
    width: usize,
    dwords: &'a mut [i32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Interleaved {
    /// Room for so many tokens.
    fn resize(&mut self, tokens: usize, columns: usize, group: usize) {
        self.dwords.resize(tokens * columns / 4, 0);
        self.scales.resize(tokens * columns / group, 0.0);
        self.sums.resize(tokens * sums_per_token(columns, group), 0);
    }

    /// Its panels.
    fn panels(&mut self, columns: usize, group: usize) -> impl Iterator<Item = PanelMut<'_>> {
        let dwords = self.dwords.chunks_mut(NR * columns / 4);
        let scales = self.scales.chunks_mut(NR * columns / group);
        let sums = self.sums.chunks_mut(NR * sums_per_token(columns, group));
        dwords
            .zip(scales)
            .zip(sums)
            .map(move |((dwords, scales), sums)| PanelMut {
                width: dwords.len() / (columns / 4),
                dwords,
                scales,
                sums,
            })
    }
}

/// Number of sums over runs of 16, 32 ... `group` columns.
fn sums_per_token(columns: usize, group: usize) -> usize {
    run_lengths(group).map(|run| columns / run).sum()
}

fn run_lengths(group: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(STEP), |run| Some(run * 2)).take_while(move |&run| run <= group)
}

/// From sums over runs of 16 columns at the front of `sums` make those over 32, 64 ... `group`, one list behind the other,
/// of `width` tokens:
/// ```text
/// columns   0   16   32   48   64   80   96  112
/// runs of 16   [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ][ 7 ]     sums[0..8]
/// runs of 32   [ 0 +  1 ][ 2 +  3 ][ 4 +  5 ][ 6 +  7 ]     sums[8..12]
/// runs of 64   [ 0   ...    3     ][ 4    ...   7     ]     sums[12..14]
/// ```
fn fill_longer_sums(sums: &mut [i32], columns: usize, group: usize, width: usize) {
    let mut shorter = sums;
    for run in run_lengths(group).skip(1) {
        let (from, rest) = shorter.split_at_mut(2 * (columns / run) * width);
        for (to, from) in rest.chunks_exact_mut(width).zip(from.chunks_exact(2 * width)) {
            let (a, b) = from.split_at(width);
            for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
                *to = a + b;
            }
        }
        shorter = rest;
    }
}

impl Rows {
    /// Room for so many tokens.
    fn resize(&mut self, width: usize, columns: usize, group: usize) {
        self.codes.resize(width * (columns / 4 + APART), 0);
        self.scales.resize(width * (columns / group + APART), 0.0);
        self.sums.resize(width * (columns / STEP + APART), 0);
    }

    /// Codes, scales and sums of a token.
    fn row(&mut self, token: usize, columns: usize, group: usize) -> (&mut [i32], &mut [f32], &mut [i32]) {
        let range = |length: usize| token * (length + APART)..token * (length + APART) + length;
        (
            &mut self.codes[range(columns / 4)],
            &mut self.scales[range(columns / group)],
            &mut self.sums[range(columns / STEP)],
        )
    }

    /// Quantize the tokens of `x`, of which there are up to `width`; those that are not there are 0.
    fn quantize(&mut self, x: &[f32], width: usize, kernel: &dyn Kernel, columns: usize, grouping: Grouping) {
        self.resize(width, columns, grouping.group());
        let mut tokens = x.chunks_exact(columns);
        for token in 0..width {
            let (codes, scales, _) = self.row(token, columns, grouping.group());
            match tokens.next() {
                Some(x) => kernel.quantize(x, grouping, bytemuck::cast_slice_mut(codes), scales),
                None => {
                    codes.fill(0);
                    scales.fill(0.0);
                }
            }
        }
    }

    /// Interleave the first tokens in `panel`.
    fn interleave(&mut self, group: usize, kernel: &dyn Kernel, panel: &mut PanelMut<'_>) {
        let PanelMut {
            width,
            dwords,
            scales,
            sums,
        } = panel;
        let columns = dwords.len() / *width * 4;
        for token in 0..*width {
            let (codes, _, sums) = self.row(token, columns, group);
            kernel.sums(bytemuck::cast_slice(codes), sums);
        }
        interleave(&self.codes, *width, dwords);
        interleave(&self.scales, *width, scales);
        interleave(&self.sums, *width, &mut sums[..columns / STEP * *width]);
        fill_longer_sums(sums, columns, group, *width);
    }
}

/// Do something with rows that are kept in `spare` meanwhile.
fn with_rows(spare: &Mutex<Vec<Rows>>, task: impl FnOnce(&mut Rows)) {
    let mut rows = lock(spare).pop().unwrap_or_default();
    task(&mut rows);
    lock(spare).push(rows);
}

/// `to[i * width + token] = from[token * (length + APART) + i]`, four tokens at a time.
fn interleave<T: Copy>(from: &[T], width: usize, to: &mut [T]) {
    let length = to.len() / width;
    if width == 1 {
        return to.copy_from_slice(&from[..length]);
    }
    for first in (0..width).step_by(4) {
        let row = |token: usize| &from[(first + token) * (length + APART)..][..length];
        let rows = row(0).iter().zip(row(1)).zip(row(2)).zip(row(3));
        for (to, (((a, b), c), d)) in to.chunks_exact_mut(width).zip(rows) {
            to[first..first + 4].copy_from_slice(&[*a, *b, *c, *d]);
        }
    }
}
