//! Checkpoints of the other families: codes and scales of `pack` and of `verify`'s witness against the code that trains
//! them, logits against PyTorch's, and the architectures that only schemes without biases fill.

use std::path::{Path, PathBuf};

use formats::gguf::File;
use serde_json::{Value as Json, json};
use tqconv::engine::Engine;
use tqconv::engine::native::{Native, Settings};
use tqconv::metrics;

use crate::data::{self, Tensors};
use crate::engine::Answers;
use crate::hostile::input::{Checkpoint, Tensor};
use crate::pack::{Bench, assert_golden};

/// Each with the types that hold it exactly.
const FAMILIES: [(&str, &[&str]); 2] = [
    ("families/sherry", &["q2_0", "q4_0"]),
    ("families/bitnet-online", &["tq2_0", "tq1_0", "q2_0", "q2_k", "q4_0"]),
];

/// What `verify` says of the file that was packed last.
fn verify(bench: &Bench, checkpoint: &Path, options: &str) -> Json {
    let file = bench.path("out.gguf");
    let mut arguments = vec!["verify", file.to_str().unwrap(), "--json", "--threads", "1"];
    arguments.extend(["--against", checkpoint.to_str().unwrap()]);
    arguments.extend(options.split_whitespace());
    let ran = bench.run(&arguments);
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.code() < Some(2), "{}: {stderr}", checkpoint.display());
    serde_json::from_slice(&ran.stdout).unwrap()
}

#[track_caller]
fn assert_agrees(report: &Json) {
    assert_eq!(report["verdict"], "agrees", "{report:#}");
}

#[test]
fn every_code_and_scale_is_that_of_the_training_code() {
    let bench = Bench::new();
    for (name, types) in FAMILIES {
        let folder = data::fixture(name);
        for ty in types {
            let (bytes, _) = bench.pack(&folder, &format!("--type {ty} --exact"));
            assert_golden(&folder, &bytes);
            assert_agrees(&verify(&bench, &folder, "--levels 1,2,3 --max-nmse 0"));
        }
    }
}

#[test]
fn logits_are_pytorch_s() {
    let bench = Bench::new();
    for (name, types) in FAMILIES {
        let folder = data::fixture(name);
        let answers = Answers::read(&folder);
        // In F32 what is left is the rounding of the embedding's bf16 products; in blocks, that of the activations.
        for (ty, limit) in [("f32", 1e-5), (types[0], 1e-3)] {
            let (bytes, _) = bench.pack(&folder, &format!("--type {ty}"));
            let file = File::parse(&bytes).unwrap();
            let mut native = Native::load(&file, Settings::new(answers.tokens.len(), 1)).unwrap();
            let nmse = metrics::nmse(&answers.logits, &native.logits(&answers.tokens).unwrap());
            println!("{name} as {ty}: NMSE {nmse:.1e}");
            assert!(nmse < limit, "{name} as {ty}: NMSE {nmse:.1e}");
            #[cfg(feature = "llama")]
            {
                let model = crate::tokenizer::load(&bytes, &file);
                let settings = tqconv::engine::llamacpp::Settings {
                    context: 256,
                    threads: 1,
                    exact_cache: true,
                };
                let found = model.session(settings).unwrap().logits(&answers.tokens).unwrap();
                let nmse = metrics::nmse(&answers.logits, &found);
                println!("{name} as {ty}: NMSE {nmse:.1e}, llama.cpp");
                assert!(nmse < limit, "{name} as {ty}: NMSE {nmse:.1e}, llama.cpp");
            }
        }
        bench.pack(&folder, "--exact");
        assert_agrees(&verify(&bench, &folder, ""));
    }
}

#[test]
fn a_checkpoint_without_a_mark_is_packed_as_the_user_says() {
    let bench = Bench::new();
    let (marked, plain) = (data::fixture("families/bitnet-online"), bench.path("plain"));
    data::copy_folder(&marked, &plain);
    edit(&plain, |config| {
        drop(config.as_object_mut().unwrap().remove("quantization_config"))
    });
    let output = bench.path("refused.gguf");
    let error = bench.refused(&["pack", plain.to_str().unwrap(), output.to_str().unwrap()]);
    assert!(error.contains("say so with --trained-as NAME"), "{error}");
    let expected = bench.pack(&marked, "--metadata general.name=same");
    let found = bench.pack(&plain, "--trained-as bitnet --metadata general.name=same");
    assert!(expected.0 == found.0);
    let known_by = |report: &Json| report["known_by"].as_str().unwrap().to_owned();
    assert_eq!(known_by(&expected.1), "'quantization_config' of config.json");
    assert_eq!(known_by(&found.1), "--trained-as");
}

