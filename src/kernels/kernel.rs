//! What every kernel computes, and the views of weights and activations that it computes from.
//!
//! A kernel multiplies 16 rows at a time, one vector lane a row, by a panel of up to 16 tokens:
//!
//! ```text
//! outer run = the longer of weight group and activation group,  inner run = the shorter
//! result = 0
//! for each strip, for each outer run:
//!     partial = 0
//!     for each inner run in it:
//!         dot     = sum over the inner run of stored code * activation  -  2^shift * sum of activations     exact, i32
//!         partial = fma(dot, scale of the inner run, partial)                                              f32
//!     result = fma(partial, scale of the outer run, result)                                                f32
//! ```
//! Where scales are an f16 times multipliers (K types), those are applied to the integers. A span is the 256 columns of
//! an f16, and of an activation scale:
//!
//! ```text
//! for each span:
//!     total  = sum over its runs of multiplier * (sum over the run of stored code * activation)            exact, i32
//!     offset = sum over its runs of multiplier, or of the minimum's, * sum of activations                   exact, i32
//!     partial = (total - 2^shift * offset) * scale     or     fma(-minimum, offset, total * scale)         f32
//!     result = fma(partial, scale of the activations, result)                                              f32
//! ```
//! The order of the f32 operations is part of the contract, so every kernel gives the same bits, for one token or many.

use super::activations::Grouping;
use super::floats::{FloatPanel, Floats};
use super::layout::Strip;
use std::ops::Range;

/// Rows that are interleaved: one 512-bit vector holds one 32-bit sum for each.
pub(super) const ROWS: usize = 16;
/// Columns of one step, the smallest piece of packed weights: `ROWS * STEP` codes.
pub(super) const STEP: usize = 16;
/// Most tokens in a panel.
pub(super) const MAX_WIDTH: usize = 16;

/// What a kernel panics with where codes or activations end before the last run.
pub(super) const MISSING_RUN: &str = "codes and activations of every run";

/// One way to do the two operations that cost time.
pub(super) trait Kernel: Sync {
    /// Its instruction set, as in reports.
    fn name(&self) -> &'static str;

    /// Add the product of the row groups `groups` with the activations of the strip's columns:
    /// `out[(g - groups.start) * panel.width + token][row]` is `result` above, before and after.
    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; ROWS]]);

    /// A faster way where stored codes are 0, 1 and 2 alone, if there is one for so many tokens, so many rows for each
    /// thread, and inner runs of `run` columns.
    fn many(&self, _rows: usize, _run: usize, _tokens: usize) -> Option<&dyn Many> {
        None
    }

    /// Quantize one token: `x` to `codes` (as many), one scale per group, one sum of codes per [`STEP`].
    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]);

    /// Run the dot instruction on registers, `repeats` times; returns the multiplications of one repeat. No kernel can
    /// pass that rate without a way for [`Many`]; None where nothing was written to measure it.
    fn dots(&self, _repeats: usize) -> Option<usize> {
        None
    }

    /// The same for a matrix of floats, see [`super::floats`].
    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; ROWS]]);
}

/// A product of many rows and tokens at once.
pub(super) trait Many: Sync {
    /// The largest tile that it wants at a time.
    fn tile(&self) -> Tile;

    /// [`Kernel::multiply`] for several panels, whose results lie in `out` one behind the other.
    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut [[f32; ROWS]]);
}

/// The size of a part of a product.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    /// Row groups.
    pub groups: usize,
    /// Row groups that a thread is to have at least, where there are enough.
    pub least: usize,
    /// Panels.
    pub panels: usize,
}

/// Some columns of up to 16 tokens, quantized and interleaved.
#[derive(Clone, Copy)]
pub(super) struct Panel<'a> {
    /// Tokens interleaved: 1, 4, 8, 12 or 16. Tokens that are not there are zero.
    pub width: usize,
    /// Activations that share a scale.
    pub group: usize,
    /// `quads[q * width + token]`: activations 4q to 4q + 3 as the bytes of a word, in memory order.
    pub quads: &'a [i32],
    /// `scales[g * width + token]`: the scale of activation group g.
    pub scales: &'a [f32],
    /// `sums[r * width + token]`: the sum of the activations of inner run r.
    pub sums: &'a [i32],
}

/// How inner and outer runs follow from the two groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    /// Columns of an inner run.
    pub columns: usize,
    /// Inner runs in an outer run.
    pub inner: usize,
    /// Outer runs in a row.
    pub outer: usize,
    /// The inner scale is the activation's, the outer the weights'; else the other way round.
    pub activation_inside: bool,
}

impl Runs {
    pub fn new(columns: usize, weight_group: usize, activation_group: usize) -> Runs {
        let inner = weight_group.min(activation_group);
        let outer = weight_group.max(activation_group);
        assert!(columns.is_multiple_of(outer) && outer.is_multiple_of(inner));
        Runs {
            columns: inner,
            inner: outer / inner,
            outer: columns / outer,
            activation_inside: activation_group < weight_group,
        }
    }
}
