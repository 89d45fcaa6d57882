//! What a checkpoint and a GGUF file call the same tensor, and in which order they keep its rows.

use super::{Architecture, Config};

/// The embedding.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The head, where it is not the embedding.
pub const HEAD: &str = "lm_head.weight";
/// The last norm.
pub const FINAL_NORM: &str = "model.norm.weight";

/// Which of the seven linears of a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Query
    Q,
    /// Key
    K,
    /// Value
    V,
    /// Attention output
    O,
    /// Feed-forward gate
    Gate,
    /// Feed-forward up
    Up,
    /// Feed-forward down
    Down,
}

impl Part {
    /// In the order in which a layer applies them.
    pub const ALL: [Part; 7] = [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down];
}

/// One ternary linear: y = A x + bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// Which one of the layer.
    pub part: Part,
}

impl Linear {
    /// All linears of a model, layer by layer.
    pub fn all(config: &Config) -> impl Iterator<Item = Linear> + use<> {
        (0..config.layers).flat_map(|layer| Part::ALL.map(|part| Linear { layer, part }))
    }

    /// For example `model.layers.0.self_attn.q_proj`; `.weight`, `.bias` and `.Lambada` follow.
    pub fn checkpoint_name(self) -> String {
        let name = match self.part {
            Part::Q => "self_attn.q_proj",
            Part::K => "self_attn.k_proj",
            Part::V => "self_attn.v_proj",
            Part::O => "self_attn.o_proj",
            Part::Gate => "mlp.gate_proj",
            Part::Up => "mlp.up_proj",
            Part::Down => "mlp.down_proj",
        };
        format!("model.layers.{}.{name}", self.layer)
    }

    /// For example `blk.0.attn_q`; `.weight` and `.bias` follow.
    pub fn gguf_name(self) -> String {
        let name = match self.part {
            Part::Q => "attn_q",
            Part::K => "attn_k",
            Part::V => "attn_v",
            Part::O => "attn_output",
            Part::Gate => "ffn_gate",
            Part::Up => "ffn_up",
            Part::Down => "ffn_down",
        };
        format!("blk.{}.{name}", self.layer)
    }

    /// (rows, columns) of the weight.
    pub fn shape(self, config: &Config) -> (usize, usize) {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        match self.part {
            Part::Q => (query, hidden),
            Part::K | Part::V => (kv, hidden),
            Part::O => (hidden, query),
            Part::Gate | Part::Up => (intermediate, hidden),
            Part::Down => (hidden, intermediate),
        }
    }

    /// Whether the layer has a bias of its own, beside the offline one.
    pub fn has_bias(self, config: &Config) -> bool {
        match self.part {
            Part::Q | Part::K | Part::V => config.attention_bias,
            Part::O => config.attention_bias && config.architecture != Architecture::Qwen2,
            Part::Gate | Part::Up | Part::Down => config.mlp_bias,
        }
    }

    /// The norm whose output is the activation of this linear, where it is one.
    pub fn preceding_norm(self) -> Option<String> {
        match self.part {
            Part::Q | Part::K | Part::V => Some(attention_norm(self.layer)),
            Part::Gate | Part::Up => Some(feed_forward_norm(self.layer)),
            Part::O | Part::Down => None,
        }
    }

    /// The checkpoint's row that stands at `row` of the GGUF file: one map for codes, scales and biases.
    ///
    /// transformers turns dimension i of a head together with i + head_dim / 2, llama.cpp's `llama` turns 2i with
    /// 2i + 1 (llama-model.cpp, LLAMA_ROPE_TYPE_NORM); so the rows of q and k are interleaved head by head.
    pub fn checkpoint_row(self, row: usize, config: &Config) -> usize {
        if !matches!(self.part, Part::Q | Part::K) {
            return row;
        }
        let half = config.head_dim / 2;
        let (head, within) = (row / config.head_dim, row % config.head_dim);
        head * config.head_dim + (within % 2) * half + within / 2
    }
}

/// The norm before attention.
pub fn attention_norm(layer: usize) -> String {
    format!("model.layers.{layer}.input_layernorm.weight")
}

/// The norm before the feed-forward part.
pub fn feed_forward_norm(layer: usize) -> String {
    format!("model.layers.{layer}.post_attention_layernorm.weight")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::tests::small_config;

    #[test]
    fn rows_of_q_and_k_are_interleaved_within_each_head() {
        let config = Config {
            head_dim: 6,
            ..small_config()
        };
        let rows = |part| {
            (0..12)
                .map(|row| Linear { layer: 0, part }.checkpoint_row(row, &config))
                .collect::<Vec<_>>()
        };
        assert_eq!(rows(Part::Q), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(rows(Part::K), rows(Part::Q));
        assert_eq!(rows(Part::V), (0..12).collect::<Vec<_>>());
    }
}
