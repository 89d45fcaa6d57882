//! What a GGUF of architecture `llama` says about itself, and whether its tensors keep to it. Both the native engine and
//! llama.cpp get a file only after this: what llama.cpp meets with an abort of the whole process (a bias that is not F32,
//! a token that stands twice) is an error here, and so is whatever either engine would silently leave out.

use std::collections::{HashMap, HashSet};

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};

use super::EngineError;
use crate::witness::pieces;

/// The numbers that a Llama is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Length of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Length of one head; even.
    pub head_dim: usize,
    /// Rows of the gate and up matrices.
    pub ffn: usize,
    /// Tokens that the model was trained to see at once.
    pub context: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f32,
    /// Base of the rotary frequencies.
    pub rope_base: f32,
    /// What positions are divided by before they are turned into angles (linear scaling; 1 for none).
    pub rope_factor: f32,
}

/// A tensor that a Llama has or may have. Dimensions are columns first.
struct Expected {
    name: String,
    shape: Vec<u64>,
    required: bool,
}

/// The most layers that llama.cpp takes (LLAMA_MAX_LAYERS, llama-hparams.h).
const MAX_LAYERS: usize = 512;

impl Shape {
    /// Read the metadata and hold every tensor against them.
    ///
    /// # Errors
    /// A type that llama.cpp does not have; another architecture; a key that is absent, of the wrong type or out of range; a scaling of positions other than
    /// linear; a tensor that is absent, unknown, of the wrong shape, or a norm or bias that is not F32; a token twice.
    pub fn read(file: &File) -> Result<Self, EngineError> {
        check_types(file.tensors())?;
        let shape = Self::from_metadata(&Keys(file))?;
        shape.check_tensors(file.tensors())?;
        check_vocabulary(file, shape.vocab)?;
        check_places(file)?;
        Ok(shape)
    }

