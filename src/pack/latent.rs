//! Latent weights as a source of ternary rows: a piece of rows is read, the scales of its groups are taken, and each
//! row is split, all by a [`Formula`].
//!
//! Groups are runs of the flattened row-major matrix that share a scale. Where they fill rows, a row's scales are taken
//! when it is split. Where they cross rows, the whole of every group is read with the piece, and the scales are taken
//! then. Groups that are longer than a piece are read by themselves, before anything else.

use std::ops::Range;

use rayon::prelude::*;

use super::PackError;
use super::numbers::{NotFinite, check_finite, not_finite, read_numbers, widen};
use super::source::{DeadZone, Input, LatentRow, TernaryRows};
use super::ternary::TernaryRow;
use crate::model::Stored;
use crate::simd::{Lanes, Level, Work};

/// The most weights that are added up in lanes. Longer groups are cut into parts of this many, whose sums are added in
/// order: the order of a sum is part of a formula's definition.
pub const LONGEST_SUM: usize = 1 << 16;

/// What a training scheme makes of latent weights that it reads in groups. All of it runs inside [`Level::run`], so
/// that each function is to be `#[inline(always)]`.
pub trait Formula: Send + Sync {
    /// What the scale of a group is made from, over `w`, no more than [`LONGEST_SUM`] weights of it. (weights,)
    ///
    /// NaN or infinite where a weight is, and only there.
    fn sum(&self, lanes: impl Lanes, w: &[f32]) -> f64;

    /// The scales of groups of `count` weights by their sums. `sums`, `scales`: (groups,).
    fn scales(&self, sums: &[f64], count: usize, scales: &mut [f32]);

    /// The codes of a row whose runs and scales `row` has; gives what its zeros are. `latent`: its `w` and `beside`.
    fn split(&self, lanes: impl Lanes, latent: &mut LatentRow, row: &mut TernaryRow) -> DeadZone;
}

/// A matrix of latent weights. (rows, columns)
pub struct Latent<'a, F> {
    /// What the checkpoint calls it; `.weight` follows.
    pub name: String,
    pub weight: Stored<'a>,
    /// A tensor beside the weights, with its last name: one number a weight, or one a row.
    pub beside: Option<(&'static str, Stored<'a>)>,
    /// Weights that share a scale.
    pub group_size: usize,
    pub formula: F,
    pub level: Level,
    /// The scales of all groups, where these are longer than a piece.
    long_scales: Option<Vec<f32>>,
}

impl<'a, F: Formula> Latent<'a, F> {
    /// Reads the weights only where a group is longer than a piece.
    ///
    /// # Errors
    /// Then, a file that cannot be read, or a number that is not finite.
    pub fn new(
        name: String,
        weight: Stored<'a>,
        beside: Option<(&'static str, Stored<'a>)>,
        group_size: usize,
        formula: F,
        level: Level,
    ) -> Result<Self, PackError> {
        let mut latent = Self {
            name,
            weight,
            beside,
            group_size,
            formula,
            level,
            long_scales: None,
        };
        if group_size > LONGEST_SUM {
            let groups = 0..weight.len().div_ceil(group_size);
            latent.long_scales = Some(groups.map(|group| latent.long_scale(group)).collect::<Result<_, _>>()?);
        }
        Ok(latent)
    }

    fn columns(&self) -> usize {
        self.weight.shape[1]
    }

    /// The scale of a group that is read part by part.
    fn long_scale(&self, group: usize) -> Result<f32, PackError> {
        let start = group * self.group_size;
        let end = (start + self.group_size).min(self.weight.len());
        let part_sum = |from: usize| {
            let part = from..(from + LONGEST_SUM).min(end);
            let (mut bytes, mut w) = (vec![], vec![0.0; part.len()]);
            read_numbers(self.weight, part, &mut bytes)?;
            let sum = self.level.run(SumOfBytes {
                latent: self,
                bytes: &bytes,
                w: &mut w,
            });
            sum.map_err(|found| self.not_finite(found.after(from)))
        };
        let starts: Vec<_> = (start..end).step_by(LONGEST_SUM).collect();
        let sums = starts
            .into_par_iter()
            .map(part_sum)
            .collect::<Result<Vec<_>, PackError>>()?;
        let (sum, mut scale) = (sums.into_iter().fold(0.0, |sum, part| sum + part), [0.0]);
        self.formula.scales(&[sum], end - start, &mut scale);
        Ok(scale[0])
    }

