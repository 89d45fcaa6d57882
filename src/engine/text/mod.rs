//! Text to tokens and back, from the `tokenizer.*` keys of a GGUF file, as llama.cpp does it (llama-vocab.cpp).

mod chat;
mod decode;
mod error;
mod hard;
mod merge;
mod own;
mod roles;
mod windows;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use formats::gguf::tokenizer::{PreTokenizer, pre_tokenizer};
use formats::gguf::{Array, File, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

pub use chat::{Chat, Message};
pub use decode::Decoder;
pub use error::TextError;
pub use hard::HARD;
use merge::Pieces;
pub use own::Own;
pub use windows::{TextOptions, Window, Windows};

/// The tokenizer of a GGUF file.
pub struct Text {
    splitter: Splitter,
    /// What each token adds to a text; empty for those that steer.
    bytes: Vec<Box<[u8]>>,
    /// Whether a byte has a token.
    spelled: [bool; 256],
    /// Tokens that are looked for in the text before it is split, the longest first.
    marks: Vec<Mark>,
    /// Tokens after which generation stops.
    ends: HashSet<u32>,
    bos: u32,
    eos: u32,
    add_bos: bool,
    add_eos: bool,
    space_prefix: bool,
    chat_template: Option<String>,
}

/// What turns plain text into tokens.
enum Splitter {
    /// `gpt2`
    ByteLevel(Box<tokenizers::Tokenizer>, &'static PreTokenizer),
    /// `llama`
    SentencePiece(Pieces),
}

/// A token that is recognised as a whole.
struct Mark {
    text: String,
    id: u32,
    /// Only where the caller asks for special tokens.
    is_special: bool,
}

/// A stretch of the text to encode.
enum Fragment<'a> {
    Plain(&'a str),
    Token(u32),
}

/// Values of `tokenizer.ggml.token_type`.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const NORMAL: i32 = 1;
const BYTE: i32 = 6;

impl Text {
    /// Builds the tokenizer of `file`.
    ///
    /// # Errors
    /// A key is missing, of another type or length than it must be, or names what is not known here.
    pub fn from_gguf(file: &File) -> Result<Self, TextError> {
        Self::from_keys(file.metadata())
    }

    /// Builds the tokenizer of a file with these keys.
    ///
    /// # Errors
    /// Those of [`Text::from_gguf`].
    pub fn from_keys(keys: &[(String, Value)]) -> Result<Self, TextError> {
        let keys = Keys(keys);
        let texts = keys.strings("tokenizer.ggml.tokens")?;
        let rows = texts.len();
        let ids = ids(texts)?;
        let mut types = keys.types(rows)?;
        let model = keys.string("tokenizer.ggml.model")?;
        let is_byte_level = match model {
            "gpt2" => true,
            "llama" => false,
            found => {
                return Err(TextError::Model { found: found.into() });
            }
        };
        // llama.cpp's own choice where a key is absent (llama-vocab.cpp:2002-2010, 2079-2085).
        let (default_bos, default_eos) = if is_byte_level { (11, 11) } else { (1, 2) };
        let bos = keys.id("tokenizer.ggml.bos_token_id", rows)?.unwrap_or(default_bos);
        let eos = keys.id("tokenizer.ggml.eos_token_id", rows)?.unwrap_or(default_eos);
        let ends = roles::by_text(&keys, &ids, &mut types, eos)?;
        let spelled = if is_byte_level {
            decode::alphabet().map(|char| ids.contains_key(&*char.encode_utf8(&mut [0; 4])))
        } else {
            [true; 256]
        };
        let (splitter, add_bos) = if is_byte_level {
            byte_level(&keys, ids)?
        } else {
            (Splitter::SentencePiece(Pieces::new(ids, keys.scores(rows)?)?), true)
        };
        let bytes = texts
            .iter()
            .zip(&types)
            .map(|(text, &kind)| decode::token_bytes(text, kind, is_byte_level).into())
            .collect();

        Ok(Self {
            splitter,
            bytes,
            spelled,
            marks: marks(texts, &types),
            ends,
            bos,
            eos,
            add_bos: keys.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos),
            add_eos: keys.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            space_prefix: keys.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(!is_byte_level),
            chat_template: keys.optional_string("tokenizer.chat_template")?.map(str::to_owned),
        })
    }

    /// From here on text is split by llama.cpp's own expressions, where those are not what the name of the pre-tokenizer
    /// stands for: they leave combining marks out of words, for example. Whether there are any such.
    ///
    /// # Errors
    /// None that a vocabulary could cause.
    pub fn split_as_llama_cpp(&mut self) -> Result<bool, TextError> {
        let Splitter::ByteLevel(tokenizer, pre) = &mut self.splitter else {
            return Ok(false);
        };
        if pre.llama_cpp.is_empty() {
            return Ok(false);
        }
        tokenizer.with_pre_tokenizer(Some(isolate(pre.llama_cpp)?));
        Ok(true)
    }

    /// Whether each byte of the text has a token. A byte without one is left out, and what stands around it is then
    /// joined otherwise than by llama.cpp.
    pub fn can_spell(&self, text: &str) -> bool {
        text.bytes().all(|byte| self.spelled[usize::from(byte)])
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// Whether generation stops at this token.
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The Jinja template for conversations.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The tokens of a text. `add_special`: with the first and last token that the file asks for.
    /// Special tokens that are written out in the text are text.
    pub fn encode(&self, text: &str, add_special: bool) -> Vec<u32> {
        self.encode_fragments(text, add_special, false)
    }

    /// Like [`Text::encode`], but special tokens that are written out in the text become those tokens: for prompts
    /// that a chat template made, never for what someone typed.
    pub fn encode_with_specials(&self, text: &str, add_special: bool) -> Vec<u32> {
        self.encode_fragments(text, add_special, true)
    }

    /// The text of a token sequence. Special tokens are left out; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = ids.iter().map(|&id| decoder.push(id)).collect();
        text += &decoder.finish();
        // The space that encoding put in front.
        let has_prefix = self.space_prefix && text.starts_with(' ');
        if has_prefix { text.split_off(1) } else { text }
    }

    /// Decodes tokens as they come.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    fn encode_fragments(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::new();
        if add_special && self.add_bos {
            ids.push(self.bos);
        }
        // A space goes before the text, and before text that follows a special token.
        let mut wants_prefix = self.space_prefix;
        for fragment in self.fragments(text, parse_special) {
            match (fragment, &self.splitter) {
                (Fragment::Token(id), _) => {
                    ids.push(id);
                    wants_prefix = self.space_prefix;
                }
                (Fragment::Plain(text), Splitter::ByteLevel(tokenizer, _)) => {
                    let encoding = tokenizer.encode_fast(text, false);
                    // Without an unknown token and without dropout every text has an encoding.
                    ids.extend(encoding.iter().flat_map(|encoding| encoding.get_ids()));
                }
                (Fragment::Plain(text), Splitter::SentencePiece(pieces)) => {
                    let prefix = if wants_prefix { " " } else { "" };
                    pieces.encode(&format!("{prefix}{text}").replace(' ', "▁"), &mut ids);
                    wants_prefix = false;
                }
            }
        }
        if add_special && self.add_eos {
            ids.push(self.eos);
        }
        ids
    }

    /// Cuts `text` at its marks: all occurrences of the longest mark first (`tokenizer_st_partition`).
    fn fragments<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let mut fragments = vec![Fragment::Plain(text)];
        for mark in self.marks.iter().filter(|mark| parse_special || !mark.is_special) {
            if !text.contains(&mark.text) {
                continue;
            }
            let cut = |fragment| match fragment {
                Fragment::Token(_) => vec![fragment],
                Fragment::Plain(text) => {
                    let plain = text.split(&mark.text).map(Fragment::Plain);
                    let mut cut: Vec<_> = plain.flat_map(|part| [part, Fragment::Token(mark.id)]).collect();
                    cut.pop(); // no mark after the last part
                    cut
                }
            };
            fragments = fragments.into_iter().flat_map(cut).collect();
        }
        fragments.retain(|fragment| !matches!(fragment, Fragment::Plain("")));
        fragments
    }
}

