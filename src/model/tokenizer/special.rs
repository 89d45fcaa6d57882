//! Which tokens begin and end a text: what tokenizer_config.json and its neighbours say.

use formats::gguf::tokenizer::END_TEXTS;
use serde_json::Value;

use super::settings::token;
use super::vocabulary::Vocabulary;
use super::{Notes, TokenizerError};
use crate::model::json::Object;

/// Ids of special tokens as config.json has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// `bos_token_id`
    pub bos: Option<u32>,
    /// `eos_token_id`: one id or several, the first of which ends a text.
    pub eos: Vec<u32>,
    /// `pad_token_id`
    pub pad: Option<u32>,
}

/// The tokens that end a generation, and the file that says so.
pub(super) struct Ends {
    file: String,
    ids: Vec<u32>,
}

impl Ends {
    /// Those of generation_config.json, where transformers' `generate` looks for them; of config.json where it names none.
    pub fn read(
        generation: &Object,
        ids: &SpecialIds,
        config_name: &str,
        notes: &mut Notes,
    ) -> Result<Self, TokenizerError> {
        const KEY: &str = "eos_token_id";
        Ok(match generation.value(KEY) {
            None => Self {
                file: config_name.into(),
                ids: ids.eos.clone(),
            },
            Some(_) => Self {
                file: generation.name(),
                ids: generation.ids(KEY, &mut notes.0)?,
            },
        })
    }
}

/// What the vocabulary's own file says of special tokens; asked last.
#[derive(Default)]
pub(super) struct Defaults {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    pub add_bos: bool,
}

/// What was decided.
pub(super) struct Special {
    pub bos: u32,
    pub eos: u32,
    pub more_ends: Vec<u32>,
    pub unk: Option<u32>,
    pub pad: Option<u32>,
    pub add_bos: bool,
    pub add_eos: bool,
}

/// The tokens that a post-processor puts around a text.
#[derive(Default)]
pub(super) struct Surround {
    before: Vec<String>,
    after: Vec<String>,
}

impl Surround {
    /// Reads `post_processor` of a tokenizer.json; `None` when it says nothing about such tokens.
    pub fn read(file: &str, post_processor: &Value, notes: &mut Notes) -> Option<Self> {
        let steps = match post_processor.get("processors").and_then(Value::as_array) {
            Some(steps) => steps.as_slice(),
            None => std::slice::from_ref(post_processor),
        };
        let mut surround = None;
        for step in steps {
            match step.get("type").and_then(Value::as_str) {
                Some("TemplateProcessing") => surround = Some(Self::of_template(step.get("single")?.as_array()?)),
                None | Some("ByteLevel") => {}
                Some(other) => notes.add(format!("{file}: post_processor {other} is not followed")),
            }
        }
        surround
    }

    fn of_template(single: &[Value]) -> Self {
        let mut surround = Self::default();
        let mut seen_text = false;
        for part in single {
            match part.pointer("/SpecialToken/id").and_then(Value::as_str) {
                Some(token) if seen_text => surround.after.push(token.into()),
                Some(token) => surround.before.push(token.into()),
                None => seen_text = true,
            }
        }
        surround
    }
}

/// All that says which tokens are special.
pub(super) struct Sources<'a> {
    pub vocabulary: &'a Vocabulary<'a>,
    /// Rows of the embedding.
    pub rows: usize,
    /// tokenizer_config.json and special_tokens_map.json
    pub settings: [&'a Object; 2],
    /// Ids of config.json, and what messages call it.
    pub ids: &'a SpecialIds,
    pub config_name: &'a str,
    pub ends: Ends,
    pub surround: Option<Surround>,
    pub defaults: Defaults,
}

