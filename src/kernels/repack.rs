//! From the blocks of a file to the packed layout: a scan of all factors finds the layout, then every row group is
//! written.

use super::contract::{MR, STEP};
use super::memory::Region;
use super::packed::{Format, MAX_GROUP, Packed, k_panels};
use crate::simd::{Lanes, Level, Work};
use half::f16;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Pack `rows` rows of whole blocks of `S`.
pub(super) fn repack<S: Source>(rows: usize, columns: usize, bytes: &[u8]) -> std::io::Result<Packed> {
    let row_bytes = columns / S::BLOCK * S::BYTES;
    let scan = bytes
        .par_chunks_exact(row_bytes.max(1))
        .map(Scan::of_row::<S>)
        .reduce(Scan::default, Scan::join);
    let group = std::iter::successors(Some(MAX_GROUP), |group| Some(group / 2))
        .find(|&group| group <= scan.merge.max(S::GROUP) && columns.is_multiple_of(group))
        .unwrap_or(S::GROUP);
    let format = Format {
        rows,
        bits: S::BITS,
        shift: if scan.ternary { S::SHIFT.or(Some(0)) } else { S::SHIFT },
        group,
        multiplied: !scan.plain,
        ternary: false,
    };
    let length = k_panels(columns)
        .map(|columns| format.k_panel_bytes(columns.len()))
        .sum();
    let mut packed = Packed {
        format,
        columns,
        region: Region::zeroed(length)?,
    };
    let below_3 = packed.fill::<S>(bytes, row_bytes);
    packed.format.ternary = below_3 && format.shift == Some(0);
    Ok(packed)
}

/// The factors of a group as stored: scale = d * multiplier, minimum = dmin * minimum_multiplier.
///
/// All in one word, because packing compares those of every group with its neighbours'.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Factors(u64);

impl Factors {
    pub fn new(d: [u8; 2], multiplier: u8, dmin: [u8; 2], minimum_multiplier: u8) -> Factors {
        let [a, b, c, e] = [d[0], d[1], dmin[0], dmin[1]];
        Factors(u64::from_le_bytes([a, b, multiplier, 0, c, e, minimum_multiplier, 0]))
    }

    /// A scale without multiplier and minimum.
    pub fn plain(d: [u8; 2]) -> Factors {
        Factors::new(d, 1, [0; 2], 0)
    }

    fn d(self) -> [u8; 2] {
        (self.0 as u16).to_le_bytes()
    }

    fn multiplier(self) -> u8 {
        (self.0 >> 16) as u8
    }

    fn dmin(self) -> [u8; 2] {
        ((self.0 >> 32) as u16).to_le_bytes()
    }

    fn minimum_multiplier(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// The minimum is the scale, so code 1 means 0.
    fn ternary(self) -> bool {
        self.0 as u32 == (self.0 >> 32) as u32
    }

    /// The scale, where it is an f16.
    fn as_f16(self) -> Option<f16> {
        if self.multiplier() == 1 {
            return Some(f16::from_le_bytes(self.d()));
        }
        let scale = f16::from_le_bytes(self.d()).to_f32() * f32::from(self.multiplier() as i8);
        let rounded = f16::from_f32(scale);
        (rounded.to_f32().to_bits() == scale.to_bits()).then_some(rounded)
    }
}

/// A block type as the packer reads it.
///
/// What is called for each block is to be `#[inline(always)]`, see [`Work::run`].
pub(super) trait Source: Send + Sync {
    const BLOCK: usize;
    const BYTES: usize;
    /// Weights that share factors.
    const GROUP: usize;
    const BITS: usize;
    /// As [`KPanel::shift`]; None: the type has minimums.
    const SHIFT: Option<u32>;
    /// A scale is an f16 times a multiplier.
    const MULTIPLIED: bool = false;

    /// Put the codes of a block into lane `lane` of its steps, as [`Source::finish`] wants them.
    fn write(block: &[u8], lane: usize, steps: &mut [u8]);

    /// Turn what `write` left of all lanes of a block into codes: what can be done to whole vectors is done here.
    fn finish(_steps: &mut [u8]) {}

