//! Least-squares fits of one stored scale to several trained ones.

use formats::block::q2_k;

/// Sums of a least-squares fit: stored = d * m has to come close to the trained s.
#[derive(Default)]
pub(super) struct Fit {
    /// (sum of h c^2, s, stored) of each stretch
    stretches: Vec<(f64, f64, f64)>,
}

impl Fit {
    pub fn add(&mut self, h: f64, s: f64, stored: f64) {
        self.stretches.push((h, s, stored));
    }

    /// The d that makes sum of h (s - d m)^2 smallest, where `stored = d * m`; `None` where no weight counts.
    pub fn best(&self, d: f32) -> Option<f64> {
        let d = f64::from(d);
        // Where d is 0, every multiplier is as good: the fit to one scale then tells that it should not be.
        let m = |stored: f64| if stored == d { 1.0 } else { stored / d };
        let hsm: f64 = self.stretches.iter().map(|&(h, s, t)| h * s * m(t)).sum();
        let hmm: f64 = self.stretches.iter().map(|&(h, _, t)| h * m(t) * m(t)).sum();
        (hmm > 0.0).then(|| hsm / hmm)
    }
}

/// The distance between neighbouring f16 numbers of about `x`.
pub(super) fn f16_step(x: f64) -> f64 {
    const SMALLEST: i32 = -24; // of the subnormal numbers
    const FRACTION: i32 = 10;
    let exponent = x.abs().log2().floor() as i32;
    2f64.powi((exponent - FRACTION).max(SMALLEST))
}

/// The d of the Q2_K block whose weights start at column `start`.
pub(super) fn q2_k_factor(row: &[u8], start: usize) -> f32 {
    let block = row.as_chunks().0.get(start / q2_k::WEIGHTS);
    block.map_or(f32::NAN, |block| q2_k::view(block).d().to_f32())
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn steps_of_f16() {
        for x in [1.0, 1.5, 0.75, 6.1e-5, 3e-6] {
            let here = f16::from_f64(x);
            let next = f16::from_bits(here.to_bits() + 1);
            assert_eq!(f16_step(here.to_f64()), next.to_f64() - here.to_f64(), "{x}");
        }
    }

    #[test]
    fn the_fit_is_the_least_squares_one() {
        // One scale for s = 1 (twice as important) and s = 4: (2 * 1 + 1 * 4) / 3.
        let mut fit = Fit::default();
        fit.add(2.0, 1.0, 0.5);
        fit.add(1.0, 4.0, 0.5);
        assert_eq!(fit.best(0.5), Some(2.0));
        // Multipliers 1 and 4 fit exactly with d = 1.
        let mut fit = Fit::default();
        fit.add(2.0, 1.0, 0.5);
        fit.add(1.0, 4.0, 2.0);
        assert_eq!(fit.best(0.5), Some(1.0));
        assert_eq!(Fit::default().best(1.0), None);
    }
}
