//! The architectures beside Llama, on tiny random models: the oracle, the native engine and llama.cpp against what
//! transformers computes (scripts/make_decoders.py).

use formats::block::BlockType;
use formats::gguf::{Array, File, TensorInfo, Value};
use serde_json::Value as Json;
use tqconv::engine::hyper::{Dims, Hyper, Pairing, QkNorm, Rope, Variant};
use tqconv::engine::native::{Native, Settings};
use tqconv::engine::oracle::{Norm, Oracle, Part, Precision, Rows, Weights};
use tqconv::engine::{Engine, EngineError};
use tqconv::metrics;

use crate::data::{self, Tensors};
use crate::engine::{Answers, Held};
use crate::hostile::input::Gguf;

/// Each with a value of `general.architecture` for its name.
const DECODERS: [&str; 5] = ["qwen2", "qwen3", "hunyuan-dense", "bitnet", "minicpm"];

/// Both compute in f32 where it counts: relative errors of about 1e-6, so NMSE of about 1e-12.
const LIMIT: f64 = 1e-11;

/// Names of transformers, of which a model has those of its architecture, and of GGUF.
const NAMES: [(&str, &str); 15] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.query_layernorm", "attn_q_norm"),
    ("self_attn.key_layernorm", "attn_k_norm"),
    ("self_attn.attn_sub_norm", "attn_sub_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.ffn_sub_norm", "ffn_sub_norm"),
];

/// A model as transformers has it.
struct Decoder {
    architecture: &'static str,
    hyper: Hyper,
    tensors: Tensors,
    answers: Answers,
}

impl Decoder {
    fn read(architecture: &'static str) -> Self {
        let folder = data::fixture("decoders").join(architecture);
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        Self {
            architecture,
            hyper: hyper(architecture, &serde_json::from_str(&config).unwrap()),
            tensors: Tensors::read(&folder, "model"),
            answers: Answers::read(&folder),
        }
    }

    fn floats(&self, name: &str) -> Option<Vec<f32>> {
        self.tensors.by_name().get(name).map(data::floats)
    }

    /// A tensor of a layer by GGUF's name of it.
    fn of_layer(&self, layer: usize, name: &str, kind: &str) -> Option<Vec<f32>> {
        let names = NAMES.iter().filter(|(_, gguf)| *gguf == name);
        names
            .filter_map(|(name, _)| self.floats(&format!("model.layers.{layer}.{name}.{kind}")))
            .next()
    }

    fn oracle(&self) -> Vec<f32> {
        let precision = Precision::Double;
        let weights = self;
        let mut oracle = Oracle { weights, precision };
        oracle.logits(&self.answers.tokens).unwrap()
    }

    fn nmse(&self, found: &[f32]) -> f64 {
        metrics::nmse(&self.answers.logits, found)
    }

    /// As llama.cpp's converter writes it, all in F32.
    fn gguf(&self) -> Vec<u8> {
        let hyper = &self.hyper;
        let mut file = Gguf {
            keys: self.keys(),
            tensors: vec![],
        };
        let mut add = |name: String, columns: usize, numbers: Option<Vec<f32>>| {
            let Some(numbers) = numbers else { return };
            let rows = numbers.len() / columns;
            let shape = [columns as u64, rows as u64][..if rows == 1 { 1 } else { 2 }].to_vec();
            let ty = BlockType::F32;
            let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            file.tensors.push((TensorInfo { name, ty, shape }, bytes));
        };
        let embedding = self.floats("model.embed_tokens.weight");
        add("token_embd.weight".into(), hyper.dims.hidden, embedding);
        add(
            "output_norm.weight".into(),
            hyper.dims.hidden,
            self.floats("model.norm.weight"),
        );
        add("output.weight".into(), hyper.dims.hidden, self.floats("lm_head.weight"));
        for layer in 0..hyper.dims.layers {
            for name in [
                "attn_q",
                "attn_k",
                "attn_v",
                "attn_output",
                "ffn_gate",
                "ffn_up",
                "ffn_down",
            ] {
                let columns = match name {
                    "attn_output" => hyper.dims.heads * hyper.dims.head_dim,
                    "ffn_down" => hyper.dims.intermediate,
                    _ => hyper.dims.hidden,
                };
                let turned = self.architecture == "minicpm" && ["attn_q", "attn_k"].contains(&name);
                for (kind, columns) in [("weight", columns), ("bias", 1)] {
                    let numbers = self.of_layer(layer, name, kind).map(|numbers| match turned {
                        true => interleaved(&numbers, hyper.dims.head_dim, columns),
                        false => numbers,
                    });
                    let columns = if kind == "bias" {
                        numbers.as_ref().map_or(1, Vec::len)
                    } else {
                        columns
                    };
                    add(format!("blk.{layer}.{name}.{kind}"), columns, numbers);
                }
            }
            for (_, name) in NAMES.iter().filter(|(name, _)| name.contains("norm")) {
                let Some(numbers) = self.of_layer(layer, name, "weight") else {
                    continue;
                };
                add(format!("blk.{layer}.{name}.weight"), numbers.len(), Some(numbers));
            }
        }
        let mut names = std::collections::HashSet::new();
        file.tensors.retain(|(info, _)| names.insert(info.name.clone())); // two of NAMES may mean the same
        file.bytes()
    }

