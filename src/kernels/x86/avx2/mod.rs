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
//! 3. With many tokens codes are unpacked once for all of them, see [`unpacked`].
//! 4. `vpdpbusd` adds in 32 bits and needs none of that. It is written in assembly: then one body serves both, and the
//!    tests can run it in its AVX-512VL encoding on CPUs that have only that.

mod quantize;
mod unpacked;

use self::quantize::{quantize, sums_of_steps};
use self::unpacked::add_dots;
use super::{AHEAD, FAR_AHEAD, fetch_ahead};
use crate::kernels::contract::{FloatPanel, Grouping, MR, Panel};
use crate::kernels::driver::{At, Operands, Run, Vector, floats, product, steps};
use crate::kernels::floats::{BF16, F16, F32, FloatType, Floats, bytes_of};
use crate::kernels::kernel::{Kernel, LoadGemm};
use crate::kernels::packed::KPanel;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// The dot is `vpmaddubsw`.
const MADDUBS: usize = 0;
/// The dot is `vpdpbusd` of AVX-VNNI.
const VNNI: usize = 1;
/// The dot is `vpdpbusd` of AVX-512VL, for tests.
const EVEX_VNNI: usize = 2;

/// The proof that the CPU has AVX2, FMA and F16C, and the instruction that `DOT` names. Two vectors are a row group.
/// `DWORDS`: 0 where codes are packed; where they are bytes, how many dwords of them add up within 16 bits.
#[derive(Clone, Copy)]
struct Avx2<const DOT: usize, const DWORDS: usize = 0>(());

/// The proof, where the CPU has all that.
fn detect<const DOT: usize>() -> Option<Avx2<DOT>> {
    let has_dot = match DOT {
        MADDUBS => true,
        VNNI => is_x86_feature_detected!("avxvnni"),
        _ => is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl"),
    };
    let found = has_dot
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    found.then_some(Avx2(()))
}

/// A kernel and its way for many tokens.
type Both = (&'static dyn Kernel, LoadGemm);

/// The AVX2 kernel, where the CPU has AVX2, FMA and F16C.
pub(in crate::kernels) fn avx2() -> Option<Both> {
    static KERNEL: Avx2<MADDUBS> = Avx2(());
    detect::<MADDUBS>().map(|_| (&KERNEL as &dyn Kernel, unpacked::load::<MADDUBS> as LoadGemm))
}

/// The AVX2 kernel with `vpdpbusd`, where the CPU has AVX-VNNI too.
pub(in crate::kernels) fn avx_vnni() -> Option<Both> {
    static KERNEL: Avx2<VNNI> = Avx2(());
    detect::<VNNI>().map(|_| (&KERNEL as &dyn Kernel, unpacked::load::<VNNI> as LoadGemm))
}

/// The same body in AVX-512's encoding, to test it on CPUs without AVX-VNNI.
#[cfg(test)]
pub(in crate::kernels) fn avx_vnni_as_evex() -> Option<Both> {
    static KERNEL: Avx2<EVEX_VNNI> = Avx2(());
    detect::<EVEX_VNNI>().map(|_| (&KERNEL as &dyn Kernel, unpacked::load::<EVEX_VNNI> as LoadGemm))
}

impl<const DOT: usize> Kernel for Avx2<DOT> {
    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panel: &Panel<'_>, out: &mut [[f32; MR]]) {
        let product = match weights.format.bits {
            2 => panel_product::<DOT, 2>,
            4 => panel_product::<DOT, 4>,
            6 => panel_product::<DOT, 6>,
            _ => panel_product::<DOT, 8>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            let of = Operands::new(weights, group, panel);
            // SAFETY: a value of this type is the proof of its instructions.
            unsafe { product(*self, &of, out) }
        }
    }

    fn quantize(&self, x: &[f32], grouping: Grouping, codes: &mut [i8], scales: &mut [f32]) {
        // SAFETY: a value of this type is the proof of its instructions.
        unsafe { quantize(x, grouping, codes, scales) }
    }

    fn sums(&self, codes: &[i8], sums: &mut [i32]) {
        // SAFETY: a value of this type is the proof of its instructions.
        unsafe { sums_of_steps(codes, sums) }
    }

    fn dots(&self, repeats: usize) -> Option<usize> {
        // SAFETY: a value of this type is the proof of its instructions.
        unsafe { unpacked::dots::<DOT>(repeats) };
        Some(unpacked::DOTS)
    }

    fn multiply_floats(&self, weights: &Floats, groups: Range<usize>, panel: &FloatPanel<'_>, out: &mut [[f32; MR]]) {
        let product = match weights.ty {
            FloatType::F32 => floats_product::<DOT, F32>,
            FloatType::F16 => floats_product::<DOT, F16>,
            FloatType::Bf16 => floats_product::<DOT, BF16>,
        };
        for (group, out) in groups.zip(out.chunks_exact_mut(panel.width)) {
            // SAFETY: a value of this type is the proof of its instructions.
            unsafe { product(*self, weights.group(group), panel, out) }
        }
    }
}

