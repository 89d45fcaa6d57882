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
//! 6. For one token four row groups are read side by side, but on a Zen 4: a core of an Emerald Rapids reads four streams
//!    by a quarter faster than one.
//!
//! No saturation anywhere: the largest sum of a run is 255 * 127 * 256 < 2^23, times 64 at most 3 * 64 * 127 * 64 < 2^21.

use super::floats512::{FloatProduct, floats_for_one, floats_of};
use super::one_token::{dot_2_bits, one_token_of};
use super::quantize::{quantize, sums_of_steps};
use super::zmm::{Product, halves, load_bytes, load_floats, scales_of, store, unpack};
use super::{AHEAD, FAR_AHEAD, fetch, fetch_ahead, is_zen_4};
use crate::kernels::contract::{FloatPanel, Grouping, MR, Panel, Runs, STEP};
use crate::kernels::floats::{BF16, F16, F32, FloatType, Floats};
use crate::kernels::kernel::Kernel;
use crate::kernels::packed::{KPanel, RowGroup};
use std::arch::x86_64::*;
use std::array;
use std::ops::Range;
use std::sync::OnceLock;

/// The proof that the CPU has AVX-512 F, BW, VL and VNNI (and what comes with them).
struct Avx512Vnni {
    /// Whether, for one token, codes are fetched ahead also where runs are long, and row groups read in several streams.
    fetch: bool,
}

/// The AVX-512 kernel, where the CPU has F, BW, VL and VNNI.
pub(in crate::kernels) fn avx512_vnni() -> Option<&'static dyn Kernel> {
    static KERNEL: OnceLock<Option<Avx512Vnni>> = OnceLock::new();
    let kernel = || {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("f16c");
        found.then(|| Avx512Vnni { fetch: !is_zen_4() })
    };
    let kernel = KERNEL.get_or_init(kernel).as_ref();
    kernel.map(|kernel| kernel as &dyn Kernel)
}

/// Row groups that are multiplied with one token together: a core reads that many streams faster than one.
const STREAMS: usize = 4;

impl Avx512Vnni {
    /// The results of row groups that are to be read in as many streams, and the others.
    fn in_streams<'o>(
        &self,
        width: usize,
        out: &'o mut [[f32; MR]],
    ) -> (&'o mut [[[f32; MR]; STREAMS]], &'o mut [[f32; MR]]) {
        match self.fetch && width == 1 {
            true => out.as_chunks_mut(),
            false => (&mut [], out),
        }
    }
}

impl Kernel for Avx512Vnni {
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]) {
        let runs = weights.runs(panel);
        let (format, in_spans) = (&weights.format, weights.in_spans(panel));
        let (bits, steps) = (format.bits, runs.columns / STEP);
        let (mut groups, shift) = (groups.map(|group| weights.row_group(group)), format.shift);
        let (several, rest) = self.in_streams(panel.width, out);
        let product = match in_spans {
            true => multiplied_for_one(bits, steps),
            false => one_token_of(format, runs, self.fetch),
        };
        for out in several {
            let groups: [_; STREAMS] = array::from_fn(|_| groups.next().expect("a row group for each result"));
            // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
            unsafe { product(&groups, shift, runs, panel, out) }
        }
        let product = match panel.width {
            width if in_spans => multiplied_of(bits, width, steps, self.fetch),
            1 => one_token_of(format, runs, self.fetch),
            12 if runs.activation_inside => in_two_of::<12, 4>(bits),
            16 if runs.activation_inside => in_two_of::<16, 8>(bits),
            4 => tokens_of::<4>(bits, runs.inner),
            8 => tokens_of::<8>(bits, runs.inner),
            12 => tokens_of::<12>(bits, runs.inner),
            _ => tokens_of::<16>(bits, runs.inner),
        };
        for (group, out) in groups.zip(rest.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
            unsafe { product(&[group], shift, runs, panel, out) }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
        // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
        unsafe { quantize(x, grouping, codes, scales) }
    }

    fn sums(&self, codes: &[i8], sums: &mut [i32]) {
        // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
        unsafe { sums_of_steps(codes, sums) }
    }

    fn dots(&self, repeats: usize) -> Option<usize> {
        // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
        unsafe { dots(repeats) };
        Some(DOTS * 64)
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; MR]]) {
        let (product, of_several): (FloatProduct<1>, FloatProduct<STREAMS>) = match weights.ty {
            FloatType::F32 => (floats_of::<F32>(panel.width), floats_for_one::<F32, _>),
            FloatType::F16 => (floats_of::<F16>(panel.width), floats_for_one::<F16, _>),
            FloatType::Bf16 => (floats_of::<BF16>(panel.width), floats_for_one::<BF16, _>),
        };
        let mut groups = groups.map(|group| weights.group(group));
        let (several, rest) = self.in_streams(panel.width, out);
        for out in several {
            let groups = array::from_fn(|_| groups.next().expect("a row group for each result"));
            // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
            unsafe { of_several(groups, panel.x, out) }
        }
        for (group, out) in groups.zip(rest.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type exists only where `avx512_vnni` found the features.
            unsafe { product([group], panel.x, out) }
        }
    }
}

