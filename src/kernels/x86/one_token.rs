//! AVX-512 for one token, which [`super::avx512`] explains. These loops are not those of [`crate::kernels::driver`]: from
//! the cache they were measured to be 4 to 10 % faster, with all that is known of a run made known to the compiler.

use super::zmm::{Product, halves, in_place, load_floats, scales_of, store, unpack};
use super::{FAR_AHEAD, fetch, fetch_ahead};
use crate::kernels::contract::{MR, Panel, Runs, STEP};
use crate::kernels::packed::{Format, RowGroup};
use std::arch::x86_64::*;
use std::array;

/// The product for one token. `fetch`: codes of 2 bits in long runs are fetched ahead, too.
pub(super) fn one_token_of<const G: usize>(weights: &Format, runs: Runs, fetch: bool) -> Product<G> {
    let (bits, steps) = (weights.bits, runs.columns / STEP);
    match (runs.activation_inside, weights.multiplied) {
        (true, true) => one_token_in_runs::<G, true, true, true>(bits, steps),
        (false, true) => one_token_in_runs::<G, false, true, true>(bits, steps),
        (true, false) => one_token_in_runs::<G, true, false, true>(bits, steps),
        (false, false) if fetch => one_token_in_runs::<G, false, false, true>(bits, steps),
        (false, false) => one_token_in_runs::<G, false, false, false>(bits, steps),
    }
}

/// The same for codes of `bits` bits and inner runs of `steps` steps. `INSIDE`: the inner scale is the activation's.
/// `MULTIPLIED`: the weights' scales have multipliers. `FETCH`: codes are fetched ahead.
fn one_token_in_runs<const G: usize, const INSIDE: bool, const MULTIPLIED: bool, const FETCH: bool>(
    bits: usize,
    steps: usize,
) -> Product<G> {
    match (bits, steps) {
        (2, 1) => one_token_2_bits::<1, INSIDE, MULTIPLIED, FETCH, G>,
        (2, 2) => one_token_2_bits::<2, INSIDE, MULTIPLIED, FETCH, G>,
        (2, 4) => one_token_2_bits::<4, INSIDE, MULTIPLIED, FETCH, G>,
        (2, 8) => one_token_2_bits::<8, INSIDE, MULTIPLIED, FETCH, G>,
        (2, _) => one_token_2_bits::<16, INSIDE, MULTIPLIED, FETCH, G>,
        (4, _) => one_token::<4, INSIDE, G>,
        (6, _) => one_token::<6, INSIDE, G>,
        (_, _) => one_token::<8, INSIDE, G>,
    }
}

/// One token, codes of 2 bits, inner runs of `STEPS` steps.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn one_token_2_bits<
    const STEPS: usize,
    const INSIDE: bool,
    const MULTIPLIED: bool,
    const FETCH: bool,
    const G: usize,
>(
    groups: &[RowGroup<'_>; G],
    _: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; MR]],
) {
    let out: &mut [[f32; MR]; G] = out.try_into().expect("a result for each row group");
    let codes: [_; G] = array::from_fn(|g| groups[g].codes.as_chunks::<64>().0.as_chunks::<STEPS>().0);
    let dwords = panel.dwords.as_chunks::<4>().0.as_chunks::<STEPS>().0;
    let weight_scale = |g: usize, run: usize| match MULTIPLIED {
        true => scales_of(&groups[g], run),
        false => halves(&groups[g].scales[run]),
    };
    let mut result = [_mm512_setzero_ps(); G];
    for g in 0..G {
        result[g] = load_floats(&out[g]);
    }
    for outer in 0..runs.outer {
        let mut partial = [_mm512_setzero_ps(); G];
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            let offset = _mm512_set1_epi32(panel.sums[run]);
            for g in 0..G {
                if FETCH {
                    fetch_ahead(codes[g][run].as_flattened(), FAR_AHEAD / G);
                }
                let dot = _mm512_sub_epi32(dot_2_bits(&codes[g][run], &dwords[run]), offset);
                let scale = match INSIDE {
                    true => _mm512_set1_ps(panel.scales[run]),
                    false => weight_scale(g, run),
                };
                partial[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, partial[g]);
            }
        }
        for g in 0..G {
            let scale = match INSIDE {
                true => weight_scale(g, outer),
                false => _mm512_set1_ps(panel.scales[outer]),
            };
            result[g] = _mm512_fmadd_ps(partial[g], scale, result[g]);
        }
    }
    for g in 0..G {
        store(&mut out[g], result[g]);
    }
}

