//! AVX-512 VNNI: one 512-bit vector is 16 rows, and `vpdpbusd` meets four columns of each with four activations.
//!
//! ```text
//! one token:    for each 64 bytes of codes:  for l in 0..4:  sums[l] = dpbusd(sums[l], codes & 3 << 2l, activations[l] to all lanes)
//! many tokens:  for each 64 bytes of codes:  for l in 0..4:  plane = codes >> 2l & 3
//!                                                            for each token:  sum = dpbusd(sum, plane, activations[l][token] to all lanes)
//! ```
//! 1. One token: the codes are not shifted down. `vpdpbusd` takes 1, 4, 16 or 64 times the code as it comes, into a
//!    sum for each place, and three shifts at the end of a run put that right, exactly: a sum of multiples of 64 is a multiple of 64.
//!    Four ANDs and four products for 256 weights: 4 cycles, which is below what memory delivers.
//! 2. The sum of the activations is taken off a run's sum, which turns stored codes 0, 1, 2 into -1, 0, +1.
//! 3. Many tokens: 16 sums, 4 planes and the mask stay in registers; the f32 results live in the first-level cache and
//!    are touched once in a run.
//! 4. Activations are broadcast by the load of `vpdpbusd` itself.
//! 5. Codes are fetched ahead where much work lies between two lines. Where it is little, for one token and codes of 2
//!    bits in long runs, a Zen 4 does so in time by itself, and fetching slows it down; an Emerald Rapids does not.
//!
//! No saturation anywhere: the largest sum of a run is 255 * 127 * 256 < 2^23, times 64 at most 3 * 64 * 127 * 64 < 2^21.

use super::lookup::Lookup;
use super::{AHEAD, FAR_AHEAD, fetch, fetch_ahead, is_zen_4};
use crate::kernels::activations::Grouping;
use crate::kernels::floats::{FloatPanel, FloatType, Floats};
use crate::kernels::kernel::{Kernel, MISSING_RUN, Many, Panel, ROWS, Runs, STEP};
use crate::kernels::layout::{RowGroup, Strip};
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

/// The proof that the CPU has AVX-512 F, BW, VL and VNNI (and what comes with them).
pub(super) struct Avx512Vnni {
    /// Whether many tokens are multiplied with [`Lookup`].
    lookup: Option<Lookup>,
    /// Whether codes are fetched for one token also where runs are long.
    fetch: bool,
}

impl Avx512Vnni {
    pub fn detect() -> Option<&'static Avx512Vnni> {
        static KERNEL: OnceLock<Option<Avx512Vnni>> = OnceLock::new();
        let kernel = || {
            let found = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("f16c");
            found.then(|| Avx512Vnni {
                lookup: None,
                fetch: !is_zen_4(),
            })
        };
        KERNEL.get_or_init(kernel).as_ref()
    }

    /// The same with look-ups.
    pub fn detect_with_lookup() -> Option<&'static Avx512Vnni> {
        static KERNEL: OnceLock<Option<Avx512Vnni>> = OnceLock::new();
        let with_lookup = |kernel: &'static Avx512Vnni| Avx512Vnni {
            lookup: Some(Lookup(kernel)),
            ..*kernel
        };
        KERNEL.get_or_init(|| Avx512Vnni::detect().map(with_lookup)).as_ref()
    }
}

