//! AVX-512 for many tokens and ternary codes: dot products, and beside them sums that are looked up in tables (LUT, as in
//! T-MAC).
//!
//! ```text
//! for each run: some dwords of columns are for dots, the others, three at a time, for look-ups, about 4 : 3
//!     for each token, for each byte b of three dwords:
//!         table[i] = activations b of the three dwords, times the digits of i in base 3         i in 0..27, 16 bits
//!     for each 32 rows, for each dword for dots and each look-up, for each token:
//!         dots = dpbusd(dots, codes, activations to all lanes)              twice: 16 rows x 4 columns
//!         sums = sums + permw(table, numbers in base 3 of the codes)        32 rows x 3 columns
//!     dots + sums is the dot product of the run
//! ```
//! A Zen 4 has four ports for vectors. `vpdpbusd` needs one of two of them, for two cycles and 64 products. `vpermw`
//! runs on one of those and on one of the others, and an addition on any. So two dots, a look-up and an addition take
//! two cycles together: 224 products, 1.75 times those of dots alone.
//!
//! What has to be made for that is used often: codes are arranged once for many tokens, tables are filled once for
//! many rows. The tables of 8 tokens and 256 columns, 18 KiB, stay in the first-level cache.
//!
//! 1. Codes are those stored, 0 to 2. A run's first table has its sum of activations taken off, so dots and sums begin
//!    at 0 and end at the dot product less the offset.
//! 2. Sums wrap, and end right: a run's lies between -256 * 127 and 256 * 127, which is below 2^15.
//! 3. Rows of the first group are in the even lanes of `sums`, where `vpdpwssd` adds them to their dots, those of the
//!    second in the odd ones, which a shift brings into place.

mod prepare;

use self::prepare::{
    ACTIVATION_INSIDE, Line, MULTIPLIED, NESTED, SINGLE, Scratch, arrange, dot_dwords, lines, prepare,
};
use super::avx512::avx512_vnni;
use super::zmm::{load, load_floats, store};
use super::{fetch_ahead, fetch_to_l2};
use crate::kernels::contract::{Grouping, MR, Panel, Runs, STEP, Tile};
use crate::kernels::kernel::Gemm;
use crate::kernels::packed::{KPanel, Packed};
use crate::kernels::tiles::Out;
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

/// Many tokens with look-ups, for one matrix; proof that the CPU has AVX-512 F, BW, VL and VNNI.
struct Lut {
    product: Product,
    /// Tokens that `product` takes at a time.
    tokens: usize,
    /// From how many tokens it is faster.
    least: usize,
}

/// Look-ups for a matrix whose stored codes are 0, 1 and 2 alone, in runs of several steps.
pub(in crate::kernels) fn load_lut(weights: &Packed, grouping: Grouping) -> Option<Box<dyn Gemm>> {
    avx512_vnni()?;
    let runs = Runs::new(weights.columns, weights.format.group, grouping.group());
    if !weights.format.ternary || runs.columns == STEP {
        return None;
    }
    let (product, tokens) = product_of(runs, weights.format.in_spans(grouping.group()));
    let least = if runs.columns < 128 { 48 } else { 24 };
    Some(Box::new(Lut { product, tokens, least }))
}

impl Gemm for Lut {
    /// There have to be enough rows and tokens to pay for tables and arranging; where inner runs are short, less is
    /// gained.
    fn least_tokens(&self, rows: usize) -> Option<usize> {
        (rows >= 256).then_some(self.least)
    }

    fn width(&self) -> usize {
        self.tokens
    }

    /// What is arranged of 128 row groups, 450 KiB, stays in the second-level cache.
    fn tile(&self) -> Tile {
        Tile {
            groups: 128,
            least: 64,
            panels: 8,
        }
    }

    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut Out<'_>) {
        let out = out.results(0..panels.len());
        let Some(panel) = panels.first() else {
            return;
        };
        let runs = weights.runs(panel);
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: a value of this type is made only where `avx512_vnni` found the features.
            unsafe { (self.product)(weights, groups, runs, panels, out, scratch) }
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Some row groups of a K-panel times some panels.
type Product = unsafe fn(&KPanel<'_>, Range<usize>, Runs, &[Panel<'_>], &mut [[f32; MR]], &mut Scratch);

/// The product for such runs, and how many tokens it takes at a time. 8 tokens share what is loaded of weights; for
/// short runs 4, whose partial results have room in registers.
fn product_of(runs: Runs, in_spans: bool) -> (Product, usize) {
    let kind = match runs {
        _ if in_spans => MULTIPLIED,
        Runs { inner: 1, .. } => SINGLE,
        Runs {
            activation_inside: true,
            ..
        } => ACTIVATION_INSIDE,
        _ => NESTED,
    };
    match runs.columns {
        32 => (product_of_kind::<2, 1, 4>(kind), 4),
        64 => (product_of_kind::<4, 2, 4>(kind), 4),
        128 => (product_of_kind::<8, 5, 8>(kind), 8),
        _ => (product_of_kind::<16, 9, 8>(kind), 8),
    }
}

