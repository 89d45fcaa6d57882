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
//! Long rows are cut into strips of 4096 columns, one behind the other in memory: the activations of a strip stay in
//! the first-level cache while all its weights stream by. (Activations that a row of 8192 weights pushes out of that
//! cache cost a fifth of the speed of memory.)
//!
//! Neighbouring blocks of a file whose scales have equal bits become one group of up to 256 weights: fewer bytes to
//! read and fewer conversions, and exact.

use super::kernel::{ROWS, STEP};
use super::memory::Region;
use formats::block::BlockType;
use half::f16;
use rayon::prelude::*;
use std::ops::Range;

/// The largest group that scales are merged into, and the span of an f16 that has multipliers.
const MAX_GROUP: usize = 256;

/// Columns of a strip; a multiple of every group and block.
pub(super) const STRIP: usize = 4096;

/// A matrix in the packed layout.
pub(super) struct Packed {
    format: Format,
    columns: usize,
    region: Region,
}

/// What all strips of a matrix have in common.
#[derive(Clone, Copy)]
struct Format {
    rows: usize,
    bits: usize,
    shift: Option<u32>,
    group: usize,
    multiplied: bool,
    ternary: bool,
}

/// All rows of up to 4096 columns.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    format: Format,
    first: usize,
    columns: usize,
    parts: Parts,
    /// The parts of all row groups.
    all: RowGroup<'a>,
}

/// Sizes in bytes of the parts of one row group.
#[derive(Clone, Copy)]
struct Parts {
    codes: usize,
    scales: usize,
    multipliers: usize,
    minimums: usize,
    minimum_multipliers: usize,
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
    pub scales: &'a [[u8; 2 * ROWS]],
    /// 16 i8 for each group.
    pub multipliers: &'a [[u8; ROWS]],
    /// As `scales`.
    pub minimums: &'a [[u8; 2 * ROWS]],
    /// As `multipliers`.
    pub minimum_multipliers: &'a [[u8; ROWS]],
}

impl Packed {
    pub fn rows(&self) -> usize {
        self.format.rows
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bits of a stored code: 2, 4, 6 or 8.
    pub fn bits(&self) -> usize {
        self.format.bits
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.format.group
    }

    /// Whether every stored code is 0, 1 or 2, and 1 means 0.
    pub fn ternary(&self) -> bool {
        self.format.ternary
    }

    /// Bytes that one product reads.
    pub fn bytes(&self) -> usize {
        self.region.len()
    }

    /// The strips from left to right.
    pub fn strips(&self) -> impl Iterator<Item = Strip<'_>> {
        let mut rest: &[u8] = &self.region;
        strips(self.columns).map(move |columns| {
            let (bytes, tail) = rest.split_at(self.format.strip_bytes(columns.len()));
            rest = tail;
            Strip::new(self.format, columns, bytes)
        })
    }
}

/// The columns of each strip.
fn strips(columns: usize) -> impl Iterator<Item = Range<usize>> {
    (0..columns)
        .step_by(STRIP)
        .map(move |first| first..columns.min(first + STRIP))
}

