//! AVX2: one 256-bit vector is 8 rows, and the dot of four columns with four activations is `vpmaddubsw`, or
//! `vpdpbusd` where the CPU has AVX-VNNI.
//!
//! ```text
//! for each half of a row group, for each 8 or 4 tokens (one token: both halves at once):
//!     for each step:  for l in 0..4:  plane = codes >> 2l & 3;  for each token:  sum += plane . activations[l][token]
//! ```
//! 1. `vpmaddubsw` adds two products in 16 bits and saturates, so sums are widened to 32 bits before they can:
//!    codes of 2 bits: 2 * 3 * 127 = 762 a product, 32 of them 24,384 < 32,767: widened every 8 steps;
//!    codes of 4 bits: 2 * 15 * 127 = 3810, 8 of them 30,480: every 2 steps.
//!    Longer codes are split into a low nibble and what is above it, which counts 16-fold when it is widened.
//! 2. Codes are fetched ahead: the hardware does so too late where much work lies between two lines.
//! 3. `vpdpbusd` adds in 32 bits and needs none of that. It is written in assembly: then one body serves both, and the
//!    tests can run it in its AVX-512VL encoding on CPUs that have only that.

use super::{AHEAD, FAR_AHEAD, fetch_ahead};
use crate::kernels::activations::Grouping;
use crate::kernels::floats::{FloatPanel, FloatType, Floats};
use crate::kernels::kernel::{Kernel, MISSING_RUN, Panel, ROWS, Runs, STEP};
use crate::kernels::layout::{RowGroup, Strip};
use crate::kernels::scalar::{scales_k, scales_q8_0};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// The dot is `vpmaddubsw`.
const MADDUBS: usize = 0;
/// The dot is `vpdpbusd` of AVX-VNNI.
const VNNI: usize = 1;
/// The dot is `vpdpbusd` of AVX-512VL.
#[cfg(test)]
const EVEX_VNNI: usize = 2;

/// The proof that the CPU has AVX2, FMA and F16C, and the instruction that `DOT` names.
pub(super) struct Avx2<const DOT: usize>(());

fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

impl Avx2<MADDUBS> {
    pub fn detect() -> Option<&'static dyn Kernel> {
        static KERNEL: Avx2<MADDUBS> = Avx2(());
        has_avx2().then_some(&KERNEL as &dyn Kernel)
    }
}

impl Avx2<VNNI> {
    pub fn detect() -> Option<&'static dyn Kernel> {
        static KERNEL: Avx2<VNNI> = Avx2(());
        (has_avx2() && is_x86_feature_detected!("avxvnni")).then_some(&KERNEL as &dyn Kernel)
    }
}

#[cfg(test)]
impl Avx2<EVEX_VNNI> {
    pub fn detect() -> Option<&'static dyn Kernel> {
        static KERNEL: Avx2<EVEX_VNNI> = Avx2(());
        let found = has_avx2() && is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        found.then_some(&KERNEL as &dyn Kernel)
    }
}

impl<const DOT: usize> Kernel for Avx2<DOT> {
    fn name(&self) -> &'static str {
        if DOT == MADDUBS { "avx2" } else { "avxvnni" }
    }

    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; ROWS]]) {
        let runs = Runs::new(weights.columns().len(), weights.group(), panel.group);
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let (group, shift) = (weights.row_group(group), weights.shift());
            // SAFETY: a value of this type exists only where `detect` found the features.
            unsafe {
                match group.bits {
                    2 if weights.multiplied() => multiplied_product::<2>(&group, shift, runs, panel, out),
                    4 if weights.multiplied() => multiplied_product::<4>(&group, shift, runs, panel, out),
                    6 if weights.multiplied() => multiplied_product::<6>(&group, shift, runs, panel, out),
                    2 => panel_product::<DOT, 2>(&group, shift, runs, panel, out),
                    4 => panel_product::<DOT, 4>(&group, shift, runs, panel, out),
                    6 => panel_product::<DOT, 6>(&group, shift, runs, panel, out),
                    _ => panel_product::<DOT, 8>(&group, shift, runs, panel, out),
                }
            }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        // SAFETY: a value of this type exists only where `detect` found the features.
        unsafe { quantize(x, grouping, codes, scales, sums) }
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; ROWS]]) {
        let product = match weights.ty {
            FloatType::F32 => floats_product::<4>,
            FloatType::F16 => floats_product::<2>,
            FloatType::Bf16 => floats_product::<0>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type exists only where `detect` found the features.
            unsafe { product(weights.group(group), panel, out) }
        }
    }
}

