//! Weights that are ternary or of four levels already as a source of rows: codes and scales of blocks, or floats that are
//! -s, 0 and +s, or -3s, -s, +s and +3s, over runs of weights. Codes and scales are taken as they are.

use std::io;
use std::ops::Range;

use formats::block::{BlockError, BlockType};
use half::f16;

use super::PackError;
use super::numbers::{check_finite, widen};
use super::source::{DeadZone, Input, TernaryRows};
use super::ternary::{Levels, TernaryRow};
use crate::model::{Blocks, Weights, is_three_times, look};
use crate::simd::{Lanes, Level, Work};

/// What the data of a matrix is, from a sample of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data {
    /// Ternary, or of four levels.
    Rounded {
        /// Which of the two.
        levels: Levels,
        /// Weights of the aligned runs that share a scale.
        run: usize,
    },
    /// Close to ternary.
    NearlyTernary,
    /// Anything else.
    Other,
}

/// Look at a matrix of any type.
///
/// # Errors
/// It cannot be read.
pub fn look_at(blocks: Blocks) -> io::Result<Data> {
    let Some(numbers) = blocks.numbers() else {
        return look_at_blocks(blocks);
    };
    Ok(match look(numbers)? {
        Weights::Ternary { run, .. } | Weights::Binary { run } => {
            let levels = Levels::Three;
            Data::Rounded { levels, run }
        }
        Weights::FourLevel { run } => {
            let levels = Levels::Four;
            Data::Rounded { levels, run }
        }
        Weights::NearlyTernary { .. } => Data::NearlyTernary,
        Weights::Latent | Weights::Unknown => Data::Other,
    })
}

fn look_at_blocks(blocks: Blocks) -> io::Result<Data> {
    const MOST: usize = 64; // rows
    let Blocks { ty, .. } = blocks;
    let Some(run) = ty.scale_run() else {
        return Ok(Data::Other);
    };
    let (mut bytes, mut codes) = (vec![0; blocks.row_bytes()], vec![0; blocks.columns()]);
    let mut scales = vec![0.0; blocks.columns() / run];
    let (mut ternary, mut four_level) = (true, true);
    for row in (0..blocks.rows()).step_by(blocks.rows().div_ceil(MOST).max(1)) {
        blocks.read(row, &mut bytes)?;
        ternary &= ty.unpack_ternary_row(&bytes, &mut codes, &mut scales).is_ok();
        four_level &= ty.unpack_four_level_row(&bytes, &mut codes, &mut scales).is_ok();
        if !ternary && !four_level {
            return Ok(Data::Other);
        }
    }
    let levels = if ternary { Levels::Three } else { Levels::Four };
    Ok(Data::Rounded { levels, run })
}

/// A matrix that is ternary or of four levels already.
pub struct Rounded<'a> {
    /// What the file calls it.
    pub name: String,
    pub blocks: Blocks<'a>,
    pub levels: Levels,
    /// Weights of the aligned runs that share a scale.
    pub run: usize,
    pub level: Level,
}

impl Rounded<'_> {
    fn not_ternary(&self, row: usize, column: usize) -> PackError {
        PackError::NotTernary {
            path: self.blocks.path.into(),
            tensor: self.name.clone(),
            what: match self.levels {
                Levels::Three => "ternary",
                Levels::Four => "of four levels",
            },
            row,
            column,
        }
    }

    fn not_finite(&self, row: usize, column: usize, value: f32) -> PackError {
        PackError::NotFinite {
            path: self.blocks.path.into(),
            tensor: self.name.clone(),
            row,
            column,
            value,
        }
    }

    /// Codes and scales of blocks.
    #[inline(always)]
    fn unpack(&self, index: usize, bytes: &[u8], row: &mut TernaryRow) -> Result<(), PackError> {
        let (columns, run) = (self.blocks.columns(), self.run);
        row.codes.resize(columns, 0);
        row.scales.resize(columns / run, 0.0);
        row.ends.clear();
        row.ends.extend((run..=columns).step_by(run));
        let (ty, codes, scales) = (self.blocks.ty, &mut row.codes, &mut row.scales);
        let unpacked = match self.levels {
            Levels::Three => ty.unpack_ternary_row(bytes, codes, scales),
            Levels::Four => ty.unpack_four_level_row(bytes, codes, scales),
        };
        unpacked.map_err(|error| self.not_ternary(index, weight_of(&error)))?;
        for (run_index, (scale, codes)) in row.scales.iter_mut().zip(row.codes.chunks_mut(run)).enumerate() {
            if !scale.is_finite() {
                return Err(self.not_finite(index, run_index * run, *scale));
            }
            if scale.is_sign_negative() {
                *scale = -*scale;
                codes.iter_mut().for_each(|code| *code = -*code);
            }
        }
        Ok(())
    }

    /// Codes and scales of floats. Runs are counted from the start of the row or, where that does not fit, from that of
    /// the matrix; in rows that the sample did not have they may be shorter.
    #[inline(always)]
    fn split(&self, index: usize, w: &[f32], row: &mut TernaryRow) -> Result<(), PackError> {
        check_finite(w).map_err(|found| self.not_finite(index, found.index, w[found.index]))?;
        row.codes.resize(w.len(), 0);
        let mut broken = 0;
        for run in [self.run, 128, 64, 32, 16].into_iter().filter(|run| *run <= self.run) {
            for first in [run, run - index * w.len() % run] {
                match split_row(w, self.levels, first, run, row) {
                    Ok(()) => return Ok(()),
                    Err(column) => broken = column,
                }
            }
        }
        Err(self.not_ternary(index, broken))
    }
}

