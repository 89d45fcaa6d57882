//! The keys of the output: what llama.cpp reads, and where the file came from.

use formats::block::BlockType;
use formats::gguf::{Array, Value};

use super::plan::Options;
use super::{PackError, Summary, hash};
use crate::model::{Checkpoint, Linear, Part, model_metadata};
use crate::tequila::Granularity;

pub type Keys = Vec<(String, Value)>;

const FILE_TYPE: &str = "general.file_type";
const WEIGHT_NMSE: &str = "tqconv.weight_nmse";
const SOURCE_HASHES: &str = "tqconv.source.sha256";

/// Set what is known when all weights have been read, but for what the user has set. `hashes`: of each input file.
pub fn set_found(keys: &mut Keys, options: &Options, summary: &Summary, hashes: Vec<String>) {
    let found = [
        (FILE_TYPE, Value::U32(file_type(summary.main_type()))),
        (WEIGHT_NMSE, Value::F64(summary.loss.nmse())),
        (SOURCE_HASHES, Value::Array(Array::String(hashes))),
    ];
    let by_user = |key: &str| options.metadata.iter().any(|(name, _)| name == key);
    for (key, value) in found {
        if let Some((_, old)) = keys.iter_mut().find(|(name, _)| name == key)
            && !by_user(key)
        {
            *old = value;
        }
    }
}

/// All keys, in file order. Those that depend on the weights have the length that they will have when
/// [`set_found`] sets them, so that a file can be laid out before.
///
/// `weights`: of all tensors.  `files`: names of the input files, if their hashes are to be noted.
///
/// # Errors
/// A key that cannot be set as `options` has it.
pub fn keys(
    checkpoint: &Checkpoint,
    options: &Options,
    tokenizer: Keys,
    weights: u64,
    files: Option<Vec<String>>,
) -> Result<Keys, PackError> {
    let text = |text: &str| Value::String(text.into());
    let mut keys = vec![
        ("general.architecture".into(), text("llama")),
        ("general.type".into(), text("model")),
        (
            "general.size_label".into(),
            Value::String(size_label(weights)),
        ),
        (FILE_TYPE.into(), Value::U32(0)),
        ("general.quantization_version".into(), Value::U32(2)), // GGML_QNT_VERSION
    ];
    let named = [
        ("general.name", &options.name),
        ("general.organization", &options.organization),
    ];
    let named = named
        .into_iter()
        .filter_map(|(key, value)| Some((key.into(), text(value.as_ref()?))));
    keys.splice(2..2, named);
    keys.extend(model_metadata(&checkpoint.config));
    keys.extend(tokenizer);
    keys.extend(provenance(checkpoint, files));
    for (key, text) in &options.metadata {
        set_key(&mut keys, key, text)?;
    }
    Ok(keys)
}

/// What was packed, and how: keys that engines pass over.
fn provenance(checkpoint: &Checkpoint, files: Option<Vec<String>>) -> Keys {
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
    keys.push((WEIGHT_NMSE, Value::F64(0.0)));
    if let Some(files) = files {
        let hashes = vec!["0".repeat(hash::DIGITS); files.len()];
        keys.push(("tqconv.source.files", Value::Array(Array::String(files))));
        keys.push((SOURCE_HASHES, Value::Array(Array::String(hashes))));
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