/// The id of every text, which must be unique: llama.cpp aborts where one is not.
fn ids(texts: &[String]) -> Result<HashMap<String, u32>, TextError> {
    let mut ids = HashMap::with_capacity(texts.len());
    for (text, second) in texts.iter().zip(0..) {
        if let Some(first) = ids.insert(text.clone(), second) {
            return Err(TextError::Duplicate {
                text: text.clone(),
                first,
                second,
            });
        }
    }
    Ok(ids)
}

fn marks(texts: &[String], types: &[i32]) -> Vec<Mark> {
    let is_mark = |kind| matches!(kind, UNKNOWN | CONTROL | USER_DEFINED);
    let mut marks: Vec<_> = texts
        .iter()
        .zip(types)
        .zip(0..)
        .filter(|((text, kind), _)| is_mark(**kind) && !text.is_empty())
        .map(|((text, &kind), id)| Mark {
            text: text.clone(),
            id,
            is_special: kind != USER_DEFINED,
        })
        .collect();
    marks.sort_by_key(|mark| std::cmp::Reverse(mark.text.len()));
    marks
}

/// The splitter of a `gpt2` vocabulary, and whether its texts begin with a token by default.
fn byte_level(keys: &Keys, ids: HashMap<String, u32>) -> Result<(Splitter, bool), TextError> {
    const PRE: &str = "tokenizer.ggml.pre";
    const MERGES: &str = "tokenizer.ggml.merges";
    let name = keys.string(PRE)?;
    let pre = pre_tokenizer(name).ok_or_else(|| TextError::PreTokenizer { found: name.into() })?;

    let vocab: Vocab = ids.into_iter().collect();
    let mut merges = Vec::new();
    for (index, merge) in keys.strings(MERGES)?.iter().enumerate() {
        let (left, right) = merge
            .split_once(' ')
            .filter(|(left, right)| {
                [*left, *right, &format!("{left}{right}")]
                    .iter()
                    .all(|&text| vocab.contains_key(text))
            })
            .ok_or_else(|| TextError::Merge {
                index,
                found: merge.clone(),
            })?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|source| TextError::Build { source })?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(isolate(pre.splits)?));
    let splitter = Splitter::ByteLevel(Box::new(tokenizer), pre);
    Ok((splitter, pre.add_bos))
}

