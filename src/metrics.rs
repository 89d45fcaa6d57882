//! How far two sets of logits (or of anything else) are apart. Pure arithmetic in f64, no I/O.
//!
//! Logits are `(tokens, vocab)`, row-major. Logarithms are natural: KLD and log-likelihoods are in nats.
//! A NaN anywhere comes out as a NaN, which no limit accepts (`NaN <= limit` is false).

use std::iter::Sum;
use std::ops::AddAssign;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

/// The sums of a normalized mean squared error, which can be added up over pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Nmse {
    /// Sum of squared differences.
    pub error: f64,
    /// Sum of squared reference values.
    pub energy: f64,
}

impl Nmse {
    /// One pair of values more.
    pub fn add(&mut self, reference: f64, tested: f64) {
        self.error += (reference - tested) * (reference - tested);
        self.energy += reference * reference;
    }

    /// `error / energy`; 0 where there is no error, whatever the energy is.
    pub fn value(self) -> f64 {
        if self.error == 0.0 {
            0.0
        } else {
            self.error / self.energy
        }
    }
}

impl AddAssign for Nmse {
    fn add_assign(&mut self, other: Self) {
        self.error += other.error;
        self.energy += other.energy;
    }
}

impl Sum for Nmse {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        let mut sum = Self::default();
        parts.for_each(|part| sum += part);
        sum
    }
}

/// Normalized mean squared error: `sum (a - b)^2 / sum a^2`, with `a` the reference and `b` the tested values.
///
/// Two all-zero slices agree (0); anything against an all-zero reference is infinitely far from it.
///
/// # Panics
/// When the lengths differ.
pub fn nmse(reference: &[f32], tested: &[f32]) -> f64 {
    assert_eq!(reference.len(), tested.len(), "nmse of different lengths");
    squared_error(reference, tested).value()
}

/// Kullback-Leibler divergence of one token's next-token distributions, in nats:
/// `sum_i p_i (ln p_i - ln q_i)` with `p = softmax(reference)`, `q = softmax(tested)`.
///
/// `reference`, `tested`: (vocab,) logits.
///
/// # Panics
/// When the lengths differ.
pub fn kld(reference: &[f32], tested: &[f32]) -> f64 {
    assert_eq!(reference.len(), tested.len(), "kld of different lengths");
    let (p, q) = (LogSoftmax::of(reference), LogSoftmax::of(tested));
    divergence(reference, &p, tested, &q)
}

/// [`kld`] of every token. `reference`, `tested`: (tokens, vocab).
///
/// # Panics
/// When the lengths differ or are not a multiple of `vocab`.
pub fn kld_per_token(reference: &[f32], tested: &[f32], vocab: usize) -> Vec<f64> {
    rows(reference, vocab)
        .zip(rows(tested, vocab))
        .map(|(a, b)| kld(a, b))
        .collect()
}

/// The share of tokens, 0 to 1, whose most likely next token is the same in both. `reference`, `tested`: (tokens, vocab).
///
/// # Panics
/// When there are no tokens, or the lengths differ or are not a multiple of `vocab`.
pub fn top1_agreement(reference: &[f32], tested: &[f32], vocab: usize) -> f64 {
    assert_eq!(reference.len(), tested.len(), "top-1 of different lengths");
    let tokens = reference.len() / vocab;
    assert!(tokens > 0, "top-1 of no tokens");
    let same = rows(reference, vocab)
        .zip(rows(tested, vocab))
        .filter(|(a, b)| argmax(a) == argmax(b))
        .count();
    same as f64 / tokens as f64
}

/// The position of the largest value; of equal ones the first.
///
/// # Panics
/// When `values` is empty.
pub fn argmax(values: &[f32]) -> usize {
    assert!(!values.is_empty(), "argmax of nothing");
    let mut best = 0;
    for (i, &value) in values.iter().enumerate() {
        if value > values[best] {
            best = i;
        }
    }
    best
}

/// `-ln softmax(logits[t])[next[t]]` for every token `t`, in nats: what perplexity averages.
///
/// `logits`: (tokens, vocab).  `next`: (tokens,), the token that followed.
///
/// # Panics
/// When the lengths do not fit or a token is outside the vocabulary.
pub fn surprisals(logits: &[f32], next: &[u32], vocab: usize) -> Vec<f64> {
    assert_eq!(logits.len(), next.len() * vocab, "logits do not fit the tokens");
    rows(logits, vocab)
        .zip(next)
        .map(|(row, &token)| -LogSoftmax::of(row).at(row[token as usize]))
        .collect()
}

/// Perplexity: `exp(mean(surprisals))`, so that windows can be joined before the mean is taken.
///
/// # Panics
/// When there are no tokens.
pub fn perplexity(surprisals: &[f64]) -> f64 {
    mean(surprisals).exp()
}

