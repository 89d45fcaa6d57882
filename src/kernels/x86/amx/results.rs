//! From sums to results: the f32 operations of the contract.

use super::registers::Block;
use crate::kernels::contract::{Line, MR, NR};
use crate::kernels::x86::zmm::{load_floats, store};
use std::arch::x86_64::*;

/// There is one inner run in an outer one.
pub(super) const SINGLE: usize = 0;
/// There are several, and their scale is the weights'.
pub(super) const NESTED: usize = 1;
/// There are several, and their scale is the activations'.
pub(super) const ACTIVATION_INSIDE: usize = 2;

/// What makes results of the sums of a run: of two panels, each with two row groups.
pub(super) struct Factors<'a> {
    /// The scales of the row groups.
    pub weights: [__m512; 2],
    /// The scales of the panels' tokens.
    pub activations: [&'a [f32; NR]; 2],
    /// Where the results are; None where there is no such panel or row group.
    pub results: [Option<usize>; 4],
    /// The run is the first of an outer one.
    pub first: bool,
    /// The run is the last of an outer one.
    pub last: bool,
}

/// The results of a product.
pub(super) struct Results<'a> {
    /// (panels, row groups, tokens, rows)
    out: &'a mut [[[f32; MR]; NR]],
    /// Of an outer run that is not complete.
    partials: [[[f32; MR]; NR]; 4],
    /// What a partial result begins with.
    zero: f32,
}

impl<'a> Results<'a> {
    /// `in_spans`: multipliers are applied to integers.
    pub fn new(out: &'a mut [[f32; MR]], in_spans: bool) -> Results<'a> {
        Results {
            out: out.as_chunks_mut().0,
            partials: [[[0.0; MR]; NR]; 4],
            // The contract adds a product to 0; but in spans it takes it as it is: so does adding to -0.
            zero: if in_spans { -0.0 } else { 0.0 },
        }
    }

    /// Add part `part` of 4K of the sums of a run. (Without features of its own, so that it is inlined always.)
    ///
    /// # Safety
    /// The CPU has AVX-512 F.
    #[inline(always)]
    pub unsafe fn add<const K: usize, const KIND: usize>(
        &mut self,
        factors: &Factors<'_>,
        sums: &[Block; 4],
        part: usize,
    ) {
        let which = part / K;
        let Some(at) = factors.results[which] else {
            return;
        };
        let (weights, activations) = (factors.weights[which % 2], factors.activations[which / 2]);
        let (sums, partials, results) = (&sums[which], &mut self.partials[which], &mut self.out[at]);
        for token in part % K * (NR / K)..(part % K + 1) * (NR / K) {
            let (partial, result) = (&mut partials[token], &mut results[token]);
            // SAFETY: the caller has AVX-512 F.
            unsafe {
                let sum = _mm512_cvtepi32_ps(load_line(&sums[token]));
                let activations = _mm512_set1_ps(activations[token]);
                let (inner, outer) = match KIND {
                    ACTIVATION_INSIDE => (activations, weights),
                    _ => (weights, activations),
                };
                let begun = match KIND {
                    NESTED | ACTIVATION_INSIDE if !factors.first => load_floats(partial),
                    _ => _mm512_set1_ps(self.zero),
                };
                let sum = _mm512_fmadd_ps(sum, inner, begun);
                if KIND == SINGLE || factors.last {
                    store(result, _mm512_fmadd_ps(sum, outer, load_floats(result)));
                } else {
                    store(partial, sum);
                }
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_line(line: &Line) -> __m512i {
    // SAFETY: a line is 64 bytes.
    unsafe { _mm512_load_si512(line.0.as_ptr().cast()) }
}
