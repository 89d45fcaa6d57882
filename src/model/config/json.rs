//! config.json as JSON, read key by key so that every complaint names its key.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::files;
use crate::model::ModelError;

/// The largest config.json that is read, in bytes; usual ones have a few KB.
const MAX_FILE: u64 = 16 << 20;

/// config.json, read key by key so that every complaint names its key.
pub struct ConfigFile {
    pub(in crate::model) path: PathBuf,
    pub(super) json: Value,
}

impl ConfigFile {
    /// # Errors
    /// The file cannot be read, is larger than a config.json can be, or is not a JSON object.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let bytes = files::read(path, MAX_FILE).map_err(|source| ModelError::io(path, source))?;
        let bytes = bytes.ok_or_else(|| ModelError::TooLarge {
            path: path.into(),
            kind: "config.json",
            limit: MAX_FILE,
        })?;
        Self::parse(path, &bytes)
    }

    /// The content of the file at `path`, which is named in errors.
    ///
    /// # Errors
    /// No JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let json: Value = serde_json::from_slice(bytes).map_err(|error| ModelError::Json {
            path: path.into(),
            problem: problem(bytes, &error),
        })?;
        let file = Self {
            path: path.into(),
            json,
        };
        if !file.json.is_object() {
            return Err(file.key_error("(top level)", Some(&file.json), "an object".into()));
        }
        Ok(file)
    }
    pub(in crate::model) fn value(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    pub(in crate::model) fn key_error(&self, key: &str, found: Option<&Value>, expected: String) -> ModelError {
        let found = found.map_or("missing".into(), |value| {
            const SHOWN: usize = 80;
            let text = value.to_string();
            if text.len() > SHOWN {
                format!("{}...", text.chars().take(SHOWN).collect::<String>())
            } else {
                text
            }
        });
        ModelError::Key {
            path: self.path.clone(),
            key: key.into(),
            found,
            expected,
        }
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.key_error(key, None, expected.into())
    }

    /// A whole number from 1 to 2^31 - 1, which is what a GGUF key and a tensor's shape can hold.
    pub(in crate::model) fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(count @ 1..=0x7fff_ffff) => Ok(Some(count as usize)),
            _ => Err(self.key_error(key, Some(value), "a whole number from 1 to 2147483647".into())),
        }
    }

    pub(super) fn required_count(&self, key: &str) -> Result<usize, ModelError> {
        self.count(key)?.ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// A whole number that takes memory, or time, beyond what its tensors do.
    pub(super) fn limited(&self, key: &str, max: usize, why: &str) -> Result<usize, ModelError> {
        match self.required_count(key)? {
            count if count <= max => Ok(count),
            _ => Err(self.key_error(key, self.value(key), format!("at most {max}{why}"))),
        }
    }

    pub(in crate::model) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "a finite number".into()))
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.number(key)? {
            Some(number) if !is_positive(number) => Err(self.key_error(key, self.value(key), POSITIVE.into())),
            number => Ok(number),
        }
    }

    pub(in crate::model) fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let text = value.as_str().map(String::from);
        text.map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "a string".into()))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "true or false".into()))
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_object()
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "an object".into()))
    }

    /// A token id or a list of them. A negative one stands for none, in PyTorch and in early conversions of Llama.
    pub(super) fn ids(&self, key: &str, notes: &mut Vec<String>) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(vec![]);
        };
        let mut ids = vec![];
        let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for id in listed {
            match (id.as_i64(), id.as_u64().map(u32::try_from)) {
                (Some(..0), _) => notes.push(format!(
                    "config.json: '{key}' is {id}, which stands for no token: it is left out"
                )),
                (_, Some(Ok(id))) => ids.push(id),
                _ => {
                    let expected = "a token id or a list of them".into();
                    return Err(self.key_error(key, Some(value), expected));
                }
            }
        }
        Ok(ids)
    }

    /// The file as it stands.
    pub(in crate::model) fn into_json(self) -> Value {
        self.json
    }

    /// `quantization_config`, where it names BitNet.
    pub(in crate::model) fn bitnet(&self) -> Option<&Map<String, Value>> {
        let section = self.value("quantization_config")?.as_object()?;
        (section.get("quant_method") == Some(&"bitnet".into())).then_some(section)
    }

    /// `w_bits`, where it is a whole number.
    pub(in crate::model) fn bits(&self) -> Option<u64> {
        self.value("w_bits")?.as_u64()
    }

    /// Every key, at any depth, whose name is `wanted` and that is set to something; its path.
    pub(in crate::model) fn settings(&self, wanted: fn(&str) -> bool) -> Vec<String> {
        let mut found = vec![];
        let mut sections = vec![(String::new(), &self.json)];
        while let Some((path, section)) = sections.pop() {
            for (key, value) in section.as_object().into_iter().flatten() {
                let path = format!("{path}{key}");
                if wanted(key) && is_set(value) {
                    found.push(path.clone());
                }
                sections.push((path + ".", value));
            }
        }
        found
    }
}

pub(super) const POSITIVE: &str = "a positive number that an f32 can hold";

/// Positive and finite as an f32, which is what a GGUF file holds.
pub(super) fn is_positive(number: f64) -> bool {
    let stored = number as f32;
    stored > 0.0 && stored.is_finite()
}

/// Whether a key switches something on.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(on) => *on,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !matches!(text.as_str(), "" | "none"),
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
    }
}

/// What is wrong with `bytes`, which are no JSON as `error` says; Python writes and reads some of it.
fn problem(bytes: &[u8], error: &serde_json::Error) -> String {
    let mark = match bytes {
        [0xef, 0xbb, 0xbf, ..] => Some("UTF-8"),
        [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => Some("UTF-16"),
        _ => None,
    };
    if let Some(encoding) = mark {
        return format!(
            "it starts with a byte order mark ({encoding}), which JSON does not allow; save it as UTF-8 without one"
        );
    }
    match word_at(bytes, error.line(), error.column()) {
        Some(word @ ("NaN" | "Infinity" | "-Infinity")) => format!(
            "{word} at line {}, which Python writes and JSON does not have; set the key to a number or null",
            error.line()
        ),
        _ => format!("{error}; copy the file again"),
    }
}

/// The word at a line and column, both from 1.
fn word_at(bytes: &[u8], line: usize, column: usize) -> Option<&str> {
    let line = bytes.split(|&byte| byte == b'\n').nth(line.checked_sub(1)?)?;
    let is_part = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let at = column.saturating_sub(1).min(line.len());
    let start = line[..at]
        .iter()
        .rposition(|byte| !is_part(byte))
        .map_or(0, |before| before + 1);
    let end = line[at..]
        .iter()
        .position(|byte| !is_part(byte))
        .map_or(line.len(), |after| at + after);
    std::str::from_utf8(&line[start..end]).ok()
}
