//! The architectures of transformers that can be packed.

use super::graph::Graph;
use super::{EMBEDDING, HEAD, Norm, Part, Slot};

/// An architecture of transformers, whose forward pass a graph of llama.cpp computes exactly.
#[derive(Debug, PartialEq)]
pub struct Architecture {
    /// Its names in `architectures` of config.json, the usual one first.
    pub names: &'static [&'static str],
    pub graph: &'static Graph,
    /// Whether q, k and v have biases of their own, beside the offline ones.
    pub qkv_bias: OwnBias,
    pub o_bias: OwnBias,
    /// That of gate, up and down.
    pub mlp_bias: OwnBias,
    pub sliding_window: SlidingWindow,
    pub norm_names: NormNames,
    /// The activation of the feed-forward part where config.json names none.
    pub activation: &'static str,
}

/// Whether linears have biases of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnBias {
    Never,
    Always,
    /// As this key of config.json says; not where it is missing.
    Key(&'static str),
}

/// How config.json limits how far attention sees back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlidingWindow {
    /// Not at all.
    Never,
    /// `sliding_window`, in every layer.
    EveryLayer,
    /// `sliding_window`, where `use_sliding_window` is set, in the layers that `layer_types` or `max_window_layers`
    /// name.
    SomeLayers,
}

/// What a checkpoint calls the norms of a layer, after `model.layers.N.`.
#[derive(Debug, PartialEq)]
pub struct NormNames {
    pub attention: &'static str,
    pub feed_forward: &'static str,
    /// Of each head of q, and of k, where there are such norms.
    pub query: &'static str,
    pub key: &'static str,
    /// Before o, and before down, where there are such norms.
    pub attention_sub: &'static str,
    pub feed_forward_sub: &'static str,
}

const USUAL_NORMS: NormNames = NormNames {
    attention: "input_layernorm",
    feed_forward: "post_attention_layernorm",
    query: "self_attn.q_norm",
    key: "self_attn.k_norm",
    attention_sub: "self_attn.attn_sub_norm",
    feed_forward_sub: "mlp.ffn_sub_norm",
};

/// What every graph computes in its feed-forward part.
pub const SILU: &str = "silu";
/// What BitNet b1.58 2B-4T was trained with, which no graph computes.
pub const RELU_SQUARED: &str = "relu2";

const LLAMA: Architecture = Architecture {
    // The second is what the first conversions of Llama wrote.
    names: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    graph: &Graph::LLAMA,
    qkv_bias: OwnBias::Key("attention_bias"),
    o_bias: OwnBias::Key("attention_bias"),
    mlp_bias: OwnBias::Key("mlp_bias"),
    sliding_window: SlidingWindow::Never,
    norm_names: USUAL_NORMS,
    activation: SILU,
};

const MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM"],
    sliding_window: SlidingWindow::EveryLayer,
    ..LLAMA
};

const QWEN2: Architecture = Architecture {
    names: &["Qwen2ForCausalLM"],
    qkv_bias: OwnBias::Always,
    o_bias: OwnBias::Never,
    sliding_window: SlidingWindow::SomeLayers,
    ..LLAMA
};

const QWEN3: Architecture = Architecture {
    names: &["Qwen3ForCausalLM"],
    graph: &Graph::QWEN3,
    mlp_bias: OwnBias::Never,
    sliding_window: SlidingWindow::SomeLayers,
    ..LLAMA
};

const HUNYUAN: Architecture = Architecture {
    names: &["HunYuanDenseV1ForCausalLM"],
    graph: &Graph::HUNYUAN,
    mlp_bias: OwnBias::Never,
    norm_names: NormNames {
        query: "self_attn.query_layernorm",
        key: "self_attn.key_layernorm",
        ..USUAL_NORMS
    },
    ..LLAMA
};

const MINICPM: Architecture = Architecture {
    names: &["MiniCPMForCausalLM"],
    graph: &Graph::MINICPM,
    mlp_bias: OwnBias::Never,
    ..LLAMA
};

