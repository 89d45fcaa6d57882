//! Byte-level BPE: a tokenizer.json whose texts are in GPT-2's byte alphabet.

use serde_json::Value;

use super::json::{Merge, TokenizerJson, step_name};
use super::vocabulary::Vocabulary;
use super::{Notes, TokenizerError, pre};

/// A byte-level vocabulary.
pub(super) struct Bpe<'a> {
    pub vocabulary: Vocabulary<'a>,
    /// `left right`, the first to be joined first.
    pub merges: Vec<String>,
    /// llama.cpp's name of the pre-tokenizer.
    pub pre: String,
}

/// Reads the vocabulary of `file`; `pre` overrides what its pre-tokenizer looks like.
pub(super) fn read<'a>(
    file: &'a str,
    mut json: TokenizerJson,
    rows: usize,
    pre: Option<&str>,
    notes: &mut Notes,
) -> Result<Bpe<'a>, TokenizerError> {
    let pre = match pre {
        Some(name) => pre::named(name)?,
        None => pre::recognise(file, &json.pre_tokenizer, json.model.ignore_merges)?,
    };
    check_normalizer(file, &json.normalizer, notes)?;
    let mut vocabulary = json.take_vocabulary(file, rows)?;
    // A space divides the parts in GGUF; in the byte alphabet a space is Ġ.
    for merge in &mut json.model.merges {
        let (left, right) = (merge.left(), merge.right());
        if left.contains(' ') || right.contains(' ') {
            *merge = Merge::new(&left.replace(' ', "Ġ"), &right.replace(' ', "Ġ"));
        }
    }
    json.check_merges(file, &vocabulary)?;
    json.overlay(file, &mut vocabulary)?;
    let merges = json.model.merges.into_iter().map(Merge::into_text);
    Ok(Bpe {
        vocabulary,
        merges: merges.collect(),
        pre: pre.into(),
    })
}

/// llama.cpp does not normalise what it splits. Unicode composition rarely matters; any other change would.
fn check_normalizer(file: &str, normalizer: &Value, notes: &mut Notes) -> Result<(), TokenizerError> {
    let steps = match normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None if normalizer.is_null() => &[],
        None => std::slice::from_ref(normalizer),
    };
    for step in steps {
        match step.get("type").and_then(Value::as_str) {
            Some(form @ ("NFC" | "NFKC")) => {
                notes.add(format!(
                    "{file}: text is brought to {form} first; llama.cpp takes it as it is"
                ));
            }
            _ => {
                return Err(TokenizerError::Unsupported {
                    file: file.into(),
                    found: format!("normalizer {}", step_name(step)),
                    remedy: "llama.cpp does not change text before it splits it; name another tokenizer with --tokenizer",
                });
            }
        }
    }
    Ok(())
}
