//! Matrices of floats with AVX-512.

use super::fetch;
use super::zmm::store;
use crate::kernels::contract::MR;
use crate::kernels::floats::{F16, F32, bytes_of};
use std::arch::x86_64::*;

/// `G` row groups of floats times a panel.
pub(super) type FloatProduct<const G: usize> = unsafe fn([&[u8]; G], &[f32], &mut [[f32; MR]]);

/// The product for a panel of `width` tokens. `TYPE`: see [`bytes_of`].
pub(super) fn floats_of<const TYPE: usize>(width: usize) -> FloatProduct<1> {
    match width {
        1 => floats_for_one::<TYPE, 1>,
        4 => floats_tile::<TYPE, 4, 4, 0>,
        8 => floats_tile::<TYPE, 8, 8, 0>,
        12 => floats_in_two::<TYPE, 12, 4>,
        _ => floats_in_two::<TYPE, 16, 8>,
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn floats_in_two<const TYPE: usize, const W: usize, const B: usize>(
    weights: [&[u8]; 1],
    x: &[f32],
    out: &mut [[f32; MR]],
) {
    let (first, second) = out.split_at_mut(8);
    floats_tile::<TYPE, W, 8, 0>(weights, x, first);
    floats_tile::<TYPE, W, B, 8>(weights, x, second);
}

/// `C` tokens from token `FIRST` on, of a panel of `W`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn floats_tile<const TYPE: usize, const W: usize, const C: usize, const FIRST: usize>(
    [weights]: [&[u8]; 1],
    x: &[f32],
    out: &mut [[f32; MR]],
) {
    let bytes = MR * bytes_of(TYPE);
    let mut chains = [[_mm512_setzero_ps(); C]; 2];
    let (pairs, last) = x.as_chunks::<W>().0.as_chunks::<2>();
    let mut columns = weights.chunks_exact(2 * bytes);
    for (x, weights) in pairs.iter().zip(&mut columns) {
        for chain in 0..2 {
            let weights = widen::<TYPE>(&weights[chain * bytes..][..bytes]);
            for c in 0..C {
                let x = _mm512_set1_ps(x[chain][FIRST + c]);
                chains[chain][c] = _mm512_fmadd_ps(weights, x, chains[chain][c]);
            }
        }
    }
    if let [x] = last {
        let weights = widen::<TYPE>(columns.remainder());
        for c in 0..C {
            let x = _mm512_set1_ps(x[FIRST + c]);
            chains[0][c] = _mm512_fmadd_ps(weights, x, chains[0][c]);
        }
    }
    for (c, out) in out.iter_mut().enumerate() {
        store(out, _mm512_add_ps(chains[0][c], chains[1][c]));
    }
}

/// One token.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
pub(super) fn floats_for_one<const TYPE: usize, const G: usize>(weights: [&[u8]; G], x: &[f32], out: &mut [[f32; MR]]) {
    let bytes = MR * bytes_of(TYPE);
    let mut chains = [[_mm512_setzero_ps(); 2]; G];
    let (pairs, last) = x.as_chunks::<2>();
    let mut columns = weights.map(|weights| weights.chunks_exact(2 * bytes));
    for x in pairs {
        for g in 0..G {
            let weights = columns[g].next().expect("the weights of two columns");
            fetch(weights);
            for chain in 0..2 {
                let weights = widen::<TYPE>(&weights[chain * bytes..][..bytes]);
                chains[g][chain] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x[chain]), chains[g][chain]);
            }
        }
    }
    for g in 0..G {
        if let [x] = *last {
            let weights = widen::<TYPE>(columns[g].remainder());
            chains[g][0] = _mm512_fmadd_ps(weights, _mm512_set1_ps(x), chains[g][0]);
        }
        store(&mut out[g], _mm512_add_ps(chains[g][0], chains[g][1]));
    }
}

/// 16 weights as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
fn widen<const TYPE: usize>(weights: &[u8]) -> __m512 {
    assert_eq!(weights.len(), MR * bytes_of(TYPE));
    let at = weights.as_ptr();
    // SAFETY: 16 weights are there.
    unsafe {
        match TYPE {
            F32 => _mm512_loadu_ps(at.cast()),
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())),
            _ => {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }
    }
}