/// A row group times a panel, in pieces that fit the registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn panel_product<const DOT: usize, const BITS: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    if panel.width == 1 {
        return piece::<DOT, BITS, 2, 1>(group, shift, runs, panel, (0, 0), out);
    }
    for half in 0..2 {
        for first in (0..panel.width).step_by(8) {
            match panel.width - first {
                4 => piece::<DOT, BITS, 1, 4>(group, shift, runs, panel, (half, first), out),
                _ => piece::<DOT, BITS, 1, 8>(group, shift, runs, panel, (half, first), out),
            }
        }
    }
}

/// `H` halves of the rows from `half` on, times `C` tokens from `first` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn piece<const DOT: usize, const BITS: usize, const H: usize, const C: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    (half, first): (usize, usize),
    out: &mut [[f32; ROWS]],
) {
    let width = panel.width;
    let unit = shift.map_or(0, |shift| 1 << shift);
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut quads = panel.quads.chunks_exact(runs.columns / 4 * width);
    let mut results = [[_mm256_setzero_ps(); C]; H];
    for (h, results) in results.iter_mut().enumerate() {
        for (out, result) in out[first..].iter().zip(results) {
            *result = load(&out.as_chunks().0[half + h]);
        }
    }
    let mut run = 0;
    for outer in 0..runs.outer {
        let mut partials = [[_mm256_setzero_ps(); C]; H];
        for _ in 0..runs.inner {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let dots = dots::<DOT, BITS, H, C>(codes, quads, width, half, first);
            let sums = &panel.sums[run * width + first..][..C];
            for h in 0..H {
                let scale = match runs.activation_inside {
                    true => None,
                    false => Some(halves(&group.scales[run], half + h)),
                };
                for c in 0..C {
                    let dot = _mm256_sub_epi32(dots[h][c], _mm256_set1_epi32(sums[c] * unit));
                    let scale = match scale {
                        Some(scale) => scale,
                        None => _mm256_set1_ps(panel.scales[run * width + first + c]),
                    };
                    partials[h][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, partials[h][c]);
                }
            }
            run += 1;
        }
        for h in 0..H {
            let scale = match runs.activation_inside {
                true => Some(halves(&group.scales[outer], half + h)),
                false => None,
            };
            for c in 0..C {
                let scale = match scale {
                    Some(scale) => scale,
                    None => _mm256_set1_ps(panel.scales[outer * width + first + c]),
                };
                results[h][c] = _mm256_fmadd_ps(partials[h][c], scale, results[h][c]);
            }
        }
    }
    for (h, results) in results.into_iter().enumerate() {
        for (out, result) in out[first..].iter_mut().zip(results) {
            store(&mut out.as_chunks_mut().0[half + h], result);
        }
    }
}

/// As [`panel_product`], where scales have multipliers.
#[target_feature(enable = "avx2,fma,f16c")]
fn multiplied_product<const BITS: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    if panel.width == 1 {
        return multiplied::<BITS, 2, 1>(group, shift, runs, panel, (0, 0), out);
    }
    // Longer codes have high parts, which leave no registers for eight tokens.
    let at_once = if BITS == 2 { 8 } else { 4 };
    for half in 0..2 {
        for first in (0..panel.width).step_by(at_once) {
            let at = (half, first);
            match at_once.min(panel.width - first) {
                8 => multiplied::<BITS, 1, 8>(group, shift, runs, panel, at, out),
                _ => multiplied::<BITS, 1, 4>(group, shift, runs, panel, at, out),
            }
        }
    }
}

