//! The tensors that a file must and may have, each of its shape and a type that ggml computes with.

use std::collections::HashMap;

use formats::block::BlockType;
use formats::gguf::TensorInfo;

use crate::blueprint::{Dims, Graph, Slot};
use crate::engine::EngineError;

/// A tensor that a model has or may have. Dimensions are columns first.
struct Expected {
    name: String,
    shape: Vec<u64>,
    required: bool,
}

/// # Errors
/// A tensor that is absent, unknown, of the wrong shape or type.
pub fn check(found: &[TensorInfo], graph: &Graph, dims: &Dims) -> Result<(), EngineError> {
    let mut expected: HashMap<String, Expected> = expected(graph, dims)
        .into_iter()
        .map(|tensor| (tensor.name.clone(), tensor))
        .collect();
    for info in found {
        let Some(expected) = expected.remove(&info.name) else {
            return Err(EngineError::UnknownTensor {
                name: info.name.clone(),
                architecture: graph.name,
            });
        };
        check_one(info, expected.shape)?;
    }
    match expected.into_values().find(|tensor| tensor.required) {
        Some(tensor) => Err(EngineError::MissingTensor { name: tensor.name }),
        None => Ok(()),
    }
}

fn expected(graph: &Graph, dims: &Dims) -> Vec<Expected> {
    let mut all = vec![];
    for slot in graph.slots(dims) {
        all.push(Expected {
            name: slot.gguf_name(),
            shape: slot.gguf_shape(dims),
            required: !matches!(slot, Slot::Head | Slot::RopeFactors),
        });
        if let Slot::Linear(linear) = slot
            && graph.bias_slots.contains(&linear.part)
        {
            let (rows, _) = linear.shape(dims);
            all.push(Expected {
                name: format!("{}.bias", linear.gguf_name()),
                shape: vec![rows as u64],
                required: false,
            });
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