    /// Whether the factors of a block are known to be those of its first group.
    fn uniform(_block: &[u8]) -> bool {
        Self::BLOCK == Self::GROUP
    }

    /// The factors of group `group` of a block.
    fn factors(block: &[u8], group: usize) -> Factors;
}

/// What all rows of a matrix have in common.
#[derive(Clone, Copy)]
pub(super) struct Scan {
    /// Factors are equal in every aligned run of this many columns.
    merge: usize,
    /// Every scale is an f16, and there are no minimums to keep.
    plain: bool,
    /// Every group is ternary.
    ternary: bool,
}

impl Default for Scan {
    fn default() -> Scan {
        Scan {
            merge: MAX_GROUP,
            plain: true,
            ternary: true,
        }
    }
}

impl Scan {
    fn join(self, other: Scan) -> Scan {
        Scan {
            merge: self.merge.min(other.merge),
            plain: self.plain && other.plain,
            ternary: self.ternary && other.ternary,
        }
    }

    /// Whether nothing in the factors of more blocks can change what was found.
    fn done<S: Source>(&self) -> bool {
        self.merge <= S::GROUP && S::SHIFT.is_some() && !S::MULTIPLIED
    }

    /// Factors A A A A B B C C of groups of 16 columns: `merge` is 256 to begin with; the B at column 64 halves it to
    /// 64, the C at column 96 to 32.
    fn of_row<S: Source>(row: &[u8]) -> Scan {
        let mut scan = Scan {
            ternary: S::SHIFT.is_none(),
            ..Scan::default()
        };
        let (mut first, mut last) = (None, None);
        for (i, block) in row.chunks_exact(S::BYTES).enumerate() {
            if scan.done::<S>() {
                break;
            }
            let groups = match S::uniform(block) {
                true => 1, // A block begins a run of any length, and the rest of it equals its first group.
                false => S::BLOCK / S::GROUP,
            };
            for group in 0..groups {
                let this = Some(S::factors(block, group));
                if this != last {
                    scan.plain = scan.plain && this.and_then(Factors::as_f16).is_some();
                    scan.ternary &= this.is_some_and(Factors::ternary);
                    last = this;
                }
                // The first of an aligned run of `merge` (a power of two) is what the others must equal; where one
                // does not, the run is halved until it begins here.
                let column = i * S::BLOCK + group * S::GROUP;
                while column & (scan.merge - 1) != 0 && this != first {
                    scan.merge /= 2;
                }
                if column & (scan.merge - 1) == 0 {
                    first = this;
                }
            }
        }
        scan.plain &= S::SHIFT.is_some() || scan.ternary;
        scan
    }
}

/// One row group being written.
struct RowGroupMut<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [u8],
    multipliers: &'a mut [u8],
    minimums: &'a mut [u8],
    minimum_multipliers: &'a mut [u8],
}

impl Packed {
    /// Write everything; returns whether every stored code is 0, 1 or 2.
    fn fill<S: Source>(&mut self, bytes: &[u8], row_bytes: usize) -> bool {
        let Packed { format, columns, .. } = *self;
        let level = Level::widest();
        let mut rest: &mut [u8] = &mut self.region;
        let mut below_3 = S::BITS == 2;
        for columns in k_panels(columns) {
            let k_panel = rest
                .split_off_mut(..format.k_panel_bytes(columns.len()))
                .expect("the region was made for all k_panels");
            let blocks = columns.start / S::BLOCK * S::BYTES..columns.end / S::BLOCK * S::BYTES;
            below_3 &= format
                .split(k_panel, columns.len())
                .into_par_iter()
                .zip(bytes.par_chunks((MR * row_bytes).max(1)))
                .map(|(to, rows)| {
                    level.run(WriteRowGroup::<S> {
                        rows,
                        row_bytes,
                        blocks: blocks.clone(),
                        format,
                        to,
                        source: PhantomData,
                    })
                })
                .reduce(|| true, |a, b| a & b);
        }
        below_3
    }
}