/// Make a row of a matrix codes and scales; gives how many codes are 0.
struct ReadRow<'t> {
    matrix: &'t Rounded<'t>,
    /// Which row.
    index: usize,
    /// The row as it is in the file.
    bytes: &'t [u8],
    /// Room for its numbers.
    w: &'t mut Vec<f32>,
    row: &'t mut TernaryRow,
}

impl Work for ReadRow<'_> {
    type Output = Result<usize, PackError>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let Self {
            matrix,
            index,
            bytes,
            w,
            row,
        } = self;
        row.levels = matrix.levels;
        match matrix.blocks.dtype() {
            None => matrix.unpack(index, bytes, row)?,
            Some(dtype) => {
                w.resize(matrix.blocks.columns(), 0.0);
                widen(bytes, dtype, w);
                matrix.split(index, w, row)?;
            }
        }
        join_runs(row);
        Ok(row.codes.len() - lanes.active_count(&row.codes))
    }
}

/// The weight that an error of a block is about, in its row.
fn weight_of(error: &BlockError) -> usize {
    match error {
        BlockError::NotTernary { source, .. } => source.weight,
        BlockError::NotFourLevel { weight, .. } => *weight,
        _ => 0,
    }
}

impl TernaryRows for Rounded<'_> {
    fn row_bytes(&self) -> usize {
        self.blocks.row_bytes()
    }

    fn stored_as(&self) -> Option<BlockType> {
        Some(self.blocks.ty)
    }

    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError> {
        let row_bytes = self.row_bytes();
        input.weights.first = rows.start * row_bytes;
        input.weights.data.resize(rows.len() * row_bytes, 0);
        let read = self.blocks.read(rows.start, &mut input.weights.data);
        read.map_err(|source| PackError::read(self.blocks.path, source))
    }

    fn row(&self, index: usize, input: &mut Input, row: &mut TernaryRow) -> Result<DeadZone, PackError> {
        let row_bytes = self.row_bytes();
        let work = ReadRow {
            matrix: self,
            index,
            bytes: input.weights.get(index * row_bytes..(index + 1) * row_bytes),
            w: &mut input.latent.w,
            row,
        };
        let (weights, bias) = (self.level.run(work)?, 0.0);
        Ok(DeadZone { weights, bias })
    }
}

/// Take neighbouring runs of one scale together; a run of zeros has any scale.
#[inline(always)]
fn join_runs(row: &mut TernaryRow) {
    let (mut kept, mut start, mut zeros) = (0, 0, true);
    for run in 0..row.ends.len() {
        let (end, scale) = (row.ends[run], row.scales[run]);
        let is_zero = row.codes[start..end].iter().all(|&code| code == 0);
        // The runs before it hold zeros alone, this one does, or both have the same scale.
        let joins = kept > 0 && (zeros || is_zero || row.scales[kept - 1] == scale);
        if !joins {
            kept += 1;
        }
        if !joins || zeros {
            row.scales[kept - 1] = scale;
        }
        zeros = (zeros || !joins) && is_zero;
        row.ends[kept - 1] = end;
        start = end;
    }
    row.ends.truncate(kept);
    row.scales.truncate(kept);
}

/// Codes and scales of a row, in a first run of `first` weights and others of `run`; the first column that breaks a
/// run is the error.
#[inline(always)]
fn split_row(w: &[f32], levels: Levels, first: usize, run: usize, row: &mut TernaryRow) -> Result<(), usize> {
    row.ends.clear();
    row.scales.clear();
    row.error = 0.0;
    let (mut start, mut end) = (0, first.min(w.len()));
    while start < w.len() {
        let (w_of_run, codes) = (&w[start..end], &mut row.codes[start..end]);
        let split = match levels {
            Levels::Three => split_three(w_of_run, codes),
            Levels::Four => split_four(w_of_run, codes, row.scales.last().copied()),
        };
        let (scale, error) = split.map_err(|column| start + column)?;
        row.ends.push(end);
        row.scales.push(scale);
        row.error += error;
        (start, end) = (end, (end + run).min(w.len()));
    }
    Ok(())
}

