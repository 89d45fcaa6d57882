//! What every kernel computes, and how activations come to it. Everything in this room hangs from here.
//!
//! A kernel multiplies 16 rows at a time, one vector lane a row, by a panel of up to 16 tokens:
//!
//! ```text
//! outer run = the longer of weight group and activation group,  inner run = the shorter
//! result = 0
//! for each K-panel, for each outer run:
//!     partial = 0
//!     for each inner run in it:
//!         dot     = sum over the inner run of stored code * activation  -  2^shift * sum of activations     exact, i32
//!         partial = fma(dot, scale of the inner run, partial)                                              f32
//!     result = fma(partial, scale of the outer run, result)                                                f32
//! ```
//! Where scales are an f16 times multipliers (K types) and activations share a scale over the same 256 columns, a span,
//! multipliers are applied to the integers:
//!
//! ```text
//! for each span:
//!     total  = sum over its runs of multiplier * (sum over the run of stored code * activation)            exact, i32
//!     offset = sum over its runs of multiplier, or of the minimum's, * sum of activations                   exact, i32
//!     partial = (total - 2^shift * offset) * scale     or     fma(-minimum, offset, total * scale)         f32
//!     result = fma(partial, scale of the activations, result)                                              f32
//! ```
//! Where activations have a scale for fewer columns, the first form holds: an f16 times a multiplier is exact in f32. Where
//! there are minimums, codes then count from 1, as ternary ones do, and what that leaves is added after a K-panel:
//!
//! ```text
//! for each weight group:
//!     offset = 0
//!     for each inner run in it:  offset = fma(sum of activations, scale of the activations, offset)         f32
//!     result = fma(scale - minimum, offset, result)                                                        f32
//! ```
//! The order of the f32 operations is part of the contract, so every kernel gives the same bits, for one token or many.

/// Rows that are interleaved: one 512-bit vector holds one 32-bit sum for each.
pub(super) const MR: usize = 16;
/// Columns of one step, the smallest piece of packed weights: `MR * STEP` codes.
pub(super) const STEP: usize = 16;
/// Most tokens in a panel.
pub(super) const NR: usize = 16;
/// Columns of a span.
pub(super) const SPAN: usize = 256;

/// How activations share scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grouping {
    /// No codes: the matrix multiplies f32 activations.
    Float,
    /// No codes: f32 activations that are rounded to f16.
    F16,
    /// No codes: f32 activations that are rounded to bf16.
    Bf16,
    /// One f16 scale per 32, positive (ggml's Q8_0).
    Q8_0,
    /// One f32 scale per 64, 128 or 256; its sign makes the largest activation -127 (256: ggml's Q8_K).
    K(usize),
}

impl Grouping {
    /// The same, where activations that would be rounded to halves are left in f32.
    pub fn exact(self) -> Grouping {
        match self {
            Grouping::F16 | Grouping::Bf16 => Grouping::Float,
            codes => codes,
        }
    }

    /// Activations that share a scale.
    pub fn group(self) -> usize {
        match self {
            Grouping::Float | Grouping::F16 | Grouping::Bf16 => 1,
            Grouping::Q8_0 => 32,
            Grouping::K(group) => group,
        }
    }
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
    /// `dwords[q * width + token]`: activations 4q to 4q + 3 as the bytes of a word, in memory order.
    pub dwords: &'a [i32],
    /// `scales[g * width + token]`: the scale of activation group g.
    pub scales: &'a [f32],
    /// `sums[r * width + token]`: the sum of the activations of inner run r.
    pub sums: &'a [i32],
    /// The same activations as tiles read them, in place of `dwords` and `sums`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "read by x86-64's tiles"))]
    pub lines: Lines<'a>,
}

/// 64 activations of a token, in a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [i32; 16]);

impl Line {
    pub const ZERO: Line = Line([0; 16]);
}

/// The lines of a span and a panel: 16 tokens of columns 0 to 63, then of 64 to 127, ...
pub(super) const SPAN_LINES: usize = SPAN / 64 * NR;

/// The activations of a panel of 16 tokens, a line for each token. What is multiplied together lies together: a span of
/// all panels, then the next.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "read by x86-64's tiles"))]
#[derive(Clone, Copy, Default)]
pub(super) struct Lines<'a> {
    /// From the first span of the panel on.
    pub lines: &'a [Line],
    /// Panels that have lines.
    pub panels: usize,
}

impl<'a> Lines<'a> {
    /// Those of span `index`, of `panels` panels from this one on.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "read by x86-64's tiles"))]
    pub fn span(&self, index: usize, panels: usize) -> &'a [[Line; SPAN_LINES]] {
        let lines = &self.lines[index * self.panels * SPAN_LINES..];
        &lines.as_chunks().0[..panels]
    }
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

/// Up to 16 tokens, interleaved.
#[derive(Clone, Copy)]
pub(super) struct FloatPanel<'a> {
    /// Tokens interleaved: 1, 4, 8, 12 or 16. Tokens that are not there are zero.
    pub width: usize,
    /// `x[c * width + token]`: activation c.
    pub x: &'a [f32],
}
