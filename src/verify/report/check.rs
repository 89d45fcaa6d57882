//! Levels, checks, limits.

use schemars::JsonSchema;
use serde::Serialize;

/// A level of the verification, in the order in which they run. In JSON two fields, `number` and `name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "LevelFields")]
pub enum Level {
    /// Whether the file keeps to the rules of what is to load it.
    Layout = 1,
    /// Whether every number is what the checkpoint gives.
    Codes,
    /// Whether products with the file's matrices are right.
    Dots,
    /// Whether the engines predict what the checkpoint predicts.
    Logits,
    /// How fast the engines are.
    Speed,
}

impl Level {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [Self::Layout, Self::Codes, Self::Dots, Self::Logits, Self::Speed];

    /// 1 to 5.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// What it looks at, in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layout => "layout",
            Self::Codes => "codes",
            Self::Dots => "dots",
            Self::Logits => "logits",
            Self::Speed => "speed",
        }
    }
}

/// A level in JSON.
#[derive(Serialize, JsonSchema)]
struct LevelFields {
    number: u8,
    name: &'static str,
}

impl From<Level> for LevelFields {
    fn from(level: Level) -> Self {
        Self {
            number: level.number(),
            name: level.name(),
        }
    }
}

/// What was found at one level.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LevelReport {
    #[serde(flatten)]
    pub level: Level,
    pub status: Status,
    pub checks: Vec<Check>,
    /// What could not be compared, and why.
    pub not_checked: Vec<NotChecked>,
}

/// The result of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
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
#[derive(Debug, Serialize, JsonSchema)]
pub struct Check {
    /// Which check it is. A report has each once, at level 4 once for each `engine`.
    pub id: CheckId,
    /// The pass or engine that was compared, at level 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<&'static str>,
    /// What was compared, in words, which may change.
    pub name: String,
    /// What was found, in `unit`; JSON has null for what is not a number.
    pub found: f64,
    /// Of how many, where things are counted.
    pub of: Option<u64>,
    /// The unit of `found` and `limit`.
    pub unit: Unit,
    /// What is allowed.
    pub limit: Limit,
    /// Where the limit comes from.
    pub origin: &'static str,
    /// Whether what was found is allowed.
    pub pass: bool,
    /// Where it differs, the first places in full.
    pub details: Vec<String>,
}

/// Which check it is: the same in every version, in JSON in snake_case. docs/verify.md tells what each compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckId {
    OurReader,
    SecondReader,
    Tensors,
    FileType,
    TokenizerTypes,
    FiniteNumbers,
    GgmlReader,
    GgmlBlocks,
    OllamaOneFile,
    OllamaTypes,
    OllamaAlignment,
    OllamaKeys,
    OllamaNames,

    Codes,
    Scales,
    MergedScales,
    WeightNmse,
    RecordedNmse,
    CopiedTensors,
    ConvertedTensor,
    CopiedKeys,
    Biases,
    Norms,
    KeptLinears,
    Embedding,
    EmbeddingScales,
    Head,
    HeadScales,
    TiedHead,
    RotaryFactors,
    NoRotaryFactors,
    ModelKeys,
    KeysByHand,
    TokenizerKeys,
    Tokens,
    SpecialTokens,
    Merges,
    TextsAsTokenizerJson,

    OurProduct,
    GgmlProduct,
    ProductsEightBits,
    ProductsF16,
    ProductsBf16,
    GgmlRuns,

    MeanKld,
    WorstKld,
    LogitNmse,
    MaxKld,
    TextsAlike,
    LlamaCppRuns,
}

impl CheckId {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::OurReader => "our reader",
            Self::SecondReader => "gguf-rs-lib agrees",
            Self::Tensors => "the architecture's tensors",
            Self::FileType => "file type",
            Self::TokenizerTypes => "tokenizer keys",
            Self::FiniteNumbers => "finite numbers",
            Self::GgmlReader => "ggml's reader",
            Self::GgmlBlocks => "ggml's rules for blocks",
            Self::OllamaOneFile => "Ollama's one file",
            Self::OllamaTypes => "Ollama's types",
            Self::OllamaAlignment => "Ollama's alignment",
            Self::OllamaKeys => "Ollama's keys",
            Self::OllamaNames => "Ollama's names",