impl Kernel for Avx512Vnni {
    fn name(&self) -> &'static str {
        match self.lookup {
            None => "avx512vnni",
            Some(_) => "avx512lookup",
        }
    }

    fn many(&self, rows: usize, run: usize, tokens: usize) -> Option<&dyn Many> {
        let lookup = self.lookup.as_ref()?;
        Lookup::pays(rows, run, tokens).then_some(lookup)
    }

    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; ROWS]]) {
        let runs = Runs::new(weights.columns().len(), weights.group(), panel.group);
        let product = match panel.width {
            width if weights.multiplied() => multiplied_of(weights.bits(), width, runs.columns / STEP, self.fetch),
            1 => {
                let steps = runs.columns / STEP;
                match (runs.activation_inside, self.fetch) {
                    (true, _) => one_token_of::<true, true>(weights.bits(), steps),
                    (false, true) => one_token_of::<false, true>(weights.bits(), steps),
                    (false, false) => one_token_of::<false, false>(weights.bits(), steps),
                }
            }
            12 if runs.activation_inside => in_two_of::<12, 4>(weights.bits()),
            16 if runs.activation_inside => in_two_of::<16, 8>(weights.bits()),
            4 => tokens_of::<4>(weights.bits(), runs.inner),
            8 => tokens_of::<8>(weights.bits(), runs.inner),
            12 => tokens_of::<12>(weights.bits(), runs.inner),
            _ => tokens_of::<16>(weights.bits(), runs.inner),
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type exists only where `detect` found the features.
            unsafe { product(&weights.row_group(group), weights.shift(), runs, panel, out) }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe { quantize(x, grouping, codes, scales, sums) }
    }

    fn dots(&self, repeats: usize) -> Option<usize> {
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe { dots(repeats) };
        Some(DOTS * 64)
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; ROWS]]) {
        let product = match weights.ty {
            FloatType::F32 => floats_of::<4>(panel.width),
            FloatType::F16 => floats_of::<2>(panel.width),
            FloatType::Bf16 => floats_of::<0>(panel.width),
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type exists only where `detect` found the features.
            unsafe { product(weights.group(group), panel.x, out) }
        }
    }
}

/// Independent sums that hide the latency of `vpdpbusd`.
const DOTS: usize = 12;

#[target_feature(enable = "avx512f,avx512vnni")]
fn dots(repeats: usize) {
    let (a, b) = (_mm512_set1_epi8(1), std::hint::black_box(_mm512_set1_epi8(3)));
    let mut sums = [_mm512_setzero_si512(); DOTS];
    for _ in 0..repeats {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
}

/// A row group times a panel.
type Product = unsafe fn(&RowGroup<'_>, Option<u32>, Runs, &Panel<'_>, &mut [[f32; ROWS]]);

/// The product for a panel of `W` tokens, codes of `bits` bits and `inner` inner runs in an outer one.
fn tokens_of<const W: usize>(bits: usize, inner: usize) -> Product {
    match (bits, inner) {
        (2, 1) => tokens::<2, W, W, 0, false>,
        (2, _) => tokens::<2, W, W, 0, true>,
        (4, 1) => tokens::<4, W, W, 0, false>,
        (4, _) => tokens::<4, W, W, 0, true>,
        (6, _) => tokens::<6, W, W, 0, true>,
        (_, 1) => tokens::<8, W, W, 0, false>,
        (_, _) => tokens::<8, W, W, 0, true>,
    }
}

/// The same in two parts, 8 tokens and `B`. Runs of 32 want the partial results in registers, and 16 tokens have no
/// room for that.
fn in_two_of<const W: usize, const B: usize>(bits: usize) -> Product {
    match bits {
        2 => in_two::<2, W, B>,
        4 => in_two::<4, W, B>,
        _ => in_two::<8, W, B>,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn in_two<const BITS: usize, const W: usize, const B: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let (first, second) = out.split_at_mut(8);
    tokens::<BITS, W, 8, 0, true>(group, shift, runs, panel, first);
    tokens::<BITS, W, B, 8, true>(group, shift, runs, panel, second);
}

/// The product for one token, codes of `bits` bits and inner runs of `steps` steps. `INSIDE`: the inner scale is the
/// activation's. `FETCH`: codes are fetched ahead.
fn one_token_of<const INSIDE: bool, const FETCH: bool>(bits: usize, steps: usize) -> Product {
    match (bits, steps) {
        (2, 1) => one_token_2_bits::<1, INSIDE, FETCH>,
        (2, 2) => one_token_2_bits::<2, INSIDE, FETCH>,
        (2, 4) => one_token_2_bits::<4, INSIDE, FETCH>,
        (2, 8) => one_token_2_bits::<8, INSIDE, FETCH>,
        (2, _) => one_token_2_bits::<16, INSIDE, FETCH>,
        (4, _) => one_token::<4, INSIDE>,
        (6, _) => one_token::<6, INSIDE>,
        (_, _) => one_token::<8, INSIDE>,
    }
}

/// One token, codes of 2 bits, inner runs of `STEPS` steps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn one_token_2_bits<const STEPS: usize, const INSIDE: bool, const FETCH: bool>(
    group: &RowGroup<'_>,
    _: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let codes = group.codes.as_chunks::<64>().0.as_chunks::<STEPS>().0;
    let quads = panel.quads.as_chunks::<4>().0.as_chunks::<STEPS>().0;
    let mut result = load_floats(&out[0]);
    for outer in 0..runs.outer {
        let mut partial = _mm512_setzero_ps();
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            if FETCH {
                fetch_ahead(codes[run].as_flattened(), FAR_AHEAD);
            }
            let offset = _mm512_set1_epi32(panel.sums[run]);
            let dot = _mm512_sub_epi32(dot_2_bits(&codes[run], &quads[run]), offset);
            let scale = match INSIDE {
                true => _mm512_set1_ps(panel.scales[run]),
                false => halves(&group.scales[run]),
            };
            partial = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, partial);
        }
        let scale = match INSIDE {
            true => halves(&group.scales[outer]),
            false => _mm512_set1_ps(panel.scales[outer]),
        };
        result = _mm512_fmadd_ps(partial, scale, result);
    }
    store(&mut out[0], result);
}

