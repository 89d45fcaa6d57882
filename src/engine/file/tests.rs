use formats::block::BlockType;
use formats::gguf::{Array, Layout, TensorInfo};

use super::*;
use crate::engine::hyper::{Dims, Pairing, Rope, Variant};

/// A Llama of one layer: hidden 8, two heads on one key-value head of 4, ffn 6, three tokens.
struct Parts {
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorInfo>,
}

impl Parts {
    /// What all tensors hold.
    const NUMBER: f32 = 2.0;

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

    fn read(&self) -> Result<Hyper, EngineError> {
        let layout = Layout::new(&self.metadata, &self.tensors).expect("sound");
        let mut bytes = layout.header;
        while bytes.len() < layout.size as usize {
            bytes.extend(Self::NUMBER.to_le_bytes());
        }
        Hyper::read(&File::parse(&bytes).expect("sound"))
    }
}

fn tokens(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().map(|&text| text.into()).collect()))
}

#[test]
fn the_numbers_are_read() {
    let expected = Hyper {
        dims: Dims {
            vocab: 3,
            hidden: 8,
            intermediate: 6,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
        },
        context: 32,
        norm_epsilon: 1e-5f32.into(),
        rope: Rope {
            base: 10000.0,
            divisor: 1.0,
            factors: None,
            pairing: Pairing::Interleaved,
        },
        variant: Variant::LLAMA,
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
    let rope = parts.read().unwrap().rope;
    let factors = Some(vec![Parts::NUMBER.into(); 2]);
    assert_eq!((rope.base, rope.divisor, rope.factors), (5e5, 4.0, factors));
    parts.set("llama.rope.scaling.type", Value::String("none".into()));
    assert_eq!(parts.read().unwrap().rope.divisor, 1.0);
}

#[test]
fn keys_out_of_range_are_named() {
    for (key, value) in [
        ("general.architecture", Value::String("gemma".into())),
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
    assert!(matches!(error, EngineError::UnknownTensor { name, .. } if name == "blk.0.attn_q.scale"));

    let mut parts = Parts::new();
    parts.tensor("blk.0.attn_k.weight").shape = vec![8, 8];
    assert!(matches!(parts.read().unwrap_err(), EngineError::Shape { expected, .. } if expected == [8, 4]));

    let mut parts = Parts::new();
    parts.add("blk.0.ffn_down.bias", &[8]);
    parts.tensor("blk.0.ffn_down.bias").ty = BlockType::F16;
    assert!(matches!(parts.read().unwrap_err(), EngineError::Type { found, .. } if found == "F16"));
}
