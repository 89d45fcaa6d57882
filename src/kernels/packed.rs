//! The one packed layout of every integer type: 16 rows interleaved, stored codes of 2, 4, 6 or 8 bits.
//!
//! ```text
//! step = 16 rows x 16 columns, 32 * bits bytes.  Columns 16s + 4l + b of step s, with l and b in 0..4, row r in 0..16:
//!   2 bits   byte 4r + b,            bits 2l..2l+2
//!   4 bits   byte 64(l/2) + 4r + b,  bits 4(l%2)..+4
//!   6 bits   the low four bits as for 4 bits, then at 128 the high two as for 2 bits
//!   8 bits   byte 64l + 4r + b
//! weight = scale * (code - 2^shift)                  or, with a minimum: scale * code - minimum
//! scale  = an f16, or an f16 per 256 columns times an 8-bit multiplier
//! ```
//! So the four bytes that meet four consecutive activations lie in one 32-bit lane, a lane is a row, and no sum ever
//! has to be taken across lanes.
//!
//! Long rows are cut into K-panels of 4096 columns, one behind the other in memory: the activations of a K-panel stay
//! in the first-level cache while all its weights stream by. (Activations that a row of 8192 weights pushes out of that
//! cache cost a fifth of the speed of memory.)
//!
//! Neighbouring blocks of a file whose scales have equal bits become one group of up to 256 weights: fewer bytes to
//! read and fewer conversions, and exact.

use super::contract::{MR, Panel, Runs, SPAN, STEP};
use super::memory::Region;
use half::f16;
use std::ops::Range;

/// The largest group that scales are merged into, and the span of an f16 that has multipliers.
pub(super) const MAX_GROUP: usize = SPAN;

/// Columns of a K-panel; a multiple of every group and block.
pub(super) const KC: usize = 4096;

/// A matrix in the packed layout.
pub(super) struct Packed {
    pub format: Format,
    /// Columns of the matrix.
    pub columns: usize,
    pub region: Region,
}

/// What all K-panels of a matrix have in common.
#[derive(Clone, Copy)]
pub(super) struct Format {
    /// Rows of the matrix.
    pub rows: usize,
    /// Bits of a stored code: 2, 4, 6 or 8.
    pub bits: usize,
    /// A stored code of 2^shift means 0. None where there are minimums instead.
    pub shift: Option<u32>,
    /// Columns that share a scale.
    pub group: usize,
    /// Whether a scale is an f16 per 256 columns times a multiplier; where there are minimums, it is.
    pub multiplied: bool,
    /// Whether every stored code is 0, 1 or 2, and 1 means 0.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "asked by x86-64's GEMM"))]
    pub ternary: bool,
}

/// All rows of up to 4096 columns.
#[derive(Clone, Copy)]
pub(super) struct KPanel<'a> {
    pub format: Format,
    first: usize,
    columns: usize,
    parts: Parts,
    /// The parts of all row groups.
    all: RowGroup<'a>,
}

/// Sizes in bytes of the parts of one row group.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    pub codes: usize,
    pub scales: usize,
    pub multipliers: usize,
    pub minimums: usize,
    pub minimum_multipliers: usize,
}

/// The parts of 16 rows. A slice is empty where the matrix has no such part.
#[derive(Clone, Copy)]
pub(super) struct RowGroup<'a> {
    /// Steps, `32 * bits` bytes each.
    pub codes: &'a [u8],
    /// Bits of a stored code.
    pub bits: usize,
    /// Groups that share an f16, so `scales[g / shared]`.
    pub shared: usize,
    /// 16 f16 little-endian.
    pub scales: &'a [[u8; 2 * MR]],
    /// 16 i8 for each group.
    pub multipliers: &'a [[u8; MR]],
    /// As `scales`.
    pub minimums: &'a [[u8; 2 * MR]],
    /// As `multipliers`.
    pub minimum_multipliers: &'a [[u8; MR]],
}

impl Packed {
    /// The K-panels from left to right.
    pub fn k_panels(&self) -> impl Iterator<Item = KPanel<'_>> {
        let mut rest: &[u8] = &self.region;
        k_panels(self.columns).map(move |columns| {
            let (bytes, tail) = rest.split_at(self.format.k_panel_bytes(columns.len()));
            rest = tail;
            KPanel::new(self.format, columns, bytes)
        })
    }
}

/// The columns of each K-panel.
pub(super) fn k_panels(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns)
        .step_by(KC)
        .map(move |first| first..columns.min(first + KC))
}

impl Format {
    /// Number of row groups; the last may have fewer than 16 rows that count.
    pub fn row_groups(&self) -> usize {
        self.rows.div_ceil(MR)
    }

    /// Groups that share an f16.
    pub fn shared(&self) -> usize {
        if self.multiplied { MAX_GROUP / self.group } else { 1 }
    }

    /// Whether multipliers are applied to integers where so many activations share a scale.
    pub fn in_spans(&self, activation_group: usize) -> bool {
        self.multiplied && activation_group == MAX_GROUP
    }

    /// What a code is taken less of in an integer dot, as a shift: 2^shift means 0, or 1 where there are minimums.
    pub fn offset_shift(&self) -> u32 {
        self.shift.unwrap_or(0)
    }