    fn keys(&self) -> Vec<(String, Value)> {
        let hyper = &self.hyper;
        let key = |key: &str, value: Value| (format!("{}.{key}", self.architecture), value);
        let whole = |name: &str, value: usize| key(name, Value::U32(value as u32));
        let number = |name: &str, value: f64| key(name, Value::F32(value as f32));
        let mut keys = vec![
            ("general.architecture".into(), Value::String(self.architecture.into())),
            whole("context_length", hyper.context),
            whole("embedding_length", hyper.dims.hidden),
            whole("block_count", hyper.dims.layers),
            whole("feed_forward_length", hyper.dims.intermediate),
            whole("attention.head_count", hyper.dims.heads),
            whole("attention.head_count_kv", hyper.dims.kv_heads),
            whole("attention.key_length", hyper.dims.head_dim),
            whole("attention.value_length", hyper.dims.head_dim),
            number("attention.layer_norm_rms_epsilon", hyper.norm_epsilon),
            number("rope.freq_base", hyper.rope.base),
        ];
        if self.architecture == "hunyuan-dense" {
            keys.retain(|(name, _)| !name.ends_with("freq_base"));
            keys.extend([number("rope.freq_base", THETA), number("rope.scaling.alpha", ALPHA)]);
        }
        if self.architecture == "minicpm" {
            let variant = hyper.variant;
            keys.push(number("embedding_scale", variant.embedding_scale));
            keys.push(number("residual_scale", variant.residual_scale));
            keys.push(number("logit_scale", 1.0 / variant.logit_scale));
        }
        keys.extend(tokenizer(hyper.dims.vocab));
        keys
    }
}

