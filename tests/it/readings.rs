//! What `pack` makes of checkpoints that say one thing twice, or in an old way: the value that transformers takes
//! (5.24.0, from whose source the expected values are), a note that `pack` and `verify` print, and a `verify` that
//! agrees.

use std::path::PathBuf;

use formats::gguf::{File, Value};
use serde_json::{Value as Json, json};

#[cfg(unix)]
use crate::hostile::bounded;
use crate::hostile::input::{Checkpoint, EMBEDDING, NORM, Tensor};
use crate::pack::Bench;

const HEAD: &str = "lm_head.weight";

/// A checkpoint, packed and verified.
struct Packed {
    bench: Bench,
    checkpoint: PathBuf,
    bytes: Vec<u8>,
    notes: Vec<String>,
}

fn packed(change: impl FnOnce(&mut Checkpoint)) -> Packed {
    let bench = Bench::new();
    let mut made = Checkpoint::sound();
    change(&mut made);
    let checkpoint = bench.path("checkpoint");
    made.write(&checkpoint);
    let (bytes, report) = bench.pack(&checkpoint, "");
    let mut packed = Packed {
        bench,
        checkpoint,
        bytes,
        notes: texts(&report["notes"]),
    };
    let verified = packed.verify();
    assert_eq!(verified["verdict"], "agrees", "{verified:#}");
    let verified = texts(&verified["notes"]);
    let printed = packed.printed();
    for note in &packed.notes {
        assert!(verified.contains(note), "verify says {verified:?}, not {note}");
        assert!(printed.contains(&format!("\nnote: {note}\n")), "{printed}");
    }
    // The vocabulary of 16 tokens, which every case has, spells few texts.
    let is_of_case = |note: &String| !note.contains("no token for some bytes");
    packed.notes.retain(is_of_case);
    packed
}

fn texts(list: &Json) -> Vec<String> {
    let list = list.as_array().unwrap().iter();
    list.map(|text| text.as_str().unwrap().to_owned()).collect()
}

impl Packed {
    fn verify(&self) -> Json {
        let (file, against) = (self.bench.path("out.gguf"), &self.checkpoint);
        let arguments = [
            "verify",
            file.to_str().unwrap(),
            "--against",
            against.to_str().unwrap(),
            "--levels",
            "1,2",
            "--json",
        ];
        serde_json::from_slice(&self.bench.run(&arguments).stdout).unwrap()
    }

    /// The names of the checks that fail where the file is another one.
    fn failures(&self, change: impl FnOnce(&mut Vec<(String, Value)>, &mut Vec<String>)) -> Vec<String> {
        let file = File::parse(&self.bytes).unwrap();
        let (mut keys, mut names) = (file.metadata().to_vec(), vec![]);
        names.extend(file.tensors().iter().map(|info| info.name.clone()));
        change(&mut keys, &mut names);
        let tensors = names.iter().map(|name| {
            let (info, bytes) = file.tensor(name).unwrap();
            (info.clone(), bytes.to_vec())
        });
        let changed = crate::hostile::input::Gguf {
            keys,
            tensors: tensors.collect(),
        };
        std::fs::write(self.bench.path("out.gguf"), changed.bytes()).unwrap();
        let report = self.verify();
        let levels = report["levels"].as_array().unwrap().iter();
        let checks = levels.flat_map(|level| level["checks"].as_array().unwrap());
        let failed = checks.filter(|check| check["pass"] == false);
        failed.map(|check| check["name"].as_str().unwrap().to_owned()).collect()
    }

    fn printed(&self) -> String {
        let input = self.checkpoint.to_str().unwrap();
        let ran = self.bench.run(&["pack", input, "-", "--dry-run"]);
        String::from_utf8(ran.stdout).unwrap()
    }

    fn key(&self, key: &str) -> Option<Value> {
        File::parse(&self.bytes).unwrap().get(key).cloned()
    }

    fn number(&self, key: &str) -> f64 {
        match self.key(key) {
            Some(Value::F32(number)) => number.into(),
            Some(Value::U32(number)) => number.into(),
            other => panic!("{key}: {other:?}"),
        }
    }

