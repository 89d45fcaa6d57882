//! The hyper-parameters that a forward pass is computed by. Both passes take this type, the native engine with what the
//! file says ([`super::file`]), the oracle with what the verifier reads of the checkpoint: a value that one of them
//! misreads shows as a difference between them.

use crate::blueprint::Dims;
pub use crate::blueprint::{Pairing, QkNorm, Variant};

/// A decoder: an embedding, layers of attention and a gated feed-forward part, a last norm and a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Length of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Length of one head; even.
    pub head_dim: usize,
    /// Rows of the gate and up matrices.
    pub ffn: usize,
    /// Tokens that the model was trained to see at once.
    pub context: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f64,
    pub rope: Rope,
    pub variant: Variant,
}

/// Rotary position embedding: the pair of dimensions `i` of a head turns by
/// `position * base^(-2i / head_dim) / divisor / factors_i`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    pub base: f64,
    /// By how much all pairs turn slower, for long contexts (linear scaling); 1 for none.
    pub divisor: f64,
    /// By how much each pair turns slower: (head_dim / 2,).
    pub factors: Option<Vec<f64>>,
    pub pairing: Pairing,
}

impl Hyper {
    /// What the shapes of the tensors follow from.
    pub fn dims(&self) -> Dims {
        Dims {
            hidden: self.hidden,
            intermediate: self.ffn,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab,
        }
    }

    /// Rows of q, columns of o.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of k and of v.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}
