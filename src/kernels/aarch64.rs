//! AArch64 NEON: one 128-bit vector is 4 rows, a row group is 4 of them, and the dot of four columns with four
//! activations is `sdot`; with I8MM several tokens use `smmla`, which does twice as much.
//!
//! ```text
//! for each 4 tokens (or one):
//!     for each step:  for l in 0..4:  planes = codes of 16 rows >> 2l & 3;  for each token:  sum += plane . activations[l][token]
//! ```
//! 1. `sdot` takes its activations from one lane of a register, so a load brings four tokens or four quads.
//! 2. `smmla` multiplies two rows of 8 columns by two tokens of 8 activations. Two planes, interleaved by 32-bit lanes,
//!    are two rows of 8; the sums come as 2 x 2 squares and are put in rows at the end of a run.
//! 3. Both take signed bytes. Codes of up to 6 bits are; 8-bit codes are stored with an offset of 128, which one
//!    exclusive-or takes off.
//!
//! Tested under emulation only (`scripts/test_aarch64.sh`); its speed on a processor is not known.
//!
//! The intrinsics of both instructions are not stable in Rust yet, so they are written in assembly. Nothing saturates:
//! a run's sum is at most 128 * 127 * 256 < 2^23, and a span's with its multipliers 63 * 127 * 128 * 256 < 2^28.

use super::activations::Grouping;
use super::floats::{FloatPanel, FloatType, Floats};
use super::kernel::{Kernel, MISSING_RUN, Panel, ROWS, Runs, STEP};
use super::layout::{RowGroup, Strip};
use super::scalar::{scales_k, scales_q8_0};
use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

/// Vectors of a row group.
const QUARTERS: usize = 4;

/// One product of a row group: vectors of rows, and of these one for each token.
type Square<T, const C: usize> = [[T; C]; QUARTERS];

/// The proof that the CPU has `sdot`, and where `I8MM` says so `smmla`.
struct Neon<const I8MM: bool>(());

/// The NEON kernel, where the CPU has `sdot`.
pub(super) fn dotprod() -> Option<&'static dyn Kernel> {
    static KERNEL: Neon<false> = Neon(());
    is_aarch64_feature_detected!("dotprod").then_some(&KERNEL as &dyn Kernel)
}

/// The NEON kernel with `smmla`, where the CPU has I8MM.
pub(super) fn i8mm() -> Option<&'static dyn Kernel> {
    static KERNEL: Neon<true> = Neon(());
    let found = is_aarch64_feature_detected!("dotprod") && is_aarch64_feature_detected!("i8mm");
    found.then_some(&KERNEL as &dyn Kernel)
}

impl<const I8MM: bool> Kernel for Neon<I8MM> {
    fn name(&self) -> &'static str {
        if I8MM { "neon-i8mm" } else { "neon-dotprod" }
    }

    fn multiply(&self, weights: &Strip<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; ROWS]]) {
        let runs = Runs::new(weights.columns().len(), weights.group(), panel.group);
        let product = match weights.bits() {
            2 => panel_product::<2, I8MM>,
            4 => panel_product::<4, I8MM>,
            6 => panel_product::<6, I8MM>,
            _ => panel_product::<8, I8MM>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let (group, shift) = (weights.row_group(group), weights.shift());
            // SAFETY: every AArch64 CPU has NEON.
            unsafe { product(&group, shift, runs, panel, out) }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { quantize(x, grouping, codes, scales, sums) }
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; ROWS]]) {
        let product = match weights.ty {
            FloatType::F32 => floats_product::<4>,
            FloatType::F16 => floats_product::<2>,
            FloatType::Bf16 => floats_product::<0>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: every AArch64 CPU has NEON.
            unsafe { product(weights.group(group), panel, out) }
        }
    }
}

/// A row group times some tokens of a panel, from the given one on.
type Piece = fn(&RowGroup<'_>, Option<u32>, Runs, &Panel<'_>, usize, &mut [[f32; ROWS]]);