    /// The parts of a row group of so many columns.
    pub fn parts(&self, columns: usize) -> Parts {
        let groups = columns / self.group;
        let scales = groups / self.shared() * 2 * MR;
        let multipliers = if self.multiplied { groups * MR } else { 0 };
        let (minimums, minimum_multipliers) = if self.shift.is_none() {
            (scales, multipliers)
        } else {
            (0, 0)
        };
        Parts {
            codes: columns / STEP * 32 * self.bits,
            scales,
            multipliers,
            minimums,
            minimum_multipliers,
        }
    }

    /// Bytes of a K-panel of so many columns.
    pub fn k_panel_bytes(&self, columns: usize) -> usize {
        self.parts(columns).total() * self.row_groups()
    }
}

impl<'a> KPanel<'a> {
    fn new(format: Format, columns: Range<usize>, mut bytes: &'a [u8]) -> Self {
        let parts = format.parts(columns.len());
        let mut part = |length: usize| {
            let (part, rest) = bytes.split_at(format.row_groups() * length);
            bytes = rest;
            part
        };
        let all = RowGroup {
            codes: part(parts.codes),
            bits: format.bits,
            shared: format.shared(),
            scales: part(parts.scales).as_chunks().0,
            multipliers: part(parts.multipliers).as_chunks().0,
            minimums: part(parts.minimums).as_chunks().0,
            minimum_multipliers: part(parts.minimum_multipliers).as_chunks().0,
        };
        KPanel {
            format,
            first: columns.start,
            columns: columns.len(),
            parts,
            all,
        }
    }

    /// Its columns, of those of the matrix.
    pub fn columns(&self) -> Range<usize> {
        self.first..self.first + self.columns
    }

    /// Whether multipliers are applied to the integers of such a panel, see [`super::contract`].
    pub fn in_spans(&self, panel: &Panel<'_>) -> bool {
        self.format.in_spans(panel.group)
    }

    /// How its runs follow from the groups of weights and activations.
    pub fn runs(&self, panel: &Panel<'_>) -> Runs {
        Runs::new(self.columns, self.format.group, panel.group)
    }

    /// Row group `index`.
    pub fn row_group(&self, index: usize) -> RowGroup<'a> {
        self.row_groups(index..index + 1)
    }

    /// Several row groups, the parts of each kind one behind the other.
    pub fn row_groups(&self, groups: Range<usize>) -> RowGroup<'a> {
        let KPanel { parts, all, .. } = self;
        let part = |length: usize| groups.start * length..groups.end * length;
        RowGroup {
            codes: &all.codes[part(parts.codes)],
            scales: &all.scales[part(parts.scales / (2 * MR))],
            multipliers: &all.multipliers[part(parts.multipliers / MR)],
            minimums: &all.minimums[part(parts.minimums / (2 * MR))],
            minimum_multipliers: &all.minimum_multipliers[part(parts.minimum_multipliers / MR)],
            ..*all
        }
    }
}

impl RowGroup<'_> {
    /// The stored code at `row`, `column`.
    pub fn code(&self, row: usize, column: usize) -> u8 {
        let step = &self.codes[column / STEP * 32 * self.bits..];
        let (dword, lane) = (column % STEP / 4, 4 * row + column % 4);
        let two = |plane: &[u8]| plane[lane] >> (2 * dword) & 3;
        let four = || step[dword / 2 * 64 + lane] >> (dword % 2 * 4) & 15;
        match self.bits {
            2 => two(step),
            4 => four(),
            6 => four() | two(&step[128..]) << 4,
            _ => step[64 * dword + lane],
        }
    }

    /// The multipliers that sums of activations meet: those of the minimums, where the matrix has minimums.
    pub fn offset_multipliers(&self) -> &[[u8; MR]] {
        match self.minimums {
            [] => self.multipliers,
            _ => self.minimum_multipliers,
        }
    }

    /// 16 f16, and the multipliers that make scales of them, where there are any: those of group `group`.
    #[inline(always)]
    pub fn factors(&self, group: usize) -> (&[u8; 2 * MR], Option<&[u8; MR]>) {
        match self.multipliers.get(group) {
            None => (&self.scales[group], None),
            multipliers => (&self.scales[group >> self.shared.trailing_zeros()], multipliers),
        }
    }

    /// The scale of group `group` of `row`.
    #[inline(always)]
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        factor(self.scales, self.multipliers, self.shared, row, group)
    }

    /// The minimum of group `group` of `row`, in a matrix that has minimums.
    #[inline(always)]
    pub fn minimum(&self, row: usize, group: usize) -> f32 {
        factor(self.minimums, self.minimum_multipliers, self.shared, row, group)
    }
}

#[inline(always)]
fn factor(scales: &[[u8; 2 * MR]], multipliers: &[[u8; MR]], shared: usize, row: usize, group: usize) -> f32 {
    let scale = f16::from_le_bytes(scales[group / shared].as_chunks().0[row]).to_f32();
    if multipliers.is_empty() {
        scale
    } else {
        scale * f32::from(multipliers[group][row] as i8)
    }
}

impl Parts {
    fn total(self) -> usize {
        self.codes + self.scales + self.multipliers + self.minimums + self.minimum_multipliers
    }
}
