//! What the caller of the packer decides.

use super::rule::{Embedding, Rule};
use crate::model::card::Card;
use crate::simd::Level;

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the type of each linear is found.
    pub rule: Rule,
    /// How embedding and head are stored.
    pub embedding: Embedding,
    /// Whether biases are left out that the graph has no place for.
    pub drop_biases: bool,
    /// `general.name`
    pub name: Option<String>,
    /// `general.organization`
    pub organization: Option<String>,
    /// What the source's own card says.
    pub card: Card,
    /// Keys over those that are derived, as text: the type is that of the key, string for a new one.
    pub metadata: Vec<(String, String)>,
    /// Whether to note the sha256 of each input file, for provenance.
    pub hash: bool,
    /// The most bytes of an output file; more become several files. One tensor is never cut.
    pub split_max_size: Option<u64>,
    /// Which instructions to use: the output is the same with any.
    pub level: Level,
}
