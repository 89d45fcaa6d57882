//! Level 1 for Ollama: the rules by which `ollama create` takes a file (server/create.go, fs/ggml), which are stricter
//! than llama.cpp's.

use formats::gguf::{Array, File, Value};

use super::report::{Check, CheckId};

/// `parts`: how many files the model is in.
pub(super) fn checks(file: &File, parts: usize) -> Vec<Check> {
    vec![one_file(parts), types(file), alignment(file), keys(file), names(file)]
}

fn one_file(parts: usize) -> Check {
    let problem = (parts > 1).then(|| {
        format!(
            "the model is in {parts} files: join them with `llama-gguf-split --merge`, or pack without --split-max-size"
        )
    });
    Check::no_problems(
        CheckId::OllamaOneFile,
        problem,
        1,
        "model",
        "`ollama create` reads no split models (ollama issue 5245)",
    )
}

fn types(file: &File) -> Check {
    let refused = file.tensors().iter().filter(|info| !info.ty.ollama_reads());
    let problems = refused.map(|info| {
        format!(
            "tensor '{}' is {}: `ollama create` fails with \"size overflow\"; pack with --for ollama",
            info.name, info.ty
        )
    });
    Check::no_problems(
        CheckId::OllamaTypes,
        problems,
        file.tensors().len() as u64,
        "tensors",
        "types that Ollama knows a size of (fs/ggml/ggml.go)",
    )
}

fn alignment(file: &File) -> Check {
    let found = file.alignment();
    let problem =
        (found != 32).then(|| format!("key 'general.alignment' is {found}: `ollama create` copies the file with 32"));
    Check::no_problems(
        CheckId::OllamaAlignment,
        problem,
        1,
        "key",
        "`ollama create` pads at 32 bytes and keeps the key",
    )
}

/// The keys that Ollama reads as u32 (any other type silently reads as 0), and the lengths that it allows.
fn keys(file: &File) -> Check {
    const U32: [&str; 5] = [
        "context_length",
        "block_count",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
    ];
    const MAX_STRING: usize = 16 << 20;
    const MAX_ARRAY: usize = 64 << 20;
    let architecture = file.get("general.architecture").and_then(Value::as_str);
    let of_architecture = U32.map(|key| format!("{}.{key}", architecture.unwrap_or_default()));
    let mut problems: Vec<_> = of_architecture
        .iter()
        .map(String::as_str)
        .chain(["general.file_type"])
        .filter(|key| file.get(key).and_then(Value::as_u32).is_none())
        .map(|key| match file.get(key) {
            None => format!("key '{key}' is absent, expected u32"),
            Some(value) => format!("key '{key}' is of type {}, expected u32", value.type_name()),
        })
        .collect();
    for (key, value) in file.metadata() {
        let longest = match value {
            Value::String(text) => text.len(),
            Value::Array(Array::String(texts)) => texts.iter().map(String::len).max().unwrap_or(0),
            _ => 0,
        };
        if longest > MAX_STRING {
            problems.push(format!(
                "key '{key}' has a text of {longest} bytes, at most {MAX_STRING} are allowed"
            ));
        }
        if let Value::Array(array) = value
            && array.len() > MAX_ARRAY
        {
            problems.push(format!(
                "key '{key}' has {} values, at most {MAX_ARRAY} are allowed",
                array.len()
            ));
        }
    }
    Check::no_problems(
        CheckId::OllamaKeys,
        problems,
        (U32.len() + 1 + file.metadata().len()) as u64,
        "keys",
        "what Ollama reads as u32, and its limits (fs/gguf/gguf.go)",
    )
}

/// Tensors by whose name Ollama takes the file for an adapter or a part of one (server/create.go).
fn names(file: &File) -> Check {
    const RESERVED: [&str; 5] = ["a.", "mm.", "mtp.", "s.", "v."];
    let reserved = |name: &str| RESERVED.iter().any(|prefix| name.starts_with(prefix));
    let found = file.tensors().iter().filter(|info| reserved(&info.name));
    let problems = found.map(|info| {
        format!(
            "tensor '{}' has a name that Ollama keeps for vision and audio",
            info.name
        )
    });
    Check::no_problems(
        CheckId::OllamaNames,
        problems,
        file.tensors().len() as u64,
        "tensors",
        "prefixes that Ollama treats otherwise (server/create.go)",
    )
}