/// The item with the largest value, and that value. A NaN of either sign is larger than every number.
pub fn worst<T>(items: impl Iterator<Item = (T, f64)>) -> Option<(T, f64)> {
    items.max_by(|(_, a), (_, b)| a.is_nan().cmp(&b.is_nan()).then(a.total_cmp(b)))
}

/// The arithmetic mean.
///
/// # Panics
/// When `values` is empty.
pub fn mean(values: &[f64]) -> f64 {
    assert!(!values.is_empty(), "mean of nothing");
    values.iter().sum::<f64>() / values.len() as f64
}

/// The value below which a share `q` (0 to 1) of `values` lies, interpolated linearly between neighbours:
/// position `q * (len - 1)` of the sorted values (the rule that NumPy and R call type 7).
///
/// # Panics
/// When `values` is empty or `q` is outside 0 to 1.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    assert!(!values.is_empty(), "quantile of nothing");
    assert!((0.0..=1.0).contains(&q), "quantile {q} is outside 0 to 1");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = q * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * position.fract()
}

/// The middle value: [`quantile`] at 0.5.
///
/// # Panics
/// When `values` is empty.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The logits of some tokens, with what every comparison needs of them: made once, compared often. All threads take part.
pub struct Predictions<'a> {
    /// (tokens, vocab)
    logits: &'a [f32],
    vocab: usize,
    normalizers: Vec<LogSoftmax>,
}

impl<'a> Predictions<'a> {
    /// `logits`: (tokens, vocab).
    ///
    /// # Panics
    /// When there are no whole rows.
    pub fn new(logits: &'a [f32], vocab: usize) -> Self {
        assert_whole(logits, vocab);
        let normalizers = logits.par_chunks_exact(vocab).map(LogSoftmax::of).collect();
        Predictions {
            logits,
            vocab,
            normalizers,
        }
    }

    /// [`kld`] of `tested` from these, of every token.
    pub fn kld(&self, tested: &Predictions) -> Vec<f64> {
        self.with(tested).map(|(a, p, b, q)| divergence(a, p, b, q)).collect()
    }

    /// [`surprisals`]; `next`: (tokens,).
    pub fn surprisals(&self, next: &[u32]) -> impl Iterator<Item = f64> {
        assert_eq!(next.len(), self.normalizers.len(), "one token follows each");
        rows(self.logits, self.vocab)
            .zip(&self.normalizers)
            .zip(next)
            .map(|((row, softmax), &token)| -softmax.at(row[token as usize]))
    }

    /// Tokens whose most likely next token is the same.
    pub fn same_top(&self, tested: &Predictions) -> usize {
        let tops = self.normalizers.iter().zip(&tested.normalizers);
        tops.filter(|(a, b)| a.top == b.top).count()
    }

    /// How far the logits `tested` are from these.
    pub fn squared_error(&self, tested: &Predictions) -> Nmse {
        let rows = self.with(tested).map(|(a, _, b, _)| squared_error(a, b));
        let rows: Vec<_> = rows.collect(); // added in one order, whichever thread is first
        rows.into_iter().sum()
    }

    /// Row and normalizer of each token, of these and of those tested.
    fn with<'b>(
        &'b self,
        tested: &'b Predictions,
    ) -> impl IndexedParallelIterator<Item = (&'b [f32], &'b LogSoftmax, &'b [f32], &'b LogSoftmax)> {
        assert_eq!(self.logits.len(), tested.logits.len(), "as many predictions");
        let rows = |p: &'b Predictions| p.logits.par_chunks_exact(p.vocab).zip(&p.normalizers);
        rows(self).zip(rows(tested)).map(|((a, p), (b, q))| (a, p, b, q))
    }
}

/// `sum_i p_i (ln p_i - ln q_i)` of logits `a` and `b`.
fn divergence(a: &[f32], p: &LogSoftmax, b: &[f32], q: &LogSoftmax) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| {
            let ln_p = p.at(a);
            ln_p.exp() * (ln_p - q.at(b))
        })
        .sum()
}

fn squared_error(reference: &[f32], tested: &[f32]) -> Nmse {
    let mut sums = Nmse::default();
    for (&a, &b) in reference.iter().zip(tested) {
        sums.add(a.into(), b.into());
    }
    sums
}

/// `ln softmax(x)_i = x_i - max - ln sum_j exp(x_j - max)`: no exponent overflows.
struct LogSoftmax {
    /// `max + ln sum_j exp(x_j - max)`
    log_sum: f64,
    /// [`argmax`]
    top: usize,
}

impl LogSoftmax {
    fn of(logits: &[f32]) -> Self {
        let top = argmax(logits);
        let max = f64::from(logits[top]);
        let sum: f64 = logits.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        LogSoftmax {
            log_sum: max + sum.ln(),
            top,
        }
    }

