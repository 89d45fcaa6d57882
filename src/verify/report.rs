//! What a verification found: plain data with units, for the terminal, for JSON and for the page.

use serde::Serialize;

use crate::bench::SpeedFacts;
use crate::metrics;

/// Everything that was found about one file.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: String,
    /// The checkpoint that it was held against.
    pub against: Option<String>,
    /// Whether all checks passed.
    pub verdict: Verdict,
    /// The five levels, in order.
    pub levels: Vec<Level>,
    /// What the file holds.
    pub model: Option<ModelFacts>,
    /// The linears, in file order.
    pub linears: Vec<LinearFacts>,
    /// How the trained scales are distributed.
    pub scales: Option<Histogram>,
    /// How the biases are distributed.
    pub biases: Option<Histogram>,
    /// The engines on a text.
    pub text: Option<TextFacts>,
    /// The engines against the clock.
    pub speed: Option<SpeedFacts>,
    /// What a person should know beside it.
    pub notes: Vec<String>,
}

/// The result in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every check passed, and the file was held against the checkpoint.
    Agrees,
    /// Every check passed, but none of them held the file against a checkpoint.
    Sound,
    /// A check did not pass.
    Disagrees,
    /// There was no check that could be made.
    NothingChecked,
}

/// One level of the verification.
#[derive(Debug, Serialize)]
pub struct Level {
    /// 1 to 5.
    pub number: u8,
    /// What it looks at.
    pub name: &'static str,
    /// The result.
    pub status: Status,
    /// What was compared.
    pub checks: Vec<Check>,
    /// What could not be compared, and why.
    pub not_checked: Vec<NotChecked>,
}

/// The result of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Every check passed, and there was one.
    Passed,
    /// A check did not pass.
    Failed,
    /// There was nothing to check with.
    NotChecked,
    /// There is nothing to be right or wrong about: figures only.
    Measured,
}

/// One comparison.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was compared.
    pub name: String,
    /// What was found, in `unit`; JSON has null for what is no number.
    pub found: f64,
    /// Of how many, where things are counted.
    pub of: Option<u64>,
    /// The unit of `found` and `limit`; empty for a ratio.
    pub unit: &'static str,
    /// What is allowed.
    pub limit: Limit,
    /// Where the limit comes from.
    pub origin: &'static str,
    /// Whether what was found is allowed.
    pub pass: bool,
    /// Where it differs, the first places in full.
    pub details: Vec<String>,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Limit {
    /// Whether `found` keeps to it; a NaN never does.
    pub fn allows(self, found: f64) -> bool {
        match self {
            Limit::AtMost(limit) => found <= limit,
            Limit::AtLeast(limit) => found >= limit,
        }
    }
}

/// Something that could not be compared.
#[derive(Debug, Serialize)]
pub struct NotChecked {
    /// What.
    pub what: String,
    /// Why not, and what would help.
    pub why: String,
}

/// Places that a check names in full; further ones are only counted.
pub(super) const SHOWN: usize = 8;

impl Check {
    /// A measured value against a limit.
    pub(super) fn new(
        name: impl Into<String>,
        found: f64,
        unit: &'static str,
        limit: Limit,
        origin: &'static str,
    ) -> Self {
        Self {
            name: name.into(),
            found,
            of: None,
            unit,
            limit,
            origin,
            pass: limit.allows(found),
            details: vec![],
        }
    }

    /// `wrong` of `of` things differ, and none may.
    pub(super) fn none_differ(
        name: impl Into<String>,
        wrong: u64,
        of: u64,
        unit: &'static str,
        origin: &'static str,
    ) -> Self {
        Self {
            of: Some(of),
            ..Self::new(name, wrong as f64, unit, Limit::AtMost(0.0), origin)
        }
    }

    /// Of `of` things, these problems were found, and none may be.
    pub(super) fn no_problems(
        name: impl Into<String>,
        problems: Vec<String>,
        of: u64,
        unit: &'static str,
        origin: &'static str,
    ) -> Self {
        Self::none_differ(name, problems.len() as u64, of, unit, origin).with_details(problems)
    }

    /// The same check with the places where it differs.
    pub(super) fn with_details(mut self, mut details: Vec<String>) -> Self {
        if details.len() > SHOWN {
            let more = details.len() - SHOWN;
            details.truncate(SHOWN);
            details.push(format!("and {more} more"));
        }
        self.details = details;
        self
    }
}

