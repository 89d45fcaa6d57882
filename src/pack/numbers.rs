//! Numbers of the input: read, widened to f32, and refused where they are NaN or infinite.

use std::ops::Range;

use formats::block::float;
use formats::safetensors::Dtype;

use super::PackError;
use crate::model::Stored;

/// A number that is NaN or infinite, by its index in what was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Index of the first such number.
    pub index: usize,
}

impl NotFinite {
    /// The same number, counted from `before` numbers earlier.
    pub fn after(self, before: usize) -> Self {
        Self {
            index: before + self.index,
        }
    }
}

/// The bytes of `range` of a tensor's numbers.
///
/// # Errors
/// A file that cannot be read.
pub fn read_numbers(stored: Stored, range: Range<usize>, out: &mut Vec<u8>) -> Result<(), PackError> {
    out.resize(range.len() * stored.number_bytes(), 0);
    stored
        .read(range.start, out)
        .map_err(|source| PackError::read(stored.path, source))
}

/// Little-endian numbers as f32. `out`: (n,), as many as `bytes` holds.
#[inline(always)]
pub fn widen(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => float::read_f32(bytes, out),
        Dtype::F16 => float::read_f16(bytes, out),
        _ => float::read_bf16(bytes, out),
    }
}

/// Numbers as a tensor of F32 has them.
pub fn number_bytes(numbers: impl Iterator<Item = f32>) -> Vec<u8> {
    numbers.flat_map(f32::to_le_bytes).collect()
}

/// All numbers of a short tensor.
///
/// # Errors
/// A file that cannot be read; a number that is not finite.
pub fn numbers(stored: Stored, name: &str) -> Result<Vec<f32>, PackError> {
    let (mut bytes, mut numbers) = (vec![], vec![0.0; stored.len()]);
    read_numbers(stored, 0..stored.len(), &mut bytes)?;
    widen(&bytes, stored.dtype, &mut numbers);
    check_finite(&numbers).map_err(|found| not_finite(stored, name, found))?;
    Ok(numbers)
}

/// # Errors
/// The first number that is NaN or infinite.
#[inline(always)]
pub fn check_finite(numbers: &[f32]) -> Result<(), NotFinite> {
    // All are looked at, so that no branch keeps the loop from being vectorised.
    if numbers.iter().fold(true, |finite, number| finite & number.is_finite()) {
        return Ok(());
    }
    let index = numbers.iter().position(|number| !number.is_finite()).unwrap_or(0);
    Err(NotFinite { index })
}

/// The error of a number of `stored` that is NaN or infinite, by its index in the tensor.
pub fn not_finite(stored: Stored, name: &str, found: NotFinite) -> PackError {
    let mut bytes = vec![];
    let mut value = [0.0];
    if let Err(error) = read_numbers(stored, found.index..found.index + 1, &mut bytes) {
        return error;
    }
    widen(&bytes, stored.dtype, &mut value);
    let columns = if stored.shape.len() == 2 {
        stored.shape[1]
    } else {
        stored.len()
    };
    PackError::NotFinite {
        path: stored.path.into(),
        tensor: name.into(),
        row: found.index / columns,
        column: found.index % columns,
        value: value[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_finite_is_found() {
        let mut numbers = vec![1.0; 100];
        assert_eq!(check_finite(&numbers), Ok(()));
        numbers[99] = f32::NAN;
        numbers[77] = f32::NEG_INFINITY;
        assert_eq!(check_finite(&numbers), Err(NotFinite { index: 77 }));
    }
}