/// One token, codes of 4, 6 or 8 bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
fn one_token<const BITS: usize, const INSIDE: bool, const G: usize>(
    groups: &[RowGroup<'_>; G],
    shift: Option<u32>,
    runs: Runs,
    panel: &Panel<'_>,
    out: &mut [[f32; MR]],
) {
    let out: &mut [[f32; MR]; G] = out.try_into().expect("a result for each row group");
    let bytes = runs.columns / STEP * 32 * BITS;
    let mut codes: [_; G] = array::from_fn(|g| groups[g].codes.chunks_exact(bytes));
    let mut dwords = panel.dwords.chunks_exact(runs.columns / 4);
    let unit = 1 << shift.unwrap_or(0); // as `Format::offset_shift`
    let mut result = [_mm512_setzero_ps(); G];
    for g in 0..G {
        result[g] = load_floats(&out[g]);
    }
    for outer in 0..runs.outer {
        let mut partial = [_mm512_setzero_ps(); G];
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            let Some(dwords) = dwords.next() else {
                panic!("codes and activations of every run");
            };
            let offset = _mm512_set1_epi32(panel.sums[run] * unit);
            for g in 0..G {
                let Some(codes) = codes[g].next() else {
                    panic!("codes and activations of every run");
                };
                let dot = _mm512_sub_epi32(dot::<BITS>(codes, dwords), offset);
                let scale = match INSIDE {
                    true => _mm512_set1_ps(panel.scales[run]),
                    false => scales_of(&groups[g], run),
                };
                partial[g] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, partial[g]);
            }
        }
        for g in 0..G {
            let scale = match INSIDE {
                true => scales_of(&groups[g], outer),
                false => _mm512_set1_ps(panel.scales[outer]),
            };
            result[g] = _mm512_fmadd_ps(partial[g], scale, result[g]);
        }
    }
    for g in 0..G {
        store(&mut out[g], result[g]);
    }
}

/// The sum of stored code * activation over one run, for each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot<const BITS: usize>(codes: &[u8], dwords: &[i32]) -> __m512i {
    let mut sums = [_mm512_setzero_si512(); 4];
    for (step, dwords) in codes.chunks_exact(32 * BITS).zip(dwords.as_chunks::<4>().0) {
        fetch(step);
        let planes = unpack::<BITS>(step);
        for l in 0..4 {
            sums[l] = _mm512_dpbusd_epi32(sums[l], planes[l], _mm512_set1_epi32(dwords[l]));
        }
    }
    let [a, b, c, d] = sums;
    _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d))
}

/// The same for codes of 2 bits, in the faster of two ways.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn dot_2_bits<const STEPS: usize>(codes: &[[u8; 64]; STEPS], dwords: &[[i32; 4]; STEPS]) -> __m512i {
    match STEPS {
        1 | 2 | 4 => dot_by_places(codes, dwords),
        _ => dot_by_steps(codes, dwords),
    }
}

/// For a short run: one sum takes the 64-fold codes of all steps, is divided by 4, takes the 16-fold codes, and so on.
/// Fewer instructions than four sums; neighbouring runs hide the longer chain.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_by_places<const STEPS: usize>(codes: &[[u8; 64]; STEPS], dwords: &[[i32; 4]; STEPS]) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    let mut planes = [[sum; 4]; STEPS];
    for i in 0..STEPS {
        planes[i] = in_place(&codes[i]);
    }
    for l in [3, 2, 1, 0] {
        for i in 0..STEPS {
            sum = _mm512_dpbusd_epi32(sum, planes[i][l], _mm512_set1_epi32(dwords[i][l]));
        }
        if l > 0 {
            sum = _mm512_srai_epi32(sum, 2);
        }
    }
    sum
}

/// For a long run, of an even number of steps: two sums for each place, taken in turn, hide the latency of `vpdpbusd`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn dot_by_steps<const STEPS: usize>(codes: &[[u8; 64]; STEPS], dwords: &[[i32; 4]; STEPS]) -> __m512i {
    debug_assert!(STEPS.is_multiple_of(2));
    let (mut even, mut odd) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    let pairs = codes.as_chunks().0.iter().zip(dwords.as_chunks().0);
    for ([codes_0, codes_1], [dwords_0, dwords_1]) in pairs {
        let (planes_0, planes_1) = (in_place(codes_0), in_place(codes_1));
        for l in 0..4 {
            even[l] = _mm512_dpbusd_epi32(even[l], planes_0[l], _mm512_set1_epi32(dwords_0[l]));
            odd[l] = _mm512_dpbusd_epi32(odd[l], planes_1[l], _mm512_set1_epi32(dwords_1[l]));
        }
    }
    let [a, b, c, d] = array::from_fn(|l| _mm512_add_epi32(even[l], odd[l]));
    _mm512_add_epi32(
        _mm512_add_epi32(a, _mm512_srai_epi32(b, 2)),
        _mm512_add_epi32(_mm512_srai_epi32(c, 4), _mm512_srai_epi32(d, 6)),
    )
}