impl Level {
    /// A level of these checks. One that had nothing to compare has not passed: it was not made.
    pub(super) fn new(number: u8, name: &'static str, checks: Vec<Check>, mut not_checked: Vec<NotChecked>) -> Self {
        let (empty, checks): (Vec<_>, Vec<_>) = checks.into_iter().partition(|check| check.pass && check.of == Some(0));
        not_checked.extend(
            empty
                .into_iter()
                .map(|check| NotChecked::new(check.name, "there is nothing of it to compare")),
        );
        let status = if checks.iter().any(|check| !check.pass) {
            Status::Failed
        } else if checks.is_empty() {
            Status::NotChecked
        } else {
            Status::Passed
        };
        Self {
            number,
            name,
            status,
            checks,
            not_checked,
        }
    }

    /// A level that only measures.
    pub(super) fn measured(number: u8, name: &'static str, not_checked: Vec<NotChecked>) -> Self {
        Self {
            status: Status::Measured,
            ..Self::new(number, name, vec![], not_checked)
        }
    }

    /// A level of which nothing could be checked.
    pub(super) fn not_checked(number: u8, name: &'static str, why: impl Into<String>) -> Self {
        let not_checked = NotChecked::new("the whole level", why);
        Self::new(number, name, vec![], vec![not_checked])
    }
}

impl NotChecked {
    pub(super) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

impl Report {
    /// The checkpoint, where its weights or its logits were compared with the file's.
    pub fn held_against(&self) -> Option<&str> {
        let oracle = self.text.as_ref().is_some_and(|text| text.oracle);
        let held = oracle || !self.linears.is_empty();
        self.against.as_deref().filter(|_| held)
    }

    /// The checks that did not pass, with the number of their level.
    pub fn failures(&self) -> impl Iterator<Item = (u8, &Check)> {
        self.levels.iter().flat_map(|level| {
            let failed = level.checks.iter().filter(|check| !check.pass);
            failed.map(|check| (level.number, check))
        })
    }
}

/// What the file holds.
#[derive(Debug, Serialize)]
pub struct ModelFacts {
    /// `general.name`
    pub name: Option<String>,
    /// Bytes of the file.
    pub bytes: u64,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of metadata keys.
    pub keys: usize,
    /// Numbers of all tensors together.
    pub parameters: u64,
    /// Tensors and bytes of each type, in the order of ggml's ids.
    pub types: Vec<TypeFacts>,
}

/// How much of a file is of one type.
#[derive(Debug, Serialize)]
pub struct TypeFacts {
    /// The name of the type.
    pub ty: &'static str,
    /// Number of tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// One linear, held against the checkpoint.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinearFacts {
    /// For example `blk.0.attn_q`.
    pub name: String,
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The part of the name after `blk.N.`.
    pub part: String,
    /// The name of its type; empty where the tensor is missing.
    pub ty: String,
    /// Number of weights.
    pub weights: u64,
    /// Codes that differ.
    pub codes_wrong: u64,
    /// Stored scales that stand for one trained scale.
    pub scales: u64,
    /// Those of them that are not its nearest f16.
    pub scales_wrong: u64,
    /// Stored scales that stand for several trained ones.
    pub merged: u64,
    /// Those of them that are not the least-squares fit.
    pub merged_wrong: u64,
    /// Largest relative distance of a stored scale from a trained one that it stands for.
    pub worst_scale: f64,
    /// Sum of squared differences of the weights.
    pub error: f64,
    /// Sum of squared weights.
    pub energy: f64,
    /// Weights in the dead zone.
    pub dead: u64,
    /// Number of rows: biases.
    pub rows: u64,
    /// Biases that differ.
    pub biases_wrong: u64,
    /// Largest bias that the checkpoint gives, as a magnitude.
    pub largest_bias: f64,
    /// What the products of the kernels found; see [`DotFacts`].
    pub dots: Option<DotFacts>,
}

impl LinearFacts {
    /// Sum of squared differences over sum of squared weights.
    pub fn nmse(&self) -> f64 {
        if self.error == 0.0 {
            0.0
        } else {
            self.error / self.energy
        }
    }

    /// Whether nothing of it differs that may not.
    pub fn is_right(&self) -> bool {
        self.codes_wrong + self.scales_wrong + self.merged_wrong + self.biases_wrong == 0
    }

