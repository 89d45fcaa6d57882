//! The product in f64: what every kernel is measured against.

use formats::block::{BlockError, BlockType};

/// `y[t * rows + r] = sum_c W[r][c] * x[t * columns + c]` in f64, W dequantized from `bytes`, x not quantized.
///
/// `bytes`: rows of whole blocks; `x`: (tokens, columns); returns (tokens, rows).
///
/// # Errors
/// No codec reads the type.
pub fn product(ty: BlockType, rows: usize, columns: usize, bytes: &[u8], x: &[f32]) -> Result<Vec<f64>, BlockError> {
    let tokens = x.len().checked_div(columns).unwrap_or(0);
    let row_bytes = bytes.len().checked_div(rows).unwrap_or(0);
    let mut y = vec![0.0; tokens * rows];
    let mut weights = vec![0.0f32; columns];
    for row in 0..rows {
        ty.dequantize_row(&bytes[row * row_bytes..][..row_bytes], &mut weights)?;
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(rows)) {
            y[row] = weights.iter().zip(x).map(|(&w, &x)| f64::from(w) * f64::from(x)).sum();
        }
    }
    Ok(y)
}
