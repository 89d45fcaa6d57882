//! The list of malformed inputs: for each the smallest input that causes it, the error that it must end in, and what the
//! message must say. Rows are those of docs/bad-input.md.

use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use formats::block::BlockType;
use formats::gguf::{Array, File, Layout, TensorInfo, Value};
use serde_json::{Value as Json, json};

use tqconv::choose::ChooseError;
use tqconv::engine::EngineError;
use tqconv::engine::text::{Text, TextError};
use tqconv::kernels::{Isa, KernelError, Matrix};
use tqconv::model::{Checkpoint as Opened, Source, TrainingOverrides};
use tqconv::output::Inputs;
use tqconv::pack::{Embedding, Options, Output, PackError, Plan, Rule, Target};
use tqconv::verify::VerifyError;
use tqconv::witness::{Ending, WitnessError};

use super::input::{
    Checkpoint, EMBEDDING, FIRST, Gguf, INDEX, NORM, QUERY, SECOND, sparse, with_header,
};
use super::raw::{Raw, string};

/// The kind of errors that no file can cause.
pub const LIBRARY: &str = "- | library";

/// One malformed input.
pub struct Case {
    /// Of docs/bad-input.md.
    pub row: u8,
    pub name: String,
    /// What the error is, or holds.
    pub variant: &'static str,
    /// Parts of the message: place, found, expected, remedy.
    pub says: &'static [&'static str],
    /// Whether the message names a file; one about the command line names a flag.
    pub names_file: bool,
    pub input: Input,
}

/// Writes an input into a folder, and gives the arguments of the run that is to refuse it.
type Make = dyn Fn(&Path) -> Vec<String>;

/// What makes the error.
pub enum Input {
    /// The binary.
    Command(Box<Make>),
    /// A call of the library: an error that no file can cause, only a wrong call or a race.
    Call(fn(&Path) -> anyhow::Error),
}

impl Case {
    /// How docs/bad-input.md counts it: rows and kind.
    pub fn kind(&self) -> &'static str {
        match self.row {
            1..=15 => "1-15 | safetensors",
            16..=18 => "16-18 | index",
            19..=27 => "19-27 | config.json",
            28..=30 => "28-30 | tokenizer",
            31..=38 => "31-38 | GGUF",
            39..=40 => "39-40 | process",
            41 => "41 | llama.cpp",
            _ => LIBRARY,
        }
    }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = List::default();
    safetensors(&mut cases);
    index(&mut cases);
    config(&mut cases);
    tokenizer(&mut cases);
    sentencepiece(&mut cases);
    gguf(&mut cases);
    engine(&mut cases);
    text(&mut cases);
    process(&mut cases);
    max_kld(&mut cases);
    super::libraries::libraries(&mut cases);
    library(&mut cases);
    cases.0
}

#[derive(Default)]
pub struct List(Vec<Case>);

impl List {
    fn add(
        &mut self,
        row: u8,
        name: impl Into<String>,
        variant: &'static str,
        says: &'static [&'static str],
        input: Input,
    ) -> &mut Case {
        self.0.push(Case {
            row,
            name: name.into(),
            variant,
            says,
            names_file: true,
            input,
        });
        self.0.last_mut().expect("just pushed")
    }

    /// A sound checkpoint, broken by `change`, packed.
    fn pack(
        &mut self,
        row: u8,
        variant: &'static str,
        says: &'static [&'static str],
        change: impl Fn(&mut Checkpoint) + 'static,
    ) -> &mut Case {
        let make = move |folder: &Path| {
            let mut checkpoint = Checkpoint::sound();
            change(&mut checkpoint);
            let input = folder.join("checkpoint");
            checkpoint.write(&input);
            let mut arguments = vec!["pack".into(), text_of(&input), text_of(&folder.join("out.gguf"))];
            arguments.extend(checkpoint.arguments);
            arguments
        };
        self.add(row, says[0], variant, says, Input::Command(Box::new(make)))
    }

    /// Any command; `make` writes what it needs and gives the arguments.
    pub fn command(
        &mut self,
        row: u8,
        variant: &'static str,
        says: &'static [&'static str],
        make: impl Fn(&Path) -> Vec<String> + 'static,
    ) -> &mut Case {
        self.add(row, says[0], variant, says, Input::Command(Box::new(make)))
    }

    /// A GGUF file of these bytes, inspected.
    fn inspect(
        &mut self,
        row: u8,
        variant: &'static str,
        says: &'static [&'static str],
        bytes: Vec<u8>,
    ) {
        self.command(row, variant, says, move |folder| {
            let path = folder.join("broken.gguf");
            std::fs::write(&path, &bytes).unwrap();
            vec!["inspect".into(), text_of(&path)]
        });
    }

    /// A GGUF file of these bytes, run.
    fn run_bytes(&mut self, row: u8, variant: &'static str, says: &'static [&'static str], bytes: Vec<u8>) {
        self.command(row, variant, says, move |folder| {
            let path = folder.join("broken.gguf");
            std::fs::write(&path, &bytes).unwrap();
            vec!["run".into(), text_of(&path), "-p".into(), "abcd".into()]
        });
    }

    /// A sound GGUF file, broken by `change`, run.
    fn run(
        &mut self,
        row: u8,
        variant: &'static str,
        says: &'static [&'static str],
        change: impl Fn(&mut Gguf) + 'static,
    ) {
        self.command(row, variant, says, move |folder| {
            let mut file = Gguf::sound();
            change(&mut file);
            let path = folder.join("broken.gguf");
            std::fs::write(&path, file.bytes()).unwrap();
            vec!["run".into(), text_of(&path), "-p".into(), "abcd".into()]
        });
    }

    fn call(
        &mut self,
        variant: &'static str,
        says: &'static [&'static str],
        call: fn(&Path) -> anyhow::Error,
    ) {
        self.add(42, variant, variant, says, Input::Call(call)).names_file = false;
    }
}

pub fn text_of(path: &Path) -> String {
    path.to_str().unwrap().into()
}

