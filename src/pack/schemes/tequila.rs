//! Tequila (arXiv 2509.23809, as AngelSlim's `UltraQuantLinear` computes it).
//!
//! ```text
//! y = A x + bias            A = scale * code
//! scale = mean |w| over the group          delta = scale / 2
//! code  = +1 where w >= delta, -1 where w <= -delta, else 0 (the dead zone)
//! bias  = sum of lambda * w over the dead zone of the row
//! ```
//!
//! absmean is the same with zeros that are zeros: its lambda is 0.
//!
//! Scale, delta and the comparison are in the checkpoint's dtype (each rounded once); products and the sum of the bias
//! are in f64, in the order that `simd` has. docs/tequila.md has the derivation.

use formats::safetensors::Dtype;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, LAMBADA, Lambda, Tequila};
use crate::pack::PackError;
use crate::pack::latent::{Formula, Latent};
use crate::pack::source::{DeadZone, LatentRow, TernaryRows};
use crate::pack::ternary::TernaryRow;
use crate::simd::{self, LANES, Lanes, Level};

/// The rows of `linear`.
pub fn rows<'a>(
    scheme: &Tequila,
    checkpoint: &'a Checkpoint,
    linear: Linear,
    level: Level,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let weight = checkpoint.weight(linear);
    let beside = match scheme.lambda {
        Lambda::Learned => checkpoint.beside(linear, LAMBADA).map(|lambada| (LAMBADA, lambada)),
        Lambda::Fixed(_) | Lambda::None => None,
    };
    let formula = Rule {
        dtype: weight.dtype,
        lambda: scheme.lambda.fixed(weight.dtype),
    };
    let group_size = scheme.granularity.group_size(weight.shape[0], weight.shape[1]);
    let latent = Latent::new(linear.checkpoint_name(), weight, beside, group_size, formula, level)?;
    Ok(Box::new(latent))
}

struct Rule {
    /// That of the weights.
    dtype: Dtype,
    /// Where it is one number for the whole model.
    lambda: Option<f32>,
}

impl Formula for Rule {
    #[inline(always)]
    fn sum(&self, lanes: impl Lanes, w: &[f32]) -> f64 {
        lanes.absolute_sum(w)
    }

    #[inline(always)]
    fn scales(&self, sums: &[f64], count: usize, scales: &mut [f32]) {
        self.dtype.round_all(sums.iter().map(|sum| sum / count as f64), scales);
    }

    #[inline(always)]
    fn split(&self, lanes: impl Lanes, latent: &mut LatentRow, row: &mut TernaryRow) -> DeadZone {
        let LatentRow { w, beside, deltas, .. } = latent;
        deltas.resize(row.scales.len(), 0.0);
        take_deltas(&row.scales, self.dtype, deltas);
        let split = lanes.split_row(w, &row.ends, deltas, &mut row.codes);
        DeadZone {
            weights: w.len() - split.active,
            bias: match self.lambda {
                Some(lambda) => f64::from(lambda) * split.dead_sum,
                None => {
                    if let [lambda] = beside[..] {
                        beside.resize(w.len(), lambda); // one number a row
                    }
                    learned_bias(w, beside, &row.codes)
                }
            },
            ties: 0,
        }
    }
}

/// delta = scale / 2, in the dtype. Where scale is zero (a group of zeros, or of weights so small that their mean
/// rounds to zero) A is zero whatever a comparison says: no weight reaches infinity, so every code is 0. `scales`,
/// `deltas`: (runs,)
#[inline(always)]
fn take_deltas(scales: &[f32], dtype: Dtype, deltas: &mut [f32]) {
    dtype.round_all(scales.iter().map(|&scale| f64::from(scale) / 2.0), deltas);
    for (delta, &scale) in deltas.iter_mut().zip(scales) {
        *delta = if scale == 0.0 { f32::INFINITY } else { *delta };
    }
}

/// sum of lambda * w over the dead zone, in lanes. `w`, `lambda`, `codes`: (columns,)
#[inline(always)]
fn learned_bias(w: &[f32], lambda: &[f32], codes: &[i8]) -> f64 {
    /// Weights are chosen first and then multiplied: in two plain loops, each of which compilers turn into vector code.
    const CHOSEN: usize = 8 * LANES;
    let (mut sums, mut dead) = ([0.0; LANES], [0.0; CHOSEN]);
    let pieces = w.chunks(CHOSEN).zip(lambda.chunks(CHOSEN));
    for ((w, lambda), codes) in pieces.zip(codes.chunks(CHOSEN)) {
        for ((dead, &w), &code) in dead.iter_mut().zip(w).zip(codes) {
            *dead = if code == 0 { w } else { 0.0 };
        }
        add_products(&mut sums, &dead[..w.len()], lambda);
    }
    simd::fold(sums)
}

/// Add the products to the lanes. `x`, `y`: (n,), a multiple of the lanes but for the last time.
#[inline(always)]
fn add_products(sums: &mut [f64; LANES], x: &[f32], y: &[f32]) {
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in whole_x.iter().zip(whole_y) {
        for l in 0..LANES {
            sums[l] += f64::from(x[l]) * f64::from(y[l]);
        }
    }
    for ((sum, &x), &y) in sums.iter_mut().zip(rest_x).zip(rest_y) {
        *sum += f64::from(x) * f64::from(y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_means_rounded_once() {
        let rule = |dtype| Rule { dtype, lambda: None };
        let scale = |sum: f64, count, dtype| {
            let mut scale = [9.0];
            rule(dtype).scales(&[sum], count, &mut scale);
            scale[0]
        };
        // 1 + 2^-8 + 2^-40 lies just above the tie between the bf16 neighbours 1 and 1 + 2^-7.
        let mean = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(scale(mean, 1, Dtype::BF16), 1.0 + 2f32.powi(-7));
        assert_eq!(scale(1.0 + 2f64.powi(-8), 1, Dtype::BF16), 1.0);
        assert_eq!(scale(24.0 * mean, 24, Dtype::BF16), 1.0 + 2f32.powi(-7));
        // Of many at once as of each.
        let sums: Vec<f64> = (0..1000)
            .map(|i| f64::from(i * 7919 % 1009) * 10f64.powi(i % 9 - 6))
            .collect();
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            let (mut scales, mut deltas) = (vec![9.0; 1000], vec![9.0; 1000]);
            rule(dtype).scales(&sums, 24, &mut scales);
            take_deltas(&scales, dtype, &mut deltas);
            for ((sum, scale), delta) in sums.iter().zip(scales).zip(deltas) {
                assert_eq!(scale, dtype.round(sum / 24.0));
                let half = dtype.round(f64::from(scale) / 2.0);
                assert_eq!(delta, if scale == 0.0 { f32::INFINITY } else { half });
            }
        }
    }

    #[test]
    fn the_learned_bias_is_that_of_the_dead_zone() {
        for n in [1, 15, 16, 17, 127, 128, 129, 1000] {
            let numbers = |seed: usize| (0..n).map(move |i| ((i + seed) * 7919 % 1009) as f32 - 500.0);
            let (w, lambda): (Vec<_>, Vec<_>) = (numbers(0).collect(), numbers(77).collect());
            let codes: Vec<_> = (0..n).map(|i| [1, 0, 0, -1, 0][i % 5]).collect();
            let dead = (0..n).filter(|&i| codes[i] == 0);
            let sum: f64 = dead.map(|i| f64::from(w[i]) * f64::from(lambda[i])).sum();
            assert_eq!(learned_bias(&w, &lambda, &codes), sum, "{n}"); // whole numbers: exact in any order
        }
    }
}