    /// The bf16 numbers of a tensor of the file.
    fn tensor(&self, name: &str) -> Option<Vec<u8>> {
        let file = File::parse(&self.bytes).unwrap();
        file.tensor(name).map(|(_, bytes)| bytes.to_vec())
    }

    #[track_caller]
    fn assert_notes(&self, expected: &[&str]) {
        assert_eq!(self.notes.len(), expected.len(), "{:?}", self.notes);
        for (note, part) in self.notes.iter().zip(expected) {
            assert!(note.contains(part), "{note}");
        }
    }
}

/// The embedding, its rows moved on by one, as the head.
fn another_head(c: &mut Checkpoint) -> Tensor {
    let mut head = c.tensor(EMBEDDING).clone();
    head.name = HEAD.into();
    head.bytes.rotate_right(64);
    head
}

#[test]
fn a_tied_head_is_left_out_only_where_it_is_the_embedding() {
    let mut head = vec![];
    let differs = packed(|c| {
        let table = another_head(c);
        head = table.bytes.clone();
        c.tensors.push(table);
    });
    differs.assert_notes(&["but lm_head.weight differs from it: it is kept as the head"]);
    assert_eq!(differs.tensor("output.weight").as_ref(), Some(&head));
    let failed = differs.failures(|_, names| names.retain(|name| name != "output.weight"));
    assert!(failed.contains(&"head".into()), "{failed:?}");

    let equal = packed(|c| {
        let mut head = c.tensor(EMBEDDING).clone();
        head.name = HEAD.into();
        c.tensors.push(head);
    });
    equal.assert_notes(&["which it equals: lm_head.weight is left out"]);
    assert_eq!(equal.tensor("output.weight"), None);

    // Equal in another dtype.
    let widened = packed(|c| {
        let mut head = c.tensor(EMBEDDING).clone();
        (head.name, head.dtype) = (HEAD.into(), "F32".into());
        head.bytes = head.floats().iter().flat_map(|w| w.to_le_bytes()).collect();
        c.tensors.push(head);
    });
    widened.assert_notes(&["which it equals"]);

    // transformers ties both ways.
    let mut table = vec![];
    let alone = packed(|c| {
        table = c.tensor(EMBEDDING).bytes.clone();
        c.tensor(EMBEDDING).name = HEAD.into();
    });
    alone.assert_notes(&["only lm_head.weight is there: it is both"]);
    assert_eq!(alone.tensor("token_embd.weight"), Some(table));
    assert_eq!(alone.tensor("output.weight"), None);
}