impl Format {
    /// Number of row groups; the last may have fewer than 16 rows that count.
    fn row_groups(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Groups that share an f16.
    fn shared(&self) -> usize {
        if self.multiplied { MAX_GROUP / self.group } else { 1 }
    }

    /// The parts of a row group of so many columns.
    fn parts(&self, columns: usize) -> Parts {
        let groups = columns / self.group;
        let scales = groups / self.shared() * 2 * ROWS;
        let multipliers = if self.multiplied { groups * ROWS } else { 0 };
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

    fn strip_bytes(&self, columns: usize) -> usize {
        self.parts(columns).total() * self.row_groups()
    }
}

impl<'a> Strip<'a> {
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
        Strip {
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

    /// Bits of a stored code: 2, 4, 6 or 8.
    pub fn bits(&self) -> usize {
        self.format.bits
    }

    /// Columns that share a scale.
    pub fn group(&self) -> usize {
        self.format.group
    }

    /// A stored code of 2^shift means 0. None where there are minimums instead.
    pub fn shift(&self) -> Option<u32> {
        self.format.shift
    }

    /// Whether a scale is an f16 per 256 columns times a multiplier; where there are minimums, it is.
    pub fn multiplied(&self) -> bool {
        self.format.multiplied
    }

    /// Row group `index`.
    pub fn row_group(&self, index: usize) -> RowGroup<'a> {
        fn part<T>(all: &[T], index: usize, length: usize) -> &[T] {
            &all[index * length..][..length]
        }
        let Strip { parts, all, .. } = self;
        RowGroup {
            codes: part(all.codes, index, parts.codes),
            scales: part(all.scales, index, parts.scales / (2 * ROWS)),
            multipliers: part(all.multipliers, index, parts.multipliers / ROWS),
            minimums: part(all.minimums, index, parts.minimums / (2 * ROWS)),
            minimum_multipliers: part(all.minimum_multipliers, index, parts.minimum_multipliers / ROWS),
            ..*all
        }
    }
}

impl RowGroup<'_> {
    /// The stored code at `row`, `column`.
    pub fn code(&self, row: usize, column: usize) -> u8 {
        let step = &self.codes[column / STEP * 32 * self.bits..];
        let (quad, lane) = (column % STEP / 4, 4 * row + column % 4);
        let two = |plane: &[u8]| plane[lane] >> (2 * quad) & 3;
        let four = || step[quad / 2 * 64 + lane] >> (quad % 2 * 4) & 15;
        match self.bits {
            2 => two(step),
            4 => four(),
            6 => four() | two(&step[128..]) << 4,
            _ => step[64 * quad + lane],
        }
    }

    /// The multipliers that sums of activations meet: those of the minimums, where the matrix has minimums.
    pub fn offset_multipliers(&self) -> &[[u8; ROWS]] {
        match self.minimums {
            [] => self.multipliers,
            _ => self.minimum_multipliers,
        }
    }

    /// The scale of group `group` of `row`.
    pub fn scale(&self, row: usize, group: usize) -> f32 {
        factor(self.scales, self.multipliers, self.shared, row, group)
    }

    /// The minimum of group `group` of `row`, where the matrix has minimums.
    #[cfg(test)]
    pub fn minimum(&self, row: usize, group: usize) -> Option<f32> {
        (!self.minimums.is_empty()).then(|| factor(self.minimums, self.minimum_multipliers, self.shared, row, group))
    }
}

fn factor(scales: &[[u8; 2 * ROWS]], multipliers: &[[u8; ROWS]], shared: usize, row: usize, group: usize) -> f32 {
    let scale = f16::from_le_bytes(scales[group / shared].as_chunks().0[row]).to_f32();
    if multipliers.is_empty() {
        scale
    } else {
        scale * f32::from(multipliers[group][row] as i8)
    }
}

/// Why a matrix cannot be packed.
#[derive(Debug)]
pub(super) enum PackError {
    /// No integer kernel reads this type.
    Unsupported,
    /// The system has no memory for it.
    Memory(std::io::Error),
}

/// Pack a matrix of any integer type, in parallel. `bytes` holds `rows` rows of whole blocks.
pub(super) fn pack(ty: BlockType, rows: usize, columns: usize, bytes: &[u8]) -> Result<Packed, PackError> {
    match ty {
        BlockType::TQ2_0 => Tq2_0::pack(rows, columns, bytes),
        BlockType::TQ1_0 => Tq1_0::pack(rows, columns, bytes),
        BlockType::Q2_0 => Q2_0::pack(rows, columns, bytes),
        BlockType::Q2_K => Q2_K::pack(rows, columns, bytes),
        BlockType::Q4_0 if bytes.par_chunks(18 << 12).all(TernaryQ4_0::fits) => TernaryQ4_0::pack(rows, columns, bytes),
        BlockType::Q4_0 => Q4_0::pack(rows, columns, bytes),
        BlockType::Q4_K => Q4_K::pack(rows, columns, bytes),
        BlockType::Q6_K => Q6_K::pack(rows, columns, bytes),
        BlockType::Q8_0 => Q8_0::pack(rows, columns, bytes),
        _ => return Err(PackError::Unsupported),
    }
    .map_err(PackError::Memory)
}

/// The factors of a group as stored: scale = d * multiplier, minimum = dmin * minimum_multiplier.
///
/// All in one word, because packing compares those of every group with its neighbours'.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Factors(u64);

impl Factors {
    fn new(d: [u8; 2], multiplier: u8, dmin: [u8; 2], minimum_multiplier: u8) -> Factors {
        let [a, b, c, e] = [d[0], d[1], dmin[0], dmin[1]];
        Factors(u64::from_le_bytes([a, b, multiplier, 0, c, e, minimum_multiplier, 0]))
    }

