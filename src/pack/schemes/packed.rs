//! BitNet's codes, four in a byte: byte `[p, c]` of `P` rows of bytes holds, from its lowest bits up, code + 1 of the
//! rows `p`, `P + p`, `2 P + p` and `3 P + p`, column `c`.

use std::ops::Range;

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Direction, Packed, Stored, WEIGHT_SCALE};
use crate::pack::PackError;
use crate::pack::numbers::numbers;
use crate::pack::source::{DeadZone, Input, TernaryRows};
use crate::pack::ternary::TernaryRow;

const CODES_A_BYTE: usize = 4;

/// The rows of `linear`, which is packed.
///
/// # Errors
/// A file that cannot be read; a scale that is not finite.
pub fn rows<'a>(
    scheme: &Packed,
    checkpoint: &'a Checkpoint,
    linear: Linear,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    let stored = weight_scale(checkpoint, linear)?;
    Ok(Box::new(Rows {
        name: checkpoint.weight_name(linear).into(),
        bytes: checkpoint.weight(linear),
        scale: match scheme.direction {
            Direction::Divides => 1.0 / stored,
            Direction::Multiplies => stored,
        },
    }))
}

/// What the layer's own bias is multiplied by: AutoBitLinear multiplies after it was added.
///
/// # Errors
/// A file that cannot be read; a scale that is not finite.
pub fn bias_factor(scheme: &Packed, checkpoint: &Checkpoint, linear: Linear) -> Result<f32, PackError> {
    match scheme.direction {
        Direction::Divides => Ok(1.0),
        Direction::Multiplies => weight_scale(checkpoint, linear),
    }
}

fn weight_scale(checkpoint: &Checkpoint, linear: Linear) -> Result<f32, PackError> {
    let stored = checkpoint.beside(linear, WEIGHT_SCALE);
    let name = format!("{}.{WEIGHT_SCALE}", linear.checkpoint_name());
    Ok(numbers(stored.expect("Checkpoint::open found it"), &name)?[0])
}

struct Rows<'a> {
    /// What the checkpoint calls the codes.
    name: String,
    /// (a quarter of the rows, columns)
    bytes: Stored<'a>,
    /// Of all weights.
    scale: f32,
}

impl Rows<'_> {
    fn columns(&self) -> usize {
        self.bytes.shape[1]
    }
}

impl TernaryRows for Rows<'_> {
    fn row_bytes(&self) -> usize {
        self.columns() / CODES_A_BYTE
    }

    /// The bytes that hold each of `rows`, one below the other.
    fn read(&self, rows: Range<usize>, input: &mut Input) -> Result<(), PackError> {
        let (columns, byte_rows) = (self.columns(), self.bytes.shape[0]);
        let weights = &mut input.weights;
        weights.first = rows.start * columns;
        weights.data.resize(rows.len() * columns, 0);
        let mut row = rows.start;
        while row < rows.end {
            let first = row % byte_rows;
            let count = (byte_rows - first).min(rows.end - row);
            let out = &mut weights.data[(row - rows.start) * columns..][..count * columns];
            let read = self.bytes.read(first * columns, out);
            read.map_err(|source| PackError::read(self.bytes.path, source))?;
            row += count;
        }
        Ok(())
    }

    fn row(&self, index: usize, input: &mut Input, row: &mut TernaryRow) -> Result<DeadZone, PackError> {
        let columns = self.columns();
        let shift = 2 * (index / self.bytes.shape[0]);
        let bytes = input.weights.get(index * columns..(index + 1) * columns);
        row.codes.clear();
        row.codes.extend(bytes.iter().map(|byte| (byte >> shift & 3) as i8 - 1));
        (row.ends, row.scales) = (vec![columns], vec![self.scale]);
        if let Some(column) = row.codes.iter().position(|&code| code > 1) {
            return Err(PackError::Code {
                path: self.bytes.path.into(),
                tensor: self.name.clone(),
                row: index,
                column,
            });
        }
        Ok(DeadZone {
            weights: row.codes.iter().filter(|&&code| code == 0).count(),
            ..DeadZone::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Tensors;

    /// transformers' `pack_weights`: 12 rows, and 10 rows in as many bytes.
    #[test]
    fn codes_are_those_that_were_packed() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/families/rules/rules.safetensors");
        let tensors = Tensors::open(&file).unwrap();
        for key in ["bitnet_packed_divide", "bitnet_packed_multiply", "bitnet_packed_padded"] {
            let golden = tensors.get(&format!("{key}.codes")).unwrap();
            let [rows, columns] = golden.shape[..] else { panic!() };
            let source = Rows {
                name: key.into(),
                bytes: tensors.stored(&format!("{key}.weight")).unwrap(),
                scale: 2.0,
            };
            let (mut input, mut row) = (Input::default(), TernaryRow::default());
            // From any row to any other, so that pieces begin and end within every part of a byte.
            for (first, end) in (0..rows).flat_map(|first| (first + 1..=rows).map(move |end| (first, end))) {
                source.read(first..end, &mut input).unwrap();
                for index in first..end {
                    let zeros = source.row(index, &mut input, &mut row).unwrap().weights;
                    let codes = golden.bytes[index * columns..][..columns]
                        .iter()
                        .map(|&code| code as i8);
                    assert!(row.codes.iter().copied().eq(codes), "{key} row {index}");
                    assert_eq!(zeros, row.codes.iter().filter(|&&code| code == 0).count());
                    assert_eq!((&row.ends[..], &row.scales[..]), (&[columns][..], &[2.0][..]));
                }
            }
        }
    }
}
