//! The keys of the output: what llama.cpp reads, and where the file came from.

use formats::block::BlockType;
use formats::gguf::{Array, Value};

use super::encode::Loss;
use super::graph::model_metadata;
use super::naming::size_label;
use super::options::Options;
use super::{PackError, hash};
use crate::model::{Checkpoint, Gguf};

pub type Keys = Vec<(String, Value)>;

const FILE_TYPE: &str = "general.file_type";
const QUANTIZATION_VERSION: &str = "general.quantization_version";
const WEIGHT_NMSE: &str = "tqconv.weight_nmse";
/// What earlier packings of the input lost.
const EARLIER_NMSE: &str = "tqconv.source.weight_nmse";
const VERSION: &str = "tqconv.version";
const SOURCE_FILES: &str = "tqconv.source.files";
const SOURCE_HASHES: &str = "tqconv.source.sha256";

/// Set what is known when all weights have been read. `ty`: that of most linears. `loss`: over all. `hashes`: of each
/// input file, if they are to be noted.
pub fn set_found(keys: &mut Keys, ty: BlockType, loss: Loss, hashes: Vec<String>) {
    put(keys, FILE_TYPE, Value::U32(ty.file_type().unwrap_or(0)));
    put(keys, WEIGHT_NMSE, Value::F64(loss.nmse()));
    if !hashes.is_empty() {
        put(keys, SOURCE_HASHES, Value::Array(Array::String(hashes)));
    }
}

/// Give `key` a value: in its place where it is there, else at the end.
fn put(keys: &mut Keys, key: &str, value: Value) {
    match keys.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => keys.push((key.into(), value)),
    }
}

/// What was lost until a GGUF file with these keys was made: an upper bound of the NMSE over all its ternary weights.
pub fn earlier_loss(keys: &[(String, Value)]) -> f64 {
    let nmse = |wanted: &str| match keys.iter().find(|(key, _)| key == wanted) {
        Some((_, Value::F64(nmse))) => *nmse,
        _ => 0.0,
    };
    let (own, earlier) = (nmse(WEIGHT_NMSE), nmse(EARLIER_NMSE));
    // (sqrt a + sqrt b)^2: root mean squares of errors add up to no less than that of their sum.
    own + earlier + 2.0 * (own * earlier).sqrt()
}

/// The keys of a GGUF file in their order, with those that say how the output is stored and where it came from. As with
/// [`keys`], [`set_found`] sets what depends on the weights.
///
/// # Errors
/// A key that cannot be set as `options` has it.
pub fn keys_of_gguf(gguf: &Gguf, options: &Options, files: Option<Vec<String>>) -> Result<Keys, PackError> {
    // The output has the default alignment, and is split in its own way.
    let stays = |key: &str| key != "general.alignment" && !key.starts_with("split.");
    let mut keys: Keys = gguf.metadata().iter().filter(|(key, _)| stays(key)).cloned().collect();
    put(&mut keys, FILE_TYPE, Value::U32(0));
    put(&mut keys, QUANTIZATION_VERSION, Value::U32(2)); // GGML_QNT_VERSION
    put(&mut keys, VERSION, Value::String(env!("CARGO_PKG_VERSION").into()));
    put(&mut keys, WEIGHT_NMSE, Value::F64(0.0));
    let earlier = earlier_loss(gguf.metadata());
    if earlier > 0.0 {
        put(&mut keys, EARLIER_NMSE, Value::F64(earlier));
    }
    note_source(&mut keys, files);
    for (key, text) in &options.metadata {
        set_key(&mut keys, key, text, gguf.architecture())?;
    }
    Ok(keys)
}

/// Note the names of the input files, if their hashes are to be noted, with room for these.
fn note_source(keys: &mut Keys, files: Option<Vec<String>>) {
    if let Some(files) = files {
        let hashes = vec!["0".repeat(hash::DIGITS); files.len()];
        put(keys, SOURCE_FILES, Value::Array(Array::String(files)));
        put(keys, SOURCE_HASHES, Value::Array(Array::String(hashes)));
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
    let architecture = checkpoint.config.architecture.graph.name;
    let mut keys = vec![
        ("general.architecture".into(), text(architecture)),
        ("general.type".into(), text("model")),
        ("general.size_label".into(), Value::String(size_label(weights))),
        (FILE_TYPE.into(), Value::U32(0)),
        (QUANTIZATION_VERSION.into(), Value::U32(2)), // GGML_QNT_VERSION
    ];
    let named = [
        ("general.name", &options.name),
        ("general.organization", &options.organization),
    ];
    let named = named
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_string(), text(value.as_ref()?))));
    keys.splice(2..2, named.chain(options.card.keys()));
    keys.extend(model_metadata(&checkpoint.config));
    keys.extend(tokenizer);
    keys.extend(provenance(checkpoint, files));
    for (key, text) in &options.metadata {
        set_key(&mut keys, key, text, architecture)?;
    }
    Ok(keys)
}

