//! The training schemes once more, plainly, one file each: the second witness of what `pack::schemes` computes. It
//! shares nothing with that; PyTorch's golden values witness both.

mod bitnet;
mod clipped;
mod floats;
#[cfg(test)]
mod made_up;
mod packed;
mod sherry;
mod tequila;
#[cfg(test)]
mod tests;
mod twn;

use formats::safetensors::Tensor;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Scheme};

/// How one linear of a checkpoint becomes scales, codes and biases.
pub(super) trait Ternarize: Sync {
    /// Weights a scale, over the flattened matrix.
    fn group_size(&self) -> usize;

    /// The trained scale of a group.
    ///
    /// # Errors
    /// The index, in the flattened matrix, of a weight that is NaN or infinite.
    fn scale(&self, group: usize) -> Result<f32, usize>;

    /// Write the codes of row `row`; gives its offline bias, 0 where the scheme has none. `scales`: of all groups.
    /// `codes`: (columns,).
    ///
    /// # Errors
    /// The last name of a tensor of the row that holds NaN or infinity.
    fn split(&self, row: usize, scales: &[f32], room: &mut Room, codes: &mut [i8]) -> Result<f64, &'static str>;

    /// What the layer's own bias is multiplied by.
    fn bias_factor(&self) -> f64 {
        1.0
    }

    /// How many zeros were chosen among weights of equal magnitude, where a scheme has such a choice.
    fn ties(&self) -> u64 {
        0
    }
}

/// Room to work on a row.
#[derive(Default)]
pub(super) struct Room {
    w: Vec<f32>,
    beside: Vec<f32>,
    terms: Vec<f64>,
}

/// `linear` by the scheme of its checkpoint.
pub(super) fn of(checkpoint: &Checkpoint, linear: Linear) -> Box<dyn Ternarize + '_> {
    match &checkpoint.scheme {
        Scheme::Tequila(scheme) => Box::new(tequila::Linear::new(scheme, checkpoint, linear)),
        Scheme::Packed(scheme) => Box::new(packed::Linear::new(scheme, checkpoint, linear)),
        Scheme::Floats(_) => Box::new(floats::Linear::new(checkpoint, linear)),
        Scheme::Sherry(scheme) => Box::new(sherry::Linear::new(scheme, checkpoint, linear)),
        Scheme::Twn(scheme) => Box::new(twn::Linear::new(scheme, checkpoint, linear)),
        Scheme::Clipped(scheme) => Box::new(clipped::Linear::new(*scheme, checkpoint, linear)),
        Scheme::BitNet(_) => Box::new(bitnet::Linear::new(checkpoint, linear)),
        #[cfg(test)]
        Scheme::MadeUp(scheme) => Box::new(made_up::Linear::new(scheme, checkpoint, linear)),
    }
}

/// The latent weights of `linear`.
fn weight(checkpoint: &Checkpoint, linear: Linear) -> Tensor<'_> {
    let name = format!("{}.weight", linear.checkpoint_name());
    checkpoint
        .tensors
        .get(&name)
        .expect("Checkpoint::open found every weight")
}

/// Read the numbers of `tensor` from `first` on.
///
/// # Errors
/// The index of one that is NaN or infinite.
fn read(tensor: &Tensor, first: usize, numbers: &mut [f32]) -> Result<(), usize> {
    tensor.read_f32(first, numbers);
    match numbers.iter().position(|number| !number.is_finite()) {
        None => Ok(()),
        Some(index) => Err(first + index),
    }
}

/// The columns of row `row` that each group covers: (group, columns of the row).
pub(super) fn runs(
    row: usize,
    columns: usize,
    group_size: usize,
) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let (start, end) = (row * columns, (row + 1) * columns);
    (start / group_size..end.div_ceil(group_size)).map(move |group| {
        let from = (group * group_size).max(start);
        let to = ((group + 1) * group_size).min(end);
        (group, from - start..to - start)
    })
}