    /// The share of weights in the dead zone, 0 to 1.
    pub fn dead_share(&self) -> f64 {
        self.dead as f64 / self.weights as f64
    }
}

/// One matrix product, computed three ways.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DotFacts {
    /// NMSE of our kernel against f64.
    pub kernel: f64,
    /// NMSE of ggml's kernel against f64.
    pub ggml: Option<f64>,
    /// NMSE of our kernel against ggml's.
    pub between: Option<f64>,
    /// Largest difference of our kernel from f64, over the root mean square of the product.
    pub largest: f64,
}

/// Counts of equal bins.
#[derive(Clone, Debug, Serialize)]
pub struct Histogram {
    /// Whether the bins are equal in the logarithm.
    pub logarithmic: bool,
    /// Lower edge of the first bin.
    pub from: f64,
    /// Upper edge of the last bin.
    pub to: f64,
    /// How many values are in each bin.
    pub counts: Vec<u64>,
}

/// The engines on a text.
#[derive(Debug, Serialize)]
pub struct TextFacts {
    /// Where the text is from.
    pub source: String,
    /// Predictions compared.
    pub tokens: usize,
    /// Tokens that see each other.
    pub window: usize,
    /// What the others are compared with.
    pub reference: EngineFacts,
    /// Whether that is the oracle, which knows the checkpoint and not the file; else it is the file's numbers with
    /// activations that are not rounded.
    pub oracle: bool,
    /// Mean KLD, in nats a token, that losses as large as the file's cost this model in random directions.
    pub storing: Option<f64>,
    /// Mean KLD, in nats a token, that rounding activations as the file's types have it costs this model.
    pub rounding: f64,
    /// The others.
    pub tested: Vec<EngineFacts>,
}

/// One engine on the text.
#[derive(Debug, Serialize)]
pub struct EngineFacts {
    /// What it calls itself.
    pub name: String,
    /// exp of the mean surprisal.
    pub perplexity: f64,
    /// The share of tokens whose most likely next token is that of the reference.
    pub top1: Option<f64>,
    /// NMSE of the logits from those of the reference.
    pub nmse: Option<f64>,
    /// KLD of each token from the reference, in nats; empty for the reference itself.
    pub kld: Vec<f64>,
}

impl EngineFacts {
    /// What the others are compared with.
    pub(super) fn reference(name: &str, surprisals: &[f64]) -> Self {
        Self {
            name: name.into(),
            perplexity: metrics::perplexity(surprisals),
            top1: None,
            nmse: None,
            kld: vec![],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_allows_what_is_no_number() {
        assert!(Limit::AtMost(0.0).allows(0.0) && !Limit::AtMost(0.0).allows(1.0));
        assert!(Limit::AtLeast(0.5).allows(0.5) && !Limit::AtLeast(0.5).allows(0.4));
        assert!(!Limit::AtMost(1.0).allows(f64::NAN) && !Limit::AtLeast(1.0).allows(f64::NAN));
    }

    #[test]
    fn a_level_without_checks_has_not_passed() {
        assert_eq!(
            Level::not_checked(2, "codes", "no checkpoint").status,
            Status::NotChecked
        );
        let check = |wrong| Check::none_differ("codes", wrong, 9, "codes", "");
        let status = |checks| Level::new(2, "codes", checks, vec![]).status;
        assert_eq!(status(vec![check(0)]), Status::Passed);
        assert_eq!(status(vec![check(0), check(1)]), Status::Failed);
        let empty = Check::none_differ("merges", 0, 0, "merges", "");
        let level = Level::new(2, "codes", vec![empty], vec![]);
        assert_eq!(level.status, Status::NotChecked);
        assert_eq!(level.not_checked[0].what, "merges");
        // What is there although there should be none of it is wrong all the same.
        assert_eq!(
            status(vec![Check::none_differ("merges", 1, 0, "merges", "")]),
            Status::Failed
        );
    }

    #[test]
    fn the_first_places_are_named_and_the_rest_counted() {
        let places: Vec<_> = (0..11).map(|i| format!("row {i}")).collect();
        let check = Check::no_problems("rows", places, 20, "rows", "");
        assert_eq!((check.found, check.pass), (11.0, false));
        assert_eq!(check.details.len(), SHOWN + 1);
        assert_eq!(check.details[SHOWN], "and 3 more");
    }
}