/// As [`piece`], where scales have multipliers. `vpmaddubsw` is all it needs: pairs of products that were added in 16
/// bits meet the multipliers in `vpmaddwd`, which widens them too.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn multiplied<const BITS: usize, const H: usize, const C: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    (half, first): (usize, usize),
    out: &mut [[f32; ROWS]],
) {
    let (width, zero) = (panel.width, _mm256_setzero_si256());
    let steps = runs.columns / STEP;
    let mut codes = group.codes.chunks_exact(steps * 32 * BITS);
    let mut quads = panel.quads.chunks_exact(steps * 4 * width);
    for span in 0..runs.outer {
        let span_runs = span * runs.inner..(span + 1) * runs.inner;
        let mut totals = [[zero; C]; H];
        for multipliers in &group.multipliers[span_runs.clone()] {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let steps = codes.chunks_exact(32 * BITS);
            for (step, quads) in steps.zip(quads.chunks_exact(4 * width)) {
                fetch_ahead(step, if C == 1 { FAR_AHEAD } else { AHEAD });
                for h in 0..H {
                    let multiplier = pairs(multipliers, multipliers, half + h);
                    // Codes of 6 bits: 2 * 63 * 127 = 16,002 a product, and two of them 32,004 < 32,767.
                    let planes = planes::<VNNI, BITS>(step, half + h).0;
                    for c in 0..C {
                        let dot = |l: usize| {
                            let x = _mm256_set1_epi32(quads[l * width + first + c]);
                            _mm256_maddubs_epi16(planes[l], x)
                        };
                        let a = _mm256_add_epi16(dot(0), dot(1));
                        let b = _mm256_add_epi16(dot(2), dot(3));
                        let total = match BITS {
                            6 => _mm256_add_epi32(_mm256_madd_epi16(a, multiplier), _mm256_madd_epi16(b, multiplier)),
                            _ => _mm256_madd_epi16(_mm256_add_epi16(a, b), multiplier),
                        };
                        totals[h][c] = _mm256_add_epi32(totals[h][c], total);
                    }
                }
            }
        }
        for h in 0..H {
            let multipliers = &group.offset_multipliers()[span_runs.clone()];
            let sums = &panel.sums[span_runs.start * width..];
            let offsets = offsets::<C>(multipliers, half + h, sums, width, first);
            let scale = halves(&group.scales[span], half + h);
            for c in 0..C {
                let partial = if let Some(shift) = shift {
                    let offset = _mm256_sll_epi32(offsets[c], _mm_cvtsi32_si128(shift as i32));
                    let total = _mm256_sub_epi32(totals[h][c], offset);
                    _mm256_mul_ps(_mm256_cvtepi32_ps(total), scale)
                } else {
                    let minimum = halves(&group.minimums[span], half + h);
                    let partial = _mm256_mul_ps(_mm256_cvtepi32_ps(totals[h][c]), scale);
                    _mm256_fnmadd_ps(minimum, _mm256_cvtepi32_ps(offsets[c]), partial)
                };
                let scale = _mm256_set1_ps(panel.scales[span * width + first + c]);
                let result = &mut out[first + c].as_chunks_mut().0[half + h];
                store(result, _mm256_fmadd_ps(partial, scale, load(result)));
            }
        }
    }
}

/// Sums of multiplier * sum of activations over the runs of a span. Both fit 16 bits, so two runs are one `vpmaddwd`.
#[inline]
#[target_feature(enable = "avx2")]
fn offsets<const C: usize>(
    multipliers: &[[u8; ROWS]],
    half: usize,
    sums: &[i32],
    width: usize,
    first: usize,
) -> [__m256i; C] {
    let mut offsets = [_mm256_setzero_si256(); C];
    for (multipliers, sums) in multipliers.chunks(2).zip(sums.chunks(2 * width)) {
        let multiplier = match multipliers {
            [a, b] => pairs(a, b, half),
            _ => pairs(&multipliers[0], &[0; ROWS], half),
        };
        for c in 0..C {
            let second = sums.get(width + first + c).copied().unwrap_or(0);
            let sums = _mm256_set1_epi32(sums[first + c] & 0xFFFF | second << 16);
            offsets[c] = _mm256_add_epi32(offsets[c], _mm256_madd_epi16(multiplier, sums));
        }
    }
    offsets
}