    fn at(&self, logit: f32) -> f64 {
        f64::from(logit) - self.log_sum
    }
}

fn rows(logits: &[f32], vocab: usize) -> std::slice::ChunksExact<'_, f32> {
    assert_whole(logits, vocab);
    logits.chunks_exact(vocab)
}

fn assert_whole(logits: &[f32], vocab: usize) {
    assert!(
        vocab > 0 && logits.len().is_multiple_of(vocab),
        "{} logits are no whole rows of {vocab}",
        logits.len()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() <= 1e-12 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }

    #[test]
    fn nmse_by_hand() {
        // (0 + 1 + 4) / (1 + 4 + 9)
        close(nmse(&[1.0, 2.0, 3.0], &[1.0, 3.0, 1.0]), 5.0 / 14.0);
        assert_eq!(nmse(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert_eq!(nmse(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert_eq!(nmse(&[0.0], &[1.0]), f64::INFINITY);
        assert!(nmse(&[1.0, 1.0], &[f32::NAN, 1.0]).is_nan());
    }

    #[test]
    fn kld_by_hand() {
        // p = (1/2, 1/2), q = (3/4, 1/4): 1/2 ln(2/3) + 1/2 ln 2 = 1/2 ln(4/3)
        let q = [3f32.ln(), 0.0];
        assert!((kld(&[0.0, 0.0], &q) - 0.5 * (4f64 / 3.0).ln()).abs() < 1e-7);
        // It is not symmetric: 3/4 ln(3/2) + 1/4 ln(1/2).
        let back = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kld(&q, &[0.0, 0.0]) - back).abs() < 1e-7);
        // A constant added to all logits changes no distribution, and large logits do not overflow.
        close(kld(&[1.0, 2.0, 4.0], &[1001.0, 1002.0, 1004.0]), 0.0);
        // A token that the reference rules out contributes nothing.
        close(kld(&[0.0, -1e30], &[0.0, -1e4]), 0.0);
        assert!(kld(&[0.0, 1.0], &[f32::NAN, 1.0]).is_nan());
        assert!(kld(&[0.0, 1.0], &[0.0, f32::NAN]).is_nan());
    }

    #[test]
    fn kld_goes_row_by_row() {
        let q = [3f32.ln(), 0.0];
        let rows = kld_per_token(&[0.0, 0.0, 5.0, 5.0], &[q[0], q[1], 5.0, 5.0], 2);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0], kld(&[0.0, 0.0], &q));
        assert_eq!(rows[1], 0.0);
    }

    #[test]
    fn top1_counts_rows() {
        let reference = [0.0, 1.0, 2.0, 9.0, 1.0, 2.0, 0.0, 3.0, 1.0, 1.0, 0.0, 0.0];
        let tested = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0, 0.0, 3.0, 1.0, 2.0, 0.0, 0.0];
        assert_eq!(top1_agreement(&reference, &tested, 3), 0.75);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
    }

    #[test]
    fn predictions_compare_as_their_parts_do() {
        let reference = [0.0, 1.0, 2.0, 9.0, 1.0, 2.0];
        let tested = [0.5, 1.0, 2.5, 0.0, 1.0, 2.0];
        let (a, b) = (Predictions::new(&reference, 3), Predictions::new(&tested, 3));
        assert_eq!(a.kld(&b), kld_per_token(&reference, &tested, 3));
        assert!(a.surprisals(&[2, 0]).eq(surprisals(&reference, &[2, 0], 3)));
        assert_eq!(a.same_top(&b), 1);
        close(a.squared_error(&b).value(), nmse(&reference, &tested));
    }

    #[test]
    fn perplexity_of_a_uniform_guess_is_the_vocabulary() {
        let nats = surprisals(&[0.0; 12], &[0, 3, 1], 4);
        close(perplexity(&nats), 4.0);
        // One certain and one 1/4 guess: exp((0 + ln 4) / 2) = 2.
        let nats = surprisals(&[1e4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], &[0, 2], 4);
        close(perplexity(&nats), 2.0);
    }

    #[test]
    fn nothing_is_worse_than_a_nan() {
        let worst_of = |values: [f64; 3]| worst(values.into_iter().enumerate()).unwrap();
        assert_eq!(worst_of([1.0, 3.0, 2.0]), (1, 3.0));
        // What x86 makes of inf - inf has its sign bit set.
        let (at, value) = worst_of([f64::INFINITY, -f64::NAN, 2.0]);
        assert!(at == 1 && value.is_nan());
        assert_eq!(worst([(); 0].into_iter().map(|()| ((), 0.0))), None);
    }

    #[test]
    fn quantiles_by_hand() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(median(&values), 2.5);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(quantile(&values, 1.0), 4.0);
        close(quantile(&values, 0.25), 1.75);
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(mean(&values), 2.5);
    }
}
