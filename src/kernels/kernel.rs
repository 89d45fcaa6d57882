//! What an instruction set offers: a kernel for everything, and perhaps a faster way to multiply many tokens.

use super::contract::{FloatPanel, Grouping, MR, Panel, Tile};
use super::floats::Floats;
use super::packed::{KPanel, Packed};
use super::tiles::Out;
use std::ops::Range;

/// The ways of an instruction set to multiply.
#[derive(Clone, Copy)]
pub(super) struct Backend {
    /// Its name in reports.
    pub name: &'static str,
    /// Every product, of one token or of a panel.
    pub gemv: &'static dyn Kernel,
    /// A faster way for many tokens.
    pub gemm: Option<LoadGemm>,
    /// From how many tokens activations have [`Panel::lines`], for that.
    pub lines: Option<usize>,
}

/// Get ready to multiply this matrix and activations of this grouping; None where there is no faster way. What is
/// prepared here lives as long as the matrix.
pub(super) type LoadGemm = fn(&Packed, Grouping) -> Option<Box<dyn Gemm>>;

/// The two operations that cost time: to quantize activations, and to multiply.
pub(super) trait Kernel: Sync {
    /// Add the product of the row groups `groups` with the activations of the K-panel's columns:
    /// `out[(g - groups.start) * panel.width + token][row]` is `result` above, before and after.
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]);

    /// Quantize one token: `x` to `codes` (as many), one scale per group.
    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]);

    /// The sums of each [`STEP`] codes.
    fn sums(&self, codes: &[i8], sums: &mut [i32]);

    /// Run the dot instruction on operands in the first-level cache, `repeats` times; returns the multiplications of one
    /// repeat. No kernel can pass that rate without look-ups; None where nothing was written to measure it.
    fn dots(&self, _repeats: usize) -> Option<usize> {
        None
    }

    /// The same for a matrix of floats, see [`super::floats`].
    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; MR]]);
}

/// A product of one matrix with many tokens.
pub(super) trait Gemm: Send + Sync {
    /// From how many tokens it is faster than the kernel, where each thread has so many rows; None: never.
    fn least_tokens(&self, rows: usize) -> Option<usize>;

    /// It multiplies panels whose width is a multiple of this; narrower ones are left to the kernel.
    fn width(&self) -> usize;

    /// Whether it reads [`Panel::lines`]; else what is interleaved.
    fn reads_lines(&self) -> bool {
        false
    }

    /// The largest tile that it wants at a time.
    fn tile(&self) -> Tile;

    /// As [`Kernel::dots`], where its instruction is another one.
    fn dots(&self, _repeats: usize) -> Option<usize> {
        None
    }

    /// [`Kernel::multiply`] for several panels, which are the first of `out`.
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut Out<'_>);
}