/// A row group times a panel, one token or four at a time.
#[target_feature(enable = "neon")]
fn panel_product<const BITS: usize, const I8MM: bool>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; ROWS]],
) {
    let [one, four]: [Piece; 2] = match group.multipliers {
        [] => [piece::<BITS, false, 1>, piece::<BITS, I8MM, 4>],
        _ => [multiplied::<BITS, false, 1>, multiplied::<BITS, I8MM, 4>],
    };
    if panel.width == 1 {
        return one(group, shift, runs, panel, 0, out);
    }
    for first in (0..panel.width).step_by(4) {
        four(group, shift, runs, panel, first, out);
    }
}

/// `C` tokens from `first` on.
#[target_feature(enable = "neon")]
fn piece<const BITS: usize, const I8MM: bool, const C: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let width = panel.width;
    // Signed 8-bit codes have lost their offset already.
    let unit = if BITS == 8 {
        0
    } else {
        shift.map_or(0, |shift| 1 << shift)
    };
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut quads = panel.quads.chunks_exact(runs.columns / 4 * width);
    let mut results: Square<float32x4_t, C> = [[vdupq_n_f32(0.0); C]; QUARTERS];
    for (q, results) in results.iter_mut().enumerate() {
        for (out, result) in out[first..].iter().zip(results) {
            *result = load(&out.as_chunks().0[q]);
        }
    }
    let mut run = 0;
    for outer in 0..runs.outer {
        let mut partials: Square<float32x4_t, C> = [[vdupq_n_f32(0.0); C]; QUARTERS];
        for _ in 0..runs.inner {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let dots = dots::<BITS, I8MM, C>(codes, quads, width, first);
            let sums = &panel.sums[run * width + first..][..C];
            for q in 0..QUARTERS {
                let scale = match runs.activation_inside {
                    true => None,
                    false => Some(halves(&group.scales[run], q)),
                };
                for c in 0..C {
                    let dot = vsubq_s32(dots[q][c], vdupq_n_s32(sums[c] * unit));
                    let scale = match scale {
                        Some(scale) => scale,
                        None => vdupq_n_f32(panel.scales[run * width + first + c]),
                    };
                    partials[q][c] = vfmaq_f32(partials[q][c], vcvtq_f32_s32(dot), scale);
                }
            }
            run += 1;
        }
        for q in 0..QUARTERS {
            let scale = match runs.activation_inside {
                true => Some(halves(&group.scales[outer], q)),
                false => None,
            };
            for c in 0..C {
                let scale = match scale {
                    Some(scale) => scale,
                    None => vdupq_n_f32(panel.scales[outer * width + first + c]),
                };
                results[q][c] = vfmaq_f32(results[q][c], partials[q][c], scale);
            }
        }
    }
    for (q, results) in results.into_iter().enumerate() {
        for (out, result) in out[first..].iter_mut().zip(results) {
            store(&mut out.as_chunks_mut().0[q], result);
        }
    }
}

/// As [`piece`], where scales have multipliers.
#[target_feature(enable = "neon")]
fn multiplied<const BITS: usize, const I8MM: bool, const C: usize>(
    group: &RowGroup<'_>,
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    first: usize,
    out: &mut [[f32; ROWS]],
) {
    let width = panel.width;
    let mut codes = group.codes.chunks_exact(runs.columns / STEP * 32 * BITS);
    let mut quads = panel.quads.chunks_exact(runs.columns / 4 * width);
    for span in 0..runs.outer {
        let mut totals: Square<int32x4_t, C> = [[vdupq_n_s32(0); C]; QUARTERS];
        let mut offsets = totals;
        for run in span * runs.inner..(span + 1) * runs.inner {
            let (Some(codes), Some(quads)) = (codes.next(), quads.next()) else {
                panic!("{MISSING_RUN}");
            };
            let dots = dots::<BITS, I8MM, C>(codes, quads, width, first);
            let sums = &panel.sums[run * width + first..][..C];
            for q in 0..QUARTERS {
                let multiplier = multipliers(&group.multipliers[run], q);
                let of_offset = multipliers(&group.offset_multipliers()[run], q);
                for c in 0..C {
                    totals[q][c] = vmlaq_s32(totals[q][c], dots[q][c], multiplier);
                    offsets[q][c] = vmlaq_n_s32(offsets[q][c], of_offset, sums[c]);
                }
            }
        }
        for q in 0..QUARTERS {
            let scale = halves(&group.scales[span], q);
            for c in 0..C {
                let (total, offset) = (totals[q][c], offsets[q][c]);
                let partial = if let Some(shift) = shift {
                    let offset = vshlq_s32(offset, vdupq_n_s32(shift as i32));
                    vmulq_f32(vcvtq_f32_s32(vsubq_s32(total, offset)), scale)
                } else {
                    let minimum = halves(&group.minimums[span], q);
                    let partial = vmulq_f32(vcvtq_f32_s32(total), scale);
                    vfmsq_f32(partial, minimum, vcvtq_f32_s32(offset))
                };
                let scale = vdupq_n_f32(panel.scales[span * width + first + c]);
                let result = &mut out[first + c].as_chunks_mut().0[q];
                store(result, vfmaq_f32(load(result), partial, scale));
            }
        }
    }
}

