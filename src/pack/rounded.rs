//! Weights that are ternary already as a source of ternary rows: codes and scales of ternary blocks, or floats that are
//! -s, 0 and +s over runs of weights. Codes and scales are taken as they are.

use std::io;
use std::ops::Range;

use formats::block::BlockType;

use super::PackError;
use super::numbers::widen;
use super::source::{DeadZone, Input, TernaryRows};
use super::ternary::TernaryRow;
use crate::model::{Blocks, Weights, look};
use crate::simd::{Lanes, Level, Work};

/// What the data of a matrix is, from a sample of its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data {
    /// Ternary, with a scale for at most so many weights.
    Ternary {
        /// Weights of the aligned runs that share a scale.
        run: usize,
    },
    /// -3u, -u, u and 3u.
    FourLevel,
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
        Weights::Ternary { run, .. } | Weights::Binary { run } => Data::Ternary { run },
        Weights::FourLevel { .. } => Data::FourLevel,
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
    Ok(match ternary {
        true => Data::Ternary { run },
        false => Data::FourLevel,
    })
}

/// A matrix that is ternary already.
pub struct Rounded<'a> {
    /// What the file calls it.
    pub name: String,
    pub blocks: Blocks<'a>,
    /// Weights of the aligned runs that share a scale.
    pub run: usize,
    pub level: Level,
}

impl Rounded<'_> {
    fn not_ternary(&self, row: usize, column: usize) -> PackError {
        PackError::NotTernary {
            path: self.blocks.path.into(),
            tensor: self.name.clone(),
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

    /// Codes and scales of blocks, where codes and scales are not.
    fn unpack(&self, index: usize, bytes: &[u8], row: &mut TernaryRow) -> Result<(), PackError> {
        let (columns, run) = (self.blocks.columns(), self.run);
        row.codes.resize(columns, 0);
        row.scales.resize(columns / run, 0.0);
        row.ends.clear();
        row.ends.extend((run..=columns).step_by(run));
        let unpacked = self
            .blocks
            .ty
            .unpack_ternary_row(bytes, &mut row.codes, &mut row.scales);
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
    fn split(&self, index: usize, w: &[f32], row: &mut TernaryRow) -> Result<(), PackError> {
        if let Some(column) = w.iter().position(|w| !w.is_finite()) {
            return Err(self.not_finite(index, column, w[column]));
        }
        row.codes.resize(w.len(), 0);
        let mut broken = 0;
        for run in [self.run, 128, 64, 32, 16].into_iter().filter(|run| *run <= self.run) {
            for first in [run, run - index * w.len() % run] {
                match self.level.run(SplitRow { w, first, run, row }) {
                    Ok(()) => return Ok(()),
                    Err(column) => broken = column,
                }
            }
        }
        Err(self.not_ternary(index, broken))
    }
}

/// The weight that an error of a block is about, in its row.
fn weight_of(error: &formats::block::BlockError) -> usize {
    match error {
        formats::block::BlockError::NotTernary { source, .. } => source.weight,
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
        let bytes = input.weights.get(index * row_bytes..(index + 1) * row_bytes);
        match self.blocks.dtype() {
            None => self.unpack(index, bytes, row)?,
            Some(dtype) => {
                let w = &mut input.latent.w;
                w.resize(self.blocks.columns(), 0.0);
                widen(bytes, dtype, w);
                self.split(index, w, row)?;
            }
        }
        join_runs(row);
        let zeros = row.codes.iter().filter(|&&code| code == 0).count();
        Ok(DeadZone {
            weights: zeros,
            ..DeadZone::default()
        })
    }
}

/// Take neighbouring runs of one scale together; a run of zeros has any scale.
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
struct SplitRow<'t> {
    w: &'t [f32],
    first: usize,
    run: usize,
    row: &'t mut TernaryRow,
}

impl Work for SplitRow<'_> {
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run(self, _: impl Lanes) -> Self::Output {
        let TernaryRow { codes, ends, scales } = self.row;
        ends.clear();
        scales.clear();
        let (mut start, mut end) = (0, self.first.min(self.w.len()));
        while start < self.w.len() {
            let w = &self.w[start..end];
            let scale = w.iter().fold(0.0f32, |scale, w| scale.max(w.abs()));
            // No early exit, so that the loop is vectorised.
            let fits = |w: f32| w == 0.0 || w.abs() == scale;
            if !w.iter().fold(true, |all, &w| all & fits(w)) {
                return Err(start + w.iter().position(|&w| !fits(w)).unwrap_or(0));
            }
            for (code, &w) in codes[start..end].iter_mut().zip(w) {
                *code = i8::from(w > 0.0) - i8::from(w < 0.0);
            }
            ends.push(end);
            scales.push(scale);
            (start, end) = (end, (end + self.run).min(self.w.len()));
        }
        Ok(())
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
        };
        join_runs(&mut row);
        assert_eq!((row.ends, row.scales), (vec![8, 12], vec![2.0, 3.0]));
        let mut zeros = TernaryRow {
            codes: vec![0; 4],
            ends: vec![2, 4],
            scales: vec![1.0, 2.0],
        };
        join_runs(&mut zeros);
        assert_eq!((zeros.ends, zeros.scales), (vec![4], vec![2.0]));
    }
}
