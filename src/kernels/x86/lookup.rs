//! AVX-512 for many tokens and ternary codes: dot products, and beside them sums that are looked up.
//!
//! ```text
//! for each run: some quads of columns are for dots, the others, three at a time, for look-ups, about 4 : 3
//!     for each token, for each byte b of three quads:
//!         table[i] = activations b of the three quads, times the digits of i in base 3         i in 0..27, 16 bits
//!     for each 32 rows, for each quad for dots and each look-up, for each token:
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

use super::avx512::{Avx512Vnni, halves, load, load_bytes, load_floats, store, unpack};
use super::{fetch_ahead, fetch_to_l2};
use crate::kernels::kernel::{Kernel, Many, Panel, ROWS, Runs, STEP, Tile};
use crate::kernels::layout::{RowGroup, Strip};
use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

/// Many tokens with look-ups. What is too narrow for them is left to the kernel.
pub(super) struct Lookup(pub &'static Avx512Vnni);

impl Lookup {
    /// Whether there are enough rows and tokens to pay for tables and arranging; where inner runs are short, less is
    /// gained.
    pub fn pays(rows: usize, run: usize, tokens: usize) -> bool {
        let least = if run < 128 { 48 } else { 24 };
        run > STEP && rows >= 256 && tokens >= least
    }
}

impl Many for Lookup {
    /// What is arranged of 128 row groups, 450 KiB, stays in the second-level cache.
    fn tile(&self) -> Tile {
        Tile {
            groups: 128,
            least: 64,
            panels: 8,
        }
    }

    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut [[f32; ROWS]]) {
        let Some(panel) = panels.first() else {
            return;
        };
        let runs = Runs::new(weights.columns().len(), weights.group(), panel.group);
        let (product, tokens) = product_of(runs, weights.multiplied());
        // The last panel may be too narrow.
        let wide = |panel: &&Panel| panel.width.is_multiple_of(tokens);
        let (wide, narrow) = panels.split_at(panels.iter().take_while(wide).count());
        let tokens: usize = wide.iter().map(|panel| panel.width).sum();
        let (out, rest) = out.split_at_mut(groups.len() * tokens);
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: `self.0` exists only where `Avx512Vnni::detect` found the features.
            unsafe { product(weights, groups.clone(), runs, wide, out, scratch) }
        });
        if let [panel] = narrow {
            self.0.multiply(weights, groups, panel, rest);
        }
    }
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// What is made for one outer run, in memory that is kept for the next.
#[derive(Default)]
struct Scratch {
    /// See [`arrange`].
    weights: Vec<Line>,
    /// See [`arrange`].
    factors: Vec<Line>,
    /// For each inner run, for each look-up, for each token: 32 sums of 16 bits.
    tables: Vec<Line>,
    /// For each inner run, for each quad for dots: four activations of each token.
    quads: Vec<i32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// There is one inner run in an outer one.
const SINGLE: usize = 0;
/// There are several, and their scale is the weights'.
const NESTED: usize = 1;
/// There are several, and their scale is the activations'.
const ACTIVATION_INSIDE: usize = 2;
/// Scales have multipliers.
const MULTIPLIED: usize = 3;

/// Some row groups of a strip times some panels.
type Product = unsafe fn(&Strip<'_>, Range<usize>, Runs, &[Panel<'_>], &mut [[f32; ROWS]], &mut Scratch);