/// The multipliers of a quarter of the rows.
#[inline]
#[target_feature(enable = "neon")]
fn multipliers(bytes: &[u8; ROWS], quarter: usize) -> int32x4_t {
    load_quads(&bytes.as_chunks::<4>().0[quarter].map(|byte| i32::from(byte as i8)))
}

/// The f16 of a quarter of the rows as f32.
#[inline]
#[target_feature(enable = "neon")]
fn halves(bytes: &[u8; 2 * ROWS], quarter: usize) -> float32x4_t {
    widen_f16(&bytes.as_chunks().0[quarter])
}

/// The sums of code * activation over one run.
#[inline]
#[target_feature(enable = "neon")]
fn dots<const BITS: usize, const I8MM: bool, const C: usize>(
    codes: &[u8],
    quads: &[i32],
    width: usize,
    first: usize,
) -> Square<int32x4_t, C> {
    match I8MM {
        true => dots_by_smmla::<BITS, C>(codes, quads, width, first),
        false => dots_by_sdot::<BITS, C>(codes, quads, width, first),
    }
}

/// Of one token or four.
#[inline]
#[target_feature(enable = "neon")]
fn dots_by_sdot<const BITS: usize, const C: usize>(
    codes: &[u8],
    quads: &[i32],
    width: usize,
    first: usize,
) -> Square<int32x4_t, C> {
    let zero = vdupq_n_s32(0);
    let mut sums: Square<int32x4_t, C> = [[zero; C]; QUARTERS];
    for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads.chunks_exact(4 * width)) {
        if C == 1 {
            let x = load_quads(quads);
            for (q, sums) in sums.iter_mut().enumerate() {
                let planes = planes::<BITS>(step, q);
                sums[0] = sdot::<0>(sums[0], planes[0], x);
                sums[0] = sdot::<1>(sums[0], planes[1], x);
                sums[0] = sdot::<2>(sums[0], planes[2], x);
                sums[0] = sdot::<3>(sums[0], planes[3], x);
            }
            continue;
        }
        let mut x = [zero; 4];
        for l in 0..4 {
            x[l] = load_quads(&quads[l * width + first..]);
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            let planes = planes::<BITS>(step, q);
            for l in 0..4 {
                sums[0] = sdot::<0>(sums[0], planes[l], x[l]);
                sums[1] = sdot::<1>(sums[1], planes[l], x[l]);
                sums[2] = sdot::<2>(sums[2], planes[l], x[l]);
                sums[3] = sdot::<3>(sums[3], planes[l], x[l]);
            }
        }
    }
    sums
}