/// One token, codes of 4, 6 or 8 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn one_token<const BITS: usize, const INSIDE: bool>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut quads = panel.quads.chunks_exact(runs.columns / 4);
    let unit = shift.map_or(0, |shift| 1 << shift);
    let mut result = load_floats(&out[0]);
    for outer in 0..runs.outer {
        let mut partial = _mm512_setzero_ps();
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let offset = _mm512_set1_epi32(panel.sums[run] * unit);
            let dot = _mm512_sub_epi32(dot::<BITS>(codes, quads), offset);
            let scale = match INSIDE {
                true => _mm512_set1_ps(panel.scales[run]),
                false => halves(&group.scales[run]),
            };
            partial = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, partial);
        }
        let scale = match INSIDE {
            true => halves(&group.scales[outer]),
            false => _mm512_set1_ps(panel.scales[outer]),
        };
        result = _mm512_fmadd_ps(partial, scale, result);
    }
    store(&mut out[0], result);
}

/// The sum of stored code * activation over one run, for each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot<const BITS: usize>(codes: &[u8], quads: &[i32]) -> __m512i {
    let mut sums = [_mm512_setzero_si512(); 4];
    for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads.as_chunks::<4>().0) {
        fetch(step);
        let planes = unpack::<BITS>(step);
        for l in 0..4 {
            sums[l] = _mm512_dpbusd_epi32(sums[l], planes[l], _mm512_set1_epi32(quads[l]));
        }
    }
    let [a, b, c, d] = sums;
    _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d))
}

/// The same for codes of 2 bits, in the faster of two ways.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_2_bits<const STEPS: usize>(codes: &[[u8; 64]; STEPS], quads: &[[i32; 4]; STEPS]) -> __m512i {
    match STEPS {
        1 | 2 | 4 => dot_by_places(codes, quads),
        _ => dot_by_steps(codes, quads),
    }
}

/// For a short run: one sum takes the 64-fold codes of all steps, is divided by 4, takes the 16-fold codes, and so on.
/// Fewer instructions than four sums; neighbouring runs hide the longer chain.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_by_places<const STEPS: usize>(codes: &[[u8; 64]; STEPS], quads: &[[i32; 4]; STEPS]) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    let mut planes = [[sum; 4]; STEPS];
    for i in 0..STEPS {
        planes[i] = in_place(&codes[i]);
    }
    for l in [3, 2, 1, 0] {
        for i in 0..STEPS {
            sum = _mm512_dpbusd_epi32(sum, planes[i][l], _mm512_set1_epi32(quads[i][l]));
        }
        if l > 0 {
            sum = _mm512_srai_epi32(sum, 2);
        }
    }
    sum
}

