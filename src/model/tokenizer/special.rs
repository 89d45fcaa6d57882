//! Which tokens begin and end a text, and the chat template: what tokenizer_config.json and its neighbours say.

use formats::gguf::tokenizer::END_TEXTS;
use serde_json::Value;

use super::files::{Content, Settings, TokenizerFiles};
use super::vocabulary::Vocabulary;
use super::{Notes, TokenizerError};

/// The largest chat template, in bytes.
const TEMPLATE_LIMIT: usize = 1 << 20;

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
                Some("TemplateProcessing") => {
                    surround = Some(Self::of_template(step.get("single")?.as_array()?))
                }
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

/// Looks the special tokens up: by text in tokenizer_config.json and special_tokens_map.json, then by id in config.json,
/// then where the vocabulary's own file has them.
pub(super) fn resolve(
    vocabulary: &Vocabulary,
    rows: usize,
    settings: [&Settings; 2],
    ids: &SpecialIds,
    surround: Option<Surround>,
    defaults: Defaults,
    notes: &mut Notes,
) -> Result<Special, TokenizerError> {
    let [config, _] = settings;
    // A name that is no token: an error where llama.cpp must have one, else a note.
    let mut named = |key: &str, required: bool| -> Result<Option<u32>, TokenizerError> {
        for file in settings {
            let Some(text) = file.token(key)? else {
                continue;
            };
            match vocabulary.id(text) {
                Some(id) => return Ok(Some(id)),
                None if required => {
                    return Err(TokenizerError::UnknownSpecial {
                        file: file.name.clone(),
                        key: key.into(),
                        text: text.into(),
                    });
                }
                None => notes.add(format!(
                    "{}: {key} {text:?} is no token of the vocabulary; it is left out",
                    file.name
                )),
            }
        }
        Ok(None)
    };
    let row = |key: &'static str, id: Option<u32>| match id {
        Some(id) if id as usize >= rows => Err(TokenizerError::SpecialOutOfRange {
            file: vocabulary.file().into(),
            key,
            id,
            rows,
        }),
        id => Ok(id),
    };
    let surround_says = surround.is_some();
    let surround = surround.unwrap_or_default();
    let surround_id = |tokens: &[String]| tokens.first().and_then(|text| vocabulary.id(text));

    let bos = named("bos_token", true)?
        .or(ids.bos)
        .or_else(|| surround_id(&surround.before))
        .or(defaults.bos);
    let eos = named("eos_token", true)?
        .or(ids.eos.first().copied())
        .or_else(|| surround_id(&surround.after))
        .or(defaults.eos);
    let unk = named("unk_token", false)?.or(defaults.unk);
    let pad = named("pad_token", false)?.or(ids.pad).or(defaults.pad);
    let bos = row("bos_token", bos)?;
    let eos = row("eos_token", eos)?;
    ids.eos
        .iter()
        .try_for_each(|&id| row("eos_token", Some(id)).map(drop))?;

    let add_bos = config.flag("add_bos_token")?;
    let add_eos = config.flag("add_eos_token")?;
    let says = |tokens: &[String]| surround_says.then_some(!tokens.is_empty());
    let add_bos = add_bos
        .or(says(&surround.before))
        .unwrap_or(defaults.add_bos);
    let add_eos = add_eos.or(says(&surround.after)).unwrap_or(false);
    for (tokens, id, key) in [
        (&surround.before, bos, "bos_token"),
        (&surround.after, eos, "eos_token"),
    ] {
        if tokens.len() > 1 || tokens.first().is_some_and(|text| vocabulary.id(text) != id) {
            notes.add(format!(
                "{}: post_processor adds {tokens:?}; llama.cpp adds only the {key}",
                vocabulary.file()
            ));
        }
    }

    // Without the key llama.cpp takes token 11 (byte-level) or 2 (SentencePiece) for the end of text.
    let needed = |found, key| TokenizerError::NoSpecial {
        file: vocabulary.file().into(),
        found,
        key,
    };
    let eos = eos.ok_or_else(|| needed("no token ends a text", "eos_token"))?;
    if bos.is_none() && add_bos {
        return Err(needed(
            "no token begins a text, but add_bos_token is true",
            "bos_token",
        ));
    }
    Ok(Special {
        // Likewise token 11 or 1. A model without one never sees it; the end of text is the harmless choice.
        bos: bos.unwrap_or(eos),
        eos,
        more_ends: more_ends(vocabulary, &ids.eos, eos, notes),
        unk: row("unk_token", unk)?,
        pad: row("pad_token", pad)?,
        add_bos,
        add_eos,
    })
}

/// Ids of `ends` besides `eos` that llama.cpp does not take for ends by their texts; it has keys for two.
fn more_ends(vocabulary: &Vocabulary, ends: &[u32], eos: u32, notes: &mut Notes) -> Vec<u32> {
    let is_known = |id| END_TEXTS.contains(&vocabulary.text(id).unwrap_or_default());
    let more = ends.iter().filter(|&&id| id != eos && !is_known(id));
    let mut more: Vec<u32> = more.copied().collect();
    let left_out = more.split_off(more.len().min(2));
    if !left_out.is_empty() {
        notes.add(format!(
            "config.json: eos_token_id: a GGUF file has room for two ends of text besides the first; {left_out:?} are left out"
        ));
    }
    more
}

/// The chat template: tokenizer_config.json, else chat_template.jinja, else chat_template.json.
pub(super) fn chat_template(
    files: &TokenizerFiles,
    config: &Settings,
    notes: &mut Notes,
) -> Result<Option<String>, TokenizerError> {
    let template = match template_in(config, notes)? {
        Some(template) => Some((config.name.clone(), template)),
        None => match &files.chat_template_jinja {
            Some(content) => Some((content.name.clone(), utf8(content)?)),
            None => {
                let json = Settings::read(files.chat_template_json.as_ref())?;
                template_in(&json, notes)?.map(|template| (json.name.clone(), template))
            }
        },
    };
    let Some((file, template)) = template else {
        return Ok(None);
    };
    if template.len() > TEMPLATE_LIMIT {
        return Err(TokenizerError::TooLarge {
            file,
            what: "chat_template",
            found: template.len() as u64,
            limit: TEMPLATE_LIMIT as u64,
        });
    }
    Ok(Some(template))
}

fn utf8(content: &Content) -> Result<String, TokenizerError> {
    String::from_utf8(content.bytes.clone()).map_err(|error| TokenizerError::Key {
        file: content.name.clone(),
        key: "(whole file)".into(),
        found: format!(
            "bytes that are not UTF-8 at {}",
            error.utf8_error().valid_up_to()
        ),
        expected: "a Jinja template in UTF-8",
    })
}

/// `chat_template`: a string, or a list of `{"name": ..., "template": ...}` of which `default` is taken.
fn template_in(settings: &Settings, notes: &mut Notes) -> Result<Option<String>, TokenizerError> {
    const KEY: &str = "chat_template";
    let Some(value) = settings.get(KEY) else {
        return Ok(None);
    };
    let wrong = || {
        settings.wrong(
            KEY,
            value,
            "a string, or a list of {\"name\": string, \"template\": string}",
        )
    };
    if let Some(template) = value.as_str() {
        return Ok(Some(template.into()));
    }
    let mut default = None;
    for entry in value.as_array().ok_or_else(wrong)? {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).ok_or_else(wrong);
        match (text("name")?, text("template")?) {
            ("default", template) => default = Some(template.to_owned()),
            (name, _) => notes.add(format!(
                "{}: the chat template {name:?} is left out",
                settings.name
            )),
        }
    }
    Ok(default)
}