fn edit(folder: &Path, change: impl Fn(&mut Json)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// A matrix of `rules.safetensors`.
struct Rule {
    weight: Tensor,
    clip: Option<Tensor>,
    codes: Vec<i8>,
    /// Of each group; none where the rule is told by codes alone.
    scales: Vec<f32>,
}

impl Rule {
    fn read(tensors: &Tensors, key: &str, codes: &str) -> Self {
        let tensors = tensors.by_name();
        let tensor = |part: &str| {
            tensors.get(&*format!("{key}.{part}")).map(|tensor| Tensor {
                name: String::new(),
                dtype: tensor.dtype.to_string(),
                shape: tensor.shape.to_vec(),
                bytes: tensor.bytes.to_vec(),
            })
        };
        let scales = tensors.get(&*format!("{key}.scale"));
        Self {
            weight: tensor("weight").unwrap(),
            clip: tensor("clip"),
            codes: tensor(codes).unwrap().bytes.iter().map(|&code| code as i8).collect(),
            scales: scales.map_or(vec![], data::floats),
        }
    }

    /// Matrices of one row become one of `rows` equal ones: every sum over them is that many times as large.
    fn repeat(mut self, rows: usize) -> Self {
        let columns = self.codes.len();
        self.weight.shape = vec![rows, columns];
        self.weight.bytes = self.weight.bytes.repeat(rows);
        self.codes = self.codes.repeat(rows);
        self
    }

    /// A model of one layer, most of whose linears are the matrix; `training`: keys of config.json.
    fn checkpoint(&self, training: &Json) -> Checkpoint {
        let [rows, columns] = self.weight.shape[..] else {
            panic!("no matrix");
        };
        let mut checkpoint = Checkpoint::sound();
        checkpoint.config = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 16, "hidden_size": columns, "intermediate_size": rows,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": rows / 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
            "bos_token_id": 0, "eos_token_id": 1,
        });
        checkpoint
            .config
            .as_object_mut()
            .unwrap()
            .extend(training.as_object().unwrap().clone());
        checkpoint.tensors.retain(|tensor| !tensor.name.contains("_proj"));
        for tensor in &mut checkpoint.tensors {
            let shape: Vec<_> = tensor
                .shape
                .iter()
                .map(|&n| if n == 32 { columns } else { n })
                .collect();
            tensor.reshape(&shape);
        }
        for (name, turned) in [
            ("self_attn.q_proj", false),
            ("self_attn.k_proj", false),
            ("self_attn.v_proj", false),
            ("self_attn.o_proj", true),
            ("mlp.gate_proj", false),
            ("mlp.up_proj", false),
            ("mlp.down_proj", true),
        ] {
            let named = |part: &str| format!("model.layers.0.{name}.{part}");
            let shape = if turned {
                vec![columns, rows]
            } else {
                vec![rows, columns]
            };
            let weight = Tensor {
                name: named("weight"),
                shape,
                ..self.weight.clone()
            };
            if let Some(clip) = &self.clip {
                let number = clip.bytes.len() / rows;
                let bytes = clip
                    .bytes
                    .iter()
                    .cycle()
                    .take(weight.shape[0] * number)
                    .copied()
                    .collect();
                checkpoint.tensors.push(Tensor {
                    name: named("weight_clip_val"),
                    dtype: clip.dtype.clone(),
                    shape: vec![weight.shape[0], 1],
                    bytes,
                });
            }
            checkpoint.tensors.push(weight);
        }
        checkpoint
    }

    /// v of the file, in F32, is the golden matrix.
    fn assert_packed(&self, key: &str, bytes: &[u8]) {
        let file = File::parse(bytes).unwrap();
        let (_, found) = file.tensor("blk.0.attn_v.weight").unwrap();
        let found: Vec<f32> = found
            .as_chunks()
            .0
            .iter()
            .map(|&number| f32::from_le_bytes(number))
            .collect();
        assert_eq!(found.len(), self.codes.len(), "{key}");
        let codes = found.iter().map(|&w| i8::from(w > 0.0) - i8::from(w < 0.0));
        assert!(codes.eq(self.codes.iter().copied()), "{key}: codes");
        // The order of PyTorch's sums shows in the last bits of F32.
        let tolerance = if key.ends_with("f32") { 1e-6 } else { 0.0 };
        for (index, (w, code)) in found.iter().zip(&self.codes).enumerate() {
            let Some(scale) = self.scales.get(index * self.scales.len() / found.len()) else {
                return;
            };
            let expected = scale * f32::from(*code);
            assert!(
                (w - expected).abs() <= tolerance * scale,
                "{key} {index}: {w}, expected {expected}"
            );
        }
    }
}

/// config.json of AngelSlim's methods.
fn training(method: &str, granularity: &str) -> Json {
    let group_size = granularity
        .strip_prefix("group")
        .map(|size| size.parse::<u32>().unwrap());
    let granularity = group_size.map_or(format!("per_{granularity}"), |_| "per_group".into());
    json!({"w_bits": 0, "quant_method": method, "granularity": granularity, "group_size": group_size})
}

