//! What config.json and the tables say of the rotation, the context and the head: read a second time, in other words
//! than those of `model`, so that a rule which is misread there does not pass here.

use formats::safetensors::Tensor;
use serde_json::{Map, Value};

use crate::blueprint::{Dims, EMBEDDING, HEAD, SlidingWindow, Variant};
use crate::model::{Checkpoint, Config, Rope, RopeScaling};

/// The shape of the model with the parts that are stated here.
pub(super) fn config(checkpoint: &Checkpoint) -> Config {
    let json = &checkpoint.config_json;
    let dims = &checkpoint.config.dims;
    Config {
        rope: rope(json, dims),
        variant: variant(json, &checkpoint.config),
        sliding_window: window(json, &checkpoint.config),
        tied_head: !has_own_head(checkpoint),
        ..checkpoint.config.clone()
    }
}

/// transformers 5, `convert_rope_params_to_dict`: `rope_scaling or rope_parameters`, filled up with the rope_theta
/// beside them, which is 10000 where there is none.
fn rope(json: &Value, dims: &Dims) -> Rope {
    let objects = ["rope_scaling", "rope_parameters"].map(|key| json[key].as_object());
    let section = objects.into_iter().flatten().find(|section| !section.is_empty());
    let empty = Map::new();
    let section = section.unwrap_or(&empty);
    let number = |key: &str| section.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
    let kind = ["rope_type", "type"].map(|key| section.get(key).and_then(Value::as_str));
    let theta = [section.get("rope_theta"), json.get("rope_theta")];
    let scaling = match kind.into_iter().flatten().next() {
        Some("linear") => RopeScaling::Linear {
            factor: number("factor"),
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: number("factor"),
            low_freq_factor: number("low_freq_factor"),
            high_freq_factor: number("high_freq_factor"),
            original_context: number("original_max_position_embeddings"),
        },
        _ => RopeScaling::None,
    };
    let theta = theta.into_iter().flatten().find_map(Value::as_f64);
    let mut theta = theta.unwrap_or(1e4);
    if let (Some("dynamic"), Some(alpha)) = (kind.into_iter().flatten().next(), section.get("alpha")) {
        // modeling_hunyuan_v1_dense.py: base = rope_theta * alpha ** (head_dim / (head_dim - 2))
        let slowest = (dims.head_dim - 2) as f64;
        theta *= alpha.as_f64().unwrap_or(f64::NAN).powf(dims.head_dim as f64 / slowest);
    }
    Rope { theta, scaling }
}

/// modeling_minicpm.py: the embedding times scale_emb, what is added to the residual stream times
/// scale_depth / sqrt(layers), the logits divided by hidden_size / dim_model_base.
fn variant(json: &Value, config: &Config) -> Variant {
    let Some(embedding_scale) = json["scale_emb"].as_f64().filter(|_| config.architecture.graph.scales) else {
        return config.architecture.graph.variant;
    };
    let number = |key: &str| json[key].as_f64().unwrap_or(f64::NAN);
    Variant {
        embedding_scale,
        residual_scale: number("scale_depth") / number("num_hidden_layers").sqrt(),
        logit_scale: (number("hidden_size") / number("dim_model_base")).recip(),
        ..config.architecture.graph.variant
    }
}

/// The fewest tokens that a layer sees (transformers, Qwen2Config: the layers from max_window_layers on, where
/// use_sliding_window is set; MistralConfig: all).
fn window(json: &Value, config: &Config) -> Option<usize> {
    let default = |key: &str, value: u64| match json.get(key) {
        None => Some(value),
        Some(found) => found.as_u64(),
    };
    let first = match config.architecture.sliding_window {
        SlidingWindow::Never => return None,
        SlidingWindow::EveryLayer => 0,
        SlidingWindow::SomeLayers if json["use_sliding_window"] != true => return None,
        SlidingWindow::SomeLayers => match json["layer_types"].as_array() {
            Some(kinds) => kinds.iter().position(|kind| kind == "sliding_attention")? as u64,
            None => default("max_window_layers", 28).unwrap_or(28),
        },
    };
    let slides = first < config.dims.layers as u64;
    default("sliding_window", 4096)
        .filter(|_| slides)
        .map(|window| window as usize)
}

/// Whether the file needs a head: config.json does not tie it, or there are two tables, and they differ.
fn has_own_head(checkpoint: &Checkpoint) -> bool {
    let tied = checkpoint.config_json["tie_word_embeddings"] == true;
    let tables = [HEAD, EMBEDDING].map(|name| checkpoint.tensors.get(name));
    match tables {
        [Some(head), Some(embedding)] => !tied || differ(head, embedding),
        _ => !tied,
    }
}

fn differ(head: Tensor, embedding: Tensor) -> bool {
    let columns = *head.shape.last().unwrap_or(&1);
    let (mut left, mut right) = (vec![0.0; columns], vec![0.0; columns]);
    head.shape != embedding.shape
        || (0..head.len()).step_by(columns).any(|start| {
            head.read_f32(start, &mut left);
            embedding.read_f32(start, &mut right);
            left != right
        })
}
