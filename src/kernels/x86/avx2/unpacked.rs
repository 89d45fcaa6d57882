//! AVX2 for many tokens: codes are unpacked to bytes once for all tokens, into the first-level cache.
//!
//! ```text
//! for each row group, for each span of 256 columns:
//!     codes = a byte each, times its multiplier where there are multipliers (but for `vpmaddubsw`)     4 KiB
//!     for each 6 or 4 tokens:  for each dword of columns:  12 or 8 sums += codes . activations
//! ```
//! 1. 16 rows and 6 tokens are 12 sums, enough to hide the latency of `vpdpbusd`. With two vectors of codes, the
//!    activations and a product they take all 16 registers, so the loop is in assembly: a compiler spills some.
//! 2. Where multipliers are applied to integers, a code of 2 bits times one of 4 is at most 45, so `vpmullw` multiplies
//!    two bytes without a carry. `vpmaddubsw` would overflow with that; there multipliers meet the 16-bit sums of a run,
//!    as those are widened.
//! 3. Codes of a byte lie as packed codes of 8 bits do, so a span goes through the loops of the driver.

use super::{Avx2, EVEX_VNNI, MADDUBS, VNNI, detect, pairs, planes};
use crate::kernels::contract::{Grouping, MR, Panel, Runs, STEP, Tile};
use crate::kernels::driver::{At, Operands, Run, product};
use crate::kernels::kernel::Gemm;
use crate::kernels::packed::{Format, KPanel, MAX_GROUP, Packed, RowGroup};
use crate::kernels::tiles::Out;
use crate::kernels::x86::fetch_ahead;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Bytes of the codes of a dword of columns.
const QUAD: usize = 4 * MR;

/// Many tokens, for one matrix; proof that the CPU has what the product needs.
struct Unpacked {
    product: Product,
    least_tokens: usize,
}

/// Some row groups of a K-panel times some panels.
type Product = unsafe fn(&KPanel<'_>, Range<usize>, &[Panel<'_>], &mut [[f32; MR]]);

/// For codes that are bytes with their multipliers, or have none; but what minimums add is left to the matrix, which does
/// so for kernels alone.
pub(super) fn load<const DOT: usize>(weights: &Packed, grouping: Grouping) -> Option<Box<dyn Gemm>> {
    detect::<DOT>()?;
    let format = &weights.format;
    if format.shift.is_none() && !format.in_spans(grouping.group()) {
        return None;
    }
    let product: Product = match (format.bits, format.multiplied) {
        // 32 * 2 * 3 * 127 = 24,384, and 8 * 2 * 15 * 127 = 30,480, fit 16 bits.
        (2, _) => multiply::<DOT, 2, 32>,
        (4, false) => multiply::<DOT, 4, 8>,
        (8, false) if DOT != MADDUBS => multiply::<DOT, 8, 8>,
        _ => return None,
    };
    // 8 tokens are two times 4, whose 8 sums are too few to hide the latency. That costs more than it gives where the
    // kernel has long runs and no multipliers.
    let run = format.group.min(grouping.group());
    let least_tokens = if format.multiplied || run < MAX_GROUP { 8 } else { 9 };
    Some(Box::new(Unpacked { product, least_tokens }))
}

impl Gemm for Unpacked {
    fn least_tokens(&self, _rows: usize) -> Option<usize> {
        Some(self.least_tokens)
    }

    fn width(&self) -> usize {
        4
    }

    /// The activations of 128 tokens and a K-panel, 512 KiB, stay in the second-level cache.
    fn tile(&self) -> Tile {
        Tile {
            groups: 16,
            least: 1,
            panels: 8,
        }
    }

    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut Out<'_>) {
        let out = out.results(0..panels.len());
        // SAFETY: a value of this type is made only where the CPU has the instructions.
        unsafe { (self.product)(weights, groups, panels, out) }
    }
}

/// The codes of a span.
#[repr(align(64))]
struct Codes([u8; MAX_GROUP * MR]);

