//! Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json says.
//!
//! llama.cpp knows pre-tokenizers by name; tokenizer.json writes their expressions out. The name is found by comparing
//! the expressions, so a vocabulary that nobody has seen before is recognised as long as it splits text in a known way.

use formats::gguf::tokenizer::{GPT2_SPLIT, PRE_TOKENIZERS, pre_tokenizer_names};
use serde_json::Value;

use super::TokenizerError;
use super::json::step_name;

/// `name`, when llama.cpp knows it.
pub(super) fn named(name: &str) -> Result<&str, TokenizerError> {
    if pre_tokenizer_names().any(|known| known == name) {
        return Ok(name);
    }
    let known = pre_tokenizer_names().collect::<Vec<_>>().join(", ");
    Err(TokenizerError::UnknownPreName {
        found: name.into(),
        known,
    })
}

/// llama.cpp's name for the `pre_tokenizer` of a tokenizer.json whose model says `ignore_merges`.
pub(super) fn recognise(
    file: &str,
    pre_tokenizer: &Value,
    ignore_merges: bool,
) -> Result<&'static str, TokenizerError> {
    let mut steps = Steps::default();
    let found = match steps.add(pre_tokenizer) {
        Ok(()) => {
            let known = PRE_TOKENIZERS
                .iter()
                .find(|pre| pre.ignore_merges == ignore_merges && pre.splits == steps.splits);
            if let (Some(pre), true) = (known, steps.is_byte_level) {
                return Ok(pre.names[0]);
            }
            format!("{:?} with ignore_merges {ignore_merges}", steps.splits)
        }
        Err(step) => step,
    };
    let known = PRE_TOKENIZERS.iter().map(|pre| pre.names[0]);
    let known = known.collect::<Vec<_>>().join(", ");
    Err(TokenizerError::UnknownPre {
        file: file.into(),
        found,
        known,
    })
}

/// A `pre_tokenizer` flattened into expressions that each isolate what they match.
#[derive(Default)]
struct Steps {
    splits: Vec<String>,
    is_byte_level: bool,
}

impl Steps {
    /// Adds a step, or says which one is not a split that llama.cpp could make.
    fn add(&mut self, step: &Value) -> Result<(), String> {
        let flag = |key: &str, absent: bool| step.get(key).map_or(Some(absent), Value::as_bool);
        match step.get("type").and_then(Value::as_str) {
            // What follows would split GPT-2's alphabet instead of the text.
            Some(_) if self.is_byte_level => {
                return Err(format!("{} after ByteLevel", step_name(step)));
            }
            Some("Sequence") => {
                let steps = step
                    .get("pretokenizers")
                    .and_then(Value::as_array)
                    .ok_or_else(|| step_name(step))?;
                // One level is all that the library writes; it also bounds the recursion.
                for step in steps {
                    if step.get("type").and_then(Value::as_str) == Some("Sequence") {
                        return Err("a Sequence inside a Sequence".into());
                    }
                    self.add(step)?;
                }
            }
            Some("Split") => {
                let expression = step.pointer("/pattern/Regex").and_then(Value::as_str);
                let isolates = match (step.get("behavior").and_then(Value::as_str), flag("invert", false)) {
                    (Some("Isolated"), Some(false)) => true,
                    // Keeps the matches and drops the rest. The known expressions that come alone match everything.
                    (Some("Removed"), Some(true)) => self.splits.is_empty(),
                    _ => false,
                };
                match expression {
                    Some(expression) if isolates => self.splits.push(escape_newlines(expression)),
                    _ => return Err(step_name(step)),
                }
            }
            Some("Digits") => match flag("individual_digits", false) {
                Some(true) => self.splits.push(r"\p{N}".into()),
                Some(false) => self.splits.push(r"\p{N}+".into()),
                None => return Err(step_name(step)),
            },
            Some("ByteLevel") => {
                // llama.cpp puts no space before a byte-level text.
                match (flag("add_prefix_space", true), flag("use_regex", true)) {
                    (Some(false), Some(true)) => self.splits.push(GPT2_SPLIT.into()),
                    (Some(false), Some(false)) => {}
                    _ => return Err(step_name(step)),
                }
                self.is_byte_level = true;
            }
            _ => return Err(step_name(step)),
        }
        Ok(())
    }
}

/// Line ends written as themselves mean the same as the escapes.
fn escape_newlines(expression: &str) -> String {
    expression.replace('\r', r"\r").replace('\n', r"\n")
}
