//! Ternary weight networks (as AngelSlim's `StaticTernaryQuant` computes them).
//!
//! ```text
//! delta = 3/4 of mean |w| over the group
//! code  = +1 where w >= delta, -1 where w <= -delta, else 0
//! scale = mean |w| over the active weights of the group
//! ```
//!
//! Mean, delta, the sum of the active weights, their count and the scale are each rounded to the checkpoint's dtype.

use std::ops::Range;

use formats::safetensors::Dtype;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Stored, Twn};
use crate::pack::PackError;
use crate::pack::latent::{LONGEST_SUM, runs};
use crate::pack::numbers::{check_finite, not_finite, read_numbers, widen};
use crate::pack::source::{DeadZone, Input, TernaryRows, Window};
use crate::pack::ternary::TernaryRow;

/// The rows of `linear`. Reads its weights where a group is longer than a piece.
pub fn rows<'a>(
    scheme: &Twn,
    checkpoint: &'a Checkpoint,
    linear: Linear,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let weight = checkpoint.weight(linear);
    let mut matrix = Matrix {
        name: format!("{}.weight", linear.checkpoint_name()),
        weight,
        group_size: scheme.granularity.group_size(weight.shape[0], weight.shape[1]),
        long: None,
    };
    if matrix.group_size > LONGEST_SUM {
        let groups = 0..weight.len().div_ceil(matrix.group_size);
        matrix.long = Some(groups.map(|group| matrix.group(group)).collect::<Result<_, _>>()?);
    }
    Ok(Box::new(matrix))
}

/// A matrix of latent weights.
struct Matrix<'a> {
    name: String,
    weight: Stored<'a>,
    group_size: usize,
    /// All groups, where they are longer than a piece.
    long: Option<Vec<Group>>,
}

/// What the weights of a group share.
#[derive(Clone, Copy)]
struct Group {
    scale: f32,
    delta: f32,
}

impl Matrix<'_> {
    /// The sum of `term` over a group, and of how many weights it is not `None`.
    fn sum(&self, group: usize, term: impl Fn(f32) -> Option<f32>) -> Result<(f64, usize), PackError> {
        let start = group * self.group_size;
        let end = (start + self.group_size).min(self.weight.len());
        let (mut bytes, mut w, mut sum, mut count) = (vec![], vec![], 0.0, 0);
        for from in (start..end).step_by(LONGEST_SUM) {
            let part = from..(from + LONGEST_SUM).min(end);
            w.resize(part.len(), 0.0);
            read_numbers(self.weight, part, &mut bytes)?;
            widen(&bytes, self.weight.dtype, &mut w);
            check_finite(&w).map_err(|found| not_finite(self.weight, &self.name, found.after(from)))?;
            for term in w.iter().filter_map(|&w| term(w.abs())) {
                sum += f64::from(term);
                count += 1;
            }
        }
        Ok((sum, count))
    }

    fn group(&self, group: usize) -> Result<Group, PackError> {
        let dtype = self.weight.dtype;
        let (sum, count) = self.sum(group, Some)?;
        let mean = dtype.round(sum / count as f64);
        let delta = dtype.round(0.75 * f64::from(mean));
        let (sum, active) = self.sum(group, |w| (w >= delta).then_some(w))?;
        let scale = scale(sum, active, dtype);
        Ok(Group { scale, delta })
    }

    fn groups_of(&self, rows: &Range<usize>) -> Range<usize> {
        let columns = self.weight.shape[1];
        rows.start * columns / self.group_size..(rows.end * columns).div_ceil(self.group_size)
    }
}

/// The mean of `active` weights.
fn scale(sum: f64, active: usize, dtype: Dtype) -> f32 {
    let (sum, active) = (dtype.round(sum), dtype.round(active as f64));
    dtype.round(f64::from(sum) / f64::from(active))
}

impl TernaryRows for Matrix<'_> {
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
        )?;
        if self.long.is_some() {
            return Ok(());
        }
        let groups = self.groups_of(&rows);
        let Input { scales, deltas, .. } = input;
        for Window { first, data } in [&mut *scales, &mut *deltas] {
            *first = groups.start;
            data.clear();
        }
        for group in groups {
            let Group { scale, delta } = self.group(group)?;
            scales.data.push(scale);
            deltas.data.push(delta);
        }
        Ok(())
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
        let TernaryRow { codes, ends, scales } = row;
        (codes.clear(), ends.clear(), scales.clear());
        for (group, run) in runs(index, columns, self.group_size) {
            let Group { scale, delta } = match &self.long {
                Some(groups) => groups[group],
                None => Group {
                    scale: input.scales.data[group - input.scales.first],
                    delta: input.deltas.data[group - input.deltas.first],
                },
            };
            ends.push(run.end);
            scales.push(scale);
            codes.extend(w[run].iter().map(|&w| i8::from(w >= delta) - i8::from(w <= -delta)));
        }
        row.clear_codes_without_scale();
        Ok(DeadZone {
            weights: row.codes.iter().filter(|&&code| code == 0).count(),
            ..DeadZone::default()
        })
    }
}