#[test]
fn of_two_rotations_the_one_of_transformers_is_taken() {
    let rotation = |theta: Json, scaling: Json, parameters: Json| {
        packed(move |c| {
            let config = c.config.as_object_mut().unwrap();
            for (key, value) in [
                ("rope_theta", theta),
                ("rope_scaling", scaling),
                ("rope_parameters", parameters),
            ] {
                match value.is_null() {
                    true => drop(config.remove(key)),
                    false => drop(config.insert(key.into(), value)),
                }
            }
        })
    };
    let linear = json!({"type": "linear", "factor": 2.0});
    let other = json!({"rope_theta": 500000.0, "rope_type": "default"});
    let both = rotation(json!(10000.0), linear.clone(), other.clone());
    both.assert_notes(&["'rope_scaling' and 'rope_parameters', which contradict each other: rope_scaling is taken (theta 10000, linear by 2)"]);
    assert_eq!(both.number("llama.rope.freq_base"), 10000.0);
    assert_eq!(both.number("llama.rope.scaling.factor"), 2.0);
    let failed = both.failures(|keys, _| {
        let theta = keys.iter_mut().find(|(key, _)| key == "llama.rope.freq_base");
        theta.unwrap().1 = Value::F32(500000.0);
    });
    assert_eq!(failed, ["model keys"]);
    let failed = both.failures(|keys, _| keys.retain(|(key, _)| !key.starts_with("llama.rope.scaling")));
    assert_eq!(failed, ["model keys"]);

    let same = json!({"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0});
    rotation(json!(10000.0), linear.clone(), same).assert_notes(&[]);
    rotation(json!(10000.0), json!({}), other.clone())
        .assert_notes(&["'rope_parameters.rope_theta' is 500000, 'rope_theta' 10000: the first is taken"]);
    let inner = rotation(
        Json::Null,
        json!({"type": "linear", "factor": 2.0, "rope_theta": 1e6}),
        other.clone(),
    );
    inner.assert_notes(&["contradict each other: rope_scaling is taken (theta 1000000, linear by 2)"]);
    assert_eq!(inner.number("llama.rope.freq_base"), 1e6);
    let none = rotation(Json::Null, linear, other);
    none.assert_notes(&["no rope_theta: 10000, transformers' default", "contradict"]);
    rotation(Json::Null, Json::Null, Json::Null).assert_notes(&["no rope_theta: 10000"]);
    let unread = json!({"rope_theta": 10000.0, "rope_type": "default", "factor": 8.0});
    rotation(Json::Null, Json::Null, unread).assert_notes(&["'rope_parameters.factor' is not read"]);
}

#[test]
fn frequencies_that_contradict_theta_are_noted() {
    let frequencies = |theta: f64, factor: f64, dtype: &'static str| {
        packed(move |c| {
            c.config["rope_scaling"] = json!({"type": "linear", "factor": 4.0});
            let tensor = c.add("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]);
            tensor.dtype = dtype.into();
            let turns = (0..8).map(|pair| (theta.powf(-2.0 * f64::from(pair) / 16.0) / factor) as f32);
            tensor.bytes = match dtype {
                "F32" => turns.flat_map(f32::to_le_bytes).collect(),
                _ => turns
                    .flat_map(|turn| half::bf16::from_f32(turn).to_le_bytes())
                    .collect(),
            };
        })
    };
    for (factor, dtype) in [(1.0, "F32"), (4.0, "F32"), (1.0, "BF16")] {
        frequencies(10000.0, factor, dtype).assert_notes(&[]);
    }
    frequencies(500000.0, 1.0, "F32")
        .assert_notes(&["rotary_emb.inv_freq' contradicts config.json (theta 10000, linear by 4), which is taken"]);
}

#[test]
fn a_dtype_that_is_not_the_file_s_is_noted() {
    let stored = |keys: Json, wide: fn(&str) -> bool| {
        packed(move |c| {
            let keys = keys.as_object().unwrap().clone();
            c.config.as_object_mut().unwrap().extend(keys);
            for tensor in c.tensors.iter_mut().filter(|tensor| wide(&tensor.name)) {
                tensor.bytes = tensor.floats().iter().flat_map(|w| w.to_le_bytes()).collect();
                tensor.dtype = "F32".into();
            }
        })
    };
    const NOTE: &str = "config.json says that the model is bfloat16, but linears are stored as F32";
    stored(json!({"torch_dtype": "bfloat16"}), |_| true).assert_notes(&[NOTE]);
    stored(json!({"torch_dtype": "bfloat16"}), |name| name.contains("up_proj")).assert_notes(&[NOTE]);
    // transformers 5 writes `dtype`, and takes it where both are there.
    stored(json!({"dtype": "bfloat16", "torch_dtype": "float32"}), |_| true).assert_notes(&[NOTE]);
    stored(json!({"torch_dtype": "float16"}), |_| false)
        .assert_notes(&["the model is float16, but linears are stored as BF16"]);
    stored(json!({"torch_dtype": "float32"}), |_| true).assert_notes(&[]);
    stored(json!({"torch_dtype": "bfloat16"}), |name| name == NORM).assert_notes(&[]);
    stored(json!({}), |_| true).assert_notes(&[]);
}

#[test]
fn wrapped_names_are_read_without_their_wrapping() {
    let plain = packed(|_| ());
    plain.assert_notes(&[]);
    let renamed = |rename: fn(&str) -> String, note: &str| {
        let packed = packed(|c| {
            c.tensors
                .iter_mut()
                .for_each(|tensor| tensor.name = rename(&tensor.name))
        });
        packed.assert_notes(&[note]);
        assert_eq!(
            packed.tensor("blk.0.attn_k.weight"),
            plain.tensor("blk.0.attn_k.weight")
        );
    };
    renamed(
        |name| format!("module.{name}"),
        "read without 'module.' (left by DistributedDataParallel",
    );
    renamed(
        |name| format!("_orig_mod.{name}"),
        "read without '_orig_mod.' (left by torch.compile)",
    );
    renamed(
        |name| format!("base_model.model.{name}"),
        "read without 'base_model.model.' (left by peft)",
    );
    renamed(
        |name| name.trim_start_matches("model.").into(),
        "read with 'model.' before them",
    );
    renamed(
        |name| format!("module._orig_mod.{}", name.trim_start_matches("model.")),
        "'_orig_mod.' (left by torch.compile) and with 'model.'",
    );
    renamed(
        |name| name.replace("layers.0.", "layers.0._checkpoint_wrapped_module."),
        "left by activation checkpointing",
    );
}

#[test]
fn the_first_configs_of_llama_are_read() {
    let named = |config: Json| {
        packed(move |c| {
            let keys = config.as_object().unwrap().clone();
            c.config.as_object_mut().unwrap().extend(keys);
        })
    };
    named(json!({"architectures": ["LLaMAForCausalLM"]})).assert_notes(&[]);
    let pad = named(json!({"pad_token_id": -1}));
    pad.assert_notes(&["'pad_token_id' is -1, which stands for no token"]);
    assert_eq!(pad.key("tokenizer.ggml.padding_token_id"), None);
    let ends = named(json!({"eos_token_id": [1, -1]}));
    ends.assert_notes(&["'eos_token_id' is -1"]);
    assert_eq!(ends.number("tokenizer.ggml.eos_token_id"), 1.0);
}

#[test]
fn windows_are_those_of_transformers() {
    let context = |keys: Json, note: &[&str]| {
        let packed = packed(|c| {
            let keys = keys.as_object().unwrap().clone();
            c.config.as_object_mut().unwrap().extend(keys);
            if c.config["architectures"][0] == "Qwen2ForCausalLM" {
                for (part, rows) in [("q", 32), ("k", 16), ("v", 16)] {
                    c.add(&format!("model.layers.0.self_attn.{part}_proj.bias"), &[rows]);
                }
            }
        });
        packed.assert_notes(note);
        packed.number("llama.context_length")
    };
    let qwen = |more: Json| {
        let mut keys = json!({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 16, "use_sliding_window": true});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    };
    const NOTE: &[&str] = &["attention sees 16 tokens back"];
    // The only layer slides where max_window_layers, which is 28 where it is missing, leaves it.
    assert_eq!(context(qwen(json!({"max_window_layers": 0})), NOTE), 16.0);
    assert_eq!(context(qwen(json!({"max_window_layers": 1})), &[]), 64.0);
    assert_eq!(context(qwen(json!({})), &[]), 64.0);
    assert_eq!(
        context(qwen(json!({"max_window_layers": 0, "use_sliding_window": false})), &[]),
        64.0
    );
    assert_eq!(
        context(qwen(json!({"max_window_layers": 0, "sliding_window": null})), &[]),
        64.0
    );
    assert_eq!(context(qwen(json!({"layer_types": ["sliding_attention"]})), NOTE), 16.0);
    assert_eq!(
        context(
            qwen(json!({"layer_types": ["full_attention"], "max_window_layers": 0})),
            &[]
        ),
        64.0
    );
    // Mistral's has a default.
    let mistral = |more: Json| {
        let mut keys = json!({"architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192});
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys
    };
    assert_eq!(
        context(mistral(json!({})), &["attention sees 4096 tokens back"]),
        4096.0
    );
    assert_eq!(context(mistral(json!({"sliding_window": null})), &[]), 8192.0);
    assert_eq!(context(json!({"sliding_window": 16}), &[]), 64.0);
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hub_s_cache_gives_name_and_organization() {
    let bench = Bench::new();
    let repository = bench.path("models--an-org--A-Model");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123abcd"));
    Checkpoint::sound().write(&blobs);
    std::fs::create_dir_all(&snapshot).unwrap();
    for entry in blobs.read_dir().unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(blobs.join(&name), snapshot.join(&name)).unwrap();
    }
    for input in [snapshot.clone(), snapshot.join("model.safetensors")] {
        let (bytes, _) = bench.pack(&input, "");
        let file = File::parse(&bytes).unwrap();
        let text = |key| file.get(key).and_then(Value::as_str);
        assert_eq!(text("general.name"), Some("A-Model"));
        assert_eq!(text("general.organization"), Some("an-org"));
    }
}

#[cfg(unix)]
#[test]
fn more_shards_than_may_be_open_name_the_limit() {
    let bench = Bench::new();
    let folder = bench.path("checkpoint");
    std::fs::create_dir(&folder).unwrap();
    let mut map = serde_json::Map::new();
    std::fs::write(folder.join("config.json"), Checkpoint::sound().config.to_string()).unwrap();
    for shard in 0..60 {
        let (name, file) = (format!("t{shard}"), format!("model-{shard}.safetensors"));
        let header = json!({&name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}});
        let bytes = crate::hostile::input::with_header(&header.to_string(), &[0; 4]);
        std::fs::write(folder.join(&file), bytes).unwrap();
        map.insert(name, file.into());
    }
    let index = json!({"weight_map": map}).to_string();
    std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let arguments = [
        "pack",
        folder.to_str().unwrap(),
        bench.path("out.gguf").to_str().unwrap(),
    ]
    .map(String::from);
    let ran = bounded(&arguments, "ulimit -n 40;");
    let error = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(2), "{error}");
    assert!(
        error.contains("index.json: Too many open files: its 60 shards need `ulimit -n 220`"),
        "{error}"
    );
}

#[test]
fn inspect_tells_what_the_weights_are() {
    let bench = Bench::new();
    let mut made = Checkpoint::sound();
    made.write(&bench.path("latent"));
    for tensor in made.tensors.iter_mut().filter(|tensor| tensor.name.contains("_proj")) {
        for (index, w) in tensor.floats().into_iter().enumerate() {
            tensor.set(index, if index % 3 == 0 { 0.0 } else { 0.25f32.copysign(w) });
        }
    }
    made.write(&bench.path("ternary"));
    let inspect = |name: &str| -> Json {
        let ran = bench.run(&["inspect", bench.path(name).to_str().unwrap(), "--json"]);
        serde_json::from_slice(&ran.stdout).unwrap()
    };
    assert_eq!(inspect("latent")["weights"], "latent");
    let found = inspect("ternary");
    assert_eq!(found["weights"], "ternary");
    let training = &found["training"];
    assert_eq!(training["quant_method"], "ternary floats");
    assert_eq!(
        (&training["ternary_linears"], &training["weights_a_scale"]),
        (&7.into(), &32.into())
    );
    assert_eq!(
        training["known_by"],
        "the numbers of the linears, whatever config.json says"
    );
    // What latent weights became is not what these are, and no method makes latent weights of them.
    let (file, _) = bench.pack(&bench.path("latent"), "");
    std::fs::write(bench.path("file.gguf"), file).unwrap();
    let (file, ternary) = (bench.path("file.gguf"), bench.path("ternary"));
    let (file, ternary) = (file.to_str().unwrap(), ternary.to_str().unwrap());
    let ran = bench.run(&["verify", file, "--against", ternary, "--levels", "2"]);
    assert_eq!(ran.status.code(), Some(1));
    let output = bench.path("new.gguf");
    let output = output.to_str().unwrap();
    let error = bench.refused(&["pack", ternary, output, "--quant-method", "ultraquantv3"]);
    for part in [
        "all 7 linears hold only -s, 0 and +s",
        "scales of 0.67 of the true ones",
        "leave --trained-as out: they are packed as they are",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