/// For a long run: two sums for each place, taken in turn, hide the latency of `vpdpbusd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_by_steps<const STEPS: usize>(codes: &[[u8; 64]; STEPS], quads: &[[i32; 4]; STEPS]) -> __m512i {
    let mut sums = [[_mm512_setzero_si512(); 2]; 4];
    for i in 0..STEPS {
        let planes = in_place(&codes[i]);
        for l in 0..4 {
            let activations = _mm512_set1_epi32(quads[i][l]);
            sums[l][i % 2] = _mm512_dpbusd_epi32(sums[l][i % 2], planes[l], activations);
        }
    }
    let [a, b, c, d] = sums.map(|[even, odd]| _mm512_add_epi32(even, odd));
    _mm512_add_epi32(
        _mm512_add_epi32(a, _mm512_srai_epi32(b, 2)),
        _mm512_add_epi32(_mm512_srai_epi32(c, 4), _mm512_srai_epi32(d, 6)),
    )
}

/// `C` tokens from token `FIRST` on, of a panel of `W`. `NESTED`: there are several inner runs in an outer one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn tokens<const BITS: usize, const W: usize, const C: usize, const FIRST: usize, const NESTED: bool>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let out: &mut [[f32; ROWS]; C] = out.try_into().expect("a result for each token");
    let inner = if NESTED { runs.inner } else { 1 };
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut quads = panel.quads.as_chunks::<W>().0.chunks_exact(runs.columns / 4);
    let sums = panel.sums.as_chunks::<W>().0;
    let scales = panel.scales.as_chunks::<W>().0;
    let places = _mm_cvtsi32_si128(shift.unwrap_or(0) as i32);
    let zero = _mm512_setzero_si512();
    let mut run = 0;
    for outer in 0..runs.outer {
        let mut partials = [_mm512_setzero_ps(); C];
        for _ in 0..inner {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let mut dots: [__m512i; C] = std::array::from_fn(|c| {
                let sum = _mm512_set1_epi32(sums[run][FIRST + c]);
                let offset = match BITS {
                    2 => sum, // their shift is 0
                    _ => _mm512_sll_epi32(sum, places),
                };
                _mm512_sub_epi32(zero, offset)
            });
            for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads.as_chunks::<4>().0) {
                fetch(step);
                let planes = unpack::<BITS>(step);
                for l in 0..4 {
                    for c in 0..C {
                        dots[c] = _mm512_dpbusd_epi32(dots[c], planes[l], _mm512_set1_epi32(quads[l][FIRST + c]));
                    }
                }
            }
            if runs.activation_inside {
                for c in 0..C {
                    let scale = _mm512_set1_ps(scales[run][FIRST + c]);
                    partials[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[c]), scale, partials[c]);
                }
            } else {
                let scale = halves(&group.scales[run]);
                for c in 0..C {
                    partials[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[c]), scale, partials[c]);
                }
            }
            run += 1;
        }
        if runs.activation_inside {
            let scale = halves(&group.scales[outer]);
            for c in 0..C {
                let result = _mm512_fmadd_ps(partials[c], scale, load_floats(&out[c]));
                store(&mut out[c], result);
            }
        } else {
            for c in 0..C {
                let scale = _mm512_set1_ps(scales[outer][FIRST + c]);
                let result = _mm512_fmadd_ps(partials[c], scale, load_floats(&out[c]));
                store(&mut out[c], result);
            }
        }
    }
}

/// The product for a panel of `width` tokens where scales have multipliers. `fetch`: codes are fetched ahead for one
/// token also where runs are long.
fn multiplied_of(bits: usize, width: usize, steps: usize, fetch: bool) -> Product {
    match (bits, steps) {
        (2, 8) if width == 1 && !fetch => multiplied::<2, 8, 1, 0>,
        (2, 8) => multiplied_of_width::<2, 8>(width),
        (2, _) => multiplied_of_width::<2, 1>(width),
        (4, _) => multiplied_of_width::<4, 1>(width),
        (_, _) => multiplied_of_width::<6, 1>(width),
    }
}

