//! From logits to a token: the most likely one, or a draw.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::{BTreeSet, VecDeque};

/// How tokens are drawn: the options of llama.cpp, which are applied in its order (common/sampling.cpp): penalty, top-k,
/// top-p, min-p, temperature.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// What the logits are divided by; 0 takes the most likely token, without a draw.
    pub temperature: f64,
    /// Only so many most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the fewest tokens that together have this probability.
    pub top_p: f64,
    /// Only tokens that have this share of the most likely one's probability.
    pub min_p: f64,
    /// What positive logits of recent tokens are divided by, and negative ones multiplied with.
    pub repeat_penalty: f64,
    /// How many tokens are recent.
    pub repeat_last: usize,
}

impl Default for Sampling {
    /// The most likely token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last: 64,
        }
    }
}

/// Picks tokens. The same seed and the same logits give the same tokens on every machine.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    recent: VecDeque<u32>,
    random: SplitMix64,
}

impl Sampler {
    /// # Panics
    /// When the temperature is negative or not finite, a probability outside 0 to 1, or the penalty not positive.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        let Sampling {
            temperature,
            top_p,
            min_p,
            repeat_penalty,
            ..
        } = sampling;
        assert!(
            temperature.is_finite() && temperature >= 0.0,
            "temperature {temperature}"
        );
        assert!((0.0..=1.0).contains(&top_p), "top-p {top_p}");
        assert!((0.0..=1.0).contains(&min_p), "min-p {min_p}");
        assert!(repeat_penalty > 0.0, "repeat penalty {repeat_penalty}");
        Sampler {
            sampling,
            recent: VecDeque::new(),
            random: SplitMix64(seed),
        }
    }

    /// A token that came, of the prompt or picked.
    pub fn accept(&mut self, token: u32) {
        self.recent.push_back(token);
        if self.recent.len() > self.sampling.repeat_last {
            self.recent.pop_front();
        }
    }

    /// The next token after a row of logits (vocab,); of equally likely ones the first.
    ///
    /// # Panics
    /// When `logits` is empty.
    pub fn pick(&mut self, logits: &[f32]) -> u32 {
        let logits = self.penalized(logits);
        let best = most_likely(&logits);
        if self.sampling.temperature == 0.0 {
            return best as u32;
        }
        let max = f64::from(logits[best]);
        let weight = |&logit: &f32| (f64::from(logit) - max).exp();
        let mut candidates: Vec<(u32, f64)> = (0..).zip(logits.iter().map(weight)).collect();
        let Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..
        } = self.sampling;
        if top_k > 0 || top_p < 1.0 {
            candidates.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
        }
        if top_k > 0 {
            candidates.truncate(top_k);
        }
        if top_p < 1.0 {
            keep_most_likely(&mut candidates, top_p);
        }
        // The most likely one has the weight 1.
        candidates.retain(|(_, weight)| *weight >= min_p);
        for (_, weight) in &mut candidates {
            *weight = weight.powf(temperature.recip());
        }
        self.draw(&candidates)
    }

    fn draw(&mut self, candidates: &[(u32, f64)]) -> u32 {
        let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
        let mut left = self.random.unit() * total;
        for &(token, weight) in candidates {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        candidates[candidates.len() - 1].0 // rounding used the weights up a hair too early
    }

    /// The logits with those of recent tokens made smaller.
    fn penalized<'a>(&self, logits: &'a [f32]) -> Cow<'a, [f32]> {
        let penalty = self.sampling.repeat_penalty as f32;
        let mut logits = Cow::Borrowed(logits);
        if penalty == 1.0 {
            return logits;
        }
        let recent: BTreeSet<u32> = self.recent.iter().copied().collect();
        for token in recent {
            if let Some(logit) = logits.to_mut().get_mut(token as usize) {
                *logit = if *logit > 0.0 {
                    *logit / penalty
                } else {
                    *logit * penalty
                };
            }
        }
        logits
    }
}

/// The position of the largest logit; of equal ones the first.
fn most_likely(logits: &[f32]) -> usize {
    (1..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best })
}

/// The fewest of candidates that are sorted, most likely first, whose weights reach `top_p` of the sum; never none.
fn keep_most_likely(candidates: &mut Vec<(u32, f64)>, top_p: f64) {
    let enough = top_p * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
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

    fn sampler(temperature: f64, top_p: f64, seed: u64) -> Sampler {
        let sampling = Sampling {
            temperature,
            top_p,
            ..Sampling::default()
        };
        Sampler::new(sampling, seed)
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
        assert_eq!(sampler(0.0, 0.5, 7).pick(&[0.0, 2.0, 1.0, 2.0]), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        close(shares(&mut sampler(1.0, 1.0, 1)), [2.0 / 6.0, 3.0 / 6.0, 1.0 / 6.0]);
        // Temperature 1/2 squares the probabilities: 4, 9, 1 of 14.
        close(shares(&mut sampler(0.5, 1.0, 1)), [4.0 / 14.0, 9.0 / 14.0, 1.0 / 14.0]);
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it() {
        close(shares(&mut sampler(1.0, 0.8, 1)), [0.4, 0.6, 0.0]);
        close(shares(&mut sampler(1.0, 0.45, 1)), [0.0, 1.0, 0.0]);
        close(shares(&mut sampler(1.0, 0.0, 1)), [0.0, 1.0, 0.0]);
    }

    /// Probabilities 1/2, 1/3 and 1/6; what remains of them is drawn in proportion to their squares.
    #[test]
    fn top_k_and_min_p_keep_what_llama_cpp_keeps() {
        let shares = |top_k, min_p| {
            let sampling = Sampling {
                temperature: 0.5,
                top_k,
                min_p,
                ..Sampling::default()
            };
            shares(&mut Sampler::new(sampling, 3))
        };
        let two = [9.0 / 13.0, 4.0 / 13.0];
        close(shares(1, 0.0), [0.0, 1.0, 0.0]);
        close(shares(2, 0.0), [two[1], two[0], 0.0]);
        close(shares(9, 0.0), [4.0 / 14.0, 9.0 / 14.0, 1.0 / 14.0]);
        // 1/3 is two thirds of 1/2, and 1/6 a third.
        close(shares(0, 0.5), [two[1], two[0], 0.0]);
        close(shares(0, 0.7), [0.0, 1.0, 0.0]);
    }

    /// llama_sampler_penalties_apply: logits above 0 are divided, others multiplied.
    #[test]
    fn recent_tokens_are_penalized() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            repeat_last: 2,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling, 0);
        sampler.accept(0);
        assert_eq!(sampler.pick(&[3.0, 2.0, -1.0]), 1);
        assert_eq!(*sampler.penalized(&[-3.0, 2.0]), [-6.0, 2.0]);
        sampler.accept(1);
        sampler.accept(1);
        assert_eq!(sampler.pick(&[3.0, 2.0, -1.0]), 0, "the first is not recent");
    }

    #[test]
    fn a_seed_repeats_itself() {
        let draw = |seed| {
            let mut sampler = sampler(1.0, 1.0, seed);
            (0..20).map(|_| sampler.pick(&logits())).collect::<Vec<_>>()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }
}