    /// A scale without multiplier and minimum.
    fn plain(d: [u8; 2]) -> Factors {
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
#[allow(clippy::upper_case_acronyms, non_camel_case_types)]
trait Source {
    const BLOCK: usize;
    const BYTES: usize;
    /// Weights that share factors.
    const GROUP: usize;
    const BITS: usize;
    /// As [`Strip::shift`]; None: the type has minimums.
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

    /// Whether nothing in the factors of more blocks can change this survey.
    fn settled(survey: &Survey) -> bool {
        survey.merge <= Self::GROUP && Self::SHIFT.is_some() && !Self::MULTIPLIED
    }

    /// The factors of group `group` of a block.
    fn factors(block: &[u8], group: usize) -> Factors;

    fn pack(rows: usize, columns: usize, bytes: &[u8]) -> std::io::Result<Packed> {
        let row_bytes = columns / Self::BLOCK * Self::BYTES;
        let survey = bytes
            .par_chunks_exact(row_bytes.max(1))
            .map(Survey::of_row::<Self>)
            .reduce(Survey::default, Survey::join);
        let group = std::iter::successors(Some(MAX_GROUP), |group| Some(group / 2))
            .find(|&group| group <= survey.merge.max(Self::GROUP) && columns.is_multiple_of(group))
            .unwrap_or(Self::GROUP);
        let format = Format {
            rows,
            bits: Self::BITS,
            shift: if survey.ternary {
                Self::SHIFT.or(Some(0))
            } else {
                Self::SHIFT
            },
            group,
            multiplied: !survey.plain,
            ternary: false,
        };
        let length = strips(columns).map(|columns| format.strip_bytes(columns.len())).sum();
        let mut packed = Packed {
            format,
            columns,
            region: Region::zeroed(length)?,
        };
        let below_3 = packed.fill::<Self>(bytes, row_bytes);
        packed.format.ternary = below_3 && format.shift == Some(0);
        Ok(packed)
    }
}

/// What all rows of a matrix have in common.
#[derive(Clone, Copy)]
struct Survey {
    /// Factors are equal in every aligned run of this many columns.
    merge: usize,
    /// Every scale is an f16, and there are no minimums to keep.
    plain: bool,
    /// Every group is ternary.
    ternary: bool,
}

impl Default for Survey {
    fn default() -> Survey {
        Survey {
            merge: MAX_GROUP,
            plain: true,
            ternary: true,
        }
    }
}

impl Survey {
    fn join(self, other: Survey) -> Survey {
        Survey {
            merge: self.merge.min(other.merge),
            plain: self.plain && other.plain,
            ternary: self.ternary && other.ternary,
        }
    }

    fn of_row<S: Source + ?Sized>(row: &[u8]) -> Survey {
        let mut survey = Survey {
            ternary: S::SHIFT.is_none(),
            ..Survey::default()
        };
        let (mut first, mut last) = (None, None);
        for (i, block) in row.chunks_exact(S::BYTES).enumerate() {
            if S::settled(&survey) {
                break;
            }
            let groups = match S::uniform(block) {
                true => 1, // A block begins a run of any length, and the rest of it equals its first group.
                false => S::BLOCK / S::GROUP,
            };
            for group in 0..groups {
                let this = Some(S::factors(block, group));
                if this != last {
                    survey.plain = survey.plain && this.and_then(Factors::as_f16).is_some();
                    survey.ternary &= this.is_some_and(Factors::ternary);
                    last = this;
                }
                // The first of an aligned run of `merge` (a power of two) is what the others must equal; where one
                // does not, the run is halved until it begins here.
                let column = i * S::BLOCK + group * S::GROUP;
                while column & (survey.merge - 1) != 0 && this != first {
                    survey.merge /= 2;
                }
                if column & (survey.merge - 1) == 0 {
                    first = this;
                }
            }
        }
        survey.plain &= S::SHIFT.is_some() || survey.ternary;
        survey
    }
}

impl Parts {
    fn total(self) -> usize {
        self.codes + self.scales + self.multipliers + self.minimums + self.minimum_multipliers
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
    fn fill<S: Source + ?Sized>(&mut self, bytes: &[u8], row_bytes: usize) -> bool {
        let Packed { format, columns, .. } = *self;
        let mut rest: &mut [u8] = &mut self.region;
        let mut below_3 = S::BITS == 2;
        for columns in strips(columns) {
            let strip = rest
                .split_off_mut(..format.strip_bytes(columns.len()))
                .expect("the region was made for all strips");
            let blocks = columns.start / S::BLOCK * S::BYTES..columns.end / S::BLOCK * S::BYTES;
            below_3 &= format
                .split(strip, columns.len())
                .into_par_iter()
                .zip(bytes.par_chunks((ROWS * row_bytes).max(1)))
                .map(|(mut to, rows)| {
                    let rows = rows.chunks_exact(row_bytes).map(|row| &row[blocks.clone()]);
                    to.write_codes::<S>(rows.clone());
                    for (lane, row) in rows.enumerate() {
                        to.write_factors::<S>(lane, row, &format);
                    }
                    // The bits of a 3 are both set.
                    let both = |any: u64, codes: &[u8; 8]| {
                        let codes = u64::from_ne_bytes(*codes);
                        any | codes & codes >> 1
                    };
                    let words = to.codes.as_chunks().0;
                    words.iter().fold(0, both) & 0x5555_5555_5555_5555 == 0
                })
                .reduce(|| true, |a, b| a & b);
        }
        below_3
    }
}

impl Format {
    /// The row groups of a strip.
    fn split<'a>(&self, mut strip: &'a mut [u8], columns: usize) -> Vec<RowGroupMut<'a>> {
        let parts = self.parts(columns);
        let mut part = |length| take_parts(&mut strip, self.row_groups(), length).into_iter();
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
    fn write_codes<'a, S: Source + ?Sized>(&mut self, rows: impl Iterator<Item = &'a [u8]> + Clone) {
        let blocks = self.codes.chunks_exact_mut(S::BLOCK / STEP * 32 * S::BITS);
        for (i, steps) in blocks.enumerate() {
            for (lane, row) in rows.clone().enumerate() {
                S::write(&row[i * S::BYTES..][..S::BYTES], lane, steps);
            }
            S::finish(steps);
        }
    }

    fn write_factors<S: Source + ?Sized>(&mut self, lane: usize, row: &[u8], format: &Format) {
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
            let f16_at = i / shared * 2 * ROWS + 2 * lane;
            self.scales[f16_at..][..2].copy_from_slice(&d);
            if !self.multipliers.is_empty() {
                self.multipliers[i * ROWS + lane] = factors.multiplier();
            }
            if !self.minimums.is_empty() {
                self.minimums[f16_at..][..2].copy_from_slice(&factors.dmin());
                self.minimum_multipliers[i * ROWS + lane] = factors.minimum_multiplier();
            }
        }
    }
}

/// Put one row's 32-bit word into vector `vector` of a step.
#[inline(always)]
fn write_word(step: &mut [u8], vector: usize, lane: usize, word: u32) {
    step[64 * vector + 4 * lane..][..4].copy_from_slice(&word.to_le_bytes());
}

/// Put the codes of one row, `BITS` bits in a byte each, into its steps.
#[inline(always)]
fn write_steps<const BITS: usize>(codes: &[u8], lane: usize, steps: &mut [u8]) {
    let codes = codes.as_chunks::<STEP>().0.iter();
    for (codes, step) in codes.zip(steps.chunks_exact_mut(32 * BITS)) {
        let quad = |l: usize| u32::from_le_bytes(codes.as_chunks().0[l]);
        let low = |l: usize| quad(l) & 0x0F0F_0F0F;
        let high = |l: usize| quad(l) >> 4 & 0x0303_0303;
        match BITS {
            2 => write_word(step, 0, lane, quad(0) | quad(1) << 2 | quad(2) << 4 | quad(3) << 6),
            _ => {
                write_word(step, 0, lane, low(0) | low(1) << 4);
                write_word(step, 1, lane, low(2) | low(3) << 4);
                if BITS == 6 {
                    let word = high(0) | high(1) << 2 | high(2) << 4 | high(3) << 6;
                    write_word(step, 2, lane, word);
                }
            }
        }
    }
}

/// Exchange the bits `mask << by` of `a` with the bits `mask` of `b`.
#[inline(always)]
fn exchange(a: &mut u32, b: &mut u32, by: u32, mask: u32) {
    let differ = (*a >> by ^ *b) & mask;
    *b ^= differ;
    *a ^= differ << by;
}

/// Put bytes whose plane p holds the codes of the p-th 32 columns (TQ2_0, Q2_K) where their words are to be:
/// word l of each 16 bytes where plane l will be.
#[inline(always)]
fn write_planes(bytes: &[u8], lane: usize, steps: &mut [u8]) {
    let halves = bytes.as_chunks::<32>().0.iter();
    for (bytes, steps) in halves.zip(steps.as_chunks_mut::<512>().0) {
        for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            write_word(steps, i % 4 * 2 + i / 4, lane, u32::from_le_bytes(*word));
        }
    }
}

