//! LSQ and SEQ at 1.58 bits, by docs/schemes.md:
//!
//! ```text
//! a = the row's weight_clip_val, at least 1e-5
//! LSQ:  code = w / a, rounded half to even, at most 1 in magnitude          scale = a
//! SEQ:  code = w / a, at most 0.99, times 1.5, rounded half to even         scale = 2/3 * a
//! ```
//!
//! Each step is rounded to the dtype of the weights, a quotient and a product to f32 before.

use formats::safetensors::{Dtype, Tensor};

use super::{Room, Ternarize, weight};
use crate::blueprint;
use crate::model::{CLIP, Checkpoint, Clipped};

pub(super) struct Linear<'a> {
    scheme: Clipped,
    weight: Tensor<'a>,
    clip: Tensor<'a>,
    dtype: Dtype,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: Clipped, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let name = format!("{}.{CLIP}", linear.checkpoint_name());
        let clip = checkpoint
            .tensors
            .get(&name)
            .expect("Checkpoint::open found every tensor");
        let weight = weight(checkpoint, linear);
        // A bf16 number and one of another dtype meet in f32.
        let dtype = match (weight.dtype, clip.dtype) {
            (Dtype::BF16, Dtype::BF16) => Dtype::BF16,
            (Dtype::F16, Dtype::F16) => Dtype::F16,
            _ => Dtype::F32,
        };
        Self {
            scheme,
            weight,
            clip,
            dtype,
        }
    }

    fn rounded(&self, value: f32) -> f32 {
        self.dtype.round(value.into())
    }

    /// The clipping range of a row.
    fn range(&self, row: usize) -> f32 {
        let (mut clip, least) = ([0.0], self.dtype.round(1e-5));
        self.clip.read_f32(row, &mut clip);
        if clip[0] > least { clip[0] } else { least }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.weight.shape[1]
    }

    fn scale(&self, row: usize) -> Result<f32, usize> {
        let columns = self.weight.shape[1];
        super::read(&self.weight, row * columns, &mut vec![0.0; columns])?;
        let range = self.range(row);
        Ok(match self.scheme {
            Clipped::Lsq => range,
            Clipped::Seq => self.rounded(self.rounded(1.0 / 1.5) * range),
        })
    }

    fn split(&self, row: usize, _: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let mut clip = [0.0];
        self.clip.read_f32(row, &mut clip);
        if !clip[0].is_finite() {
            return Err(CLIP);
        }
        let (w, range) = (&mut room.w, self.range(row));
        w.resize(codes.len(), 0.0);
        self.weight.read_f32(row * codes.len(), w);
        for (code, &w) in codes.iter_mut().zip(&*w) {
            let share = self.rounded(w / range);
            let level = match self.scheme {
                Clipped::Lsq => share,
                Clipped::Seq => self.rounded(share.clamp(-0.99, 0.99) * 1.5),
            };
            // Half goes to even: 0.5 to 0, while 1.5 is cut to 1 in any case.
            *code = i8::from(level > 0.5) - i8::from(level < -0.5);
        }
        Ok(0.0)
    }
}
