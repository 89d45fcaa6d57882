//! The tokenizer of a checkpoint, and the metadata that make llama.cpp split text as it does.
//!
//! | found | `tokenizer.ggml.model` | in |
//! |---|---|---|
//! | byte-level BPE, tokenizer.json | `gpt2` | `bpe`, `pre` |
//! | SentencePiece BPE, tokenizer.model | `llama` | `sentencepiece`, `protobuf` |
//! | BPE with byte fallback, tokenizer.json | `llama` | `sentencepiece` |
//!
//! llama.cpp reads these keys in `llama_vocab::impl::load` (llama-vocab.cpp) and is strict about their types.

mod bpe;
mod content;
mod error;
mod files;
mod json;
mod pre;
mod proto_model;
mod protobuf;
mod sentencepiece;
mod settings;
mod special;
mod template;
mod vocabulary;

#[cfg(test)]
mod tests;

use formats::gguf::tokenizer::is_made_control;
use formats::gguf::{Array, Value};

pub use content::Content;
pub use error::TokenizerError;
pub use files::TokenizerFiles;
pub use special::SpecialIds;
pub use vocabulary::{Token, TokenType};

use json::{Family, TokenizerJson};
use sentencepiece::SentencePiece;
use special::{Defaults, Ends, Special, Surround};
use vocabulary::Vocabulary;

use super::json::Object;

/// A tokenizer as llama.cpp has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokenizer {
    /// How text becomes tokens.
    pub model: Model,
    /// One token for each row of the embedding.
    pub tokens: Vec<Token>,
    /// Begins a text.
    pub bos: u32,
    /// Ends a text.
    pub eos: u32,
    /// End it too, which llama.cpp would not know from their texts: two at most.
    pub more_ends: Vec<u32>,
    /// Stands for what cannot be spelled.
    pub unk: Option<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// Whether `bos` is put before a text.
    pub add_bos: bool,
    /// Whether `eos` is put after a text.
    pub add_eos: bool,
    /// Jinja.
    pub chat_template: Option<String>,
    /// What the checkpoint asks for and llama.cpp does otherwise; for the user to read.
    pub notes: Vec<String>,
}

/// How text becomes tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// `gpt2`: split by expressions, then join pairs in the order of the merges.
    ByteLevel {
        /// llama.cpp's name of the expressions.
        pre: String,
        /// `left right`, the first to be joined first.
        merges: Vec<String>,
    },
    /// `llama`: join the pair with the highest score.
    SentencePiece {
        /// Whether a space is put before the text.
        space_prefix: bool,
    },
}

/// Collects what the user should know.
#[derive(Default)]
struct Notes(Vec<String>);

impl Notes {
    fn add(&mut self, note: String) {
        self.0.push(note);
    }
}

/// Reads the tokenizer of a checkpoint.
///
/// `rows`: rows of the embedding; the vocabulary is padded to that length. `ids`: what config.json says.
/// `pre`: the name of llama.cpp's pre-tokenizer, where the user gives it.
///
/// tokenizer.json is what transformers reads, and so what training used: it is taken where there is one. A tokenizer.model
/// beside it that has the same pieces adds their true scores.
///
/// # Errors
/// Any [`TokenizerError`]: damaged files, vocabularies that contradict themselves or the embedding, and whatever llama.cpp
/// would not split as the checkpoint does.
pub fn read(
    files: &TokenizerFiles,
    rows: usize,
    ids: &SpecialIds,
    pre: Option<&str>,
) -> Result<Tokenizer, TokenizerError> {
    let mut reader = Reader {
        files,
        rows,
        ids,
        pre,
        config: settings::read(files.tokenizer_config.as_ref())?,
        names: settings::read(files.special_tokens_map.as_ref())?,
        notes: Notes::default(),
    };
    let json = match &files.tokenizer_json {
        Some(content) => Some((content.name.as_str(), content.json::<TokenizerJson>()?)),
        None => None,
    };
    if let Some((file, json)) = &json
        && let Some(dropout) = json.model.dropout.filter(|dropout| *dropout > 0.0)
    {
        reader.notes.add(format!(
            "{file}: model.dropout {dropout}: transformers leaves merges out at random; this file never does"
        ));
    }
    match (json, &files.tokenizer_model) {
        (Some((file, json)), model) => match (json.family(file)?, model) {
            (Family::ByteLevel, _) => reader.byte_level(file, json),
            (Family::SentencePiece, None) => reader.pieces_of_json(file, json),
            (Family::SentencePiece, Some(model)) => reader.pieces_of_both(file, json, model),
        },
        (None, Some(content)) => reader.pieces_of_model(content),
        (None, None) => Err(TokenizerError::Missing {
            directory: "the checkpoint".into(),
        }),
    }
}

/// What reading needs at every step.
struct Reader<'a> {
    files: &'a TokenizerFiles,
    rows: usize,
    ids: &'a SpecialIds,
    pre: Option<&'a str>,
    config: Object,
    names: Object,
    notes: Notes,
}