/// The tokenizer of `fixtures/tiny`, with unused tokens behind its own so that there are `vocab`.
fn tokenizer(vocab: usize) -> impl Iterator<Item = (String, Value)> {
    const UNUSED: i32 = 5;
    let keys = Gguf::sound().keys.into_iter();
    keys.filter(|(key, _)| key.starts_with("tokenizer."))
        .map(move |(key, mut value)| {
            match (key.as_str(), &mut value) {
                ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => {
                    let unused = (tokens.len()..vocab).map(|token| format!("<unused{token}>"));
                    tokens.extend(unused.collect::<Vec<_>>());
                }
                ("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds))) => kinds.resize(vocab, UNUSED),
                _ => {}
            }
            (key, value)
        })
}

/// Rows of q or k, each head from transformers' order (halves) to ggml's normal one (pairs beside each other).
fn interleaved(numbers: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let rows: Vec<_> = numbers.chunks(columns).collect();
    let of_head = |head: &[&[f32]]| {
        let (first, second) = head.split_at(head_dim / 2);
        first
            .iter()
            .zip(second)
            .flat_map(|(a, b)| [*a, *b])
            .flatten()
            .copied()
            .collect::<Vec<_>>()
    };
    rows.chunks(head_dim).flat_map(of_head).collect()
}

/// The rotation of HunYuan's config.json.
const THETA: f64 = 100.0;
const ALPHA: f64 = 50.0;

fn hyper(architecture: &str, config: &Json) -> Hyper {
    let whole = |key: &str| config[key].as_u64().unwrap() as usize;
    let number = |key: &str| config[key].as_f64().unwrap();
    let (hidden, heads, layers) = (
        whole("hidden_size"),
        whole("num_attention_heads"),
        whole("num_hidden_layers"),
    );
    let head_dim = config["head_dim"].as_u64().map_or(hidden / heads, |n| n as usize);
    let rope = &config["rope_parameters"];
    let theta = rope["rope_theta"].as_f64().unwrap();
    let alpha = rope["alpha"].as_f64().unwrap_or(1.0);
    let variant = match architecture {
        "qwen3" => Variant {
            qk_norm: QkNorm::BeforeRope,
            ..Variant::LLAMA
        },
        "hunyuan-dense" => Variant {
            qk_norm: QkNorm::AfterRope,
            ..Variant::LLAMA
        },
        "bitnet" => Variant {
            sub_norms: true,
            ..Variant::LLAMA
        },
        "minicpm" => Variant {
            embedding_scale: number("scale_emb"),
            residual_scale: number("scale_depth") / (layers as f64).sqrt(),
            logit_scale: number("dim_model_base") / hidden as f64,
            ..Variant::LLAMA
        },
        _ => Variant::LLAMA,
    };
    Hyper {
        dims: Dims {
            vocab: whole("vocab_size"),
            hidden,
            intermediate: whole("intermediate_size"),
            layers,
            heads,
            kv_heads: whole("num_key_value_heads"),
            head_dim,
        },
        context: whole("max_position_embeddings"),
        norm_epsilon: number("rms_norm_eps"),
        rope: Rope {
            base: theta * alpha.powf(head_dim as f64 / (head_dim as f64 - 2.0)),
            divisor: 1.0,
            factors: None,
            pairing: Pairing::Halves,
        },
        variant,
    }
}

impl Weights for Decoder {
    fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        let weights = self.floats("model.embed_tokens.weight").unwrap();
        let bias = vec![0.0; self.hyper.dims.vocab];
        Ok(Box::new(Held { weights, bias }))
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        let Some(weights) = self.floats("lm_head.weight") else {
            return self.embedding();
        };
        let bias = vec![0.0; self.hyper.dims.vocab];
        Ok(Box::new(Held { weights, bias }))
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        let hyper = &self.hyper;
        let (name, rows) = match part {
            Part::Q => ("attn_q", hyper.dims.heads * hyper.dims.head_dim),
            Part::K => ("attn_k", hyper.dims.kv_heads * hyper.dims.head_dim),
            Part::V => ("attn_v", hyper.dims.kv_heads * hyper.dims.head_dim),
            Part::O => ("attn_output", hyper.dims.hidden),
            Part::Gate => ("ffn_gate", hyper.dims.intermediate),
            Part::Up => ("ffn_up", hyper.dims.intermediate),
            Part::Down => ("ffn_down", hyper.dims.hidden),
        };
        let weights = self.of_layer(layer, name, "weight").unwrap();
        let bias = self.of_layer(layer, name, "bias").unwrap_or(vec![0.0; rows]);
        Ok(Box::new(Held { weights, bias }))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        let (layer, name) = match norm {
            Norm::Attention(layer) => (layer, "attn_norm"),
            Norm::Query(layer) => (layer, "attn_q_norm"),
            Norm::Key(layer) => (layer, "attn_k_norm"),
            Norm::AttentionSub(layer) => (layer, "attn_sub_norm"),
            Norm::FeedForward(layer) => (layer, "ffn_norm"),
            Norm::FeedForwardSub(layer) => (layer, "ffn_sub_norm"),
            Norm::Last => return Ok(self.floats("model.norm.weight").unwrap()),
        };
        Ok(self.of_layer(layer, name, "weight").unwrap())
    }
}

#[test]
fn oracle_equals_transformers() {
    for name in DECODERS {
        let mut decoder = Decoder::read(name);
        let nmse = decoder.nmse(&decoder.oracle());
        println!("{name}: NMSE {nmse:.2e}");
        assert!(nmse < LIMIT, "{name}: NMSE {nmse:.2e}");
        // What makes the architecture another one than Llama counts.
        if decoder.hyper.variant != Variant::LLAMA {
            decoder.hyper.variant = Variant::LLAMA;
            let nmse = decoder.nmse(&decoder.oracle());
            assert!(nmse > 1e-3, "{name} as a Llama: NMSE {nmse:.2e}");
        }
    }
}

#[test]
fn native_equals_transformers_and_the_oracle() {
    for name in DECODERS {
        let decoder = Decoder::read(name);
        let bytes = decoder.gguf();
        let file = File::parse(&bytes).unwrap();
        let read = Hyper::read(&file).unwrap();
        let mut native = Native::load(&file, Settings::new(64, 2)).unwrap();
        let found = native.logits(&decoder.answers.tokens).unwrap();
        let nmse = [decoder.nmse(&found), metrics::nmse(&decoder.oracle(), &found)];
        println!("{name}: NMSE {nmse:?}");
        assert!(nmse.iter().all(|nmse| *nmse < LIMIT), "{name}: NMSE {nmse:?}");
        assert_eq!(read.variant.qk_norm, decoder.hyper.variant.qk_norm);
        // Token by token, each from where the last one ended.
        let mut last = vec![];
        for token in &decoder.answers.tokens {
            last = tqconv::engine::Generate::feed(&mut native, &[*token]).unwrap();
        }
        let nmse = metrics::nmse(&found[found.len() - last.len()..], &last);
        assert!(nmse < LIMIT, "{name}: NMSE {nmse:.2e} token by token");
    }
}