fn multiplied_of_width<const BITS: usize, const STEPS: usize>(width: usize) -> Product {
    match width {
        1 => multiplied::<BITS, STEPS, 1, FAR_AHEAD>,
        4 => multiplied::<BITS, STEPS, 4, AHEAD>,
        8 => multiplied::<BITS, STEPS, 8, AHEAD>,
        12 => multiplied::<BITS, STEPS, 12, AHEAD>,
        _ => multiplied::<BITS, STEPS, 16, AHEAD>,
    }
}

/// A panel of `W` tokens where scales have multipliers, which are applied to the sums of `STEPS` steps. Those of a short
/// run are applied to every step: then only the totals have to stay in registers, and no product waits for that of
/// another step. `FETCH`: how many bytes ahead codes are fetched; 0: they are not.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn multiplied<const BITS: usize, const STEPS: usize, const W: usize, const FETCH: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let out: &mut [[f32; ROWS]; W] = out.try_into().expect("a result for each token");
    let zero = _mm512_setzero_si512();
    let steps = runs.columns / STEP;
    let codes = group.codes.chunks_exact(STEPS * 32 * BITS);
    let quads = panel.quads.as_chunks::<W>().0.as_chunks::<4>().0;
    let mut pieces = codes.zip(quads.as_chunks::<STEPS>().0);
    let sums = panel.sums.as_chunks::<W>().0;
    let scales = panel.scales.as_chunks::<W>().0;
    for span in 0..runs.outer {
        let mut totals = [zero; W];
        let span_runs = span * runs.inner..(span + 1) * runs.inner;
        for multipliers in &group.multipliers[span_runs.clone()] {
            let multipliers = _mm512_cvtepi8_epi32(load_bytes(multipliers));
            for (codes, quads) in pieces.by_ref().take(steps / STEPS) {
                if FETCH > 0 {
                    fetch_ahead(codes, FETCH);
                }
                let dots = dots_of_steps::<BITS, STEPS, W>(codes, quads);
                for c in 0..W {
                    let total = _mm512_mullo_epi32(dots[c], multipliers);
                    totals[c] = _mm512_add_epi32(totals[c], total);
                }
            }
        }
        let multipliers = &group.offset_multipliers()[span_runs.clone()];
        let offsets = offsets(multipliers, &sums[span_runs]);
        let scale = halves(&group.scales[span]);
        for c in 0..W {
            let partial = if let Some(shift) = shift {
                let offset = _mm512_sll_epi32(offsets[c], _mm_cvtsi32_si128(shift as i32));
                let total = _mm512_sub_epi32(totals[c], offset);
                _mm512_mul_ps(_mm512_cvtepi32_ps(total), scale)
            } else {
                let minimum = halves(&group.minimums[span]);
                let partial = _mm512_mul_ps(_mm512_cvtepi32_ps(totals[c]), scale);
                _mm512_fnmadd_ps(minimum, _mm512_cvtepi32_ps(offsets[c]), partial)
            };
            let scale = _mm512_set1_ps(scales[span][c]);
            let result = _mm512_fmadd_ps(partial, scale, load_floats(&out[c]));
            store(&mut out[c], result);
        }
    }
}

/// The sums of stored code * activation over some steps, for each token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dots_of_steps<const BITS: usize, const STEPS: usize, const W: usize>(
    codes: &[u8],
    quads: &[[[i32; W]; 4]; STEPS],
) -> [__m512i; W] {
    let mut dots = [_mm512_setzero_si512(); W];
    let words = quads.as_flattened().as_flattened().as_chunks().0;
    if let (1, 2, [codes], [words]) = (
        W,
        BITS,
        codes.as_chunks().0.as_chunks::<STEPS>().0,
        words.as_chunks::<STEPS>().0,
    ) {
        dots[0] = dot_2_bits(codes, words);
        return dots;
    }
    for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads) {
        let planes = unpack::<BITS>(step);
        for c in 0..W {
            for l in 0..4 {
                let x = _mm512_set1_epi32(quads[l][c]);
                dots[c] = _mm512_dpbusd_epi32(dots[c], planes[l], x);
            }
        }
    }
    dots
}