/// Of four tokens.
#[inline]
#[target_feature(enable = "neon")]
fn dots_by_smmla<const BITS: usize, const C: usize>(
    codes: &[u8],
    quads: &[i32],
    width: usize,
    first: usize,
) -> Square<int32x4_t, C> {
    let zero = vdupq_n_s32(0);
    // [quarter][2 * pair of rows + pair of tokens]: row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1
    let mut sums = [[zero; 4]; QUARTERS];
    for (step, quads) in codes.chunks_exact(32 * BITS).zip(quads.chunks_exact(4 * width)) {
        let mut x = [[zero; 2]; 2];
        for pair in 0..2 {
            let a = load_quads(&quads[2 * pair * width + first..]);
            let b = load_quads(&quads[(2 * pair + 1) * width + first..]);
            x[pair] = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            let planes = planes::<BITS>(step, q);
            for pair in 0..2 {
                let (a, b) = (planes[2 * pair], planes[2 * pair + 1]);
                let rows = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
                for i in 0..4 {
                    sums[i] = smmla(sums[i], rows[i / 2], x[pair][i % 2]);
                }
            }
        }
    }
    let mut dots = [[zero; C]; QUARTERS];
    for (dots, sums) in dots.iter_mut().zip(sums) {
        for c in 0..C {
            let (rows01, rows23) = (sums[c / 2], sums[2 + c / 2]);
            dots[c] = match c % 2 {
                0 => vuzp1q_s32(rows01, rows23),
                _ => vuzp2q_s32(rows01, rows23),
            };
        }
    }
    dots
}

