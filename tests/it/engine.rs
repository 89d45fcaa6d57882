//! The engines against golden logits from PyTorch, and against each other.

use std::borrow::Cow;
use std::convert::Infallible;
use std::path::Path;

use serde_json::Value;
use tqconv::engine::Engine;
use tqconv::engine::oracle::{Config, Layer, Linear, Oracle, Rope, RopeScaling, Weights};
use tqconv::metrics;

use crate::data::{self, Tensors};

/// A model as `golden.safetensors` has it: codes, scales and biases from PyTorch, the rest from the checkpoint.
struct Golden {
    config: Config,
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Option<Vec<f32>>,
    tokens: Vec<u32>,
    /// (tokens, vocab)
    logits: Vec<f32>,
}

impl Golden {
    fn read(folder: &Path) -> Self {
        let config = config(&std::fs::read_to_string(folder.join("config.json")).unwrap());
        let (golden, checkpoint) = (
            Tensors::read(folder, "golden"),
            Tensors::read(folder, "model"),
        );
        let (golden, checkpoint) = (golden.by_name(), checkpoint.by_name());
        let weight = |name: &str| data::floats(&checkpoint[&format!("model.{name}.weight")]);
        let linear = |name: String| {
            let codes = &golden[&format!("{name}.codes")];
            let scales = data::floats(&golden[&format!("{name}.scale")]);
            let group_size = codes.len() / scales.len();
            let weight = |(i, &code): (usize, &u8)| scales[i / group_size] * f32::from(code as i8);
            Linear {
                weight: codes.bytes.iter().enumerate().map(weight).collect(),
                columns: codes.shape()[1],
                bias: Some(data::doubles(&golden[&format!("{name}.bias")])),
            }
        };
        let layer = |index: usize| {
            let attention =
                |part: &str| linear(format!("model.layers.{index}.self_attn.{part}_proj"));
            let mlp = |part: &str| linear(format!("model.layers.{index}.mlp.{part}_proj"));
            Layer {
                attention_norm: weight(&format!("layers.{index}.input_layernorm")),
                q: attention("q"),
                k: attention("k"),
                v: attention("v"),
                o: attention("o"),
                ffn_norm: weight(&format!("layers.{index}.post_attention_layernorm")),
                gate: mlp("gate"),
                up: mlp("up"),
                down: mlp("down"),
            }
        };
        Golden {
            layers: (0..config.layers).map(layer).collect(),
            config,
            embedding: weight("embed_tokens"),
            norm: weight("norm"),
            head: checkpoint.get("lm_head.weight").map(data::floats),
            tokens: data::tokens(&golden["tokens"]),
            logits: data::floats(&golden["logits"]),
        }
    }
}

fn config(json: &str) -> Config {
    let json: Value = serde_json::from_str(json).unwrap();
    let whole = |key: &str| json[key].as_u64().unwrap() as usize;
    let theta = json["rope_theta"]
        .as_f64()
        .or(json["rope_parameters"]["rope_theta"].as_f64());
    let scaling = &json["rope_scaling"];
    let number = |key: &str| scaling[key].as_f64().unwrap();
    Config {
        vocab: whole("vocab_size"),
        hidden: whole("hidden_size"),
        layers: whole("num_hidden_layers"),
        heads: whole("num_attention_heads"),
        kv_heads: whole("num_key_value_heads"),
        head_dim: whole("head_dim"),
        norm_epsilon: json["rms_norm_eps"].as_f64().unwrap(),
        rope: Rope {
            theta: theta.unwrap(),
            scaling: match scaling["rope_type"].as_str() {
                None => RopeScaling::None,
                Some("llama3") => RopeScaling::Llama3 {
                    factor: number("factor"),
                    low_frequency_factor: number("low_freq_factor"),
                    high_frequency_factor: number("high_freq_factor"),
                    original_context: number("original_max_position_embeddings"),
                },
                Some(other) => panic!("rope_type {other}"),
            },
        },
    }
}

impl Weights for Golden {
    type Error = Infallible;

    fn config(&self) -> &Config {
        &self.config
    }

    fn embedding(&self) -> Result<Cow<'_, [f32]>, Infallible> {
        Ok(Cow::from(&self.embedding))
    }

    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>, Infallible> {
        Ok(Cow::Borrowed(&self.layers[index]))
    }

    fn norm(&self) -> Result<Cow<'_, [f32]>, Infallible> {
        Ok(Cow::from(&self.norm))
    }

    fn head(&self) -> Result<Option<Cow<'_, [f32]>>, Infallible> {
        Ok(self.head.as_ref().map(Cow::from))
    }
}

/// Every folder with golden logits.
const GOLDEN: [&str; 6] = [
    "kjv-tequila",
    "golden/group128",
    "golden/group128-across-rows",
    "golden/channel-rope-untied",
    "golden/tensor-f16",
    "golden/lambada-biases-shards",
];

#[test]
fn oracle_equals_pytorch() {
    // PyTorch computes in f32: relative errors of about 1e-6, so NMSE of about 1e-12; 1e-8 would already be a mistake.
    const LIMIT: f64 = 1e-9;
    for name in GOLDEN {
        let Some(folder) = data::find(name) else {
            continue;
        };
        let golden = Golden::read(&folder);
        let (tokens, logits, vocab) = (
            golden.tokens.clone(),
            golden.logits.clone(),
            golden.config.vocab,
        );
        let found = Oracle(golden).logits(&tokens).unwrap();
        let nmse = metrics::nmse(&logits, &found);
        println!("{name}: NMSE {nmse:.2e}");
        assert!(nmse < LIMIT, "{name}: NMSE {nmse:.2e}");
        assert!(
            metrics::top1_agreement(&logits, &found, vocab) > 0.999,
            "{name}"
        );
    }
}