/// What `write_planes` left: word l and plane p change places.
#[inline(always)]
fn finish_planes(steps: &mut [u8]) {
    for steps in steps.as_chunks_mut::<512>().0 {
        for at in (0..128).step_by(4) {
            let mut words: [u32; 4] = std::array::from_fn(|plane| {
                u32::from_le_bytes(*steps[128 * plane + at..].first_chunk().expect("four bytes"))
            });
            let [a, b, c, d] = &mut words;
            exchange(a, c, 4, 0x0F0F_0F0F);
            exchange(b, d, 4, 0x0F0F_0F0F);
            exchange(a, b, 2, 0x3333_3333);
            exchange(c, d, 2, 0x3333_3333);
            for (plane, word) in words.into_iter().enumerate() {
                steps[128 * plane + at..][..4].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// Put bytes of four consecutive codes (Q2_0) where their words are to be.
#[inline(always)]
fn write_bytes(bytes: &[u8], lane: usize, steps: &mut [u8]) {
    for (i, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
        write_word(steps, i, lane, u32::from_le_bytes(*word));
    }
}

/// What `write_bytes` left: in each word, byte and place change places.
#[inline(always)]
fn finish_bytes(steps: &mut [u8]) {
    for bytes in steps.as_chunks_mut::<4>().0 {
        let word = u32::from_le_bytes(*bytes);
        let differ = (word ^ word >> 12) & 0x0000_F0F0;
        let word = word ^ differ ^ differ << 12;
        let differ = (word ^ word >> 6) & 0x00CC_00CC;
        *bytes = (word ^ differ ^ differ << 6).to_le_bytes();
    }
}

/// The four 2-bit planes of 32 bytes: `codes[32 p + m] = bytes[m] >> 2p & 3` (Q6_K).
#[inline(always)]
fn planes_of_32(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for (plane, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * plane) & 3;
            }
        }
    }
}

/// Low nibbles, then high nibbles (Q4_0).
#[inline(always)]
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

fn two(block: &[u8], at: usize) -> [u8; 2] {
    [block[at], block[at + 1]]
}

/// 256 weights: 64 bytes of planes, d. (formats::block::tq2_0)
struct Tq2_0;
impl Source for Tq2_0 {
    const BLOCK: usize = 256;
    const BYTES: usize = 66;
    const GROUP: usize = 256;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_planes(&block[..64], lane, steps);
    }
    fn finish(steps: &mut [u8]) {
        finish_planes(steps);
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 64))
    }
}

