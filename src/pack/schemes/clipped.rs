//! LSQ and SEQ (as AngelSlim's `LSQLinear` and ParetoQ's `StretchedElasticQuant` compute them at 0 bits, which are 1.58).
//!
//! ```text
//! a = the row's weight_clip_val, at least 1e-5
//! LSQ:  code = w / a, rounded half to even, at most 1 in magnitude          scale = a
//! SEQ:  code = w / a, at most 0.99, times 1.5, rounded half to even         scale = 2/3 * a
//! ```
//!
//! Every step is rounded to the checkpoint's dtype; a quotient to f32 first, as PyTorch divides.

use formats::safetensors::Dtype;

use crate::blueprint::Linear;
use crate::model::{CLIP, Checkpoint, Clipped};
use crate::pack::PackError;
use crate::pack::numbers::numbers;
use crate::pack::scaled::{Rounding, Scaled};
use crate::pack::source::TernaryRows;

/// The rows of `linear`.
pub fn rows<'a>(
    scheme: Clipped,
    checkpoint: &'a Checkpoint,
    linear: Linear,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let (name, weight) = (linear.checkpoint_name(), checkpoint.weight(linear));
    let clip = checkpoint.beside(linear, CLIP).expect("Checkpoint::open found it");
    // PyTorch computes with the wider of two dtypes.
    let dtype = if clip.dtype == weight.dtype {
        weight.dtype
    } else {
        Dtype::F32
    };
    let mut ranges = numbers(clip, &format!("{name}.{CLIP}"))?;
    let least = dtype.round(1e-5);
    ranges.iter_mut().for_each(|range| *range = range.max(least));
    Ok(Box::new(Scaled {
        name,
        weight,
        rounding: Rule { scheme, dtype, ranges },
    }))
}

struct Rule {
    scheme: Clipped,
    /// What training computes in.
    dtype: Dtype,
    /// Of each row. (rows,)
    ranges: Vec<f32>,
}

impl Rounding for Rule {
    fn scale(&self, index: usize) -> f32 {
        let range = self.ranges[index];
        match self.scheme {
            Clipped::Lsq => range,
            Clipped::Seq => {
                let level = self.dtype.round(f64::from(1f32 / 1.5));
                self.dtype.round(f64::from(level * range))
            }
        }
    }

    fn code(&self, index: usize, w: f32) -> i8 {
        let share = self.dtype.round(f64::from(w / self.ranges[index]));
        let stretched = match self.scheme {
            Clipped::Lsq => share,
            Clipped::Seq => self.dtype.round(f64::from(share.clamp(-0.99, 0.99) * 1.5)),
        };
        stretched.round_ties_even().clamp(-1.0, 1.0) as i8
    }
}
