//! The scheme of tests: `model::schemes::made_up` says what it is.

use crate::blueprint::Linear;
use crate::model::{Checkpoint, MadeUp};
use crate::pack::PackError;
use crate::pack::latent::{Formula, Latent};
use crate::pack::source::{DeadZone, LatentRow, TernaryRows};
use crate::pack::ternary::TernaryRow;
use crate::simd::{Lanes, Level};

pub fn rows<'a>(
    scheme: &MadeUp,
    checkpoint: &'a Checkpoint,
    linear: Linear,
    level: Level,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let rule = Rule(scheme.threshold as f32);
    let weight = checkpoint.weight(linear);
    let latent = Latent::new(linear.checkpoint_name(), weight, None, scheme.group_size, rule, level)?;
    Ok(Box::new(latent))
}

/// The threshold.
struct Rule(f32);

impl Formula for Rule {
    #[inline(always)]
    fn sum(&self, _: impl Lanes, w: &[f32]) -> f64 {
        w.iter().map(|&w| f64::from(w) * f64::from(w)).sum()
    }

    #[inline(always)]
    fn scales(&self, sums: &[f64], count: usize, scales: &mut [f32]) {
        for (scale, sum) in scales.iter_mut().zip(sums) {
            *scale = (sum / count as f64).sqrt() as f32;
        }
    }

    #[inline(always)]
    fn split(&self, lanes: impl Lanes, latent: &mut LatentRow, row: &mut TernaryRow) -> DeadZone {
        latent.deltas.clear();
        latent.deltas.extend(row.scales.iter().map(|scale| self.0 * scale));
        let split = lanes.split_row(&latent.w, &row.ends, &latent.deltas, &mut row.codes);
        DeadZone {
            weights: latent.w.len() - split.active,
            ..DeadZone::default()
        }
    }
}
