//! config.json as a file.

use std::ops::Deref;
use std::path::Path;

use serde_json::{Map, Value};

use crate::files;
use crate::model::ModelError;
use crate::model::json::Object;

/// The largest config.json that is read, in bytes; usual ones have a few KB.
const MAX_FILE: u64 = 16 << 20;

/// config.json, read key by key.
pub struct ConfigFile(pub(super) Object);

impl Deref for ConfigFile {
    type Target = Object;

    fn deref(&self) -> &Object {
        &self.0
    }
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
        Ok(Self(Object::new(path.into(), json)?))
    }

    /// The error of a key that does not hold what it must.
    pub(in crate::model) fn key_error(&self, key: &str, found: Option<&Value>, expected: String) -> ModelError {
        self.wrong(key, found, expected).into()
    }

    /// The file as it stands.
    pub(in crate::model) fn into_json(self) -> Value {
        self.0.value
    }

    /// `quantization_config`, where it names BitNet.
    pub(in crate::model) fn bitnet(&self) -> Option<&Map<String, Value>> {
        let section = self.value("quantization_config")?.as_object()?;
        (section.get("quant_method") == Some(&"bitnet".into())).then_some(section)
    }

    /// Every key, at any depth, whose name is `wanted` and that is set to something; its path.
    pub(in crate::model) fn settings(&self, wanted: fn(&str) -> bool) -> Vec<String> {
        let mut found = vec![];
        let mut sections = vec![(String::new(), &self.0.value)];
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
