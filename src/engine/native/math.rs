//! The elementwise parts of a Llama in f32, in loops that the compiler turns into the vectors of the [`Level`].
//!
//! Products are added by `mul_add`, one rounding, so that every level and every build gives the same bits.

use crate::simd::{LANES, Lanes, Level, Work};

/// Adding it leaves the nearest whole number in the lowest bits (1.5 * 2^23).
const ROUND: f32 = 12_582_912.0;

/// `e^x` to about 1e-7 of its value; 1.2e-38 below -87 and the largest power of two above 88, a NaN stays one.
///
/// `x = n ln 2 + r` with |r| <= ln 2 / 2, and `e^x = 2^n e^r` with the Taylor series of `e^r` to r^7 (rest below 6e-9).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    /// ln 2 in two parts, the first with so few bits that `n * LN2_HIGH` is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.3, 88.3);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let mut e_r = 1.0 / 5040.0;
    for coefficient in series {
        e_r = r.mul_add(e_r, coefficient);
    }
    e_r * power_of_two(shifted)
}

/// `2^x` for `x` from -50 to 1, to about 2e-7 of its value, a whole `x` exactly; 2^-50 below, a NaN stays one. Several at a
/// time, so that no step waits for the one before.
///
/// `x = n + r` with |r| <= 1/2, and `2^x = 2^n 2^r` with the polynomial of degree 5 that is 1 for 0 and at most 9.2e-8 of
/// its value from `2^r`.
#[inline(always)]
pub fn exp2<L: Lanes, const N: usize>(lanes: L, mut x: [L::Numbers; N]) -> [L::Numbers; N] {
    /// Those of r^4 down; that of r^5 begins.
    #[allow(clippy::approx_constant, reason = "near ln 2, which is that of the series")]
    const COEFFICIENTS: [f32; 5] = [9.671_513e-3, 5.550_733_6e-2, 2.402_224_2e-1, 6.931_47e-1, 1.0];
    let (least, round) = (lanes.splat(-50.0), lanes.splat(ROUND));
    let mut shifted = x;
    for i in 0..N {
        x[i] = lanes.larger(least, x[i]);
        shifted[i] = lanes.plus(x[i], round);
    }
    for i in 0..N {
        x[i] = lanes.minus(x[i], lanes.minus(shifted[i], round));
    }
    let mut power = [lanes.splat(1.326_472_7e-3); N];
    for coefficient in COEFFICIENTS {
        let coefficient = lanes.splat(coefficient);
        for i in 0..N {
            power[i] = lanes.fma(x[i], power[i], coefficient);
        }
    }
    for i in 0..N {
        power[i] = lanes.mul(power[i], lanes.power_of_two(shifted[i]));
    }
    power
}

/// `2^n` for `shifted = n + ROUND`: its lowest bits are n, the exponent field of 1.0 is added to them.
#[inline(always)]
fn power_of_two(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// The nearest number of bfloat16, the even one of two, but 0 for magnitudes below 2^-50, so that neither a product of two
/// such numbers nor a sum of those is subnormal, which tile registers take for 0. A NaN stays one.
#[inline(always)]
pub fn to_bf16(x: f32) -> f32 {
    const LEAST: f32 = 1.0 / (1u64 << 50) as f32;
    let bits = x.to_bits();
    if x.abs() >= LEAST {
        f32::from_bits(bits.wrapping_add(0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    } else {
        x * 0.0
    }
}

/// `x * sigmoid(x)`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `y = x / sqrt(mean x^2 + epsilon) * weight`, all (hidden,).
pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, y: &mut [f32]) {
    level.run(RmsNorm { x, weight, epsilon, y });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    y: &'a mut [f32],
}

impl Work for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        let factor = norm_factor(self.x, self.epsilon);
        for ((y, x), weight) in self.y.iter_mut().zip(self.x).zip(self.weight) {
            *y = x * factor * weight;
        }
    }
}

/// [`rms_norm`] in place, of each piece of `x` as long as `weight`.
pub fn rms_norm_pieces(level: Level, x: &mut [f32], weight: &[f32], epsilon: f32) {
    level.run(RmsNormPieces { x, weight, epsilon });
}

struct RmsNormPieces<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl Work for RmsNormPieces<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        for piece in self.x.chunks_exact_mut(self.weight.len()) {
            let factor = norm_factor(piece, self.epsilon);
            for (x, weight) in piece.iter_mut().zip(self.weight) {
                *x = *x * factor * weight;
            }
        }
    }
}

/// `1 / sqrt(mean x^2 + epsilon)`
#[inline(always)]
fn norm_factor(x: &[f32], epsilon: f32) -> f32 {
    let mean_square = sum_of_squares(x) / x.len() as f32;
    1.0 / (mean_square + epsilon).sqrt()
}

#[inline(always)]
fn sum_of_squares(x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum = x.mul_add(*x, *sum);
        }
    }
    in_order(&sums) + rest.iter().map(|x| x * x).sum::<f32>()
}

#[inline(always)]
pub fn in_order(x: &[f32]) -> f32 {
    x.iter().sum()
}

/// `gate = silu(gate) * (up + bias)`, all (ffn,).
pub fn swiglu(level: Level, gate: &mut [f32], up: &[f32], bias: Option<&[f32]>) {
    level.run(SwiGlu { gate, up, bias });
}

struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Work for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        let gate_and_up = self.gate.iter_mut().zip(self.up);
        match self.bias {
            Some(bias) => {
                for ((gate, up), bias) in gate_and_up.zip(bias) {
                    *gate = silu(*gate) * (up + bias);
                }
            }
            None => {
                for (gate, up) in gate_and_up {
                    *gate = silu(*gate) * up;
                }
            }
        }
    }
}