    /// Whether no group crosses from a row into the next.
    fn groups_fill_rows(&self) -> bool {
        self.columns().is_multiple_of(self.group_size)
    }

    /// Whether the scales of a row's groups are taken when it is split.
    fn takes_scales_by_row(&self) -> bool {
        self.long_scales.is_none() && self.groups_fill_rows()
    }

    fn not_finite(&self, found: NotFinite) -> PackError {
        not_finite(self.weight, &format!("{}.weight", self.name), found)
    }

    /// The numbers beside row `index` are finite.
    fn check_beside(&self, index: usize, beside: &[f32]) -> Result<(), PackError> {
        let (Some((part, stored)), Err(found)) = (self.beside, check_finite(beside)) else {
            return Ok(());
        };
        let name = format!("{}.{part}", self.name);
        Err(not_finite(stored, &name, found.after(index * stored.shape[1])))
    }
}

impl<F: Formula> TernaryRows for Latent<'_, F> {
    fn row_bytes(&self) -> usize {
        self.columns() * self.weight.number_bytes()
    }

    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError> {
        let columns = self.columns();
        let mut span = rows.start * columns..rows.end * columns;
        let groups = span.start / self.group_size..span.end.div_ceil(self.group_size);
        if self.long_scales.is_none() {
            span = groups.start * self.group_size..(groups.end * self.group_size).min(self.weight.len());
        }
        input.weights.first = span.start * self.weight.number_bytes();
        read_numbers(self.weight, span, &mut input.weights.data)?;
        if let Some((_, beside)) = self.beside {
            let width = beside.shape[1];
            input.beside.first = rows.start * width * beside.number_bytes();
            read_numbers(beside, rows.start * width..rows.end * width, &mut input.beside.data)?;
        }
        if self.long_scales.is_none() && !self.groups_fill_rows() {
            input.scales.first = groups.start;
            let scales = self.level.run(TakeScales { latent: self, input });
            scales.map_err(|found| self.not_finite(found))?;
        }
        Ok(())
    }

    fn row(&self, index: usize, input: &mut Input, row: &mut TernaryRow) -> Result<DeadZone, PackError> {
        let work = SplitRow {
            latent: self,
            index,
            input,
            row,
        };
        let dead_zone = self.level.run(work);
        let dead_zone = dead_zone.map_err(|found| self.not_finite(found.after(index * self.columns())))?;
        if row.scales.iter().fold(false, |any, scale| any | scale.is_infinite()) {
            return Err(PackError::InfiniteScale {
                path: self.weight.path.into(),
                tensor: format!("{}.weight", self.name),
                row: index,
                dtype: self.weight.dtype.to_string(),
            });
        }
        if !dead_zone.bias.is_finite() {
            self.check_beside(index, &input.latent.beside)?;
        }
        Ok(dead_zone)
    }
}

/// The formula's sum over numbers in a file.
struct SumOfBytes<'t, 'a, F> {
    latent: &'t Latent<'a, F>,
    bytes: &'t [u8],
    w: &'t mut [f32],
}

impl<F: Formula> Work for SumOfBytes<'_, '_, F> {
    type Output = Result<f64, NotFinite>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        widen(self.bytes, self.latent.weight.dtype, self.w);
        let sum = self.latent.formula.sum(lanes, self.w);
        check_sums(&[sum], self.w)?;
        Ok(sum)
    }
}

/// Only where a sum of some `w` is not finite must they be looked at.
#[inline(always)]
fn check_sums(sums: &[f64], w: &[f32]) -> Result<(), NotFinite> {
    match sums.iter().fold(true, |finite, sum| finite & sum.is_finite()) {
        true => Ok(()),
        false => check_finite(w),
    }
}

/// Take the scales of all groups that were read, where groups cross rows.
struct TakeScales<'t, 'a, F> {
    latent: &'t Latent<'a, F>,
    input: &'t mut Input,
}

