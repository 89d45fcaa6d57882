//! Numbers that are NaN or infinite.

use formats::block::BlockError;
use formats::gguf::{File, TensorInfo};
use rayon::prelude::*;

use super::super::report::{Check, CheckId, SHOWN};

/// No weight, scale, norm or bias is NaN or infinite.
pub fn check(file: &File) -> Check {
    let mut problems = vec![];
    let mut wrong = 0;
    for info in file.tensors() {
        match first_not_finite(file, info) {
            Ok(None) => continue,
            Ok(Some((row, column, value))) => {
                problems.push(format!("tensor '{}' row {row} column {column} is {value}", info.name))
            }
            Err(error) => problems.push(format!("tensor '{}': {error}", info.name)),
        }
        wrong += 1;
        if problems.len() > SHOWN {
            break;
        }
    }
    Check::none_differ(
        CheckId::FiniteNumbers,
        wrong,
        file.tensors().len() as u64,
        "tensors",
        "one NaN makes every logit a NaN",
    )
    .with_details(problems)
}

/// (row, column, value) of the first number of a tensor that is NaN or infinite.
fn first_not_finite(file: &File, info: &TensorInfo) -> Result<Option<(usize, usize, f32)>, BlockError> {
    let Some((columns, row_bytes, bytes)) = rows(file, info) else {
        return Ok(None);
    };
    bytes
        .par_chunks_exact(row_bytes)
        .enumerate()
        .map_init(
            || vec![0.0; columns],
            |numbers, (row, bytes)| {
                info.ty.dequantize_row(bytes, numbers)?;
                // A sum of finite f64 stays finite here, and is much faster than a test of each.
                let sum: f64 = numbers.iter().map(|&w| f64::from(w)).sum();
                let column = (!sum.is_finite())
                    .then(|| numbers.iter().position(|w| !w.is_finite()))
                    .flatten();
                Ok(column.map(|column| (row, column, numbers[column])))
            },
        )
        .find_first(|found| !matches!(found, Ok(None)))
        .unwrap_or(Ok(None))
}

/// Columns, bytes of a row, and all bytes; `None` for a tensor without numbers.
fn rows<'a>(file: &File<'a>, info: &TensorInfo) -> Option<(usize, usize, &'a [u8])> {
    // Without numbers a row may have any width.
    let (_, bytes) = file.tensor(&info.name).filter(|(_, bytes)| !bytes.is_empty())?;
    let columns = usize::try_from(info.columns()).ok()?;
    let row_bytes = info.ty.row_bytes(columns)?;
    Some((columns, row_bytes, bytes))
}
