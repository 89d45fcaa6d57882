//! From sums to results: the f32 operations of the contract.

use super::PANELS;
use super::registers::{Block, PARTS};
use crate::kernels::contract::{Line, MR, NR};
use crate::kernels::tiles::Squares;
use crate::kernels::x86::zmm::{load_floats, store};
use std::arch::x86_64::*;

/// There is one inner run in an outer one.
pub(super) const SINGLE: usize = 0;
/// There are several, and their scale is the weights'.
pub(super) const NESTED: usize = 1;
/// There are several, and their scale is the activations'.
pub(super) const ACTIVATION_INSIDE: usize = 2;

/// The results of a panel and a row group: (tokens, rows).
pub(super) type Square = [[f32; MR]; NR];

/// What makes results of the sums of a run: of two panels, each with two row groups.
#[derive(Clone, Copy)]
pub(super) struct Factors<'a> {
    /// The scales of the row groups.
    pub weights: [__m512; 2],
    /// The scales of the panels' tokens.
    pub activations: [&'a [f32; NR]; 2],
    /// Which results.
    pub place: Place,
    /// The results before the outer run, and where those after it go.
    pub from: *const [Square; 4],
    pub to: *mut [Square; 4],
    /// The run is the first of an outer one.
    pub first: bool,
    /// The run is the last of an outer one.
    pub last: bool,
    /// The run is the last of all.
    pub finishes: bool,
}

impl Factors<'_> {
    /// Of no run.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn none() -> Self {
        Factors {
            weights: [_mm512_setzero_ps(); 2],
            activations: [&[0.0; NR]; 2],
            place: Place::NOWHERE,
            from: &raw const ZERO.0,
            to: std::ptr::null_mut(),
            first: true,
            last: true,
            finishes: false,
        }
    }

    /// Add part `part` of PARTS * K of the sums of a run. (Without features of its own, so that it is inlined always.)
    ///
    /// # Safety
    /// The CPU has AVX-512 F, and `from` and `to` are still there.
    #[inline(always)]
    pub unsafe fn add<const K: usize, const KIND: usize, const MULTIPLIED: bool>(
        &self,
        sums: &[Block; 4],
        partials: &mut Partials,
        part: usize,
    ) {
        let parts = PARTS / 4 * K; // of each of the four
        let (which, part) = (part / parts, part % parts);
        if !self.place.has(which) {
            return;
        }
        let (weights, activations) = (self.weights[which % 2], self.activations[which / 2]);
        let (sums, partials) = (&sums[which], &mut partials.0[which]);
        for token in part * (NR / parts)..(part + 1) * (NR / parts) {
            let partial = &mut partials[token];
            // SAFETY: by the caller's promise.
            unsafe {
                let sum = _mm512_cvtepi32_ps(load_line(&sums[token]));
                let activations = _mm512_set1_ps(activations[token]);
                let (inner, outer) = match KIND {
                    ACTIVATION_INSIDE => (activations, weights),
                    _ => (weights, activations),
                };
                let sum = match KIND {
                    // The contract adds a product to 0; but in spans it takes it as it is.
                    _ if MULTIPLIED => _mm512_mul_ps(sum, inner),
                    NESTED | ACTIVATION_INSIDE if !self.first => _mm512_fmadd_ps(sum, inner, load_floats(partial)),
                    _ => _mm512_fmadd_ps(sum, inner, _mm512_setzero_ps()),
                };
                if KIND == SINGLE || self.last {
                    let before = load_floats(&(&*self.from)[which][token]);
                    store(&mut (&mut *self.to)[which][token], _mm512_fmadd_ps(sum, outer, before));
                } else {
                    store(partial, sum);
                }
            }
        }
    }
}

/// Of an outer run that is not complete.
pub(super) type Partials = Aligned<[Square; 4]>;

/// One panel or two, and one row group or two, counted from the first of the product.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub panel: usize,
    pub panels: usize,
    pub group: usize,
    pub groups: usize,
}

impl Place {
    const NOWHERE: Place = Place {
        panel: 0,
        panels: 0,
        group: 0,
        groups: 0,
    };

    /// Whether there is square `2 * panel + group`.
    #[inline(always)]
    fn has(&self, square: usize) -> bool {
        square / 2 < self.panels && square % 2 < self.groups
    }
}

/// From the first of a cache line on: vectors in two of them are read and written at half the speed.
#[repr(C, align(64))]
pub(super) struct Aligned<T>(pub T);

/// The results before the first columns.
static ZERO: Aligned<[Square; 4]> = Aligned([[[0.0; MR]; NR]; 4]);

/// The results of a product.
pub(super) struct Results<'a> {
    squares: Squares<'a>,
    /// Whether there are results of columns before these.
    continued: bool,
    /// Until all columns are done, where they lie close together: (panels, two row groups)
    unfinished: Aligned<[Square; 2 * PANELS]>,
}

impl<'a> Results<'a> {
    pub fn new(squares: Squares<'a>, continued: bool) -> Results<'a> {
        Results {
            squares,
            continued,
            unfinished: Aligned([[[0.0; MR]; NR]; 2 * PANELS]),
        }
    }

    /// Where the results of a place are before an outer run, which may be the first, and where those after it go.
    #[inline(always)]
    pub fn unfinished(&mut self, place: Place, first: bool) -> (*const [Square; 4], *mut [Square; 4]) {
        let four = place.panel / 2;
        if first && self.continued {
            for square in (0..4).filter(|&square| place.has(square)) {
                let results = &mut self.unfinished.0[4 * four + square];
                self.squares
                    .get(place.panel + square / 2, place.group + square % 2, results);
            }
        }
        let unfinished = &raw mut self.unfinished.0.as_chunks_mut().0[four];
        let from = match first && !self.continued {
            true => &raw const ZERO.0,
            false => unfinished,
        };
        (from, unfinished)
    }

    /// Put finished results where they belong.
    pub fn put(&mut self, place: Place) {
        for panel in place.panel..place.panel + place.panels {
            let results = &self.unfinished.0[2 * panel..][..place.groups];
            let groups = place.group..place.group + place.groups;
            self.squares.put(panel, groups, results.as_flattened());
        }
    }

    /// Beside span `span` of `spans`, make ready a part of what is to be written after them.
    #[inline(always)]
    pub fn expect(&self, place: Place, span: usize, spans: usize) {
        for token in (span..NR).step_by(spans) {
            for panel in 0..place.panels {
                self.squares.expect(place.panel + panel, place.group, token);
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
