//! The bias tensor of a linear.

use formats::block::BlockType;
use formats::gguf::File;

use super::super::report::{SHOWN, Tally};
use crate::blueprint::Linear;

/// Compare the bias tensor with what the checkpoint gives, bit for bit; count in `tally`, and return the places.
/// `order`: the checkpoint's row of each row of the file; `expected`: the bias of each row of the file.
pub(super) fn compare(
    file: &File,
    linear: Linear,
    order: &[usize],
    expected: &[f32],
    tally: &mut Tally,
) -> Vec<String> {
    let name = format!("{}.bias", linear.gguf_name());
    let Some(found) = numbers(file, &name).filter(|found| found.len() == expected.len()) else {
        let largest = tally.largest_bias;
        if largest == 0.0 {
            return vec![];
        }
        tally.biases_wrong = tally.rows;
        return vec![format!(
            "tensor '{name}' is missing or of another shape: biases up to {largest:.1e} are left out"
        )];
    };
    let wrong: Vec<usize> = (0..found.len())
        .filter(|&row| found[row].to_bits() != expected[row].to_bits())
        .collect();
    tally.biases_wrong = wrong.len() as u64;
    let place = |&row: &usize| {
        let (found, expected) = (found[row], expected[row]);
        format!("tensor '{name}' row {row}: bias {found:e}, expected {expected:e}")
    };
    let mut places: Vec<_> = wrong.iter().take(SHOWN + 1).map(place).collect();
    let mut plain = vec![0.0; expected.len()];
    order.iter().zip(expected).for_each(|(&from, &bias)| plain[from] = bias);
    if !wrong.is_empty() && found == plain {
        places.truncate(1);
        places.push(format!(
            "tensor '{name}' holds its rows in the checkpoint's order: they are not permuted for llama.cpp"
        ));
    }
    places
}

/// A tensor of F32.
fn numbers(file: &File, name: &str) -> Option<Vec<f32>> {
    let (_, bytes) = file.tensor(name).filter(|(info, _)| info.ty == BlockType::F32)?;
    Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}
