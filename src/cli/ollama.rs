//! Models as Ollama has them: their names, and the Modelfile.

use std::path::Path;

use formats::gguf::Value;

/// A name that Ollama allows: lower case letters, digits, and `-`, `_`, `.` between them.
pub fn name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    let name: String = stem
        .to_lowercase()
        .chars()
        .map(|c| if legal(c) { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '_', '.']);
    let end = name.len().min(80); // types/model/name.go
    match name {
        "" => "model".into(),
        name => name[..end].into(),
    }
}

/// What `ollama create -f` reads. A model without a chat template gets the prompt as it is; one with a template is run by
/// the template that is in the file.
pub fn modelfile(file: &Path, metadata: &[(String, Value)]) -> String {
    /// Ollama takes memory for the whole context at once.
    const MOST_CONTEXT: u32 = 8192;
    let value = |key: &str| metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!("FROM ./{name}\n");
    if value("tokenizer.chat_template").is_none() {
        text += "TEMPLATE \"\"\"{{ .Prompt }}\"\"\"\n";
    }
    let architecture = value("general.architecture")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if let Some(context) = value(&format!("{architecture}.context_length")).and_then(Value::as_u32) {
        text += &format!("PARAMETER num_ctx {}\n", context.min(MOST_CONTEXT));
    }
    let tokens = value("tokenizer.ggml.tokens")
        .and_then(Value::as_strings)
        .unwrap_or_default();
    for end in ["eos", "eot", "eom"] {
        let id = value(&format!("tokenizer.ggml.{end}_token_id")).and_then(Value::as_u32);
        let token = id.and_then(|id| tokens.get(id as usize));
        if let Some(token) = token.filter(|token| !token.contains(['"', '\n'])) {
            text += &format!("PARAMETER stop \"{token}\"\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_ollama_allows() {
        let names = ["My Model-1B.Q2_K.gguf", "--x.gguf", "\u{e4}.gguf", "a.b.gguf"];
        let found = names.map(|name| super::name(Path::new(name)));
        assert_eq!(found, ["my-model-1b.q2_k", "x", "model", "a.b"]);
    }
}