            Self::Codes => "codes",
            Self::Scales => "scales",
            Self::MergedScales => "merged scales",
            Self::WeightNmse => "weight NMSE",
            Self::RecordedNmse => "recorded NMSE, off by",
            Self::CopiedTensors => "copied tensors",
            Self::ConvertedTensor => "converted tensor",
            Self::CopiedKeys => "copied keys",
            Self::Biases => "biases",
            Self::Norms => "norms",
            Self::KeptLinears => "linears that are not ternary",
            Self::Embedding => "embedding",
            Self::EmbeddingScales => "embedding: scales, NMSE",
            Self::Head => "head",
            Self::HeadScales => "head: scales, NMSE",
            Self::TiedHead => "tied head",
            Self::RotaryFactors => "rotary factors",
            Self::NoRotaryFactors => "no rotary factors",
            Self::ModelKeys => "model keys",
            Self::KeysByHand => "keys by hand",
            Self::TokenizerKeys => "tokenizer keys",
            Self::Tokens => "tokens",
            Self::SpecialTokens => "special tokens",
            Self::Merges => "merges",
            Self::TextsAsTokenizerJson => "texts split as tokenizer.json splits them",

            Self::OurProduct => "our kernels against f64",
            Self::GgmlProduct => "ggml against f64",
            Self::ProductsEightBits => "our kernels against ggml, 8-bit activations",
            Self::ProductsF16 => "our kernels against ggml, F16 activations",
            Self::ProductsBf16 => "our kernels against ggml, BF16 activations",
            Self::GgmlRuns => "ggml's product",

            Self::MeanKld => "mean KLD",
            Self::WorstKld => "worst KLD",
            Self::LogitNmse => "logit NMSE",
            Self::MaxKld => "mean KLD from the reference",
            Self::TextsAlike => "texts split alike",
            Self::LlamaCppRuns => "llama.cpp",
        }
    }
}

/// What a figure is measured in. In JSON its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
pub enum Unit {
    /// A pure number.
    Ratio,
    /// A normalized mean squared error, which is a pure number, too.
    Nmse,
    /// Natural units of information.
    Nats,
    /// The same, as the mean over tokens.
    NatsPerToken,
    /// Things that are counted, in the plural.
    Things(&'static str),
}

impl Unit {
    /// As it stands behind a figure; empty for a ratio.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ratio => "",
            Self::Nmse => "NMSE",
            Self::Nats => "nats",
            Self::NatsPerToken => "nats/token",
            Self::Things(things) => things,
        }
    }
}

impl From<Unit> for String {
    fn from(unit: Unit) -> Self {
        unit.name().into()
    }
}

/// What is allowed.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Limit {
    /// No more than this.
    pub at_most: f64,
}

impl Limit {
    /// Whether `found` keeps to it; a NaN never does.
    pub fn allows(self, found: f64) -> bool {
        found <= self.at_most
    }
}

/// Something that could not be compared.
#[derive(Debug, Serialize, JsonSchema)]
pub struct NotChecked {
    pub what: String,
    /// Why not, and what would help.
    pub why: String,
}

/// Places that a check names in full; further ones are only counted.
pub(in crate::verify) const SHOWN: usize = 8;