/// Sums of multiplier * sum of activations over the runs of a span. Both fit 16 bits, so two runs are one `vpdpwssd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn offsets<const W: usize>(multipliers: &[[u8; ROWS]], sums: &[[i32; W]]) -> [__m512i; W] {
    let mut offsets = [_mm512_setzero_si512(); W];
    for (multipliers, sums) in multipliers.chunks(2).zip(sums.chunks(2)) {
        let a = load_bytes(&multipliers[0]);
        let b = multipliers
            .get(1)
            .map_or(_mm_setzero_si128(), |bytes| load_bytes(bytes));
        let pairs = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
        let pairs = _mm512_cvtepi8_epi16(pairs);
        for c in 0..W {
            let second = sums.get(1).map_or(0, |sums| sums[c]);
            let sums = _mm512_set1_epi32(sums[0][c] & 0xFFFF | second << 16);
            offsets[c] = _mm512_dpwssd_epi32(offsets[c], pairs, sums);
        }
    }
    offsets
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_bytes(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: 16 bytes are there.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// The four planes of a step, each code in its byte.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<const BITS: usize>(step: &[u8]) -> [__m512i; 4] {
    let nibbles = |mask: i8| {
        let (a, b, mask) = (load(&step[..64]), load(&step[64..128]), _mm512_set1_epi8(mask));
        [
            _mm512_and_si512(a, mask),
            _mm512_and_si512(_mm512_srli_epi16(a, 4), mask),
            _mm512_and_si512(b, mask),
            _mm512_and_si512(_mm512_srli_epi16(b, 4), mask),
        ]
    };
    match BITS {
        2 => {
            let (codes, mask) = (load(step), _mm512_set1_epi8(3));
            [
                _mm512_and_si512(codes, mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 2), mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask),
                _mm512_and_si512(_mm512_srli_epi16(codes, 6), mask),
            ]
        }
        4 => nibbles(15),
        6 => {
            let low = nibbles(15);
            let (high, mask) = (load(&step[128..]), _mm512_set1_epi8(0x30));
            [
                _mm512_or_si512(low[0], _mm512_and_si512(_mm512_slli_epi16(high, 4), mask)),
                _mm512_or_si512(low[1], _mm512_and_si512(_mm512_slli_epi16(high, 2), mask)),
                _mm512_or_si512(low[2], _mm512_and_si512(high, mask)),
                _mm512_or_si512(low[3], _mm512_and_si512(_mm512_srli_epi16(high, 2), mask)),
            ]
        }
        _ => [
            load(&step[..64]),
            load(&step[64..128]),
            load(&step[128..192]),
            load(&step[192..]),
        ],
    }
}

/// The four 2-bit planes where they are: 1, 4, 16 and 64 times the code.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn in_place(step: &[u8]) -> [__m512i; 4] {
    let codes = load(step);
    [
        _mm512_and_si512(codes, _mm512_set1_epi8(0x03)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0x0C)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0x30)),
        _mm512_and_si512(codes, _mm512_set1_epi8(0xC0u8 as i8)),
    ]
}