/// 256 weights: five base-3 digits in each of 48 bytes, four in each of 4 bytes, d. (formats::block::tq1_0)
struct Tq1_0;
impl Source for Tq1_0 {
    const BLOCK: usize = 256;
    const BYTES: usize = 54;
    const GROUP: usize = 256;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        let digits = |bytes: &[u8], codes: &mut [u8]| {
            let mut power = 1u8;
            for codes in codes.chunks_exact_mut(bytes.len()) {
                for (code, byte) in codes.iter_mut().zip(bytes) {
                    *code = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
                }
                power = power.wrapping_mul(3);
            }
        };
        digits(&block[..32], &mut codes[..160]);
        digits(&block[32..48], &mut codes[160..240]);
        digits(&block[48..52], &mut codes[240..]);
        write_steps::<2>(&codes, lane, steps);
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 52))
    }
}

/// 64 weights: d, four codes a byte. (formats::block::q2_0)
struct Q2_0;
impl Source for Q2_0 {
    const BLOCK: usize = 64;
    const BYTES: usize = 18;
    const GROUP: usize = 64;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_bytes(&block[2..18], lane, steps);
    }
    fn finish(steps: &mut [u8]) {
        finish_bytes(steps);
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// 256 weights: 16 bytes of 4-bit multipliers, 64 bytes of planes, d, dmin. (formats::block::q2_k)
#[allow(non_camel_case_types)]
struct Q2_K;
impl Source for Q2_K {
    const BLOCK: usize = 256;
    const BYTES: usize = 84;
    const GROUP: usize = 16;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = None;
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_planes(&block[16..80], lane, steps);
    }
    fn finish(steps: &mut [u8]) {
        finish_planes(steps);
    }
    fn uniform(block: &[u8]) -> bool {
        block[..16] == [block[0]; 16]
    }
    fn factors(block: &[u8], group: usize) -> Factors {
        let both = block[group];
        Factors::new(two(block, 80), both & 15, two(block, 82), both >> 4)
    }
}