/// A [`Product`] for codes of `BITS` bits, so many dwords of which add up within 16 bits.
#[target_feature(enable = "avx2,fma,f16c")]
fn multiply<const DOT: usize, const BITS: usize, const DWORDS: usize>(
    weights: &KPanel<'_>,
    groups: Range<usize>,
    panels: &[Panel<'_>],
    out: &mut [[f32; MR]],
) {
    let Some(panel) = panels.first() else {
        return;
    };
    let (format, runs, columns) = (weights.format, weights.runs(panel), weights.columns().len());
    let in_spans = weights.in_spans(panel);
    let outer = runs.columns * runs.inner;
    let mut bytes = Codes([0; MAX_GROUP * MR]);
    for (i, group) in groups.clone().enumerate() {
        let group = weights.row_group(group);
        for first in (0..columns).step_by(MAX_GROUP / outer * outer) {
            let span = first..columns.min(first + MAX_GROUP / outer * outer);
            let codes = &mut bytes.0[..span.len() * MR];
            let packed = &group.codes[span.start * 2 * BITS..span.end * 2 * BITS];
            let multipliers = match in_spans && DOT != MADDUBS {
                true => part(group.multipliers, &span, format.group),
                false => &[],
            };
            unpack::<BITS>(packed, multipliers, codes);
            let span_group = group_of(&group, &format, &span, codes);
            let mut rest = &mut *out;
            for panel in panels {
                let (results, others) = rest.split_at_mut(groups.len() * panel.width);
                rest = others;
                let of = Operands {
                    group: span_group,
                    in_spans,
                    shift: format.shift,
                    runs: Runs {
                        outer: span.len() / outer,
                        ..runs
                    },
                    panel: panel_of(panel, &span, runs.columns),
                };
                tokens::<DOT, DWORDS>(&of, &mut results[i * panel.width..][..panel.width]);
            }
        }
    }
}

/// Of one item for each `each` columns those of `span`; nothing where there are none at all.
fn part<'a, T>(all: &'a [T], span: &Range<usize>, each: usize) -> &'a [T] {
    match all {
        [] => all,
        _ => &all[span.start / each..span.end / each],
    }
}

/// What belongs to `span` of a row group, with its codes as bytes.
fn group_of<'a>(group: &RowGroup<'a>, format: &Format, span: &Range<usize>, codes: &'a [u8]) -> RowGroup<'a> {
    let (each, shared) = (format.group, format.group * group.shared);
    RowGroup {
        codes,
        bits: 8,
        shared: group.shared,
        scales: part(group.scales, span, shared),
        multipliers: part(group.multipliers, span, each),
        minimums: part(group.minimums, span, shared),
        minimum_multipliers: part(group.minimum_multipliers, span, each),
    }
}

/// What belongs to `span` of a panel; `run`: columns of an inner run.
fn panel_of<'a>(panel: &Panel<'a>, span: &Range<usize>, run: usize) -> Panel<'a> {
    let part = |each: usize| span.start / each * panel.width..span.end / each * panel.width;
    Panel {
        dwords: &panel.dwords[part(4)],
        scales: &panel.scales[part(panel.group)],
        sums: &panel.sums[part(run)],
        ..*panel
    }
}

/// The codes of some steps as bytes, times the multipliers of their runs where there are some.
#[target_feature(enable = "avx2")]
fn unpack<const BITS: usize>(packed: &[u8], multipliers: &[[u8; MR]], bytes: &mut [u8]) {
    let steps_of_run = (bytes.len() / (STEP * MR)).checked_div(multipliers.len());
    let steps = packed.chunks_exact(32 * BITS).zip(bytes.chunks_exact_mut(STEP * MR));
    for (i, (step, bytes)) in steps.enumerate() {
        fetch_ahead(step, packed.len()); // the next span
        for half in 0..2 {
            let mut planes = planes::<VNNI, BITS>(step, half).0;
            if let Some(steps) = steps_of_run {
                let multipliers = &multipliers[i / steps];
                let multipliers = pairs(multipliers, multipliers, half);
                planes = planes.map(|plane| _mm256_mullo_epi16(plane, multipliers));
            }
            for (plane, bytes) in planes.into_iter().zip(bytes.chunks_exact_mut(QUAD)) {
                let bytes = &mut bytes[32 * half..][..32];
                // SAFETY: there is room for 32 bytes.
                unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), plane) }
            }
        }
    }
}