/// For eight rows, one of `a` and one of `b` as a pair of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(a: &[u8; ROWS], b: &[u8; ROWS], half: usize) -> __m256i {
    let (a, b) = (&a.as_chunks::<8>().0[half], &b.as_chunks::<8>().0[half]);
    // SAFETY: 8 bytes are there in both.
    let (a, b) = unsafe { (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast())) };
    _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b))
}

/// Eight f16 of the half of a row group as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8; 2 * ROWS], half: usize) -> __m256 {
    let bytes = &bytes.as_chunks::<16>().0[half];
    // SAFETY: 16 bytes are there.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}

/// The sums of stored code * activation over one run.
#[inline]
#[target_feature(enable = "avx2")]
fn dots<const DOT: usize, const BITS: usize, const H: usize, const C: usize>(
    codes: &[u8],
    quads: &[i32],
    width: usize,
    half: usize,
    first: usize,
) -> [[__m256i; C]; H] {
    let zero = _mm256_setzero_si256();
    let mut sums = [[zero; C]; H];
    let steps_at_once = match (DOT, BITS) {
        (MADDUBS, 2) => 8,
        (MADDUBS, _) => 2,
        _ => usize::MAX / 4 / width / 32 / BITS,
    };
    let blocks = codes
        .chunks(steps_at_once * 32 * BITS)
        .zip(quads.chunks(steps_at_once * 4 * width));
    for (codes, quads) in blocks {
        // 16-bit sums of the low parts of the codes and, for long codes, of the high parts; or 32-bit sums.
        let (mut low, mut high) = ([[zero; C]; H], [[zero; C]; H]);
        for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads.chunks_exact(4 * width)) {
            fetch_ahead(step, if C == 1 { FAR_AHEAD } else { AHEAD });
            for h in 0..H {
                let planes = planes::<DOT, BITS>(step, half + h);
                for l in 0..4 {
                    let quads = &quads[l * width + first..][..C];
                    for c in 0..C {
                        let x = _mm256_set1_epi32(quads[c]);
                        low[h][c] = add_dot::<DOT>(low[h][c], planes.0[l], x);
                        if DOT == MADDUBS && BITS > 4 {
                            high[h][c] = add_dot::<DOT>(high[h][c], planes.1[l], x);
                        }
                    }
                }
            }
        }
        for h in 0..H {
            for c in 0..C {
                let wide = match DOT {
                    MADDUBS => _mm256_madd_epi16(low[h][c], _mm256_set1_epi16(1)),
                    _ => low[h][c],
                };
                sums[h][c] = _mm256_add_epi32(sums[h][c], wide);
                if DOT == MADDUBS && BITS > 4 {
                    let wide = _mm256_madd_epi16(high[h][c], _mm256_set1_epi16(16));
                    sums[h][c] = _mm256_add_epi32(sums[h][c], wide);
                }
            }
        }
    }
    sums
}

/// `sum` + products of codes and activations: pairs in 16 bits, or quads in 32.
#[inline]
#[target_feature(enable = "avx2")]
fn add_dot<const DOT: usize>(mut sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
    match DOT {
        MADDUBS => return _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, x)),
        // SAFETY: reads and writes registers only; the CPU has the instruction, see `Avx2`.
        VNNI => unsafe {
            asm!("{{vex}} vpdpbusd {0}, {1}, {2}", inout(ymm_reg) sum, in(ymm_reg) codes, in(ymm_reg) x,
                 options(pure, nomem, nostack, preserves_flags));
        },
        // SAFETY: reads and writes registers only; the CPU has the instruction, see `Avx2`.
        _ => unsafe {
            asm!("{{evex}} vpdpbusd {0}, {1}, {2}", inout(ymm_reg) sum, in(ymm_reg) codes, in(ymm_reg) x,
                 options(pure, nomem, nostack, preserves_flags));
        },
    }
    sum
}