    /// Rows and columns of the seven linears of a layer, by the part of their name after `blk.N.`.
    pub fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [
            ("attn_q", q, self.hidden),
            ("attn_k", kv, self.hidden),
            ("attn_v", kv, self.hidden),
            ("attn_output", self.hidden, q),
            ("ffn_gate", self.ffn, self.hidden),
            ("ffn_up", self.ffn, self.hidden),
            ("ffn_down", self.hidden, self.ffn),
        ]
    }

    fn from_metadata(keys: &Keys) -> Result<Self, EngineError> {
        match keys.0.get("general.architecture").and_then(Value::as_str) {
            Some("llama") => {}
            _ => {
                return Err(keys.refuse(
                    "general.architecture",
                    "\"llama\", the architecture that applies all seven biases",
                ));
            }
        }
        let count = keys.0.get("split.count");
        if let Some(count) = count.filter(|&count| *count != Value::U16(1)) {
            let count = count.brief();
            return Err(EngineError::Split { count });
        }
        // llama.cpp aborts where the others are not 0 and the first is (llama-model.cpp).
        for key in [
            "llama.expert_count",
            "llama.expert_used_count",
            "llama.expert_group_count",
        ] {
            if keys.whole_or(key, 0)? != 0 {
                return Err(keys.refuse(key, "0: a mixture of experts is not run"));
            }
        }
        let hidden = keys.positive("llama.embedding_length")?;
        let heads = keys.positive("llama.attention.head_count")?;
        let kv_heads = keys.whole_or("llama.attention.head_count_kv", heads)?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(keys.refuse(
                "llama.attention.head_count_kv",
                &format!("a divisor of the {heads} heads"),
            ));
        }
        let head_dim = keys.whole_or("llama.attention.key_length", hidden / heads)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(keys.refuse("llama.attention.key_length", "a positive even number"));
        }
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if keys.whole_or(key, head_dim)? != head_dim {
                return Err(keys.refuse(key, &format!("{head_dim}, as long as a key")));
            }
        }
        let layers = keys.positive("llama.block_count")?;
        if layers > MAX_LAYERS {
            return Err(keys.refuse("llama.block_count", &format!("at most {MAX_LAYERS}")));
        }
        let rows = match keys.0.tensor("token_embd.weight") {
            Some((info, _)) if info.rows() > 0 => info.rows(),
            _ => {
                return Err(EngineError::MissingTensor {
                    name: "token_embd.weight".into(),
                });
            }
        };
        Ok(Shape {
            vocab: usize::try_from(rows).unwrap_or(usize::MAX),
            hidden,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn: keys.positive("llama.feed_forward_length")?,
            context: keys.positive("llama.context_length")?,
            norm_epsilon: keys.number("llama.attention.layer_norm_rms_epsilon", None)?,
            rope_base: keys.number("llama.rope.freq_base", Some(10000.0))?,
            rope_factor: rope_factor(keys)?,
        })
    }

    fn check_tensors(&self, found: &[TensorInfo]) -> Result<(), EngineError> {
        let mut expected: HashMap<String, Expected> = self
            .expected()
            .into_iter()
            .map(|tensor| (tensor.name.clone(), tensor))
            .collect();
        for info in found {
            let Some(expected) = expected.remove(&info.name) else {
                return Err(EngineError::UnknownTensor {
                    name: info.name.clone(),
                });
            };
            check_shape(info, expected.shape)?;
        }
        match expected.into_values().find(|tensor| tensor.required) {
            Some(tensor) => Err(EngineError::MissingTensor { name: tensor.name }),
            None => Ok(()),
        }
    }

    fn expected(&self) -> Vec<Expected> {
        let tensor = |name: String, shape: &[usize], required: bool| Expected {
            name,
            shape: shape.iter().map(|&n| n as u64).collect(),
            required,
        };
        let mut all = vec![
            tensor("token_embd.weight".into(), &[self.hidden, self.vocab], true),
            tensor("output_norm.weight".into(), &[self.hidden], true),
            tensor("output.weight".into(), &[self.hidden, self.vocab], false),
            tensor("rope_freqs.weight".into(), &[self.head_dim / 2], false),
        ];
        for layer in 0..self.layers {
            for norm in ["attn_norm", "ffn_norm"] {
                all.push(tensor(format!("blk.{layer}.{norm}.weight"), &[self.hidden], true));
            }
            for (part, rows, columns) in self.linears() {
                all.push(tensor(format!("blk.{layer}.{part}.weight"), &[columns, rows], true));
                all.push(tensor(format!("blk.{layer}.{part}.bias"), &[rows], false));
            }
        }
        all
    }
}

/// No blocks that only a fork of llama.cpp reads, whatever the rest of the file says: they can be packed as others.
fn check_types(found: &[TensorInfo]) -> Result<(), EngineError> {
    match found.iter().find(|info| info.ty.is_prism()) {
        Some(info) => Err(EngineError::Fork {
            name: info.name.clone(),
            found: info.ty,
        }),
        None => Ok(()),
    }
}

/// Shape as expected (trailing dimensions of 1 do not count), and F32 where it is a vector: ggml aborts on other biases
/// and norms (ggml-cpu/binary-ops.cpp:135).
fn check_shape(info: &TensorInfo, expected: Vec<u64>) -> Result<(), EngineError> {
    let dimensions = info.shape.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
    if info.shape[..dimensions.min(info.shape.len())] != expected {
        return Err(EngineError::Shape {
            name: info.name.clone(),
            found: info.shape.clone(),
            expected,
        });
    }
    if expected.len() == 2 && !info.ty.has_cpu_product() {
        return Err(EngineError::Type {
            name: info.name.clone(),
            found: info.ty.to_string(),
            expected: "a type that llama.cpp multiplies: F32, F16, BF16 or blocks",
        });
    }
    if expected.len() == 1 && info.ty != BlockType::F32 {
        return Err(EngineError::Type {
            name: info.name.clone(),
            found: info.ty.to_string(),
            expected: "F32: ggml aborts on any other norm or bias",
        });
    }
    Ok(())
}

