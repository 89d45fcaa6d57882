//! Floats that are ternary already: the scale of a group is the one magnitude in it that is not zero, a code is a sign.
//!
//! Over how many weights a scale is taken is found here, in all of the data: the most that divide the matrix and hold no
//! two magnitudes beside zeros.

use formats::safetensors::Tensor;

use super::{Room, Ternarize};
use crate::blueprint;
use crate::model::Checkpoint;

/// Numbers that are read at once.
const PIECE: usize = 1 << 16;

/// A linear.
pub(super) struct Linear<'a> {
    weight: Tensor<'a>,
    group_size: usize,
}

impl<'a> Linear<'a> {
    pub fn new(checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let name = format!("{}.weight", linear.checkpoint_name());
        let weight = checkpoint.tensors.get(&name).expect("Checkpoint::open found it");
        Self {
            weight,
            group_size: group_size(weight),
        }
    }
}

/// A single weight is a group of one magnitude, so that there is always one.
fn group_size(weight: Tensor) -> usize {
    let length = weight.len();
    let small = (1..)
        .take_while(|n| n * n <= length)
        .filter(|n| length.is_multiple_of(*n));
    let mut divisors: Vec<usize> = small.flat_map(|n| [n, length / n]).collect();
    divisors.sort_unstable();
    let found = divisors
        .into_iter()
        .rev()
        .find(|&size| groups_have_one_scale(weight, size));
    found.unwrap_or(1)
}

/// Whether no group of `size` weights of the flattened matrix holds two magnitudes beside zeros.
fn groups_have_one_scale(weight: Tensor, size: usize) -> bool {
    let (mut w, mut group, mut scale) = (vec![], 0, 0.0);
    for first in (0..weight.len()).step_by(PIECE) {
        w.resize(PIECE.min(weight.len() - first), 0.0);
        weight.read_f32(first, &mut w);
        for (index, w) in w.iter().enumerate() {
            if (first + index) / size != group {
                (group, scale) = ((first + index) / size, 0.0);
            }
            if *w != 0.0 && scale != 0.0 && w.abs() != scale {
                return false;
            }
            scale = w.abs().max(scale);
        }
    }
    true
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.group_size
    }

    fn scale(&self, group: usize) -> Result<f32, usize> {
        let (start, end) = (group * self.group_size, (group + 1) * self.group_size);
        let (mut w, mut scale) = (vec![], 0f32);
        for first in (start..end).step_by(PIECE) {
            w.resize(PIECE.min(end - first), 0.0);
            self.weight.read_f32(first, &mut w);
            if let Some(index) = w.iter().position(|w| !w.is_finite()) {
                return Err(first + index);
            }
            scale = w.iter().fold(scale, |scale, w| scale.max(w.abs()));
        }
        Ok(scale)
    }

    fn split(&self, row: usize, _scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        room.w.resize(codes.len(), 0.0);
        self.weight.read_f32(row * codes.len(), &mut room.w);
        for (code, &w) in codes.iter_mut().zip(&room.w) {
            *code = i8::from(w > 0.0) - i8::from(w < 0.0);
        }
        Ok(0.0)
    }
}

#[cfg(test)]
mod tests {
    use formats::safetensors::Dtype;

    use super::*;

    /// The group size and the scales of a matrix of these numbers.
    fn found(shape: [usize; 2], numbers: &[f32]) -> (usize, Vec<f32>) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let weight = Tensor {
            dtype: Dtype::F32,
            shape: &shape,
            bytes: &bytes,
        };
        let group_size = group_size(weight);
        let linear = Linear { weight, group_size };
        let groups = 0..numbers.len() / group_size;
        (group_size, groups.map(|group| linear.scale(group).unwrap()).collect())
    }

    #[test]
    fn a_scale_holds_as_far_as_no_other_magnitude_comes() {
        // By hand: the whole matrix, rows, halves of the columns, halves of the rows, groups that cross rows.
        assert_eq!(found([2, 3], &[1.0, -1.0, 0.0, 0.0, 1.0, -0.0]), (6, vec![1.0]));
        assert_eq!(found([2, 3], &[1.0, -1.0, 0.0, 0.0, 2.0, 2.0]), (3, vec![1.0, 2.0]));
        let columns = [1.0, -1.0, 2.0, 0.0, 0.0, -1.0, 2.0, 2.0];
        assert_eq!(found([2, 4], &columns), (2, vec![1.0, 2.0, 1.0, 2.0]));
        let rows = [1.0, 1.0, -1.0, 1.0, 3.0, 0.0, 3.0, 0.0];
        assert_eq!(found([4, 2], &rows), (4, vec![1.0, 3.0]));
        let across = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 4.0, 4.0, 4.0];
        assert_eq!(found([2, 6], &across), (3, vec![1.0, 2.0, 0.0, 4.0]));
        // Nothing that is ternary: each weight by itself.
        assert_eq!(found([1, 3], &[1.0, 2.0, 3.0]), (1, vec![1.0, 2.0, 3.0]));
    }
}
