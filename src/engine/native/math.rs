//! The elementwise parts of a Llama in f32, written so that the compiler turns the loops into vectors.

use std::array;

/// Numbers that the loops here handle side by side: one 512-bit vector of f32.
pub const LANES: usize = 16;

/// `a * b + c`, in one rounding where the CPU that we compile for can (elsewhere the exact form would be a slow call).
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// `e^x` to about 1e-7 of its value; 0 below -87 and the largest power of two above 88, a NaN stays one.
///
/// `x = n ln 2 + r` with |r| <= ln 2 / 2, and `e^x = 2^n e^r` with the Taylor series of `e^r` to r^7 (rest below 6e-9).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the lowest bits (1.5 * 2^23).
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with so few bits that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, x));
    let series = [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ];
    let e_r = series
        .into_iter()
        .fold(1.0 / 5040.0, |sum, coefficient| fma(sum, r, coefficient));
    // 2^n: the lowest bits of `shifted` are n, the exponent field of 1.0 is added to them.
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    e_r * power
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `y = x / sqrt(mean x^2 + epsilon) * weight`, all (hidden,).
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    let mean_square = sum_of_squares(x) / x.len() as f32;
    let factor = 1.0 / (mean_square + epsilon).sqrt();
    for ((y, x), weight) in y.iter_mut().zip(x).zip(weight) {
        *y = x * factor * weight;
    }
}

fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        sums = array::from_fn(|lane| fma(chunk[lane], chunk[lane], sums[lane]));
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>()
}

/// `x_i = exp(x_i) / sum_j exp(x_j)`, shifted by the maximum so that nothing overflows.
pub fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in &mut *x {
        *x = exp(*x - max);
    }
    let factor = 1.0 / sum(x);
    for x in x {
        *x *= factor;
    }
}

fn sum(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        sums = array::from_fn(|lane| sums[lane] + chunk[lane]);
    }
    sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// `x += y + bias`, where there is one.
pub fn add(x: &mut [f32], y: &[f32], bias: Option<&[f32]>) {
    match bias {
        Some(bias) => x
            .iter_mut()
            .zip(y)
            .zip(bias)
            .for_each(|((x, y), bias)| *x += y + bias),
        None => x.iter_mut().zip(y).for_each(|(x, y)| *x += y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        let worst = (-870_000..=880_000)
            .map(|i| i as f32 * 1e-4)
            .map(|x| {
                let exact = f64::from(x).exp();
                (f64::from(exp(x)) - exact).abs() / exact
            })
            .fold(0.0, f64::max);
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(1e9) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn silu_at_the_ends() {
        assert_eq!(silu(0.0), 0.0);
        assert!((silu(2.0) - 2.0 / (1.0 + (-2f32).exp())).abs() < 1e-6);
        assert_eq!(silu(200.0), 200.0);
        assert!(silu(-200.0).abs() < 1e-30);
    }

    #[test]
    fn norm_by_hand() {
        // 20 numbers of mean square 12.5; with epsilon 3.5 the root is 4.
        let x: Vec<f32> = (0..20)
            .map(|i| if i % 2 == 0 { 3.0 } else { -4.0 })
            .collect();
        let mut y = vec![f32::NAN; 20];
        rms_norm(&x, &[2.0; 20], 3.5, &mut y);
        assert_eq!(y[..2], [1.5, -2.0]);
        assert_eq!(y[18..], [1.5, -2.0]);
    }

    #[test]
    fn softmax_by_hand() {
        let mut x: Vec<f32> = (0..20)
            .map(|i| if i == 7 { 1000.0 + 5f32.ln() } else { 1000.0 })
            .collect();
        softmax(&mut x);
        assert!((x[7] - 5.0 / 24.0).abs() < 1e-5 && (x[19] - 1.0 / 24.0).abs() < 1e-6);
    }

    #[test]
    fn addition_with_and_without_bias() {
        let mut x = [1.0, 2.0];
        add(&mut x, &[10.0, 20.0], None);
        add(&mut x, &[10.0, 20.0], Some(&[0.5, 0.25]));
        assert_eq!(x, [21.5, 42.25]);
    }
}