/// llama.cpp maps the file, and aborts on a tensor that is not aligned in memory (TENSOR_ALIGNMENT, ggml-impl.h).
fn check_places(file: &File) -> Result<(), EngineError> {
    const ALIGNMENT: u64 = 32;
    let places = pieces(file);
    let mut tensors = file.tensors().iter().zip(places);
    match tensors.find(|(_, piece)| !piece.start.is_multiple_of(ALIGNMENT)) {
        Some((info, piece)) => Err(EngineError::Key {
            key: "general.alignment".into(),
            found: format!(
                "{}, which puts tensor '{}' at byte {}",
                file.alignment(),
                info.name,
                piece.start
            ),
            expected: format!("tensors at multiples of {ALIGNMENT}"),
        }),
        None => Ok(()),
    }
}

/// As many tokens as the embedding has rows, each once (llama.cpp aborts on a token that stands twice: llama-vocab.cpp:2578).
fn check_vocabulary(file: &File, vocab: usize) -> Result<(), EngineError> {
    const KEY: &str = "tokenizer.ggml.tokens";
    let Some(tokens) = file.get(KEY).and_then(Value::as_strings) else {
        return Ok(());
    };
    if tokens.len() != vocab {
        return Err(EngineError::Key {
            key: KEY.into(),
            found: format!("a list of {}", tokens.len()),
            expected: format!("{vocab} tokens, one for each row of token_embd.weight"),
        });
    }
    // llama.cpp reads C strings.
    if let Some(token) = tokens.iter().find(|token| token.contains('\0')) {
        return Err(EngineError::Key {
            key: KEY.into(),
            found: format!("a list that has {token:?}"),
            expected: "tokens without NUL".into(),
        });
    }
    let mut seen = HashSet::new();
    match tokens.iter().find(|token| !seen.insert(token.as_str())) {
        Some(token) => Err(EngineError::Key {
            key: KEY.into(),
            found: format!("a list that has {token:?} twice"),
            expected: "every token once".into(),
        }),
        None => Ok(()),
    }
}

/// llama.cpp takes a factor without a type for linear scaling, and ignores it where the type is `none`.
fn rope_factor(keys: &Keys) -> Result<f32, EngineError> {
    const TYPE: &str = "llama.rope.scaling.type";
    const FACTOR: &str = "llama.rope.scaling.factor";
    if keys.number("llama.rope.scaling.attn_factor", Some(1.0))? != 1.0 {
        return Err(keys.refuse("llama.rope.scaling.attn_factor", "1"));
    }
    match keys.0.get(TYPE).map(Value::as_str) {
        Some(Some("none")) => Ok(1.0),
        None | Some(Some("linear")) => {
            let old = keys.number("llama.rope.scale_linear", Some(0.0))?;
            let factor = keys.number(FACTOR, Some(old))?;
            Ok(if factor == 0.0 { 1.0 } else { factor })
        }
        _ => Err(keys.refuse(
            TYPE,
            "\"none\" or \"linear\" (Llama 3's scaling stands in the tensor rope_freqs.weight)",
        )),
    }
}

/// The metadata, with errors that name the key.
struct Keys<'a>(&'a File<'a>);

