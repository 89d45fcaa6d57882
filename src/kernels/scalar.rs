//! The kernel in plain Rust: what all others are compared with, bit for bit.

use super::contract::{FloatPanel, Grouping, MR, Panel, Runs, STEP};
use super::floats::Floats;
use super::kernel::Kernel;
use super::packed::{KPanel, RowGroup};
use half::f16;
use std::ops::Range;

/// Plain Rust.
pub(super) struct Scalar;

impl Kernel for Scalar {
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]) {
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let group = weights.row_group(group);
            let add = match weights.in_spans(panel) {
                true => add_multiplied_product,
                false => add_product,
            };
            for (token, out) in out.iter_mut().enumerate() {
                for (row, out) in out.iter_mut().enumerate() {
                    *out = add(*out, weights, &group, row, panel, token);
                }
            }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
        let group = grouping.group();
        let quantize_group = match grouping {
            Grouping::Q8_0 => quantize_q8_0,
            _ => quantize_k,
        };
        for ((x, codes), scale) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).zip(scales) {
            *scale = quantize_group(x, codes);
        }
    }

    fn sums(&self, codes: &[i8], sums: &mut [i32]) {
        for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<STEP>().0) {
            *sum = codes.iter().map(|&code| i32::from(code)).sum();
        }
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; MR]]) {
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let group = weights.group(group);
            for (token, out) in out.iter_mut().enumerate() {
                for (row, out) in out.iter_mut().enumerate() {
                    let mut chains = [0.0f32; 2];
                    for (column, x) in panel.x.chunks_exact(panel.width).enumerate() {
                        let weight = weights.ty.weight(group, column * MR + row);
                        let chain = &mut chains[column % 2];
                        *chain = weight.mul_add(x[token], *chain);
                    }
                    *out = chains[0] + chains[1];
                }
            }
        }
    }
}

/// `result` and the product of one row with one token, see [`super::contract`].
fn add_product(
    mut result: f32,
    weights: &KPanel<'_>,
    group: &RowGroup<'_>,
    row: usize,
    panel: &Panel<'_>,
    token: usize,
) -> f32 {
    let runs = weights.runs(panel);
    for outer in 0..runs.outer {
        let mut partial = 0.0f32;
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            let sum = panel.sums[run * panel.width + token];
            let offset = sum << weights.format.offset_shift();
            let dot = dot(group, row, panel, token, run, runs) - offset;
            let inner_scale = match runs.activation_inside {
                true => panel.scales[run * panel.width + token],
                false => group.scale(row, run),
            };
            partial = (dot as f32).mul_add(inner_scale, partial);
        }
        let outer_scale = match runs.activation_inside {
            true => group.scale(row, outer),
            false => panel.scales[outer * panel.width + token],
        };
        result = partial.mul_add(outer_scale, result);
    }
    result
}

/// The same, where multipliers are applied to integers.
fn add_multiplied_product(
    mut result: f32,
    weights: &KPanel<'_>,
    group: &RowGroup<'_>,
    row: usize,
    panel: &Panel<'_>,
    token: usize,
) -> f32 {
    let runs = weights.runs(panel);
    let f16 = |f16s: &[u8; 2 * MR]| f16::from_le_bytes(f16s.as_chunks().0[row]).to_f32();
    for span in 0..runs.outer {
        let (mut total, mut offset) = (0, 0);
        for run in span * runs.inner..(span + 1) * runs.inner {
            let multiplier = |of: &[[u8; MR]]| i32::from(of[run][row] as i8);
            total += multiplier(group.multipliers) * dot(group, row, panel, token, run, runs);
            offset += multiplier(group.offset_multipliers()) * panel.sums[run * panel.width + token];
        }
        let scale = f16(&group.scales[span]);
        let partial = match weights.format.shift {
            Some(shift) => (total - (offset << shift)) as f32 * scale,
            None => (-f16(&group.minimums[span])).mul_add(offset as f32, total as f32 * scale),
        };
        result = partial.mul_add(panel.scales[span * panel.width + token], result);
    }
    result
}

/// The sum of stored code * activation over inner run `run`.
fn dot(group: &RowGroup<'_>, row: usize, panel: &Panel<'_>, token: usize, run: usize, runs: Runs) -> i32 {
    let product = |column: usize| {
        let dword = panel.dwords[column / 4 * panel.width + token].to_ne_bytes();
        i32::from(group.code(row, column)) * i32::from(dword[column % 4] as i8)
    };
    (run * runs.columns..(run + 1) * runs.columns).map(product).sum()
}

/// ggml's Q8_K rule (ggml-quants.c:2769-2806): the first activation of the largest magnitude becomes -127.
pub(super) fn quantize_k(x: &[f32], codes: &mut [i8]) -> f32 {
    let mut extreme = 0.0f32;
    for &x in x {
        if x.abs() > extreme.abs() {
            extreme = x;
        }
    }
    let (inverse, scale) = scales_k(extreme);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((inverse * x).round_ties_even() as i32).min(127) as i8;
    }
    scale
}

/// (1 / scale, scale) for a group whose activation of the largest magnitude is `extreme`; both 0 where that is zero
/// or so small that the inverse overflows.
pub(super) fn scales_k(extreme: f32) -> (f32, f32) {
    let inverse = -127.0 / extreme;
    if inverse.is_finite() {
        (inverse, 1.0 / inverse)
    } else {
        (0.0, 0.0)
    }
}

/// ggml's Q8_0 rule as its SIMD code has it (arch/x86/quants.c:302, arch/arm/quants.c:41; the two differ in the inverse).
pub(super) fn quantize_q8_0(x: &[f32], codes: &mut [i8]) -> f32 {
    let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let (inverse, scale) = scales_q8_0(largest);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (inverse * x).round_ties_even() as i32 as i8;
    }
    scale
}

/// (1 / scale, scale rounded to f16) for a group whose largest magnitude is `largest`.
pub(super) fn scales_q8_0(largest: f32) -> (f32, f32) {
    let scale = largest / 127.0;
    let inverse = match cfg!(target_arch = "aarch64") {
        true => 1.0 / scale,
        false => 127.0 / largest,
    };
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    (inverse, f16::from_f32(scale).to_f32())
}
