//! The hyper-parameters that a forward pass is computed by. Both passes take this type, the native engine with what the
//! file says ([`super::file`]), the oracle with what the verifier reads of the checkpoint: a value that one of them misreads
//! shows as a difference between them.

pub use crate::blueprint::{Pairing, QkNorm};

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

/// What an architecture computes otherwise than a Llama. Each field is honoured in `engine/oracle`, plainly, and in
/// `engine/native`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    pub qk_norm: QkNorm,
    /// Norms of the attention's output before o, (heads * head_dim,), and of the gated product before down, (ffn,).
    pub sub_norms: bool,
    /// The embedding is multiplied by this.
    pub embedding_scale: f64,
    /// What attention and the feed-forward part add to the residual stream is multiplied by this.
    pub residual_scale: f64,
    /// The logits are multiplied by this.
    pub logit_scale: f64,
}

impl Hyper {
    /// Rows of q, columns of o.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of k and of v.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl Variant {
    /// Nothing otherwise.
    pub const LLAMA: Self = Variant {
        qk_norm: QkNorm::None,
        sub_norms: false,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
    };
}
