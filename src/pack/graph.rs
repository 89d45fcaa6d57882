//! What a graph of llama.cpp wants otherwise than the checkpoint has it: keys, rotary factors, the order of rows. The
//! verifier says the same in its own words (`verify::keys`, `verify::latent`).

use formats::gguf::Value;

use crate::model::{Config, Rope, RopeScaling};

/// The keys that tell llama.cpp the shape of the model (llama-model.cpp, `load_hparams`; models/llama.cpp), with the
/// exact types that it asks for.
pub fn model_metadata(config: &Config) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(n as u32); // ConfigFile lets nothing beyond 31 bits through
    let dims = &config.dims;
    let mut keys = vec![
        ("vocab_size", count(dims.vocab)),
        ("context_length", count(usable_context(config))),
        ("embedding_length", count(dims.hidden)),
        ("block_count", count(dims.layers)),
        ("feed_forward_length", count(dims.intermediate)),
        ("attention.head_count", count(dims.heads)),
        ("attention.head_count_kv", count(dims.kv_heads)),
        ("attention.key_length", count(dims.head_dim)),
        ("attention.value_length", count(dims.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
        ("rope.dimension_count", count(dims.head_dim)),
        ("rope.freq_base", Value::F32(config.rope.base(dims.head_dim) as f32)),
    ];
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push(("rope.scaling.type", Value::String("linear".into())));
        keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
    }
    let graph = config.architecture.graph;
    if graph.scales {
        // It divides the logits by what this key has (models/granite.cpp).
        let logit_divisor = 1.0 / config.variant.logit_scale;
        keys.push(("embedding_scale", Value::F32(config.variant.embedding_scale as f32)));
        keys.push(("residual_scale", Value::F32(config.variant.residual_scale as f32)));
        keys.push(("logit_scale", Value::F32(logit_divisor as f32)));
    }
    let prefix = graph.name;
    keys.into_iter()
        .map(|(key, value)| (format!("{prefix}.{key}"), value))
        .collect()
}

/// llama.cpp's `llama` attends to the whole context: within a sliding window that is the same, beyond it is not.
fn usable_context(config: &Config) -> usize {
    config.sliding_window.unwrap_or(usize::MAX).min(config.context_length)
}

/// The factor by which each pair of dimensions turns slower, for Llama 3's scaling: (head_dim / 2,).
/// Written to GGUF as `rope_freqs.weight`; formula of transformers' `_compute_llama3_parameters`.
pub fn rope_factors(rope: &Rope, head_dim: usize) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 {
        factor,
        low_freq_factor,
        high_freq_factor,
        original_context,
    } = rope.scaling
    else {
        return None;
    };
    let factor_of = |i: usize| {
        let wavelength = 2.0 * std::f64::consts::PI * rope.theta.powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < original_context / high_freq_factor {
            1.0
        } else if wavelength > original_context / low_freq_factor {
            factor
        } else {
            let smooth = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    Some((0..head_dim / 2).map(|i| factor_of(i) as f32).collect())
}

/// The checkpoint's row that stands at `row` of the file, where heads are interleaved: one map for codes, scales and
/// biases.
///
/// transformers turns dimension i of a head together with i + head_dim / 2, llama.cpp's `llama` turns 2i with
/// 2i + 1 (llama-model.cpp, LLAMA_ROPE_TYPE_NORM); so the rows of q and k are interleaved head by head.
pub(super) fn interleaved_row(row: usize, head_dim: usize) -> usize {
    let (head, within) = (row / head_dim, row % head_dim);
    head * head_dim + (within % 2) * (head_dim / 2) + within / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_interleaved_within_each_head() {
        let rows: Vec<_> = (0..12).map(|row| interleaved_row(row, 6)).collect();
        assert_eq!(rows, [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
    }

    /// The values that transformers' `_compute_llama3_parameters` gives for Llama-3.2-1B (head_dim 64): the first pairs
    /// turn as before, the last 32 times slower.
    #[test]
    fn long_waves_turn_slower() {
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let rope = Rope {
            theta: 500000.0,
            scaling,
        };
        let factors = rope_factors(&rope, 64).unwrap();
        assert_eq!((factors[0], factors[31]), (1.0, 32.0));
        assert!(factors.is_sorted());
    }
}