impl Keys<'_> {
    fn refuse(&self, key: &str, expected: &str) -> EngineError {
        let found = match self.0.get(key) {
            None => "absent".into(),
            Some(value) => value.brief(),
        };
        EngineError::Key {
            key: key.into(),
            found,
            expected: expected.into(),
        }
    }

    fn positive(&self, key: &str) -> Result<usize, EngineError> {
        match self.0.get(key).and_then(Value::as_u32) {
            Some(value) if value > 0 => Ok(value as usize),
            _ => Err(self.refuse(key, "a positive u32")),
        }
    }

    fn whole_or(&self, key: &str, default: usize) -> Result<usize, EngineError> {
        match self.0.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u32()
                .map(|value| value as usize)
                .ok_or_else(|| self.refuse(key, "a u32")),
        }
    }

    fn number(&self, key: &str, default: Option<f32>) -> Result<f32, EngineError> {
        match (self.0.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => match value.and_then(Value::as_f32) {
                Some(value) if value.is_finite() && value >= 0.0 => Ok(value),
                _ => Err(self.refuse(key, "an f32 of at least 0")),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use formats::gguf::{Array, Layout};

    use super::*;

    /// A Llama of one layer: hidden 8, two heads on one key-value head of 4, ffn 6, three tokens.
    struct Parts {
        metadata: Vec<(String, Value)>,
        tensors: Vec<TensorInfo>,
    }

    impl Parts {
        fn new() -> Self {
            let number = |key: &str, value: u32| (format!("llama.{key}"), Value::U32(value));
            let metadata = vec![
                ("general.architecture".into(), Value::String("llama".into())),
                number("embedding_length", 8),
                number("block_count", 1),
                number("feed_forward_length", 6),
                number("context_length", 32),
                number("attention.head_count", 2),
                number("attention.head_count_kv", 1),
                number("attention.key_length", 4),
                ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
                ("tokenizer.ggml.tokens".into(), tokens(&["a", "b", "c"])),
            ];
            let mut parts = Parts {
                metadata,
                tensors: Vec::new(),
            };
            parts.add("token_embd.weight", &[8, 3]);
            parts.add("output_norm.weight", &[8]);
            for norm in ["attn_norm", "ffn_norm"] {
                parts.add(&format!("blk.0.{norm}.weight"), &[8]);
            }
            for (part, columns, rows) in [
                ("attn_q", 8, 8),
                ("attn_k", 8, 4),
                ("attn_v", 8, 4),
                ("attn_output", 8, 8),
                ("ffn_gate", 8, 6),
                ("ffn_up", 8, 6),
                ("ffn_down", 6, 8),
            ] {
                parts.add(&format!("blk.0.{part}.weight"), &[columns, rows]);
            }
            parts
        }

        fn add(&mut self, name: &str, shape: &[u64]) {
            let shape = shape.to_vec();
            self.tensors.push(TensorInfo {
                name: name.into(),
                ty: BlockType::F32,
                shape,
            });
        }

        fn set(&mut self, key: &str, value: Value) {
            self.metadata.retain(|(name, _)| name != key);
            self.metadata.push((key.into(), value));
        }

        fn tensor(&mut self, name: &str) -> &mut TensorInfo {
            self.tensors
                .iter_mut()
                .find(|info| info.name == name)
                .expect("the tensor is there")
        }

        fn read(&self) -> Result<Shape, EngineError> {
            let layout = Layout::new(&self.metadata, &self.tensors).expect("sound");
            let mut bytes = layout.header;
            bytes.resize(layout.size as usize, 0);
            Shape::read(&File::parse(&bytes).expect("sound"))
        }
    }

    fn tokens(texts: &[&str]) -> Value {
        Value::Array(Array::String(texts.iter().map(|&text| text.into()).collect()))
    }

    #[test]
    fn the_numbers_are_read() {
        let expected = Shape {
            vocab: 3,
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 6,
            context: 32,
            norm_epsilon: 1e-5,
            rope_base: 10000.0,
            rope_factor: 1.0,
        };
        assert_eq!(Parts::new().read().unwrap(), expected);
    }

    #[test]
    fn optional_parts_may_be_there() {
        let mut parts = Parts::new();
        parts.add("output.weight", &[8, 3]);
        parts.add("rope_freqs.weight", &[2]);
        parts.add("blk.0.ffn_up.bias", &[6]);
        parts.add("blk.0.attn_q.bias", &[8, 1]);
        parts.set("llama.rope.freq_base", Value::F32(5e5));
        parts.set("llama.rope.scaling.factor", Value::F32(4.0));
        let shape = parts.read().unwrap();
        assert_eq!((shape.rope_base, shape.rope_factor), (5e5, 4.0));
        parts.set("llama.rope.scaling.type", Value::String("none".into()));
        assert_eq!(parts.read().unwrap().rope_factor, 1.0);
    }

    #[test]
    fn keys_out_of_range_are_named() {
        for (key, value) in [
            ("general.architecture", Value::String("qwen3".into())),
            ("llama.embedding_length", Value::U64(8)),
            ("llama.block_count", Value::U32(0)),
            ("llama.block_count", Value::U32(513)),
            ("llama.attention.head_count", Value::Array(Array::U32(vec![2]))),
            ("llama.attention.head_count_kv", Value::U32(3)),
            ("llama.attention.key_length", Value::U32(5)),
            ("llama.attention.value_length", Value::U32(6)),
            ("llama.rope.dimension_count", Value::U32(2)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)),
            ("llama.rope.scaling.type", Value::String("yarn".into())),
            ("llama.rope.scaling.attn_factor", Value::F32(1.5)),
            ("llama.expert_count", Value::U32(8)),
            ("llama.expert_group_count", Value::U32(1)),
            ("tokenizer.ggml.tokens", tokens(&["a", "b", "a\0b"])),
            ("tokenizer.ggml.tokens", tokens(&["a", "b"])),
            ("tokenizer.ggml.tokens", tokens(&["a", "b", "a"])),
        ] {
            let mut parts = Parts::new();
            parts.set(key, value);
            match parts.read() {
                Err(EngineError::Key { key: named, .. }) => assert_eq!(named, key),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_matrix_that_ggml_does_not_multiply_is_named() {
        use BlockType::{F64, I8, I16, I32, I64};
        for name in ["blk.0.attn_q.weight", "token_embd.weight"] {
            for ty in [I8, I16, I32, I64, F64] {
                let mut parts = Parts::new();
                parts.tensor(name).ty = ty;
                let error = parts.read().unwrap_err().to_string();
                assert!(error.contains(&format!("'{name}' has type {ty}")), "{error}");
            }
        }
    }

    #[test]
    fn tensors_lie_where_ggml_can_map_them() {
        let misaligned = |alignment: u32| {
            let places = (0..32).map(|length| {
                let mut parts = Parts::new();
                parts.set("general.alignment", Value::U32(alignment));
                parts.set("general.name", Value::String("n".repeat(length)));
                parts.read()
            });
            places.filter(Result::is_err).count()
        };
        assert_eq!([8, 32].map(misaligned), [24, 0]);
    }

    #[test]
    fn tensors_are_held_against_the_metadata() {
        let mut parts = Parts::new();
        parts.tensors.retain(|info| info.name != "blk.0.ffn_gate.weight");
        let error = parts.read().unwrap_err();
        assert!(matches!(error, EngineError::MissingTensor { name } if name == "blk.0.ffn_gate.weight"));

        let mut parts = Parts::new();
        parts.tensor("token_embd.weight").shape = vec![8, 0];
        let error = parts.read().unwrap_err();
        assert!(matches!(error, EngineError::MissingTensor { name } if name == "token_embd.weight"));

        let mut parts = Parts::new();
        parts.add("blk.0.attn_q.scale", &[1]);
        let error = parts.read().unwrap_err();
        assert!(matches!(error, EngineError::UnknownTensor { name } if name == "blk.0.attn_q.scale"));

        let mut parts = Parts::new();
        parts.tensor("blk.0.attn_k.weight").shape = vec![8, 8];
        assert!(matches!(parts.read().unwrap_err(), EngineError::Shape { expected, .. } if expected == [8, 4]));

        let mut parts = Parts::new();
        parts.add("blk.0.ffn_down.bias", &[8]);
        parts.tensor("blk.0.ffn_down.bias").ty = BlockType::F16;
        assert!(matches!(parts.read().unwrap_err(), EngineError::Type { found, .. } if found == "F16"));
    }
}