/// `sum[i] + dot of the four bytes of codes[i] and of x[LANE]`
#[inline]
#[target_feature(enable = "neon")]
fn sdot<const LANE: usize>(mut sum: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
    // SAFETY: reads and writes registers only; a `Neon` exists only where the CPU has the instruction.
    unsafe {
        asm!(
            ".arch_extension dotprod",
            "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            codes = in(vreg) codes,
            x = in(vreg) x,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// `sum` + the 2 x 2 products of two rows and two tokens of 8 bytes each.
#[inline]
#[target_feature(enable = "neon")]
fn smmla(mut sum: int32x4_t, rows: int32x4_t, tokens: int32x4_t) -> int32x4_t {
    // SAFETY: reads and writes registers only; a `Neon<true>` exists only where the CPU has the instruction.
    unsafe {
        asm!(
            ".arch_extension i8mm",
            "smmla {sum:v}.4s, {rows:v}.16b, {tokens:v}.16b",
            sum = inout(vreg) sum,
            rows = in(vreg) rows,
            tokens = in(vreg) tokens,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// The four planes of four rows of a step, each code in its byte.
#[inline]
#[target_feature(enable = "neon")]
fn planes<const BITS: usize>(step: &[u8], quarter: usize) -> [int32x4_t; 4] {
    let vector = |i: usize| {
        let bytes = &step[64 * i + 16 * quarter..][..16];
        // SAFETY: 16 bytes are there.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    };
    let (three, fifteen) = (vdupq_n_u8(3), vdupq_n_u8(15));
    let twos = |codes: uint8x16_t| {
        [
            vandq_u8(codes, three),
            vandq_u8(vshrq_n_u8::<2>(codes), three),
            vandq_u8(vshrq_n_u8::<4>(codes), three),
            vshrq_n_u8::<6>(codes),
        ]
    };
    let fours = |a: uint8x16_t, b: uint8x16_t| {
        [
            vandq_u8(a, fifteen),
            vshrq_n_u8::<4>(a),
            vandq_u8(b, fifteen),
            vshrq_n_u8::<4>(b),
        ]
    };
    let codes = match BITS {
        2 => twos(vector(0)),
        4 => fours(vector(0), vector(1)),
        6 => {
            let (mut codes, high) = (fours(vector(0), vector(1)), twos(vector(2)));
            for l in 0..4 {
                codes[l] = vorrq_u8(codes[l], vshlq_n_u8::<4>(high[l]));
            }
            codes
        }
        _ => {
            let mut codes = [vector(0), vector(1), vector(2), vector(3)];
            for code in &mut codes {
                *code = veorq_u8(*code, vdupq_n_u8(0x80));
            }
            codes
        }
    };
    codes.map(|codes| vreinterpretq_s32_u8(codes))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_quads(quads: &[i32]) -> int32x4_t {
    let quads = &quads[..4];
    // SAFETY: 4 words are there.
    unsafe { vld1q_s32(quads.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn load(floats: &[f32; 4]) -> float32x4_t {
    // SAFETY: 4 floats are there.
    unsafe { vld1q_f32(floats.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
fn store(floats: &mut [f32; 4], vector: float32x4_t) {
    // SAFETY: there is room for 4 floats.
    unsafe { vst1q_f32(floats.as_mut_ptr(), vector) }
}

/// Four f16 as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen_f16(halves: &[u8; 8]) -> float32x4_t {
    let floats: float32x4_t;
    // SAFETY: reads and writes registers only; the instruction is in every AArch64 CPU.
    unsafe {
        asm!(
            "fcvtl {floats:v}.4s, {halves:v}.4h",
            floats = lateout(vreg) floats,
            halves = in(vreg) vld1_u8(halves.as_ptr()),
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    floats
}

#[target_feature(enable = "neon")]
fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let group = grouping.group();
    for ((x, codes), scale) in x.chunks_exact(group).zip(codes.chunks_exact_mut(group)).zip(scales) {
        let mut largest = vdupq_n_f32(0.0);
        for x in x.as_chunks().0 {
            // Of a NaN and a number it takes the number.
            largest = vmaxnmq_f32(vabsq_f32(load(x)), largest);
        }
        let largest = vmaxnmvq_f32(largest);
        let first_of_magnitude = || x.iter().copied().find(|x| x.abs() == largest).unwrap_or(0.0);
        let inverse;
        (inverse, *scale) = match grouping {
            Grouping::Q8_0 => scales_q8_0(largest),
            _ => scales_k(first_of_magnitude()),
        };
        for (x, codes) in x.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<16>().0) {
            let code = |i: usize| {
                // The conversion rounds to even and makes 0 of a NaN.
                let code = vcvtnq_s32_f32(vmulq_n_f32(load(&x.as_chunks().0[i]), inverse));
                vmovn_s32(vminq_s32(code, vdupq_n_s32(127)))
            };
            let low = vmovn_s16(vcombine_s16(code(0), code(1)));
            let high = vmovn_s16(vcombine_s16(code(2), code(3)));
            // SAFETY: there is room for 16 codes.
            unsafe { vst1q_s8(codes.as_mut_ptr(), vcombine_s8(low, high)) }
        }
    }
    for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<STEP>().0) {
        // SAFETY: 16 codes are there.
        let codes = unsafe { vld1q_s8(codes.as_ptr()) };
        *sum = i32::from(vaddlvq_s8(codes));
    }
}

/// A row group of floats times a panel. `KIND`: 4 for F32, 2 for F16, 0 for BF16.
#[target_feature(enable = "neon")]
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
#[target_feature(enable = "neon")]
fn floats_piece<const KIND: usize, const C: usize>(
    weights: &[u8],
    panel: &FloatPanel<'_>,
    out: &mut [[f32; ROWS]],
    first: usize,
) {
    let bytes = if KIND == 4 { 64 } else { 32 };
    let mut chains: [Square<float32x4_t, C>; 2] = [[[vdupq_n_f32(0.0); C]; QUARTERS]; 2];
    let columns = weights.chunks(2 * bytes);
    for (x, weights) in panel.x.chunks(2 * panel.width).zip(columns) {
        let x = x.chunks_exact(panel.width);
        for ((x, weights), chain) in x.zip(weights.chunks_exact(bytes)).zip(&mut chains) {
            let x = &x[first..][..C];
            for (chain, weights) in chain.iter_mut().zip(weights.chunks_exact(bytes / 4)) {
                let weights = widen::<KIND>(weights);
                for c in 0..C {
                    chain[c] = vfmaq_n_f32(chain[c], weights, x[c]);
                }
            }
        }
    }
    let [even, odd] = chains;
    for q in 0..QUARTERS {
        for c in 0..C {
            let sum = vaddq_f32(even[q][c], odd[q][c]);
            store(&mut out[first + c].as_chunks_mut().0[q], sum);
        }
    }
}

/// Four weights as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen<const KIND: usize>(weights: &[u8]) -> float32x4_t {
    let weights = &weights[..if KIND == 4 { 16 } else { 8 }];
    // SAFETY: four weights are there.
    unsafe {
        match KIND {
            4 => vreinterpretq_f32_u8(vld1q_u8(weights.as_ptr())),
            2 => widen_f16(&weights.as_chunks().0[0]),
            _ => {
                let halves = vreinterpret_u16_u8(vld1_u8(weights.as_ptr()));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
            }
        }
    }
}