/// The product of a span with all tokens of a panel.
#[target_feature(enable = "avx2,fma,f16c")]
fn tokens<const DOT: usize, const DWORDS: usize>(of: &Operands<'_>, out: &mut [[f32; MR]]) {
    let mut token = 0;
    while token < out.len() {
        let at = At { part: 0, token };
        // 16 are 6 + 6 + 4.
        match out.len() - token {
            4 | 8 => {
                piece::<DOT, DWORDS, 4>(of, at, out);
                token += 4;
            }
            _ => {
                piece::<DOT, DWORDS, 6>(of, at, out);
                token += 6;
            }
        }
    }
}

/// [`product`] of all 16 rows and `C` tokens as a function of its own, for better registers.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn piece<const DOT: usize, const DWORDS: usize, const C: usize>(of: &Operands<'_>, at: At, out: &mut [[f32; MR]]) {
    product::<_, 8, 2, C>(Avx2::<DOT, DWORDS>(()), of, at, out);
}

/// Add factor * the sums of code * activation over one run to `sums`; where `DOT` is `vpdpbusd`, the codes have the
/// factor. (Without features of its own, so that it is inlined always.)
#[inline(always)]
pub(super) unsafe fn add_dots<const DOT: usize, const DWORDS: usize, const H: usize, const C: usize>(
    run: Run<'_>,
    factors: [__m256i; H],
    sums: &mut [[__m256i; C]; H],
) {
    // SAFETY: the caller has AVX2 and the instruction that `DOT` names.
    unsafe {
        if DOT != MADDUBS {
            return add_products::<DOT, H, C>(run, sums);
        }
        let blocks = run
            .codes
            .chunks(DWORDS * QUAD)
            .zip(run.dwords.chunks(DWORDS * run.width));
        for (codes, dwords) in blocks {
            let mut low = [[_mm256_setzero_si256(); C]; H];
            add_products::<DOT, H, C>(Run { codes, dwords, ..run }, &mut low);
            for h in 0..H {
                for c in 0..C {
                    let wide = _mm256_madd_epi16(low[h][c], factors[h]);
                    sums[h][c] = _mm256_add_epi32(sums[h][c], wide);
                }
            }
        }
    }
}

/// What a token does with a dword: `vpmaddubsw` to 16 bits.
macro_rules! maddubs {
    ($token:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{dwords} + 4 * ",
            $token,
            "]\n",
            "vpmaddubsw {product}, {codes_low}, {x}\n",
            "vpmaddubsw {x}, {codes_high}, {x}\n",
            "vpaddw {",
            stringify!($low),
            "}, {",
            stringify!($low),
            "}, {product}\n",
            "vpaddw {",
            stringify!($high),
            "}, {",
            stringify!($high),
            "}, {x}",
        )
    };
}

/// The same: `vpdpbusd` of AVX-VNNI to 32 bits.
macro_rules! vex {
    ($token:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{dwords} + 4 * ",
            $token,
            "]\n",
            "{{vex}} vpdpbusd {",
            stringify!($low),
            "}, {codes_low}, {x}\n",
            "{{vex}} vpdpbusd {",
            stringify!($high),
            "}, {codes_high}, {x}",
        )
    };
}

