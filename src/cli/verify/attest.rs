//! `verify --attest`: what was verified, as a statement that can be signed.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::evidence::{FileDigest, Machine, command_line, now};
use crate::cli::json::{Document, value_of};
use crate::engine::EngineName;
use crate::metrics;
use crate::verify::{LevelReport, ModelFacts, Report, Tally, Verdict};

/// What the statement says of its subjects: docs/attestation.md describes it.
const PREDICATE_TYPE: &str = "urn:tqconv:verification:1";

/// The predicate of the statement.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct Verification<'a> {
    /// What the file was compared with: every file of it.
    against: &'a [FileDigest],
    verdict: Verdict,
    /// All checks, with what was found, the limit, and where that comes from.
    levels: &'a [LevelReport],
    /// What the file holds.
    model: Option<&'a ModelFacts>,
    /// All linears together, where they were compared.
    linears: Option<Tally>,
    /// The engines on a text.
    text: Option<TextFigures>,
    machine: Machine,
    /// Not in a reproducible statement.
    verified_at: Option<String>,
    /// Not in a reproducible statement.
    command: Option<String>,
    notes: &'a [String],
}

/// What engines made of a text.
#[derive(Serialize, JsonSchema)]
struct TextFigures {
    source: String,
    /// Predictions compared.
    tokens: usize,
    window_tokens: usize,
    /// What the others are compared with.
    reference: EngineName,
    reference_perplexity: f64,
    tested: Vec<EngineFigures>,
}

/// One engine.
#[derive(Serialize, JsonSchema)]
struct EngineFigures {
    engine: EngineName,
    perplexity: f64,
    mean_kld_nats: f64,
    top1_share: Option<f64>,
}

impl Document for Verification<'_> {
    const SCHEMA: &'static str = "tqconv.verification/1";
}

/// The statement (in-toto Statement v1) that `report` is true of `subjects`, which were compared with `against`.
/// `reproducible`: without whatever differs from one run to the next on this machine.
pub fn statement(
    report: &Report,
    subjects: &[FileDigest],
    against: &[FileDigest],
    reproducible: bool,
) -> serde_json::Result<Value> {
    let verification = Verification {
        against,
        verdict: report.verdict,
        levels: &report.levels,
        model: report.model.as_ref(),
        linears: (!report.linears.is_empty()).then(|| report.total()),
        text: report.text.as_ref().map(|text| TextFigures {
            source: text.source.clone(),
            tokens: text.tokens,
            window_tokens: text.window,
            reference: text.reference.name.clone(),
            reference_perplexity: text.reference.perplexity,
            tested: text.tested.iter().map(EngineFigures::new).collect(),
        }),
        machine: Machine::this(),
        verified_at: (!reproducible).then(now),
        command: (!reproducible).then(command_line),
        notes: &report.notes,
    };
    let subject = |file: &FileDigest| json!({ "name": file.name, "digest": { "sha256": file.sha256 } });
    Ok(json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects.iter().map(subject).collect::<Vec<_>>(),
        "predicateType": PREDICATE_TYPE,
        "predicate": value_of(&verification)?,
    }))
}

impl EngineFigures {
    fn new(engine: &crate::verify::EngineFacts) -> Self {
        Self {
            engine: engine.name.clone(),
            perplexity: engine.perplexity,
            mean_kld_nats: metrics::mean(&engine.kld),
            top1_share: engine.top1,
        }
    }
}
