//! What minimums add to a product whose scales are applied as floats. It depends on weights through their factors alone,
//! so it is no work for a kernel: the same code for all of them, in the widest vectors.

use super::contract::{MR, Panel};
use super::packed::KPanel;
use crate::simd::{Lanes, Level, Work};
use std::ops::Range;

/// Add `(scale - minimum) * offset` of each group of weights to `out`, the product of the row groups `groups` with a panel.
pub(super) fn add_minimums(weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]) {
    let offsets = offsets(weights, panel);
    Level::widest().run(AddMinimums {
        weights,
        groups,
        offsets: &offsets,
        width: panel.width,
        out,
    });
}

/// The sum of the activations of each group of weights: `offsets[g * width + token]`.
fn offsets(weights: &KPanel<'_>, panel: &Panel<'_>) -> Vec<f32> {
    let (runs, width) = (weights.runs(panel), panel.width);
    let mut offsets = vec![0.0f32; weights.columns().len() / weights.format.group * width];
    for (run, sums) in panel.sums.chunks_exact(width).enumerate() {
        let column = run * runs.columns;
        let scales = &panel.scales[column / panel.group * width..][..width];
        let offsets = &mut offsets[column / weights.format.group * width..][..width];
        for ((offset, &sum), &scale) in offsets.iter_mut().zip(sums).zip(scales) {
            *offset = (sum as f32).mul_add(scale, *offset);
        }
    }
    offsets
}

struct AddMinimums<'a> {
    weights: &'a KPanel<'a>,
    groups: Range<usize>,
    offsets: &'a [f32],
    width: usize,
    out: &'a mut [[f32; MR]],
}

impl Work for AddMinimums<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        for (group, out) in self.groups.zip(self.out.chunks_exact_mut(self.width)) {
            let row_group = self.weights.row_group(group);
            for (group, offsets) in self.offsets.chunks_exact(self.width).enumerate() {
                let mut beyond = [0.0; MR];
                for (row, beyond) in beyond.iter_mut().enumerate() {
                    *beyond = row_group.scale(row, group) - row_group.minimum(row, group);
                }
                let beyond = lanes.load(&beyond);
                for (out, &offset) in out.iter_mut().zip(offsets) {
                    *out = lanes.store(lanes.fma(beyond, lanes.splat(offset), lanes.load(out)));
                }
            }
        }
    }
}
