//! The keys that tell llama.cpp the shape of the model (llama-model.cpp, `load_hparams`; models/llama.cpp).

use formats::gguf::Value;

use super::config::{Config, RopeScaling};

/// All keys of the architecture `llama`, with the exact types that llama.cpp asks for.
pub fn model_metadata(config: &Config) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(n as u32); // ConfigFile lets nothing beyond 31 bits through
    let mut keys = vec![
        ("vocab_size", count(config.vocab_size)),
        ("context_length", count(usable_context(config))),
        ("embedding_length", count(config.hidden_size)),
        ("block_count", count(config.layers)),
        ("feed_forward_length", count(config.intermediate_size)),
        ("attention.head_count", count(config.heads)),
        ("attention.head_count_kv", count(config.kv_heads)),
        ("attention.key_length", count(config.head_dim)),
        ("attention.value_length", count(config.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
        ("rope.dimension_count", count(config.head_dim)),
        ("rope.freq_base", Value::F32(config.rope.theta as f32)),
    ];
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push(("rope.scaling.type", Value::String("linear".into())));
        keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
    }
    keys.into_iter()
        .map(|(key, value)| (format!("llama.{key}"), value))
        .collect()
}

/// llama.cpp's `llama` attends to the whole context: within a sliding window that is the same, beyond it is not.
fn usable_context(config: &Config) -> usize {
    config.sliding_window.unwrap_or(usize::MAX).min(config.context_length)
}