/// Codes of a ternary run, its scale, and what that is off by: nothing.
#[inline(always)]
fn split_three(w: &[f32], codes: &mut [i8]) -> Result<(f32, f64), usize> {
    let scale = w.iter().fold(0.0f32, |scale, w| scale.max(w.abs()));
    // No early exit, so that the loop is vectorised.
    let fits = |w: f32| w == 0.0 || w.abs() == scale;
    if !w.iter().fold(true, |all, &w| all & fits(w)) {
        return Err(w.iter().position(|&w| !fits(w)).unwrap_or(0));
    }
    for (code, &w) in codes.iter_mut().zip(w) {
        *code = i8::from(w > 0.0) - i8::from(w < 0.0);
    }
    Ok((scale, 0.0))
}

/// Codes of a run of four levels, its scale, and the sum of the squares of what these are off by. `before`: the scale of
/// the run before, which tells the inner from the outer level where the run has but one.
#[inline(always)]
fn split_four(w: &[f32], codes: &mut [i8], before: Option<f32>) -> Result<(f32, f64), usize> {
    let large = w.iter().fold(0.0f32, |large, w| large.max(w.abs()));
    let mut small = w.iter().fold(large, |small, w| small.min(w.abs()));
    if small == large {
        small = before.filter(|&unit| is_three_times(large, unit)).unwrap_or(large);
    }
    let fits = |w: f32| w.abs() == small || (w.abs() == large && is_three_times(large, small));
    if let Some(column) = w.iter().position(|&w| !fits(w)) {
        return Err(column);
    }
    let mut outer = 0;
    for (code, &w) in codes.iter_mut().zip(w) {
        let magnitude = if w.abs() == small { 1 } else { 3 };
        outer += usize::from(magnitude == 3);
        *code = if w < 0.0 { -magnitude } else { magnitude };
    }
    if small == large || 3.0 * small == large {
        return Ok((small, 0.0));
    }
    let (inner, outer) = ((w.len() - outer) as f64, outer as f64);
    let (small, large) = (f64::from(small), f64::from(large));
    let unit = round((inner * small + 3.0 * outer * large) / (inner + 9.0 * outer));
    let (small_off, large_off) = (small - f64::from(unit), large - 3.0 * f64::from(unit));
    Ok((unit, inner * small_off.powi(2) + outer * large_off.powi(2)))
}

/// To f16, as scales are stored, where f16 has it to full precision.
fn round(scale: f64) -> f32 {
    match f16::from_f64(scale) {
        rounded if rounded.is_normal() => rounded.to_f32(),
        _ => scale as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_one_scale_are_joined_and_zeros_take_any() {
        let mut row = TernaryRow {
            codes: vec![0, 0, 1, 0, 0, -1, 0, 0, 1, 1, 0, 0],
            ends: vec![2, 4, 6, 8, 10, 12],
            scales: vec![9.0, 2.0, 2.0, 7.0, 3.0, 5.0],
            ..TernaryRow::default()
        };
        join_runs(&mut row);
        assert_eq!((row.ends, row.scales), (vec![8, 12], vec![2.0, 3.0]));
        let mut zeros = TernaryRow {
            codes: vec![0; 4],
            ends: vec![2, 4],
            scales: vec![1.0, 2.0],
            ..TernaryRow::default()
        };
        join_runs(&mut zeros);
        assert_eq!((zeros.ends, zeros.scales), (vec![4], vec![2.0]));
    }

    #[test]
    fn four_levels_are_told_apart_by_the_run_before_and_lose_what_rounding_moved() {
        let mut codes = [0; 4];
        assert_eq!(split_four(&[0.5, -1.5, 1.5, -0.5], &mut codes, None), Ok((0.5, 0.0)));
        assert_eq!(codes, [1, -3, 3, -1]);
        assert_eq!(
            split_four(&[-1.5, 1.5, 1.5, 1.5], &mut codes, Some(0.5)),
            Ok((0.5, 0.0))
        );
        assert_eq!(codes, [-3, 3, 3, 3]);
        assert_eq!(
            split_four(&[-1.5, 1.5, 1.5, 1.5], &mut codes, Some(0.7)),
            Ok((1.5, 0.0))
        );
        assert_eq!(codes, [-1, 1, 1, 1]);
        assert_eq!(split_four(&[0.5, 1.5, 0.0, 0.5], &mut codes, None), Err(0));
        assert_eq!(split_four(&[0.5, 1.5, 0.7, 0.5], &mut codes, None), Err(2));
        // 1.5078125 is the next bf16: the unit is (2 * 0.5 + 3 * 2 * 1.5078125) / 20 = 0.50234375, in f16 this:
        const UNIT: f64 = 1029.0 / 2048.0;
        let (unit, error) = split_four(&[0.5, 1.5078125, 1.5078125, -0.5], &mut codes, None).unwrap();
        assert_eq!(f64::from(unit), UNIT);
        let expected = 2.0 * (0.5 - UNIT).powi(2) + 2.0 * (1.5078125 - 3.0 * UNIT).powi(2);
        assert!((error / expected - 1.0).abs() < 1e-12, "{error} is not {expected}");
    }
}