/// 32 weights: d, low nibbles, high nibbles; code 8 means 0. (formats::block::q4_0)
struct Q4_0;
impl Source for Q4_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const SHIFT: Option<u32> = Some(3);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 32];
        nibbles(&block[2..18], &mut codes);
        write_steps::<4>(&codes, lane, steps);
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// Q4_0 whose codes are all 7, 8 or 9: the same in two bits.
struct TernaryQ4_0;
impl TernaryQ4_0 {
    /// Whether every code of these whole blocks is 7, 8 or 9.
    fn fits(blocks: &[u8]) -> bool {
        let fits = |nibble: u8| nibble.wrapping_sub(7) <= 2;
        blocks.as_chunks::<18>().0.iter().all(|block| {
            block[2..]
                .iter()
                .fold(true, |all, byte| all & fits(byte & 15) & fits(byte >> 4))
        })
    }
}
impl Source for TernaryQ4_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 18;
    const GROUP: usize = 32;
    const BITS: usize = 2;
    const SHIFT: Option<u32> = Some(0);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let words: [u32; 4] = std::array::from_fn(|l| u32::from_le_bytes(block[2..18].as_chunks().0[l]));
        for (nibble, step) in steps.as_chunks_mut::<64>().0.iter_mut().enumerate() {
            // No nibble is below 7, so nothing is borrowed from a neighbour.
            let quad = |l: usize| (words[l] >> (4 * nibble) & 0x0F0F_0F0F) - 0x0707_0707;
            write_word(step, 0, lane, quad(0) | quad(1) << 2 | quad(2) << 4 | quad(3) << 6);
        }
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}

/// 256 weights: d, dmin, 12 bytes of 6-bit multipliers, nibbles by runs of 64. (formats::block::q4_k)
#[allow(non_camel_case_types)]
struct Q4_K;
impl Source for Q4_K {
    const BLOCK: usize = 256;
    const BYTES: usize = 144;
    const GROUP: usize = 32;
    const BITS: usize = 4;
    const SHIFT: Option<u32> = None;
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        for (bytes, codes) in block[16..144].chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            nibbles(bytes, codes);
        }
        write_steps::<4>(&codes, lane, steps);
    }
    fn factors(block: &[u8], j: usize) -> Factors {
        let s = &block[4..16];
        let (multiplier, minimum_multiplier) = match j {
            0..4 => (s[j] & 63, s[j + 4] & 63),
            _ => (s[j + 4] & 15 | (s[j - 4] >> 6) << 4, s[j + 4] >> 4 | (s[j] >> 6) << 4),
        };
        Factors::new(two(block, 0), multiplier, two(block, 2), minimum_multiplier)
    }
}

/// 256 weights: 128 bytes of low nibbles, 64 bytes of high 2-bit planes, 16 i8 multipliers, d; code 32 means 0.
/// (formats::block::q6_k)
#[allow(non_camel_case_types)]
struct Q6_K;
impl Source for Q6_K {
    const BLOCK: usize = 256;
    const BYTES: usize = 210;
    const GROUP: usize = 16;
    const BITS: usize = 6;
    const SHIFT: Option<u32> = Some(5);
    const MULTIPLIED: bool = true;
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        let mut codes = [0; 256];
        planes_of_32(&block[128..192], &mut codes);
        for (low, codes) in block[..128].chunks_exact(64).zip(codes.chunks_exact_mut(128)) {
            for (l, low) in low.iter().enumerate() {
                codes[l] = codes[l] << 4 | low & 15;
                codes[64 + l] = codes[64 + l] << 4 | low >> 4;
            }
        }
        write_steps::<6>(&codes, lane, steps);
    }
    fn factors(block: &[u8], group: usize) -> Factors {
        Factors::new(two(block, 208), block[192 + group], [0; 2], 0)
    }
}

/// 32 weights: d, i8 codes; stored here as code + 128. (formats::block::q8_0)
struct Q8_0;
impl Source for Q8_0 {
    const BLOCK: usize = 32;
    const BYTES: usize = 34;
    const GROUP: usize = 32;
    const BITS: usize = 8;
    const SHIFT: Option<u32> = Some(7);
    fn write(block: &[u8], lane: usize, steps: &mut [u8]) {
        write_bytes(&block[2..34], lane, steps);
    }
    fn finish(steps: &mut [u8]) {
        steps.iter_mut().for_each(|code| *code ^= 0x80);
    }
    fn factors(block: &[u8], _: usize) -> Factors {
        Factors::plain(two(block, 0))
    }
}