impl Check {
    /// A measured value against a limit.
    pub(in crate::verify) fn new(id: CheckId, found: f64, unit: Unit, limit: Limit, origin: &'static str) -> Self {
        Self {
            id,
            engine: None,
            name: id.name().into(),
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
    pub(in crate::verify) fn none_differ(
        id: CheckId,
        wrong: u64,
        of: u64,
        things: &'static str,
        origin: &'static str,
    ) -> Self {
        let none = Limit { at_most: 0.0 };
        Self {
            of: Some(of),
            ..Self::new(id, wrong as f64, Unit::Things(things), none, origin)
        }
    }

    /// Of `of` things, these problems were found, and none may be.
    pub(in crate::verify) fn no_problems(
        id: CheckId,
        problems: impl IntoIterator<Item = String>,
        of: u64,
        things: &'static str,
        origin: &'static str,
    ) -> Self {
        let problems: Vec<_> = problems.into_iter().collect();
        Self::none_differ(id, problems.len() as u64, of, things, origin).with_details(problems)
    }

    /// The same check in other words.
    pub(in crate::verify) fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// The same check of one of several engines, and in words that tell so.
    pub(in crate::verify) fn of_engine(self, engine: &'static str, name: String) -> Self {
        Self {
            engine: Some(engine),
            ..self.named(name)
        }
    }

    /// The same check with the places where it differs.
    pub(in crate::verify) fn with_details(mut self, mut details: Vec<String>) -> Self {
        if details.len() > SHOWN {
            let more = details.len() - SHOWN;
            details.truncate(SHOWN);
            details.push(format!("and {more} more"));
        }
        self.details = details;
        self
    }
}

impl LevelReport {
    /// A level of these checks. One that had nothing to compare has not passed: it was not made.
    pub(in crate::verify) fn new(level: Level, checks: Vec<Check>, mut not_checked: Vec<NotChecked>) -> Self {
        let (empty, checks): (Vec<_>, Vec<_>) = checks.into_iter().partition(|check| check.pass && check.of == Some(0));
        let empty = empty.into_iter().map(|check| check.name);
        not_checked.extend(empty.map(|name| NotChecked::new(name, "there is nothing of it to compare")));
        let status = if checks.iter().any(|check| !check.pass) {
            Status::Failed
        } else if checks.is_empty() {
            Status::NotChecked
        } else {
            Status::Passed
        };
        Self {
            level,
            status,
            checks,
            not_checked,
        }
    }

    /// A level that only measures.
    pub(in crate::verify) fn measured(level: Level, not_checked: Vec<NotChecked>) -> Self {
        Self {
            status: Status::Measured,
            ..Self::new(level, vec![], not_checked)
        }
    }

    /// A level of which nothing could be checked.
    pub(in crate::verify) fn not_checked(level: Level, why: impl Into<String>) -> Self {
        Self::new(level, vec![], vec![NotChecked::new("the whole level", why)])
    }
}

impl NotChecked {
    pub(in crate::verify) fn new(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why: why.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_never_allows_what_is_no_number() {
        let limit = Limit { at_most: 0.5 };
        assert!(limit.allows(0.5) && !limit.allows(0.6) && !limit.allows(f64::NAN));
    }

    #[test]
    fn a_level_without_checks_has_not_passed() {
        let level = |checks| LevelReport::new(Level::Codes, checks, vec![]);
        let none = LevelReport::not_checked(Level::Codes, "no checkpoint");
        assert_eq!(none.status, Status::NotChecked);
        let check = |wrong| Check::none_differ(CheckId::Codes, wrong, 9, "codes", "");
        assert_eq!(level(vec![check(0)]).status, Status::Passed);
        assert_eq!(level(vec![check(0), check(1)]).status, Status::Failed);
        let merges = |wrong| Check::none_differ(CheckId::Merges, wrong, 0, "merges", "");
        let empty = level(vec![merges(0)]);
        assert_eq!(empty.status, Status::NotChecked);
        assert_eq!(empty.not_checked[0].what, "merges");
        // What is there although there should be none of it is wrong all the same.
        assert_eq!(level(vec![merges(1)]).status, Status::Failed);
    }

    #[test]
    fn the_first_places_are_named_and_the_rest_counted() {
        let places = (0..11).map(|i| format!("row {i}"));
        let check = Check::no_problems(CheckId::Codes, places, 20, "rows", "");
        assert_eq!((check.found, check.pass), (11.0, false));
        assert_eq!(check.details.len(), SHOWN + 1);
        assert_eq!(check.details[SHOWN], "and 3 more");
    }

    #[test]
    fn json_has_the_fields_that_scripts_read() {
        let check = Check::new(
            CheckId::MeanKld,
            0.25,
            Unit::NatsPerToken,
            Limit { at_most: 0.5 },
            "a model",
        );
        let check = check.of_engine("native", "native against file: mean KLD".into());
        let level = LevelReport::new(Level::Logits, vec![check], vec![]);
        let expected = serde_json::json!({
            "number": 4, "name": "logits", "status": "passed",
            "checks": [{
                "id": "mean_kld", "engine": "native", "name": "native against file: mean KLD", "found": 0.25, "of": null,
                "unit": "nats/token", "limit": {"at_most": 0.5}, "origin": "a model", "pass": true, "details": [],
            }],
            "not_checked": [],
        });
        assert_eq!(serde_json::to_value(level).unwrap(), expected);
    }
}
