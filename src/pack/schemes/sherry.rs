//! Sherry (as AngelSlim's `NMQuant` computes it).
//!
//! ```text
//! of every four neighbours in a row the smallest magnitude becomes 0; of equal ones the last
//! scale = sum of the kept |w| over the group / (3/4 of its weights)
//! code  = sign of a kept weight
//! ```
//!
//! The sum and the quotient are each rounded to the checkpoint's dtype. Which of equal weights is dropped is left to
//! `torch.topk`: on CUDA, where such models are trained, the last.

use formats::safetensors::Dtype;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, QUAD, Sherry};
use crate::pack::PackError;
use crate::pack::latent::{Formula, Latent};
use crate::pack::source::{DeadZone, LatentRow, TernaryRows};
use crate::pack::ternary::TernaryRow;
use crate::simd::{Lanes, Level};

/// The rows of `linear`.
pub fn rows<'a>(
    scheme: &Sherry,
    checkpoint: &'a Checkpoint,
    linear: Linear,
    level: Level,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let weight = checkpoint.weight(linear);
    let group_size = scheme.granularity.group_size(weight.shape[0], weight.shape[1]);
    let rule = Rule(weight.dtype);
    let latent = Latent::new(linear.checkpoint_name(), weight, None, group_size, rule, level)?;
    Ok(Box::new(latent))
}

/// The dtype of the weights.
struct Rule(Dtype);

impl Formula for Rule {
    #[inline(always)]
    fn sum(&self, lanes: impl Lanes, w: &[f32]) -> f64 {
        const PIECE: usize = 1024;
        let (mut kept, mut sum) = ([0.0; PIECE], 0.0);
        for w in w.chunks(PIECE) {
            let kept = &mut kept[..w.len()];
            kept.copy_from_slice(w);
            for quad in kept.as_chunks_mut::<QUAD>().0 {
                quad[smallest(quad).index] = 0.0;
            }
            sum += lanes.absolute_sum(kept);
        }
        sum
    }

    #[inline(always)]
    fn scales(&self, sums: &[f64], count: usize, scales: &mut [f32]) {
        let kept = (count / QUAD * (QUAD - 1)) as f64;
        for (scale, &sum) in scales.iter_mut().zip(sums) {
            *scale = self.0.round(f64::from(self.0.round(sum)) / kept);
        }
    }

    #[inline(always)]
    fn split(&self, lanes: impl Lanes, latent: &mut LatentRow, row: &mut TernaryRow) -> DeadZone {
        let mut ties = 0;
        let quads = latent.w.as_chunks::<QUAD>().0.iter();
        for (quad, codes) in quads.zip(row.codes.as_chunks_mut::<QUAD>().0) {
            let smallest = smallest(quad);
            *codes = quad.map(|w| i8::from(w > 0.0) - i8::from(w < 0.0));
            codes[smallest.index] = 0;
            ties += usize::from(smallest.is_tied);
        }
        row.clear_codes_without_scale();
        DeadZone {
            weights: row.codes.len() - lanes.active_count(&row.codes),
            bias: 0.0,
            ties,
        }
    }
}

/// The weight of a quad that becomes 0.
struct Smallest {
    index: usize,
    /// Whether another one, no zero, is as small.
    is_tied: bool,
}

#[inline(always)]
fn smallest(quad: &[f32; QUAD]) -> Smallest {
    let magnitudes = quad.map(f32::abs);
    let [a, b, c, d] = magnitudes;
    let least = a.min(b).min(c.min(d));
    let is_least = magnitudes.map(|magnitude| magnitude == least);
    let count = is_least.map(u8::from).iter().sum::<u8>();
    Smallest {
        // None is where all are NaN.
        index: is_least.iter().rposition(|&is_least| is_least).unwrap_or(QUAD - 1),
        is_tied: count > 1 && least > 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_weights_the_last_is_dropped_and_none_that_is_not_finite() {
        for (quad, index, is_tied) in [
            ([1.0, -2.0, 3.0, 4.0], 0, false),
            ([1.0, -1.0, 3.0, 4.0], 1, true),
            ([2.0, 1.0, 1.0, -1.0], 3, true),
            ([0.0, 5.0, -0.0, 4.0], 2, false),
            ([f32::NAN, 5.0, 6.0, 7.0], 1, false),
            ([f32::INFINITY, 8.0, 6.0, 7.0], 2, false),
        ] {
            let found = smallest(&quad);
            assert_eq!((found.index, found.is_tied), (index, is_tied), "{quad:?}");
        }
    }

    #[test]
    fn scales_are_rounded_twice() {
        let mut scale = [0.0];
        // Of 96 kept: 998.5 rounds to 1000 in bf16, and 1000 / 96 to 10.4375; 998.5 / 96 alone would be 10.375.
        Rule(Dtype::BF16).scales(&[998.5], 128, &mut scale);
        assert_eq!(scale[0], 10.4375);
        // The sum of a large matrix leaves f16.
        Rule(Dtype::F16).scales(&[70000.0], 1 << 20, &mut scale);
        assert_eq!(scale[0], f32::INFINITY);
    }
}
