//! Tequila, by docs/tequila.md:
//!
//! ```text
//! scale = mean |w| over the group          delta = scale / 2
//! code  = +1 where w >= delta, -1 where w <= -delta, else 0 (the dead zone)
//! bias  = sum of lambda * w over the dead zone of the row
//! ```
//!
//! Scale, delta and comparison are in the dtype of the weights, each rounded once; sums are in f64.

use formats::safetensors::{Dtype, Tensor};
use rayon::prelude::*;

use super::{Room, Ternarize, runs};
use crate::blueprint;
use crate::model::{Checkpoint, LAMBADA, Lambda, Tequila};

/// A linear.
pub(super) struct Linear<'a> {
    weight: Tensor<'a>,
    /// Learned lambdas: one a weight, or one a row.
    lambada: Option<Tensor<'a>>,
    /// The lambda of all weights, where none is learned.
    lambda: f32,
    group_size: usize,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: &Tequila, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let name = linear.checkpoint_name();
        let tensor = |part: &str| {
            let tensor = checkpoint.tensors.get(&format!("{name}.{part}"));
            tensor.expect("Checkpoint::open found every tensor")
        };
        let weight = tensor("weight");
        let (lambda, lambada) = match scheme.lambda {
            Lambda::Fixed(lambda) => (weight.dtype.round(lambda), None),
            Lambda::Learned => (0.0, Some(tensor(LAMBADA))),
            Lambda::None => (0.0, None),
        };
        Self {
            weight,
            lambada,
            lambda,
            group_size: scheme.granularity.group_size(weight.shape[0], weight.shape[1]),
        }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn scale(&self, group: usize) -> Result<f32, usize> {
        const PIECE: usize = 1024;
        let start = group * self.group_size;
        let end = self.weight.len().min(start + self.group_size);
        let piece_sum = |from: usize| {
            let (mut piece, mut terms) = ([0.0; PIECE], [0.0; PIECE]);
            let count = PIECE.min(end - from);
            let (w, terms) = (&mut piece[..count], &mut terms[..count]);
            self.weight.read_f32(from, w);
            for (term, &w) in terms.iter_mut().zip(&*w) {
                *term = f64::from(w.abs());
            }
            match w.iter().position(|w| !w.is_finite()) {
                None => Ok(sum(terms)),
                Some(index) => Err(from + index),
            }
        };
        let starts: Vec<usize> = (start..end).step_by(PIECE).collect();
        let sums: Vec<f64> = match starts[..] {
            [only] => vec![piece_sum(only)?],
            _ => starts.into_par_iter().map(piece_sum).collect::<Result<_, _>>()?,
        };
        let mean = sums.iter().sum::<f64>() / (end - start) as f64;
        Ok(self.weight.dtype.round(mean))
    }

    fn split(&self, row: usize, scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let columns = codes.len();
        let Room { w, beside, terms } = room;
        w.resize(columns, 0.0);
        self.weight.read_f32(row * columns, w);
        for (group, run) in runs(row, columns, self.group_size) {
            codes_of(&w[run.clone()], scales[group], self.weight.dtype, &mut codes[run]);
        }
        let dead = w
            .iter()
            .zip(&*codes)
            .map(|(&w, &code)| if code == 0 { f64::from(w) } else { 0.0 });
        terms.clear();
        let Some(lambada) = self.lambada else {
            terms.extend(dead);
            return Ok(f64::from(self.lambda) * sum(terms));
        };
        let width = lambada.shape[1];
        beside.resize(width, 0.0);
        lambada.read_f32(row * width, beside);
        if width < columns {
            beside.resize(columns, beside[0]);
        }
        terms.extend(dead.zip(&*beside).map(|(w, &lambda)| f64::from(lambda) * w));
        let bias = sum(terms);
        // Sums of finite numbers are finite: f64 holds more than f32.
        if bias.is_finite() { Ok(bias) } else { Err(LAMBADA) }
    }
}

/// Codes of weights that share `scale`. Where that is 0, whatever is compared with it is 0 times something.
fn codes_of(w: &[f32], scale: f32, dtype: Dtype, codes: &mut [i8]) {
    let half = dtype.round(f64::from(scale) / 2.0);
    let delta = if scale == 0.0 { f32::INFINITY } else { half };
    for (code, &w) in codes.iter_mut().zip(w) {
        *code = i8::from(w >= delta) - i8::from(w <= -delta);
    }
}

/// The sum of numbers in the order that the formula is defined with: lane l of 16 adds up the numbers l, l + 16, l +
/// 32, ..., then the lanes are added by halves.
fn sum(numbers: &[f64]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0.0; LANES];
    let (whole, rest) = numbers.as_chunks::<LANES>();
    for numbers in whole {
        for l in 0..LANES {
            lanes[l] += numbers[l];
        }
    }
    for (lane, number) in lanes.iter_mut().zip(rest) {
        *lane += number;
    }
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_with_delta_is_active() {
        let w = [1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 0.499, -0.499];
        let mut codes = [9; 8];
        codes_of(&w, 1.0, Dtype::F32, &mut codes);
        assert_eq!(codes, [1, -1, 1, -1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_group_of_zeros_has_no_active_weight() {
        let mut codes = [9; 3];
        codes_of(&[0.0, -0.0, 0.0], 0.0, Dtype::BF16, &mut codes);
        assert_eq!(codes, [0; 3]);
    }

    #[test]
    fn lanes_are_added_by_halves() {
        // Lane 0 gets 1 and then 2^53, at which another 1 would be lost; lane 8 gets 1.
        let mut numbers = [0.0; 32];
        (numbers[0], numbers[16], numbers[8]) = (1.0, 2f64.powi(53), 1.0);
        assert_eq!(sum(&numbers), 2f64.powi(53));
        (numbers[0], numbers[8], numbers[24]) = (0.0, 1.0, 1.0);
        assert_eq!(sum(&numbers), 2f64.powi(53) + 2.0);
        // Whatever is left over after whole lanes counts, too.
        for n in 0..70 {
            let numbers: Vec<f64> = (1..=n).map(f64::from).collect();
            assert_eq!(sum(&numbers), f64::from(n * (n + 1) / 2), "{n}");
        }
    }

    #[test]
    fn groups_cross_rows() {
        let all: Vec<_> = (0..2).map(|row| runs(row, 192, 128).collect::<Vec<_>>()).collect();
        assert_eq!(all[0], [(0, 0..128), (1, 128..192)]);
        assert_eq!(all[1], [(1, 0..64), (2, 64..192)]);
        assert_eq!(runs(1, 4, 8).collect::<Vec<_>>(), [(0, 0..4)]);
    }
}
