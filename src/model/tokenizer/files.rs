//! The files a tokenizer is spread over.

use std::path::Path;

use serde_json::Value;

use super::TokenizerError;
use super::content::{Content, read_content};
use super::settings::{named, read, token_text};
use crate::files::folder_of;
use crate::model::Source;

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
        let config = read(self.tokenizer_config.as_ref())?;
        let names = read(self.special_tokens_map.as_ref())?;
        let added = read(self.added_tokens.as_ref())?;
        let named = named([&config, &names])?;
        let decoder = config.value("added_tokens_decoder").and_then(Value::as_object);
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
        let content = |name: &str| read_content(&directory.join(name));
        let additional = directory.join("additional_chat_templates");
        let default = read_content(&additional.join("default.jinja"))?;
        Ok(Self {
            tokenizer_config: content("tokenizer_config.json")?,
            special_tokens_map: content("special_tokens_map.json")?,
            added_tokens: content("added_tokens.json")?,
            chat_template_jinja: match default {
                Some(default) => Some(default),
                None => content("chat_template.jinja")?,
            },
            chat_template_json: content("chat_template.json")?,
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
