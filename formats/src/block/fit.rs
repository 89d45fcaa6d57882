//! The searches of ggml's K-quantizers: which scale, and which minimum, stores the weights of each
//! sub-block with the least weighted squared error.
//! Source: ggml-quants.c:621-689 (`nearest_int`, `make_qx_quants`), :799-878 (`make_qkx2_quants`).
//!
//! Both try a fixed list of grids, solve for the best scale on each grid by least squares, and keep
//! the best. Every sum is in f32 and in weight order: the result equals ggml's bit for bit, and so
//! the order of each operation here matters. A sum in order cannot be vectorised, but the `L`
//! sub-blocks of a block do not depend on each other: they are the lanes of every step, and arrays
//! are (weights, L). A lane whose sub-block is empty or flat computes nonsense that is discarded.

use std::array;

/// Weights below this are all stored as zero (`GROUP_MAX_EPS`).
pub(super) const NOTHING: f32 = 1e-15;

/// `x` rounded to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the
/// integer in the low bits of the significand. Beyond that range the result is what those bits say.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The first of the elements that are largest in magnitude, with its sign.
#[inline(always)]
pub(super) fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |largest: f32, &x| {
            if x.abs() > largest.abs() { x } else { largest }
        },
    )
}

#[inline(always)]
fn transpose<const N: usize, const L: usize>(x: &[[f32; N]; L]) -> [[f32; L]; N] {
    array::from_fn(|i| array::from_fn(|lane| x[lane][i]))
}

/// For each sub-block, codes in 0..64 and a scale with `x ~ scale * (code - 32)`: Q6_K.
///
/// The grids put the largest element at -(32 + k/10), k = 0, then -9..=9; error weights are x^2.
/// On a grid with integers l, scale = sum(x^2 * x * l) / sum(x^2 * l^2).
#[inline(always)]
pub(super) fn scales<const L: usize>(sub_blocks: &[[f32; 16]; L]) -> ([[u8; 16]; L], [f32; L]) {
    let on_grid = |x: f32| nearest(x).clamp(-32, 31);
    let lanes = transpose(sub_blocks);
    let largest = sub_blocks.each_ref().map(|x| largest_magnitude(x));

    let mut best_inverse = [0.0; L];
    let mut scale = [0.0; L];
    let mut gain = [0.0; L];
    for step in [0].into_iter().chain(-9..=-1).chain(1..=9) {
        let inverse = largest.map(|largest| -(32.0 + 0.1 * step as f32) / largest);
        let (mut xl, mut ll) = ([0.0; L], [0.0; L]);
        for x in &lanes {
            for j in 0..L {
                let l = on_grid(inverse[j] * x[j]) as f32;
                let w = x[j] * x[j];
                xl[j] += w * x[j] * l;
                ll[j] += w * l * l;
            }
        }
        for j in 0..L {
            if step == 0 || ll[j] > 0.0 && xl[j] * xl[j] > gain[j] * ll[j] {
                best_inverse[j] = inverse[j];
                scale[j] = if ll[j] != 0.0 { xl[j] / ll[j] } else { 0.0 };
                gain[j] = scale[j] * xl[j];
            }
        }
    }

    let mut stored = [[0; 16]; L];
    for j in 0..L {
        if largest[j].abs() < NOTHING {
            scale[j] = 0.0;
        } else {
            stored[j] = sub_blocks[j].map(|x| (on_grid(best_inverse[j] * x) + 32) as u8);
        }
    }
    (stored, scale)
}

/// For each sub-block `x ~ scale * stored - minimum`, with stored codes in 0..16 and minimum >= 0.
pub(super) struct Lines<const L: usize> {
    pub(super) stored: [[u8; 32]; L],
    pub(super) scale: [f32; L],
    pub(super) minimum: [f32; L],
}

