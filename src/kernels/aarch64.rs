//! AArch64 NEON: one 128-bit vector is 4 rows, a row group is 4 of them, and the dot of four columns with four
//! activations is `sdot`; with I8MM several tokens use `smmla`, which does twice as much.
//!
//! ```text
//! for each 4 tokens (or one):
//!     for each step:  for l in 0..4:  planes = codes of 16 rows >> 2l & 3;  for each token:  sum += plane . activations[l][token]
//! ```
//! 1. `sdot` takes its activations from one lane of a register, so a load brings four tokens or four dwords.
//! 2. `smmla` multiplies two rows of 8 columns by two tokens of 8 activations. Two planes, interleaved by 32-bit lanes,
//!    are two rows of 8; the sums come as 2 x 2 squares and are put in rows at the end of a run.
//! 3. Both take signed bytes. Codes of up to 6 bits are; 8-bit codes are stored with an offset of 128, which one
//!    exclusive-or takes off.
//!
//! Tested under emulation only (`scripts/test_aarch64.sh`); its speed on a processor is not known.
//!
//! The intrinsics of both instructions are not stable in Rust yet, so they are written in assembly. Nothing saturates:
//! a run's sum is at most 128 * 127 * 256 < 2^23, and a span's with its multipliers 63 * 127 * 128 * 256 < 2^28.

use super::contract::{FloatPanel, Grouping, MR, Panel, STEP};
use super::driver::{At, Operands, Run, Vector, floats, product, steps};
use super::floats::{BF16, F16, F32, FloatType, Floats, bytes_of};
use super::kernel::Kernel;
use super::packed::KPanel;
use super::scalar::{scales_k, scales_q8_0};
use std::arch::aarch64::*;
use std::arch::asm;
use std::arch::is_aarch64_feature_detected;
use std::ops::Range;

/// Vectors of a row group.
const QUARTERS: usize = 4;

/// The proof that the CPU has `sdot`, and where `I8MM` says so `smmla`. Four vectors are a row group.
#[derive(Clone, Copy)]
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
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]) {
        let product = match weights.format.bits {
            2 => panel_product::<2, I8MM>,
            4 => panel_product::<4, I8MM>,
            6 => panel_product::<6, I8MM>,
            _ => panel_product::<8, I8MM>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let of = Operands::new(weights, group, panel);
            // SAFETY: every AArch64 CPU has NEON.
            unsafe { product(*self, &of, out) }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { quantize(x, grouping, codes, scales) }
    }

    fn sums(&self, codes: &[i8], sums: &mut [i32]) {
        // SAFETY: every AArch64 CPU has NEON.
        unsafe { sums_of_steps(codes, sums) }
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; MR]]) {
        let product = match weights.ty {
            FloatType::F32 => floats_product::<I8MM, F32>,
            FloatType::F16 => floats_product::<I8MM, F16>,
            FloatType::Bf16 => floats_product::<I8MM, BF16>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: every AArch64 CPU has NEON.
            unsafe { product(*self, weights.group(group), panel, out) }
        }
    }
}

impl<const I8MM: bool> Vector for Neon<I8MM> {
    type Floats = float32x4_t;
    type Ints = int32x4_t;
    const SIGNED_BYTES: bool = true;

