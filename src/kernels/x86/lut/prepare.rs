//! What is made for one outer run before it is multiplied: weights that are arranged, tables that are filled.

use super::super::zmm::{halves, load, load_bytes, scales_of, unpack};
use crate::kernels::contract::{Panel, Runs};
use crate::kernels::packed::RowGroup;
use std::arch::x86_64::*;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u8; 64]);

/// What is made for one outer run, in memory that is kept for the next.
#[derive(Default)]
pub(super) struct Scratch {
    /// See [`arrange`].
    pub weights: Vec<Line>,
    /// See [`arrange`].
    pub factors: Vec<Line>,
    /// For each inner run, for each look-up, for each token: 32 sums of 16 bits.
    pub tables: Vec<Line>,
    /// For each inner run, for each dword for dots: four activations of each token.
    pub dwords: Vec<i32>,
}

/// There is one inner run in an outer one.
pub(super) const SINGLE: usize = 0;
/// There are several, and their scale is the weights'.
pub(super) const NESTED: usize = 1;
/// There are several, and their scale is the activations'.
pub(super) const ACTIVATION_INSIDE: usize = 2;
/// Multipliers are applied to integers.
pub(super) const MULTIPLIED: usize = 3;

/// Dwords for dots in a run.
pub(super) const fn dot_dwords(s: usize, g: usize) -> usize {
    4 * s - 3 * g
}

/// Lines that [`arrange`] makes of the codes of a run.
pub(super) const fn lines(s: usize, g: usize) -> usize {
    2 * dot_dwords(s, g) + 4 * g
}

/// Arrange an outer run of two row groups.
///
/// Of the codes, for each inner run: for each i, dword i for dots of the first group and of the second, a code in each
/// byte, and for look-up i the numbers in base 3 of both groups in lanes of 16 bits, those of the first group in the
/// even ones; what is above a number in its lane does not count. The first dwords are those of the first `G` steps.
///
/// Of the scales: both groups' factors of each inner run, f32 or multipliers, then those of the outer run. Those that
/// the activations give are left out.
#[target_feature(enable = "avx512f,avx512bw,f16c")]
pub(super) fn arrange<const S: usize, const G: usize, const KIND: usize>(
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
                let dwords = unpack::<2>(&steps[half][s]);
                for l in 0..4 {
                    put(&mut to[at(G + 4 * (s - G) + l, half)], dwords[l]);
                }
            }
        }
        for g in 0..G {
            let (x, y) = (numbers(load(&steps[0][g])), numbers(load(&steps[1][g])));
            let low = _mm512_mask_mov_epi16(_mm512_slli_epi32(y, 16), 0x5555_5555, x);
            let high = _mm512_mask_mov_epi16(y, 0x5555_5555, _mm512_srli_epi32(x, 16));
            let (second, fourth) = (_mm512_srli_epi16(low, 8), _mm512_srli_epi16(high, 8));
            for (i, numbers) in (4 * g..).zip([low, second, high, fourth]) {
                put(&mut to[2 * dot_dwords(S, G).min(i + 1) + i], numbers);
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
            put(&mut to_outer[0], _mm512_castps_si512(halves(&a.scales[outer])));
            put(&mut to_outer[1], _mm512_castps_si512(halves(&b.scales[outer])));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,f16c")]
fn put_scales(a: &RowGroup<'_>, b: &RowGroup<'_>, run: usize, to: &mut [Line]) {
    put(&mut to[0], _mm512_castps_si512(scales_of(a, run)));
    put(&mut to[1], _mm512_castps_si512(scales_of(b, run)));
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

/// Dwords and tables of an outer run of `T` tokens from token `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn prepare<const S: usize, const G: usize, const T: usize>(
    panel: &Panel<'_>,
    first: usize,
    runs: Runs,
    outer: usize,
    scratch: &mut Scratch,
) {
    let tables = scratch.tables.as_chunks_mut::<T>().0;
    let dwords = scratch.dwords.as_chunks_mut::<T>().0;
    let to = tables
        .chunks_exact_mut(4 * G)
        .zip(dwords.chunks_exact_mut(dot_dwords(S, G)));
    for (run, (tables, dwords)) in (outer * runs.inner..).zip(to) {
        let tokens = |i: usize, all: &[i32]| -> [i32; T] {
            *all[i * panel.width + first..]
                .first_chunk()
                .expect("tokens of the panel")
        };
        let dword = |i: usize| tokens(4 * S * run + i, panel.dwords);
        for (g, tables) in tables.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            dwords[g] = dword(4 * g);
            fill([dword(4 * g + 1), dword(4 * g + 2), dword(4 * g + 3)], tables);
        }
        for (i, to) in dwords[G..].iter_mut().enumerate() {
            *to = dword(4 * G + i);
        }
        for (table, sum) in tables[0].iter_mut().zip(tokens(run, panel.sums)) {
            let sum = _mm512_set1_epi16(sum as i16);
            put(table, _mm512_sub_epi16(load(&table.0), sum));
        }
    }
}

/// The tables of each byte of three dwords, the first for the lowest digit.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn fill<const T: usize>(dwords: [[i32; T]; 3], tables: &mut [[Line; T]; 4]) {
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
        let x = _mm512_set1_epi32(dwords[0][t]);
        let y = _mm512_set1_epi32(dwords[1][t]);
        let z = _mm512_set1_epi32(dwords[2][t]);
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

#[inline]
#[target_feature(enable = "avx512f")]
fn put(line: &mut Line, vector: __m512i) {
    // SAFETY: a line is 64 bytes at a multiple of 64.
    unsafe { _mm512_store_si512(line.0.as_mut_ptr().cast(), vector) };
}