/// Looks the special tokens up: by text in tokenizer_config.json and special_tokens_map.json, then by id in config.json,
/// then where the vocabulary's own file has them.
pub(super) fn resolve(sources: &Sources, notes: &mut Notes) -> Result<Special, TokenizerError> {
    let Sources {
        vocabulary,
        settings: [config, _],
        ids,
        config_name,
        ends,
        surround,
        defaults,
        ..
    } = sources;
    let (before, after) = match surround {
        Some(surround) => (&surround.before[..], &surround.after[..]),
        None => (&[][..], &[][..]),
    };
    let first = |tokens: &[String]| tokens.first().and_then(|text| vocabulary.id(text));
    let bos = sources.named("bos_token", true, notes)?.or(ids.bos);
    let bos = bos.or_else(|| first(before)).or(defaults.bos);
    let eos = sources.named("eos_token", true, notes)?.or(ends.ids.first().copied());
    let eos = eos.or_else(|| first(after)).or(defaults.eos);
    let unk = sources.named("unk_token", false, notes)?.or(defaults.unk);
    let pad = sources.pad(notes)?;
    sources.check_row(config_name, "bos_token_id", bos)?;
    sources.check_row(&ends.file, "eos_token_id", eos)?;
    for &id in &ends.ids {
        sources.check_row(&ends.file, "eos_token_id", Some(id))?;
    }
    let says = |tokens: &[String]| surround.is_some().then_some(!tokens.is_empty());
    let add_bos = config
        .flag("add_bos_token")?
        .or(says(before))
        .unwrap_or(defaults.add_bos);
    let add_eos = config.flag("add_eos_token")?.or(says(after)).unwrap_or(false);
    note_surround(vocabulary, before, bos, "bos_token", notes);
    note_surround(vocabulary, after, eos, "eos_token", notes);
    // Without the key llama.cpp takes token 11 (byte-level) or 2 (SentencePiece) for the end of text.
    let needed = |found, key| TokenizerError::NoSpecial {
        file: vocabulary.file().into(),
        found,
        key,
    };
    let eos = eos.ok_or_else(|| needed("no token ends a text", "eos_token"))?;
    if bos.is_none() && add_bos {
        return Err(needed("no token begins a text, but add_bos_token is true", "bos_token"));
    }
    Ok(Special {
        // Likewise token 11 or 1. A model without one never sees it; the end of text is the harmless choice.
        bos: bos.unwrap_or(eos),
        eos,
        more_ends: more_ends(vocabulary, ends, eos, notes),
        unk,
        pad,
        add_bos,
        add_eos,
    })
}

/// Tokens that a post-processor puts around a text, other than the one that llama.cpp puts there.
fn note_surround(vocabulary: &Vocabulary, tokens: &[String], id: Option<u32>, key: &str, notes: &mut Notes) {
    if tokens.len() > 1 || tokens.first().is_some_and(|text| vocabulary.id(text) != id) {
        notes.add(format!(
            "{}: post_processor adds {tokens:?}; llama.cpp adds only the {key}",
            vocabulary.file()
        ));
    }
}

impl Sources<'_> {
    /// The token that the settings name. One that the vocabulary lacks is an error where llama.cpp must have it, else a note.
    fn named(&self, key: &str, required: bool, notes: &mut Notes) -> Result<Option<u32>, TokenizerError> {
        for file in self.settings {
            let Some(text) = token(file, key)? else {
                continue;
            };
            match self.vocabulary.id(text) {
                Some(id) => return Ok(Some(id)),
                None if required => {
                    return Err(TokenizerError::UnknownSpecial {
                        file: file.name(),
                        key: key.into(),
                        text: text.into(),
                    });
                }
                None => notes.add(format!(
                    "{}: {key} {text:?} is no token of the vocabulary; it is left out",
                    file.name()
                )),
            }
        }
        Ok(None)
    }

    /// A token without a row is left out: nothing needs one to fill batches.
    fn pad(&self, notes: &mut Notes) -> Result<Option<u32>, TokenizerError> {
        let (rows, named) = (self.rows, self.named("pad_token", false, notes)?);
        let mut pad = named.or(self.ids.pad).or(self.defaults.pad);
        if let Some(id) = pad.take_if(|id| *id as usize >= rows) {
            notes.add(format!(
                "{}: pad_token_id {id} has no row in the embedding, which has {rows}; it is left out",
                self.config_name
            ));
        }
        Ok(pad)
    }

    fn check_row(&self, file: &str, key: &'static str, id: Option<u32>) -> Result<(), TokenizerError> {
        match id.filter(|id| *id as usize >= self.rows) {
            None => Ok(()),
            Some(id) => Err(TokenizerError::SpecialOutOfRange {
                file: file.into(),
                key,
                id,
                rows: self.rows,
            }),
        }
    }
}

/// Ids of `ends` besides `eos` that llama.cpp does not take for ends by their texts; it has keys for two.
fn more_ends(vocabulary: &Vocabulary, ends: &Ends, eos: u32, notes: &mut Notes) -> Vec<u32> {
    let Ends { file, ids } = ends;
    let name = |id: u32| format!("{id} ({:?})", vocabulary.text(id).unwrap_or_default());
    if !ids.is_empty() && !ids.contains(&eos) {
        notes.add(format!(
            "{file}: eos_token_id leaves out the eos_token {}; llama.cpp ends there, too",
            name(eos)
        ));
    }
    let is_known = |id| END_TEXTS.contains(&vocabulary.text(id).unwrap_or_default());
    let mut more = vec![];
    for &id in ids {
        if id != eos && !is_known(id) && !more.contains(&id) {
            more.push(id);
        }
    }
    let left_out = more.split_off(more.len().min(2));
    if !left_out.is_empty() {
        let names: Vec<_> = left_out.into_iter().map(name).collect();
        notes.add(format!(
            "{file}: eos_token_id: a GGUF file has room for two ends of text besides the first; left out are {}",
            names.join(", ")
        ));
    }
    more
}
