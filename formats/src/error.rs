//! What can be wrong with a file, with the facts: the place, what was found, what was expected.
//! The path is not known here; whoever opened the file puts it in front.

use crate::block::BlockType;

/// What to do about a file that breaks its format's rules.
pub(crate) const DAMAGED: &str = "the file is damaged, fetch or write it again";

/// A file that does not hold what its format promises.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file ends before something it promises.
    #[error(
        "{what} needs {need} bytes at offset {at}, the file ends at {end}: it is truncated, fetch or write it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts, bytes from the start of the file.
        at: u64,
        /// Its length in bytes.
        need: u64,
        /// The length of the file in bytes.
        end: u64,
    },
    /// The first bytes belong to no GGUF file.
    #[error("not a GGUF file: it starts with {found}, expected \"GGUF\"; name a GGUF file")]
    Magic {
        /// What the first bytes look like.
        found: String,
    },
    /// A GGUF version that llama.cpp does not read either.
    #[error("GGUF version {found}, expected 2 or 3; {remedy}")]
    Version {
        /// The version field.
        found: u32,
        /// What the version means, and what to do.
        remedy: &'static str,
    },
    /// A number larger than any sound file has.
    #[error("{what} is {found}, at most {max} is allowed; {}", DAMAGED)]
    Limit {
        /// What is counted.
        what: String,
        /// The number in the file.
        found: u64,
        /// The largest allowed one.
        max: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8 text; {}", DAMAGED)]
    Utf8 {
        /// Which text.
        what: String,
    },
    /// A name that is duplicated.
    #[error("{what} '{name}' is duplicated, expected once; {}", DAMAGED)]
    Duplicate {
        /// "key" or "tensor".
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A name that no file may hold.
    #[error("{what} '{name}' {problem}; {}", DAMAGED)]
    Name {
        /// "key" or "tensor".
        what: &'static str,
        /// The name, control characters escaped.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A metadata value of a type that GGUF does not have (or an array of arrays).
    #[error("key '{key}' has value type {id}, expected 0 to 12{nested}; {}", DAMAGED)]
    ValueType {
        /// The key.
        key: String,
        /// The type id found.
        id: u32,
        /// Tells an array of arrays from an unknown type.
        nested: &'static str,
    },
    /// `general.alignment` that is no u32 power of two.
    #[error("key 'general.alignment' is {found}, expected a u32 power of two; {}", DAMAGED)]
    Alignment {
        /// The value found.
        found: String,
    },
    /// A tensor type that ggml does not know, or no longer knows.
    #[error("tensor '{tensor}' has type id {id}, {meaning}; {remedy}")]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The id found.
        id: u32,
        /// What the id is known for.
        meaning: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A shape that cannot be.
    #[error("tensor '{tensor}' has shape {shape:?}: {problem}; {}", DAMAGED)]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape as the file gives it.
        shape: Vec<i64>,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Rows that do not fill whole blocks.
    #[error("tensor '{tensor}' has {columns} columns, {block} needs a multiple of {}; {}", block.weights(), DAMAGED)]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its columns.
        columns: u64,
        /// Its type.
        block: BlockType,
    },
    /// An offset other than the running sum of the padded sizes.
    #[error("tensor '{tensor}' is at offset {found}, expected {expected}; {remedy}")]
    Offset {
        /// The tensor.
        tensor: String,
        /// The offset in the file.
        found: u64,
        /// The offset that follows from the tensors before it.
        expected: u64,
        /// What a known wrong offset means, and what to do.
        remedy: &'static str,
    },
    /// Parts that are not those of one split model.
    #[error("part {part} of the model: {problem}; take all parts from one download")]
    Split {
        /// The part, from 1.
        part: usize,
        /// What does not fit.
        problem: String,
    },
    /// A file of another kind where safetensors are expected.
    #[error("not a safetensors file: it is {found}")]
    NotSafetensors {
        /// What it is, and what to do.
        found: &'static str,
    },
    /// A safetensors header that breaks the format's rules.
    #[error("invalid safetensors file: {problem}; fetch it again, or save the checkpoint again")]
    Safetensors {
        /// Which rule, with what was found.
        problem: String,
    },
    /// A shard index that breaks its rules.
    #[error("invalid shard index: {problem}; fetch it again, or save the checkpoint again")]
    ShardIndex {
        /// Which rule, with what was found.
        problem: String,
    },
}

/// What a file that is not of the expected format looks like from its first bytes.
pub(crate) fn describe_start(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing: the file is empty".into();
    }
    match known_start(bytes) {
        Some(name) => name.into(),
        None => format!("bytes {:02x?}", &bytes[..bytes.len().min(4)]),
    }
}

/// The kind of file that starts so, of those that are often taken for a model, with what to do.
pub(crate) fn known_start(bytes: &[u8]) -> Option<&'static str> {
    const HTML: &str = "an HTML page, not the file itself (a failed download? fetch it again)";
    const PICKLE: &str = "a Python pickle (save the checkpoint as safetensors)";
    const KNOWN: [(&[u8], &str); 14] = [
        (
            b"version https://git-lfs",
            "a git-lfs pointer, not the file itself (run `git lfs pull`)",
        ),
        (b"<!DOCTYPE", HTML),
        (b"<!doctype", HTML),
        (b"<html", HTML),
        (
            b"PK\x03\x04",
            "a zip archive (a PyTorch checkpoint? save it as safetensors)",
        ),
        (b"\x80\x02", PICKLE),
        (b"\x80\x03", PICKLE),
        (b"\x80\x04", PICKLE),
        (b"\x80\x05", PICKLE),
        (b"\x1f\x8b", "a gzip archive (unpack it first)"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive (unpack it first)"),
        (b"GGUF", "a GGUF file (packed already: use it as it is)"),
        (b"FUGG", "a big-endian GGUF file (convert it to little-endian)"),
        (b"ggjt", "a GGML file of before GGUF"),
    ];
    KNOWN
        .iter()
        .find(|(start, _)| bytes.starts_with(start))
        .map(|(_, name)| *name)
}
