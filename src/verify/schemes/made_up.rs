//! The scheme of tests: `model::schemes::made_up` says what it is.

use formats::safetensors::Tensor;

use super::{Room, Ternarize};
use crate::blueprint;
use crate::model::{Checkpoint, MadeUp};

pub(super) struct Linear<'a> {
    scheme: &'a MadeUp,
    weight: Tensor<'a>,
}

impl<'a> Linear<'a> {
    pub fn new(scheme: &'a MadeUp, checkpoint: &'a Checkpoint, linear: blueprint::Linear) -> Self {
        let name = format!("{}.weight", linear.checkpoint_name());
        let weight = checkpoint.tensors.get(&name).expect("Checkpoint::open found it");
        Self { scheme, weight }
    }
}

impl Ternarize for Linear<'_> {
    fn group_size(&self) -> usize {
        self.scheme.group_size
    }

    fn scale(&self, group: usize) -> Result<f32, usize> {
        let (first, size) = (group * self.scheme.group_size, self.scheme.group_size);
        let mut w = vec![0.0; size];
        self.weight.read_f32(first, &mut w);
        let squares = w.iter().map(|&w| f64::from(w).powi(2));
        match w.iter().position(|w| !w.is_finite()) {
            Some(index) => Err(first + index),
            None => Ok((squares.sum::<f64>() / size as f64).sqrt() as f32),
        }
    }

    fn split(&self, row: usize, scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str> {
        let first = row * codes.len();
        room.w.resize(codes.len(), 0.0);
        self.weight.read_f32(first, &mut room.w);
        for (column, (code, w)) in codes.iter_mut().zip(&room.w).enumerate() {
            let scale = scales[(first + column) / self.scheme.group_size];
            let active = w.abs() >= self.scheme.threshold as f32 * scale;
            *code = if active { w.signum() as i8 } else { 0 };
        }
        Ok(0.0)
    }
}