/// The product for such runs, and how many tokens it takes at a time. 8 tokens share what is loaded of weights; for
/// short runs 4, whose partial results have room in registers.
fn product_of(runs: Runs, multiplied: bool) -> (Product, usize) {
    let kind = match runs {
        _ if multiplied => MULTIPLIED,
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

/// A [`Product`] for inner runs of `S` steps, in `G` of which all but the first quad are for look-ups, `T` tokens at a
/// time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn product<const S: usize, const G: usize, const T: usize, const KIND: usize>(
    weights: &Strip<'_>,
    groups: Range<usize>,
    runs: Runs,
    panels: &[Panel<'_>],
    out: &mut [[f32; ROWS]],
    scratch: &mut Scratch,
) {
    let pairs = groups.len().div_ceil(2);
    let (lines, factors) = (runs.inner * lines(S, G), 2 * runs.inner + 2);
    scratch.weights.resize(pairs * lines, Line([0; 64]));
    scratch.factors.resize(pairs * factors, Line([0; 64]));
    scratch.tables.resize(runs.inner * 4 * G * T, Line([0; 64]));
    scratch.quads.resize(runs.inner * dot_quads(S, G) * T, 0);
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
fn fetch_pair(weights: &Strip<'_>, first: usize, end: usize, runs: Runs, outer: usize) {
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

/// Quads for dots in a run.
const fn dot_quads(s: usize, g: usize) -> usize {
    4 * s - 3 * g
}

/// Lines that [`arrange`] makes of the codes of a run.
const fn lines(s: usize, g: usize) -> usize {
    2 * dot_quads(s, g) + 4 * g
}

/// Arrange an outer run of two row groups.
///
/// Of the codes, for each inner run: for each i, quad i for dots of the first group and of the second, a code in each
/// byte, and for look-up i the numbers in base 3 of both groups in lanes of 16 bits, those of the first group in the
/// even ones; what is above a number in its lane does not count. The first quads are those of the first `G` steps.
///
/// Of the scales: both groups' factors of each inner run, f32 or multipliers, then those of the outer run. Those that
/// the activations give are left out.
#[target_feature(enable = "avx512f,avx512bw,f16c")]
fn arrange<const S: usize, const G: usize, const KIND: usize>(
    (a, b): (&RowGroup<'_>, &RowGroup<'_>),
    runs: Runs,
    outer: usize,
    (to, factors): (&mut [Line], &mut [Line]),
) {
    let inner = outer * runs.inner..(outer + 1) * runs.inner;
    for (run, to) in inner.clone().zip(to.chunks_exact_mut(lines(S, G))) {
        let steps = [
            &a.codes.as_chunks::<64>().0[run * S..][..S],
            &b.codes.as_chunks::<64>().0[run * S..][..S],
        ];
        let at = |i: usize, half: usize| 2 * i + half + i.min(4 * G);
        for half in 0..2 {
            for g in 0..G {
                put(&mut to[at(g, half)], unpack::<2>(&steps[half][g])[0]);
            }
            for s in G..S {
                let quads = unpack::<2>(&steps[half][s]);
                for l in 0..4 {
                    put(&mut to[at(G + 4 * (s - G) + l, half)], quads[l]);
                }
            }
        }
        for g in 0..G {
            let (x, y) = (numbers(load(&steps[0][g])), numbers(load(&steps[1][g])));
            let low = _mm512_mask_mov_epi16(_mm512_slli_epi32(y, 16), 0x5555_5555, x);
            let high = _mm512_mask_mov_epi16(y, 0x5555_5555, _mm512_srli_epi32(x, 16));
            let (second, fourth) = (_mm512_srli_epi16(low, 8), _mm512_srli_epi16(high, 8));
            for (i, numbers) in (4 * g..).zip([low, second, high, fourth]) {
                put(&mut to[2 * dot_quads(S, G).min(i + 1) + i], numbers);
            }
        }
    }
    let (to_inner, to_outer) = factors.split_at_mut(2 * runs.inner);
    let each_inner = inner.zip(to_inner.as_chunks_mut::<2>().0);
    match KIND {
        SINGLE | NESTED => each_inner.for_each(|(run, to)| put_scales(a, b, run, to)),
        ACTIVATION_INSIDE => put_scales(a, b, outer, to_outer),
        _ => {
            for (run, [to_a, to_b]) in each_inner {
                put(to_a, _mm512_cvtepu8_epi32(load_bytes(&a.multipliers[run])));
                put(to_b, _mm512_cvtepu8_epi32(load_bytes(&b.multipliers[run])));
            }
            put_scales(a, b, outer, to_outer);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,f16c")]
fn put_scales(a: &RowGroup<'_>, b: &RowGroup<'_>, run: usize, to: &mut [Line]) {
    put(&mut to[0], _mm512_castps_si512(halves(&a.scales[run])));
    put(&mut to[1], _mm512_castps_si512(halves(&b.scales[run])));
}

/// In each byte the number in base 3 whose digits are the last three of its four codes, the lowest first.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn numbers(codes: __m512i) -> __m512i {
    let two_digits = _mm_setr_epi8(0, 1, 2, 0, 3, 4, 5, 0, 6, 7, 8, 0, 0, 0, 0, 0);
    let third_digit = _mm_setr_epi8(0, 9, 18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    let two = _mm512_and_si512(_mm512_srli_epi16(codes, 2), _mm512_set1_epi8(15));
    let third = _mm512_and_si512(_mm512_srli_epi16(codes, 6), _mm512_set1_epi8(3));
    _mm512_add_epi8(
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(two_digits), two),
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(third_digit), third),
    )
}

/// Quads and tables of an outer run of `T` tokens from token `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn prepare<const S: usize, const G: usize, const T: usize>(
    panel: &Panel<'_>,
    first: usize,
    runs: Runs,
    outer: usize,
    scratch: &mut Scratch,
) {
    let tables = scratch.tables.as_chunks_mut::<T>().0;
    let quads = scratch.quads.as_chunks_mut::<T>().0;
    let to = tables
        .chunks_exact_mut(4 * G)
        .zip(quads.chunks_exact_mut(dot_quads(S, G)));
    for (run, (tables, quads)) in (outer * runs.inner..).zip(to) {
        let tokens = |i: usize, all: &[i32]| -> [i32; T] {
            *all[i * panel.width + first..]
                .first_chunk()
                .expect("tokens of the panel")
        };
        let quad = |i: usize| tokens(4 * S * run + i, panel.quads);
        for (g, tables) in tables.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            quads[g] = quad(4 * g);
            fill([quad(4 * g + 1), quad(4 * g + 2), quad(4 * g + 3)], tables);
        }
        for (i, to) in quads[G..].iter_mut().enumerate() {
            *to = quad(4 * G + i);
        }
        for (table, sum) in tables[0].iter_mut().zip(tokens(run, panel.sums)) {
            let sum = _mm512_set1_epi16(sum as i16);
            put(table, _mm512_sub_epi16(load(&table.0), sum));
        }
    }
}

/// The tables of each byte of three quads, the first for the lowest digit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fill<const T: usize>(quads: [[i32; T]; 3], tables: &mut [[Line; T]; 4]) {
    const DIGITS: [[[u8; 2]; 32]; 2] = {
        let mut digits = [[[0; 2]; 32]; 2];
        let mut i = 0;
        while i < 27 {
            digits[0][i] = [i as u8 % 3, i as u8 / 3 % 3];
            digits[1][i] = [i as u8 / 9, 0];
            i += 1;
        }
        digits
    };
    let two_digits = load(DIGITS[0].as_flattened());
    let third_digit = load(DIGITS[1].as_flattened());
    for t in 0..T {
        let x = _mm512_set1_epi32(quads[0][t]);
        let y = _mm512_set1_epi32(quads[1][t]);
        let z = _mm512_set1_epi32(quads[2][t]);
        let pairs = _mm512_unpacklo_epi8(x, y);
        for b in 0..4 {
            let pair = _mm512_shuffle_epi8(pairs, _mm512_set1_epi16(0x0100 + 0x0202 * b as i16));
            let third = _mm512_shuffle_epi8(z, _mm512_set1_epi16(b as i16));
            let sums = _mm512_maddubs_epi16(two_digits, pair);
            let sums = _mm512_add_epi16(sums, _mm512_maddubs_epi16(third_digit, third));
            put(&mut tables[b][t], sums);
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
    out: &mut [[f32; ROWS]],
    fetch_next: impl Fn(usize),
) {
    let inner = if KIND == SINGLE { 1 } else { runs.inner };
    let tables = scratch.tables.as_chunks::<T>().0;
    let quads = scratch.quads.as_chunks::<T>().0;
    let scales = |run: usize| &panel.scales[run * panel.width + first..][..T];
    let weights = scratch.weights.chunks_exact(inner * lines(S, G));
    let factors = scratch.factors.chunks_exact(2 * inner + 2);
    let out = out.chunks_mut(2 * panel.width);
    let mut spare = [[0.0; ROWS]; T];
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
            .zip(quads.chunks_exact(dot_quads(S, G)))
            .zip(tables.chunks_exact(4 * G));
        for (run, (((lines, factors), quads), tables)) in (outer * inner..).zip(each_run) {
            let dots = dots_of_run::<S, G, T>(lines, quads, tables);
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
    quads: &[[i32; T]],
    tables: &[[Line; T]],
) -> [[__m512i; T]; 2] {
    let both = dot_quads(S, G).min(4 * G);
    let mut dots = [[_mm512_setzero_si512(); T]; 2];
    let mut sums = [_mm512_setzero_si512(); T];
    let (lines, rest) = lines.split_at(3 * both);
    for ((lines, quads), tables) in lines.as_chunks::<3>().0.iter().zip(quads).zip(tables) {
        let (a, b, numbers) = (load(&lines[0].0), load(&lines[1].0), load(&lines[2].0));
        for t in 0..T {
            let x = _mm512_set1_epi32(quads[t]);
            dots[0][t] = _mm512_dpbusd_epi32(dots[0][t], a, x);
            dots[1][t] = _mm512_dpbusd_epi32(dots[1][t], b, x);
            let sum = _mm512_permutexvar_epi16(numbers, load(&tables[t].0));
            sums[t] = _mm512_add_epi16(sums[t], sum);
            [dots[0][t], dots[1][t], sums[t]] = in_order([dots[0][t], dots[1][t], sums[t]]);
        }
    }
    // Of quads and look-ups, those that are more.
    if 4 * S > 7 * G {
        for (lines, quads) in rest.as_chunks::<2>().0.iter().zip(&quads[both..]) {
            let (a, b) = (load(&lines[0].0), load(&lines[1].0));
            for t in 0..T {
                let x = _mm512_set1_epi32(quads[t]);
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

#[inline]
#[target_feature(enable = "avx512f")]
fn put(line: &mut Line, vector: __m512i) {
    // SAFETY: a line is 64 bytes at a multiple of 64.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), vector) };
}
