//! A card for the Hugging Face Hub: README.md beside the file, written by `pack --card`, with the figures that
//! `verify --card` puts in.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use formats::gguf::Value;

use super::evidence::Machine;
use super::{render, text};
use crate::files;
use crate::metrics::mean;
use crate::model::card::{CARD, Card};
use crate::verify::{EngineFacts, Report, Verdict};

/// Between these lines stands what was verified.
const BEGIN: &str = "<!-- tqconv verify: begin -->";
const END: &str = "<!-- tqconv verify: end -->";

/// Most bytes of a card that figures are put into.
const MOST_BYTES: u64 = 1 << 20;

/// The card that lies beside `output`.
pub(super) fn beside(output: &Path) -> PathBuf {
    files::folder_of(output).join(CARD)
}

/// What a new card tells.
pub(super) struct New<'a> {
    /// The keys of the file.
    pub keys: &'a [(String, Value)],
    /// Repository that the weights come from, where it is known: `OWNER/NAME`.
    pub repository: Option<String>,
    /// How the weights were trained, or what they were packed from.
    pub origin: String,
    /// The file, or the first of several.
    pub file: &'a Path,
    /// How many files the model is.
    pub files: usize,
    /// The types of the linears: `28 x Q2_K`.
    pub linears: String,
    pub bytes: u64,
    pub bits_per_weight: f64,
    pub nmse: f64,
    /// Whether all types of the file are known to Ollama.
    pub ollama: bool,
    /// The command that verifies the file.
    pub verify: String,
}

impl New<'_> {
    pub fn text(&self) -> String {
        let source = Card::of_keys(self.keys);
        let bases = match &self.repository {
            Some(repository) => vec![repository.clone()],
            None => source.base_models.clone(),
        };
        [
            front_matter(&source, &bases),
            self.head(&bases),
            self.table(),
            format!(
                "## Verified\n\n{BEGIN}\nNot yet. This puts the figures here:\n\n```sh\n{} --card {CARD}\n```\n{END}\n\n",
                self.verify
            ),
            self.how_to_run(),
        ]
        .concat()
    }

    fn head(&self, bases: &[String]) -> String {
        let name = self.value("general.name").and_then(Value::as_str);
        let name = name.map_or_else(
            || self.file.file_stem().unwrap_or_default().to_string_lossy(),
            Into::into,
        );
        let of = match bases {
            [base] => format!(" of [{0}](https://huggingface.co/{0})", escaped(base)),
            _ => String::new(),
        };
        format!(
            "# {name} GGUF\n\nThe ternary weights{of} as a GGUF file for llama.cpp, packed by tqconv {}: {}.\n\n",
            env!("CARGO_PKG_VERSION"),
            escaped(&self.origin),
            name = escaped(&name),
        )
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.keys.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    fn table(&self) -> String {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let more = match self.files {
            1 => String::new(),
            files => format!(" (first of {files} files)"),
        };
        format!(
            "| file | linears | size | bits per weight | weight NMSE |\n|---|---|---|---|---|\n| `{}`{more} | {} | {} | {:.4} | {} |\n\n\
             Codes are exactly those of training. Weight NMSE: the squared error of the stored weights, relative to their \
             squares; 0 where nothing was lost.\n\n",
            code(&name),
            self.linears,
            render::bytes(self.bytes),
            self.bits_per_weight,
            render::small(self.nmse),
        )
    }

    fn how_to_run(&self) -> String {
        let name = self.file.file_name().unwrap_or_default();
        let file = super::shell::quoted(name);
        let llama = match self.value("tokenizer.chat_template").is_some() {
            true => format!("llama-cli -m {file}"),
            false => format!("llama-completion -m {file} -p \"Once upon a time\""),
        };
        let mut text = format!(
            "## How to run it\n\n\
             llama.cpp:\n\n```sh\n{llama}\nllama-server -m {file}      # a web page and an API on port 8080\n```\n\n\
             LM Studio:\n\n```sh\nlms import {file}\n```\n\n"
        );
        text += &match (self.ollama, self.files) {
            (false, _) => {
                "Ollama: not this file, whose types `ollama create` refuses; `tqconv pack --for ollama` makes one \
                           that it reads.\n"
                    .into()
            }
            (true, 1) => {
                let model = super::ollama::name(self.file);
                format!(
                    "Ollama:\n\n```sh\necho \"FROM ./{0}\" > Modelfile\nollama create {model} -f Modelfile && ollama run {model}\n```\n",
                    code(&name.to_string_lossy())
                )
            }
            (true, _) => "Ollama reads no model that is split into several files.\n".into(),
        };
        text
    }
}

