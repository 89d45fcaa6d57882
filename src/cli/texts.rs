//! The checkpoint's own tokenizer.json beside the packed keys, on texts that tokenizers stumble over.

use formats::gguf::Value;

use crate::engine::text::{HARD, Own, Text, TextError};
use crate::model::tokenizer::{Content, TokenizerFiles};

/// What a person should know of texts that a file with these keys splits otherwise than its tokenizer.json.
pub(super) fn notes(keys: &[(String, Value)], files: &TokenizerFiles) -> Vec<String> {
    // A tokenizer.model is not run: its rules are those of the keys.
    let Some(json) = &files.tokenizer_json else {
        return vec![];
    };
    match compare(keys, json, files) {
        Ok(found) => found.notes(&json.name),
        Err(error) => vec![format!(
            "{}: its ids are not compared with those of the file: {error}",
            json.name
        )],
    }
}

/// Names of hard texts.
type Names = Vec<&'static str>;

/// Which hard texts get other ids than from tokenizer.json.
struct Compared {
    /// How many were compared.
    texts: usize,
    /// From `tqconv run`.
    ours: Names,
    /// From llama.cpp, as far as it is known to split otherwise than the name of its pre-tokenizer says.
    llama_cpp: Names,
    /// Those with a byte that has no token: llama.cpp joins what is left in another way.
    unspelled: Names,
}

fn compare(keys: &[(String, Value)], json: &Content, files: &TokenizerFiles) -> anyhow::Result<Compared> {
    let special = files.named_tokens()?;
    let (own, text) = rayon::join(|| Own::from_json(&json.bytes, special), || Text::from_keys(keys));
    let (own, mut text) = (own?, text?);
    let (hard, unspelled): (Vec<_>, Vec<_>) = HARD.iter().partition(|(_, hard)| text.can_spell(hard));
    let differing = |text: &Text| -> Result<Names, TextError> {
        let mut names = vec![];
        for (name, hard) in &hard {
            if own.encode(hard)? != text.encode_with_specials(hard, false) {
                names.push(*name);
            }
        }
        Ok(names)
    };
    let ours = differing(&text)?;
    let llama_cpp = match text.split_as_llama_cpp()? {
        true => differing(&text)?,
        false => ours.clone(),
    };
    Ok(Compared {
        texts: hard.len(),
        ours,
        llama_cpp,
        unspelled: unspelled.into_iter().map(|(name, _)| name).collect(),
    })
}

impl Compared {
    fn notes(&self, json: &str) -> Vec<String> {
        let mut notes = vec![];
        let mut add = |who: &str, names: &Names| {
            if !names.is_empty() {
                let (count, of) = (names.len(), self.texts);
                let names = names.join(", ");
                notes.push(format!("{json}: {who} {count} of {of} test texts otherwise: {names}"));
            }
        };
        if self.ours == self.llama_cpp {
            add("llama.cpp and `tqconv run` split", &self.ours);
        } else {
            add("llama.cpp splits", &self.llama_cpp);
            add("`tqconv run` splits", &self.ours);
        }
        if !self.unspelled.is_empty() {
            notes.push(format!(
                "{json}: no token for some bytes of {} test texts, which are lost: {}",
                self.unspelled.len(),
                self.unspelled.join(", ")
            ));
        }
        notes
    }
}