impl<const DOT: usize, const DWORDS: usize> Vector for Avx2<DOT, DWORDS> {
    type Floats = __m256;
    type Ints = __m256i;
    const SIGNED_BYTES: bool = false;

    steps! {
        splat(x: f32) -> __m256 = _mm256_set1_ps(x);
        splat_int(x: i32) -> __m256i = _mm256_set1_epi32(x);
        load(floats: &[f32; MR], part: usize) -> __m256 = load(&floats.as_chunks().0[part]);
        store(floats: &mut [f32; MR], part: usize, x: __m256) = store(&mut floats.as_chunks_mut().0[part], x);
        halves(f16s: &[u8; 2 * MR], part: usize) -> __m256 = widen::<F16>(f16s, part);
        bytes(bytes: &[u8; MR], part: usize) -> __m256i = eight_bytes(&bytes.as_chunks().0[part]);
        widen<TYPE>(weights: &[u8], part: usize) -> __m256 = widen::<TYPE>(weights, part);
        to_floats(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        sub(a: __m256i, b: __m256i) -> __m256i = _mm256_sub_epi32(a, b);
        shift_left(x: __m256i, places: u32) -> __m256i = _mm256_sll_epi32(x, _mm_cvtsi32_si128(places as i32));
        add(a: __m256, b: __m256) -> __m256 = _mm256_add_ps(a, b);
        mul(a: __m256, b: __m256) -> __m256 = _mm256_mul_ps(a, b);
        fma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        fnma(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fnmadd_ps(a, b, c);
        dots<BITS, H, C>(run: Run<'_>) -> [[__m256i; C]; H] = match DWORDS {
            0 => dots::<DOT, BITS, H, C>(run),
            _ => {
                let mut sums = [[_mm256_setzero_si256(); C]; H];
                add_dots::<DOT, DWORDS, H, C>(run, [_mm256_set1_epi16(1); H], &mut sums);
                sums
            }
        };
        add_multiplied<BITS, H, C>(run: Run<'_>, multipliers: &[u8; MR], totals: &mut [[__m256i; C]; H])
            = match DWORDS {
                0 => add_multiplied::<BITS, H, C>(run, multipliers, totals),
                _ => {
                    let mut factors = [_mm256_setzero_si256(); H];
                    for h in 0..H {
                        factors[h] = pairs(multipliers, multipliers, h);
                    }
                    add_dots::<DOT, DWORDS, H, C>(run, factors, totals);
                }
            };
        offsets<H, C>(multipliers: &[[u8; MR]], sums: &[i32], width: usize, at: At) -> [[__m256i; C]; H]
            = offsets::<H, C>(multipliers, sums, width, at);
    }
}

/// A row group times a panel, in pieces that fit the registers: one token with both halves of the rows, or several with
/// one half.
#[target_feature(enable = "avx2,fma,f16c")]
fn panel_product<const DOT: usize, const BITS: usize>(v: Avx2<DOT>, of: &Operands<'_>, out: &mut [[f32; MR]]) {
    let width = of.panel.width;
    if width == 1 {
        return product::<_, BITS, 2, 1>(v, of, At { part: 0, token: 0 }, out);
    }
    // The high parts of longer codes leave products with multipliers no registers for eight tokens.
    let at_once = if BITS > 2 && of.in_spans { 4 } else { 8 };
    for part in 0..2 {
        for token in (0..width).step_by(at_once) {
            let at = At { part, token };
            match at_once.min(width - token) {
                8 => piece::<DOT, BITS, 1, 8>(v, of, at, out),
                _ => piece::<DOT, BITS, 1, 4>(v, of, at, out),
            }
        }
    }
}

/// [`product`] as a function of its own: registers are assigned better in several of this size than in one that holds
/// all of them. (Not for one token: there the loops need to know that the width is one.)
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
fn piece<const DOT: usize, const BITS: usize, const H: usize, const C: usize>(
    v: Avx2<DOT>,
    of: &Operands<'_>,
    at: At,
    out: &mut [[f32; MR]],
) {
    product::<_, BITS, H, C>(v, of, at, out);
}

/// See [`Vector::add_multiplied`]. `vpmaddubsw` is all it needs: pairs of products that were added in 16 bits meet the
/// multipliers in `vpmaddwd`, which widens them too. (Without features of its own, as a function with them cannot be
/// inlined always; so [`dots`].)
#[inline(always)]
unsafe fn add_multiplied<const BITS: usize, const H: usize, const C: usize>(
    run: Run<'_>,
    multipliers: &[u8; MR],
    totals: &mut [[__m256i; C]; H],
) {
    // SAFETY: the caller has AVX2.
    unsafe {
        let Run {
            codes,
            dwords,
            width,
            at,
        } = run;
        for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.chunks_exact(4 * width)) {
            fetch_ahead(step, if C == 1 { FAR_AHEAD } else { AHEAD });
            for h in 0..H {
                let multiplier = pairs(multipliers, multipliers, at.part + h);
                // Codes of 6 bits: 2 * 63 * 127 = 16,002 a product, and two of them 32,004 < 32,767.
                let planes = planes::<VNNI, BITS>(step, at.part + h).0;
                for c in 0..C {
                    let mut dots = planes;
                    for (l, dot) in dots.iter_mut().enumerate() {
                        *dot = _mm256_maddubs_epi16(*dot, _mm256_set1_epi32(dwords[l * width + at.token + c]));
                    }
                    let a = _mm256_add_epi16(dots[0], dots[1]);
                    let b = _mm256_add_epi16(dots[2], dots[3]);
                    let total = match BITS {
                        6 => _mm256_add_epi32(_mm256_madd_epi16(a, multiplier), _mm256_madd_epi16(b, multiplier)),
                        _ => _mm256_madd_epi16(_mm256_add_epi16(a, b), multiplier),
                    };
                    totals[h][c] = _mm256_add_epi32(totals[h][c], total);
                }
            }
        }
    }
}

/// Sums of multiplier * sum of activations. Both fit 16 bits, so two runs are one `vpmaddwd`.
#[inline]
#[target_feature(enable = "avx2")]
fn offsets<const H: usize, const C: usize>(
    multipliers: &[[u8; MR]],
    sums: &[i32],
    width: usize,
    at: At,
) -> [[__m256i; C]; H] {
    let mut offsets = [[_mm256_setzero_si256(); C]; H];
    for (multipliers, sums) in multipliers.chunks(2).zip(sums.chunks(2 * width)) {
        for h in 0..H {
            let multiplier = match multipliers {
                [a, b] => pairs(a, b, at.part + h),
                _ => pairs(&multipliers[0], &[0; MR], at.part + h),
            };
            for c in 0..C {
                let second = sums.get(width + at.token + c).copied().unwrap_or(0);
                let sums = _mm256_set1_epi32(sums[at.token + c] & 0xFFFF | second << 16);
                let products = _mm256_madd_epi16(multiplier, sums);
                offsets[h][c] = _mm256_add_epi32(offsets[h][c], products);
            }
        }
    }
    offsets
}

/// For eight rows, one of `a` and one of `b` as a pair of 16-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs(a: &[u8; MR], b: &[u8; MR], half: usize) -> __m256i {
    let (a, b) = (&a.as_chunks::<8>().0[half], &b.as_chunks::<8>().0[half]);
    // SAFETY: 8 bytes are there in both.
    let (a, b) = unsafe { (_mm_loadl_epi64(a.as_ptr().cast()), _mm_loadl_epi64(b.as_ptr().cast())) };
    _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b))
}

