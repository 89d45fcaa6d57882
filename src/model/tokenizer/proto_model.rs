//! What a tokenizer.model holds (sentencepiece_model.proto: `ModelProto`), as far as it is needed here.

use super::Notes;
use super::protobuf::{Fault, Field, Fields};
use super::vocabulary::{Token, TokenType};

/// The file.
pub(super) struct Model {
    /// In the order of their ids.
    pub pieces: Vec<Token>,
    pub trainer: Trainer,
    pub normalizer: Normalizer,
}

impl Model {
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let (mut pieces, mut trainer, mut normalizer) = (vec![], Trainer::default(), None);
        for field in Fields::new(bytes, 0) {
            match field? {
                (1, Field::Bytes(at, bytes)) => pieces.push(piece(at, bytes)?),
                (2, Field::Bytes(at, bytes)) => trainer = Trainer::read(at, bytes)?,
                (3, Field::Bytes(at, bytes)) => normalizer = Some(Normalizer::read(at, bytes)?),
                _ => {}
            }
        }
        if pieces.is_empty() {
            return Err((bytes.len(), "no piece found"));
        }
        Ok(Self {
            pieces,
            trainer,
            // Always written, and last: without it the file is cut short.
            normalizer: normalizer.ok_or((bytes.len(), "no normalizer found"))?,
        })
    }
}

/// `ModelProto.SentencePiece`: piece = 1, score = 2, type = 3.
fn piece(at: usize, bytes: &[u8]) -> Result<Token, Fault> {
    let mut token = Token {
        text: String::new(),
        kind: TokenType::Normal,
        score: 0.0,
    };
    for field in Fields::new(bytes, at) {
        match field? {
            (1, Field::Bytes(at, text)) => {
                token.text = String::from_utf8(text.into()).map_err(|_| (at, "the piece is not UTF-8"))?;
            }
            (2, Field::Fixed32(score)) => token.score = f32::from_le_bytes(score),
            (3, Field::Varint(kind)) => {
                token.kind = match kind {
                    1 => TokenType::Normal,
                    2 => TokenType::Unknown,
                    3 => TokenType::Control,
                    4 => TokenType::UserDefined,
                    5 => TokenType::Unused,
                    6 => TokenType::Byte,
                    _ => return Err((at, "the piece has a type that is not 1 to 6")),
                }
            }
            _ => {}
        }
    }
    if token.score.is_nan() {
        return Err((at, "the piece's score is not a number"));
    }
    Ok(token)
}

/// `TrainerSpec.ModelType`
const BPE: u64 = 2;

/// The part of `TrainerSpec` that matters here; the defaults are the format's.
pub(super) struct Trainer {
    model_type: u64,
    space_as_suffix: bool,
    pub unk: i64,
    pub bos: i64,
    pub eos: i64,
    pub pad: i64,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            model_type: 1,
            space_as_suffix: false,
            unk: 0,
            bos: 1,
            eos: 2,
            pad: -1,
        }
    }
}

impl Trainer {
    fn read(at: usize, bytes: &[u8]) -> Result<Self, Fault> {
        let mut trainer = Self::default();
        for field in Fields::new(bytes, at) {
            let (number, Field::Varint(value)) = field? else {
                continue;
            };
            match number {
                3 => trainer.model_type = value,
                24 => trainer.space_as_suffix = value != 0,
                40 => trainer.unk = value as i64,
                41 => trainer.bos = value as i64,
                42 => trainer.eos = value as i64,
                43 => trainer.pad = value as i64,
                _ => {}
            }
        }
        Ok(trainer)
    }

    /// What llama.cpp cannot do of it, and what to do.
    pub fn unsupported(&self) -> Option<(String, &'static str)> {
        let kind = match self.model_type {
            BPE if self.space_as_suffix => {
                let remedy = "llama.cpp puts the space before a word; name another tokenizer with --tokenizer";
                return Some(("treat_whitespace_as_suffix".into(), remedy));
            }
            BPE => return None,
            1 => "UNIGRAM".into(),
            3 => "WORD".into(),
            4 => "CHAR".into(),
            other => other.to_string(),
        };
        let remedy = "models of type BPE are; name another tokenizer with --tokenizer";
        Some((format!("a SentencePiece model of type {kind}"), remedy))
    }
}

/// The part of `NormalizerSpec` that matters here; the defaults are the format's.
pub(super) struct Normalizer {
    name: String,
    has_charsmap: bool,
    /// Whether a space is put before the text.
    pub dummy_prefix: bool,
    removes_spaces: bool,
}

impl Default for Normalizer {
    fn default() -> Self {
        Self {
            name: String::new(),
            has_charsmap: false,
            dummy_prefix: true,
            removes_spaces: true,
        }
    }
}

impl Normalizer {
    fn read(at: usize, bytes: &[u8]) -> Result<Self, Fault> {
        let mut normalizer = Self::default();
        for field in Fields::new(bytes, at) {
            match field? {
                (1, Field::Bytes(_, name)) => normalizer.name = String::from_utf8_lossy(name).into(),
                (2, Field::Bytes(_, charsmap)) => normalizer.has_charsmap = !charsmap.is_empty(),
                (3, Field::Varint(value)) => normalizer.dummy_prefix = value != 0,
                (4, Field::Varint(value)) => normalizer.removes_spaces = value != 0,
                _ => {}
            }
        }
        Ok(normalizer)
    }
    /// What llama.cpp cannot do of it, and what to do.
    pub fn unsupported(&self) -> Option<(String, &'static str)> {
        let remedy = "llama.cpp does not change text before it splits it; name another tokenizer with --tokenizer";
        let changes = self.has_charsmap && !self.is_nfkc();
        changes.then(|| (format!("the normalizer {:?}", self.name), remedy))
    }

    fn is_nfkc(&self) -> bool {
        matches!(&*self.name, "nfkc" | "nmt_nfkc")
    }

    /// What llama.cpp does not do of it.
    pub fn note(&self, file: &str, notes: &mut Notes) {
        if self.is_nfkc() {
            notes.add(format!(
                "{file}: text is brought to {} first; llama.cpp takes it as it is",
                self.name
            ));
        }
        if self.removes_spaces {
            notes.add(format!(
                "{file}: runs of spaces become one space first; llama.cpp keeps them"
            ));
        }
    }
}
