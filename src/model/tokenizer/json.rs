//! `tokenizer.json`: what the `tokenizers` library writes, as far as it is needed here.

use std::fmt;

use rayon::prelude::*;
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::TokenizerError;
use super::vocabulary::{Token, TokenType, Vocabulary};
use crate::model::json::brief;

/// The file.
#[derive(Deserialize)]
pub(super) struct TokenizerJson {
    #[serde(default)]
    pub added_tokens: Vec<AddedToken>,
    #[serde(default)]
    pub normalizer: Value,
    #[serde(default)]
    pub pre_tokenizer: Value,
    #[serde(default)]
    pub post_processor: Value,
    pub model: Model,
}

/// The `model` section.
#[derive(Deserialize)]
pub(super) struct Model {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    #[serde(default)]
    pub vocab: Entries,
    #[serde(default)]
    pub merges: Vec<Merge>,
    #[serde(default)]
    pub byte_fallback: bool,
    #[serde(default)]
    pub ignore_merges: bool,
    pub unk_token: Option<String>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    pub dropout: Option<f64>,
}

/// An entry of `added_tokens`.
#[derive(Deserialize)]
pub(super) struct AddedToken {
    pub id: u64,
    pub content: String,
    #[serde(default)]
    pub special: bool,
}

/// `vocab`, with every entry that the file has, repeated ones too. A unigram model has a list instead.
#[derive(Default)]
pub(super) struct Entries(pub Vec<(String, u64)>);

/// A pair of texts that become one token: `"a b"` or `["a", "b"]`.
pub(super) struct Merge {
    /// `left right`
    text: String,
    /// Bytes of the left part.
    left: usize,
}

impl Merge {
    pub fn new(left: &str, right: &str) -> Self {
        Self {
            text: format!("{left} {right}"),
            left: left.len(),
        }
    }

    pub fn left(&self) -> &str {
        &self.text[..self.left]
    }

    pub fn right(&self) -> &str {
        &self.text[self.left + 1..]
    }

    /// The text of the token that the parts become.
    pub fn joined(&self) -> String {
        [self.left(), self.right()].concat()
    }

    /// `left right`
    pub fn into_text(self) -> String {
        self.text
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entry;
        impl<'de> Visitor<'de> for Entry {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of token texts and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Entries::default())
            }
        }
        deserializer.deserialize_any(Entry)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a merge as \"left right\" or [\"left\", \"right\"]")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !left.is_empty() && !right.is_empty() && !right.contains(' ') => Ok(Merge {
                        text: text.into(),
                        left: left.len(),
                    }),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let left: String = list.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                let right: String = list.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
                if list.next_element::<IgnoredAny>()?.is_some() {
                    return Err(A::Error::invalid_length(3, &self));
                }
                if left.is_empty() || right.is_empty() {
                    return Err(A::Error::invalid_value(serde::de::Unexpected::Str(""), &self));
                }
                Ok(Merge::new(&left, &right))
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

/// What the vocabulary of a tokenizer.json is made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// Texts in GPT-2's byte alphabet.
    ByteLevel,
    /// Pieces with `▁` for a space, and `<0xXX>` for bytes.
    SentencePiece,
}

impl TokenizerJson {
    /// Tells the families apart, and refuses the others.
    pub fn family(&self, file: &str) -> Result<Family, TokenizerError> {
        let unsupported = |found: String| TokenizerError::Unsupported {
            file: file.into(),
            found,
            remedy: "byte-level BPE, and BPE with byte_fallback, are; name another tokenizer with --tokenizer",
        };
        // Files of older libraries do not name the type.
        if let Some(kind) = self.model.kind.as_deref().filter(|&kind| kind != "BPE") {
            return Err(unsupported(format!("a model of type {kind:?}")));
        }
        for (key, affix) in [
            ("continuing_subword_prefix", &self.model.continuing_subword_prefix),
            ("end_of_word_suffix", &self.model.end_of_word_suffix),
        ] {
            if let Some(affix) = affix.as_deref().filter(|affix| !affix.is_empty()) {
                return Err(unsupported(format!("model.{key} {affix:?}")));
            }
        }
        match (mentions_byte_level(&self.pre_tokenizer), self.model.byte_fallback) {
            (true, _) => Ok(Family::ByteLevel),
            (false, true) => Ok(Family::SentencePiece),
            (false, false) => Err(unsupported(format!(
                "a BPE model without byte_fallback, whose pre_tokenizer is {}, which is not byte-level,",
                brief(&self.pre_tokenizer)
            ))),
        }
    }

    /// The tokens of `model.vocab`, all of type normal; they are taken out of it.
    pub fn take_vocabulary<'a>(&mut self, file: &'a str, rows: usize) -> Result<Vocabulary<'a>, TokenizerError> {
        let Entries(entries) = std::mem::take(&mut self.model.vocab);
        if entries.is_empty() {
            return Err(TokenizerError::Key {
                file: file.into(),
                key: "model.vocab".into(),
                found: "no token".into(),
                expected: "an object of token texts and ids".into(),
            });
        }
        let mut vocabulary = Vocabulary::new(file, rows);
        for (text, id) in entries {
            vocabulary.insert(
                id,
                Token {
                    text,
                    kind: TokenType::Normal,
                    score: 0.0,
                },
            )?;
        }
        Ok(vocabulary)
    }

    /// Marks the added tokens in the vocabulary.
    pub fn overlay(&self, file: &str, vocabulary: &mut Vocabulary) -> Result<(), TokenizerError> {
        self.added_tokens
            .iter()
            .try_for_each(|token| vocabulary.overlay(file, token.id, &token.content, token.special))
    }

    /// Checks that the parts of every merge and what they join to are tokens, as the library does.
    pub fn check_merges(&self, file: &str, vocabulary: &Vocabulary) -> Result<(), TokenizerError> {
        let unknown = |(index, merge): (usize, &Merge)| {
            let (left, right, joined) = (merge.left(), merge.right(), merge.joined());
            let missing = [left, right, &joined]
                .into_iter()
                .find(|text| vocabulary.id(text).is_none())?;
            Some(TokenizerError::MergeOfUnknown {
                file: file.into(),
                index,
                left: left.into(),
                right: right.into(),
                missing: missing.into(),
            })
        };
        let merges = self.model.merges.par_iter().enumerate();
        merges.find_map_first(unknown).map_or(Ok(()), Err)
    }
}

/// Whether a pre-tokenizer, or one step of its sequence, is `ByteLevel`.
fn mentions_byte_level(pre_tokenizer: &Value) -> bool {
    let is = |step: &Value| step.get("type").and_then(Value::as_str) == Some("ByteLevel");
    let steps = pre_tokenizer.get("pretokenizers").and_then(Value::as_array);
    is(pre_tokenizer) || steps.is_some_and(|steps| steps.iter().any(is))
}

/// A step of a tokenizer.json, for messages: in full, or by its type where it is long.
pub(super) fn step_name(step: &Value) -> String {
    const SHOWN: usize = 200; // bytes
    let text = step.to_string();
    match step.get("type") {
        Some(kind) if text.len() > SHOWN => brief(kind),
        _ if text.len() > SHOWN => brief(step),
        _ => text,
    }
}
