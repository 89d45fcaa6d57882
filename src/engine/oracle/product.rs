//! The one expensive thing: a matrix times the activations of many tokens, some rows of the matrix at a time, so that
//! neither memory nor cache has to hold more of it.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, LinalgScalar};

use super::weights::Rows;
use crate::engine::EngineError;

/// Most rows of a matrix that are made at a time.
const ROWS: usize = 256;

/// In what a product is computed. Everything else is in f64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32: half the time.
    Single,
    /// f64.
    Double,
}

/// `y_t = W x_t + b`: x (tokens, columns), y (tokens, rows).
pub(super) fn product<Y: Number>(matrix: &dyn Rows, x: &[f64], precision: Precision) -> Result<Vec<Y>, EngineError> {
    match precision {
        Precision::Single => product_in::<f32, Y>(matrix, x),
        Precision::Double => product_in::<f64, Y>(matrix, x),
    }
}

/// A floating-point number.
pub(super) trait Number: LinalgScalar + Send + Sync + Into<f64> {
    fn from_f64(x: f64) -> Self;
}

impl Number for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }
}

impl Number for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
}

fn product_in<T: Number, Y: Number>(matrix: &dyn Rows, x: &[f64]) -> Result<Vec<Y>, EngineError> {
    let (rows, columns) = matrix.shape();
    let tokens = x.len() / columns;
    let x: Vec<T> = x.par_iter().map(|&x| T::from_f64(x)).collect();
    let x = view((tokens, columns), &x);
    let mut y = vec![Y::zero(); tokens * rows];
    let step = rows.div_ceil(4 * rayon::current_num_threads()).clamp(1, ROWS);
    ArrayViewMut2::from_shape((tokens, rows), &mut y)
        .expect("y has tokens times rows numbers")
        .axis_chunks_iter_mut(Axis(1), step)
        .into_par_iter()
        .enumerate()
        .try_for_each_init(Block::<T>::new, |block, (index, mut y)| {
            let first = index * step;
            block.read(matrix, first..first + y.ncols())?;
            let products = view((y.ncols(), columns), &block.weights).dot(&x.t());
            for (mut y, (product, bias)) in y
                .columns_mut()
                .into_iter()
                .zip(products.rows().into_iter().zip(&block.bias))
            {
                for (y, &product) in y.iter_mut().zip(product) {
                    *y = Y::from_f64(product.into() + bias);
                }
            }
            Ok::<(), EngineError>(())
        })?;
    Ok(y)
}

fn view<T>(shape: (usize, usize), numbers: &[T]) -> ArrayView2<'_, T> {
    ArrayView2::from_shape(shape, numbers).expect("as many numbers as the shape has")
}

/// Some rows of a matrix.
struct Block<T> {
    stored: Vec<f32>,
    weights: Vec<T>,
    bias: Vec<f64>,
}

impl<T: Number> Block<T> {
    fn new() -> Self {
        Self {
            stored: vec![],
            weights: vec![],
            bias: vec![],
        }
    }

    fn read(&mut self, matrix: &dyn Rows, rows: std::ops::Range<usize>) -> Result<(), EngineError> {
        self.stored.resize(rows.len() * matrix.shape().1, 0.0);
        self.bias.resize(rows.len(), 0.0);
        matrix.read(rows, &mut self.stored, &mut self.bias)?;
        self.weights.clear();
        let widened = self.stored.iter().map(|&w| T::from_f64(f64::from(w)));
        self.weights.extend(widened);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::oracle::tests::{Held, close};

    #[test]
    fn product_by_hand() {
        // Rows (1, 2, 3) and (0, -1, 1).
        let matrix = Held {
            weights: vec![1.0, 2.0, 3.0, 0.0, -1.0, 1.0],
            columns: 3,
            bias: vec![10.0, 20.0],
        };
        let x = [1.0, 1.0, 1.0, 0.0, 2.0, 5.0];
        for precision in [Precision::Single, Precision::Double] {
            let y: Vec<f64> = product(&matrix, &x, precision).unwrap();
            close(&y, &[16.0, 20.0, 29.0, 23.0]);
        }
    }

    #[test]
    fn more_rows_than_are_made_at_a_time() {
        let (rows, columns, tokens) = (3 * ROWS + 1, 70, 5);
        let matrix = Held {
            weights: (0..rows * columns).map(|i| (i / columns) as f32).collect(),
            columns,
            bias: vec![0.5; rows],
        };
        let x: Vec<f64> = (0..tokens * columns).map(|i| (i % columns) as f64).collect();
        let y: Vec<f64> = product(&matrix, &x, Precision::Double).unwrap();
        // The numbers 0 to 69 add up to 2415.
        let expected: Vec<_> = (0..rows).map(|row| 2415.0 * row as f64 + 0.5).collect();
        close(&y, &expected.repeat(tokens));
    }
}
