//! What llama.cpp's architectures compute, and what each has a place for (src/models/*.cpp, llama-model.cpp).

use crate::engine::hyper::{Pairing, QkNorm, Variant};

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
    /// Whether the scales of [`Variant`] are in keys.
    pub scales: bool,
    /// Whether a key may stretch the base of the rotation (NTK-aware scaling).
    pub rope_alpha: bool,
    /// The linears that may have a bias.
    pub biases: &'static [&'static str],
    /// Whether there may be a head beside the embedding.
    pub own_head: bool,
    /// Whether [`ROPE_FACTORS`] are read.
    pub rope_factors: bool,
    /// Whether the heads of q together are as long as the residual stream.
    pub square: bool,
}

const NONE: &[&str] = &[];
const QKV: &[&str] = &["attn_q", "attn_k", "attn_v"];
const ALL: &[&str] = &[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    pairing: Pairing::Interleaved,
    variant: Variant::LLAMA,
    scales: false,
    rope_alpha: false,
    biases: ALL,
    own_head: true,
    rope_factors: true,
    square: false,
};

/// Those that both forward passes have been shown to compute as llama.cpp does (tests/it/decoders.rs).
pub static ARCHITECTURES: [Architecture; 6] = [
    LLAMA,
    Architecture {
        name: "qwen2",
        pairing: Pairing::Halves,
        biases: QKV,
        rope_factors: false,
        square: true,
        ..LLAMA
    },
    Architecture {
        name: "qwen3",
        pairing: Pairing::Halves,
        variant: Variant {
            qk_norm: QkNorm::BeforeRope,
            ..Variant::LLAMA
        },
        biases: QKV,
        rope_factors: false,
        ..LLAMA
    },
    Architecture {
        name: "hunyuan-dense",
        pairing: Pairing::Halves,
        variant: Variant {
            qk_norm: QkNorm::AfterRope,
            ..Variant::LLAMA
        },
        rope_alpha: true,
        biases: QKV,
        rope_factors: false,
        ..LLAMA
    },
    Architecture {
        name: "minicpm",
        scales: true,
        ..LLAMA
    },
    Architecture {
        name: "bitnet",
        pairing: Pairing::Halves,
        variant: Variant {
            sub_norms: true,
            ..Variant::LLAMA
        },
        biases: NONE,
        own_head: false,
        rope_factors: false,
        square: true,
        ..LLAMA
    },
];