/// The sums of stored code * activation over one run.
#[inline(always)]
unsafe fn dots<const DOT: usize, const BITS: usize, const H: usize, const C: usize>(run: Run<'_>) -> [[__m256i; C]; H] {
    // SAFETY: the caller has AVX2.
    unsafe {
        let Run {
            codes,
            dwords,
            width,
            at,
        } = run;
        let zero = _mm256_setzero_si256();
        let mut sums = [[zero; C]; H];
        let steps_at_once = match (DOT, BITS) {
            (MADDUBS, 2) => 8,
            (MADDUBS, _) => 2,
            _ => usize::MAX / 4 / width / 32 / BITS,
        };
        let blocks = codes
            .chunks(steps_at_once * 32 * BITS)
            .zip(dwords.chunks(steps_at_once * 4 * width));
        for (codes, dwords) in blocks {
            // 16-bit sums of the low parts of the codes and, for long codes, of the high parts; or 32-bit sums.
            let (mut low, mut high) = ([[zero; C]; H], [[zero; C]; H]);
            for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.chunks_exact(4 * width)) {
                fetch_ahead(step, if C == 1 { FAR_AHEAD } else { AHEAD });
                for h in 0..H {
                    let planes = planes::<DOT, BITS>(step, at.part + h);
                    for l in 0..4 {
                        let dwords = &dwords[l * width + at.token..][..C];
                        for c in 0..C {
                            let x = _mm256_set1_epi32(dwords[c]);
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
}

/// `sum` + products of codes and activations: pairs in 16 bits, or dwords in 32.
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

/// Eight signed bytes as 32-bit numbers.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_bytes(bytes: &[u8; 8]) -> __m256i {
    // SAFETY: 8 bytes are there.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) })
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

/// A row group of floats times a panel, one token or two at a time.
#[target_feature(enable = "avx2,fma,f16c")]
fn floats_product<const DOT: usize, const TYPE: usize>(
    v: Avx2<DOT>,
    weights: &[u8],
    panel: &FloatPanel<'_>,
    out: &mut [[f32; MR]],
) {
    if panel.width == 1 {
        return floats::<_, TYPE, 2, 1>(v, weights, panel, 0, out);
    }
    for first in (0..panel.width).step_by(2) {
        floats::<_, TYPE, 2, 2>(v, weights, panel, first, out);
    }
}

/// Part `part` of 16 weights, as f32.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen<const TYPE: usize>(weights: &[u8], part: usize) -> __m256 {
    let bytes = 8 * bytes_of(TYPE);
    let at = weights[part * bytes..][..bytes].as_ptr();
    // SAFETY: 8 weights are there.
    unsafe {
        match TYPE {
            F32 => _mm256_loadu_ps(at.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(at.cast())),
            _ => {
                let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
            }
        }
    }
}