fn product_of_kind<const S: usize, const G: usize, const T: usize>(kind: usize) -> Product {
    match kind {
        SINGLE => product::<S, G, T, SINGLE>,
        NESTED => product::<S, G, T, NESTED>,
        ACTIVATION_INSIDE => product::<S, G, T, ACTIVATION_INSIDE>,
        _ => product::<S, G, T, MULTIPLIED>,
    }
}

/// A [`Product`] for inner runs of `S` steps, in `G` of which all but the first dword are for look-ups, `T` tokens at a
/// time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn product<const S: usize, const G: usize, const T: usize, const KIND: usize>(
    weights: &KPanel<'_>,
    groups: Range<usize>,
    runs: Runs,
    panels: &[Panel<'_>],
    out: &mut [[f32; MR]],
    scratch: &mut Scratch,
) {
    let pairs = groups.len().div_ceil(2);
    let (lines, factors) = (runs.inner * lines(S, G), 2 * runs.inner + 2);
    scratch.weights.resize(pairs * lines, Line([0; 64]));
    scratch.factors.resize(pairs * factors, Line([0; 64]));
    scratch.tables.resize(runs.inner * 4 * G * T, Line([0; 64]));
    scratch.dwords.resize(runs.inner * dot_dwords(S, G) * T, 0);
    for outer in 0..runs.outer {
        let lines = scratch.weights.chunks_exact_mut(lines);
        let factors = scratch.factors.chunks_exact_mut(factors);
        for (group, to) in groups.clone().step_by(2).zip(lines.zip(factors)) {
            // Where there is no second group, the first takes its place, and what comes of that is thrown away.
            let second = (group + 1).min(groups.end - 1);
            let pair = (&weights.row_group(group), &weights.row_group(second));
            if outer == 0 {
                fetch_pair(weights, group + GROUPS_AHEAD, groups.end, runs, 0);
            }
            arrange::<S, G, KIND>(pair, runs, outer, to);
        }
        let mut rest = &mut *out;
        for panel in panels {
            let (out, others) = rest.split_at_mut(groups.len() * panel.width);
            rest = others;
            for first in (0..panel.width).step_by(T) {
                prepare::<S, G, T>(panel, first, runs, outer, scratch);
                let last = rest.is_empty() && first + T == panel.width && outer + 1 < runs.outer;
                let fetch_next = |pair: usize| {
                    if last {
                        let group = groups.start + 2 * pair;
                        fetch_pair(weights, group, groups.end, runs, outer + 1);
                    }
                };
                multiply::<S, G, T, KIND>(panel, first, runs, outer, scratch, out, fetch_next);
            }
        }
    }
}

/// Row groups to fetch ahead where nothing else is computed meanwhile.
const GROUPS_AHEAD: usize = 4;

/// Fetch outer run `outer` of row group `first` and the next, as far as they lie before `end`. What is arranged
/// together lies apart in memory, so the hardware does not fetch it in time.
fn fetch_pair(weights: &KPanel<'_>, first: usize, end: usize, runs: Runs, outer: usize) {
    for group in first..end.min(first + 2) {
        let group = weights.row_group(group);
        let scales = group.scales.as_flattened();
        let multipliers = group.multipliers.as_flattened();
        for part in [group.codes, scales, multipliers] {
            let length = part.len() / runs.outer;
            fetch_to_l2(&part[outer * length..][..length]);
        }
    }
}

