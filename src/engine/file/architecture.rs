//! What llama.cpp's architectures compute, and what each has a place for (src/models/*.cpp, llama-model.cpp).

use crate::engine::hyper::{Pairing, Variant};

pub const EMBEDDING: &str = "token_embd.weight";

/// What ggml divides the angles of each pair by (ggml-cpu/ops.cpp, rope).
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// One value of `general.architecture`.
#[derive(Debug)]
pub struct Architecture {
    /// The value, which the keys of the architecture begin with.
    pub name: &'static str,
    pub pairing: Pairing,
    pub variant: Variant,
    /// The linears that may have a bias.
    pub biases: &'static [&'static str],
    /// Whether there may be a head beside the embedding.
    pub own_head: bool,
    /// Whether [`ROPE_FACTORS`] are read.
    pub rope_factors: bool,
}

const ALL: &[&str] = &[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

/// Those that both forward passes have been shown to compute as llama.cpp does.
pub static ARCHITECTURES: [Architecture; 1] = [Architecture {
    name: "llama",
    pairing: Pairing::Interleaved,
    variant: Variant::LLAMA,
    biases: ALL,
    own_head: true,
    rope_factors: true,
}];
