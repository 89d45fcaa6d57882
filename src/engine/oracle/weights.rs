//! What the oracle is given: hyper-parameters, and weights a few rows at a time.

use std::ops::Range;

use half::{bf16, f16};

use crate::blueprint::{Norm, Part};
use crate::engine::EngineError;
use crate::engine::hyper::Hyper;

/// Where the oracle gets its weights from.
pub trait Weights: Sync {
    /// What the forward pass is computed by.
    fn hyper(&self) -> &Hyper;

    /// The embedding (vocab, hidden).
    ///
    /// # Errors
    /// Those of the source, as in all that follow.
    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError>;

    /// The head (vocab, hidden): the embedding, where that serves as the head.
    ///
    /// # Errors
    /// Those of the source.
    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError>;

    /// A linear of layer `layer`, from 0. Rows are in Hugging Face's order: not permuted.
    ///
    /// # Errors
    /// Those of the source.
    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError>;

    /// The weights of a norm. What an architecture has no place for ([`Variant`](crate::blueprint::Variant)) is not
    /// asked for.
    ///
    /// # Errors
    /// Those of the source.
    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError>;

    /// Round the key and the value of a head, (head_dim,) each, as engines keep them. Not at all, unless they do.
    fn round_head(&self, _key: &mut [f64], _value: &mut [f64]) {}

    /// How engines round what they multiply with keys and values.
    fn attention_rounding(&self) -> AttentionRounding {
        AttentionRounding::default()
    }
}

/// How an engine rounds what it multiplies with keys and values.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttentionRounding {
    /// Of the queries, times `log2(e) / sqrt(head_dim)`.
    pub queries: Rounding,
    /// Of the weights, times the power of two that makes the largest of them between 1/2 and 1.
    pub weights: Rounding,
}

/// The rows of a matrix, made as they are asked for: `y = W x + b`.
pub trait Rows: Sync {
    /// Rows and columns.
    fn shape(&self) -> (usize, usize);

    /// W and b of the rows `rows`: `weights` (rows, columns) row-major, `bias` (rows,). For a Tequila linear the
    /// offline bias is in b. What is handed in is overwritten.
    ///
    /// # Errors
    /// Those of the source.
    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError>;

    /// How engines round the `x` of this matrix.
    fn rounding(&self) -> Rounding {
        Rounding::None
    }
}

/// How an engine rounds the activations that it multiplies by a matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// Not at all.
    #[default]
    None,
    /// Each to bfloat16.
    Bf16,
    /// Each to half precision.
    F16,
    /// 32 of them to 8-bit codes times one f16 scale (ggml's Q8_0).
    Q8_0,
    /// So many of them to 8-bit codes times one f32 scale (256: ggml's Q8_K).
    K(usize),
}

impl Rounding {
    /// Round `x`, whole groups.
    pub fn apply(self, x: &mut [f64]) {
        match self {
            Rounding::None => {}
            Rounding::Bf16 => x.iter_mut().for_each(|x| *x = bf16::from_f64(*x).into()),
            Rounding::F16 => x.iter_mut().for_each(|x| *x = f16::from_f64(*x).into()),
            Rounding::Q8_0 => round_groups(x, 32, |scale| f16::from_f64(scale).into()),
            Rounding::K(group) => round_groups(x, group, |scale| scale),
        }
    }
}

/// `x = round(x / scale) * stored(scale)`, with the scale that makes the largest of a group +-127.
fn round_groups(x: &mut [f64], group: usize, stored: impl Fn(f64) -> f64) {
    for x in x.chunks_mut(group) {
        let largest = x.iter().fold(0f64, |largest, x| largest.max(x.abs()));
        if largest == 0.0 {
            continue;
        }
        let scale = largest / 127.0;
        let stored = stored(scale);
        x.iter_mut().for_each(|x| *x = (*x / scale).round_ties_even() * stored);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::oracle::tests::close;

    #[test]
    fn rounding_by_hand() {
        // The largest is 127 steps of 2; 5 is 2.5 of them, which goes to the even 2.
        let round = |rounding: Rounding| {
            let mut x = [0.0; 256];
            (x[0], x[1], x[40]) = (-254.0, 5.0, 1.001);
            rounding.apply(&mut x);
            [x[0], x[1], x[40]]
        };
        close(&round(Rounding::K(256)), &[-254.0, 4.0, 2.0]); // the third of the same group: half a step and a bit
        close(&round(Rounding::K(32)), &[-254.0, 4.0, 1.001]);
        let step = f64::from(f16::from_f64(1.001 / 127.0));
        close(&round(Rounding::Q8_0), &[-254.0, 4.0, 127.0 * step]);
        close(&round(Rounding::Bf16), &[-254.0, 5.0, 1.0]);
        close(&round(Rounding::F16), &[-254.0, 5.0, 1.0009765625]);
        close(&round(Rounding::None), &[-254.0, 5.0, 1.001]);
        let mut zeros = [0.0; 32];
        Rounding::Q8_0.apply(&mut zeros);
        close(&zeros, &[0.0; 32]);
    }
}
