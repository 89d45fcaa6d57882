//! The architectures of llama.cpp (src/models/*.cpp, llama-model.cpp): what each computes, and what it has a place for.

use super::{Dims, Linear, Norm, Part, Slot};

/// An architecture of llama.cpp. Several of transformers can be one.
#[derive(Debug, PartialEq)]
pub struct Graph {
    /// `general.architecture`, which the keys of the model begin with.
    pub name: &'static str,
    pub pairing: Pairing,
    pub variant: Variant,
    /// The linears whose biases it adds.
    pub bias_slots: &'static [Part],
    /// Whether the scales of [`Variant`] are in keys.
    pub scales: bool,
    /// Whether a key may stretch the base of the rotation (NTK-aware scaling).
    pub rope_alpha: bool,
    /// Whether there may be a head beside the embedding.
    pub own_head: bool,
    /// Whether [`Slot::RopeFactors`] are read.
    pub rope_factors: bool,
    /// Whether the heads of q together are as long as the residual stream.
    pub square: bool,
}

/// Which dimensions of a head make the pair `i` of the rotation. Either is the other with the rows of q and k in
/// another order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `2i` and `2i + 1`: ggml's "normal" rope.
    Interleaved,
    /// `i` and `i + head_dim / 2`: Hugging Face's order, ggml's "NEOX" rope.
    Halves,
}

/// What an architecture computes otherwise than a Llama. Each field is honoured in `engine/oracle`, plainly, and in
/// `engine/native`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Variant {
    pub qk_norm: QkNorm,
    /// Norms of the attention's output before o, (heads * head_dim,), and of the gated product before down,
    /// (intermediate,).
    pub sub_norms: bool,
    /// The embedding is multiplied by this.
    pub embedding_scale: f64,
    /// What attention and the feed-forward part add to the residual stream is multiplied by this.
    pub residual_scale: f64,
    /// The logits are multiplied by this.
    pub logit_scale: f64,
}

/// Where each head of q and of k goes through a norm of its own, (head_dim,), one for all heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    BeforeRope,
    AfterRope,
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

/// `create_tensor_qkv` of llama-model.cpp.
const QKV: &[Part] = &[Part::Q, Part::K, Part::V];

impl Graph {
    pub(super) const LLAMA: Self = Self {
        name: "llama",
        pairing: Pairing::Interleaved,
        variant: Variant::LLAMA,
        bias_slots: &Part::ALL,
        scales: false,
        rope_alpha: false,
        own_head: true,
        rope_factors: true,
        square: false,
    };
    pub(super) const QWEN3: Self = Self {
        name: "qwen3",
        pairing: Pairing::Halves,
        variant: Variant {
            qk_norm: QkNorm::BeforeRope,
            ..Variant::LLAMA
        },
        bias_slots: QKV,
        rope_factors: false,
        ..Self::LLAMA
    };
    pub(super) const HUNYUAN: Self = Self {
        name: "hunyuan-dense",
        variant: Variant {
            qk_norm: QkNorm::AfterRope,
            ..Variant::LLAMA
        },
        rope_alpha: true,
        ..Self::QWEN3
    };
    pub(super) const MINICPM: Self = Self {
        name: "minicpm",
        scales: true,
        ..Self::LLAMA
    };
    pub(super) const BITNET: Self = Self {
        name: "bitnet",
        pairing: Pairing::Halves,
        variant: Variant {
            sub_norms: true,
            ..Variant::LLAMA
        },
        bias_slots: &[],
        own_head: false,
        rope_factors: false,
        square: true,
        ..Self::LLAMA
    };
}

/// Those that both forward passes have been shown to compute as llama.cpp does (tests/it/decoders.rs).
static GRAPHS: &[Graph] = &[
    Graph::LLAMA,
    Graph {
        name: "qwen2",
        pairing: Pairing::Halves,
        bias_slots: QKV,
        rope_factors: false,
        square: true,
        ..Graph::LLAMA
    },
    Graph::QWEN3,
    Graph::HUNYUAN,
    Graph::MINICPM,
    Graph::BITNET,
    #[cfg(test)]
    Graph::MADE_UP,
];

impl Graph {
    /// The names of all.
    pub fn supported() -> impl Iterator<Item = &'static str> {
        GRAPHS.iter().map(|graph| graph.name)
    }

    /// That of `general.architecture`.
    pub fn find(name: &str) -> Option<&'static Self> {
        GRAPHS.iter().find(|graph| graph.name == name)
    }

    /// Every tensor that a file can have, in its order.
    pub fn slots(&self, dims: &Dims) -> Vec<Slot> {
        let mut slots = vec![Slot::Embedding];
        slots.extend(self.rope_factors.then_some(Slot::RopeFactors));
        slots.extend((0..dims.layers).flat_map(|layer| self.layer(layer)));
        slots.push(Slot::Norm(Norm::Last));
        slots.extend(self.own_head.then_some(Slot::Head));
        slots
    }

    fn layer(&self, layer: usize) -> Vec<Slot> {
        let linear = |part| Slot::Linear(Linear { layer, part });
        let mut slots = vec![Slot::Norm(Norm::Attention(layer))];
        slots.extend([Part::Q, Part::K, Part::V].map(linear));
        if self.variant.qk_norm != QkNorm::None {
            slots.extend([Norm::Query(layer), Norm::Key(layer)].map(Slot::Norm));
        }
        if self.variant.sub_norms {
            slots.push(Slot::Norm(Norm::AttentionSub(layer)));
        }
        slots.extend([linear(Part::O), Slot::Norm(Norm::FeedForward(layer))]);
        slots.extend([Part::Gate, Part::Up].map(linear));
        if self.variant.sub_norms {
            slots.push(Slot::Norm(Norm::FeedForwardSub(layer)));
        }
        slots.push(linear(Part::Down));
        slots
    }

    /// The norm whose output is the activation of `linear`, where it is one.
    pub fn preceding_norm(&self, linear: Linear) -> Option<Norm> {
        let Linear { layer, part } = linear;
        match part {
            Part::Q | Part::K | Part::V => Some(Norm::Attention(layer)),
            Part::Gate | Part::Up => Some(Norm::FeedForward(layer)),
            Part::O if self.variant.sub_norms => Some(Norm::AttentionSub(layer)),
            Part::Down if self.variant.sub_norms => Some(Norm::FeedForwardSub(layer)),
            Part::O | Part::Down => None,
        }
    }

    /// Whether the rows of a linear stand in another order in a file than in a checkpoint, where the halves of a head
    /// turn together: those of q and k, where the graph turns neighbours.
    pub fn interleaves(&self, part: Part) -> bool {
        self.pairing == Pairing::Interleaved && matches!(part, Part::Q | Part::K)
    }
}

/// Of architectures that do not exist, with norms of q and k: what it takes to add one (docs/adding.md).
#[cfg(test)]
impl Graph {
    pub(super) const MADE_UP: Self = Self {
        name: "made-up",
        bias_slots: &Part::ALL,
        own_head: false,
        ..Self::QWEN3
    };
}