/// The lines for Q4_K; error weights are rms(x) + |x|.
///
/// The grids have (15 - 1 + k/10) steps, k = 0..=20, between -minimum and max(x), where minimum is
/// that of the best line so far (at first that of min(x, 0)). On each grid, scale and minimum solve
/// the two normal equations, with the minimum held at 0 where it would be negative.
#[inline(always)]
pub(super) fn lines<const L: usize>(sub_blocks: &[[f32; 32]; L]) -> Lines<L> {
    let on_grid = |x: f32| nearest(x).clamp(0, 15);
    let lanes = transpose(sub_blocks);
    let weights = error_weights(&lanes);

    let (mut low, mut high) = ([0.0f32; L], [f32::NEG_INFINITY; L]);
    let (mut sum_w, mut sum_x) = ([0.0; L], [0.0; L]);
    for (x, w) in lanes.iter().zip(&weights) {
        for j in 0..L {
            low[j] = low[j].min(x[j]);
            high[j] = high[j].max(x[j]);
            sum_w[j] += w[j];
            sum_x[j] += w[j] * x[j];
        }
    }
    let lowest = low;

    let error = |grid: &[[f32; L]; 32], scale: &[f32; L], low: &[f32; L]| {
        let mut error = [0.0; L];
        for ((x, w), l) in lanes.iter().zip(&weights).zip(grid) {
            for j in 0..L {
                let difference = scale[j] * l[j] + low[j] - x[j];
                error[j] += w[j] * (difference * difference);
            }
        }
        error
    };

    let mut grid = [[0.0; L]; 32];
    let mut best_inverse: [f32; L] = array::from_fn(|j| 15.0 / (high[j] - low[j]));
    let mut best_grid_low = low;
    let mut scale = best_inverse.map(|inverse| 1.0 / inverse);
    for (x, l) in lanes.iter().zip(&mut grid) {
        for j in 0..L {
            l[j] = on_grid(best_inverse[j] * (x[j] - low[j])) as f32;
        }
    }
    let mut least = error(&grid, &scale, &low);

    for step in 0..=20 {
        let steps = -1.0 + 0.1 * step as f32 + 15.0;
        let inverse: [f32; L] = array::from_fn(|j| steps / (high[j] - low[j]));
        let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; L], [0.0; L], [0.0; L]);
        for ((x, w), l) in lanes.iter().zip(&weights).zip(&mut grid) {
            for j in 0..L {
                l[j] = on_grid(inverse[j] * (x[j] - low[j])) as f32;
                sum_l[j] += w[j] * l[j];
                sum_ll[j] += w[j] * l[j] * l[j];
                sum_xl[j] += w[j] * l[j] * x[j];
            }
        }

        let determinant: [f32; L] = array::from_fn(|j| sum_w[j] * sum_ll[j] - sum_l[j] * sum_l[j]);
        let (mut solved_scale, mut solved_low) = ([0.0; L], [0.0; L]);
        for j in 0..L {
            solved_scale[j] = (sum_w[j] * sum_xl[j] - sum_x[j] * sum_l[j]) / determinant[j];
            solved_low[j] = (sum_ll[j] * sum_x[j] - sum_l[j] * sum_xl[j]) / determinant[j];
            if solved_low[j] > 0.0 {
                solved_low[j] = 0.0;
                solved_scale[j] = sum_xl[j] / sum_ll[j];
            }
        }
        let error = error(&grid, &solved_scale, &solved_low);
        for j in 0..L {
            if determinant[j] > 0.0 && error[j] < least[j] {
                least[j] = error[j];
                best_inverse[j] = inverse[j];
                best_grid_low[j] = low[j];
                scale[j] = solved_scale[j];
                low[j] = solved_low[j];
            }
        }
    }

    let mut stored = [[0; 32]; L];
    for j in 0..L {
        if high[j] == lowest[j] {
            (scale[j], low[j]) = (0.0, lowest[j]);
        } else {
            stored[j] = sub_blocks[j].map(|x| on_grid(best_inverse[j] * (x - best_grid_low[j])) as u8);
        }
    }
    Lines {
        stored,
        scale,
        minimum: low.map(|low| -low),
    }
}

/// rms(x) + |x|. `lanes`: (32, L).
#[inline(always)]
fn error_weights<const L: usize>(lanes: &[[f32; L]; 32]) -> [[f32; L]; 32] {
    let mut squares = [0.0; L];
    for x in lanes {
        for j in 0..L {
            squares[j] += x[j] * x[j];
        }
    }
    let rms = squares.map(|squares| (squares / 32.0).sqrt());
    lanes.map(|x| array::from_fn(|j| rms[j] + x[j].abs()))
}