/// Independent sums that hide the latency of `vpdpbusd`.
const SUMS: usize = 12;
/// Dots of one repeat of [`dots`], with activations of their own, more than there are registers.
const DOTS: usize = 8 * SUMS;

#[target_feature(enable = "avx512f,avx512vnni")]
fn dots(repeats: usize) {
    let (codes, activations) = std::hint::black_box((_mm512_set1_epi8(1), [0x0303_0303; DOTS]));
    let mut sums = [_mm512_setzero_si512(); SUMS];
    for _ in 0..repeats {
        for activations in std::hint::black_box(&activations).as_chunks::<SUMS>().0 {
            for (sum, &activation) in sums.iter_mut().zip(activations) {
                *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(activation));
            }
        }
    }
    std::hint::black_box(sums);
}

/// The product for a panel of `W` tokens, codes of `bits` bits and `inner` inner runs in an outer one.
fn tokens_of<const W: usize>(bits: usize, inner: usize) -> Product<1> {
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
fn in_two_of<const W: usize, const B: usize>(bits: usize) -> Product<1> {
    match bits {
        2 => in_two::<2, W, B>,
        4 => in_two::<4, W, B>,
        6 => in_two::<6, W, B>,
        _ => in_two::<8, W, B>,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn in_two<const BITS: usize, const W: usize, const B: usize>(
    group: &[RowGroup<'_>; 1],
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; MR]],
) {
    let (first, second) = out.split_at_mut(8);
    tokens::<BITS, W, 8, 0, true>(group, shift, runs, panel, first);
    tokens::<BITS, W, B, 8, true>(group, shift, runs, panel, second);
}

/// `C` tokens from token `FIRST` on, of a panel of `W`. `NESTED`: there are several inner runs in an outer one.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn tokens<const BITS: usize, const W: usize, const C: usize, const FIRST: usize, const NESTED: bool>(
    [group]: &[RowGroup<'_>; 1],
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; MR]],
) {
    let out: &mut [[f32; MR]; C] = out.try_into().expect("a result for each token");
    let inner = if NESTED { runs.inner } else { 1 };
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut dwords = panel.dwords.as_chunks::<W>().0.chunks_exact(runs.columns / 4);
    let sums = panel.sums.as_chunks::<W>().0;
    let scales = panel.scales.as_chunks::<W>().0;
    let places = _mm_cvtsi32_si128(shift.unwrap_or(0) as i32);
    let zero = _mm512_setzero_si512();
    let mut run = 0;
    for outer in 0..runs.outer {
        let mut partials = [_mm512_setzero_ps(); C];
        for _ in 0..inner {
            let (Some(codes), Some(dwords)) = (codes.next(), dwords.next()) else {
                panic!("codes and activations of every run");
            };
            let mut dots: [__m512i; C] = array::from_fn(|c| {
                let sum = _mm512_set1_epi32(sums[run][FIRST + c]);
                let offset = match BITS {
                    2 => sum, // their shift is 0, or none
                    _ => _mm512_sll_epi32(sum, places),
                };
                _mm512_sub_epi32(zero, offset)
            });
            for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.as_chunks::<4>().0) {
                fetch(step);
                let planes = unpack::<BITS>(step);
                for l in 0..4 {
                    for c in 0..C {
                        dots[c] = _mm512_dpbusd_epi32(dots[c], planes[l], _mm512_set1_epi32(dwords[l][FIRST + c]));
                    }
                }
            }
            if runs.activation_inside {
                for c in 0..C {
                    let scale = _mm512_set1_ps(scales[run][FIRST + c]);
                    partials[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[c]), scale, partials[c]);
                }
            } else {
                let scale = scales_of(group, run);
                for c in 0..C {
                    partials[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[c]), scale, partials[c]);
                }
            }
            run += 1;
        }
        if runs.activation_inside {
            let scale = scales_of(group, outer);
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

/// The product for a panel of `width` tokens where multipliers are applied to integers. `fetch`: codes are fetched ahead for one
/// token also where runs are long.
fn multiplied_of(bits: usize, width: usize, steps: usize, fetch: bool) -> Product<1> {
    match (bits, steps) {
        (2, 8) if width == 1 && !fetch => multiplied::<2, 8, 1, 0, 1>,
        _ if width == 1 => multiplied_for_one(bits, steps),
        (2, 8) => multiplied_of_width::<2, 8>(width),
        (2, _) => multiplied_of_width::<2, 1>(width),
        (4, _) => multiplied_of_width::<4, 1>(width),
        (_, _) => multiplied_of_width::<6, 1>(width),
    }
}

fn multiplied_of_width<const BITS: usize, const STEPS: usize>(width: usize) -> Product<1> {
    match width {
        4 => multiplied::<BITS, STEPS, 4, AHEAD, 1>,
        8 => multiplied::<BITS, STEPS, 8, AHEAD, 1>,
        12 => multiplied::<BITS, STEPS, 12, AHEAD, 1>,
        _ => multiplied::<BITS, STEPS, 16, AHEAD, 1>,
    }
}

/// The same for one token.
fn multiplied_for_one<const G: usize>(bits: usize, steps: usize) -> Product<G> {
    match (bits, steps) {
        (2, 8) => multiplied::<2, 8, 1, FAR_AHEAD, G>,
        (2, _) => multiplied::<2, 1, 1, FAR_AHEAD, G>,
        (4, _) => multiplied::<4, 1, 1, FAR_AHEAD, G>,
        (_, _) => multiplied::<6, 1, 1, FAR_AHEAD, G>,
    }
}

/// A panel of `W` tokens where multipliers are applied to the sums of `STEPS` steps. Those of a short
/// run are applied to every step: then only the totals have to stay in registers, and no product waits for that of
/// another step. `FETCH`: how many bytes ahead codes are fetched; 0: they are not.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn multiplied<const BITS: usize, const STEPS: usize, const W: usize, const FETCH: usize, const G: usize>(
    groups: &[RowGroup<'_>; G],
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; MR]],
) {
    let out: &mut [[[f32; MR]; W]; G] = out.as_chunks_mut().0.try_into().expect("results for each row group");
    let zero = _mm512_setzero_si512();
    let pieces = runs.columns / STEP / STEPS;
    let mut codes: [_; G] = array::from_fn(|g| groups[g].codes.chunks_exact(STEPS * 32 * BITS));
    let dwords = panel.dwords.as_chunks::<W>().0.as_chunks::<4>().0;
    let mut dwords = dwords.as_chunks::<STEPS>().0.chunks_exact(pieces);
    let sums = panel.sums.as_chunks::<W>().0;
    let scales = panel.scales.as_chunks::<W>().0;
    for span in 0..runs.outer {
        let mut totals = [[zero; W]; G];
        let span_runs = span * runs.inner..(span + 1) * runs.inner;
        for (run, dwords) in span_runs.clone().zip(&mut dwords) {
            for g in 0..G {
                let multipliers = _mm512_cvtepi8_epi32(load_bytes(&groups[g].multipliers[run]));
                for (dwords, codes) in dwords.iter().zip(codes[g].by_ref()) {
                    if FETCH > 0 {
                        fetch_ahead(codes, FETCH / G);
                    }
                    let dots = dots_of_steps::<BITS, STEPS, W>(codes, dwords);
                    for c in 0..W {
                        let total = _mm512_mullo_epi32(dots[c], multipliers);
                        totals[g][c] = _mm512_add_epi32(totals[g][c], total);
                    }
                }
            }
        }
        for g in 0..G {
            let group = &groups[g];
            let multipliers = &group.offset_multipliers()[span_runs.clone()];
            let offsets = offsets(multipliers, &sums[span_runs.clone()]);
            let scale = halves(&group.scales[span]);
            for c in 0..W {
                let partial = if let Some(shift) = shift {
                    let offset = _mm512_sll_epi32(offsets[c], _mm_cvtsi32_si128(shift as i32));
                    let total = _mm512_sub_epi32(totals[g][c], offset);
                    _mm512_mul_ps(_mm512_cvtepi32_ps(total), scale)
                } else {
                    let minimum = halves(&group.minimums[span]);
                    let partial = _mm512_mul_ps(_mm512_cvtepi32_ps(totals[g][c]), scale);
                    _mm512_fnmadd_ps(minimum, _mm512_cvtepi32_ps(offsets[c]), partial)
                };
                let scale = _mm512_set1_ps(scales[span][c]);
                let result = _mm512_fmadd_ps(partial, scale, load_floats(&out[g][c]));
                store(&mut out[g][c], result);
            }
        }
    }
}

/// The sums of stored code * activation over some steps, for each token.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dots_of_steps<const BITS: usize, const STEPS: usize, const W: usize>(
    codes: &[u8],
    dwords: &[[[i32; W]; 4]; STEPS],
) -> [__m512i; W] {
    let mut dots = [_mm512_setzero_si512(); W];
    let words = dwords.as_flattened().as_flattened().as_chunks().0;
    if let (1, 2, [codes], [words]) = (
        W,
        BITS,
        codes.as_chunks().0.as_chunks::<STEPS>().0,
        words.as_chunks::<STEPS>().0,
    ) {
        dots[0] = dot_2_bits(codes, words);
        return dots;
    }
    for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords) {
        let planes = unpack::<BITS>(step);
        for c in 0..W {
            for l in 0..4 {
                let x = _mm512_set1_epi32(dwords[l][c]);
                dots[c] = _mm512_dpbusd_epi32(dots[c], planes[l], x);
            }
        }
    }
    dots
}

/// Sums of multiplier * sum of activations over the runs of a span. Both fit 16 bits, so two runs are one `vpdpwssd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn offsets<const W: usize>(multipliers: &[[u8; MR]], sums: &[[i32; W]]) -> [__m512i; W] {
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