/// The same in the encoding of AVX-512VL.
macro_rules! evex {
    ($token:literal, $low:ident, $high:ident) => {
        concat!(
            "vpbroadcastd {x}, dword ptr [{dwords} + 4 * ",
            $token,
            "]\n",
            "{{evex}} vpdpbusd {",
            stringify!($low),
            "}, {codes_low}, {x}\n",
            "{{evex}} vpdpbusd {",
            stringify!($high),
            "}, {codes_high}, {x}",
        )
    };
}

/// Add the products of `$run` to `$sums`, for each token a register of its lower eight rows and one of the others.
macro_rules! add_products {
    ($dot:ident, $run:ident, $sums:ident, [$($token:literal $low:ident $high:ident),*] $(, $product:ident)?) => {
        asm!(
            "2:",
            "vmovdqu {codes_low}, [{codes}]",
            "vmovdqu {codes_high}, [{codes} + 32]",
            $($dot!($token, $low, $high),)*
            "add {codes}, 64",
            "add {dwords}, {stride}",
            "dec {count}",
            "jnz 2b",
            $($low = inout(ymm_reg) $sums[0][$token], $high = inout(ymm_reg) $sums[1][$token],)*
            codes_low = out(ymm_reg) _,
            codes_high = out(ymm_reg) _,
            x = out(ymm_reg) _,
            $($product = out(ymm_reg) _,)?
            codes = inout(reg) $run.codes.as_ptr() => _,
            dwords = inout(reg) $run.dwords[$run.at.token..].as_ptr() => _,
            stride = in(reg) 4 * $run.width,
            count = inout(reg) $run.codes.len() / QUAD => _,
            options(readonly, nostack)
        )
    };
}

/// Add the sums of code * activation over some dwords of columns, at least one, to `sums`: in pairs of 16 bits, or in 32.
#[inline]
#[target_feature(enable = "avx2")]
fn add_products<const DOT: usize, const H: usize, const C: usize>(run: Run<'_>, sums: &mut [[__m256i; C]; H]) {
    debug_assert!(H == 2 && !run.codes.is_empty() && run.dwords.len() >= run.codes.len() / QUAD * run.width);
    // SAFETY: the caller has the instructions; a run has `width` dwords for each `QUAD` bytes of codes, those of the
    // `C` tokens from `at` on among them, and no more is read; written are registers.
    unsafe {
        match (DOT, C) {
            (MADDUBS, 4) => add_products!(maddubs, run, sums, [0 a b, 1 c d, 2 e f, 3 g h], product),
            (MADDUBS, _) => add_products!(maddubs, run, sums, [0 a b, 1 c d, 2 e f, 3 g h, 4 i j, 5 k l], product),
            (VNNI, 4) => add_products!(vex, run, sums, [0 a b, 1 c d, 2 e f, 3 g h]),
            (VNNI, _) => add_products!(vex, run, sums, [0 a b, 1 c d, 2 e f, 3 g h, 4 i j, 5 k l]),
            (EVEX_VNNI, 4) => add_products!(evex, run, sums, [0 a b, 1 c d, 2 e f, 3 g h]),
            _ => add_products!(evex, run, sums, [0 a b, 1 c d, 2 e f, 3 g h, 4 i j, 5 k l]),
        }
    }
}

/// Multiplications of one repeat of [`dots`]: 6 tokens, 16 rows, 256 columns.
pub(super) const DOTS: usize = 6 * MR * MAX_GROUP;

/// The inner loop on one span, `repeats` times.
#[target_feature(enable = "avx2")]
pub(super) fn dots<const DOT: usize>(repeats: usize) {
    let (codes, dwords) = (Codes([1; MAX_GROUP * MR]), [0x0303_0303; 6 * MAX_GROUP / 4]);
    let run = Run {
        codes: &codes.0,
        dwords: &dwords,
        width: 6,
        at: At { part: 0, token: 0 },
    };
    let mut sums = [[_mm256_setzero_si256(); 6]; 2];
    for _ in 0..repeats {
        add_products::<DOT, 2, 6>(run, &mut sums);
    }
    std::hint::black_box(sums);
}
