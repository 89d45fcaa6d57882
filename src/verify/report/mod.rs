//! What a verification found: plain data with units, for the terminal, for JSON and for the page.

mod check;
mod facts;

use schemars::JsonSchema;
use serde::Serialize;

pub(super) use check::SHOWN;
pub use check::{Check, CheckId, Level, LevelReport, Limit, NotChecked, Status, Unit};
pub use facts::{
    DotFacts, EngineFacts, Histogram, LinearFacts, LinkCause, LinkFacts, ModelFacts, Tally, TextFacts, TypeFacts,
};

use super::mismatch::Mismatch;
use crate::bench::SpeedFacts;
use crate::witness::Build;

/// Everything that was found about one file.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Report {
    /// The file, as it was named.
    #[serde(rename = "path")]
    pub file: String,
    /// The checkpoint that was named to compare it with.
    pub against: Option<String>,
    /// Whether all checks passed.
    pub verdict: Verdict,
    /// The llama.cpp that was asked; `None`: none was, or it did not start.
    pub llama_cpp: Option<Build>,
    /// How the model differs in shape from that which it is compared with: then it is another one.
    pub mismatches: Vec<Mismatch>,
    /// The levels that were asked for, in order.
    pub levels: Vec<LevelReport>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every check passed, and the file was compared with the checkpoint.
    Agrees,
    /// Every check passed, but none of them compared the file with a checkpoint.
    Sound,
    /// A check did not pass.
    Disagrees,
    /// There was no check that could be made.
    NothingChecked,
}

impl Report {
    /// The checkpoint, where its weights or its logits were compared with the file's.
    pub fn compared_with(&self) -> Option<&str> {
        let oracle = self.text.as_ref().is_some_and(|text| text.oracle);
        let compared = oracle || !self.linears.is_empty();
        self.against.as_deref().filter(|_| compared)
    }

    /// The checks that did not pass, with their level.
    pub fn failures(&self) -> impl Iterator<Item = (Level, &Check)> {
        self.levels.iter().flat_map(|report| {
            let failed = report.checks.iter().filter(|check| !check.pass);
            failed.map(|check| (report.level, check))
        })
    }

    /// A check, where it was made.
    pub fn check(&self, id: CheckId) -> Option<&Check> {
        let mut checks = self.levels.iter().flat_map(|level| &level.checks);
        checks.find(|check| check.id == id)
    }

    /// All linears together.
    pub fn total(&self) -> Tally {
        self.linears.iter().map(|linear| linear.tally).sum()
    }

    /// What all levels together come to.
    pub(super) fn judge(&self) -> Verdict {
        if self.failures().next().is_some() {
            Verdict::Disagrees
        } else if self.levels.iter().all(|level| level.checks.is_empty()) {
            Verdict::NothingChecked
        } else if self.compared_with().is_some() {
            Verdict::Agrees
        } else {
            Verdict::Sound
        }
    }
}