/// transformers' BitNet.
const BITNET: Architecture = Architecture {
    names: &["BitNetForCausalLM"],
    graph: &Graph::BITNET,
    mlp_bias: OwnBias::Never,
    activation: RELU_SQUARED,
    ..LLAMA
};

/// That of 1bitLLM.
const BITNET_REPRODUCED: Architecture = Architecture {
    names: &["BitnetForCausalLM"],
    norm_names: NormNames {
        attention_sub: "self_attn.inner_attn_ln",
        feed_forward_sub: "mlp.ffn_layernorm",
        ..USUAL_NORMS
    },
    activation: SILU,
    ..BITNET
};

/// The architectures of transformers that can be packed.
static ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    HUNYUAN,
    MINICPM,
    BITNET,
    BITNET_REPRODUCED,
    #[cfg(test)]
    MADE_UP,
    #[cfg(test)]
    MADE_UP_WITHOUT_BIASES,
];

/// An architecture that does not exist (docs/adding.md).
#[cfg(test)]
const MADE_UP: Architecture = Architecture {
    names: &["MadeUpForCausalLM"],
    graph: &Graph::MADE_UP,
    ..LLAMA
};

/// The same with a graph that llama.cpp has.
#[cfg(test)]
const MADE_UP_WITHOUT_BIASES: Architecture = Architecture {
    names: &["MadeUpWithoutBiasesForCausalLM"],
    graph: &Graph::QWEN3,
    ..LLAMA
};

/// What the names of architectures begin with that no graph computes, and why.
static REFUSED: &[(&str, &str)] = &[
    (
        "Gemma",
        "its activation and its norms are others than those of llama.cpp's `llama`",
    ),
    ("Qwen3Moe", EXPERTS),
    ("HunYuanMoE", EXPERTS),
];

const EXPERTS: &str = "it is a mixture of experts: convert it with llama.cpp's convert_hf_to_gguf.py";

impl Architecture {
    /// The usual names of all.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        ARCHITECTURES.iter().map(|architecture| architecture.names[0])
    }

    /// That of a name in config.json.
    pub fn find(name: &str) -> Option<&'static Self> {
        ARCHITECTURES
            .iter()
            .find(|architecture| architecture.names.contains(&name))
    }

    /// Why a name in config.json is refused, where that is known.
    pub fn refused(name: &str) -> Option<&'static str> {
        let found = REFUSED.iter().find(|(prefix, _)| name.starts_with(prefix));
        found.map(|(_, why)| *why)
    }

    /// For example `Llama`.
    pub fn short_name(&self) -> &'static str {
        let name = self.names[0];
        name.strip_suffix("ForCausalLM").unwrap_or(name)
    }

    /// Whether a linear has a bias of its own.
    pub fn own_bias(&self, part: Part) -> OwnBias {
        match part {
            Part::Q | Part::K | Part::V => self.qkv_bias,
            Part::O => self.o_bias,
            Part::Gate | Part::Up | Part::Down => self.mlp_bias,
        }
    }

    /// What a checkpoint calls a tensor, if it has it.
    pub fn checkpoint_name(&self, slot: Slot) -> Option<String> {
        match slot {
            Slot::Embedding => Some(EMBEDDING.into()),
            Slot::RopeFactors => None,
            Slot::Norm(norm) => Some(self.norm_name(norm)),
            Slot::Linear(linear) => Some(format!("{}.weight", linear.checkpoint_name())),
            Slot::Head => Some(HEAD.into()),
        }
    }

    /// What a checkpoint calls a norm, for example `model.layers.0.input_layernorm.weight`.
    pub fn norm_name(&self, norm: Norm) -> String {
        let names = &self.norm_names;
        let (layer, name) = match norm {
            Norm::Attention(layer) => (layer, names.attention),
            Norm::Query(layer) => (layer, names.query),
            Norm::Key(layer) => (layer, names.key),
            Norm::AttentionSub(layer) => (layer, names.attention_sub),
            Norm::FeedForward(layer) => (layer, names.feed_forward),
            Norm::FeedForwardSub(layer) => (layer, names.feed_forward_sub),
            Norm::Last => return "model.norm.weight".into(),
        };
        format!("model.layers.{layer}.{name}.weight")
    }
}
