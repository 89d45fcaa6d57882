//! What to do with the file that was packed: commands that work as they are printed.

use std::ffi::OsString;
use std::path::Path;

use formats::gguf::Value;

use super::{PackArgs, choose};
use crate::choose::Chosen;
use crate::cli::shell;
use crate::pack::Packed;

/// What the commands depend on.
pub(super) struct Next<'a> {
    pub args: &'a PackArgs,
    /// As it was named, or called after the model.
    pub output: &'a Path,
    pub packed: &'a Packed<'a>,
    /// Where the types were chosen by their KLD.
    pub chosen: Option<&'a Chosen>,
    /// The file that the model is opened by.
    pub first: &'a Path,
    /// Whether the model has a chat template.
    pub has_template: bool,
    /// For Ollama, if it was written.
    pub modelfile: Option<&'a Path>,
}

impl Next<'_> {
    /// Lines for a person.
    pub fn text(&self) -> String {
        let mut lines = vec![];
        if let Some(modelfile) = self.modelfile {
            let (name, file) = (ollama_name(self.output), path_word(modelfile));
            let create = ["ollama".into(), "create".into(), name.clone().into(), "-f".into(), file];
            lines.push(format!("{} && ollama run {name}", shell::command(create)));
        }
        let file = shell::quoted(&path_word(self.first));
        lines.push(format!("tqconv run {file} -p \"...\""));
        lines.push(match self.has_template {
            true => format!("llama-cli -m {file}"),
            false => format!("llama-completion -m {file} -p \"...\""),
        });
        if self.has_template {
            lines.push(format!("llama-server -m {file}"));
        }
        let mut text = String::new();
        for (line, label) in lines.iter().zip(["run it:", "or:", "or:", "or:"]) {
            text += &format!("{label:<8} {line}\n");
        }
        text + &format!("prove it:  {}\n", self.verify())
    }

    /// What storing a linear was allowed to lose, or did lose where nothing was asked for.
    fn max_nmse(&self) -> f64 {
        let worst = self.packed.summary.worst.as_ref().map_or(0.0, |(_, worst)| *worst);
        match self.chosen {
            Some(_) if worst > self.args.limit() => choose::rounded_up(worst),
            _ => self.args.limit(),
        }
    }

    /// The verification of what was written against what was asked for: all that `pack` was told and that the checkpoint
    /// does not say.
    pub fn verify(&self) -> String {
        let args = self.args;
        let mut words: Vec<OsString> = vec!["tqconv".into(), "verify".into()];
        words.extend([path_word(self.first), "--against".into(), path_word(&args.input)]);
        if self.modelfile.is_some() {
            words.extend(["--for".into(), "ollama".into()]);
        }
        if self.max_nmse() != super::MAX_NMSE {
            words.extend(["--max-nmse".into(), format!("{:e}", self.max_nmse()).into()]);
        }
        if let Some(chosen) = self.chosen {
            words.extend(choose::words(args, chosen));
        }
        words.extend(args.checkpoint.words());
        for (key, value) in &args.metadata {
            words.extend(shell::option("--metadata", format!("{key}={value}")));
        }
        shell::command(words)
    }
}

/// A path that no program takes for an option.
fn path_word(path: &Path) -> OsString {
    let is_option = path.as_os_str().as_encoded_bytes().starts_with(b"-");
    match is_option {
        true => Path::new(".").join(path).into(),
        false => path.into(),
    }
}

/// A name that Ollama allows: lower case letters, digits, and `-`, `_`, `.` between them.
pub(in crate::cli) fn ollama_name(output: &Path) -> String {
    let stem = output.file_stem().unwrap_or_default().to_string_lossy();
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

pub(super) fn has_template(metadata: &[(String, Value)]) -> bool {
    metadata.iter().any(|(key, _)| key == "tokenizer.chat_template")
}

/// What `ollama create -f` reads. A model without a chat template gets the prompt as it is; one with a template is run by
/// the template that is in the file.
pub(super) fn modelfile_text(output: &Path, metadata: &[(String, Value)]) -> String {
    /// Ollama takes memory for the whole context at once.
    const MOST_CONTEXT: u32 = 8192;
    let value = |key: &str| metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value);
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!("FROM ./{name}\n");
    if !has_template(metadata) {
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
        let found = names.map(|name| ollama_name(Path::new(name)));
        assert_eq!(found, ["my-model-1b.q2_k", "x", "model", "a.b"]);
    }
}