#[test]
fn every_rule_dtype_and_granularity_is_that_of_the_training_code() {
    let tensors = Tensors::read(&data::fixture("families/rules"), "rules");
    let bench = Bench::new();
    let check = |key: &str, rule: Rule, training: &Json| {
        let folder = bench.path(key);
        rule.checkpoint(training).write(&folder);
        rule.assert_packed(key, &bench.pack(&folder, "--type f32").0);
        // The witness computes the same once more, from the checkpoint.
        assert_agrees(&verify(&bench, &folder, "--levels 2"));
    };
    let mut rules = 0;
    for dtype in ["bf16", "f16", "f32"] {
        for (name, training) in [
            ("sherry_group128", training("sherry", "group128")),
            ("sherry_group32", training("sherry", "group32")),
            ("sherry_channel", training("sherry", "channel")),
            ("sherry_tensor", training("sherry", "tensor")),
            ("absmean_group128", training("absmean", "group128")),
            ("twn_group128", training("twn", "group128")),
            ("lsq", json!({"w_bits": 0, "quant_method": "lsq"})),
            ("seq", json!({"w_bits": 0})),
            ("bitnet_online", online()),
        ] {
            let key = format!("{name}.{dtype}");
            check(&key, Rule::read(&tensors, &key, "codes"), &training);
            rules += 1;
        }
    }
    for (key, codes, training) in [
        ("half_absmean.bf16", "codes", training("absmean", "tensor")),
        ("half_bitnet.bf16", "codes", online()),
        ("sherry_ties", "codes_last", training("sherry", "channel")),
    ] {
        check(key, Rule::read(&tensors, key, codes).repeat(4), &training);
        rules += 1;
    }
    assert_eq!(rules, 30); // the other three are packed BitNet
}

fn online() -> Json {
    json!({"quantization_config": {
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"
    }})
}

#[test]
fn ties_are_counted() {
    let tensors = Tensors::read(&data::fixture("families/rules"), "rules");
    let rule = Rule::read(&tensors, "sherry_ties", "codes_last").repeat(4);
    let bench = Bench::new();
    let folder = bench.path("ties");
    rule.checkpoint(&training("sherry", "channel")).write(&folder);
    let (_, report) = bench.pack(&folder, "--type f32");
    // All 45 quads of every linear, in each of 4 rows.
    assert_eq!(report["ties"], 45 * 4 * 7);
    let notes = verify(&bench, &folder, "--levels 2")["notes"].to_string();
    assert!(
        notes.contains("1260 zeros were chosen among weights of equal magnitude"),
        "{notes}"
    );
}

/// The architectures beside Llama, with weights that training makes ternary and no biases but the layers' own.
#[test]
fn other_architectures_are_packed_and_proven() {
    for (name, class, training) in [
        ("qwen2", "Qwen2ForCausalLM", training("absmean", "channel")),
        ("qwen3", "Qwen3ForCausalLM", training("absmean", "channel")),
        (
            "hunyuan-dense",
            "HunYuanDenseV1ForCausalLM",
            training("sherry", "channel"),
        ),
        ("minicpm", "MiniCPMForCausalLM", training("twn", "channel")),
        ("bitnet", "BitNetForCausalLM", online()),
        (
            "bitnet",
            "BitnetForCausalLM",
            json!({"weight_bits": 1, "input_bits": 8}),
        ),
    ] {
        let bench = Bench::new();
        let folder = decoder(&bench, name, class, &training);
        let (bytes, _) = bench.pack(&folder, "--type f32");
        let file = File::parse(&bytes).unwrap();
        let biases = file
            .tensors()
            .iter()
            .filter(|info| info.name.ends_with(".bias"))
            .count();
        assert_eq!(biases, if name == "qwen2" { 6 } else { 0 }, "{class}");
        let text = bench.path("text");
        std::fs::write(&text, "a big bad cabbage faced a hedge ".repeat(3)).unwrap();
        assert_agrees(&verify(&bench, &folder, &format!("--text {}", text.display())));
    }
}

/// A tiny model of `fixtures/decoders` as a checkpoint of `class`, trained as `training` says.
fn decoder(bench: &Bench, name: &str, class: &str, training: &Json) -> PathBuf {
    let (source, folder) = (data::fixture("decoders").join(name), bench.path(class));
    let mut checkpoint = Checkpoint::sound();
    checkpoint.config = serde_json::from_slice(&std::fs::read(source.join("config.json")).unwrap()).unwrap();
    let keys = checkpoint.config.as_object_mut().unwrap();
    keys.extend(training.as_object().unwrap().clone());
    keys.insert("architectures".into(), json!([class]));
    keys.insert("eos_token_id".into(), 1.into());
    let tensors = Tensors::read(&source, "model");
    let tensor = |(name, tensor): (&str, formats::safetensors::Tensor)| Tensor {
        name: match class {
            "BitnetForCausalLM" => name
                .replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
                .replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
            _ => name.into(),
        },
        dtype: tensor.dtype.to_string(),
        shape: tensor.shape.to_vec(),
        bytes: tensor.bytes.to_vec(),
    };
    checkpoint.tensors = tensors.by_name().into_iter().map(tensor).collect();
    checkpoint.write(&folder);
    folder
}