/// 16 f16 as f32.
#[inline]
#[target_feature(enable = "avx512f,f16c")]
pub(super) fn halves(bytes: &[u8; 32]) -> __m512 {
    // SAFETY: 32 bytes are there.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(bytes: &[u8]) -> __m512i {
    let bytes = &bytes[..64];
    // SAFETY: 64 bytes are there.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(floats: &[f32; 16]) -> __m512 {
    // SAFETY: 16 floats are there.
    unsafe { _mm512_loadu_ps(floats.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(floats: &mut [f32; 16], vector: __m512) {
    // SAFETY: there is room for 16 floats.
    unsafe { _mm512_storeu_ps(floats.as_mut_ptr(), vector) }
}

/// Groups whose scales are found together, one in each lane.
const SCALES_AT_ONCE: usize = 16;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let group = grouping.group();
    let several = x
        .chunks(SCALES_AT_ONCE * group)
        .zip(codes.chunks_mut(SCALES_AT_ONCE * group))
        .zip(scales.chunks_mut(SCALES_AT_ONCE));
    for ((x, codes), scales) in several {
        let mut extremes = [0.0; SCALES_AT_ONCE];
        for (x, extreme) in x.chunks_exact(group).zip(&mut extremes) {
            let x = x.as_chunks().0;
            *extreme = match grouping {
                Grouping::Q8_0 => largest_magnitude(x),
                _ => first_extreme(x),
            };
        }
        let (inverses, found) = match grouping {
            Grouping::Q8_0 => scales_q8_0(&extremes),
            _ => scales_k(&extremes),
        };
        scales.copy_from_slice(&found[..scales.len()]);
        let groups = x.chunks_exact(group).zip(codes.chunks_exact_mut(group));
        for ((x, codes), inverse) in groups.zip(inverses) {
            let (inverse, limit) = (_mm512_set1_ps(inverse), _mm512_set1_epi32(127));
            for (x, codes) in x.as_chunks().0.iter().zip(codes.as_chunks_mut::<16>().0) {
                let scaled = _mm512_mul_ps(inverse, load_floats(x));
                // Rounds to even; a NaN becomes i32::MIN, whose low byte is 0.
                let code = _mm512_min_epi32(_mm512_cvtps_epi32(scaled), limit);
                // SAFETY: there is room for 16 codes.
                unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(code)) };
            }
        }
    }
    let fours = codes.as_chunks::<64>().0.iter().zip(sums.as_chunks_mut().0);
    for (codes, sums) in fours {
        *sums = sums_of_steps(codes);
    }
    let done = codes.len() / 64;
    let last = codes[64 * done..].as_chunks::<16>().0;
    for (codes, sum) in last.iter().zip(&mut sums[4 * done..]) {
        *sum = codes.iter().map(|&code| i32::from(code)).sum();
    }
}

/// The sum of each 16 codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn sums_of_steps(codes: &[i8; 64]) -> [i32; 4] {
    // SAFETY: 64 codes are there.
    let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
    let quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), codes);
    let pairs = _mm512_add_epi32(quads, _mm512_shuffle_epi32::<0b10_11_00_01>(quads));
    let all = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b01_00_11_10>(pairs));
    let firsts = _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, all));
    let mut sums = [0; 4];
    // SAFETY: there is room for four sums.
    unsafe { _mm_storeu_si128(sums.as_mut_ptr().cast(), firsts) };
    sums
}

/// (1 / scale, scale) of 16 groups, as [`crate::kernels::scalar::scales_k`] has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_k(extremes: &[f32; 16]) -> ([f32; 16], [f32; 16]) {
    let inverse = _mm512_div_ps(_mm512_set1_ps(-127.0), load_floats(extremes));
    let finite = finite(inverse);
    let scale = _mm512_maskz_div_ps(finite, _mm512_set1_ps(1.0), inverse);
    pair(_mm512_maskz_mov_ps(finite, inverse), scale)
}

/// (1 / scale, scale rounded to f16) of 16 groups, as [`crate::kernels::scalar::scales_q8_0`] has them.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales_q8_0(largest: &[f32; 16]) -> ([f32; 16], [f32; 16]) {
    let (largest, limit) = (load_floats(largest), _mm512_set1_ps(127.0));
    let inverse = _mm512_div_ps(limit, largest);
    let scale = _mm512_div_ps(largest, limit);
    let scale = _mm512_cvtph_ps(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scale));
    pair(_mm512_maskz_mov_ps(finite(inverse), inverse), scale)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn finite(x: __m512) -> __mmask16 {
    _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(x), _mm512_set1_ps(f32::INFINITY))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pair(a: __m512, b: __m512) -> ([f32; 16], [f32; 16]) {
    let mut pair = ([0.0; 16], [0.0; 16]);
    store(&mut pair.0, a);
    store(&mut pair.1, b);
    pair
}