/// The sound checkpoint packed into two files, `m-00001-of-00002.gguf` and its fellow.
fn pack_split(folder: &Path) {
    let arguments = pack_sound(folder, &folder.join("m.gguf"));
    let size = ["--split-max-size".into(), "8000".into(), "-q".into()];
    let ran = super::bounded(&arguments.into_iter().chain(size).collect::<Vec<_>>(), "");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// The arguments of a pack of the sound checkpoint in `folder`.
fn pack_sound(folder: &Path, output: &Path) -> Vec<String> {
    let input = folder.join("checkpoint");
    Checkpoint::sound().write(&input);
    vec!["pack".into(), text_of(&input), text_of(output)]
}

const SAFETENSORS: &str = "FormatError::Safetensors";
const TRUNCATED: &str = "FormatError::Truncated";

fn safetensors(cases: &mut List) {
    let weights = |cases: &mut List, row, variant, says, bytes: Vec<u8>| {
        cases.pack(row, variant, says, move |c| c.weights(bytes.clone()));
    };
    let header = |cases: &mut List, row, says, header: &str, data: usize| {
        weights(cases, row, SAFETENSORS, says, with_header(header, &vec![0; data]));
    };
    weights(cases, 1, SAFETENSORS, &["0 bytes are too short for a header", "empty", "fetch it again"], vec![]);
    weights(cases, 1, SAFETENSORS, &["7 bytes are too short"], vec![0; 7]);
    let promise = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    weights(cases, 2, TRUNCATED, &["the safetensors header needs 1000000 bytes at offset 8", "ends at 10", "fetch"], promise(1_000_000));
    weights(cases, 2, SAFETENSORS, &["the header would be 18446744073709551615 bytes long", "at most 100000000"], promise(u64::MAX));
    cases.pack(3, SAFETENSORS, &["the header would be 100000001 bytes long", "at most 100000000"], |c| {
        c.files.push(("model.safetensors", Some(promise_of(100_000_001))));
    });
    for (says, start) in [
        (&["a git-lfs pointer", "git lfs pull"][..], &b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"[..]),
        (&["an HTML page", "fetch it again"], b"<!DOCTYPE html><html><body>404"),
        (&["a zip archive", "save it as safetensors"], b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl"),
        (&["a Python pickle", "save the checkpoint as safetensors"], b"\x80\x02}q\0X\x05\0\0\0model"),
        (&["a gzip archive", "unpack it"], b"\x1f\x8b\x08\0\0\0\0\0\0\x03"),
        (&["a GGUF file (packed already"], b"GGUF\x03\0\0\0\0\0\0\0"),
    ] {
        weights(cases, 4, "FormatError::NotSafetensors", says, start.to_vec());
    }
    let deep = |open: &str| open.repeat(200_000);
    weights(cases, 5, SAFETENSORS, &["header: invalid unicode"], [&6u64.to_le_bytes()[..], b"{\"\xff\":1"].concat()[..14].to_vec());
    header(cases, 5, &["header: 'a': EOF while parsing"], r#"{"a":"#, 0);
    header(cases, 5, &["header: trailing characters"], r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}x"#, 4);
    header(cases, 5, &["'a'", "invalid type: sequence"], &format!(r#"{{"a":{{"shape":{}"#, deep("[")), 0);
    header(cases, 5, &["'__metadata__'", "invalid type: map"], &format!(r#"{{"__metadata__":{{"x":{}"#, deep(r#"{"x":"#)), 0);
    header(cases, 5, &["'a'", "unknown field `x`"], &format!(r#"{{"a":{{"x":{}"#, deep("[")), 0);
    header(cases, 6, &["the header starts with bytes [20, 7b]", "expected '{'"], " {", 0);
    const ONE: &str = r#""a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    header(cases, 7, &["'a' is duplicated"], &format!("{{{ONE},{ONE}}}"), 4);
    header(cases, 7, &["'__metadata__' is duplicated"], &format!(r#"{{"__metadata__":{{}},{ONE},"__metadata__":{{}}}}"#), 4);
    header(cases, 7, &["it holds no tensor"], "{}", 0);
    let two = |from: i64, to: i64| format!(r#"{{{ONE},"b":{{"dtype":"F32","shape":[1],"data_offsets":[{from},{to}]}}}}"#);
    header(cases, 8, &["tensor 'b' starts at byte 2", "overlaps", "expected 4, where tensor 'a' ends"], &two(2, 6), 6);
    header(cases, 8, &["tensor 'b' starts at byte 8", "leaves a hole", "expected 4"], &two(8, 12), 12);
    header(cases, 8, &["tensor 'b' has the bytes 4..2", "expected 4 bytes"], &two(4, 2), 8);
    header(cases, 8, &["'b'", "invalid value: integer `-4`"], &two(-4, 0), 4);
    header(cases, 9, &["3 bytes follow the last tensor"], &format!("{{{ONE}}}"), 7);
    weights(cases, 9, TRUNCATED, &["the data, up to the end of tensor 'a', needs 4 bytes", "fetch"], with_header(&format!("{{{ONE}}}"), &[0; 3]));
    let shaped = |dtype: &str, shape: &str, to: u64| format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{to}]}}}}"#);
    header(cases, 10, &["tensor 'a' has the bytes 0..8", "expected 12 bytes for shape [3] of F32"], &shaped("F32", "[3]", 8), 8);
    header(cases, 10, &["tensor 'a' has shape [9223372036854775807, 3]", "do not fit 64 bits"], &shaped("F32", "[9223372036854775807,3]", 8), 8);
    header(cases, 10, &["tensor 'a' has shape [3]", "no whole bytes"], &shaped("F4", "[3]", 1), 1);
    header(cases, 10, &["'a': invalid type", "expected u64"], &shaped("F32", "[18446744073709551616]", 8), 8);
    header(cases, 11, &["tensor 'a' has dtype \"F12\""], &shaped("F12", "[4]", 4), 4);
    for dtype in ["F8_E4M3", "I8", "F64", "C64"] {
        cases.pack(11, "ModelError::Dtype", &["q_proj.weight' is ", "expected F32, F16 or BF16", "cannot be packed"], move |c| {
            let tensor = c.tensor(QUERY);
            tensor.dtype = dtype.into();
            let bytes = match dtype {
                "F64" | "C64" => 8,
                _ => 1,
            };
            tensor.bytes.resize(32 * 32 * bytes, 0);
        });
    }
    const NOT_FINITE: &str = "PackError::NotFinite";
    cases.pack(12, NOT_FINITE, &["q_proj.weight' is NaN at row 1, column 2", "take an earlier checkpoint"], |c| c.tensor(QUERY).set(34, f32::NAN));
    cases.pack(12, NOT_FINITE, &["q_proj.weight' is inf at row 0, column 0"], |c| c.tensor(QUERY).set(0, f32::INFINITY));
    cases.pack(12, NOT_FINITE, &["model.norm.weight' is -inf at row 0, column 3"], |c| c.tensor(NORM).set(3, f32::NEG_INFINITY));
    cases.pack(12, NOT_FINITE, &["embed_tokens.weight' is NaN at row 15, column 31"], |c| c.tensor(EMBEDDING).set(511, f32::NAN));
    cases.pack(12, NOT_FINITE, &["q_proj.bias' is inf at row 0, column 5"], |c| {
        c.config["attention_bias"] = true.into();
        for (part, rows) in [("q", 32), ("k", 16), ("v", 16), ("o", 32)] {
            c.add(&format!("model.layers.0.self_attn.{part}_proj.bias"), &[rows]);
        }
        c.tensor("model.layers.0.self_attn.q_proj.bias").set(5, f32::INFINITY);
    });
    cases.pack(12, NOT_FINITE, &["q_proj.Lambada' is NaN at row 1, column 0"], |c| {
        learned(c, |rows, _| vec![rows, 1]);
        c.tensor("model.layers.0.self_attn.q_proj.Lambada").set(1, f32::NAN);
    });
    let name = |cases: &mut List, variant, says, name: &'static str| {
        cases.pack(13, variant, says, move |c| {
            c.add(name, &[1]);
        });
    };
    name(cases, "FormatError::Name", &["tensor '' is empty"], "");
    name(cases, "FormatError::Name", &["tensor 'a\\0' holds a control character"], "a\0");
    name(cases, "FormatError::Name", &["tensor '\\u{1b}[2J' holds a control character"], "\u{1b}[2J");
    name(cases, "ModelError::SurplusTensors", &["'../../etc/passwd'", "no place for", "--config"], "../../etc/passwd");
    cases.pack(14, SAFETENSORS, &["embed_tokens.weight' has shape [0, 32]: a dimension is zero"], |c| c.tensor(EMBEDDING).reshape(&[0, 32]));
    for shape in [&[][..], &[1024], &[32, 32, 1], &[16, 64]] {
        cases.pack(14, "ModelError::Shape", &["q_proj.weight' has shape [", "config.json makes it [32, 32]", "--config"], move |c| c.tensor(QUERY).reshape(shape));
    }
}

/// A header length of `length` and the bytes to go with it, so that only the limit can be what is wrong.
fn promise_of(length: u64) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(b'{');
    bytes
}

/// Make it a checkpoint of ultraquantv3; `shape` gives the shape of each learned lambda.
fn learned(checkpoint: &mut Checkpoint, shape: impl Fn(usize, usize) -> Vec<usize>) {
    checkpoint.config["quant_method"] = "ultraquantv3".into();
    let linears: Vec<_> = checkpoint
        .tensors
        .iter()
        .filter(|tensor| tensor.name.contains("_proj"))
        .map(|tensor| (tensor.name.replace("weight", "Lambada"), shape(tensor.shape[0], tensor.shape[1])))
        .collect();
    for (name, shape) in linears {
        checkpoint.add(&name, &shape);
    }
}

const SHARD_INDEX: &str = "FormatError::ShardIndex";

fn index(cases: &mut List) {
    let shards = |cases: &mut List, row, variant, says, change: fn(&mut Json)| {
        cases.pack(row, variant, says, move |c| {
            c.split = Some(6);
            c.index = Box::new(change);
        });
    };
    cases.pack(16, "ModelError::MissingFile", &["no model-00002-of-00002.safetensors there", "fetch the missing shard"], |c| {
        c.split = Some(6);
        c.files.push((SECOND, None));
    });
    shards(cases, 16, "ModelError::Index", &["says tensor 'model.norm.weight' is in model-00001-of-00002.safetensors, it is in", "one download"], |index| {
        index["weight_map"][NORM] = FIRST.into();
    });
    shards(cases, 16, "ModelError::Index", &["says tensor 'model.extra' is in model-00001-of-00002.safetensors, which does not hold it"], |index| {
        index["weight_map"]["model.extra"] = FIRST.into();
    });
    shards(cases, 16, "ModelError::Index", &["does not list tensor 'model.norm.weight'"], |index| {
        index["weight_map"].as_object_mut().unwrap().remove(NORM);
    });
    cases.pack(16, "ModelError::TwoFiles", &["tensor 'model.norm.weight' is in both", "one download"], |c| {
        let norm = c.tensor(NORM).clone();
        c.tensors.insert(0, norm);
        c.split = Some(7);
    });
    for file in ["/etc/passwd", "../other/model.safetensors", "a\\b", "..", ".", "", "a\0b"] {
        cases.pack(17, SHARD_INDEX, &["no name of a file beside the index", "tensor 'model.norm.weight'"], move |c| {
            c.split = Some(6);
            c.index = Box::new(move |index| index["weight_map"][NORM] = file.into());
        });
    }
    shards(cases, 18, SHARD_INDEX, &["missing field `weight_map`", "fetch it again"], |index| *index = json!({"metadata": {}}));
    shards(cases, 18, SHARD_INDEX, &["expected an object of tensor names to file names"], |index| index["weight_map"] = json!([]));
    shards(cases, 18, SHARD_INDEX, &["'weight_map' is empty"], |index| index["weight_map"] = json!({}));
    shards(cases, 18, SHARD_INDEX, &["tensor 'model.norm.weight': invalid type: integer `3`, expected a string"], |index| index["weight_map"][NORM] = 3.into());
    for size in [json!("14584"), json!(-1), json!(0.5), json!(1e300)] {
        cases.pack(18, SHARD_INDEX, &["invalid shard index"], move |c| {
            let size = size.clone();
            c.split = Some(6);
            c.index = Box::new(move |index| index["metadata"] = json!({"total_size": size}));
        });
    }
    let text = |cases: &mut List, says, text: String| {
        cases.pack(18, SHARD_INDEX, says, move |c| {
            c.files.push(("model.safetensors", None));
            c.file(INDEX, text.clone());
        });
    };
    text(cases, &["tensor 'a': it is duplicated"], r#"{"weight_map":{"a":"x","a":"y"}}"#.into());
    text(cases, &["EOF while parsing"], r#"{"weight_map":{"a":"#.into());
    text(cases, &["tensor 'a'", "invalid type: sequence"], format!(r#"{{"weight_map":{{"a":{}"#, "[".repeat(200_000)));
    text(cases, &["EOF while parsing a list"], format!(r#"{{"metadata":{{"a":{}"#, "[".repeat(200_000)));
    cases.command(18, "FormatError::Limit", &["the length of the shard index in bytes is 67108865, at most 67108864"], |folder| {
        let arguments = pack_sound(folder, &folder.join("out.gguf"));
        let checkpoint = folder.join("checkpoint");
        std::fs::remove_file(checkpoint.join("model.safetensors")).unwrap();
        sparse(checkpoint.join(INDEX), b"{", (64 << 20) + 1);
        arguments
    });
}

const KEY: &str = "ModelError::Key";

fn config(cases: &mut List) {
    let json = |cases: &mut List, says, text: Vec<u8>| {
        cases.pack(19, "ModelError::Json", says, move |c| c.file("config.json", text.clone()));
    };
    json(cases, &["config.json: invalid JSON: EOF", "copy the file again"], b"{\"hidden_size\":".to_vec());
    json(cases, &["config.json: invalid JSON: NaN at line 1", "Python writes", "set the key to a number"], b"{\"eps\": NaN}".to_vec());
    json(cases, &["config.json: invalid JSON: -Infinity at line 2", "set the key to a number"], b"{\n\"eps\": -Infinity}".to_vec());
    json(cases, &["config.json: invalid JSON: it starts with a byte order mark (UTF-8)", "save it as UTF-8 without one"], b"\xef\xbb\xbf{}".to_vec());
    json(cases, &["config.json: invalid JSON: it starts with a byte order mark (UTF-16)", "save it as UTF-8 without one"], b"\xff\xfe{\0}\0".to_vec());
    json(cases, &["config.json: invalid JSON: recursion limit exceeded"], b"[".repeat(200_000));
    json(cases, &["config.json: invalid JSON: invalid unicode"], b"{\"\xff\": 1}".to_vec());
    cases.pack(19, KEY, &["key '(top level)' is [], expected an object"], |c| c.config = json!([]));
    cases.command(19, "ModelError::TooLarge", &["config.json: has more than 16777216 bytes", "is this the right file?"], |folder| {
        let arguments = pack_sound(folder, &folder.join("out.gguf"));
        sparse(folder.join("checkpoint/config.json"), b"{", (16 << 20) + 1);
        arguments
    });
    let key = |cases: &mut List, row, variant, says, key: &'static str, value: Json| {
        cases.pack(row, variant, says, move |c| match value.is_null() {
            true => drop(c.config.as_object_mut().unwrap().remove(key)),
            false => c.config[key] = value.clone(),
        });
    };
    for name in ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size", "max_position_embeddings"] {
        key(cases, 19, KEY, &["' is missing, expected a whole number", "fix the key"], name, Json::Null);
        for value in [json!(-1), json!(0), json!(1.5), json!(1u64 << 31), json!("32"), json!(true)] {
            key(cases, 19, KEY, &["expected a whole number from 1 to 2147483647", "fix the key"], name, value);
        }
    }
    key(cases, 19, KEY, &["key 'num_key_value_heads' is 3, expected a divisor of num_attention_heads (2)"], "num_key_value_heads", json!(3));
    key(cases, 19, KEY, &["key 'num_attention_heads' is 3, expected a divisor of hidden_size (32)"], "num_attention_heads", json!(3));
    key(cases, 19, KEY, &["key 'head_dim' is 7, expected an even number"], "head_dim", json!(7));
    key(cases, 19, "ModelError::Shape", &["k_proj.weight' has shape [16, 32], config.json makes it [32, 32]"], "head_dim", json!(32));
    key(cases, 19, KEY, &["key 'num_hidden_layers' is 513, expected at most 512"], "num_hidden_layers", json!(513));
    key(cases, 19, KEY, &["key 'vocab_size' is 4194305, expected at most 4194304"], "vocab_size", json!(4194305));
    key(cases, 19, KEY, &["key 'hidden_size' is 1048577, expected at most 1048576"], "hidden_size", json!((1 << 20) + 1));
    key(cases, 19, KEY, &["key 'intermediate_size' is 1048577, expected at most 1048576"], "intermediate_size", json!((1 << 20) + 1));
    key(cases, 19, KEY, &["key 'head_dim' is 524290, expected at most 524288: the 2 heads together"], "head_dim", json!((1 << 19) + 2));
    key(cases, 19, KEY, &["key 'architectures' is missing, expected a list of one name"], "architectures", Json::Null);
    key(cases, 19, KEY, &["key 'hidden_act' is \"gelu\", expected \"silu\""], "hidden_act", json!("gelu"));
    key(cases, 19, KEY, &["key 'partial_rotary_factor' is 0.5, expected 1"], "partial_rotary_factor", json!(0.5));
    key(cases, 19, KEY, &["key 'tie_word_embeddings' is \"yes\", expected true or false"], "tie_word_embeddings", json!("yes"));
    for value in [Json::Null, json!(0), json!(-1e-5), json!("1e-5"), json!(1e-300), json!(1e300)] {
        key(cases, 19, KEY, &["key 'rms_norm_eps' is", "number"], "rms_norm_eps", value);
    }
    key(cases, 20, "ModelError::Shape", &["down_proj.weight' has shape [32, 32], config.json makes it [32, 64]", "--config"], "intermediate_size", json!(64));
    key(cases, 20, "ModelError::Shape", &["embed_tokens.weight' has shape [16, 32], config.json makes it [17, 32]"], "vocab_size", json!(17));
    key(cases, 20, "ModelError::MissingTensor", &["tensor 'model.layers.1.", "config.json promises it", "fetch the checkpoint again"], "num_hidden_layers", json!(2));
    cases.pack(20, "ModelError::SurplusTensors", &["a tensor that the model has no place for: 'model.layers.16.mlp.up_proj.weight'"], |c| {
        c.add("model.layers.16.mlp.up_proj.weight", &[32, 32]);
    });
    for (name, says) in [
        ("model.layers.0.mlp.up_proj.lora_A.weight", &["lora_A", "merge the adapter (LoRA, peft)"][..]),
        ("model.layers.0.mlp.up_proj.base_layer.weight", &["base_layer", "merge the adapter (LoRA, peft)"]),
        ("model.layers.0.mlp.up_proj.qweight", &["qweight", "already quantized"]),
        ("model.layers.0.mlp.up_proj.bias", &["up_proj.bias", "\"mlp_bias\": true"]),
        ("model.layers.0.mlp.up_proj.Lambada", &["up_proj.Lambada", "--trained-as ultraquantv3"]),
    ] {
        cases.pack(20, "ModelError::SurplusTensors", says, move |c| {
            c.add(name, &[1]);
        });
    }
    names(cases);
    not_latent(cases);
    key(cases, 21, KEY, &["key 'group_size' is 0, expected a whole number"], "group_size", json!(0));
    key(cases, 21, KEY, &["key 'group_size' is 48, expected a divisor of the 32 x 32 weights of model.layers.0.self_attn.q_proj"], "group_size", json!(48));
    key(cases, 21, KEY, &["key 'group_size' is 2147483647, expected a divisor"], "group_size", json!(2147483647));
    key(cases, 21, KEY, &["key 'granularity' is \"per_head\", expected per_group, per_channel or per_tensor"], "granularity", json!("per_head"));
    cases.pack(21, "PackError::Lossy", &["loses too much", "allow it with --max-nmse", "leave --type out"], |c| {
        c.config["group_size"] = 16.into();
        c.arguments("--type q4_0");
    });
    cases.pack(21, "PackError::NoBlock", &["7 of the linears cannot be stored as TQ2_0 (a row must be a multiple of 256)", "--tensor-type"], |c| {
        c.arguments("--type tq2_0");
    });
    key(cases, 22, "ModelError::MissingSettings", &["'ultraquantv2' needs settings that are missing: eps", "give --granularity", "--lambda"], "eps", Json::Null);
    cases.pack(23, "ModelError::NotTrained", &["nothing says that it was trained to be ternary", "say so with --trained-as NAME: ultraquantv2"], |c| {
        for key in ["quant_method", "w_bits"] {
            c.config.as_object_mut().unwrap().remove(key);
        }
    });
    key(cases, 22, KEY, &["key 'eps' is 1e39, expected a number that fits BF16"], "eps", json!(1e39));
    for value in [json!(-0.001), json!("0.001")] {
        key(cases, 22, KEY, &["key 'eps' is", "number"], "eps", value);
    }
    for (method, says) in [
        ("ultraquant", &["method 'ultraquant' cannot be packed", "sign of each activation", "train with ultraquantv2"][..]),
        ("ultraquantv4", &["method 'ultraquantv4'", "supported: ultraquantv2"]),
        ("dlt", &["method 'dlt' cannot be packed", "code times scale plus gamma", "supported: ultraquantv2"]),
        ("gptq", &["method 'gptq'", "unknown; supported: ultraquantv2"]),
    ] {
        key(cases, 23, "ModelError::Method", says, "quant_method", method.into());
    }
    for (method, bits, says) in [
        ("ultraquantv2", json!(2), &["with 'w_bits' 2 its weights are not ternary", "take the checkpoint"][..]),
        ("sherry", json!(1), &["with 'w_bits' 1 its weights are binary", "take the checkpoint"]),
        ("seq", json!(2), &["with 'w_bits' 2 its weights have four levels, -3u, -u, u and 3u", "take the checkpoint"]),
        ("lsq", json!("0"), &["with 'w_bits' \"0\" its weights are not ternary", "take the checkpoint"]),
    ] {
        cases.pack(23, "ModelError::Method", says, move |c| {
            c.config["quant_method"] = method.into();
            c.config["w_bits"] = bits.clone();
        });
    }
    cases.pack(23, "ModelError::Method", &["method 'seq' cannot be packed: with 'w_bits' 2", "take the checkpoint"], |c| {
        c.config.as_object_mut().unwrap().remove("quant_method");
        c.config["w_bits"] = 2.into();
    });
    sherry(cases);
    bitnet(cases);
    for method in ["lsq", "seq"] {
        key(cases, 24, "ModelError::MissingTensor", &[".weight_clip_val' is missing", "learn one number a row", "--trained-as NAME"], "quant_method", method.into());
    }
    cases.pack(24, "ModelError::SurplusTensors", &["up_proj.weight_clip_val'", "belongs to lsq or seq (ParetoQ)", "--trained-as seq"], |c| {
        c.add("model.layers.0.mlp.up_proj.weight_clip_val", &[32, 1]);
    });
    cases.pack(24, "ModelError::Shape", &["down_proj.weight_clip_val' has shape [1, 32], config.json makes it [32, 1]"], |c| clipped(c, |rows| vec![1, rows]));
    cases.pack(12, "PackError::NotFinite", &["v_proj.weight_clip_val' is NaN at row 3, column 0"], |c| {
        clipped(c, |rows| vec![rows, 1]);
        c.tensor("model.layers.0.self_attn.v_proj.weight_clip_val").set(3, f32::NAN);
    });
    key(cases, 24, "ModelError::MissingTensor", &["down_proj.Lambada' is missing", "--trained-as ultraquantv2"], "quant_method", json!("ultraquantv3"));
    cases.pack(24, "ModelError::Shape", &["down_proj.Lambada' has shape [1, 32], config.json makes it [32, 32]"], |c| learned(c, |_, columns| vec![1, columns]));
    key(cases, 25, "ModelError::MissingTensor", &["tensor 'lm_head.weight' is missing", "\"tie_word_embeddings\": true"], "tie_word_embeddings", json!(false));
    for (name, says) in [
        ("Gemma3ForCausalLM", &["architecture Gemma3ForCausalLM is not supported", "its activation and its norms", "supported: Llama"][..]),
        ("Qwen3MoeForCausalLM", &["architecture Qwen3MoeForCausalLM is not supported", "a mixture of experts"]),
        ("GPT2LMHeadModel", &["architecture GPT2LMHeadModel is not supported", "supported: Llama"]),
    ] {
        key(cases, 26, "ModelError::Architecture", says, "architectures", json!([name]));
    }
    cases.pack(26, "ModelError::Architecture", &["architecture BitNetForCausalLM is not supported", "its activation is relu2", "take a model that was trained with silu"], |c| {
        c.config["architectures"] = json!(["BitNetForCausalLM"]);
        c.config["hidden_act"] = "relu2".into();
    });
    cases.pack(26, "PackError::LostBiases", &["llama.cpp's `qwen3` would lose the biases of o_proj, gate_proj, up_proj and down_proj, up to", "with --drop-biases"], |c| {
        c.config["architectures"] = json!(["Qwen3ForCausalLM"]);
        for name in ["q", "k"] {
            c.add(&format!("model.layers.0.self_attn.{name}_norm.weight"), &[16]);
        }
    });
    cases.pack(26, KEY, &["key 'head_dim' is 8, expected hidden_size (32) over the 2 heads: llama.cpp's `bitnet`"], |c| {
        c.config["architectures"] = json!(["BitnetForCausalLM"]);
        c.config["head_dim"] = 8.into();
    });
    cases.pack(26, KEY, &["key 'scale_emb' is missing, expected a positive number"], |c| c.config["architectures"] = json!(["MiniCPMForCausalLM"]));
    for (scaling, says) in [
        (json!({"type": "yarn", "factor": 2.0}), &["key 'rope_scaling.rope_type' is \"yarn\"", "\"linear\" or \"llama3\""][..]),
        (json!({"rope_type": "llama3", "factor": 8.0}), &["key 'rope_scaling.low_freq_factor' is missing"]),
        (json!({"rope_type": "linear"}), &["key 'rope_scaling.factor' is missing, expected a positive number"]),
        (json!({"rope_type": "linear", "factor": -1}), &["key 'rope_scaling.factor' is -1"]),
        (json!({"factor": 2.0}), &["key 'rope_scaling.rope_type' is missing"]),
        (json!({"rope_type": "linear", "type": "llama3", "factor": 2.0}), &["key 'rope_scaling.type' is \"llama3\", expected \"linear\", as rope_scaling.rope_type is", "fix the key"]),
        (json!({"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}), &["key 'rope_scaling.partial_rotary_factor' is 0.5, expected 1"]),
        (json!({"full_attention": {"type": "linear", "factor": 2.0}}), &["key 'rope_scaling.full_attention' is {", "expected one rotation for all layers"]),
        (json!("llama3"), &["key 'rope_scaling' is \"llama3\", expected an object"]),
        (json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0, "original_max_position_embeddings": 64}),
            &["key 'rope_scaling.high_freq_factor' is 1.0, expected more than low_freq_factor"]),
    ] {
        key(cases, 27, KEY, says, "rope_scaling", scaling);
    }
    for (parameters, says) in [
        (json!({"full_attention": {"rope_theta": 500000.0, "rope_type": "default"}}), &["key 'rope_parameters.full_attention' is {", "set its keys in 'rope_parameters' itself"][..]),
        (json!({"rope_theta": 1e4, "sliding_attention": {}}), &["key 'rope_parameters.sliding_attention' is {}"]),
        (json!({"rope_theta": 1e4, "partial_rotary_factor": 0.25}), &["key 'rope_parameters.partial_rotary_factor' is 0.25, expected 1"]),
    ] {
        key(cases, 27, KEY, says, "rope_parameters", parameters);
    }
}

/// Make it a checkpoint of LSQ; `shape` gives the shape of the clipping ranges.
fn clipped(checkpoint: &mut Checkpoint, shape: impl Fn(usize) -> Vec<usize>) {
    checkpoint.config["quant_method"] = "lsq".into();
    let linears = checkpoint.tensors.iter().filter(|tensor| tensor.name.contains("_proj"));
    let ranges: Vec<_> = linears.map(|tensor| (tensor.name.replace("weight", "weight_clip_val"), shape(tensor.shape[0]))).collect();
    for (name, shape) in ranges {
        checkpoint.add(&name, &shape);
    }
}

fn sherry(cases: &mut List) {
    let with = |cases: &mut List, variant, says, change: fn(&mut Checkpoint)| {
        cases.pack(23, variant, says, move |c| {
            c.config["quant_method"] = "sherry".into();
            change(c);
        });
    };
    with(cases, KEY, &["key 'N' is 2, expected 3: Sherry is packed where 3 of 4"], |c| c.config["N"] = 2.into());
    with(cases, KEY, &["key 'M' is 8, expected 4"], |c| c.config["M"] = 8.into());
    with(cases, KEY, &["key 'group_size' is 2, expected a multiple of 4"], |c| c.config["group_size"] = 2.into());
    with(cases, "ModelError::MissingSettings", &["'sherry' needs settings that are missing: granularity", "give --granularity"], |c| {
        c.config.as_object_mut().unwrap().remove("granularity");
    });
    with(cases, "PackError::InfiniteScale", &["down_proj.weight' has an infinite scale in row 0", "leaves F16", "take a checkpoint that was trained in bfloat16"], |c| {
        c.config["granularity"] = "per_tensor".into();
        let tensor = c.tensor("model.layers.0.mlp.down_proj.weight");
        tensor.dtype = "F16".into();
        for (index, number) in tensor.bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *number = half::f16::from_f32(100.0 * (1 + index * 37 % 101) as f32).to_le_bytes();
        }
    });
}

fn bitnet(cases: &mut List) {
    let with = |cases: &mut List, says, section: Json| {
        cases.pack(23, KEY, says, move |c| {
            c.config.as_object_mut().unwrap().remove("quant_method");
            c.config["quantization_config"] = section.clone();
        });
    };
    let online = json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"});
    let changed = |key: &str, value: Json| {
        let mut section = online.clone();
        section[key] = value;
        section
    };
    let both = online.clone();
    cases.pack(23, KEY, &["key 'quant_method' is \"ultraquantv2\", expected none beside 'quantization_config'", "say which is right with --trained-as"], move |c| c.config["quantization_config"] = both.clone());
    with(cases, &["key 'quantization_config.use_rms_norm' is true, expected false: no graph"], changed("use_rms_norm", true.into()));
    with(cases, &["key 'quantization_config.linear_class' is \"bitlinear\", expected \"autobitlinear\", as of latent weights", "say so with --trained-as bitnet"], changed("linear_class", "bitlinear".into()));
    with(cases, &["key 'quantization_config.linear_class' is \"quadlinear\", expected \"autobitlinear\""], changed("linear_class", "quadlinear".into()));
    with(cases, &["key 'quantization_config.quantization_mode' is missing, expected \"online\""], changed("quantization_mode", Json::Null));
    with(cases, &["key 'quantization_config.modules_to_not_convert' is [\"lm_head\",\"q_proj\"], expected null or"], changed("modules_to_not_convert", json!(["lm_head", "q_proj"])));
}

/// Names that a wrapper changed, and that are not all there without it, either.
fn names(cases: &mut List) {
    let rename = |c: &mut Checkpoint, rename: &dyn Fn(&str) -> String| {
        c.tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
    };
    cases.pack(20, "ModelError::MissingTensor", &["tensor 'model.norm.weight' is missing; the names have 'module.' (left by DistributedDataParallel", "fetch the checkpoint again"], move |c| {
        c.tensors.retain(|tensor| tensor.name != NORM);
        rename(c, &|name| format!("module.{name}"));
    });
    cases.pack(20, "ModelError::MissingTensor", &["tensor 'model.norm.weight' is missing; config.json promises it", "fetch the checkpoint again"], move |c| {
        c.tensors.retain(|tensor| tensor.name != NORM);
        rename(c, &|name| name.trim_start_matches("model.").into());
    });
    cases.pack(20, "ModelError::SurplusTensors", &["base_model.model.model.layers.0.mlp.down_proj.base_layer.weight'", "merge the adapter (LoRA, peft)"], move |c| {
        rename(c, &|name| format!("base_model.model.{}", name.replace("_proj.weight", "_proj.base_layer.weight")));
    });
    cases.pack(20, "ModelError::SurplusTensors", &["2 tensors that the model has no place for: 'module.extra', 'other'", "--config"], move |c| {
        rename(c, &|name| format!("module.{name}"));
        c.add("module.extra", &[1]);
        c.add("other", &[1]);
    });
    cases.pack(25, "ModelError::Shape", &["lm_head.weight' has shape [17, 32], config.json makes it [16, 32]"], |c| {
        c.add("lm_head.weight", &[17, 32]);
    });
    cases.command(40, "ModelError::MissingFile", &["no model.safetensors", "it holds an adapter alone (peft)", "merge it into its model"], |folder| {
        let adapter = folder.join("adapter");
        std::fs::create_dir(&adapter).unwrap();
        std::fs::write(adapter.join("adapter_config.json"), "{}").unwrap();
        vec!["pack".into(), text_of(&adapter), text_of(&folder.join("out.gguf"))]
    });
    cases.command(40, "ModelError::MissingFile", &["no model.safetensors", "name the checkpoint below it: ", "/models--org--name/snapshots/0123"], |folder| {
        let repository = folder.join("models--org--name");
        Checkpoint::sound().write(&repository.join("snapshots/0123"));
        vec!["pack".into(), text_of(&repository), text_of(&folder.join("out.gguf"))]
    });
}

/// Weights that are rounded already, and other families of models.
fn not_latent(cases: &mut List) {
    const NOT_LATENT: &str = "ModelError::NotLatent";
    const LATENT: &str = "take the latent checkpoint";
    /// Give the linears that are `wanted` the numbers that `number` makes of index and number.
    fn fill(c: &mut Checkpoint, wanted: fn(&str) -> bool, number: fn(usize, f32) -> f32) {
        for tensor in c.tensors.iter_mut().filter(|tensor| tensor.name.ends_with("_proj.weight") && wanted(&tensor.name)) {
            for (index, w) in tensor.floats().into_iter().enumerate() {
                tensor.set(index, number(index, w));
            }
        }
    }
    let ternary = |i, w: f32| if i % 3 == 0 { 0.0 } else { 0.25f32.copysign(w) };
    const AS_THEY_ARE: &str = "leave --trained-as out: they are packed as they are";
    cases.pack(23, NOT_LATENT, &["all 7 linears hold only -s, 0 and +s, with one s for at least 32 weights", "they are ternary already", "scales of 0.", AS_THEY_ARE], move |c| {
        fill(c, |_| true, ternary);
        c.arguments("--trained-as ultraquantv2");
    });
    cases.pack(23, NOT_LATENT, &["all 7 linears hold only -s, 0 and +s", "their biases would be added to a dead zone that is in them already", AS_THEY_ARE], move |c| {
        fill(c, |_| true, ternary);
        c.add("model.layers.0.mlp.up_proj.bias", &[32]);
        c.arguments("--trained-as ultraquantv2");
    });
    cases.pack(23, NOT_LATENT, &["2 linears hold only -s, 0 and +s", "5 hold other weights: ", "(was a LoRA adapter merged", LATENT], move |c| fill(c, |name| name.contains("k_proj") || name.contains("v_proj"), ternary));
    cases.pack(12, "PackError::NotFinite", &["tensor 'model.layers.0.self_attn.q_proj.weight' is inf at row 0, column 1"], move |c| {
        fill(c, |_| true, ternary);
        fill(c, |_| true, |_, w| if w == 0.0 { 0.0 } else { f32::INFINITY.copysign(w) });
    });
    cases.pack(12, "PackError::NotFinite", &["tensor 'model.layers.0.self_attn.q_proj.weight' is NaN at row 1, column 0"], move |c| {
        // A linear that is kept as it is.
        fill(c, |name| name != QUERY, ternary);
        c.tensor(QUERY).set(32, f32::NAN);
    });
    cases.pack(23, NOT_LATENT, &["one linear holds only -s, 0 and +s", "'model.layers.0.self_attn.q_proj.weight', 6 hold other weights"], move |c| fill(c, |name| name == QUERY, ternary));
    cases.pack(23, NOT_LATENT, &["all 7 linears hold four levels", "SEQ or ParetoQ at 2 bits", LATENT], |c| fill(c, |_| true, |i, w| w.signum() * [0.1, 0.3][i / 3 % 2]));
    cases.pack(23, NOT_LATENT, &["all 7 linears hold one magnitude and no zeros", "binary (1 bit)", LATENT], |c| fill(c, |_| true, |_, w| 0.1f32.copysign(w)));
    cases.pack(23, NOT_LATENT, &["all 7 linears hold almost, but not quite, only -s, 0 and +s", "at row 0, column 1", "AngelSlim's w + (q - w)"], |c| {
        fill(c, |_| true, |i, w| if i % 3 == 2 { 0.0 } else { (0.25 + 0.004 * (i % 5) as f32).copysign(w) });
    });
    cases.pack(23, NOT_LATENT, &["all 7 linears hold almost, but not quite, only -s, 0 and +s", "was a LoRA adapter merged into ternary weights?"], |c| {
        fill(c, |_| true, |i, w| if i % 3 == 2 { 0.002 * (i % 7) as f32 } else { (0.25 + 0.004 * (i % 5) as f32).copysign(w) });
    });
    for (name, says) in [
        ("model.layers.0.mlp.up_proj.hadamard_signs", &["'model.layers.0.mlp.up_proj.hadamard_signs' says that the weights are of a rotated basis", "take a checkpoint that was not rotated"][..]),
        ("rotation.weight", &["'rotation.weight' says that the weights are of a rotated basis"]),
        ("model.layers.0.mlp.up_proj.weight_quantizer.scale", &["a quantizer of AngelSlim's own training", "take what the end of that training saves"]),
        ("model.layers.0.mlp.up_proj.rms_norm.weight", &["a norm of a single linear, as BitNet has them with use_rms_norm", "take a model that was trained without"]),
        ("model.layers.0.mlp.up_proj.gamma", &["up_proj.gamma' is the shift of DLT", "code times scale plus gamma"]),
    ] {
        cases.pack(23, NOT_LATENT, says, move |c| {
            c.add(name, &[1]);
        });
    }
    for (key, value, says) in [
        ("rotation_config", json!({"kind": "quarot"}), &["'rotation_config' says that the weights are of a rotated basis"][..]),
        ("quantization_config", json!({"online": {"use_hadamard": true}}), &["'quantization_config.online.use_hadamard' says"]),
    ] {
        cases.pack(23, NOT_LATENT, says, move |c| c.config[key] = value.clone());
    }
    fn packed(c: &mut Checkpoint) {
        let tensor = c.tensor(QUERY);
        (tensor.dtype, tensor.shape) = ("U8".into(), vec![8, 32]);
        tensor.bytes.truncate(8 * 32);
    }
    const SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";
    cases.pack(23, NOT_LATENT, &["one linear holds U8, without a tensor 'model.layers.0.self_attn.q_proj.weight_scale'", LATENT], packed);
    cases.pack(23, NOT_LATENT, &["U8 with a weight_scale, as packed BitNet", "'quantization_config' of config.json, which does not name BitNet"], |c| {
        packed(c);
        c.add(SCALE, &[1]);
    });
    cases.pack(23, NOT_LATENT, &["one linear holds the codes of packed BitNet", "they are ternary already, and no latent weights", AS_THEY_ARE], |c| {
        packed(c);
        c.add(SCALE, &[1]);
        c.config["quantization_config"] = json!({"quant_method": "bitnet"});
        c.arguments("--trained-as ultraquantv2");
    });
    for (section, says) in [
        (json!({"quant_method": "bitnet", "use_rms_norm": true}), &["key 'quantization_config.use_rms_norm' is true, expected false: no graph of llama.cpp has a norm before every linear"][..]),
        (json!({"quant_method": "bitnet", "linear_class": "otherlinear"}), &["key 'quantization_config.linear_class' is \"otherlinear\", expected \"bitlinear\" or \"autobitlinear\""]),
        (json!({"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}), &["key 'quantization_config.quantization_mode' is \"online\", expected \"offline\", as the weights are packed"]),
        (json!({"quant_method": "bitnet", "quantization_mode": 7}), &["key 'quantization_config.quantization_mode' is 7, expected \"offline\""]),
    ] {
        cases.pack(23, KEY, says, move |c| {
            packed(c);
            c.add(SCALE, &[1]);
            c.config["quantization_config"] = section.clone();
        });
    }
    /// The sound packed checkpoint, broken by `change`.
    fn of_bitnet(c: &mut Checkpoint, change: impl Fn(&mut Checkpoint)) {
        *c = Checkpoint::of("families/bitnet-packed");
        change(c);
    }
    cases.pack(23, "PackError::Code", &["tensor 'model.layers.0.self_attn.q_proj.weight' has code 3 at row 130, column 5, where BitNet has 0, 1 and 2", "fetch it again"], |c| {
        of_bitnet(c, |c| c.tensor(QUERY).bytes[2 * 256 + 5] |= 3 << 4);
    });
    for (scale, says) in [
        (0.0, &["q_proj.weight_scale' is 0, expected a positive number", "fetch the checkpoint again"][..]),
        (-2.0, &["q_proj.weight_scale' is -2, expected a positive number"]),
        (f32::INFINITY, &["q_proj.weight_scale' is inf, expected a positive number"]),
    ] {
        cases.pack(23, "ModelError::Scale", says, move |c| of_bitnet(c, |c| c.tensor(SCALE).set(0, scale)));
    }
    cases.pack(14, "ModelError::Shape", &["q_proj.weight_scale' has shape [256], config.json makes it [1]"], |c| of_bitnet(c, |c| c.tensor(SCALE).reshape(&[256])));
    cases.pack(14, "ModelError::Shape", &["q_proj.weight' has shape [32, 512], config.json makes it [64, 256]"], |c| of_bitnet(c, |c| c.tensor(QUERY).shape = vec![32, 512]));
}

fn tokenizer(cases: &mut List) {
    cases.pack(28, "TokenizerError::Missing", &["neither tokenizer.json nor tokenizer.model", "--tokenizer"], |c| c.files.push(("tokenizer.json", None)));
    let json = |cases: &mut List, says, text: Vec<u8>| {
        cases.pack(28, "TokenizerError::Json", says, move |c| c.file("tokenizer.json", text.clone()));
    };
    json(cases, &["tokenizer.json: EOF while parsing", "copy the file again"], b"{\"model\":{".to_vec());
    json(cases, &["tokenizer.json: missing field `model`"], b"{}".to_vec());
    json(cases, &["tokenizer.json: recursion limit exceeded"], [&b"{\"pre_tokenizer\":"[..], &b"[".repeat(200_000)].concat());
    json(cases, &["tokenizer.json: EOF while parsing a list"], [&b"{\"decoder\":"[..], &b"[".repeat(200_000)].concat());
    json(cases, &["tokenizer.json: invalid type: sequence, expected a string"], [&b"{\"model\":{\"merges\":"[..], &b"[".repeat(200_000)].concat());
    let change = |cases: &mut List, row, variant, says, change: fn(&mut Json)| {
        cases.pack(row, variant, says, move |c| change(&mut c.tokenizer));
    };
    change(cases, 28, "TokenizerError::DuplicateId", &["token 3 is", "\"x\"", "ids must be unique"], |json| json["model"]["vocab"]["x"] = 3.into());
    cases.pack(28, "TokenizerError::DuplicateText", &["the text \"a\" belongs to token 2 and to token 9", "texts must be unique"], |c| {
        c.file("tokenizer_config.json", r#"{"added_tokens_decoder":{"9":{"content":"a"}}}"#);
    });
    change(cases, 28, "TokenizerError::NoRow", &["token \"x\" has id 16, the embedding has 16 rows", "--tokenizer"], |json| json["model"]["vocab"]["x"] = 16.into());
    change(cases, 28, "TokenizerError::NoRow", &["token \"x\" has id 18446744073709551615"], |json| json["model"]["vocab"]["x"] = u64::MAX.into());
    change(cases, 28, "TokenizerError::MergeOfUnknown", &["merge 4 (\"a\" + \"z\") needs the token \"z\"", "copy the file again"], |json| {
        json["model"]["merges"].as_array_mut().unwrap().push("a z".into());
    });
    change(cases, 28, "TokenizerError::MergeOfUnknown", &["merge 4 (\"c\" + \"b\") needs the token \"cb\""], |json| {
        json["model"]["merges"].as_array_mut().unwrap().push(json!(["c", "b"]));
    });
    change(cases, 28, "TokenizerError::Key", &["model.vocab: found no token"], |json| json["model"]["vocab"] = json!({}));
    change(cases, 28, "TokenizerError::Unsupported", &["a model of type \"Unigram\" is not supported", "--tokenizer"], |json| json["model"]["type"] = "Unigram".into());
    change(cases, 28, "TokenizerError::Unsupported", &["normalizer {\"type\":\"Lowercase\"} is not supported", "--tokenizer"], |json| json["normalizer"] = json!({"type": "Lowercase"}));
    change(cases, 29, "TokenizerError::UnknownPre", &["pre_tokenizer [\"x+\"]", "--tokenizer-pre NAME"], |json| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "x+".into();
    });
    cases.pack(29, "TokenizerError::UnknownPreName", &["--tokenizer-pre: llama.cpp has no pre-tokenizer 'x'; name one that it has: llama-bpe"], |c| c.arguments("--tokenizer-pre x")).names_file = false;
    let settings = |cases: &mut List, variant, says, text: &'static str| {
        cases.pack(30, variant, says, move |c| c.file("tokenizer_config.json", text));
    };
    settings(cases, "TokenizerError::UnknownSpecial", &["bos_token is \"<s>\", which is no token of the vocabulary", "copy the files again"], r#"{"bos_token": "<s>"}"#);
    settings(cases, "TokenizerError::Key", &["chat_template: found 3, expected a string"], r#"{"chat_template": 3}"#);
    settings(cases, "TokenizerError::Key", &["eos_token: found [\"x\"], expected a string"], r#"{"eos_token": ["x"]}"#);
    settings(cases, "TokenizerError::Key", &["add_bos_token: found \"no\", expected true or false"], r#"{"add_bos_token": "no"}"#);
    cases.pack(30, "TokenizerError::SpecialOutOfRange", &["eos_token_id is 99, the vocabulary has 16 tokens", "config.json"], |c| c.config["eos_token_id"] = 99.into());
    cases.pack(30, "ModelError::Key", &["key 'eos_token_id' is 4294967296, expected a token id"], |c| c.config["eos_token_id"] = json!(1u64 << 32));
    cases.pack(30, "TokenizerError::NoSpecial", &["no token ends a text"], |c| c.config["eos_token_id"] = json!(-1));
    cases.pack(30, "TokenizerError::NoSpecial", &["no token ends a text", "name eos_token in tokenizer_config.json"], |c| {
        c.config.as_object_mut().unwrap().remove("eos_token_id");
    });
    cases.pack(30, "TokenizerError::TooLarge", &["chat_template has 1048577 bytes, the limit is 1048576"], |c| {
        c.file("chat_template.jinja", "x".repeat((1 << 20) + 1));
    });
    cases.command(30, "TokenizerError::TooLarge", &["the file has 268435457 bytes, the limit is 268435456"], |folder| {
        let arguments = pack_sound(folder, &folder.join("out.gguf"));
        sparse(folder.join("checkpoint/tokenizer.json"), b"{", (256 << 20) + 1);
        arguments
    });
    cases.command(28, "TokenizerError::Io", &["tokenizer.json: ", "check the name"], |folder| {
        let mut arguments = pack_sound(folder, &folder.join("out.gguf"));
        arguments.extend(["--tokenizer".into(), text_of(&folder.join("none/tokenizer.json"))]);
        arguments
    });
    cases.command(28, "TokenizerError::NotAFile", &["special_tokens_map.json: found something that is not a regular file", "--tokenizer"], |folder| {
        let arguments = pack_sound(folder, &folder.join("out.gguf"));
        std::fs::create_dir(folder.join("checkpoint/special_tokens_map.json")).unwrap();
        arguments
    });
}

/// tokenizer.model: pieces, then the specifications of trainer and normalizer.
fn model(pieces: &[(&str, u8)], trainer: &[u8]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8][..], bytes].concat();
    let mut model = vec![];
    for (text, kind) in pieces {
        let piece = [field(1, text.as_bytes()), vec![3 << 3, *kind]].concat();
        model.extend(field(1, &piece));
    }
    model.extend(field(2, trainer));
    model.extend(field(3, &[]));
    model
}

fn sentencepiece(cases: &mut List) {
    let with = |cases: &mut List, variant, says, bytes: Vec<u8>| {
        cases.pack(29, variant, says, move |c| {
            c.files.push(("tokenizer.json", None));
            c.file("tokenizer.model", bytes.clone());
        });
    };
    const BPE: &[u8] = &[3 << 3, 2];
    const PROTOBUF: &str = "TokenizerError::Protobuf";
    with(cases, PROTOBUF, &["byte 2: a field goes past the end of its message", "copy the file again"], vec![0x0a, 0x7f]);
    with(cases, PROTOBUF, &["byte 0: a varint does not fit 64 bits"], vec![0xff; 11]);
    with(cases, PROTOBUF, &["a field has an unknown wire type"], vec![0x0f]);
    with(cases, PROTOBUF, &["no piece found"], vec![]);
    with(cases, PROTOBUF, &["the piece is not UTF-8"], vec![0x0a, 3, 0x0a, 1, 0xff]);
    with(cases, "TokenizerError::Unsupported", &["a SentencePiece model of type UNIGRAM is not supported", "--tokenizer"], model(&[("a", 1)], &[]));
    with(cases, "TokenizerError::Unsupported", &["a tiktoken vocabulary is not supported", "take the tokenizer.json"], b"aGVsbG8= 0\n".to_vec());
    with(cases, "TokenizerError::NoByteToken", &["the token \"<0x00>\" is missing", "--tokenizer"], model(&[("a", 1)], BPE));
    with(cases, "TokenizerError::DuplicateText", &["the text \"a\" belongs to token 0 and to token 1"], model(&[("a", 1), ("a", 1)], BPE));
    let many: Vec<String> = (0..17).map(|i| format!("t{i}")).collect();
    let many: Vec<_> = many.iter().map(|text| (text.as_str(), 1)).collect();
    with(cases, "TokenizerError::NoRow", &["token \"t16\" has id 16, the embedding has 16 rows"], model(&many, BPE));
}

/// Types chosen by their KLD.
fn max_kld(cases: &mut List) {
    fn pack(input: &Path, folder: &Path, text: &[u8], options: &str) -> Vec<String> {
        let path = folder.join("text.txt");
        std::fs::write(&path, text).unwrap();
        let arguments = ["pack", &text_of(input), &text_of(&folder.join("out.gguf")), "--text", &text_of(&path)].map(String::from);
        arguments.into_iter().chain(options.split_whitespace().map(String::from)).collect()
    }
    let long: Vec<u8> = b"abcdefghi ".repeat(20);
    for (variant, says, text, options) in [
        ("ChooseError::NotUtf8", &["text.txt: byte 3 is not UTF-8", "give a text with --text"][..], b"ab \xff".to_vec(), "--max-kld 1"),
        ("ChooseError::TooShort", &["the text has 9 tokens for this model", "needs 64 at least", "give a longer one"], b"efghiefghi".to_vec(), "--max-kld 1"),
        ("TextError::TooShort", &["the text is too short", "give a longer one"], vec![], "--max-kld 1"),
        ("TextError::TooShort", &["--max-kld measures on a text", "give a longer one"], b"XYZ XYZ".to_vec(), "--max-kld 1"),
        ("ChooseError::Budget", &["no types have a mean KLD of --max-kld 1e-12 or less", "text.txt", "leave out --type"], long.clone(), "--max-kld 1e-12 --type q4_0"),
    ] {
        cases.command(39, variant, says, move |folder| {
            let input = folder.join("checkpoint");
            Checkpoint::sound().write(&input);
            pack(&input, folder, &text, options)
        });
    }
    cases.command(40, "ChooseError::Read", &["none.txt: No such file", "check the name that you gave with --text"], |folder| {
        let mut arguments = pack_sound(folder, &folder.join("out.gguf"));
        arguments.extend(["--max-kld".into(), "1".into(), "--text".into(), text_of(&folder.join("none.txt"))]);
        arguments
    });
    cases.command(39, "OutputError::SameFile", &["is one of the input's files", "name another output"], |folder| {
        let text = folder.join("text.txt");
        std::fs::write(&text, "abc").unwrap();
        let mut arguments = pack_sound(folder, &text);
        arguments.extend(["--force".into(), "--max-kld".into(), "1".into(), "--text".into(), text_of(&text)]);
        arguments
    });
    let gguf = |cases: &mut List, variant, says, change: fn(&mut Gguf)| {
        cases.command(37, variant, says, move |folder| {
            let mut file = Gguf::sound();
            change(&mut file);
            let input = folder.join("in.gguf");
            std::fs::write(&input, file.bytes()).unwrap();
            pack(&input, folder, b"abc", "--max-kld 1")
        });
    };
    gguf(cases, "ChooseError::Engine", &["--max-kld measures with our own engine", "key 'general.architecture' is \"other\" (string), expected", "convert the model again"], |file| {
        file.set("general.architecture", Value::String("other".into()));
    });
    gguf(cases, "ChooseError::Text", &["--max-kld measures on a text", "key 'tokenizer.ggml.tokens' is missing", "convert the model again"], |file| {
        file.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    });
}

/// A GGUF file with a matrix of these rows, packed with these options.
fn pack_gguf(cases: &mut List, variant: &'static str, says: &'static [&'static str], options: &'static str, ty: BlockType, rows: Vec<Vec<u8>>) {
    cases.command(37, variant, says, move |folder| {
        let mut file = Gguf { keys: vec![], tensors: vec![] };
        file.set("general.architecture", Value::String("llama".into()));
        let shape = vec![ty.weights() as u64, rows.len() as u64];
        file.tensors.push((TensorInfo { name: "blk.0.ffn_up.weight".into(), ty, shape }, rows.concat()));
        let input = folder.join("in.gguf");
        std::fs::write(&input, file.bytes()).unwrap();
        let arguments = ["pack".into(), text_of(&input), text_of(&folder.join("out.gguf"))].into_iter();
        arguments.chain(options.split_whitespace().map(String::from)).collect()
    });
}

/// GGUF files that `pack` does not take.
fn gguf_in(cases: &mut List) {
    const ONE: [u8; 2] = [0x00, 0x3c]; // 1.0 in f16
    let block = |code: u8| [&ONE[..], &[code; 32]].concat();
    cases.command(37, "PackError::Rotated", &["'prism.hadamard.size' says that its weights are rotated", "take a file without rotation"], |folder| {
        let mut file = Gguf::sound();
        file.set("prism.hadamard.size", Value::U32(64));
        let input = folder.join("in.gguf");
        std::fs::write(&input, file.bytes()).unwrap();
        vec!["pack".into(), text_of(&input), text_of(&folder.join("out.gguf"))]
    });
    let ordinary = (0..4).map(|row| (0..32).fold(ONE.to_vec(), |mut block, code| { block.push(code * 5 + row); block }));
    pack_gguf(cases, "PackError::NoTernary", &["in.gguf: none of its 1 matrices is ternary or of four levels", "use the file as it is"], "", BlockType::Q8_0, ordinary.collect());
    pack_gguf(cases, "PackError::FourLevel", &["tensor 'blk.0.ffn_up.weight' has four levels", "which TQ2_0 does not hold; leave --type out"], "--type tq2_0", BlockType::Q4_0, vec![[&ONE[..], &[0x5b; 16]].concat(); 2]);
    let mut rows = vec![block(1); 128];
    rows[1] = block(5);
    pack_gguf(cases, "PackError::NotTernary", &["tensor 'blk.0.ffn_up.weight' is ternary, but not at row 1, column 0", "take the file before"], "", BlockType::Q8_0, rows);
    pack_gguf(cases, "PackError::Unreadable", &["tensor 'blk.0.ffn_up.weight' is PQ2_0, which llama.cpp does not read", "fetch a file"], "", BlockType::PQ2_0, vec![block(0xff); 2]);
}

fn gguf(cases: &mut List) {
    gguf_in(cases);
    const VERSION: &str = "FormatError::Version";
    let number = |id: u32, value: &[u8]| Raw::default().key("name", id, value);
    cases.inspect(31, TRUNCATED, &["the version needs 4 bytes at offset 4, the file ends at 4", "fetch"], b"GGUF".to_vec());
    cases.inspect(31, "FormatError::Magic", &["not a GGUF file: it starts with nothing", "name a GGUF file"], vec![]);
    cases.inspect(31, "FormatError::Magic", &["a git-lfs pointer", "git lfs pull"], b"version https://git-lfs.github.com/spec/v1\n".to_vec());
    cases.inspect(31, "FormatError::Name", &["key '' is empty", "fetch or write it again"], number(4, &[0; 4]).key("", 4, &[0; 4]).bytes());
    cases.inspect(31, "FormatError::Utf8", &["the name of key 0 is not UTF-8 text", "fetch or write it again"], Raw::default().raw_key([&string(b"\xff")[..], &[0; 8]].concat()).bytes());
    cases.inspect(31, "FormatError::ValueType", &["key 'name' has value type 13, expected 0 to 12"], number(13, &[0; 8]).bytes());
    cases.inspect(31, "FormatError::ValueType", &["key 'name' has value type 9, expected 0 to 12: an array of arrays is not allowed"], number(9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).bytes());
    cases.inspect(31, "FormatError::Alignment", &["key 'general.alignment' is 13 (u32), expected a u32 power of two"], Raw::default().key("general.alignment", 4, &13u32.to_le_bytes()).bytes());
    let tensor = |shape: &[i64], ty: u32| Raw { data: 4096, ..Raw::default().tensor(b"name", shape, ty, 0) }.bytes();
    cases.inspect(31, "FormatError::Shape", &["tensor 'name' has shape [-1]: a dimension is negative"], tensor(&[-1], 0));
    cases.inspect(31, "FormatError::PartialBlock", &["tensor 'name' has 100 columns, TQ2_0 needs a multiple of 256"], tensor(&[100], 35));
    cases.inspect(31, "FormatError::Offset", &["tensor 'name' is at offset 32, expected 0", "fetch or write it again"], Raw::default().tensor(b"name", &[1], 0, 32).bytes());
    cases.inspect(32, "FormatError::Limit", &["the number of keys is 1099511627776, at most 0"], Raw { key_count: Some(1 << 40), ..Raw::default() }.bytes());
    cases.inspect(32, TRUNCATED, &["the value of key 'name' needs 1073741824 bytes"], number(8, &(1u64 << 30).to_le_bytes()).bytes());
    cases.inspect(33, "FormatError::TensorType", &["tensor 'name' has type id 36", "I2_S of bitnet.cpp", "pack the checkpoint"], tensor(&[256], 36));
    for id in [4, 5, 31, 32, 33, 37, 38] {
        cases.inspect(33, "FormatError::TensorType", &["tensor 'name' has type id ", "which ggml has removed", "convert the model again"], tensor(&[256], id));
    }
    for id in [43, 99, u32::MAX] {
        cases.inspect(33, "FormatError::TensorType", &["tensor 'name' has type id ", "which no type of ggml has"], tensor(&[256], id));
    }
    // 2048 weights take 576 bytes as Q2_0, 544 as PQ2_0, 336 as STQ1_0: other blocks under the same id.
    let after = |offset| Raw { data: 2048, ..Raw::default() }.tensor(b"name", &[2048], 42, 0).tensor(b"next", &[1], 0, offset).bytes();
    cases.inspect(34, "FormatError::Offset", &["tensor 'next' is at offset 352, expected 576", "neither Q2_0 (64 weights in 18 bytes) nor PQ2_0 (128 in 34)", "convert the model again"], after(352));
    const FORK: &str = "EngineError::Fork";
    cases.run_bytes(34, FORK, &["tensor 'name' has type PQ2_0", "only PrismML's fork of llama.cpp reads", "pack the file as another type: `tqconv pack IN.gguf OUT.gguf`"], after(544));
    cases.run_bytes(33, FORK, &["tensor 'name' has type PQ2_0", "`tqconv pack IN.gguf OUT.gguf`"], tensor(&[256], 142));
    cases.run_bytes(33, FORK, &["tensor 'name' has type PTQ1_0", "`tqconv pack IN.gguf OUT.gguf`"], tensor(&[256], 143));
    let short = std::fs::read(crate::data::fixture("broken/sound.gguf")).unwrap();
    cases.inspect(36, TRUNCATED, &["tensor 'output_norm.weight' needs 128 bytes", "it is truncated, fetch"], short[..short.len() - 1].to_vec());
    cases.inspect(37, "FormatError::Magic", &["a big-endian GGUF file"], b"FUGG\0\0\0\x03".to_vec());
    cases.inspect(37, VERSION, &["GGUF version 50331648", "convert it to little-endian"], Raw { version: 3 << 24, ..Raw::default() }.bytes());
    cases.inspect(37, VERSION, &["GGUF version 1, expected 2 or 3", "convert the model again"], Raw { version: 1, ..Raw::default() }.bytes());
    cases.inspect(38, "FormatError::Duplicate", &["key 'name' is duplicated, expected once"], number(4, &[0; 4]).key("name", 4, &[0; 4]).bytes());
}

/// Files whose metadata or tensors no engine can run.
fn engine(cases: &mut List) {
    const ENGINE_KEY: &str = "EngineError::Key";
    cases.run(38, ENGINE_KEY, &["key 'general.architecture' is \"gemma\" (string), expected \"llama\"", "convert the model again"], |file| {
        file.set("general.architecture", Value::String("gemma".into()));
    });
    cases.run(38, ENGINE_KEY, &["key 'llama.block_count' is absent, expected a positive u32"], |file| file.remove("llama.block_count"));
    cases.run(38, ENGINE_KEY, &["key 'llama.block_count' is 1 (u64), expected a positive u32"], |file| file.set("llama.block_count", Value::U64(1)));
    cases.run(38, ENGINE_KEY, &["key 'llama.block_count' is 4294967295 (u32), expected at most 512"], |file| file.set("llama.block_count", Value::U32(u32::MAX)));
    cases.run(38, ENGINE_KEY, &["key 'llama.attention.head_count_kv' is 0 (u32), expected a divisor"], |file| file.set("llama.attention.head_count_kv", Value::U32(0)));
    cases.run(38, ENGINE_KEY, &["key 'llama.rope.freq_base' is "], |file| file.set("llama.rope.freq_base", Value::F32(f32::NAN)));
    cases.run(36, "EngineError::Split", &["one of 2 (u16) files of a model", "join them with `llama-gguf-split --merge`"], |file| file.set("split.count", Value::U16(2)));
    cases.run(38, "EngineError::MissingTensor", &["tensor 'output_norm.weight' is absent", "convert the model again"], |file| {
        file.tensors.retain(|(info, _)| info.name != "output_norm.weight");
    });
    cases.run(38, "EngineError::UnknownTensor", &["tensor 'blk.0.extra' is no part of architecture 'llama'", "run the file with llama.cpp itself"], |file| {
        file.tensor("output_norm.weight").0.name = "blk.0.extra".into();
    });
    cases.run(38, "EngineError::Shape", &["tensor 'output_norm.weight' has shape [16], expected [32]", "convert the model again"], |file| {
        file.tensor("output_norm.weight").0.shape = vec![16];
    });
    cases.run(38, "EngineError::Shape", &["tensor 'blk.0.attn_q.bias' has shape [31], expected [32]"], |file| {
        file.tensor("blk.0.attn_q.bias").0.shape = vec![31];
    });
    cases.run(38, "EngineError::Type", &["tensor 'blk.0.attn_q.bias' has type F16, expected F32", "convert the model again"], |file| {
        file.tensor("blk.0.attn_q.bias").0.ty = BlockType::F16;
    });
    cases.run(33, "EngineError::Kernel", &["tensor 'blk.0.attn_q.weight': no kernel multiplies Q5_0", "convert the model again"], |file| {
        let (info, bytes) = file.tensor("blk.0.attn_q.weight");
        info.ty = BlockType::Q5_0;
        bytes.resize(info.bytes().unwrap() as usize, 0);
    });
    cases.command(38, "EngineError::CacheType", &["heads of 16 numbers are no whole groups of 32", "--cache-type-k f16"], |folder| {
        let path = folder.join("sound.gguf");
        std::fs::write(&path, Gguf::sound().bytes()).unwrap();
        vec!["run".into(), text_of(&path), "-p".into(), "abcd".into(), "--cache-type-k".into(), "q8_0".into()]
    });
    cases.command(38, "EngineError::ContextFull", &["tokens do not fit the context of 64", "shorten the text"], |_| {
        let file = text_of(&crate::data::fixture("broken/sound.gguf"));
        vec!["run".into(), file, "-p".into(), "i".repeat(99)]
    }).names_file = false;
}

/// Files whose tokenizer cannot be used.
fn text(cases: &mut List) {
    let strings = |texts: &[&str]| Value::Array(Array::String(texts.iter().map(|&text| text.into()).collect()));
    const PRE: &str = "tokenizer.ggml.pre";
    cases.run(38, "TextError::Missing", &["key 'tokenizer.ggml.pre' is missing", "convert the model again"], |file| file.remove(PRE));
    cases.run(38, "TextError::Type", &["key 'tokenizer.ggml.pre': found u8, expected string", "convert"], |file| file.set(PRE, Value::U8(1)));
    cases.run(38, "TextError::Length", &["key 'tokenizer.ggml.token_type': found 1 values for 16 tokens", "convert"], |file| {
        file.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1])));
    });
    cases.run(38, "TextError::Range", &["key 'tokenizer.ggml.bos_token_id': found token 16, the vocabulary has 16", "convert"], |file| {
        file.set("tokenizer.ggml.bos_token_id", Value::U32(16));
    });
    cases.run(38, "TextError::Model", &["found 'bert', supported are 'gpt2' and 'llama'", "`run --engine llama.cpp`"], |file| {
        file.set("tokenizer.ggml.model", Value::String("bert".into()));
    });
    cases.run(38, "TextError::PreTokenizer", &["how 'x' splits text is not known here", "use the llama.cpp engine"], |file| file.set(PRE, Value::String("x".into())));
    cases.run(38, "TextError::Merge", &["key 'tokenizer.ggml.merges': value 0, 'a z', is not two tokens", "convert"], move |file| {
        file.set("tokenizer.ggml.merges", strings(&["a z"]));
    });
    cases.run(38, "EngineError::Key", &["key 'tokenizer.ggml.tokens' is a list of 1, expected 16 tokens"], move |file| {
        file.set("tokenizer.ggml.tokens", strings(&["a"]));
    });
    let pieces = |file: &mut Gguf, score: f32| {
        file.set("tokenizer.ggml.model", Value::String("llama".into()));
        file.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![score; 16])));
    };
    cases.run(38, "TextError::Score", &["key 'tokenizer.ggml.scores': value 0 is not a number", "convert"], move |file| pieces(file, f32::NAN));
    cases.run(38, "TextError::NoByteToken", &["the token '<0x00>' is missing", "convert"], move |file| pieces(file, 0.0));
    cases.run(38, "TextError::Missing", &["key 'tokenizer.ggml.scores' is missing"], |file| {
        file.set("tokenizer.ggml.model", Value::String("llama".into()));
    });
}

fn process(cases: &mut List) {
    let sound = |cases: &mut List, row, variant, says, output: fn(&Path) -> PathBuf| {
        cases.command(row, variant, says, move |folder| pack_sound(folder, &output(folder)));
    };
    sound(cases, 39, "OutputError::SameFile", &["model.safetensors: is one of the input's files", "name another output"], |folder| folder.join("checkpoint/model.safetensors"));
    sound(cases, 39, "OutputError::SameFile", &["config.json: is one of the input's files", "name another output"], |folder| folder.join("checkpoint/config.json"));
    // In a folder it is called after the model.
    sound(cases, 39, "OutputError::Exists", &["checkpoint-6.9K-Q4_0.gguf: exists already", "--force"], |folder| {
        std::fs::create_dir(folder.join("models")).unwrap();
        std::fs::write(folder.join("models/checkpoint-6.9K-Q4_0.gguf"), "old").unwrap();
        folder.join("models")
    });
    // What is written beside the model.
    fn with(folder: &Path, option: &str, path: PathBuf) -> Vec<String> {
        [pack_sound(folder, &folder.join("out.gguf")), vec![option.into(), text_of(&path)]].concat()
    }
    cases.command(39, "OutputError::NoFile", &["out.json: is a folder", "name a file"], |folder| {
        std::fs::create_dir(folder.join("out.json")).unwrap();
        with(folder, "--manifest", folder.join("out.json"))
    });
    cases.command(39, "OutputError::NoFolder", &["none: no such folder", "mkdir -p"], |folder| {
        with(folder, "--manifest", folder.join("none/out.json"))
    });
    cases.command(39, "OutputError::SameFile", &["config.json: is one of the input's files"], |folder| {
        with(folder, "--manifest", folder.join("checkpoint/config.json"))
    });
    cases.command(39, "OutputError::Exists", &["out.json: exists already", "--force"], |folder| {
        std::fs::write(folder.join("out.json"), "old").unwrap();
        with(folder, "--manifest", folder.join("out.json"))
    });
    sound(cases, 39, "OutputError::NoFolder", &["none: no such folder", "mkdir -p"], |folder| folder.join("none/out.gguf"));
    sound(cases, 39, "OutputError::Exists", &["out.gguf: exists already", "--force"], |folder| {
        std::fs::write(folder.join("out.gguf"), "old").unwrap();
        folder.join("out.gguf")
    });
    sound(cases, 39, "OutputError::NoFile", &["pipe.gguf: is a device or a pipe", "name a file"], |folder| pipe(&folder.join("pipe.gguf")));
    let metadata = |cases: &mut List, says: &'static [&'static str]| {
        cases.pack(39, "PackError::Metadata", says, move |c| c.arguments(says[0])).names_file = false;
    };
    metadata(cases, &["--metadata llama.context_length=x", "expected a whole number from 64 to 2147483647", "leave it out"]);
    metadata(cases, &["--metadata llama.context_length=0", "expected a whole number from 64 to 2147483647"]);
    metadata(cases, &["--metadata tokenizer.ggml.eos_token_id=999999", "expected a whole number from 0 to 15"]);
    metadata(cases, &["--metadata tokenizer.ggml.eos_token_id=2", "the id of a special token"]);
    metadata(cases, &["--metadata My-Key=2", "a key of lower-case names"]);
    metadata(cases, &["--metadata tokenizer.ggml.eot_token_id=-1", "expected a whole number from 0 to 15"]);
    metadata(cases, &["--metadata tokenizer.ggml.add_bos_token=yes", "expected true or false"]);
    metadata(cases, &["--metadata tokenizer.ggml.model=bert", "how text is split"]);
    metadata(cases, &["--metadata llama.block_count=1", "the shape of the model is what config.json says"]);
    metadata(cases, &["--metadata llama.rope.scaling.type=yarn", "the shape of the model is what config.json says"]);
    metadata(cases, &["--metadata general.alignment=64", "this one says how the file is read"]);
    metadata(cases, &["--metadata split.count=2", "this one says how the file was made"]);
    for (arguments, says) in [
        ("--group-size 100", &["--group-size 100: expected a divisor of the ", "leave it out"][..]),
        ("--granularity per_head", &["--granularity ", "per_head", "expected per_group, per_channel or per_tensor"]),
        ("--lambda 1e39", &["--lambda 1e39: expected a number that fits BF16"]),
        ("--trained-as nosuch", &["--trained-as \"nosuch\": expected one of ultraquantv2, ", "unknown", "leave it out"]),
    ] {
        cases.pack(21, "ModelError::Argument", says, |c| c.arguments(arguments)).names_file = false;
    }
    cases.pack(39, "PackError::NoTensor", &["--tensor-type nosuch=...: no linear has that in its name", "such as blk.0.attn_q.weight"], |c| {
        c.arguments("--tensor-type nosuch=q4_0");
    });
    cases.pack(39, "PackError::Ollama", &["would be Q2_0, which Ollama does not read", "leave --type out"], |c| {
        wide(c);
        c.arguments("--for ollama --type q2_0 --max-nmse 1");
    });
    cases.pack(39, "PackError::Embedding", &["tensor 'token_embd.weight' cannot be stored as Q6_K: 32 columns", "--embedding keep"], |c| c.arguments("--embedding q6_k"));
    cases.pack(12, "PackError::BiasRange", &["tensor 'blk.0.attn_q.bias' would be ", "in row 0, F32 ends at 3.4e38", "is lambda ('eps' of config.json) right?"], |c| {
        c.config["eps"] = json!(3e38);
        let tensor = c.tensor(QUERY);
        (0..1024).for_each(|i| tensor.set(i, (i % 32 + 1) as f32));
    });
    cases.pack(39, "PackError::ScaleRange", &["has a scale of 71168 in row 0, f16 ends at 65504", "=f32"], |c| {
        let tensor = c.tensor(QUERY);
        (0..1024).for_each(|i| tensor.set(i, 4e4 + 2e3 * (i % 32) as f32));
    });
    fn input<'a>(cases: &'a mut List, says: &'static [&'static str], input: fn(&Path) -> PathBuf) -> &'a mut Case {
        cases.command(40, "ModelError::Io", says, move |folder| {
            vec!["pack".into(), text_of(&input(folder)), text_of(&folder.join("out.gguf"))]
        })
    }
    input(cases, &["none: No such file", "check the name"], |folder| folder.join("none"));
    input(cases, &["/dev/zero: not a regular file", "check the name"], |_| "/dev/zero".into()).names_file = false;
    input(cases, &["pipe: not a regular file"], |folder| pipe(&folder.join("pipe")));
    input(cases, &["socket: not a regular file"], |folder| {
        drop(std::os::unix::net::UnixListener::bind(folder.join("socket")).unwrap());
        folder.join("socket")
    });
    cases.command(40, "ModelError::MissingFile", &["no model.safetensors or model.safetensors.index.json there", "name a folder"], |folder| {
        vec!["pack".into(), text_of(folder), text_of(&folder.join("out.gguf"))]
    });
    cases.command(40, "ModelError::MissingFile", &["no config.json there", "name it with --config FILE"], |folder| {
        let arguments = pack_sound(folder, &folder.join("out.gguf"));
        std::fs::remove_file(folder.join("checkpoint/config.json")).unwrap();
        arguments
    });
    for (file, option) in [("config.json", "--config"), ("special_tokens_map.json", "--tokenizer")] {
        let variant = if option == "--config" { "ModelError::Io" } else { "TokenizerError::NotAFile" };
        cases.command(40, variant, &["not a regular file"], move |folder| {
            let mut arguments = pack_sound(folder, &folder.join("out.gguf"));
            arguments.extend([option.into(), text_of(&pipe(&folder.join(file)))]);
            arguments
        });
    }
    cases.command(40, "OpenError::Io", &["pipe.gguf: not a regular file", "check the name"], |folder| {
        vec!["verify".into(), text_of(&pipe(&folder.join("pipe.gguf")))]
    });
    cases.command(40, "OpenError::Folder", &["is a folder, expected a GGUF file", "pack a checkpoint first: `tqconv pack"], |folder| {
        vec!["run".into(), text_of(folder)]
    });
    let split = |cases: &mut List, variant, says, change: fn(&Path), named: usize| {
        cases.command(36, variant, says, move |folder| {
            let parts = tqconv::pack::paths(&folder.join("m.gguf"), 2);
            pack_split(folder);
            change(&parts[1]);
            vec!["inspect".into(), text_of(&parts[named])]
        });
    };
    split(cases, "OpenError::Part", &["00002-of-00002.gguf: is part 2 of a model", "name the first, "], |_| (), 1);
    split(cases, "OpenError::Io", &["m-00002-of-00002.gguf: No such file", "check the name"], |part| std::fs::remove_file(part).unwrap(), 0);
    split(cases, "FormatError::Truncated", &["m-00002-of-00002.gguf: ", "is truncated"], |part| {
        std::fs::OpenOptions::new().write(true).open(part).unwrap().set_len(200).unwrap();
    }, 0);
    split(cases, "FormatError::Split", &["part 2 of the model: key 'split.no' is 0", "take all parts from one download"], |part| {
        let first = part.with_file_name("m-00001-of-00002.gguf");
        std::fs::copy(first, part).unwrap();
    }, 0);
    cases.command(40, "VerifyError::NotGguf", &["not a GGUF file: it starts with bytes [74, 65, 78, 74]", "name a GGUF file"], |folder| {
        std::fs::write(folder.join("text.gguf"), "text").unwrap();
        vec!["verify".into(), text_of(&folder.join("text.gguf"))]
    });
    for (file, replaced) in [("tokenizer.json", "tokenizer.json"), ("generation_config.json", "link.gguf"), ("chat_template.jinja", "hard.gguf")] {
        cases.command(39, "OutputError::SameFile", &["is one of the input's files", "name another output"], move |folder| {
            let (input, output) = (folder.join("checkpoint").join(file), folder.join("checkpoint").join(replaced));
            let mut arguments = pack_sound(folder, &output);
            std::fs::OpenOptions::new().append(true).create(true).open(&input).unwrap();
            match replaced {
                "link.gguf" => std::os::unix::fs::symlink(&input, &output).unwrap(),
                "hard.gguf" => std::fs::hard_link(&input, &output).unwrap(),
                _ => {}
            }
            arguments.push("--force".into());
            arguments
        });
    }
    for read in ["model.gguf", "text.txt", "checkpoint/tokenizer.json"] {
        cases.command(39, "OutputError::SameFile", &["is one of the input's files", "name another output"], move |folder| {
            let (model, text) = (folder.join("model.gguf"), folder.join("text.txt"));
            std::fs::write(&model, Gguf::sound().bytes()).unwrap();
            std::fs::write(&text, "a text").unwrap();
            let checkpoint = folder.join("checkpoint");
            Checkpoint::sound().write(&checkpoint);
            let arguments = ["verify", &text_of(&model), "--against", &text_of(&checkpoint), "--text", &text_of(&text)];
            let report = ["--report", &text_of(&folder.join(read))];
            arguments.iter().chain(&report).map(|word| word.to_string()).collect()
        });
    }
    cases.command(39, "OutputError::SameFile", &["model.gguf: is one of the input's files"], |folder| {
        let model = folder.join("model.gguf");
        std::fs::write(&model, Gguf::sound().bytes()).unwrap();
        vec!["verify".into(), text_of(&model), "--attest".into(), text_of(&model)]
    });
    cases.command(39, "OutputError::NoFolder", &["none: no such folder", "mkdir -p"], |folder| {
        let model = folder.join("model.gguf");
        std::fs::write(&model, Gguf::sound().bytes()).unwrap();
        vec!["verify".into(), text_of(&model), "--attest".into(), text_of(&folder.join("none/proof.json"))]
    });
    cases.command(39, "OutputError::NoFolder", &["none: no such folder", "mkdir -p"], |folder| {
        let model = folder.join("model.gguf");
        std::fs::write(&model, Gguf::sound().bytes()).unwrap();
        vec!["verify".into(), text_of(&model), "--report".into(), text_of(&folder.join("none/report.html"))]
    });
    sound(cases, 39, "OutputError::Name", &["holds a control character", "name another output"], |folder| folder.join("a\nPARAMETER x.gguf"));
    cases.command(39, "OutputError::NoFile", &["-: is the standard output", "name a file"], |folder| pack_sound(folder, Path::new("-"))).names_file = false;
    cases.command(39, "OutputError::Foreign", &["out.gguf.tqconv.partial: is needed for a temporary file", "move it away"], |folder| {
        std::fs::write(folder.join("kept"), "kept").unwrap();
        std::os::unix::fs::symlink(folder.join("kept"), folder.join("out.gguf.tqconv.partial")).unwrap();
        pack_sound(folder, &folder.join("out.gguf"))
    });
    cases.command(39, "OutputError::Foreign", &["out.gguf.tqconv.partial: is needed for a temporary file", "move it away"], |folder| {
        std::fs::write(folder.join("kept"), "kept").unwrap();
        std::fs::hard_link(folder.join("kept"), folder.join("out.gguf.tqconv.partial")).unwrap();
        pack_sound(folder, &folder.join("out.gguf"))
    });
    cases.command(39, "OutputError::Busy", &["out.gguf.tqconv.partial: another process is writing it", "wait for it"], |folder| {
        let partial = std::fs::File::create(folder.join("out.gguf.tqconv.partial")).unwrap();
        partial.lock().unwrap();
        std::mem::forget(partial); // locked as long as the tests run
        pack_sound(folder, &folder.join("out.gguf"))
    });
    cases.command(39, "OutputError::Io", &["out.gguf.tqconv.partial: Is a directory", "check that it can be written"], |folder| {
        std::fs::create_dir(folder.join("out.gguf.tqconv.partial")).unwrap();
        pack_sound(folder, &folder.join("out.gguf"))
    });
    // The checkpoint that a file is compared with.
    cases.command(40, "VerifyError::TokenizerJson", &["tokenizer.json: recursion limit exceeded", "copy the file again"], |folder| {
        against(folder, |c| {
            let text = c.tokenizer.to_string();
            let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
            c.file("tokenizer.json", text.replacen('{', &format!("{{\"decoder\":{deep},"), 1));
        })
    });
    cases.command(40, "VerifyError::NotFinite", &["model.safetensors: tensor 'model.layers.0.self_attn.q_proj.weight' is not finite at row 0, column 1", "take an earlier checkpoint"], |folder| {
        against(folder, |c| c.tensor(QUERY).set(1, f32::NAN))
    });
    cases.command(40, "VerifyError::NotFinite", &["model.safetensors: tensor 'model.layers.0.self_attn.q_proj.Lambada' is not finite at row 1, column 0"], |folder| {
        against(folder, |c| {
            learned(c, |rows, _| vec![rows, 1]);
            c.tensor("model.layers.0.self_attn.q_proj.Lambada").set(1, f32::NAN);
        })
    });
    cases.command(40, "VerifyError::Tokenizer", &["neither tokenizer.json nor tokenizer.model"], |folder| {
        against(folder, |c| c.files.push(("tokenizer.json", None)))
    });
}

/// The arguments of a verification of the sound file against a checkpoint that `change` breaks.
fn against(folder: &Path, change: fn(&mut Checkpoint)) -> Vec<String> {
    let mut checkpoint = Checkpoint::sound();
    change(&mut checkpoint);
    let folder = folder.join("checkpoint");
    checkpoint.write(&folder);
    let file = text_of(&crate::data::fixture("broken/sound.gguf"));
    vec!["verify".into(), file, "--against".into(), text_of(&folder)]
}

/// A pipe that nobody writes to.
fn pipe(path: &Path) -> PathBuf {
    let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
    assert!(made.success());
    path.to_owned()
}

/// Twice as wide, so that blocks of 64 fit.
fn wide(checkpoint: &mut Checkpoint) {
    for key in ["hidden_size", "intermediate_size"] {
        checkpoint.config[key] = 64.into();
    }
    checkpoint.config["head_dim"] = 32.into();
    for tensor in &mut checkpoint.tensors {
        let mut shape = tensor.shape.clone();
        let first = usize::from(tensor.name == EMBEDDING);
        shape[first..].iter_mut().for_each(|n| *n *= 2);
        tensor.reshape(&shape);
    }
}

/// Errors that no file can cause.
fn library(cases: &mut List) {
    cases.call("BlockError::Unsupported", &["IQ1_S rows cannot be dequantized, supported: F32"], |_| {
        BlockType::IQ1_S.dequantize_row(&[0; 50], &mut [0.0; 256]).unwrap_err().into()
    });
    cases.call("BlockError::PartialBlock", &["100 columns are not a whole number of TQ2_0 blocks of 256"], |_| {
        BlockType::TQ2_0.dequantize_row(&[], &mut [0.0; 100]).unwrap_err().into()
    });
    cases.call("BlockError::Length", &["a TQ2_0 row of 256 columns has 65 bytes, expected 66"], |_| {
        BlockType::TQ2_0.dequantize_row(&[0; 65], &mut [0.0; 256]).unwrap_err().into()
    });
    cases.call("BlockError::NotFourLevel", &["Q4_0 row is not of four levels: weight 0 is not -3, -1, 1 or 3 times its scale"], |_| {
        BlockType::Q4_0.unpack_four_level_row(&[0x88; 18], &mut [0; 32], &mut [0.0]).unwrap_err().into()
    });
    cases.call("BlockError::OutOfRange", &["weight 1 is 100000, F16 holds -65504 to 65504"], |_| {
        BlockType::F16.quantize_row(&[0.0, 1e5], &mut [0; 4]).unwrap_err().into()
    });
    fn unpack(ty: BlockType, row: &[u8], scales: usize) -> anyhow::Error {
        ty.unpack_ternary_row(row, &mut [0; 256], &mut vec![0.0; scales]).unwrap_err().into()
    }
    cases.call("Found::Code", &["weight 0 has stored code 3, expected 0, 1 or 2"], |_| unpack(BlockType::TQ2_0, &[0xff; 66], 1));
    cases.call("BlockError::NotTernary", &["Q2_K row is not ternary"], |_| unpack(BlockType::Q2_K, &q2_k([1, 2], 0x11), 16));
    cases.call("Found::Factors", &["d ", "and dmin ", "expected equal bits"], |_| unpack(BlockType::Q2_K, &q2_k([1, 2], 0x11), 16));
    cases.call("Found::Multipliers", &["scale multiplier 1 and minimum multiplier 2"], |_| unpack(BlockType::Q2_K, &q2_k([1, 1], 0x21), 16));
    fn matrix(ty: BlockType, rows: usize, columns: usize, bytes: &[u8]) -> anyhow::Error {
        let made = Matrix::new(ty, rows, columns, bytes, &tqconv::kernels::Options::default());
        anyhow::Error::new(made.err().expect("refused"))
    }
    cases.call("KernelError::Unsupported", &["no kernel multiplies Q5_0; there are kernels for F32"], |_| matrix(BlockType::Q5_0, 1, 32, &[0; 22]));
    cases.call("KernelError::PartialBlock", &["rows of 100 columns are not a whole number of TQ2_0 blocks"], |_| matrix(BlockType::TQ2_0, 1, 100, &[]));
    cases.call("KernelError::Length", &["a TQ2_0 matrix of 1 rows and 256 columns has 65 bytes, expected 66"], |_| matrix(BlockType::TQ2_0, 1, 256, &[0; 65]));
    cases.call("KernelError::Isa", &["here: the CPU lacks it, or the system does not permit it", "there are scalar"], |_| {
        let isa = Isa::ALL.into_iter().find(|isa| !Isa::available().contains(isa)).unwrap();
        let options = tqconv::kernels::Options { isa, ..Default::default() };
        anyhow::Error::new(Matrix::new(BlockType::TQ2_0, 1, 256, &[0; 66], &options).err().unwrap())
    });
    cases.call("KernelError::Memory", &["no memory for a TQ2_0 matrix of 1 rows"], |_| {
        let source = std::io::ErrorKind::OutOfMemory.into();
        KernelError::Memory { ty: BlockType::TQ2_0, rows: 1, columns: 256, source }.into()
    });
    cases.call("PackError::Format", &["the output cannot be laid out: tensor 'a' is duplicated"], |_| {
        let info = TensorInfo { name: "a".into(), ty: BlockType::F32, shape: vec![1] };
        PackError::from(Layout::new(&[], &[info.clone(), info]).unwrap_err()).into()
    });
    cases.call("EngineError::NoTokens", &["no tokens to predict from", "give a longer prompt"], |_| logits(&[]));
    cases.call("EngineError::Token", &["token 16 at position 1 is outside the vocabulary of 16"], |_| logits(&[0, 16]));
    cases.call("TextError::Duplicate", &["tokens 0 and 1 are both 'a'", "convert the model again"], |_| {
        let texts = Value::Array(Array::String(vec!["a".into(), "a".into()]));
        let layout = Layout::new(&[("tokenizer.ggml.tokens".into(), texts)], &[]).unwrap();
        Text::from_gguf(&File::parse(&layout.header).unwrap()).err().unwrap().into()
    });
    // The tokenizers library takes whatever the checks before it let through.
    cases.call("TextError::Library", &["cannot run it: a reason", "save it again"], |_| {
        TextError::Library { source: "a reason".into() }.into()
    });
    cases.call("TextError::Build", &["make no tokenizer: a reason", "convert the model again"], |_| {
        TextError::Build { source: "a reason".into() }.into()
    });
    cases.call("ChooseError::Memory", &["needs about 9.5 GB of memory for this model, 2.0 GB are free", "free memory"], |_| {
        ChooseError::Memory { needed: 9.5, available: 2.0 }.into()
    });
    cases.call("ChooseError::Pack", &["interrupted; nothing was written"], |_| ChooseError::from(PackError::Interrupted).into());
    cases.call("VerifyError::Model", &["none: "], |folder| {
        let source = Source::find(&folder.join("none"), None, None);
        VerifyError::from(source.unwrap_err()).into()
    });
    cases.call("VerifyError::Block", &["F64 rows cannot be dequantized"], |_| {
        VerifyError::from(BlockType::F64.dequantize_row(&[0; 8], &mut [0.0]).unwrap_err()).into()
    });
    cases.call("VerifyError::Engine", &["no tokens to predict from"], |_| {
        VerifyError::from(tqconv::engine::EngineError::NoTokens).into()
    });
    cases.call("PackError::Read", &["x: no room", "check that it can be read"], |_| {
        PackError::Read { path: "x".into(), source: std::io::Error::other("no room") }.into()
    });
    cases.call("PackError::Split", &["--split-max-size 1 would make 65536 files, at most 65535", "allow larger ones"], |_| {
        PackError::Split { max: 1, files: 65536 }.into()
    });
    cases.call("PackError::Interrupted", &["interrupted; nothing was written", "pack again"], |folder| {
        packed(folder, |plan, output| plan.run(vec![], Some(output), &|_| ControlFlow::Break(())).err().unwrap(), |_| ())
    });
    cases.call("PackError::Changed", &["model.safetensors: changed while it was being packed", "pack again"], |folder| {
        packed(folder, run, |weights| weights.write_all_at(&[0; 64], 14_000).unwrap())
    });
    cases.call("PackError::Changed", &["model.safetensors: changed while it was being packed"], |folder| {
        packed(folder, run, |weights| weights.set_len(3000).unwrap())
    });
    cases.call("OutputError::NoSpace", &["the output takes ", "are free; make room, or name another folder"], |folder| {
        // A checkpoint of 1.6 TB, none of it on the disk.
        const HIDDEN: usize = 1 << 18;
        const FFN: usize = 1 << 20;
        let mut checkpoint = Checkpoint::sound();
        checkpoint.config["hidden_size"] = HIDDEN.into();
        checkpoint.config["intermediate_size"] = FFN.into();
        checkpoint.config["head_dim"] = 16.into();
        let input = folder.join("checkpoint");
        checkpoint.write(&input);
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for tensor in &checkpoint.tensors {
            let mut shape = tensor.shape.clone();
            match tensor.name.rsplit('.').nth(1) {
                Some("gate_proj" | "up_proj") => shape = vec![FFN, HIDDEN],
                Some("down_proj") => shape = vec![HIDDEN, FFN],
                Some("o_proj") => shape[0] = HIDDEN,
                _ => *shape.last_mut().unwrap() = HIDDEN,
            }
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            header.insert(tensor.name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
        }
        let header = with_header(&Json::Object(header).to_string(), &[]);
        sparse(input.join("model.safetensors"), &header, (header.len() + end) as u64);
        let output = text_of(&folder.join("out.gguf"));
        super::error_of(&["pack".into(), text_of(&input), output, "--type".into(), "f16".into()])
    });
    cases.call("EngineError::CacheMemory", &["no memory of 512 bytes for keys and values", "use fewer tokens"], |_| {
        EngineError::CacheMemory { bytes: 512, source: std::io::ErrorKind::OutOfMemory.into() }.into()
    });
    cases.call("EngineError::Memory", &["no memory of 512 bytes to measure its speed", "close other programs"], |_| {
        EngineError::Memory { bytes: 512, source: std::io::ErrorKind::OutOfMemory.into() }.into()
    });
    cases.call("EngineError::Weights", &["the weights cannot be read: no room", "fetch the checkpoint again"], |_| {
        tqconv::engine::EngineError::Weights("no room".into()).into()
    });
    cases.call("EngineError::Witness", &["built without llama.cpp", "name one with --llama PATH"], |_| {
        EngineError::from(WitnessError::NotBuiltIn).into()
    });
    cases.call("VerifyError::Witness", &["llama.cpp stopped while loading the model: no room", "free memory"], |_| {
        let why = "no room; free memory".into();
        VerifyError::from(WitnessError::CouldNot { doing: LOADING.into(), why }).into()
    });
    cases.call("WitnessError::NotBuiltIn", &["--llama PATH"], |_| WitnessError::NotBuiltIn.into());
    cases.call("WitnessError::Start", &["llama.cpp cannot be started as nowhere", "raise `ulimit -n`"], |_| {
        let source = std::io::Error::other("too many processes");
        WitnessError::Start { program: "nowhere".into(), source }.into()
    });
    cases.call("WitnessError::CouldNot", &["2 threads cannot be started", "use fewer --threads"], |_| {
        let why = "2 threads cannot be started; use fewer --threads".into();
        WitnessError::CouldNot { doing: LOADING.into(), why }.into()
    });
    cases.call("WitnessError::LongRun", &["9999999 characters in a row", "use a text with at most 1048576 in a row"], |_| {
        WitnessError::LongRun { length: 9_999_999 }.into()
    });
    cases.call("WitnessError::Refused", &["llama.cpp refused while loading the model: no; never", "convert the model again"], |_| {
        WitnessError::Refused { doing: LOADING.into(), log: vec!["no".into(), "never".into()] }.into()
    });
    cases.call("WitnessError::Crashed", &["crashed while loading the model: SIGILL", "its last words: oh", "build llama.cpp again"], |_| {
        let status = std::os::unix::process::ExitStatusExt::from_raw(4);
        WitnessError::Crashed { doing: LOADING.into(), ending: Ending(status), log: vec!["oh".into()] }.into()
    });
    cases.call("WitnessError::Memory", &["wanted more than the 1.0 GB", "try the file with another build"], |_| {
        WitnessError::Memory { doing: LOADING.into(), bytes: 1_000_000_000, log: vec![] }.into()
    });
    cases.call("WitnessError::Silent", &["was silent for 20 s while loading the model", "continue or end"], |_| {
        WitnessError::Silent { doing: LOADING.into(), seconds: 20.0, log: vec![] }.into()
    });
    cases.call("WitnessError::Late", &["no answer within 60 s while loading the model", "try the file with another build"], |_| {
        WitnessError::Late { doing: LOADING.into(), seconds: 60.0, log: vec![] }.into()
    });
    cases.call("WitnessError::Garbled", &["answered \"ls\" while loading the model", "use a program of the same build"], |_| {
        WitnessError::Garbled { doing: LOADING.into(), found: "\"ls\"".into(), log: vec![] }.into()
    });
}

const LOADING: &str = "loading the model";

/// Open and plan the sound checkpoint, let `change` do something to its weights, then `run`.
fn packed(folder: &Path, run: fn(Plan, &Output) -> PackError, change: fn(&std::fs::File)) -> anyhow::Error {
    let input = folder.join("checkpoint");
    Checkpoint::sound().write(&input);
    // Beyond the granularity of a file's time.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let source = Source::find(&input, None, None).unwrap();
    let checkpoint = Opened::open(source, &TrainingOverrides::default()).unwrap();
    let rule = Rule { target: Target::Any, max_nmse: 1e-4, measured: false, ty: None, tensor_types: vec![] };
    let options = Options {
        rule,
        embedding: Embedding::Keep,
        drop_biases: false,
        name: None,
        organization: None,
        card: Default::default(),
        metadata: vec![],
        hash: true,
        split_max_size: None,
        level: tqconv::simd::Level::widest(),
    };
    let plan = Plan::new(&checkpoint, &options).unwrap();
    let weights = std::fs::OpenOptions::new().write(true).open(input.join("model.safetensors")).unwrap();
    change(&weights);
    let path = folder.join("out.gguf");
    let error = run(plan, &Output { path: &path, replace: false, inputs: &Inputs::default() });
    assert!(!path.exists() && !folder.join("out.gguf.tqconv.partial").exists());
    error.into()
}

fn run(plan: Plan, output: &Output) -> PackError {
    plan.run(vec![], Some(output), &|_| ControlFlow::Continue(())).err().expect("refused")
}

/// A Q2_K block of these factors, every sub-block with the same multipliers, every code the middle one.
fn q2_k([d, dmin]: [u16; 2], multipliers: u8) -> Vec<u8> {
    let mut block = vec![multipliers; 16];
    block.extend([0x55; 64]);
    block.extend(d.to_le_bytes());
    block.extend(dmin.to_le_bytes());
    block
}

/// What the native engine says of tokens that it cannot take.
fn logits(tokens: &[u32]) -> anyhow::Error {
    use tqconv::engine::Engine;
    use tqconv::engine::native::{Native, Settings};
    let bytes = Gguf::sound().bytes();
    let file = File::parse(&bytes).unwrap();
    let mut engine = Native::load(&file, Settings::new(8, 1)).unwrap();
    engine.logits(tokens).unwrap_err().into()
}