/// Splits text by each expression in turn, then writes it in GPT-2's alphabet.
fn isolate(expressions: &[&str]) -> Result<Sequence, TextError> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for expression in expressions {
        let pattern = SplitPattern::Regex((*expression).into());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(|source| TextError::Build { source })?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    Ok(Sequence::new(steps))
}

/// Reads keys of known types.
struct Keys<'a>(&'a [(String, Value)]);

impl<'a> Keys<'a> {
    fn typed<T>(
        &self,
        key: &'static str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        let Some((_, value)) = self.0.iter().find(|(name, _)| name == key) else {
            return Ok(None);
        };
        read(value).map(Some).ok_or_else(|| TextError::Type {
            key,
            found: value.type_name(),
            expected,
        })
    }

    fn optional_string(&self, key: &'static str) -> Result<Option<&'a str>, TextError> {
        self.typed(key, "string", Value::as_str)
    }

    fn string(&self, key: &'static str) -> Result<&'a str, TextError> {
        self.optional_string(key)?.ok_or(TextError::Missing { key })
    }

    fn strings(&self, key: &'static str) -> Result<&'a [String], TextError> {
        self.typed(key, "array of string", Value::as_strings)?
            .ok_or(TextError::Missing { key })
    }

    fn flag(&self, key: &'static str) -> Result<Option<bool>, TextError> {
        self.typed(key, "bool", Value::as_bool)
    }

    fn id(&self, key: &'static str, rows: usize) -> Result<Option<u32>, TextError> {
        match self.typed(key, "u32", Value::as_u32)? {
            Some(id) if id as usize >= rows => Err(TextError::Range { key, id, rows }),
            id => Ok(id),
        }
    }

    /// Like [`Keys::id`], for keys that llama.cpp passes over where they name no token.
    fn id_if_in_range(&self, key: &'static str, rows: usize) -> Result<Option<u32>, TextError> {
        let id = self.typed(key, "u32", Value::as_u32)?;
        Ok(id.filter(|&id| (id as usize) < rows))
    }

    fn types(&self, rows: usize) -> Result<Vec<i32>, TextError> {
        const KEY: &str = "tokenizer.ggml.token_type";
        let types = self.typed(KEY, "array of i32", |value| match value {
            Value::Array(Array::I32(types)) => Some(types),
            _ => None,
        })?;
        match types {
            None => Ok(vec![NORMAL; rows]),
            Some(types) if types.len() == rows => Ok(types.clone()),
            Some(types) => Err(TextError::Length {
                key: KEY,
                found: types.len(),
                rows,
            }),
        }
    }

    fn scores(&self, rows: usize) -> Result<&'a [f32], TextError> {
        const KEY: &str = "tokenizer.ggml.scores";
        let scores = self.typed(KEY, "array of f32", |value| match value {
            Value::Array(Array::F32(scores)) => Some(scores.as_slice()),
            _ => None,
        })?;
        let scores = scores.ok_or(TextError::Missing { key: KEY })?;
        if scores.len() == rows {
            Ok(scores)
        } else {
            Err(TextError::Length {
                key: KEY,
                found: scores.len(),
                rows,
            })
        }
    }
}
