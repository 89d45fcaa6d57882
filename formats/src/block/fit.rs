//! The searches of ggml's K-quantizers: which scale, and which minimum, stores 16 or 32 weights
//! with the least weighted squared error.
//! Source: ggml-quants.c:621-689 (`nearest_int`, `make_qx_quants`), :799-878 (`make_qkx2_quants`).
//!
//! Both try a fixed list of grids, solve for the best scale on each grid by least squares, and keep
//! the best. Every sum is in f32 and in weight order: the result equals ggml's bit for bit, and so
//! the order of each operation here matters.

/// Weights below this are all stored as zero (`GROUP_MAX_EPS`).
pub(super) const NOTHING: f32 = 1e-15;

/// `x` rounded to the nearest integer, ties to even, for |x| < 2^22: adding 1.5 * 2^23 leaves the
/// integer in the low bits of the significand. Beyond that range the result is what those bits say.
#[inline]
pub(super) fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits();
    (bits & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The first of the elements that are largest in magnitude, with its sign.
#[inline]
pub(super) fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(
        0.0,
        |largest: f32, &x| {
            if x.abs() > largest.abs() { x } else { largest }
        },
    )
}

/// Codes in 0..64 and a scale with `x ~ scale * (code - 32)`, for Q6_K.
///
/// The grids put the largest element at -(32 + k/10), k = 0, then -9..=9; error weights are x^2.
/// On a grid with integers l, scale = sum(x^2 * x * l) / sum(x^2 * l^2).
pub(super) fn scale(x: &[f32; 16]) -> ([u8; 16], f32) {
    let largest = largest_magnitude(x);
    if largest.abs() < NOTHING {
        return ([0; 16], 0.0);
    }
    let on_grid = |inverse: f32| x.map(|x| nearest(inverse * x).clamp(-32, 31));
    let sums = |l: &[i32; 16]| {
        let (mut xl, mut ll) = (0.0, 0.0);
        for (&x, &l) in x.iter().zip(l) {
            let (w, l) = (x * x, l as f32);
            xl += w * x * l;
            ll += w * l * l;
        }
        (xl, ll)
    };

    let mut codes = on_grid(-32.0 / largest);
    let (xl, ll) = sums(&codes);
    let mut scale = if ll != 0.0 { xl / ll } else { 0.0 };
    let mut gain = scale * xl;
    for step in (-9..=9).filter(|&step| step != 0) {
        let l = on_grid(-(32.0 + 0.1 * step as f32) / largest);
        let (xl, ll) = sums(&l);
        if ll > 0.0 && xl * xl > gain * ll {
            codes = l;
            scale = xl / ll;
            gain = scale * xl;
        }
    }
    (codes.map(|l| (l + 32) as u8), scale)
}

/// `x ~ scale * stored - minimum` with stored codes in 0..16 and minimum >= 0.
pub(super) struct Line {
    pub(super) stored: [u8; 32],
    pub(super) scale: f32,
    pub(super) minimum: f32,
}

/// The line for Q4_K. `importance`: (32,) error weights.
///
/// The grids have (15 - 1 + k/10) steps, k = 0..=20, between -minimum and max(x), where minimum is
/// that of the best line so far (at first that of min(x, 0)). On each grid, scale and minimum solve
/// the two normal equations, with the minimum held at 0 where it would be negative.
pub(super) fn line(x: &[f32; 32], importance: &[f32; 32]) -> Line {
    let mut low = x[0];
    let mut high = x[0];
    let mut sum_w = importance[0];
    let mut sum_x = importance[0] * x[0];
    for (&x, &w) in x.iter().zip(importance).skip(1) {
        low = low.min(x);
        high = high.max(x);
        sum_w += w;
        sum_x += w * x;
    }
    low = low.min(0.0);
    if high == low {
        return Line {
            stored: [0; 32],
            scale: 0.0,
            minimum: -low,
        };
    }

    let on_grid =
        |inverse: f32, low: f32| x.map(|x| nearest(inverse * (x - low)).clamp(0, 15) as u8);
    let error = |stored: &[u8; 32], scale: f32, low: f32| {
        let mut error = 0.0;
        for ((&x, &w), &l) in x.iter().zip(importance).zip(stored) {
            let difference = scale * f32::from(l) + low - x;
            error += w * (difference * difference);
        }
        error
    };

    let inverse = 15.0 / (high - low);
    let mut stored = on_grid(inverse, low);
    let mut scale = 1.0 / inverse;
    let mut least = error(&stored, scale, low);
    for step in 0..=20 {
        let inverse = (-1.0 + 0.1 * step as f32 + 15.0) / (high - low);
        let candidate = on_grid(inverse, low);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((&x, &w), &l) in x.iter().zip(importance).zip(&candidate) {
            let l = f32::from(l);
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let (solved_scale, solved_low) = match (sum_ll * sum_x - sum_l * sum_xl) / determinant {
                solved_low if solved_low > 0.0 => (sum_xl / sum_ll, 0.0),
                solved_low => ((sum_w * sum_xl - sum_x * sum_l) / determinant, solved_low),
            };
            let error = error(&candidate, solved_scale, solved_low);
            if error < least {
                least = error;
                (stored, scale, low) = (candidate, solved_scale, solved_low);
            }
        }
    }
    Line {
        stored,
        scale,
        minimum: -low,
    }
}