/// The Hub's own keys ("Model Cards", "Specifying a base model"). JSON strings are YAML strings.
fn front_matter(source: &Card, bases: &[String]) -> String {
    let mut text = String::from("---\n");
    let mut put = |key: &str, values: &[String]| match values {
        [] => {}
        [value] => text += &format!("{key}: {}\n", quoted(value)),
        values => {
            text += &format!("{key}:\n");
            values
                .iter()
                .for_each(|value| text += &format!("- {}\n", quoted(value)));
        }
    };
    put("license", source.license.as_slice());
    put("license_name", source.license_name.as_slice());
    put("license_link", source.license_link.as_slice());
    put("language", &source.languages);
    put("base_model", bases);
    if !bases.is_empty() {
        text += "base_model_relation: quantized\n";
    }
    text + "library_name: gguf\npipeline_tag: text-generation\ntags:\n- gguf\n- ternary\n- tqconv\n---\n\n"
}

/// As YAML reads it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let is_word = ["no", "yes", "on", "off", "true", "false", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    match starts && !is_word && text.chars().all(plain) {
        true => text.into(),
        false => serde_json::Value::from(text).to_string(),
    }
}

/// Text in Markdown, outside of code.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text::shown(text).chars() {
        if "\\`*_[]<>|#".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Text in Markdown between single backticks in a table.
fn code(text: &str) -> String {
    text::shown(text).replace('`', "'").replace('|', "\\|")
}

/// Check that the card at `path` has a place for figures, before anything is verified.
///
/// # Errors
/// The card cannot be read, or has no place for them.
pub(super) fn check(path: &Path) -> anyhow::Result<()> {
    parts(path).map(drop)
}

/// The card at `path` with what was found in it.
///
/// # Errors
/// The card cannot be read, or has no place for it.
pub(super) fn verified(path: &Path, report: &Report) -> anyhow::Result<String> {
    let (before, after) = parts(path)?;
    Ok(format!("{before}\n{}{after}", figures(report)))
}

/// What stands before and behind the figures.
fn parts(path: &Path) -> anyhow::Result<(String, String)> {
    let bytes = files::read(path, MOST_BYTES).with_context(|| path.display().to_string())?;
    let card = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let card = card.with_context(|| format!("{}: not a text of at most {MOST_BYTES} bytes", path.display()))?;
    let place = card.find(BEGIN).map(|at| at + BEGIN.len());
    let place = place.and_then(|from| Some((from, from + card[from..].find(END)?)));
    let (from, to) = place.with_context(|| {
        let path = path.display();
        format!("{path}: no lines '{BEGIN}' and '{END}' for the figures; pack --card writes a card with them")
    })?;
    Ok((card[..from].into(), card[to..].into()))
}

fn figures(report: &Report) -> String {
    let checks: usize = report.levels.iter().map(|level| level.checks.len()).sum();
    let failed = report.failures().count();
    let verdict = match (report.verdict, report.compared_with()) {
        (Verdict::Disagrees, _) => format!("**Disagrees**: {failed} of {checks} checks failed."),
        (Verdict::NothingChecked, _) => "Nothing was checked.".into(),
        (_, Some(_)) => format!("All {checks} checks passed, against what it was packed from."),
        (_, None) => format!("All {checks} checks passed, without what it was packed from."),
    };
    let mut text = format!("{verdict} By tqconv {}.\n", env!("CARGO_PKG_VERSION"));
    if let Some(facts) = &report.text {
        text += &format!(
            "\n| over {} predictions of {} | perplexity | mean KLD, nats/token | top-1 agreement |\n|---|---|---|---|\n",
            render::count(facts.tokens as u64),
            escaped(&facts.source)
        );
        let engines = std::iter::once(&facts.reference).chain(&facts.tested);
        engines.for_each(|engine| text += &row(engine));
    }
    if let Some(speed) = &report.speed {
        text += &format!(
            "\n| on {}, {} threads | prefill of {}, tokens/s | decode, tokens/s |\n|---|---|---|\n",
            escaped(&Machine::this().cpu),
            speed.threads,
            speed.prefill_tokens
        );
        for engine in &speed.engines {
            text += &format!(
                "| {} | {} | {} |\n",
                escaped(&engine.name.to_string()),
                render::rate(engine.prefill.median),
                render::rate(engine.decode.median)
            );
        }
    }
    text
}

fn row(engine: &EngineFacts) -> String {
    let kld = (!engine.kld.is_empty()).then(|| render::small(mean(&engine.kld)));
    format!(
        "| {} | {:.4} | {} | {} |\n",
        escaped(&engine.name.to_string()),
        engine.perplexity,
        kld.unwrap_or_default(),
        engine.top1.map(render::percent).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_yaml_reads() {
        let words = [
            "apache-2.0",
            "no",
            "1.0",
            "a: b",
            "",
            "\"",
            "Y",
            "org/name",
            "- x",
            "a #b",
        ];
        let quoted = words.map(quoted);
        let expected = [
            "apache-2.0",
            "\"no\"",
            "\"1.0\"",
            "\"a: b\"",
            "\"\"",
            "\"\\\"\"",
            "\"Y\"",
            "org/name",
            "\"- x\"",
            "\"a #b\"",
        ];
        assert_eq!(quoted, expected);
        let yaml = format!("[{}]", quoted.join(", "));
        assert_eq!(serde_saphyr::from_str::<Vec<String>>(&yaml).unwrap(), words);
    }
}
