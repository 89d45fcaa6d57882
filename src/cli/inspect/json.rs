//! What a checkpoint or a GGUF file holds, as JSON.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::cli::activations::ActivationsReport;
use crate::cli::json::Document;
use crate::model::TrainingFacts;

/// `tqconv inspect --json`.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(in crate::cli) enum InspectReport {
    Checkpoint(Box<CheckpointReport>),
    Gguf(GgufReport),
}

impl Document for InspectReport {
    const SCHEMA: &'static str = "tqconv.inspect/1";
}

/// A checkpoint. What there is no config.json for is absent.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct CheckpointReport {
    pub path: String,
    /// Of the files of weights.
    pub bytes: u64,
    pub config: Option<Found<ConfigReport>>,
    /// `latent` or `ternary`.
    pub weights: Option<Found<&'static str>>,
    pub training: Option<Found<TrainedReport>>,
    /// What `pack` would make of it.
    pub pack: Option<Found<PreviewReport>>,
    pub tensors: Vec<TensorReport>,
}

/// Something that was found, or why it was not.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::cli) enum Found<T> {
    Is(T),
    Not { problem: String },
}

impl<T> Found<T> {
    pub fn new(found: Result<T, &String>) -> Self {
        match found {
            Ok(found) => Self::Is(found),
            Err(problem) => Self::Not {
                problem: problem.clone(),
            },
        }
    }
}

/// What config.json says of the model.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct ConfigReport {
    pub architecture: String,
    pub layers: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab_size: usize,
    /// In tokens.
    pub context_length: usize,
    /// Whether the head is the embedding.
    pub tied_head: bool,
}

/// How it was trained.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct TrainedReport {
    #[serde(flatten)]
    pub training: TrainingFacts,
    /// What says so.
    pub known_by: &'static str,
}

/// What `pack` would make of it without further options.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct PreviewReport {
    /// How many linears would become each type.
    pub linears: BTreeMap<&'static str, usize>,
    /// How activations are rounded for each of these types.
    pub activations: BTreeMap<&'static str, Option<ActivationsReport>>,
    pub bytes: u64,
    /// The NMSE that storing would add, over all linears.
    pub nmse: f64,
    /// The share of zeros in the linears, 0 to 1.
    pub dead_share: f64,
    /// As a magnitude, where the file has biases.
    pub largest_bias: Option<f64>,
    pub notes: Vec<String>,
}

/// A GGUF file, or several that are one model.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct GgufReport {
    pub path: String,
    pub bytes: u64,
    pub gguf_version: u32,
    pub alignment_bytes: u64,
    /// Whether Ollama reads all its types.
    pub ollama: bool,
    /// The types that tensors have, by name.
    pub types: BTreeMap<&'static str, TypeReport>,
    /// The keys. Of a list only `type` and `length`, unless all was asked for.
    pub metadata: Map<String, Value>,
    pub tensors: Vec<TensorReport>,
}

/// The tensors of one type.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct TypeReport {
    pub tensors: usize,
    pub weights: u64,
    pub bytes: u64,
    /// The share of zeros, 0 to 1, where tensors are ternary.
    pub dead_share: Option<f64>,
    /// In words.
    pub runs_on: &'static str,
    /// Where activations are rounded for it.
    pub activations: Option<ActivationsReport>,
}

/// A tensor of either.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct TensorReport {
    pub name: String,
    /// The block type, or the dtype of a checkpoint.
    #[serde(rename = "type")]
    pub ty: String,
    /// Rows first.
    pub shape: Vec<u64>,
    pub bytes: Option<u64>,
}
