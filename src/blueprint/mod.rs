//! The model as a table: which tensors it has, in the order in which a file has them, what a checkpoint and a GGUF file
//! call them, and their shapes. Whoever names a tensor of a model asks here. An architecture is an entry of the tables in `table`.

mod table;

pub use table::{Architecture, Graph, NormNames, OwnBias, Pairing, QkNorm, Refused, SlidingWindow};

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
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
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
    /// Before the feed-forward part.
    FeedForward(usize),
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
        let (query, kv) = (dims.heads * dims.head_dim, dims.kv_heads * dims.head_dim);
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

    /// The norm whose output is the activation of this linear, where it is one.
    pub fn preceding_norm(self) -> Option<Norm> {
        match self.part {
            Part::Q | Part::K | Part::V => Some(Norm::Attention(self.layer)),
            Part::Gate | Part::Up => Some(Norm::FeedForward(self.layer)),
            Part::O | Part::Down => None,
        }
    }
}

impl Norm {
    /// For example `blk.0.attn_norm.weight`.
    pub fn gguf_name(self) -> String {
        match self {
            Norm::Attention(layer) => format!("blk.{layer}.attn_norm.weight"),
            Norm::Query(layer) => format!("blk.{layer}.attn_q_norm.weight"),
            Norm::Key(layer) => format!("blk.{layer}.attn_k_norm.weight"),
            Norm::FeedForward(layer) => format!("blk.{layer}.ffn_norm.weight"),
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

impl Graph {
    /// Every tensor that a file can have, in its order.
    pub fn slots(&self, dims: &Dims) -> Vec<Slot> {
        let layers = (0..dims.layers).flat_map(|layer| self.layer(layer));
        let (first, last) = (
            [Slot::Embedding, Slot::RopeFactors],
            [Slot::Norm(Norm::Last), Slot::Head],
        );
        first.into_iter().chain(layers).chain(last).collect()
    }

    fn layer(&self, layer: usize) -> Vec<Slot> {
        let linear = |part| Slot::Linear(Linear { layer, part });
        let mut slots = vec![Slot::Norm(Norm::Attention(layer))];
        slots.extend([Part::Q, Part::K, Part::V].map(linear));
        if self.qk_norm != QkNorm::None {
            slots.extend([Norm::Query(layer), Norm::Key(layer)].map(Slot::Norm));
        }
        slots.extend([linear(Part::O), Slot::Norm(Norm::FeedForward(layer))]);
        slots.extend([Part::Gate, Part::Up, Part::Down].map(linear));
        slots
    }

    /// The linears whose biases would be lost.
    pub fn without_bias(&self) -> Vec<Part> {
        table::without(self.bias_slots)
    }

    /// Whether the rows of a linear stand in another order in a file than in a checkpoint, where the halves of a head turn
    /// together: those of q and k, where the graph turns neighbours.
    pub fn interleaves(&self, part: Part) -> bool {
        self.pairing == Pairing::Interleaved && matches!(part, Part::Q | Part::K)
    }
}

impl Architecture {
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
            Norm::FeedForward(layer) => (layer, names.feed_forward),
            Norm::Last => return "model.norm.weight".into(),
        };
        format!("model.layers.{layer}.{name}.weight")
    }
}
