//! The settings beside a vocabulary, each a JSON object that may be absent, and the special tokens that they name.

use std::path::Path;

use serde_json::Value;

use super::TokenizerError;
use super::content::Content;
use crate::model::json::Object;

/// # Errors
/// No JSON object.
pub(super) fn read(content: Option<&Content>) -> Result<Object, TokenizerError> {
    match content {
        None => Ok(Object::default()),
        Some(content) => Ok(Object::new(Path::new(&content.name).into(), content.json()?)?),
    }
}

/// The text of the token at `key`: a string, or an object with `content`.
pub(super) fn token<'a>(settings: &'a Object, key: &str) -> Result<Option<&'a str>, TokenizerError> {
    let Some(value) = settings.value(key) else {
        return Ok(None);
    };
    let wrong = || settings.wrong(key, Some(value), "a string, or an object with \"content\"");
    Ok(Some(token_text(value).ok_or_else(wrong)?))
}

/// The text of a token, written as such or as an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The texts of all special tokens that the settings name.
pub(super) fn named(settings: [&Object; 2]) -> Result<Vec<&str>, TokenizerError> {
    const KEYS: [&str; 7] = [
        "bos_token",
        "eos_token",
        "unk_token",
        "pad_token",
        "sep_token",
        "cls_token",
        "mask_token",
    ];
    const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];
    let mut texts = vec![];
    for file in settings {
        for key in KEYS {
            texts.extend(token(file, key)?);
        }
        for list in LISTS.iter().filter_map(|key| file.value(key)?.as_array()) {
            texts.extend(list.iter().filter_map(token_text));
        }
    }
    Ok(texts)
}
