//! What a product multiplies, step by step: a step is a span of two row groups.

use super::codes::{PackedBlocks, STEP_BYTES};
use super::registers::Block;
use super::results::{Factors, Place, Results};
use super::{BLOCKS, COLUMNS};
use crate::kernels::contract::{NR, Panel, Runs, SPAN, STEP};
use crate::kernels::packed::{KPanel, RowGroup};
use crate::kernels::x86::zmm::halves;
use std::ops::Range;

/// Some row groups of a K-panel and some panels of 16 tokens.
pub(super) struct Operands<'a> {
    /// The parts of all row groups.
    weights: RowGroup<'a>,
    groups: usize,
    columns: usize,
    /// A multiplier is for `STEP << shift` columns.
    shift: u32,
    panels: &'a [Panel<'a>],
    runs: Runs,
}

/// A span of two row groups.
#[derive(Clone, Copy)]
pub(super) struct Step {
    /// The first of the row groups.
    group: usize,
    span: usize,
}

impl<'a> Operands<'a> {
    /// `runs`: spans, where multipliers are applied to integers.
    pub fn new(weights: &KPanel<'a>, groups: Range<usize>, panels: &'a [Panel<'a>], runs: Runs) -> Self {
        Operands {
            weights: weights.row_groups(groups.clone()),
            groups: groups.len(),
            columns: weights.columns().len(),
            shift: (weights.format.group / STEP).trailing_zeros(),
            panels,
            runs,
        }
    }

    /// The first step, if there are any.
    pub fn first_step(&self) -> Option<Step> {
        (self.groups > 0 && self.columns > 0).then_some(Step { group: 0, span: 0 })
    }

    /// The step after that.
    #[inline]
    pub fn after(&self, step: Step) -> Option<Step> {
        let Step { group, span } = step;
        if (span + 1) * SPAN < self.columns {
            return Some(Step { group, span: span + 1 });
        }
        (group + 2 < self.groups).then_some(Step {
            group: group + 2,
            span: 0,
        })
    }

    /// Blocks of each row group in that span.
    #[inline]
    pub fn blocks(&self, step: Step) -> usize {
        (self.columns / COLUMNS - step.span * BLOCKS).min(BLOCKS)
    }

    /// The blocks of run `run` of the span, of each row group; where there is no second one, of the first once more.
    #[inline(always)]
    pub fn packed<const K: usize>(&self, step: Step, run: usize) -> [PackedBlocks<'a, K>; 2] {
        [self.packed_group(step, run, 0), self.packed_group(step, run, 1)]
    }

    #[inline(always)]
    fn packed_group<const K: usize>(&self, step: Step, run: usize, i: usize) -> PackedBlocks<'a, K> {
        let column = |group: usize| group.min(self.groups - 1) * self.columns + step.span * SPAN + run * K * COLUMNS;
        let steps = |group: usize| {
            let blocks = self.weights.codes.as_chunks::<STEP_BYTES>().0.as_chunks().0;
            blocks[column(group) / COLUMNS..]
                .first_chunk()
                .expect("the blocks of a run")
        };
        let multipliers = match self.weights.multipliers {
            [] => &[],
            all => {
                let count = |columns: usize| (columns / STEP) >> self.shift;
                &all[count(column(step.group + i))..][..count(K * COLUMNS)]
            }
        };
        PackedBlocks {
            steps: steps(step.group + i),
            later: steps(step.group + i + 2),
            multipliers,
            shift: self.shift,
        }
    }

    /// Each two panels, and their activations of a span.
    #[inline(always)]
    pub fn panels(&self, step: Step) -> impl Iterator<Item = (&'a [Panel<'a>], &'a [[Block; BLOCKS]])> {
        let lines = self.panels[0].lines.span(step.span, self.panels.len());
        let lines = lines.as_flattened().as_chunks().0.as_chunks().0;
        self.panels.chunks(2).zip(lines.chunks(2))
    }

    /// What makes results of the sums of run `run` of a span, and of `panels`, the two from 2 * `two` on. (Without
    /// features of its own, so that it is inlined always.)
    ///
    /// # Safety
    /// The CPU has AVX-512 F and F16C.
    #[inline(always)]
    pub unsafe fn factors<const K: usize>(
        &self,
        step: Step,
        two: usize,
        panels: &'a [Panel<'a>],
        run: usize,
        results: &mut Results<'_>,
    ) -> Factors<'a> {
        let (inner, run) = (self.runs.inner, step.span * (BLOCKS / K) + run);
        let outer = run >> inner.trailing_zeros();
        let (of_weights, of_activations, scales) = match self.runs.activation_inside {
            true => (outer, run, self.runs.outer),
            false => (run, outer, self.runs.outer * inner),
        };
        let weights = |i: usize| {
            let group = (step.group + i).min(self.groups - 1);
            // SAFETY: the caller has the instructions.
            unsafe { halves(&self.weights.scales[group * scales + of_weights]) }
        };
        let activations = |panel: &Panel<'a>| &panel.scales.as_chunks::<NR>().0[of_activations];
        let place = Place {
            panel: 2 * two,
            panels: panels.len(),
            group: step.group,
            groups: (self.groups - step.group).min(2),
        };
        let (from, to) = results.unfinished(place, outer == 0);
        let spans = self.columns.div_ceil(SPAN);
        if step.span + 1 < spans {
            results.expect(place, step.span, spans - 1);
        }
        Factors {
            weights: [weights(0), weights(1)],
            activations: [activations(&panels[0]), activations(&panels[panels.len() - 1])],
            place,
            from,
            to,
            first: run == outer * inner,
            last: run + 1 == (outer + 1) * inner,
            finishes: run + 1 == self.runs.outer * inner,
        }
    }
}
