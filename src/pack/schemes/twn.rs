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
        matrix.long = Some(groups.map(|group| matrix.long_group(group)).collect::<Result<_, _>>()?);
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

impl Group {
    /// By `sum`, which adds up the magnitudes that are at least so large, and counts them.
    fn new(dtype: Dtype, sum: impl Fn(f32) -> Result<(f64, usize), PackError>) -> Result<Self, PackError> {
        let mean = |(sum, count): (f64, usize)| sum / count as f64;
        let delta = dtype.round(0.75 * f64::from(dtype.round(mean(sum(0.0)?))));
        let (active_sum, active) = sum(delta)?;
        let (active_sum, active) = (dtype.round(active_sum), dtype.round(active as f64));
        Ok(Self {
            scale: dtype.round(f64::from(active_sum) / f64::from(active)),
            delta,
        })
    }
}

/// The sum of the magnitudes that are at least `least`, and how many they are. `w`: (weights,)
fn sum(w: &[f32], least: f32) -> (f64, usize) {
    let active = w.iter().map(|w| w.abs()).filter(|&w| w >= least);
    active.fold((0.0, 0), |(sum, count), w| (sum + f64::from(w), count + 1))
}

impl Matrix<'_> {
    /// A group that is read part by part.
    fn long_group(&self, group: usize) -> Result<Group, PackError> {
        let start = group * self.group_size;
        let end = (start + self.group_size).min(self.weight.len());
        Group::new(self.weight.dtype, |least| {
            let (mut bytes, mut w, mut total) = (vec![], vec![], (0.0, 0));
            for from in (start..end).step_by(LONGEST_SUM) {
                let part = from..(from + LONGEST_SUM).min(end);
                w.resize(part.len(), 0.0);
                read_numbers(self.weight, part, &mut bytes)?;
                self.widen(&bytes, from, &mut w)?;
                let (sum, count) = sum(&w, least);
                total = (total.0 + sum, total.1 + count);
            }
            Ok(total)
        })
    }

    /// The numbers from `first` on.
    fn widen(&self, bytes: &[u8], first: usize, w: &mut [f32]) -> Result<(), PackError> {
        widen(bytes, self.weight.dtype, w);
        check_finite(w).map_err(|found| not_finite(self.weight, &self.name, found.after(first)))
    }
}

impl TernaryRows for Matrix<'_> {
    fn row_bytes(&self) -> usize {
        self.weight.shape[1] * self.weight.number_bytes()
    }

    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError> {
        let (columns, size) = (self.weight.shape[1], self.group_size);
        let mut span = rows.start * columns..rows.end * columns;
        let groups = span.start / size..span.end.div_ceil(size);
        if self.long.is_none() {
            span = groups.start * size..(groups.end * size).min(self.weight.len());
        }
        let (first, number_bytes) = (span.start, self.weight.number_bytes());
        let Input {
            weights,
            scales,
            deltas,
            latent,
            ..
        } = input;
        weights.first = first * number_bytes;
        read_numbers(self.weight, span, &mut weights.data)?;
        for Window { first, data } in [&mut *scales, &mut *deltas] {
            *first = groups.start;
            data.clear();
        }
        if self.long.is_some() {
            return Ok(());
        }
        for (index, bytes) in weights.data.chunks(size * number_bytes).enumerate() {
            let w = &mut latent.w;
            w.resize(bytes.len() / number_bytes, 0.0);
            self.widen(bytes, first + index * size, w)?;
            let Group { scale, delta } = Group::new(self.weight.dtype, |least| Ok(sum(w, least)))?;
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
        let TernaryRow {
            codes, ends, scales, ..
        } = row;
        codes.clear();
        ends.clear();
        scales.clear();
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
