//! Latent weights whose scales are known before they are read: one for each row.

use std::ops::Range;

use super::PackError;
use super::numbers::{check_finite, not_finite, read_numbers, widen};
use super::source::{DeadZone, Input, TernaryRows};
use super::ternary::TernaryRow;
use crate::model::Stored;

/// What a training scheme makes of such weights.
pub trait Rounding: Send + Sync {
    /// The scale of row `index`.
    fn scale(&self, index: usize) -> f32;

    /// The code of a weight `w` of row `index`.
    fn code(&self, index: usize, w: f32) -> i8;
}

/// A matrix of them. (rows, columns)
pub struct Scaled<'a, R> {
    /// What the checkpoint calls it; `.weight` follows.
    pub name: String,
    pub weight: Stored<'a>,
    pub rounding: R,
}

impl<R: Rounding> TernaryRows for Scaled<'_, R> {
    fn row_bytes(&self) -> usize {
        self.weight.shape[1] * self.weight.number_bytes()
    }

    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError> {
        let columns = self.weight.shape[1];
        input.weights.first = rows.start * self.row_bytes();
        read_numbers(
            self.weight,
            rows.start * columns..rows.end * columns,
            &mut input.weights.data,
        )
    }

    fn row(&self, index: usize, input: &mut Input, row: &mut TernaryRow) -> Result<DeadZone, PackError> {
        let (columns, bytes) = (self.weight.shape[1], self.row_bytes());
        let w = &mut input.latent.w;
        w.resize(columns, 0.0);
        widen(
            input.weights.get(index * bytes..(index + 1) * bytes),
            self.weight.dtype,
            w,
        );
        check_finite(w).map_err(|found| {
            let name = format!("{}.weight", self.name);
            not_finite(self.weight, &name, found.after(index * columns))
        })?;
        let TernaryRow {
            codes, ends, scales, ..
        } = &mut *row;
        codes.clear();
        ends.clear();
        scales.clear();
        ends.push(columns);
        scales.push(self.rounding.scale(index));
        codes.extend(w.iter().map(|&w| self.rounding.code(index, w)));
        row.clear_codes_without_scale();
        Ok(DeadZone {
            weights: row.codes.iter().filter(|&&code| code == 0).count(),
            ..DeadZone::default()
        })
    }
}
