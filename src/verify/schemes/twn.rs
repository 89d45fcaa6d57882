//! Ternary weight networks, by docs/schemes.md:
//!
//! ```text
//! delta = 3/4 of mean |w| over the group
//! code  = +1 where w >= delta, -1 where w <= -delta, else 0
//! scale = mean |w| over the active weights of the group
//! ```
//!
//! Sums are exact to f64; mean, delta, the active weights' sum, their count and the scale are in the dtype of the weights.

use formats::safetensors::Tensor;
use rayon::prelude::*;

use super::{Room, Ternarize, read, runs, weight};
use crate::blueprint;
use crate::model::{Checkpoint, Twn};

pub(super) struct Linear<'a> {
    weight: Tensor<'a>,
    group_size: usize,
    /// Of every group; NaN where a weight is not finite.
    deltas: Vec<f32>,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: &Twn, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let weight = weight(checkpoint, linear);
        let mut linear = Self {
            weight,
            group_size: scheme.granularity.group_size(weight.shape[0], weight.shape[1]),
            deltas: vec![],
        };
        let groups = 0..weight.len().div_ceil(linear.group_size);
        linear.deltas = groups.into_par_iter().map(|group| linear.delta(group)).collect();
        linear
    }

    /// The weights of a group.
    fn group(&self, group: usize) -> Result<Vec<f32>, usize> {
        let start = group * self.group_size;
        let mut w = vec![0.0; self.group_size.min(self.weight.len() - start)];
        read(&self.weight, start, &mut w)?;
        Ok(w)
    }

    fn delta(&self, group: usize) -> f32 {
        let Ok(w) = self.group(group) else {
            return f32::NAN;
        };
        let sum: f64 = w.iter().map(|&w| f64::from(w).abs()).sum();
        let mean = self.weight.dtype.round(sum / w.len() as f64);
        self.weight.dtype.round(f64::from(mean) * 3.0 / 4.0)
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn scale(&self, group: usize) -> Result<f32, usize> {
        let (mut w, dtype) = (self.group(group)?, self.weight.dtype);
        w.retain(|w| w.abs() >= self.deltas[group]);
        let sum = dtype.round(w.iter().map(|&w| f64::from(w.abs())).sum());
        let count = dtype.round(w.len() as f64);
        Ok(dtype.round(f64::from(sum) / f64::from(count)))
    }

    fn split(&self, row: usize, scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let w = &mut room.w;
        w.resize(codes.len(), 0.0);
        self.weight.read_f32(row * codes.len(), w);
        for (group, run) in runs(row, codes.len(), self.group_size) {
            for (code, &w) in codes[run.clone()].iter_mut().zip(&w[run]) {
                let is_active = scales[group] != 0.0 && w != 0.0 && w.abs() >= self.deltas[group];
                *code = if is_active { w.signum() as i8 } else { 0 };
            }
        }
        Ok(0.0)
    }
}