/// `x += y`. An addition of two numbers needs no level, here and below: memory takes longer.
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// `x += scale * (y + bias)`, with a bias where there is one.
pub fn add_scaled(x: &mut [f32], y: &[f32], bias: Option<&[f32]>, scale: f32) {
    match bias {
        Some(bias) => {
            let terms = y.iter().zip(bias);
            x.iter_mut()
                .zip(terms)
                .for_each(|(x, (y, bias))| *x += scale * (y + bias));
        }
        None => x.iter_mut().zip(y).for_each(|(x, y)| *x += scale * y),
    }
}

/// `x *= scale`
pub fn scale(x: &mut [f32], scale: f32) {
    if scale != 1.0 {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_everywhere() {
        for x in (-870_000..=880_000).map(|i| i as f32 * 1e-4) {
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 3e-7, "{x}: {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(1e9) > 1e38);
        assert!(exp(f32::NAN).is_nan());
    }

    struct Exp2(Vec<[f32; LANES]>);

    impl Work for Exp2 {
        type Output = Vec<[f32; LANES]>;

        #[inline(always)]
        fn run(mut self, lanes: impl Lanes) -> Self::Output {
            for pair in self.0.as_chunks_mut().0 {
                let [a, b] = exp2(lanes, [lanes.load(&pair[0]), lanes.load(&pair[1])]);
                *pair = [lanes.store(a), lanes.store(b)];
            }
            self.0
        }
    }

    #[test]
    fn exp2_is_close_everywhere_and_exact_for_whole_numbers() {
        let mut x: Vec<f32> = (-500_000..=10_000).map(|i| i as f32 * 1e-4).collect();
        x.extend([f32::NAN, f32::NEG_INFINITY, -126.0]);
        x.resize(x.len().next_multiple_of(2 * LANES), -0.0);
        let expected = Level::BASELINE.run(Exp2(x.as_chunks().0.to_vec()));
        for (&x, found) in x.iter().zip(expected.as_flattened()) {
            let exact = f64::from(x).exp2().max(2f64.powi(-50));
            let error = (f64::from(*found) - exact).abs() / exact;
            let limit = if x.fract() == 0.0 { 0.0 } else { 2e-7 };
            assert!(error <= limit || x.is_nan() && found.is_nan(), "{x}: {error:e}");
        }
        let bits = |x: &[[f32; LANES]]| x.as_flattened().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for level in Level::available() {
            let found = level.run(Exp2(x.as_chunks().0.to_vec()));
            assert!(bits(&found) == bits(&expected), "{}", level.name());
        }
    }

    #[test]
    fn bf16_is_the_nearest_and_never_tiny() {
        for exponent in -50..127 {
            for i in 0..4096 {
                let x = (1.0 + i as f32 / 4096.0) * 2f32.powi(exponent) * if i % 3 == 0 { -1.0 } else { 1.0 };
                assert_eq!(to_bf16(x), half::bf16::from_f32(x).to_f32(), "{x}");
            }
        }
        assert_eq!([8.88e-16, -1e-40, 0.0].map(to_bf16), [0.0; 3]);
        assert_eq!([f32::INFINITY, f32::MAX].map(to_bf16), [f32::INFINITY; 2]);
        assert!(to_bf16(f32::NAN).is_nan() && to_bf16(f32::from_bits(u32::MAX)).is_nan());
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
        let x: Vec<f32> = (0..20).map(|i| if i % 2 == 0 { 3.0 } else { -4.0 }).collect();
        for level in Level::available() {
            let mut y = vec![f32::NAN; 20];
            rms_norm(level, &x, &[2.0; 20], 3.5, &mut y);
            assert_eq!(y[..2], [1.5, -2.0]);
            assert_eq!(y[18..], [1.5, -2.0]);
        }
    }

    #[test]
    fn norm_of_pieces_by_hand() {
        for level in Level::available() {
            let mut x = [3.0, -4.0, 0.0, 0.0, -6.0, 8.0];
            rms_norm_pieces(level, &mut x, &[2.0, 1.0], 3.5);
            assert_eq!(x[..4], [1.5, -1.0, 0.0, 0.0]);
            let factor = 1.0 / 53.5f32.sqrt(); // mean square of (-6, 8): 50
            assert_eq!(x[4..], [-6.0 * factor * 2.0, 8.0 * factor]);
        }
    }

    #[test]
    fn every_level_computes_the_same_bits() {
        for n in (1..40).chain([127, 1000]) {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 % 101) as f32).sin() * 9.0).collect();
            let weight: Vec<f32> = x.iter().map(|x| x + 10.0).collect();
            let of_level = |level: Level| {
                let mut y = [vec![0.0; n], x.clone(), x.clone(), x.clone()];
                rms_norm(level, &x, &weight, 1e-5, &mut y[0]);
                swiglu(level, &mut y[1], &weight, None);
                swiglu(level, &mut y[2], &weight, Some(&x));
                rms_norm_pieces(level, &mut y[3], &weight[..n.div_ceil(2)], 1e-5);
                y.map(|y| y.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            let expected = of_level(Level::BASELINE);
            for level in Level::available() {
                assert_eq!(of_level(level), expected, "{}: {n}", level.name());
            }
        }
    }

    #[test]
    fn sums_by_hand() {
        let mut x = [1.0, 2.0];
        add(&mut x, &[10.0, 20.0]);
        assert_eq!(x, [11.0, 22.0]);
        add_scaled(&mut x, &[10.0, 20.0], None, 0.5);
        assert_eq!(x, [16.0, 32.0]);
        add_scaled(&mut x, &[10.0, 20.0], Some(&[0.5, 0.25]), 2.0);
        assert_eq!(x, [37.0, 72.5]);
        scale(&mut x, 2.0);
        assert_eq!(x, [74.0, 145.0]);
    }
}