/// Add the product of an outer run to the results of `T` tokens from token `first` on. Calls `fetch_next` with the
/// number of each two row groups.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn multiply<const S: usize, const G: usize, const T: usize, const KIND: usize>(
    panel: &Panel<'_>,
    first: usize,
    runs: Runs,
    outer: usize,
    scratch: &Scratch,
    out: &mut [[f32; MR]],
    fetch_next: impl Fn(usize),
) {
    let inner = if KIND == SINGLE { 1 } else { runs.inner };
    let tables = scratch.tables.as_chunks::<T>().0;
    let dwords = scratch.dwords.as_chunks::<T>().0;
    let scales = |run: usize| &panel.scales[run * panel.width + first..][..T];
    let weights = scratch.weights.chunks_exact(inner * lines(S, G));
    let factors = scratch.factors.chunks_exact(2 * inner + 2);
    let out = out.chunks_mut(2 * panel.width);
    let mut spare = [[0.0; MR]; T];
    for (pair, ((weights, factors), out)) in weights.zip(factors).zip(out).enumerate() {
        fetch_next(pair);
        let (a, b) = out.split_at_mut(panel.width);
        let b = match b.is_empty() {
            true => &mut spare,
            false => &mut b[first..],
        };
        let out = [&mut a[first..][..T], &mut b[..T]];
        for out in &out {
            fetch_ahead(bytemuck::cast_slice(out), 0);
        }
        let mut totals = [[_mm512_setzero_si512(); T]; 2];
        let mut partials = [[_mm512_setzero_ps(); T]; 2];
        let (inner_factors, outer_factors) = factors.split_at(2 * inner);
        let each_run = weights
            .chunks_exact(lines(S, G))
            .zip(inner_factors.as_chunks::<2>().0)
            .zip(dwords.chunks_exact(dot_dwords(S, G)))
            .zip(tables.chunks_exact(4 * G));
        for (run, (((lines, factors), dwords), tables)) in (outer * inner..).zip(each_run) {
            let dots = dots_of_run::<S, G, T>(lines, dwords, tables);
            for t in 0..T {
                for half in 0..2 {
                    let (dot, factor) = (dots[half][t], load(&factors[half].0));
                    if KIND == MULTIPLIED {
                        // A dot product fits 16 bits, and the upper half of a multiplier is 0.
                        totals[half][t] = _mm512_dpwssd_epi32(totals[half][t], dot, factor);
                        continue;
                    }
                    let scale = match KIND {
                        ACTIVATION_INSIDE => _mm512_set1_ps(scales(run)[t]),
                        _ => _mm512_castsi512_ps(factor),
                    };
                    let partial = partials[half][t];
                    partials[half][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, partial);
                }
            }
        }
        for t in 0..T {
            for half in 0..2 {
                let factor = _mm512_castsi512_ps(load(&outer_factors[half].0));
                let activation_scale = || _mm512_set1_ps(scales(outer)[t]);
                let (partial, scale) = match KIND {
                    ACTIVATION_INSIDE => (partials[half][t], factor),
                    MULTIPLIED => {
                        let total = _mm512_cvtepi32_ps(totals[half][t]);
                        (_mm512_mul_ps(total, factor), activation_scale())
                    }
                    _ => (partials[half][t], activation_scale()),
                };
                let result = load_floats(&out[half][t]);
                store(&mut out[half][t], _mm512_fmadd_ps(partial, scale, result));
            }
        }
    }
}

/// The dot products of an inner run less the offset, for both row groups and each token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dots_of_run<const S: usize, const G: usize, const T: usize>(
    lines: &[Line],
    dwords: &[[i32; T]],
    tables: &[[Line; T]],
) -> [[__m512i; T]; 2] {
    let both = dot_dwords(S, G).min(4 * G);
    let mut dots = [[_mm512_setzero_si512(); T]; 2];
    let mut sums = [_mm512_setzero_si512(); T];
    let (lines, rest) = lines.split_at(3 * both);
    for ((lines, dwords), tables) in lines.as_chunks::<3>().0.iter().zip(dwords).zip(tables) {
        let (a, b, numbers) = (load(&lines[0].0), load(&lines[1].0), load(&lines[2].0));
        for t in 0..T {
            let x = _mm512_set1_epi32(dwords[t]);
            dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], a, x);
            dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], b, x);
            let sum = _mm512_permutexvar_epi16(numbers, load(&tables[t].0));
            sums[t] = _mm512_add_epi16(sums[t], sum);
            [dots[0][t], dots[1][t], sums[t]] = in_order([dots[0][t], dots[1][t], sums[t]]);
        }
    }
    // Of dwords and look-ups, those that are more.
    if 4 * S > 7 * G {
        for (lines, dwords) in rest.as_chunks::<2>().0.iter().zip(&dwords[both..]) {
            let (a, b) = (load(&lines[0].0), load(&lines[1].0));
            for t in 0..T {
                let x = _mm512_set1_epi32(dwords[t]);
                dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], a, x);
                dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], b, x);
            }
        }
    } else {
        for (line, tables) in rest.iter().zip(&tables[both..]) {
            let numbers = load(&line.0);
            for t in 0..T {
                let sum = _mm512_permutexvar_epi16(numbers, load(&tables[t].0));
                sums[t] = _mm512_add_epi16(sums[t], sum);
            }
        }
    }
    let even = _mm512_set1_epi32(1);
    for t in 0..T {
        dots[0][t] = _mm512_dpwssd_epi32(dots[0][t], sums[t], even);
        dots[1][t] = _mm512_add_epi32(dots[1][t], _mm512_srai_epi32(sums[t], 16));
    }
    dots
}

/// Nothing, but the compiler computes these before what comes next: else it makes chains of one token's instructions,
/// which wait for each other.
#[inline]
#[target_feature(enable = "avx512f")]
fn in_order([mut a, mut b, mut c]: [__m512i; 3]) -> [__m512i; 3] {
    // SAFETY: there is no instruction.
    unsafe {
        asm!(
            "/* {} {} {} */",
            inout(zmm_reg) a, inout(zmm_reg) b, inout(zmm_reg) c,
            options(nomem, nostack, preserves_flags)
        );
    }
    [a, b, c]
}