    steps! {
        splat(x: f32) -> float32x4_t = vdupq_n_f32(x);
        splat_int(x: i32) -> int32x4_t = vdupq_n_s32(x);
        load(floats: &[f32; MR], part: usize) -> float32x4_t = load(&floats.as_chunks().0[part]);
        store(floats: &mut [f32; MR], part: usize, x: float32x4_t) = store(&mut floats.as_chunks_mut().0[part], x);
        halves(f16s: &[u8; 2 * MR], part: usize) -> float32x4_t = widen::<F16>(f16s, part);
        bytes(bytes: &[u8; MR], part: usize) -> int32x4_t = quarter(bytes, part);
        widen<TYPE>(weights: &[u8], part: usize) -> float32x4_t = widen::<TYPE>(weights, part);
        to_floats(x: int32x4_t) -> float32x4_t = vcvtq_f32_s32(x);
        sub(a: int32x4_t, b: int32x4_t) -> int32x4_t = vsubq_s32(a, b);
        shift_left(x: int32x4_t, places: u32) -> int32x4_t = vshlq_s32(x, vdupq_n_s32(places as i32));
        add(a: float32x4_t, b: float32x4_t) -> float32x4_t = vaddq_f32(a, b);
        mul(a: float32x4_t, b: float32x4_t) -> float32x4_t = vmulq_f32(a, b);
        fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmaq_f32(c, a, b);
        fnma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t = vfmsq_f32(c, a, b);
        dots<BITS, H, C>(run: Run<'_>) -> [[int32x4_t; C]; H] = dots::<BITS, I8MM, H, C>(run);
        add_multiplied<BITS, H, C>(run: Run<'_>, multipliers: &[u8; MR], totals: &mut [[int32x4_t; C]; H])
            = add_multiplied::<BITS, I8MM, H, C>(run, multipliers, totals);
        offsets<H, C>(multipliers: &[[u8; MR]], sums: &[i32], width: usize, at: At) -> [[int32x4_t; C]; H]
            = offsets::<H, C>(multipliers, sums, width, at);
    }
}

/// A row group times a panel, one token or four at a time.
#[target_feature(enable = "neon")]
fn panel_product<const BITS: usize, const I8MM: bool>(v: Neon<I8MM>, of: &Operands<'_>, out: &mut [[f32; MR]]) {
    if of.panel.width == 1 {
        return product::<_, BITS, QUARTERS, 1>(v, of, At { part: 0, token: 0 }, out);
    }
    for token in (0..of.panel.width).step_by(4) {
        product::<_, BITS, QUARTERS, 4>(v, of, At { part: 0, token }, out);
    }
}

/// See [`Vector::add_multiplied`].
#[inline]
#[target_feature(enable = "neon")]
fn add_multiplied<const BITS: usize, const I8MM: bool, const H: usize, const C: usize>(
    run: Run<'_>,
    multipliers: &[u8; MR],
    totals: &mut [[int32x4_t; C]; H],
) {
    let dots = dots::<BITS, I8MM, H, C>(run);
    for q in 0..H {
        let multiplier = quarter(multipliers, q);
        for c in 0..C {
            totals[q][c] = vmlaq_s32(totals[q][c], dots[q][c], multiplier);
        }
    }
}

/// See [`Vector::offsets`].
#[inline]
#[target_feature(enable = "neon")]
fn offsets<const H: usize, const C: usize>(
    multipliers: &[[u8; MR]],
    sums: &[i32],
    width: usize,
    at: At,
) -> [[int32x4_t; C]; H] {
    let mut offsets = [[vdupq_n_s32(0); C]; H];
    for (multipliers, sums) in multipliers.iter().zip(sums.chunks_exact(width)) {
        let sums = &sums[at.token..][..C];
        for (q, offsets) in offsets.iter_mut().enumerate() {
            let multiplier = quarter(multipliers, q);
            for (offset, &sum) in offsets.iter_mut().zip(sums) {
                *offset = vmlaq_n_s32(*offset, multiplier, sum);
            }
        }
    }
    offsets
}

/// The numbers of a quarter of the rows, of 16 signed bytes.
#[inline]
#[target_feature(enable = "neon")]
fn quarter(bytes: &[u8; MR], quarter: usize) -> int32x4_t {
    load_dwords(&bytes.as_chunks::<4>().0[quarter].map(|byte| i32::from(byte as i8)))
}

/// The sums of code * activation over one run, of one token or four. `H` is all quarters of the rows.
#[inline]
#[target_feature(enable = "neon")]
fn dots<const BITS: usize, const I8MM: bool, const H: usize, const C: usize>(run: Run<'_>) -> [[int32x4_t; C]; H] {
    match I8MM && C > 1 {
        true => dots_by_smmla::<BITS, H, C>(run),
        false => dots_by_sdot::<BITS, H, C>(run),
    }
}

/// With `sdot`.
#[inline]
#[target_feature(enable = "neon")]
fn dots_by_sdot<const BITS: usize, const H: usize, const C: usize>(run: Run<'_>) -> [[int32x4_t; C]; H] {
    let Run {
        codes,
        dwords,
        width,
        at,
    } = run;
    let first = at.token;
    let zero = vdupq_n_s32(0);
    let mut sums = [[zero; C]; H];
    for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.chunks_exact(4 * width)) {
        if C == 1 {
            let x = load_dwords(dwords);
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
            x[l] = load_dwords(&dwords[l * width + first..]);
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

/// With `smmla`, of four tokens.
#[inline]
#[target_feature(enable = "neon")]
fn dots_by_smmla<const BITS: usize, const H: usize, const C: usize>(run: Run<'_>) -> [[int32x4_t; C]; H] {
    let Run {
        codes,
        dwords,
        width,
        at,
    } = run;
    let first = at.token;
    let zero = vdupq_n_s32(0);
    // [quarter][2 * pair of rows + pair of tokens]: row 0 token 0, row 0 token 1, row 1 token 0, row 1 token 1
    let mut sums = [[zero; 4]; H];
    for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.chunks_exact(4 * width)) {
        let mut x = [[zero; 2]; 2];
        for pair in 0..2 {
            let a = load_dwords(&dwords[2 * pair * width + first..]);
            let b = load_dwords(&dwords[(2 * pair + 1) * width + first..]);
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
    let mut dots = [[zero; C]; H];
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
fn load_dwords(dwords: &[i32]) -> int32x4_t {
    let dwords = &dwords[..4];
    // SAFETY: 4 words are there.
    unsafe { vld1q_s32(dwords.as_ptr()) }
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
fn quantize(x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
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
}

/// See [`Kernel::sums`].
#[target_feature(enable = "neon")]
fn sums_of_steps(codes: &[i8], sums: &mut [i32]) {
    for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<STEP>().0) {
        // SAFETY: 16 codes are there.
        let codes = unsafe { vld1q_s8(codes.as_ptr()) };
        *sum = i32::from(vaddlvq_s8(codes));
    }
}

/// A row group of floats times a panel, one token or two at a time.
#[target_feature(enable = "neon")]
fn floats_product<const I8MM: bool, const TYPE: usize>(
    v: Neon<I8MM>,
    weights: &[u8],
    panel: &FloatPanel<'_>,
    out: &mut [[f32; MR]],
) {
    if panel.width == 1 {
        return floats::<_, TYPE, QUARTERS, 1>(v, weights, panel, 0, out);
    }
    for first in (0..panel.width).step_by(2) {
        floats::<_, TYPE, QUARTERS, 2>(v, weights, panel, first, out);
    }
}

/// Part `part` of 16 weights, as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen<const TYPE: usize>(weights: &[u8], part: usize) -> float32x4_t {
    let bytes = 4 * bytes_of(TYPE);
    let weights = &weights[part * bytes..][..bytes];
    // SAFETY: four weights are there.
    unsafe {
        match TYPE {
            F32 => vreinterpretq_f32_u8(vld1q_u8(weights.as_ptr())),
            F16 => widen_f16(&weights.as_chunks().0[0]),
            _ => {
                let halves = vreinterpret_u16_u8(vld1_u8(weights.as_ptr()));
                vreinterpretq_f32_u32(vshll_n_u16::<16>(halves))
            }
        }
    }
}