/// Write the blocks `blocks` (in bytes) of up to 16 rows.
struct WriteRowGroup<'a, S> {
    rows: &'a [u8],
    row_bytes: usize,
    blocks: Range<usize>,
    format: Format,
    to: RowGroupMut<'a>,
    source: PhantomData<S>,
}

impl<S: Source> Work for WriteRowGroup<'_, S> {
    /// Whether every stored code of 2 bits is 0, 1 or 2.
    type Output = bool;

    #[inline(always)]
    fn run(mut self, _: impl Lanes) -> bool {
        let rows = self.rows.chunks_exact(self.row_bytes);
        let rows = rows.map(|row| &row[self.blocks.clone()]);
        self.to.write_codes::<S>(rows.clone());
        for (lane, row) in rows.enumerate() {
            self.to.write_factors::<S>(lane, row, &self.format);
        }
        // The bits of a 3 are both set.
        let mut both = 0;
        for codes in self.to.codes.as_chunks().0 {
            let codes = u64::from_ne_bytes(*codes);
            both |= codes & codes >> 1;
        }
        both & 0x5555_5555_5555_5555 == 0
    }
}

impl Format {
    /// The row groups of a K-panel.
    fn split<'a>(&self, mut k_panel: &'a mut [u8], columns: usize) -> Vec<RowGroupMut<'a>> {
        let parts = self.parts(columns);
        let mut part = |length| take_parts(&mut k_panel, self.row_groups(), length).into_iter();
        let (codes, scales, multipliers) = (part(parts.codes), part(parts.scales), part(parts.multipliers));
        let (minimums, minimum_multipliers) = (part(parts.minimums), part(parts.minimum_multipliers));
        codes
            .zip(scales)
            .zip(multipliers)
            .zip(minimums)
            .zip(minimum_multipliers)
            .map(
                |((((codes, scales), multipliers), minimums), minimum_multipliers)| RowGroupMut {
                    codes,
                    scales,
                    multipliers,
                    minimums,
                    minimum_multipliers,
                },
            )
            .collect()
    }
}

/// The next `count` parts of `length` bytes.
fn take_parts<'a>(rest: &mut &'a mut [u8], count: usize, length: usize) -> Vec<&'a mut [u8]> {
    let mut take = || {
        let (part, tail) = std::mem::take(rest).split_at_mut(length);
        *rest = tail;
        part
    };
    (0..count).map(|_| take()).collect()
}

impl RowGroupMut<'_> {
    /// Block by block, all rows of each, so that what is written stays in the first-level cache until it is whole.
    #[inline(always)]
    fn write_codes<'a, S: Source>(&mut self, rows: impl Iterator<Item = &'a [u8]> + Clone) {
        let blocks = self.codes.chunks_exact_mut(S::BLOCK / STEP * 32 * S::BITS);
        for (i, steps) in blocks.enumerate() {
            for (lane, row) in rows.clone().enumerate() {
                S::write(&row[i * S::BYTES..][..S::BYTES], lane, steps);
            }
            S::finish(steps);
        }
    }

    #[inline(always)]
    fn write_factors<S: Source>(&mut self, lane: usize, row: &[u8], format: &Format) {
        let (group, shared) = (format.group, format.shared());
        let groups = row.len() / S::BYTES * S::BLOCK / group;
        for i in 0..groups {
            let column = i * group;
            let block = &row[column / S::BLOCK * S::BYTES..][..S::BYTES];
            let factors = S::factors(block, column % S::BLOCK / S::GROUP);
            let d = match self.multipliers.is_empty() {
                true => factors.as_f16().unwrap_or_default().to_le_bytes(),
                false => factors.d(),
            };
            let f16_at = i / shared * 2 * MR + 2 * lane;
            self.scales[f16_at..][..2].copy_from_slice(&d);
            if !self.multipliers.is_empty() {
                self.multipliers[i * MR + lane] = factors.multiplier();
            }
            if !self.minimums.is_empty() {
                self.minimums[f16_at..][..2].copy_from_slice(&factors.dmin());
                self.minimum_multipliers[i * MR + lane] = factors.minimum_multiplier();
            }
        }
    }
}
