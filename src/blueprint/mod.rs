//! The model as a table: which tensors it has, in the order in which a file has them, what a checkpoint and a GGUF file
//! call them, and their shapes. Whoever names a tensor of a model asks here. What a file can have is told by [`Graph`],
//! and what a checkpoint calls it by [`Architecture`]; a new one is an entry of their tables (docs/adding.md).

mod architecture;
mod graph;

pub use architecture::{Architecture, NormNames, OwnBias, RELU_SQUARED, SILU, SlidingWindow};
pub use graph::{Graph, Pairing, QkNorm, Variant};

/// The numbers that every shape follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward part.
    pub intermediate: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab: usize,
}

/// A tensor of a model, but for what belongs to a linear: its bias, and its learned lambda in a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Embedding,
    /// By how much each pair of dimensions turns slower. Only in a file, and only for Llama 3's scaling.
    RopeFactors,
    Norm(Norm),
    Linear(Linear),
    /// Where it is not the embedding.
    Head,
}

/// A norm; those of a layer with its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// Before attention.
    Attention(usize),
    /// Of each head of q.
    Query(usize),
    /// Of each head of k.
    Key(usize),
    /// Before o.
    AttentionSub(usize),
    /// Before the feed-forward part.
    FeedForward(usize),
    /// Before down.
    FeedForwardSub(usize),
    /// Before the head.
    Last,
}

/// A ternary linear: y = A x + bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The decoder layer, from 0.
    pub layer: usize,
    pub part: Part,
}

/// Which of the seven linears of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// The checkpoint's name of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The checkpoint's name of the head, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";

impl Dims {
    /// Rows of q, columns of o.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Rows of k and of v.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl Part {
    /// In the order in which a layer applies them.
    pub const ALL: [Part; 7] = [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down];

    /// Its names within a layer, the checkpoint's and the file's.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Part::Q => ("self_attn.q_proj", "attn_q"),
            Part::K => ("self_attn.k_proj", "attn_k"),
            Part::V => ("self_attn.v_proj", "attn_v"),
            Part::O => ("self_attn.o_proj", "attn_output"),
            Part::Gate => ("mlp.gate_proj", "ffn_gate"),
            Part::Up => ("mlp.up_proj", "ffn_up"),
            Part::Down => ("mlp.down_proj", "ffn_down"),
        }
    }

    /// What messages call it, for example `q_proj`.
    pub fn short_name(self) -> &'static str {
        let (name, _) = self.names();
        name.rsplit('.').next().unwrap_or(name)
    }

    /// (rows, columns) of the weight.
    pub fn shape(self, dims: &Dims) -> (usize, usize) {
        let (hidden, intermediate) = (dims.hidden, dims.intermediate);
        let (query, kv) = (dims.q_width(), dims.kv_width());
        match self {
            Part::Q => (query, hidden),
            Part::K | Part::V => (kv, hidden),
            Part::O => (hidden, query),
            Part::Gate | Part::Up => (intermediate, hidden),
            Part::Down => (hidden, intermediate),
        }
    }
}

impl Linear {
    /// All linears of a model, layer by layer.
    pub fn all(dims: &Dims) -> impl Iterator<Item = Linear> + use<> {
        (0..dims.layers).flat_map(|layer| Part::ALL.map(|part| Linear { layer, part }))
    }

    /// For example `model.layers.0.self_attn.q_proj`; `.weight`, `.bias` and `.Lambada` follow.
    pub fn checkpoint_name(self) -> String {
        format!("model.layers.{}.{}", self.layer, self.part.names().0)
    }

    /// For example `blk.0.attn_q`; `.weight` and `.bias` follow.
    pub fn gguf_name(self) -> String {
        format!("blk.{}.{}", self.layer, self.part.names().1)
    }

    /// (rows, columns) of the weight.
    pub fn shape(self, dims: &Dims) -> (usize, usize) {
        self.part.shape(dims)
    }
}

impl Norm {
    /// For example `blk.0.attn_norm.weight`.
    pub fn gguf_name(self) -> String {
        match self {
            Norm::Attention(layer) => format!("blk.{layer}.attn_norm.weight"),
            Norm::Query(layer) => format!("blk.{layer}.attn_q_norm.weight"),
            Norm::Key(layer) => format!("blk.{layer}.attn_k_norm.weight"),
            Norm::AttentionSub(layer) => format!("blk.{layer}.attn_sub_norm.weight"),
            Norm::FeedForward(layer) => format!("blk.{layer}.ffn_norm.weight"),
            Norm::FeedForwardSub(layer) => format!("blk.{layer}.ffn_sub_norm.weight"),
            Norm::Last => "output_norm.weight".into(),
        }
    }
}

impl Slot {
    /// What a file calls it.
    pub fn gguf_name(self) -> String {
        match self {
            Slot::Embedding => "token_embd.weight".into(),
            Slot::RopeFactors => "rope_freqs.weight".into(),
            Slot::Norm(norm) => norm.gguf_name(),
            Slot::Linear(linear) => format!("{}.weight", linear.gguf_name()),
            Slot::Head => "output.weight".into(),
        }
    }

    /// (rows, columns), or the length of a vector.
    pub fn shape(self, dims: &Dims) -> Vec<usize> {
        match self {
            Slot::Embedding | Slot::Head => vec![dims.vocab, dims.hidden],
            Slot::RopeFactors => vec![dims.head_dim / 2],
            Slot::Norm(Norm::Query(_) | Norm::Key(_)) => vec![dims.head_dim],
            Slot::Norm(Norm::AttentionSub(_)) => vec![dims.q_width()],
            Slot::Norm(Norm::FeedForwardSub(_)) => vec![dims.intermediate],
            Slot::Norm(_) => vec![dims.hidden],
            Slot::Linear(linear) => {
                let (rows, columns) = linear.shape(dims);
                vec![rows, columns]
            }
        }
    }

    /// The same as GGUF has it: fastest dimension first.
    pub fn gguf_shape(self, dims: &Dims) -> Vec<u64> {
        self.shape(dims).into_iter().rev().map(|n| n as u64).collect()
    }
}
