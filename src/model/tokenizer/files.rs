//! The files a tokenizer is spread over, read once and bounded.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::{TokenizerError, special};
use crate::files::{self, folder_of};
use crate::model::Source;

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
    /// `chat_template.jinja`, or `additional_chat_templates/default.jinja`, which transformers lets win.
    pub chat_template_jinja: Option<Content>,
    /// `chat_template.json`: `{"chat_template": ...}`.
    pub chat_template_json: Option<Content>,
    /// Names of the templates in `additional_chat_templates` that are not the default.
    pub other_chat_templates: Vec<String>,
    /// `generation_config.json`, which lies beside the weights: what ends a generation.
    pub generation_config: Option<Content>,
    /// What messages call config.json, if not that.
    pub config_name: Option<String>,
}

impl TokenizerFiles {
    /// Reads the tokenizer of a checkpoint, and what its generation_config.json says.
    ///
    /// # Errors
    /// Those of [`TokenizerFiles::open`].
    pub fn of(source: &Source) -> Result<Self, TokenizerError> {
        let generation = folder_of(&source.weights).join("generation_config.json");
        Ok(Self {
            generation_config: read_content(&generation)?,
            config_name: Some(source.config.display().to_string()),
            ..Self::open(&source.tokenizer)?
        })
    }

    /// The texts of all tokens that the files beside the vocabulary name: transformers adds them to it.
    ///
    /// # Errors
    /// A file that is not a JSON object; a token that is no text.
    pub fn named_tokens(&self) -> Result<Vec<String>, TokenizerError> {
        let config = Settings::read(self.tokenizer_config.as_ref())?;
        let names = Settings::read(self.special_tokens_map.as_ref())?;
        let added = Settings::read(self.added_tokens.as_ref())?;
        let named = special::named([&config, &names])?;
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object);
        let decoded = decoder.into_iter().flatten().filter_map(|(_, token)| token_text(token));
        let texts = named.into_iter().chain(decoded).map(String::from);
        Ok(texts.chain(added.entries().map(|(text, _)| text.clone())).collect())
    }

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
        let additional = directory.join("additional_chat_templates");
        let default = read_content(&additional.join("default.jinja"))?;
        Ok(Self {
            tokenizer_config: read("tokenizer_config.json")?,
            special_tokens_map: read("special_tokens_map.json")?,
            added_tokens: read("added_tokens.json")?,
            chat_template_jinja: match default {
                Some(default) => Some(default),
                None => read("chat_template.jinja")?,
            },
            chat_template_json: read("chat_template.json")?,
            other_chat_templates: other_templates(&additional)?,
            ..Self::default()
        })
    }
}

/// Names of the `*.jinja` in a folder that may be absent, but for the default, in order.
fn other_templates(folder: &Path) -> Result<Vec<String>, TokenizerError> {
    if !folder.is_dir() {
        return Ok(vec![]);
    }
    let io = |source| TokenizerError::Io {
        path: folder.to_owned(),
        source,
    };
    let mut names = vec![];
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".jinja").map(String::from));
    }
    names.retain(|name| name != "default");
    names.sort();
    Ok(names)
}

/// The file's content, or `None` when there is no such file.
fn read_content(path: &Path) -> Result<Option<Content>, TokenizerError> {
    let name = path.display().to_string();
    match files::read(path, FILE_LIMIT) {
        Ok(Some(bytes)) => Ok(Some(Content { name, bytes })),
        Ok(None) => Err(TokenizerError::TooLarge {
            file: name,
            what: "the file",
            found: FILE_LIMIT + 1,
            limit: FILE_LIMIT,
        }),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(None),
            ErrorKind::InvalidInput => Err(TokenizerError::NotAFile { path: path.into() }),
            _ => Err(TokenizerError::Io {
                path: path.into(),
                source: error,
            }),
        },
    }
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
        token_text(value)
            .map(Some)
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

/// The text of a token, written as such or as an object with `content`.
pub(super) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A step of a tokenizer.json, for messages: in full, or by its type where it is long.
pub(super) fn step_name(step: &Value) -> String {
    const SHOWN: usize = 200; // bytes
    let text = step.to_string();
    match step.get("type") {
        Some(kind) if text.len() > SHOWN => kind_of(kind),
        _ if text.len() > SHOWN => kind_of(step),
        _ => text,
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
