//! Sherry, by docs/schemes.md:
//!
//! ```text
//! of every four neighbours in a row the smallest magnitude becomes 0; of equal ones the last
//! scale = sum of the kept |w| over the group / (3/4 of its weights)
//! code  = sign of a kept weight
//! ```
//!
//! The sum is exact to f64, then rounded to the dtype of the weights; so is the quotient.

use formats::safetensors::Tensor;
use rayon::prelude::*;

use super::{Room, Ternarize, read, runs, weight};
use crate::blueprint;
use crate::model::{Checkpoint, Sherry};

pub(super) struct Linear<'a> {
    weight: Tensor<'a>,
    group_size: usize,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: &Sherry, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let weight = weight(checkpoint, linear);
        let group_size = scheme.granularity.group_size(weight.shape[0], weight.shape[1]);
        Self { weight, group_size }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn scale(&self, group: usize) -> Result<f32, usize> {
        const PIECE: usize = 1 << 14;
        let start = group * self.group_size;
        let end = self.weight.len().min(start + self.group_size);
        let kept_sum = |from: usize| {
            let mut w = vec![0.0; PIECE.min(end - from)];
            read(&self.weight, from, &mut w)?;
            keep_three(&mut w);
            Ok::<_, usize>(w.iter().map(|&w| f64::from(w.abs())).sum::<f64>())
        };
        let starts: Vec<usize> = (start..end).step_by(PIECE).collect();
        let sums: Vec<f64> = starts.into_par_iter().map(kept_sum).collect::<Result<_, _>>()?;
        let (dtype, kept) = (self.weight.dtype, 0.75 * (end - start) as f64);
        let sum = dtype.round(sums.iter().sum());
        Ok(dtype.round(f64::from(sum) / kept))
    }

    fn split(&self, row: usize, scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let w = &mut room.w;
        w.resize(codes.len(), 0.0);
        self.weight.read_f32(row * codes.len(), w);
        keep_three(w);
        for (group, run) in runs(row, codes.len(), self.group_size) {
            for (code, &w) in codes[run.clone()].iter_mut().zip(&w[run]) {
                *code = if scales[group] == 0.0 || w == 0.0 {
                    0
                } else {
                    w.signum() as i8
                };
            }
        }
        Ok(0.0)
    }

    fn ties(&self) -> u64 {
        let columns = self.weight.shape[1];
        let of_row = |row: usize| {
            let mut w = vec![0.0; columns];
            self.weight.read_f32(row * columns, &mut w);
            w.chunks_exact(4).filter(|quad| is_tied(quad)).count() as u64
        };
        (0..self.weight.shape[0]).into_par_iter().map(of_row).sum()
    }
}

/// Let the smallest weight of every four be 0.
fn keep_three(w: &mut [f32]) {
    for quad in w.chunks_exact_mut(4) {
        let mut dropped = 0;
        for at in 1..4 {
            if quad[at].abs() <= quad[dropped].abs() {
                dropped = at;
            }
        }
        quad[dropped] = 0.0;
    }
}

/// Whether the smallest two are equal, and not 0.
fn is_tied(quad: &[f32]) -> bool {
    let mut magnitudes: Vec<f32> = quad.iter().map(|w| w.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    magnitudes[0] == magnitudes[1] && magnitudes[0] > 0.0
}