impl<'a> Reader<'a> {
    fn byte_level(mut self, file: &'a str, json: TokenizerJson) -> Result<Tokenizer, TokenizerError> {
        let surround = Surround::read(file, &json.post_processor, &mut self.notes);
        let bpe::Bpe {
            vocabulary,
            merges,
            pre,
        } = bpe::read(file, json, self.rows, self.pre, &mut self.notes)?;
        self.finish(
            vocabulary,
            Model::ByteLevel { pre, merges },
            surround,
            Defaults::default(),
        )
    }

    fn pieces_of_json(mut self, file: &'a str, json: TokenizerJson) -> Result<Tokenizer, TokenizerError> {
        let surround = Surround::read(file, &json.post_processor, &mut self.notes);
        let pieces = sentencepiece::read_json(file, json, self.rows, &mut self.notes)?;
        self.sentence_piece(pieces, surround)
    }

    fn pieces_of_model(mut self, content: &'a Content) -> Result<Tokenizer, TokenizerError> {
        let pieces = sentencepiece::read_model(content, self.rows, &mut self.notes)?;
        self.sentence_piece(pieces, None)
    }

    /// The scores of `content`, where it has the pieces of tokenizer.json and joins them in the same order.
    fn pieces_of_both(
        mut self,
        file: &'a str,
        json: TokenizerJson,
        content: &'a Content,
    ) -> Result<Tokenizer, TokenizerError> {
        let mut notes = Notes::default();
        let model = sentencepiece::read_model(content, self.rows, &mut notes);
        let contradiction = match &model {
            Ok(pieces) => sentencepiece::contradiction(&json, &pieces.vocabulary),
            Err(error) => Some(error.to_string()),
        };
        match (model, contradiction) {
            (Ok(mut pieces), None) => {
                self.notes.0.append(&mut notes.0);
                let surround = Surround::read(file, &json.post_processor, &mut self.notes);
                pieces.space_prefix = sentencepiece::space_prefix(file, &json, &pieces.vocabulary, &mut self.notes)?;
                json.overlay(file, &mut pieces.vocabulary)?;
                self.sentence_piece(pieces, surround)
            }
            (_, contradiction) => {
                self.notes.add(format!(
                    "{} is passed over, as transformers does beside {file}: {}",
                    content.name,
                    contradiction.unwrap_or_default()
                ));
                self.pieces_of_json(file, json)
            }
        }
    }

    fn sentence_piece(
        self,
        pieces: SentencePiece<'a>,
        surround: Option<Surround>,
    ) -> Result<Tokenizer, TokenizerError> {
        if self.pre.is_some() {
            return Err(TokenizerError::Unsupported {
                file: pieces.vocabulary.file().into(),
                found: "--tokenizer-pre with a SentencePiece vocabulary".into(),
                remedy: "it is for byte-level vocabularies, leave it out",
            });
        }
        let space_prefix = self.config.flag("add_prefix_space")?.unwrap_or(pieces.space_prefix);
        self.finish(
            pieces.vocabulary,
            Model::SentencePiece { space_prefix },
            surround,
            pieces.defaults,
        )
    }

    /// Adds what the files beside the vocabulary say.
    fn finish(
        mut self,
        mut vocabulary: Vocabulary<'a>,
        model: Model,
        surround: Option<Surround>,
        defaults: Defaults,
    ) -> Result<Tokenizer, TokenizerError> {
        self.overlay_added_tokens(&mut vocabulary)?;
        if matches!(model, Model::SentencePiece { .. }) {
            sentencepiece::finish(&mut vocabulary)?;
        }
        let named = [&self.config, &self.names];
        // Special tokens are not part of a text, even where the vocabulary lists them among its texts.
        for text in settings::named(named)? {
            vocabulary.set_control(text);
        }
        if self.config.flag("fix_mistral_regex")? == Some(true) {
            self.notes.add(format!(
                "{}: fix_mistral_regex: transformers splits text by another expression than tokenizer.json has; \
                 this file splits by that of tokenizer.json",
                self.config.name()
            ));
        }
        note_made_control(&vocabulary, &mut self.notes);
        let chat_template = template::chat_template(self.files, &self.config, &mut self.notes)?;
        vocabulary.check_without_row(chat_template.as_deref(), named, &mut self.notes)?;
        let Special {
            bos,
            eos,
            more_ends,
            unk,
            pad,
            add_bos,
            add_eos,
        } = self.special(&vocabulary, surround, defaults)?;
        let tokens = vocabulary.into_tokens();
        let notes = self.notes.0;
        Ok(Tokenizer {
            model,
            tokens,
            bos,
            eos,
            more_ends,
            unk,
            pad,
            add_bos,
            add_eos,
            chat_template,
            notes,
        })
    }

