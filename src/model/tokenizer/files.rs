//! The files a tokenizer is spread over, read once and bounded.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::TokenizerError;
use crate::output::folder_of;

/// The largest file that is read, in bytes; Gemma's tokenizer.json, among the largest in use, has 33 MB.
const FILE_LIMIT: u64 = 256 << 20;

/// A file's content and the name that messages use for it.
#[derive(Debug, Clone)]
pub struct Content {
    /// Shown in messages.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What a checkpoint directory says about its tokenizer. Only one of the first two must be there.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`: the vocabulary as the `tokenizers` library has it.
    pub tokenizer_json: Option<Content>,
    /// `tokenizer.model`: the vocabulary as SentencePiece has it.
    pub tokenizer_model: Option<Content>,
    /// `tokenizer_config.json`: names of special tokens, flags, chat template.
    pub tokenizer_config: Option<Content>,
    /// `special_tokens_map.json`: names of special tokens.
    pub special_tokens_map: Option<Content>,
    /// `added_tokens.json`: text to id.
    pub added_tokens: Option<Content>,
    /// `chat_template.jinja`.
    pub chat_template_jinja: Option<Content>,
    /// `chat_template.json`: `{"chat_template": ...}`.
    pub chat_template_json: Option<Content>,
}

impl TokenizerFiles {
    /// Reads what `path` offers: a directory, or one vocabulary file together with the settings beside it.
    ///
    /// # Errors
    /// No vocabulary, or a file that cannot be read, is not regular or is too large.
    pub fn open(path: &Path) -> Result<Self, TokenizerError> {
        if path.is_dir() {
            return Self::open_directory(path);
        }
        let vocabulary = read_content(path)?.ok_or_else(|| TokenizerError::Io {
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let mut files = Self::settings(folder_of(path))?;
        // JSON starts with a brace; a SentencePiece model starts with the tag of its first piece.
        let is_json = vocabulary.bytes.trim_ascii_start().first() == Some(&b'{');
        if is_json {
            files.tokenizer_json = Some(vocabulary);
        } else {
            files.tokenizer_model = Some(vocabulary);
        }
        Ok(files)
    }

    fn open_directory(directory: &Path) -> Result<Self, TokenizerError> {
        let files = Self {
            tokenizer_json: read_content(&directory.join("tokenizer.json"))?,
            tokenizer_model: read_content(&directory.join("tokenizer.model"))?,
            ..Self::settings(directory)?
        };
        if files.tokenizer_json.is_none() && files.tokenizer_model.is_none() {
            return Err(TokenizerError::Missing {
                directory: directory.to_owned(),
            });
        }
        Ok(files)
    }

    fn settings(directory: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| read_content(&directory.join(name));
        Ok(Self {
            tokenizer_json: None,
            tokenizer_model: None,
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
            chat_template_jinja: read("chat_template.jinja")?,
            chat_template_json: read("chat_template.json")?,
        })
    }
}

/// The file's content, or `None` when there is no such file.
fn read_content(path: &Path) -> Result<Option<Content>, TokenizerError> {
    let io = |source| TokenizerError::Io {
        path: path.to_owned(),
        source,
    };
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if !metadata.is_file() {
        return Err(TokenizerError::NotAFile {
            path: path.to_owned(),
        });
    }
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let found = bytes.len() as u64;
    if found > FILE_LIMIT {
        return Err(TokenizerError::TooLarge {
            file: name,
            what: "the file",
            found,
            limit: FILE_LIMIT,
        });
    }
    Ok(Some(Content { name, bytes }))
}

impl Content {
    /// The file as JSON of type `T`.
    pub(super) fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, TokenizerError> {
        serde_json::from_slice(&self.bytes).map_err(|source| TokenizerError::Json {
            file: self.name.clone(),
            source,
        })
    }
}

/// A JSON settings file that may be absent; asking an absent one yields nothing.
pub(super) struct Settings {
    pub name: String,
    value: Value,
}

impl Settings {
    /// Parses `content`; it must hold a JSON object.
    pub fn read(content: Option<&Content>) -> Result<Self, TokenizerError> {
        let Some(content) = content else {
            return Ok(Self {
                name: String::new(),
                value: Value::Null,
            });
        };
        let value: Value = content.json()?;
        if !value.is_object() {
            return Err(TokenizerError::Key {
                file: content.name.clone(),
                key: "(top level)".into(),
                found: kind_of(&value),
                expected: "an object",
            });
        }
        Ok(Self {
            name: content.name.clone(),
            value,
        })
    }

    /// The value at `key`; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.value.as_object().into_iter().flatten()
    }

    /// The flag at `key`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    /// The text of the token at `key`: a string, or an object with `content`.
    pub fn token(&self, key: &str) -> Result<Option<&str>, TokenizerError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        text.map(Some)
            .ok_or_else(|| self.wrong(key, value, "a string, or an object with \"content\""))
    }

    /// The error for a `key` that holds the wrong kind of value.
    pub fn wrong(&self, key: &str, value: &Value, expected: &'static str) -> TokenizerError {
        TokenizerError::Key {
            file: self.name.clone(),
            key: key.into(),
            found: kind_of(value),
            expected,
        }
    }
}

/// What a JSON value is, for messages: short values in full, long ones by kind.
pub(super) fn kind_of(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(entries) => format!("an object of {} entries", entries.len()),
        Value::String(text) if text.len() > 60 => format!("a string of {} bytes", text.len()),
        short => short.to_string(),
    }
}
