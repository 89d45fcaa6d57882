//! The scales of a block against the trained scales that they stand for.

use std::ops::Range;

use formats::block::BlockType;
use half::f16;

use super::fit::{Fit, f16_step, q2_k_factor};
use super::row::{Row, RowFound, active, note};
use crate::metrics::Nmse;

/// Columns of a block that share one trained and one stored scale.
struct Stretch {
    columns: Range<usize>,
    trained: f64,
    stored: f64,
}

impl Row<'_> {
    /// The scales of the block whose weights start at column `start`. `codes`: of the whole row, as the file has them.
    pub(super) fn compare_scales(&self, start: usize, scales: &[f32], codes: &[i8], found: &mut RowFound) {
        let latent = self.stored.latent;
        let (first, last) = (self.group(start), self.group(start + self.stored.info.ty.weights() - 1));
        let references = &latent.references[first..=last];
        let one = references.iter().all(|scale| *scale == references[0]);
        let mut fit = Fit::default();
        for stretch in self.stretches(start, scales) {
            let expected = &self.latent.codes[stretch.columns.clone()];
            let active = active(expected);
            found.tally.loss += stretch.loss(active, expected, codes);
            if !one && active > 0.0 {
                let Stretch {
                    columns,
                    trained,
                    stored,
                } = stretch;
                let distance = (stored - trained).abs() / trained;
                found.tally.worst_scale = found.tally.worst_scale.max(distance);
                let h = expected.iter().zip(&self.stored.importance[columns]);
                fit.add(h.map(|(&code, &h)| f64::from(code * code) * h).sum(), trained, stored);
            }
        }
        if one && references[0] == 0.0 {
            // Zeros alone, whose codes are compared: whatever scale they have multiplies nothing.
        } else if one {
            self.compare_exact(start, f16::from_f32(latent.scales[first]).to_f32(), scales, found);
        } else {
            self.compare_merged(start, scales, &fit, found);
        }
    }

    /// The group of the flattened matrix that the weight at `column` is of.
    fn group(&self, column: usize) -> usize {
        (self.from * self.stored.latent.columns + column) / self.stored.latent.group_size
    }

    /// The stretches of the block that starts at column `start`, in order.
    fn stretches(&self, start: usize, scales: &[f32]) -> impl Iterator<Item = Stretch> {
        let latent = self.stored.latent;
        let width = self.stored.info.ty.weights();
        let (run, end) = (width / scales.len(), start + width);
        let mut column = start;
        std::iter::from_fn(move || {
            if column == end {
                return None;
            }
            let group = self.group(column);
            let group_end = (group + 1) * latent.group_size - self.from * latent.columns;
            let columns = column..group_end.min(column - column % run + run).min(end);
            let stored = scales[(column - start) / run];
            column = columns.end;
            Some(Stretch {
                columns,
                trained: latent.references[group].into(),
                stored: stored.into(),
            })
        })
    }

    /// All weights of the block were trained with one scale: each stored one has to be that, as f16 has it.
    fn compare_exact(&self, start: usize, expected: f32, scales: &[f32], found: &mut RowFound) {
        let run = self.stored.info.ty.weights() / scales.len();
        found.tally.scales += scales.len() as u64;
        for (index, &scale) in scales.iter().enumerate() {
            if scale != expected {
                found.tally.scales_wrong += 1;
                note(&mut found.places.scales, || {
                    format!(
                        "tensor '{}' row {} columns {}: scale {scale:e}, expected {expected:e}",
                        self.stored.info.name,
                        self.row,
                        span(start + index * run, run),
                    )
                });
            }
        }
    }

    /// Several trained scales in one block: the stored d has to be the least-squares one.
    fn compare_merged(&self, start: usize, scales: &[f32], fit: &Fit, found: &mut RowFound) {
        found.tally.merged += scales.len() as u64;
        let info = self.stored.info;
        let d = match info.ty {
            // The multipliers are given; d is what is fitted to them.
            BlockType::Q2_K => q2_k_factor(self.stored.row(self.row), start),
            _ => scales[0],
        };
        let Some(best) = fit.best(d) else { return };
        let rounding = best.abs() * 4e-6; // the fit may have been made in f32
        if (f64::from(d) - best).abs() <= 0.5 * f16_step(best) + rounding {
            return;
        }
        found.tally.merged_wrong += scales.len() as u64;
        note(&mut found.places.merged, || {
            format!(
                "tensor '{}' row {} columns {}: scale {d:e}, the least-squares fit is {best:e}",
                info.name,
                self.row,
                span(start, info.ty.weights())
            )
        });
    }
}

impl Stretch {
    /// What storing these weights lost. `expected`: their trained codes, `active` of which are not 0; `codes`: those of
    /// the whole row, as the file has them.
    fn loss(&self, active: f64, expected: &[i8], codes: &[i8]) -> Nmse {
        let (s, t) = (self.trained, self.stored);
        let codes = &codes[self.columns.clone()];
        let error = if expected == codes {
            active * (s - t) * (s - t)
        } else {
            let pairs = expected.iter().zip(codes);
            pairs
                .map(|(&a, &b)| (s * f64::from(a) - t * f64::from(b)).powi(2))
                .sum()
        };
        Nmse {
            error,
            energy: active * s * s,
        }
    }
}

/// `first to last`, as people write it.
fn span(start: usize, width: usize) -> String {
    format!("{start} to {}", start + width - 1)
}