#[cfg(feature = "llama")]
#[test]
fn native_equals_llama_cpp() {
    use tqconv::engine::llamacpp::Settings as LlamaSettings;
    let exact = LlamaSettings {
        context: 256,
        threads: 1,
        exact_cache: true,
    };
    for name in DECODERS {
        let decoder = Decoder::read(name);
        let bytes = decoder.gguf();
        let file = File::parse(&bytes).unwrap();
        let model = crate::tokenizer::load(&bytes, &file);
        let expected = model.session(exact).unwrap().logits(&decoder.answers.tokens).unwrap();
        let mut native = Native::load(&file, Settings::new(64, 1)).unwrap();
        let found = native.logits(&decoder.answers.tokens).unwrap();
        let nmse = [metrics::nmse(&expected, &found), decoder.nmse(&expected)];
        println!(
            "{name}: NMSE {:.2e} against llama.cpp, which is {:.2e} from transformers",
            nmse[0], nmse[1]
        );
        assert!(nmse.iter().all(|nmse| *nmse < LIMIT), "{name}: NMSE {nmse:?}");
    }
}

/// The whole program on such files: what it says of them is true for more than a Llama.
#[test]
fn verify_and_run_take_them() {
    let folder = tempfile::tempdir().unwrap();
    let (file, text) = (folder.path().join("tiny.gguf"), folder.path().join("text"));
    std::fs::write(&text, "a big bad cabbage faced a hedge ".repeat(3)).unwrap();
    let (file, text) = (file.to_str().unwrap(), text.to_str().unwrap());
    let run = |arguments: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_tqconv"));
        let ran = command.args(arguments).output().unwrap();
        assert!(
            ran.status.success(),
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        ran.stdout
    };
    for name in DECODERS {
        std::fs::write(file, Decoder::read(name).gguf()).unwrap();
        let report = run(&["verify", file, "--text", text, "--json", "--threads", "1"]);
        let report: Json = serde_json::from_slice(&report).unwrap();
        for level in [0, 2, 3] {
            let checks = report["levels"][level]["checks"].as_array().unwrap();
            assert!(!checks.is_empty(), "{name}: {}", report["levels"][level]);
        }
        assert!(!run(&["run", file, "-n", "8", "-p", "a bad", "--quiet"]).is_empty());
    }
}

/// What llama.cpp would leave out, or has no place for.
#[test]
fn what_is_no_part_of_an_architecture_is_refused() {
    for (name, tensor, length) in [
        ("qwen3", "blk.0.attn_output.bias", 16),
        ("qwen2", "rope_freqs.weight", 2),
        ("bitnet", "blk.0.attn_q.bias", 16),
        ("hunyuan-dense", "blk.1.ffn_down.bias", 16),
        ("minicpm", "blk.0.attn_sub_norm.weight", 16),
    ] {
        let mut file = Gguf::of(&Decoder::read(name).gguf());
        let info = TensorInfo {
            name: tensor.into(),
            ty: BlockType::F32,
            shape: vec![length],
        };
        file.tensors.push((info, vec![0; 4 * length as usize]));
        let error = Hyper::read(&File::parse(&file.bytes()).unwrap()).unwrap_err();
        let expected = format!("tensor '{tensor}' is no part of architecture '{name}'");
        assert!(error.to_string().contains(&expected), "{error}");
    }
    for (name, key, value, expected) in [
        ("minicpm", "logit_scale", Value::F32(0.0), "above 0"),
        ("bitnet", "attention.key_length", Value::U32(2), "over the 4 heads"),
        ("hunyuan-dense", "rope.scaling.alpha", Value::F32(f32::MAX), "finite"),
        (
            "hunyuan-dense",
            "rope.dimension_sections",
            Value::U32(2),
            "several dimensions",
        ),
    ] {
        let mut file = Gguf::of(&Decoder::read(name).gguf());
        if key == "attention.key_length" {
            file.set("bitnet.attention.value_length", value.clone());
        }
        file.set(&format!("{name}.{key}"), value);
        let error = Hyper::read(&File::parse(&file.bytes()).unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("key '{name}.{key}'")) && error.contains(expected),
            "{error}"
        );
    }
    let mut file = Gguf::of(&Decoder::read("minicpm").gguf());
    file.remove("minicpm.residual_scale");
    let error = Hyper::read(&File::parse(&file.bytes()).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("key 'minicpm.residual_scale' is absent"), "{error}");
}
