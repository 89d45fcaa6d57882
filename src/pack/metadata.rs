//! The keys of the output: what llama.cpp reads, and where the file came from.

use formats::block::BlockType;
use formats::gguf::{Array, Value};

use super::plan::Options;
use super::{PackError, Summary};
use crate::model::{Checkpoint, Linear, Part, model_metadata};
use crate::tequila::Granularity;

type Keys = Vec<(String, Value)>;

/// All keys, in file order. How long they are together depends on `checkpoint`, `options`, `weights` and the number of
/// hashes alone: the start of a file can be laid out before its weights are known.
///
/// `weights`: of all tensors.  `hashes`: sha256 of each input file, by file name.
///
/// # Errors
/// A key that cannot be set as `options` has it.
pub fn keys(
    checkpoint: &Checkpoint,
    options: &Options,
    summary: &Summary,
    weights: u64,
    hashes: &[(String, String)],
) -> Result<Keys, PackError> {
    let text = |text: &str| Value::String(text.into());
    let mut keys = vec![
        ("general.architecture".into(), text("llama")),
        ("general.type".into(), text("model")),
        (
            "general.size_label".into(),
            Value::String(size_label(weights)),
        ),
        (
            "general.file_type".into(),
            Value::U32(file_type(summary.main_type())),
        ),
        ("general.quantization_version".into(), Value::U32(2)), // GGML_QNT_VERSION
    ];
    if let Some(name) = &options.name {
        keys.insert(2, ("general.name".into(), text(name)));
    }
    keys.extend(model_metadata(&checkpoint.config));
    keys.extend(options.tokenizer.iter().cloned());
    keys.extend(provenance(checkpoint, summary, hashes));
    for (key, text) in &options.metadata {
        set_key(&mut keys, key, text)?;
    }
    Ok(keys)
}

/// What was packed, and how: keys that engines pass over.
fn provenance(checkpoint: &Checkpoint, summary: &Summary, hashes: &[(String, String)]) -> Keys {
    let training = &checkpoint.training;
    let (granularity, group_size) = match training.granularity {
        Granularity::Group(size) => ("per_group", Some(size)),
        Granularity::Channel => ("per_channel", None),
        Granularity::Tensor => ("per_tensor", None),
    };
    let mut keys = vec![
        (
            "tqconv.version",
            Value::String(env!("CARGO_PKG_VERSION").into()),
        ),
        (
            "tqconv.quant_method",
            Value::String(training.lambda.method().into()),
        ),
        ("tqconv.granularity", Value::String(granularity.into())),
    ];
    if let Some(size) = group_size {
        keys.push(("tqconv.group_size", Value::U64(size as u64)));
    }
    let first = Linear {
        layer: 0,
        part: Part::Q,
    };
    if let Some(lambda) = training.lambda.fixed(checkpoint.linear(first).weight.dtype) {
        keys.push(("tqconv.lambda", Value::F32(lambda)));
    }
    keys.push(("tqconv.weight_nmse", Value::F64(summary.loss.nmse())));
    if !hashes.is_empty() {
        let (files, hashes) = hashes.iter().cloned().unzip();
        keys.push(("tqconv.source.files", Value::Array(Array::String(files))));
        keys.push(("tqconv.source.sha256", Value::Array(Array::String(hashes))));
    }
    keys.into_iter()
        .map(|(key, value)| (key.into(), value))
        .collect()
}

/// Give `key` the value written as `text`, in the type that the key has; a new key is a string.
fn set_key(keys: &mut Vec<(String, Value)>, key: &str, text: &str) -> Result<(), PackError> {
    let wrong = |expected: &'static str| PackError::Metadata {
        key: key.into(),
        text: text.into(),
        expected,
    };
    if key.is_empty() || matches!(key, "general.architecture" | "general.alignment") {
        return Err(wrong("another key: this one decides how the file is read"));
    }
    let Some((_, value)) = keys.iter_mut().find(|(name, _)| name == key) else {
        keys.push((key.into(), Value::String(text.into())));
        return Ok(());
    };
    *value = match value {
        Value::String(_) => Value::String(text.into()),
        Value::U32(_) => Value::U32(text.parse().map_err(|_| wrong("a whole number"))?),
        Value::F32(_) => Value::F32(text.parse().map_err(|_| wrong("a number"))?),
        Value::Bool(_) => Value::Bool(text.parse().map_err(|_| wrong("true or false"))?),
        _ => {
            return Err(wrong(
                "a key whose value is text, a number or true or false",
            ));
        }
    };
    Ok(())
}

/// `llama_ftype` of include/llama.h: shown to people, decides nothing.
fn file_type(ty: BlockType) -> u32 {
    match ty {
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q8_0 => 7,
        BlockType::Q2_K => 10,
        BlockType::BF16 => 32,
        BlockType::TQ1_0 => 36,
        BlockType::TQ2_0 => 37,
        BlockType::Q2_0 => 41,
        _ => 0,
    }
}

/// The number of weights as in model names: `3.7M`, `1.2B`, `70B`.
fn size_label(weights: u64) -> String {
    let (value, unit) = match weights {
        0..1_000_000 => (weights as f64 / 1e3, "K"),
        1_000_000..1_000_000_000 => (weights as f64 / 1e6, "M"),
        _ => (weights as f64 / 1e9, "B"),
    };
    if value < 10.0 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}
