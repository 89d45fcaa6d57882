//! The tensors that a file must and may have, each of its shape and a type that ggml computes with.

use std::collections::HashMap;

use formats::block::BlockType;
use formats::gguf::TensorInfo;

use super::architecture::{Architecture, EMBEDDING, ROPE_FACTORS};
use crate::engine::EngineError;
use crate::engine::hyper::{Hyper, QkNorm};

/// Rows and columns of the seven linears of a layer, by the part of their name after `blk.N.`.
pub fn linears(hyper: &Hyper) -> [(&'static str, usize, usize); 7] {
    let (q, kv) = (hyper.q_width(), hyper.kv_width());
    [
        ("attn_q", q, hyper.hidden),
        ("attn_k", kv, hyper.hidden),
        ("attn_v", kv, hyper.hidden),
        ("attn_output", hyper.hidden, q),
        ("ffn_gate", hyper.ffn, hyper.hidden),
        ("ffn_up", hyper.ffn, hyper.hidden),
        ("ffn_down", hyper.hidden, hyper.ffn),
    ]
}

/// A tensor that a model has or may have. Dimensions are columns first.
struct Expected {
    name: String,
    shape: Vec<u64>,
    required: bool,
}

/// # Errors
/// A tensor that is absent, unknown, of the wrong shape or type.
pub fn check(found: &[TensorInfo], architecture: &Architecture, hyper: &Hyper) -> Result<(), EngineError> {
    let mut expected: HashMap<String, Expected> = expected(architecture, hyper)
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    for info in found {
        let Some(expected) = expected.remove(&info.name) else {
            return Err(EngineError::UnknownTensor {
                name: info.name.clone(),
                architecture: architecture.name,
            });
        };
        check_one(info, expected.shape)?;
    }
    match expected.into_values().find(|tensor| tensor.required) {
        Some(tensor) => Err(EngineError::MissingTensor { name: tensor.name }),
        None => Ok(()),
    }
}

fn expected(architecture: &Architecture, hyper: &Hyper) -> Vec<Expected> {
    let mut all = vec![];
    let mut add = |name: String, shape: &[usize], required: bool| {
        let shape = shape.iter().map(|&n| n as u64).collect();
        all.push(Expected { name, shape, required });
    };
    add(EMBEDDING.into(), &[hyper.hidden, hyper.vocab], true);
    add("output_norm.weight".into(), &[hyper.hidden], true);
    if architecture.own_head {
        add("output.weight".into(), &[hyper.hidden, hyper.vocab], false);
    }
    if architecture.rope_factors {
        add(ROPE_FACTORS.into(), &[hyper.head_dim / 2], false);
    }
    for layer in 0..hyper.layers {
        for norm in ["attn_norm", "ffn_norm"] {
            add(format!("blk.{layer}.{norm}.weight"), &[hyper.hidden], true);
        }
        if hyper.variant.qk_norm != QkNorm::None {
            for norm in ["attn_q_norm", "attn_k_norm"] {
                add(format!("blk.{layer}.{norm}.weight"), &[hyper.head_dim], true);
            }
        }
        if hyper.variant.sub_norms {
            add(format!("blk.{layer}.attn_sub_norm.weight"), &[hyper.q_width()], true);
            add(format!("blk.{layer}.ffn_sub_norm.weight"), &[hyper.ffn], true);
        }
        for (part, rows, columns) in linears(hyper) {
            add(format!("blk.{layer}.{part}.weight"), &[columns, rows], true);
            if architecture.biases.contains(&part) {
                add(format!("blk.{layer}.{part}.bias"), &[rows], false);
            }
        }
    }
    all
}

/// No blocks that only a fork of llama.cpp reads, whatever the rest of the file says: they can be packed as others.
pub fn check_types(found: &[TensorInfo]) -> Result<(), EngineError> {
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
fn check_one(info: &TensorInfo, expected: Vec<u64>) -> Result<(), EngineError> {
    let dimensions = info.shape.iter().rposition(|&n| n != 1).map_or(1, |last| last + 1);
    if info.shape[..dimensions.min(info.shape.len())] != expected {
        return Err(EngineError::Shape {
            name: info.name.clone(),
            found: info.shape.clone(),
            expected,
        });
    }
    let wanted = match expected.len() {
        2 if !info.ty.has_cpu_product() => "a type that llama.cpp multiplies: F32, F16, BF16 or blocks",
        1 if info.ty != BlockType::F32 => "F32: ggml aborts on any other norm or bias",
        _ => return Ok(()),
    };
    Err(EngineError::Type {
        name: info.name.clone(),
        found: info.ty.to_string(),
        expected: wanted,
    })
}
