//! BitNet's packed codes, by transformers' `unpack_weights`: row `i * P + p` is in bits 2i and 2i + 1 of the row `p` of
//! `P` rows of bytes, as code + 1. BitLinear divides by `weight_scale`; AutoBitLinear multiplies by it, its bias too.

use formats::safetensors::Tensor;

use super::{Room, Ternarize};
use crate::blueprint;
use crate::model::{Checkpoint, Direction, Packed, WEIGHT_SCALE};

/// A linear.
pub(super) struct Linear<'a> {
    codes: Tensor<'a>,
    weights: usize,
    weight_scale: f32,
    direction: Direction,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: &Packed, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let tensor = |part: &str| {
            let tensor = checkpoint.tensors.get(&format!("{}.{part}", linear.checkpoint_name()));
            tensor.expect("Checkpoint::open found every tensor")
        };
        let (rows, columns) = linear.shape(&checkpoint.config.dims);
        let mut weight_scale = [0.0];
        tensor(WEIGHT_SCALE).read_f32(0, &mut weight_scale);
        Self {
            codes: tensor("weight"),
            weights: rows * columns,
            weight_scale: weight_scale[0],
            direction: scheme.direction,
        }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.weights
    }

    fn scale(&self, _group: usize) -> Result<f32, usize> {
        Ok(match self.direction {
            Direction::Divides => 1.0 / self.weight_scale,
            Direction::Multiplies => self.weight_scale,
        })
    }

    fn split(&self, row: usize, _scales: &[f32], _room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let byte_rows = self.codes.shape[0];
        let (i, p) = (row / byte_rows, row % byte_rows);
        for (column, code) in codes.iter_mut().enumerate() {
            let byte = self.codes.bytes[p * self.codes.shape[1] + column];
            // 3 is no code: whatever a file has in its place is wrong.
            *code = ((byte >> (2 * i)) % 4) as i8 - 1;
        }
        Ok(0.0)
    }

    fn bias_factor(&self) -> f64 {
        match self.direction {
            Direction::Divides => 1.0,
            Direction::Multiplies => self.weight_scale.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Tensors;

    #[test]
    fn codes_and_scales_are_those_of_transformers() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/rules/rules.safetensors");
        let tensors = Tensors::open(&file).unwrap();
        for (key, direction) in [
            ("bitnet_packed_divide", Direction::Divides),
            ("bitnet_packed_multiply", Direction::Multiplies),
            ("bitnet_packed_padded", Direction::Divides),
        ] {
            let tensor = |part: &str| tensors.get(&format!("{key}.{part}")).unwrap();
            let number = |part: &str| {
                let mut number = [0.0];
                tensor(part).read_f32(0, &mut number);
                number[0]
            };
            let golden = tensor("codes");
            let [rows, columns] = golden.shape[..] else { panic!() };
            let linear = Linear {
                codes: tensor("weight"),
                weights: rows * columns,
                weight_scale: number("weight_scale"),
                direction,
            };
            assert_eq!(linear.scale(0), Ok(number("scale")), "{key}");
            let mut codes = vec![9; columns];
            for row in 0..rows {
                linear.split(row, &[], &mut Room::default(), &mut codes).unwrap();
                let golden = golden.bytes[row * columns..][..columns].iter().map(|&code| code as i8);
                assert!(codes.iter().copied().eq(golden), "{key} row {row}");
            }
        }
    }
}