    fn special(
        &mut self,
        vocabulary: &Vocabulary,
        surround: Option<Surround>,
        defaults: Defaults,
    ) -> Result<Special, TokenizerError> {
        let generation = settings::read(self.files.generation_config.as_ref())?;
        let config_name = self.files.config_name.as_deref().unwrap_or("config.json");
        let ends = Ends::read(&generation, self.ids, config_name, &mut self.notes)?;
        let sources = special::Sources {
            vocabulary,
            rows: self.rows,
            settings: [&self.config, &self.names],
            ids: self.ids,
            config_name,
            ends,
            surround,
            defaults,
        };
        special::resolve(&sources, &mut self.notes)
    }

    /// added_tokens.json: `{text: id}`; tokenizer_config.json: `"added_tokens_decoder": {id: {"content", "special"}}`.
    fn overlay_added_tokens(&self, vocabulary: &mut Vocabulary) -> Result<(), TokenizerError> {
        let added = settings::read(self.files.added_tokens.as_ref())?;
        for (text, id) in added.entries() {
            let id = id.as_u64().ok_or_else(|| added.wrong(text, Some(id), "a token id"))?;
            vocabulary.overlay(&added.name(), id, text, false)?;
        }
        const KEY: &str = "added_tokens_decoder";
        let Some(decoder) = self.config.value(KEY) else {
            return Ok(());
        };
        let expected = "an object of ids, each with \"content\" and \"special\"";
        let entries = decoder
            .as_object()
            .ok_or_else(|| self.config.wrong(KEY, Some(decoder), expected))?;
        for (id, token) in entries {
            let content = token.get("content").and_then(serde_json::Value::as_str);
            let special = token.get("special").map_or(Some(false), serde_json::Value::as_bool);
            let (Ok(id), Some(content), Some(special)) = (id.parse(), content, special) else {
                let key = format!("{KEY}.{id}");
                return Err(self.config.wrong(&key, Some(token), expected).into());
            };
            vocabulary.overlay(&self.config.name(), id, content, special)?;
        }
        Ok(())
    }
}

/// Tokens that are text to the checkpoint, and that llama.cpp makes control tokens.
fn note_made_control(vocabulary: &Vocabulary, notes: &mut Notes) {
    let is_text = |kind| matches!(kind, TokenType::Normal | TokenType::UserDefined);
    let texts: Vec<_> = vocabulary
        .iter()
        .filter(|(_, token)| is_text(token.kind) && is_made_control(&token.text))
        .map(|(id, token)| format!("{:?} ({id})", token.text))
        .collect();
    if !texts.is_empty() {
        notes.add(format!(
            "{}: llama.cpp makes control tokens of {}, which are text here; ids differ where a text has them written out",
            vocabulary.file(),
            texts.join(", ")
        ));
    }
}

impl Tokenizer {
    /// The `tokenizer.*` metadata of a GGUF file, in the types that llama.cpp demands.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        self.clone().into_metadata()
    }

    /// The same, of what is not needed any more.
    pub fn into_metadata(self) -> Vec<(String, Value)> {
        let types = self.tokens.iter().map(|token| token.kind as i32).collect();
        let scores = self.tokens.iter().map(|token| token.score).collect();
        let texts = self.tokens.into_iter().map(|token| token.text).collect();
        let mut entries = vec![
            ("ggml.tokens", Value::Array(Array::String(texts))),
            ("ggml.token_type", Value::Array(Array::I32(types))),
            ("ggml.bos_token_id", Value::U32(self.bos)),
            ("ggml.eos_token_id", Value::U32(self.eos)),
            ("ggml.add_bos_token", Value::Bool(self.add_bos)),
            ("ggml.add_eos_token", Value::Bool(self.add_eos)),
        ];
        match self.model {
            Model::ByteLevel { pre, merges } => entries.extend([
                ("ggml.model", Value::String("gpt2".into())),
                ("ggml.pre", Value::String(pre)),
                ("ggml.merges", Value::Array(Array::String(merges))),
            ]),
            Model::SentencePiece { space_prefix } => entries.extend([
                ("ggml.model", Value::String("llama".into())),
                ("ggml.pre", Value::String("default".into())),
                ("ggml.scores", Value::Array(Array::F32(scores))),
                ("ggml.add_space_prefix", Value::Bool(space_prefix)),
            ]),
        }
        let end_keys = ["ggml.eot_token_id", "ggml.eom_token_id"];
        entries.extend(
            end_keys
                .into_iter()
                .zip(self.more_ends.iter().map(|&id| Value::U32(id))),
        );
        entries.extend(self.unk.map(|id| ("ggml.unknown_token_id", Value::U32(id))));
        entries.extend(self.pad.map(|id| ("ggml.padding_token_id", Value::U32(id))));
        entries.extend(
            self.chat_template
                .map(|template| ("chat_template", Value::String(template))),
        );
        entries
            .into_iter()
            .map(|(key, value)| (format!("tokenizer.{key}"), value))
            .collect()
    }
}
