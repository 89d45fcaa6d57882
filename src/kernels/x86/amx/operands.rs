//! What a product multiplies, step by step: a step is a span of two row groups.

use super::BLOCKS;
use super::codes::PackedSpan;
use super::registers::Block;
use super::results::Factors;
use crate::kernels::contract::{MR, NR, Panel, Runs, SPAN, STEP};
use crate::kernels::packed::KPanel;
use crate::kernels::x86::fetch_to_l2;
use crate::kernels::x86::zmm::halves;
use std::ops::Range;

/// Some row groups of a K-panel and some panels of 16 tokens.
pub(super) struct Operands<'a> {
    pub weights: &'a KPanel<'a>,
    pub groups: Range<usize>,
    pub panels: &'a [Panel<'a>],
    /// Where multipliers are applied to integers, a span is a run.
    pub runs: Runs,
}

/// The weights of a step.
pub(super) struct Weights<'a> {
    /// The first of the row groups, counted from the first of the operands.
    first: usize,
    span: usize,
    /// Of each row group; where there is no second one, of the first once more.
    pub packed: [PackedSpan<'a>; 2],
    /// The scales of all spans of each row group.
    scales: [&'a [[u8; 2 * MR]]; 2],
}

impl Weights<'_> {
    /// Blocks of each row group.
    pub fn blocks(&self) -> usize {
        self.packed[0].blocks()
    }
}

impl<'a> Operands<'a> {
    fn spans(&self) -> usize {
        self.weights.columns().len().div_ceil(SPAN)
    }

    pub fn steps(&self) -> usize {
        self.groups.len().div_ceil(2) * self.spans()
    }

    /// The weights of a step, if there is such a step.
    pub fn weights(&self, step: usize) -> Option<Weights<'a>> {
        if step >= self.steps() {
            return None;
        }
        let (first, span) = (2 * (step / self.spans()), step % self.spans());
        let second = (first + 1).min(self.groups.len() - 1);
        let row_groups = [first, second].map(|group| self.weights.row_group(self.groups.start + group));
        let format = &self.weights.format;
        let multiplied = self.weights.in_spans(&self.panels[0]);
        Some(Weights {
            first,
            span,
            packed: row_groups.map(|group| PackedSpan {
                codes: part(group.codes.as_chunks().0, span, STEP),
                multipliers: if multiplied {
                    part(group.multipliers, span, format.group)
                } else {
                    &[]
                },
                shift: (format.group / STEP).trailing_zeros(),
            }),
            scales: row_groups.map(|group| group.scales),
        })
    }

    /// Fetch the codes of the same columns of the next two row groups.
    pub fn fetch_after(&self, step: usize) {
        for packed in self.weights(step + self.spans()).iter().flat_map(|next| &next.packed) {
            fetch_to_l2(packed.codes.as_flattened());
        }
    }

    /// The activations of run `run` of a span: of panel 2 * `two`, and of the next if there is one.
    #[inline]
    pub fn lines<const K: usize>(
        &self,
        weights: &Weights<'_>,
        two: usize,
        run: usize,
    ) -> (&'a [Block; K], Option<&'a [Block; K]>) {
        let lines = |panel: &Panel<'a>| &panel.lines.span(weights.span).as_chunks().0.as_chunks().0[run];
        (lines(&self.panels[2 * two]), self.panels.get(2 * two + 1).map(lines))
    }

    /// What makes results of the sums of that run.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    pub fn factors<const K: usize>(&self, weights: &Weights<'a>, two: usize, run: usize) -> Factors<'a> {
        let (inner, run) = (self.runs.inner, weights.span * (BLOCKS / K) + run);
        let outer = run >> inner.trailing_zeros();
        let (of_weights, of_activations) = match self.runs.activation_inside {
            true => (outer, run),
            false => (run, outer),
        };
        let panel = |i: usize| &self.panels[(2 * two + i).min(self.panels.len() - 1)];
        let activations = |i: usize| &panel(i).scales.as_chunks::<NR>().0[of_activations];
        let result = |panel: usize, group: usize| {
            let (panel, group) = (2 * two + panel, weights.first + group);
            let is_there = panel < self.panels.len() && group < self.groups.len();
            is_there.then_some(panel * self.groups.len() + group)
        };
        Factors {
            weights: weights.scales.map(|scales| halves(&scales[of_weights])),
            activations: [activations(0), activations(1)],
            results: [result(0, 0), result(0, 1), result(1, 0), result(1, 1)],
            first: run == outer * inner,
            last: run + 1 == (outer + 1) * inner,
        }
    }
}

/// Of one item for each `each` columns those of span `span`.
fn part<T>(all: &[T], span: usize, each: usize) -> &[T] {
    let rest = &all[span * SPAN / each..];
    &rest[..rest.len().min(SPAN / each)]
}
