//! From logits to a token: the most likely one, or a draw.

use std::cmp::Ordering;

/// Picks tokens. The same seed and the same logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    temperature: f64,
    top_p: f64,
    random: SplitMix64,
}

impl Sampler {
    /// Draws from `softmax(logits / temperature)`, restricted to the fewest tokens that together have at least the
    /// probability `top_p`. Temperature 0 takes the most likely token (of equals the first), without a draw.
    ///
    /// # Panics
    /// When `temperature` is negative or not finite, or `top_p` is outside 0 to 1.
    pub fn new(temperature: f64, top_p: f64, seed: u64) -> Self {
        assert!(
            temperature.is_finite() && temperature >= 0.0,
            "temperature {temperature}"
        );
        assert!((0.0..=1.0).contains(&top_p), "top-p {top_p}");
        Sampler {
            temperature,
            top_p,
            random: SplitMix64(seed),
        }
    }

    /// The next token after a row of logits (vocab,).
    ///
    /// # Panics
    /// When `logits` is empty.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return most_likely(logits) as u32;
        }
        let max = f64::from(logits[most_likely(logits)]);
        let weight = |&logit: &f32| ((f64::from(logit) - max) / self.temperature).exp();
        let mut candidates: Vec<(u32, f64)> = (0..).zip(logits.iter().map(weight)).collect();
        if self.top_p < 1.0 {
            keep_most_likely(&mut candidates, self.top_p);
        }
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.unit() * total;
        for &(token, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        candidates[candidates.len() - 1].0 // rounding used the weights up a hair too early
    }
}

/// The position of the largest logit; of equal ones the first.
fn most_likely(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// The fewest candidates, most likely first, whose weights reach `top_p` of the sum; never none.
fn keep_most_likely(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    candidates.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
    let mut sum = 0.0;
    let kept = candidates.iter().position(|(_, weight)| {
        sum += weight;
        sum >= enough
    });
    candidates.truncate(kept.map_or(candidates.len(), |last| last + 1));
}

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1): the upper 53 bits.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 1/2, 1/3 and 1/6.
    fn logits() -> [f32; 3] {
        [2f32.ln(), 3f32.ln(), 0.0]
    }

    fn shares(sampler: &mut Sampler) -> [f64; 3] {
        const DRAWS: usize = 60_000;
        let mut shares = [0.0; 3];
        for _ in 0..DRAWS {
            shares[sampler.pick(&logits()) as usize] += 1.0 / DRAWS as f64;
        }
        shares
    }

    fn close(found: [f64; 3], expected: [f64; 3]) {
        for (found, expected) in found.into_iter().zip(expected) {
            assert!((found - expected).abs() < 0.01, "{found} is not {expected}");
        }
    }

    #[test]
    fn splitmix_gives_the_published_numbers() {
        // Seed 1234567, as in the reference program of the authors.
        let mut random = SplitMix64(1_234_567);
        assert_eq!(
            [random.next(), random.next(), random.next()],
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn temperature_zero_is_greedy() {
        assert_eq!(Sampler::new(0.0, 0.5, 7).pick(&[0.0, 2.0, 1.0, 2.0]), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        close(
            shares(&mut Sampler::new(1.0, 1.0, 1)),
            [2.0 / 6.0, 3.0 / 6.0, 1.0 / 6.0],
        );
        // Temperature 1/2 squares the probabilities: 4, 9, 1 of 14.
        close(
            shares(&mut Sampler::new(0.5, 1.0, 1)),
            [4.0 / 14.0, 9.0 / 14.0, 1.0 / 14.0],
        );
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        close(shares(&mut Sampler::new(1.0, 0.8, 1)), [0.4, 0.6, 0.0]);
        close(shares(&mut Sampler::new(1.0, 0.45, 1)), [0.0, 1.0, 0.0]);
        close(shares(&mut Sampler::new(1.0, 0.0, 1)), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |seed| {
            let mut sampler = Sampler::new(1.0, 1.0, seed);
            (0..20).map(|_| sampler.pick(&logits())).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}