/// The largest magnitude. NaNs do not count.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest_magnitude(x: &[[f32; 16]]) -> f32 {
    let mut largest = _mm512_setzero_ps();
    for x in x {
        // A NaN in the first operand gives the second.
        largest = _mm512_max_ps(_mm512_abs_ps(load_floats(x)), largest);
    }
    _mm512_reduce_max_ps(largest)
}

/// The first of `x` whose magnitude is the largest; 0 where there is none, that is, where all are 0 or NaN.
#[inline]
#[target_feature(enable = "avx512f")]
fn first_extreme(x: &[[f32; 16]]) -> f32 {
    let (mut low, mut high) = (_mm512_setzero_ps(), _mm512_setzero_ps());
    for x in x {
        let x = load_floats(x);
        // As above.
        (low, high) = (_mm512_min_ps(x, low), _mm512_max_ps(x, high));
    }
    let (low, high) = (_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high));
    if -low == high {
        let first = x.as_flattened().iter().find(|x| x.abs() == high);
        return first.copied().unwrap_or_default();
    }
    if -low > high { low } else { high }
}

/// A row group of floats times a panel.
type FloatProduct = unsafe fn(&[u8], &[f32], &mut [[f32; ROWS]]);

/// The product for a panel of `width` tokens. `KIND`: 4 for F32, 2 for F16, 0 for BF16.
fn floats_of<const KIND: usize>(width: usize) -> FloatProduct {
    match width {
        1 => floats_tile::<KIND, 1, 1, 0>,
        4 => floats_tile::<KIND, 4, 4, 0>,
        8 => floats_tile::<KIND, 8, 8, 0>,
        12 => floats_in_two::<KIND, 12, 4>,
        _ => floats_in_two::<KIND, 16, 8>,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn floats_in_two<const KIND: usize, const W: usize, const B: usize>(
    weights: &[u8],
    x: &[f32],
    out: &mut [[f32; ROWS]],
) {
    let (first, second) = out.split_at_mut(8);
    floats_tile::<KIND, W, 8, 0>(weights, x, first);
    floats_tile::<KIND, W, B, 8>(weights, x, second);
}

/// `C` tokens from token `FIRST` on, of a panel of `W`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn floats_tile<const KIND: usize, const W: usize, const C: usize, const FIRST: usize>(
    weights: &[u8],
    x: &[f32],
    out: &mut [[f32; ROWS]],
) {
    let bytes = if KIND == 4 { 64 } else { 32 };
    let mut chains = [[_mm512_setzero_ps(); C]; 2];
    let (pairs, last) = x.as_chunks::<W>().0.as_chunks::<2>();
    let mut columns = weights.chunks_exact(2 * bytes);
    for (x, weights) in pairs.iter().zip(&mut columns) {
        if W == 1 {
            fetch(weights);
        }
        for chain in 0..2 {
            let weights = widen::<KIND>(&weights[chain * bytes..][..bytes]);
            for c in 0..C {
                let x = _mm512_set1_ps(x[chain][FIRST + c]);
                chains[chain][c] = _mm512_fmadd_ps(weights, x, chains[chain][c]);
            }
        }
    }
    if let [x] = last {
        let weights = widen::<KIND>(columns.remainder());
        for c in 0..C {
            let x = _mm512_set1_ps(x[FIRST + c]);
            chains[0][c] = _mm512_fmadd_ps(weights, x, chains[0][c]);
        }
    }
    for (c, out) in out.iter_mut().enumerate() {
        store(out, _mm512_add_ps(chains[0][c], chains[1][c]));
    }
}

/// 16 weights as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn widen<const KIND: usize>(weights: &[u8]) -> __m512 {
    assert_eq!(weights.len(), if KIND == 4 { 64 } else { 32 });
    let at = weights.as_ptr();
    // SAFETY: 16 weights are there.
    unsafe {
        match KIND {
            4 => _mm512_loadu_ps(at.cast()),
            2 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
            _ => {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }
    }
}
