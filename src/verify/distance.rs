//! How far the predictions of one engine are from those of another, and how far they may be.

use super::report::{Check, CheckId, Limit, Unit};
use crate::metrics::{self, Nmse, Predictions};

/// How far one engine is from another along a text.
#[derive(Default)]
pub(super) struct Distance {
    /// Of each token, in nats.
    pub kld: Vec<f64>,
    same_top: usize,
    logits: Nmse,
}

impl Distance {
    /// The next tokens of the text.
    pub fn add(&mut self, reference: &Predictions, tested: &Predictions) {
        self.kld.extend(reference.kld(tested));
        self.same_top += reference.same_top(tested);
        self.logits += reference.squared_error(tested);
    }

    /// The share of tokens whose most likely next token is the same.
    pub fn top1(&self) -> f64 {
        self.same_top as f64 / self.kld.len() as f64
    }

    /// Normalized mean squared error of the logits.
    pub fn nmse(&self) -> f64 {
        self.logits.value()
    }

    /// The token with the largest KLD, and that.
    fn worst(&self) -> (usize, f64) {
        metrics::worst(self.kld.iter().copied().enumerate()).unwrap_or((0, f64::NAN))
    }

    /// The mean KLD with three standard errors of it: what another draw of the same chance may come to. One token tells
    /// nothing of the spread, so it is taken to be as large as the mean at least.
    fn likely_mean(&self) -> f64 {
        let (mean, n) = (metrics::mean(&self.kld), self.kld.len() as f64);
        let variance = self.kld.iter().map(|kld| (kld - mean).powi(2)).sum::<f64>() / n;
        mean + 3.0 * (variance.sqrt().max(mean) / n.sqrt())
    }

    /// The same for the NMSE, the spread of whose tokens is taken to be as large as it.
    fn likely_nmse(&self) -> f64 {
        self.nmse() * (1.0 + 3.0 / (self.kld.len() as f64).sqrt())
    }
}

/// What a distance is compared with: another of the same cause.
pub(super) struct Allowed<'a> {
    /// How far something right is from the same reference.
    pub example: &'a Distance,
    /// A mean KLD that is nothing, in nats a token: what arithmetic costs.
    pub floor: f64,
    /// What the example is.
    pub origins: [&'static str; 3],
}

/// How many times the mean squared error of the example may be exceeded, which is 1.7 times the amplitude. Both are noise
/// of the same kind on the same model and text, and differ by chance.
const FACTOR: f64 = 3.0;
/// The same for the single worst token, where chance has the most say.
const WORST: f64 = 25.0;

impl Allowed<'_> {
    /// How far `engine` is from `reference`: the checks of `found`.
    pub fn checks(&self, engine: &'static str, reference: &str, found: &Distance) -> [Check; 3] {
        let example = self.example;
        let [mean_origin, worst_origin, nmse_origin] = self.origins;
        let (at, worst) = found.worst();
        let mean_limit = FACTOR * example.likely_mean() + self.floor;
        let worst_limit = WORST * (example.worst().1 + self.floor);
        let worst_limit = worst_limit.max(mean_limit);
        let check = |id: CheckId, found, unit, at_most, origin| {
            let name = format!("{engine} against {reference}: {}", id.name());
            Check::new(id, found, unit, Limit { at_most }, origin).of_engine(engine, name)
        };
        let kld = metrics::mean(&found.kld);
        let mut mean = check(CheckId::MeanKld, kld, Unit::NatsPerToken, mean_limit, mean_origin);
        if !mean.pass {
            let place = format!("the worst token is number {at}: {worst:.1e} nats");
            mean = mean.with_details(vec![place]);
        }
        let mut single = check(CheckId::WorstKld, worst, Unit::Nats, worst_limit, worst_origin);
        if !single.pass {
            single = single.with_details(vec![format!("token number {at}")]);
        }
        let nmse_limit = FACTOR * example.likely_nmse() + self.floor;
        let nmse = check(CheckId::LogitNmse, found.nmse(), Unit::Ratio, nmse_limit, nmse_origin);
        [mean, single, nmse]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(kld: &[f64], nmse: f64) -> Distance {
        Distance {
            kld: kld.to_vec(),
            same_top: 1,
            logits: Nmse {
                error: nmse,
                energy: 1.0,
            },
        }
    }

    fn passed(example: &Distance, found: &Distance) -> [bool; 3] {
        let allowed = Allowed {
            example,
            floor: 1e-6,
            origins: ["", "", ""],
        };
        allowed.checks("a", "b", found).map(|check| check.pass)
    }

    #[test]
    fn as_far_as_the_example_is_right_and_much_further_is_not() {
        let example = distance(&[1e-3; 100], 1e-4);
        assert_eq!(passed(&example, &distance(&[2e-3; 100], 2e-4)), [true; 3]);
        let [mean, worst, nmse] = passed(&example, &distance(&[5e-3; 100], 4.5e-4));
        assert!(!mean && worst && !nmse);
        // One broken position of many shows in its own KLD.
        let mut broken = [1e-3; 100];
        broken[70] = 0.1;
        assert_eq!(passed(&example, &distance(&broken, 1e-4)), [true, false, true]);
        assert_eq!(passed(&example, &distance(&[f64::NAN; 100], f64::NAN)), [false; 3]);
        let broken = distance(&[f64::NAN], 1e-4);
        assert!(!passed(&broken, &distance(&[0.0], 0.0))[0]);
    }

    #[test]
    fn few_tokens_say_little() {
        // (2 + 4) / 2 = 3; the spread is 1, taken to be 3; three of it over the root of 2.
        let likely = distance(&[2.0, 4.0], 0.0).likely_mean();
        assert!((likely - (3.0 + 9.0 / 2f64.sqrt())).abs() < 1e-12);
        let likely = distance(&[0.0; 9], 2.0).likely_nmse();
        assert!((likely - 4.0).abs() < 1e-12);
    }

    #[test]
    fn where_nothing_is_lost_only_the_floor_is_allowed() {
        let example = distance(&[0.0; 10], 0.0);
        assert_eq!(passed(&example, &distance(&[9e-7; 10], 9e-7)), [true; 3]);
        assert_eq!(passed(&example, &distance(&[2e-6; 10], 2e-6)), [false, true, false]);
    }
}
