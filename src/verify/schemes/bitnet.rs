//! BitNet, by docs/schemes.md:
//!
//! ```text
//! m     = mean |w| over the matrix, at least 1e-5
//! code  = w / m, rounded half to even, at most 1 in magnitude
//! scale = m
//! ```
//!
//! In f32, by 1 / m; the scale is then rounded to the dtype of the weights.

use formats::safetensors::Tensor;
use rayon::prelude::*;

use super::{Room, Ternarize, read, weight};
use crate::blueprint;
use crate::model::Checkpoint;

pub(super) struct Linear<'a> {
    weight: Tensor<'a>,
    /// 1 / m, or the index of a weight that is not finite.
    inverse: Result<f32, usize>,
}

impl<'a> Linear<'a> {
    pub fn new(checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let weight = weight(checkpoint, linear);
        let columns = weight.shape[1];
        let row_sum = |row: usize| {
            let mut w = vec![0.0; columns];
            read(&weight, row * columns, &mut w)?;
            Ok(w.iter().map(|&w| f64::from(w).abs()).sum::<f64>())
        };
        let sums: Result<Vec<f64>, usize> = (0..weight.shape[0]).into_par_iter().map(row_sum).collect();
        let inverse = sums.map(|sums| {
            let mean = (sums.iter().sum::<f64>() / weight.len() as f64) as f32;
            mean.max(1e-5).recip()
        });
        Self { weight, inverse }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.weight.len()
    }

    fn scale(&self, _: usize) -> Result<f32, usize> {
        let dtype = self.weight.dtype;
        self.inverse.map(|inverse| dtype.round(inverse.recip().into()))
    }

    fn split(&self, row: usize, _: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let (w, inverse) = (&mut room.w, self.inverse.unwrap_or(0.0));
        w.resize(codes.len(), 0.0);
        self.weight.read_f32(row * codes.len(), w);
        for (code, &w) in codes.iter_mut().zip(&*w) {
            // Half goes to even, which is 0.
            *code = i8::from(w * inverse > 0.5) - i8::from(w * inverse < -0.5);
        }
        Ok(0.0)
    }
}
