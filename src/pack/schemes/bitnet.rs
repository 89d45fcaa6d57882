//! BitNet (as transformers' `WeightQuant` computes it).
//!
//! ```text
//! m     = mean |w| over the matrix, at least 1e-5
//! code  = w / m, rounded half to even, at most 1 in magnitude
//! scale = m
//! ```
//!
//! All of it is in f32, by 1 / m; the scale is then rounded to the checkpoint's dtype.

use rayon::prelude::*;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Stored};
use crate::pack::PackError;
use crate::pack::latent::LONGEST_SUM;
use crate::pack::numbers::{check_finite, not_finite, read_numbers, widen};
use crate::pack::scaled::{Rounding, Scaled};
use crate::pack::source::TernaryRows;

/// The rows of `linear`. Reads all its weights.
pub fn rows<'a>(checkpoint: &'a Checkpoint, linear: Linear) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    const LEAST: f32 = 1e-5;
    let (name, weight) = (linear.checkpoint_name(), checkpoint.weight(linear));
    let mean = mean(weight, &format!("{name}.weight"))?.max(LEAST);
    let inverse = 1.0 / mean;
    let rounding = Rule {
        inverse,
        scale: weight.dtype.round(f64::from(1.0 / inverse)),
    };
    Ok(Box::new(Scaled { name, weight, rounding }))
}

/// The mean of the magnitudes, in f32. The sum is in f64, in parts whose order does not depend on threads.
fn mean(weight: Stored, name: &str) -> Result<f32, PackError> {
    let length = weight.len();
    let part_sum = |from: usize| {
        let part = from..(from + LONGEST_SUM).min(length);
        let (mut bytes, mut w) = (vec![], vec![0.0; part.len()]);
        read_numbers(weight, part, &mut bytes)?;
        widen(&bytes, weight.dtype, &mut w);
        check_finite(&w).map_err(|found| not_finite(weight, name, found.after(from)))?;
        Ok(w.iter().map(|&w| f64::from(w.abs())).sum::<f64>())
    };
    let starts: Vec<_> = (0..length).step_by(LONGEST_SUM).collect();
    let sums = starts
        .into_par_iter()
        .map(part_sum)
        .collect::<Result<Vec<f64>, PackError>>()?;
    Ok((sums.iter().sum::<f64>() / length as f64) as f32)
}

struct Rule {
    /// One over the scale, before that is rounded.
    inverse: f32,
    scale: f32,
}

impl Rounding for Rule {
    fn scale(&self, _: usize) -> f32 {
        self.scale
    }

    fn code(&self, _: usize, w: f32) -> i8 {
        (w * self.inverse).round_ties_even().clamp(-1.0, 1.0) as i8
    }
}