impl<F: Formula> Work for TakeScales<'_, '_, F> {
    type Output = Result<(), NotFinite>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let Self { latent, input } = self;
        let (size, number_bytes) = (latent.group_size, latent.weight.number_bytes());
        let (w, scales) = (&mut input.latent.w, &mut input.scales);
        w.resize(size, 0.0);
        scales.data.clear();
        for (group, bytes) in input.weights.data.chunks(size * number_bytes).enumerate() {
            let count = bytes.len() / number_bytes;
            let work = SumOfBytes {
                latent,
                bytes,
                w: &mut w[..count],
            };
            let sum = work.run(lanes);
            let sum = sum.map_err(|found| found.after((scales.first + group) * size))?;
            let mut scale = [0.0];
            latent.formula.scales(&[sum], count, &mut scale);
            scales.data.extend(scale);
        }
        Ok(())
    }
}

/// Split row `index`. What is not finite is counted from the start of the row.
struct SplitRow<'t, 'a, F> {
    latent: &'t Latent<'a, F>,
    index: usize,
    input: &'t mut Input,
    row: &'t mut TernaryRow,
}

impl<F: Formula> Work for SplitRow<'_, '_, F> {
    type Output = Result<DeadZone, NotFinite>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let (latent, columns, weight) = (self.latent, self.latent.columns(), self.latent.weight);
        let Input {
            weights,
            beside,
            latent: numbers,
            ..
        } = &mut *self.input;
        let row_bytes = columns * weight.number_bytes();
        numbers.w.resize(columns, 0.0);
        widen(
            weights.get(self.index * row_bytes..(self.index + 1) * row_bytes),
            weight.dtype,
            &mut numbers.w,
        );
        if let Some((_, stored)) = latent.beside {
            let row_bytes = stored.shape[1] * stored.number_bytes();
            numbers.beside.resize(stored.shape[1], 0.0);
            let bytes = beside.get(self.index * row_bytes..(self.index + 1) * row_bytes);
            widen(bytes, stored.dtype, &mut numbers.beside);
        }
        take_runs(lanes, latent, self.index, self.input, self.row)?;
        self.row.codes.resize(columns, 0);
        Ok(latent.formula.split(lanes, &mut self.input.latent, self.row))
    }
}

/// The runs of equal scale in row `index`.
#[inline(always)]
fn take_runs<F: Formula>(
    lanes: impl Lanes,
    latent: &Latent<F>,
    index: usize,
    input: &mut Input,
    row: &mut TernaryRow,
) -> Result<(), NotFinite> {
    let runs = runs(index, latent.columns(), latent.group_size);
    let TernaryRow { ends, scales, .. } = row;
    ends.clear();
    scales.clear();
    if !latent.takes_scales_by_row() {
        for (group, run) in runs {
            ends.push(run.end);
            scales.push(match &latent.long_scales {
                Some(scales) => scales[group],
                None => input.scales.data[group - input.scales.first],
            });
        }
        return Ok(());
    }
    let LatentRow { w, sums, .. } = &mut input.latent;
    sums.clear();
    for (_, run) in runs {
        ends.push(run.end);
        sums.push(latent.formula.sum(lanes, &w[run]));
    }
    check_sums(sums, w)?;
    scales.resize(sums.len(), 0.0);
    latent.formula.scales(sums, latent.group_size, scales);
    Ok(())
}

/// The runs of equal scale in row `row` of a matrix with `columns` columns: (group, columns of the row it covers).
pub fn runs(row: usize, columns: usize, group_size: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let first = row * columns;
    let groups = first / group_size..=(first + columns - 1) / group_size;
    groups.map(move |group| {
        let start = (group * group_size).max(first) - first;
        let end = ((group + 1) * group_size).min(first + columns) - first;
        (group, start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cross_rows() {
        let all: Vec<_> = (0..2).map(|row| runs(row, 192, 128).collect::<Vec<_>>()).collect();
        assert_eq!(all[0], [(0, 0..128), (1, 128..192)]);
        assert_eq!(all[1], [(1, 0..64), (2, 64..192)]);
        assert_eq!(runs(1, 4, 8).collect::<Vec<_>>(), [(0, 0..4)]);
    }
}