/// What was packed, and how: keys that engines pass over.
fn provenance(checkpoint: &Checkpoint, files: Option<Vec<String>>) -> Keys {
    let first = checkpoint.config.linears().next().expect("a model has linears");
    let training = checkpoint.scheme.training().keys(checkpoint.weight(first).dtype);
    let mut keys = vec![(VERSION.to_string(), Value::String(env!("CARGO_PKG_VERSION").into()))];
    keys.extend(
        training
            .into_iter()
            .map(|(key, value)| (format!("tqconv.{key}"), value)),
    );
    keys.push((WEIGHT_NMSE.into(), Value::F64(0.0)));
    note_source(&mut keys, files);
    keys
}

/// What a value of `--metadata` must be.
enum Kind {
    Text,
    Flag,
    Context,
    TokenId,
}

/// What `--metadata` may set: nothing that the tensors, the forward pass or the splitting of text depend on, so that
/// the file stays the one that the checkpoint gives. `architecture`: what the keys of the model begin with.
fn kind(key: &str, architecture: &str) -> Result<Kind, &'static str> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_word = |part: &str| !part.is_empty() && part.chars().all(legal);
    let of_model = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.'));
    if key.len() > MAX_KEY || !of_model.unwrap_or(key).split(['.', '_']).all(is_word) {
        return Err("a key of lower-case names with dots between them, as general.name");
    }
    match key {
        _ if of_model == Some("context_length") => Ok(Kind::Context),
        _ if of_model.is_some() => Err("another key: the shape of the model is what config.json says (--config)"),
        "tokenizer.ggml.add_bos_token" | "tokenizer.ggml.add_eos_token" => Ok(Kind::Flag),
        _ if key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id") => Ok(Kind::TokenId),
        _ if key.starts_with("tokenizer.chat_template") => Ok(Kind::Text),
        _ if key.starts_with("tokenizer.") => {
            Err("another key: how text is split is what --tokenizer and --tokenizer-pre say")
        }
        "general.architecture" | "general.alignment" | "general.file_type" | "general.quantization_version" => {
            Err("another key: this one says how the file is read")
        }
        _ if key.starts_with("tqconv.") || key.starts_with("split.") => {
            Err("another key: this one says how the file was made")
        }
        _ => Ok(Kind::Text),
    }
}

/// Tokens: a shorter context predicts next to nothing.
const LEAST_CONTEXT: u32 = 64;

/// Bytes of a key (docs/gguf.md of ggml allows 2^16 - 1, which no reader shows).
const MAX_KEY: usize = 255;

/// Give `key` the value written as `text`.
fn set_key(keys: &mut Keys, key: &str, text: &str, architecture: &str) -> Result<(), PackError> {
    let wrong = |expected: &str| PackError::Metadata {
        key: key.into(),
        text: text.into(),
        expected: expected.into(),
    };
    let number = |range: std::ops::Range<u32>| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let last = range.end - 1;
        number.ok_or_else(|| wrong(&format!("a whole number from {} to {last}", range.start)))
    };
    let value = match kind(key, architecture).map_err(wrong)? {
        Kind::Text => Value::String(text.into()),
        Kind::Flag => Value::Bool(text.parse().map_err(|_| wrong("true or false"))?),
        Kind::Context => Value::U32(number(LEAST_CONTEXT..1 << 31)?),
        Kind::TokenId => {
            let id = number(0..vocabulary(keys))?;
            if !is_control(keys, id) {
                return Err(wrong(
                    "the id of a special token: llama.cpp makes it one, and then splits text otherwise",
                ));
            }
            Value::U32(id)
        }
    };
    put(keys, key, value);
    Ok(())
}

/// How many tokens there are.
fn vocabulary(keys: &Keys) -> u32 {
    let tokens = keys.iter().find(|(name, _)| name == "tokenizer.ggml.tokens");
    let tokens = tokens.and_then(|(_, value)| value.as_strings());
    tokens.map_or(0, <[String]>::len) as u32
}

/// Whether a token is one that steers and is not spelled by a text.
fn is_control(keys: &Keys, id: u32) -> bool {
    const CONTROL: i32 = 3; // LLAMA_TOKEN_TYPE_CONTROL
    let types = keys.iter().find(|(name, _)| name == "tokenizer.ggml.token_type");
    match types {
        Some((_, Value::Array(Array::I32(types)))) => types.get(id as usize) == Some(&CONTROL),
        _ => false,
    }
}
