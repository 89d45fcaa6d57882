//! What was measured: plain data with units.

use std::iter::Sum;
use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::Serialize;

use crate::engine::EngineName;
use crate::metrics::{self, Nmse};

/// What the file holds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ModelFacts {
    /// `general.name`
    pub name: Option<String>,
    /// Bytes of the file.
    pub bytes: u64,
    pub tensors: usize,
    pub keys: usize,
    /// Numbers of all tensors together.
    pub parameters: u64,
    /// Tensors and bytes of each type, in the order of ggml's ids.
    pub types: Vec<TypeFacts>,
}

/// How much of a file is of one type.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TypeFacts {
    #[serde(rename = "type")]
    pub ty: &'static str,
    pub tensors: usize,
    pub bytes: u64,
}

/// One linear, compared with the checkpoint.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct LinearFacts {
    /// For example `blk.0.attn_q`.
    pub name: String,
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The part of the name after `blk.N.`.
    pub part: String,
    /// The name of its type; empty where the tensor is missing.
    #[serde(rename = "type")]
    pub ty: String,
    /// What was found of it.
    #[serde(flatten)]
    pub tally: Tally,
    /// What the products of the kernels found; see [`DotFacts`].
    pub dots: Option<DotFacts>,
}

/// What comparing rows with the checkpoint found: of one row, of a linear, or of all linears.
#[derive(Clone, Copy, Debug, Default, Serialize, JsonSchema)]
pub struct Tally {
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
    /// What storing the weights lost.
    #[serde(flatten)]
    pub loss: Nmse,
    /// Weights in the dead zone.
    pub dead: u64,
    /// Those of them that were chosen among weights of equal magnitude.
    pub ties: u64,
    /// Number of rows: biases.
    pub rows: u64,
    /// Biases that differ.
    pub biases_wrong: u64,
    /// Largest bias that the checkpoint gives, as a magnitude.
    pub largest_bias: f64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.weights += other.weights;
        self.codes_wrong += other.codes_wrong;
        self.scales += other.scales;
        self.scales_wrong += other.scales_wrong;
        self.merged += other.merged;
        self.merged_wrong += other.merged_wrong;
        self.worst_scale = self.worst_scale.max(other.worst_scale);
        self.loss += other.loss;
        self.dead += other.dead;
        self.ties += other.ties;
        self.rows += other.rows;
        self.biases_wrong += other.biases_wrong;
        self.largest_bias = self.largest_bias.max(other.largest_bias);
    }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        let mut sum = Self::default();
        tallies.for_each(|tally| sum += tally);
        sum
    }
}

impl Tally {
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
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
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
#[derive(Clone, Debug, Serialize, JsonSchema)]
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

impl Histogram {
    /// The lower edge of bin `i`, or the upper edge of the last.
    pub fn edge(&self, i: usize) -> f64 {
        let share = i as f64 / self.counts.len() as f64;
        if self.logarithmic {
            self.from * (self.to / self.from).powf(share)
        } else {
            self.from + (self.to - self.from) * share
        }
    }
}

/// The engines on a text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TextFacts {
    /// Where the text is from.
    pub source: String,
    /// Predictions compared.
    pub tokens: usize,
    /// Tokens of a window: those that see each other.
    pub window: usize,
    /// What the others are compared with.
    pub reference: EngineFacts,
    /// Whether that is the oracle, which knows the checkpoint and not the file; else it is the file's numbers with
    /// activations that are not rounded.
    pub oracle: bool,
    /// Mean KLD, in nats a token, that losses as large as the file's cost this model in random directions.
    #[serde(rename = "storing_nats")]
    pub storing: Option<f64>,
    /// The reference passes and engines, each from what the link before leads to: weights, activations, engines.
    pub links: Vec<LinkFacts>,
    /// The file's numbers and the engines, from the reference.
    pub tested: Vec<EngineFacts>,
}

/// What one cause does to the predictions.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LinkFacts {
    /// The cause.
    pub link: LinkCause,
    /// What the link leads to: the file, rounded activations or the short name of an engine.
    pub to: &'static str,
    /// How activations are rounded there; not in the file's numbers.
    pub activations: Option<&'static str>,
    /// What keys are kept in there; as they are in the file's numbers.
    pub cache_type_k: Option<&'static str>,
    /// What values are kept in there.
    pub cache_type_v: Option<&'static str>,
    /// exp of the mean surprisal at its end.
    pub perplexity: f64,
    /// Mean KLD of its end from its beginning, in nats a token.
    #[serde(rename = "mean_kld_nats")]
    pub mean_kld: f64,
    /// The share of tokens whose most likely next token is the same at both.
    pub top1: f64,
}

/// Why predictions differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkCause {
    /// What storing the weights lost: from the checkpoint to the file's numbers.
    Weights,
    /// What rounding activations costs, and keys and values where they are: from the file's numbers to the same rounded.
    Activations,
    /// What an engine adds: from there to its own predictions.
    Engine,
}

impl LinkCause {
    pub fn name(self) -> &'static str {
        match self {
            Self::Weights => "weights",
            Self::Activations => "activations",
            Self::Engine => "engine",
        }
    }
}

/// One engine on the text.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EngineFacts {
    #[serde(rename = "engine")]
    pub name: EngineName,
    /// exp of the mean surprisal.
    pub perplexity: f64,
    /// The share of tokens whose most likely next token is that of the reference.
    pub top1: Option<f64>,
    /// NMSE of the logits from those of the reference.
    pub nmse: Option<f64>,
    /// KLD of each token from the reference, in nats; empty for the reference itself.
    #[serde(rename = "kld_nats")]
    pub kld: Vec<f64>,
}

impl EngineFacts {
    /// What the others are compared with.
    pub(in crate::verify) fn reference(name: EngineName, surprisals: &[f64]) -> Self {
        Self {
            name,
            perplexity: metrics::perplexity(surprisals),
            top1: None,
            nmse: None,
            kld: vec![],
        }
    }
}