/// The four planes of eight rows of a step, each code in its byte. For `vpmaddubsw` codes of more than four bits come
/// as low nibbles and what is above them.
#[inline]
#[target_feature(enable = "avx2")]
fn planes<const DOT: usize, const BITS: usize>(step: &[u8], half: usize) -> ([__m256i; 4], [__m256i; 4]) {
    let vector = |i: usize| {
        let bytes = &step[64 * i + 32 * half..][..32];
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    };
    let (three, fifteen) = (_mm256_set1_epi8(3), _mm256_set1_epi8(15));
    let twos = |codes: __m256i| {
        [
            _mm256_and_si256(codes, three),
            _mm256_and_si256(_mm256_srli_epi16::<2>(codes), three),
            _mm256_and_si256(_mm256_srli_epi16::<4>(codes), three),
            _mm256_and_si256(_mm256_srli_epi16::<6>(codes), three),
        ]
    };
    let low = |codes: __m256i| _mm256_and_si256(codes, fifteen);
    let above = |codes: __m256i| _mm256_and_si256(_mm256_srli_epi16::<4>(codes), fifteen);
    let zero = [_mm256_setzero_si256(); 4];
    match BITS {
        2 => (twos(vector(0)), zero),
        4 | 6 => {
            let (a, b) = (vector(0), vector(1));
            let mut low = [low(a), above(a), low(b), above(b)];
            if BITS == 4 {
                return (low, zero);
            }
            let high = twos(vector(2));
            if DOT == MADDUBS {
                return (low, high);
            }
            for l in 0..4 {
                low[l] = _mm256_or_si256(low[l], _mm256_slli_epi16::<4>(high[l]));
            }
            (low, zero)
        }
        _ => {
            let codes = [vector(0), vector(1), vector(2), vector(3)];
            if DOT == MADDUBS {
                return (
                    [low(codes[0]), low(codes[1]), low(codes[2]), low(codes[3])],
                    [above(codes[0]), above(codes[1]), above(codes[2]), above(codes[3])],
                );
            }
            (codes, zero)
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(floats: &[f32; 8]) -> __m256 {
    // SAFETY: 8 floats are there.
    unsafe { _mm256_loadu_ps(floats.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(floats: &mut [f32; 8], vector: __m256) {
    // SAFETY: there is room for 8 floats.
    unsafe { _mm256_storeu_ps(floats.as_mut_ptr(), vector) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn absolute(x: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let group = grouping.group();
    for ((x, codes), scale) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).zip(scales) {
        let mut largest = _mm256_setzero_ps();
        for x in x.as_chunks().0 {
            // A NaN in the first operand gives the second.
            largest = _mm256_max_ps(absolute(load(x)), largest);
        }
        let largest = largest_of(largest);
        let inverse;
        (inverse, *scale) = match grouping {
            Grouping::Q8_0 => scales_q8_0(largest),
            _ => scales_k(first_of_magnitude(x, largest)),
        };
        let (inverse, limit) = (_mm256_set1_ps(inverse), _mm256_set1_epi32(127));
        for (x, codes) in x.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
            let code = |i: usize| {
                let scaled = _mm256_mul_ps(inverse, load(&x.as_chunks().0[i]));
                let code = _mm256_min_epi32(_mm256_cvtps_epi32(scaled), limit);
                // A NaN became i32::MIN and is to be 0; no other code is below -127.
                _mm256_and_si256(code, _mm256_cmpgt_epi32(code, _mm256_set1_epi32(-128)))
            };
            let words = |i: usize| _mm256_packs_epi32(code(i), code(i + 1));
            // The packs work within 128-bit lanes; the permutation puts the quads in order.
            let bytes = _mm256_packs_epi16(words(0), words(2));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            // SAFETY: there is room for 32 codes.
            unsafe {
                let to = codes.as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm256_permutevar8x32_epi32(bytes, order));
            }
        }
    }
    for (codes, sums) in codes.as_chunks::<32>().0.iter().zip(sums.as_chunks_mut::<2>().0) {
        // SAFETY: 32 codes are there.
        let codes = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
        let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), codes);
        let quads = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
        let twos = _mm256_add_epi32(quads, _mm256_shuffle_epi32::<0b10_11_00_01>(quads));
        let all = _mm256_add_epi32(twos, _mm256_shuffle_epi32::<0b01_00_11_10>(twos));
        *sums = [_mm256_extract_epi32::<0>(all), _mm256_extract_epi32::<4>(all)];
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn largest_of(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

/// The first of `x` whose magnitude is `largest`; 0 where there is none, that is, where `largest` is 0 or all are NaN.
#[inline]
#[target_feature(enable = "avx2")]
fn first_of_magnitude(x: &[f32], largest: f32) -> f32 {
    for x in x.as_chunks().0 {
        let equal = _mm256_cmp_ps::<_CMP_EQ_OQ>(absolute(load(x)), _mm256_set1_ps(largest));
        let found = _mm256_movemask_ps(equal);
        if found != 0 {
            return x[found.trailing_zeros() as usize];
        }
    }
    0.0
}

/// A row group of floats times a panel. `KIND`: 4 for F32, 2 for F16, 0 for BF16.
#[target_feature(enable = "avx2,fma,f16c")]
fn floats_product<const KIND: usize>(weights: &[u8], panel: &FloatPanel<'_>, out: &mut [[f32; ROWS]]) {
    if panel.width == 1 {
        return floats_piece::<KIND, 1>(weights, panel, out, 0);
    }
    for first in (0..panel.width).step_by(2) {
        floats_piece::<KIND, 2>(weights, panel, out, first);
    }
}

/// `C` tokens from `first` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn floats_piece<const KIND: usize, const C: usize>(
    weights: &[u8],
    panel: &FloatPanel<'_>,
    out: &mut [[f32; ROWS]],
    first: usize,
) {
    let bytes = if KIND == 4 { 64 } else { 32 };
    // [chain][half of the rows][token]
    let mut chains = [[[_mm256_setzero_ps(); C]; 2]; 2];
    let columns = weights.chunks(2 * bytes);
    for (x, weights) in panel.x.chunks(2 * panel.width).zip(columns) {
        let x = x.chunks_exact(panel.width);
        for ((x, weights), chain) in x.zip(weights.chunks_exact(bytes)).zip(&mut chains) {
            let x = &x[first..][..C];
            for (chain, weights) in chain.iter_mut().zip(weights.chunks_exact(bytes / 2)) {
                let weights = widen::<KIND>(weights);
                for c in 0..C {
                    chain[c] = _mm256_fmadd_ps(weights, _mm256_set1_ps(x[c]), chain[c]);
                }
            }
        }
    }
    for half in 0..2 {
        for c in 0..C {
            let sum = _mm256_add_ps(chains[0][half][c], chains[1][half][c]);
            store(&mut out[first + c].as_chunks_mut().0[half], sum);
        }
    }
}

/// 8 weights as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen<const KIND: usize>(weights: &[u8]) -> __m256 {
    assert_eq!(weights.len(), if KIND == 4 { 32 } else { 16 });
    let at = weights.as_ptr();
    // SAFETY: 8 weights are there.
    unsafe {
        match KIND {
            4 => _mm256_loadu_ps(at.cast()),
            2 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _ => {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
        }
    }
}

/// The body with `vpdpbusd`, in the encoding that AVX-512 CPUs have.
#[cfg(test)]
pub(super) fn evex_vnni() -> Option<&'static dyn Kernel> {
    Avx2::<EVEX_VNNI>::detect()
}

/// The kernel with `vpmaddubsw`.
pub(super) fn maddubs() -> Option<&'static dyn Kernel> {
    Avx2::<MADDUBS>::detect()
}

/// The kernel with `vpdpbusd`.
pub(super) fn vnni() -> Option<&'static dyn Kernel> {
    Avx2::<VNNI>::detect()
}
