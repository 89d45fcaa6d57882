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
use super::kernel::Kernel;
use super::lines::LineStore;
use super::threads::{Threads, lock};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Mutex;

/// The activations of some tokens, ready for every matrix that wants this [`Grouping`].
///
/// Make one and use it again: it keeps its memory.
///
/// What is interleaved lies panel by panel, `width` numbers for each item: see `Panel` and `FloatPanel`.
pub struct Activations {
    isa: Isa,
    grouping: Grouping,
    columns: usize,
    tokens: usize,
    /// (panels, columns, width), where there are no codes.
    floats: Vec<f32>,
    /// (panels, columns / 4, width)
    dwords: Vec<i32>,
    /// (panels, columns / group, width)
    scales: Vec<f32>,
    /// (panels, [`sums_per_token`], width)
    sums: Vec<i32>,
    /// See `Panel::lines`.
    lines: LineStore,
    /// Memory for panels that are being filled.
    rows: Mutex<Vec<Rows>>,
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
        assert!(isa.backend().is_some(), "this CPU has no {isa}");
        Activations {
            isa,
            grouping: Grouping::Float,
            columns: 0,
            tokens: 0,
            floats: Vec::new(),
            dwords: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
            lines: LineStore::default(),
            rows: Mutex::new(Vec::new()),
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
        self.lines.clear();
        self.tokens = x.len().checked_div(columns).unwrap_or(0);
        match grouping {
            Grouping::Float => return self.take_floats(x, |x| x, threads),
            Grouping::F16 => return self.take_floats(x, |x| f16::from_f32(x).to_f32(), threads),
            Grouping::Bf16 => return self.take_floats(x, |x| bf16::from_f32(x).to_f32(), threads),
            Grouping::Q8_0 | Grouping::K(_) => {}
        }
        let backend = self.isa.backend().expect("checked when it was made");
        let kernel = backend.gemv;
        let padded: usize = self.panels().map(|(_, width)| width).sum();
        let sums = sums_per_token(columns, group);
        self.dwords.resize(padded * columns / 4, 0);
        self.scales.resize(padded * columns / group, 0.0);
        self.sums.resize(padded * sums, 0);
        if self.tokens == 1 {
            // A panel of one is the row itself.
            let codes = bytemuck::cast_slice_mut(&mut self.dwords);
            kernel.quantize(x, grouping, codes, &mut self.scales, &mut self.sums[..columns / STEP]);
            fill_longer_sums(&mut self.sums, columns, group);
            return;
        }
        let panels: Vec<Mutex<PanelMut<'_>>> = self
            .dwords
            .chunks_mut(NR * columns / 4)
            .zip(self.scales.chunks_mut(NR * columns / group))
            .zip(self.sums.chunks_mut(NR * sums))
            .zip(x.chunks(NR * columns))
            .map(|(((dwords, scales), sums), x)| {
                Mutex::new(PanelMut {
                    x,
                    dwords,
                    scales,
                    sums,
                })
            })
            .collect();
        threads.run(panels.len(), |i| {
            let mut rows = lock(&self.rows).pop().unwrap_or_default();
            lock(&panels[i]).fill(kernel, columns, grouping, &mut rows);
            lock(&self.rows).push(rows);
        });
    }

    /// Interleave `x`, rounded.
    fn take_floats(&mut self, x: &[f32], round: impl Fn(f32) -> f32 + Sync, threads: &Threads) {
        let columns = self.columns;
        let padded: usize = self.panels().map(|(_, width)| width).sum();
        self.floats.clear();
        self.floats.resize(padded * columns, 0.0);
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
        Panel {
            width,
            group,
            dwords: &self.dwords[range(4, self.columns / 4, 0)],
            scales: &self.scales[range(group, self.columns / group, 0)],
            sums: &self.sums[range(run, sums_per_token(self.columns, group), skip)],
            lines: match width {
                NR => self.lines.of_panel(index, columns.start),
                _ => Lines::default(),
            },
        }
    }

    /// Make the lines of all panels of 16 tokens, if they are not there.
    pub(super) fn make_lines(&self, threads: &Threads) {
        let panels = self.panels().filter(|(_, width)| *width == NR).count();
        let dwords = &self.dwords[..panels * NR * self.columns / 4];
        self.lines.make(dwords, panels, threads);
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

/// Number of sums over runs of 16, 32 ... `group` columns.
fn sums_per_token(columns: usize, group: usize) -> usize {
    run_lengths(group).map(|run| columns / run).sum()
}

fn run_lengths(group: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(STEP), |run| Some(run * 2)).take_while(move |&run| run <= group)
}

/// From sums over runs of 16 at the front of `sums` make those over 32, 64 ... `group`, one list behind the other:
/// ```text
/// columns   0   16   32   48   64   80   96  112
/// runs of 16   [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ][ 7 ]     sums[0..8]
/// runs of 32   [ 0 +  1 ][ 2 +  3 ][ 4 +  5 ][ 6 +  7 ]     sums[8..12]
/// runs of 64   [ 0   ...    3     ][ 4    ...   7     ]     sums[12..14]
/// ```
fn fill_longer_sums(sums: &mut [i32], columns: usize, group: usize) {
    let mut shorter = sums;
    for run in run_lengths(group).skip(1) {
        let (from, rest) = shorter.split_at_mut(2 * (columns / run));
        for (to, &[a, b]) in rest.iter_mut().zip(from.as_chunks().0) {
            *to = a + b;
        }
        shorter = rest;
    }
}

/// A panel being filled from its rows of `x`.
struct PanelMut<'a> {
    x: &'a [f32],
    dwords: &'a mut [i32],
    scales: &'a mut [f32],
    sums: &'a mut [i32],
}

impl PanelMut<'_> {
    fn fill(&mut self, kernel: &dyn Kernel, columns: usize, grouping: Grouping, rows: &mut Rows) {
        let group = grouping.group();
        let width = self.dwords.len() / (columns / 4);
        let (dwords, scales) = (columns / 4, columns / group);
        let sums = sums_per_token(columns, group);
        for (rows, length) in [(&mut rows.codes, dwords), (&mut rows.sums, sums)] {
            rows.clear();
            rows.resize(width * (length + APART), 0);
        }
        rows.scales.clear();
        rows.scales.resize(width * (scales + APART), 0.0);
        for (token, x) in self.x.chunks_exact(columns).enumerate() {
            let codes = &mut rows.codes[token * (dwords + APART)..][..dwords];
            let scales = &mut rows.scales[token * (scales + APART)..][..scales];
            let sums = &mut rows.sums[token * (sums + APART)..][..sums];
            let codes = bytemuck::cast_slice_mut(codes);
            kernel.quantize(x, grouping, codes, scales, &mut sums[..columns / STEP]);
            fill_longer_sums(sums, columns, group);
        }
        interleave(&rows.codes, width, self.dwords);
        interleave(&rows.scales, width, self.scales);
        interleave(&rows.sums, width, self.sums);
    }
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
