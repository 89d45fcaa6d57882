//! The architectures: those of transformers that can be packed, and the graphs of llama.cpp that compute them.

use super::Part;

/// An architecture of llama.cpp. Several of transformers can be one.
#[derive(Debug, PartialEq)]
pub struct Graph {
    /// `general.architecture`, which the keys of the model begin with.
    pub name: &'static str,
    /// The linears whose biases it adds.
    pub bias_slots: &'static [Part],
    /// Which dimensions of a head turn together.
    pub pairing: Pairing,
    pub qk_norm: QkNorm,
}

/// Which dimensions of a head make the pair `i` of the rotation. Either is the other with the rows of q and k in another
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `2i` and `2i + 1`: LLAMA_ROPE_TYPE_NORM, ggml's "normal" rope.
    Interleaved,
    /// `i` and `i + head_dim / 2`, as in transformers: LLAMA_ROPE_TYPE_NEOX.
    Halves,
}

/// Where each head of q and of k goes through a norm, (head_dim,), one for all heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    BeforeRope,
    AfterRope,
}

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
    /// `sliding_window`, where `use_sliding_window` is set, in the layers that `layer_types` or `max_window_layers` name.
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
}

const USUAL_NORMS: NormNames = NormNames {
    attention: "input_layernorm",
    feed_forward: "post_attention_layernorm",
    query: "self_attn.q_norm",
    key: "self_attn.k_norm",
};

static LLAMA_GRAPH: Graph = Graph {
    name: "llama",
    bias_slots: &Part::ALL,
    pairing: Pairing::Interleaved,
    qk_norm: QkNorm::None,
};

const LLAMA: Architecture = Architecture {
    // The second is what the first conversions of Llama wrote.
    names: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    graph: &LLAMA_GRAPH,
    qkv_bias: OwnBias::Key("attention_bias"),
    o_bias: OwnBias::Key("attention_bias"),
    mlp_bias: OwnBias::Key("mlp_bias"),
    sliding_window: SlidingWindow::Never,
    norm_names: USUAL_NORMS,
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

/// The graphs of llama.cpp that files are made for, and that are run here.
static GRAPHS: &[&Graph] = &[
    &LLAMA_GRAPH,
    #[cfg(test)]
    &made_up::GRAPH,
];

/// The architectures of transformers that can be packed.
static ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    MISTRAL,
    QWEN2,
    #[cfg(test)]
    made_up::ARCHITECTURE,
    #[cfg(test)]
    made_up::WITHOUT_BIASES,
];

/// An architecture of transformers that no graph of llama.cpp computes with all biases.
pub struct Refused {
    /// What its name in config.json begins with.
    pub prefix: &'static str,
    /// Why `llama` does not compute it.
    pub not_llama: &'static str,
    /// The linears whose biases its own graph adds.
    bias_slots: &'static [Part],
}

const QKV: &[Part] = &[Part::Q, Part::K, Part::V]; // `create_tensor_qkv` of llama-model.cpp

const QK_NORMS: &str = "its norms of q and k have no place in llama.cpp's `llama`";
const SUB_NORMS: &str = "its norms before o_proj and down_proj have no place in llama.cpp's `llama`";

static REFUSED: &[Refused] = &[
    Refused {
        prefix: "Qwen3",
        not_llama: QK_NORMS,
        bias_slots: QKV,
    },
    Refused {
        prefix: "HunYuanDense",
        not_llama: QK_NORMS,
        bias_slots: QKV,
    },
    Refused {
        prefix: "Gemma",
        not_llama: "its activation and its norms are others than those of llama.cpp's `llama`",
        bias_slots: QKV,
    },
    Refused {
        prefix: "BitNet",
        not_llama: SUB_NORMS,
        bias_slots: &[],
    },
    Refused {
        prefix: "Bitnet",
        not_llama: SUB_NORMS,
        bias_slots: &[],
    },
];

impl Refused {
    /// That of a name in config.json.
    pub fn find(name: &str) -> Option<&'static Self> {
        REFUSED.iter().find(|refused| name.starts_with(refused.prefix))
    }

    /// The linears whose biases its own graph in llama.cpp would lose.
    pub fn without_bias(&self) -> Vec<Part> {
        without(self.bias_slots)
    }
}

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
}

impl Graph {
    /// The names of all.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        GRAPHS.iter().map(|graph| graph.name)
    }

    /// That of `general.architecture`.
    pub fn find(name: &str) -> Option<&'static Self> {
        GRAPHS.iter().copied().find(|graph| graph.name == name)
    }
}

/// The linears that are not among `slots`.
pub(super) fn without(slots: &[Part]) -> Vec<Part> {
    Part::ALL.into_iter().filter(|part| !slots.contains(part)).collect()
}

/// An architecture that does not exist, with norms of q and k: what it takes to add one (docs/adding.md).
#[cfg(test)]
mod made_up {
    use super::*;

    pub static GRAPH: Graph = Graph {
        name: "made-up",
        bias_slots: &Part::ALL,
        pairing: Pairing::Halves,
        qk_norm: QkNorm::BeforeRope,
    };

    pub const ARCHITECTURE: Architecture = Architecture {
        names: &["MadeUpForCausalLM"],
        graph: &GRAPH,
        ..LLAMA
    };

    /// The same with a graph as llama.cpp has them for such architectures.
    pub const WITHOUT_BIASES: Architecture = Architecture {
        names: &["MadeUpWithoutBiasesForCausalLM"],
        graph: &Graph {
            name: "made-up-without-biases",
            bias_slots: QKV,
            pairing: Pairing::Halves,
            qk_norm: QkNorm::BeforeRope,
        },
        ..LLAMA
    };
}
