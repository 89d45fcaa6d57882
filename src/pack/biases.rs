//! Biases that are left out of the file.

use super::encode::Loss;

/// How much they are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DroppedBiases {
    /// How many linears lose them.
    pub linears: usize,
    /// The largest, as a magnitude.
    pub largest: f64,
    /// Their squares, against those of the weights beside them: the share of the output's energy that is lost where
    /// inputs are independent, with a mean square of 1, as a norm leaves them.
    pub loss: Loss,
}

impl DroppedBiases {
    /// Count those of a linear. `energy`: the sum of its squared weights.
    pub fn add(&mut self, biases: &[f64], energy: f64) {
        self.linears += 1;
        self.largest = biases.iter().map(|bias| bias.abs()).fold(self.largest, f64::max);
        self.loss.error += biases.iter().map(|bias| bias * bias).sum::<f64>();
        self.loss.energy += energy;
    }
}
