//! SentencePiece vocabularies, from tokenizer.model or from a tokenizer.json with byte fallback.
//!
//! llama.cpp joins, again and again, the adjacent pair whose joined text is the piece with the highest score, the
//! leftmost first (llama-vocab.cpp:97-104, 120-168). tokenizer.model has the scores. tokenizer.json has ranked merges
//! instead; a piece's score is then minus the rank of the first merge that makes it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::files::{Content, step_name};
use super::json::{Entries, Merge, TokenizerJson};
use super::protobuf::{Field, Fields};
use super::special::Defaults;
use super::vocabulary::{Token, TokenType, Vocabulary};
use super::{Notes, TokenizerError};

/// What stands for a space in pieces.
const SPACE: &str = "▁";

/// A SentencePiece vocabulary.
pub(super) struct SentencePiece<'a> {
    pub vocabulary: Vocabulary<'a>,
    /// Whether a space is put before the text.
    pub space_prefix: bool,
    /// Special tokens that the file itself names.
    pub defaults: Defaults,
}

/// Reads a tokenizer.model (sentencepiece_model.proto: `ModelProto`).
pub(super) fn read_model<'a>(
    content: &'a Content,
    rows: usize,
    notes: &mut Notes,
) -> Result<SentencePiece<'a>, TokenizerError> {
    let file = content.name.as_str();
    let unsupported = |found: String, remedy| TokenizerError::Unsupported {
        file: file.into(),
        found,
        remedy,
    };
    if is_tiktoken(&content.bytes) {
        return Err(unsupported(
            "a tiktoken vocabulary".into(),
            "take the tokenizer.json of the same model, which lists the same tokens",
        ));
    }
    let protobuf = |(at, what)| TokenizerError::Protobuf {
        file: file.into(),
        at,
        what,
    };

    let mut vocabulary = Vocabulary::new(file, rows);
    let mut trainer = Trainer::default();
    let mut normalizer = None;
    let mut next_id = 0;
    for field in Fields::new(&content.bytes, 0) {
        match field.map_err(protobuf)? {
            (1, Field::Bytes(at, bytes)) => {
                vocabulary.insert(next_id, piece(at, bytes).map_err(protobuf)?)?;
                next_id += 1;
            }
            (2, Field::Bytes(at, bytes)) => trainer = Trainer::read(at, bytes).map_err(protobuf)?,
            (3, Field::Bytes(at, bytes)) => normalizer = Some(Normalizer::read(at, bytes).map_err(protobuf)?),
            _ => {}
        }
    }
    let fault = |what| protobuf((content.bytes.len(), what));
    if next_id == 0 {
        return Err(fault("no piece found"));
    }
    // Always written, and last: without it the file is cut short.
    let normalizer = normalizer.ok_or_else(|| fault("no normalizer found"))?;
    if trainer.model_type != BPE {
        return Err(unsupported(
            format!("a SentencePiece model of type {}", trainer.model_type_name()),
            "models of type BPE are; name another tokenizer with --tokenizer",
        ));
    }
    if trainer.space_as_suffix {
        return Err(unsupported(
            "treat_whitespace_as_suffix".into(),
            "llama.cpp puts the space before a word; name another tokenizer with --tokenizer",
        ));
    }
    match normalizer.name.as_str() {
        "nfkc" | "nmt_nfkc" => {
            notes.add(format!(
                "{file}: text is brought to {} first; llama.cpp takes it as it is",
                normalizer.name
            ));
        }
        name if normalizer.has_charsmap => {
            return Err(unsupported(
                format!("the normalizer {name:?}"),
                "llama.cpp does not change text before it splits it; name another tokenizer with --tokenizer",
            ));
        }
        _ => {}
    }
    if normalizer.removes_spaces {
        notes.add(format!(
            "{file}: runs of spaces become one space first; llama.cpp keeps them"
        ));
    }
    // An id that is not among the pieces means that the model has no such token.
    let id = |id: i64| u32::try_from(id).ok().filter(|&id| u64::from(id) < next_id);
    Ok(SentencePiece {
        vocabulary,
        space_prefix: normalizer.dummy_prefix,
        defaults: Defaults {
            bos: id(trainer.bos),
            eos: id(trainer.eos),
            unk: id(trainer.unk),
            pad: id(trainer.pad),
            add_bos: true,
        },
    })
}

/// Reads a tokenizer.json with byte fallback.
pub(super) fn read_json<'a>(
    file: &'a str,
    mut json: TokenizerJson,
    rows: usize,
    notes: &mut Notes,
) -> Result<SentencePiece<'a>, TokenizerError> {
    let mut vocabulary = json.take_vocabulary(file, rows)?;
    json.check_merges(file, &vocabulary)?;
    let space_prefix = space_prefix(file, &json, &vocabulary, notes)?;
    note_missing_merges(file, &json.model.merges, &vocabulary, notes);

    let unk = json.model.unk_token.as_deref();
    // Pieces that no merge makes come last of all.
    let unmerged = json.model.merges.len();
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (rank, merge) in json.model.merges.iter().enumerate() {
        ranks.entry(merge.joined()).or_insert(rank);
    }
    for token in vocabulary.iter_mut() {
        token.score = 0.0 - ranks.get(&token.text).copied().unwrap_or(unmerged) as f32;
        if Some(token.text.as_str()) == unk {
            token.kind = TokenType::Unknown;
        } else if is_byte(&token.text) {
            token.kind = TokenType::Byte;
        }
    }
    json.overlay(file, &mut vocabulary)?;
    let unk = unk.and_then(|text| vocabulary.id(text));
    Ok(SentencePiece {
        vocabulary,
        space_prefix,
        defaults: Defaults {
            unk,
            add_bos: true,
            ..Defaults::default()
        },
    })
}

/// What must hold of a finished SentencePiece vocabulary; gives user-defined tokens the text that llama.cpp looks for.
pub(super) fn finish(vocabulary: &mut Vocabulary) -> Result<(), TokenizerError> {
    let file = vocabulary.file();
    // llama.cpp throws on a byte that it cannot spell (llama-vocab.cpp:4051-4066).
    let missing = (0..=u8::MAX)
        .map(|byte| format!("<0x{byte:02X}>"))
        .find(|text| vocabulary.id(text).is_none());
    if let Some(missing) = missing {
        return Err(TokenizerError::NoByteToken {
            file: file.into(),
            missing,
        });
    }
    // They are searched for in the text before its spaces are replaced (llama-vocab.cpp: tokenizer_st_partition).
    let escaped: Vec<(u32, Token)> = vocabulary
        .iter()
        .filter(|(_, token)| token.kind == TokenType::UserDefined && token.text.contains(SPACE))
        .map(|(id, token)| {
            (
                id,
                Token {
                    text: token.text.replace(SPACE, " "),
                    ..token.clone()
                },
            )
        })
        .collect();
    escaped
        .into_iter()
        .try_for_each(|(id, token)| vocabulary.replace(file, id.into(), token))
}

/// `<0xXX>`
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))
}

/// Whether the text gets a space in front; refuses other changes to it.
///
/// Transformers writes it as a `Prepend` before the spaces are replaced; or as a `Metaspace`, which puts none before a
/// text that begins with one, and then as a `Replace` that doubles that one.
pub(super) fn space_prefix(
    file: &str,
    json: &TokenizerJson,
    vocabulary: &Vocabulary,
    notes: &mut Notes,
) -> Result<bool, TokenizerError> {
    let unsupported = |what: &str, step: &Value| TokenizerError::Unsupported {
        file: file.into(),
        found: format!("{what} {}", step_name(step)),
        remedy: "spaces that become \"▁\", with or without one in front of the text, are; name another tokenizer with --tokenizer",
    };
    let (mut prepends, mut doubles, mut replaces) = (false, None, false);
    for step in steps(&json.normalizer, "normalizers") {
        let text = |pointer: &str| step.pointer(pointer).and_then(Value::as_str);
        let pattern = text("/pattern/String").or(text("/pattern/Regex"));
        match (text("/type"), pattern, text("/content")) {
            (Some("Prepend"), _, _) if text("/prepend") == Some(SPACE) => prepends = true,
            (Some("Replace"), Some(" "), Some(SPACE)) => replaces = true,
            (Some("Replace"), Some(r"\A▁"), Some("▁▁")) => doubles = Some(step),
            _ => return Err(unsupported("normalizer", step)),
        }
    }
    let mut metaspace = false;
    for step in steps(&json.pre_tokenizer, "pretokenizers") {
        let text = |key: &str| step.get(key).and_then(Value::as_str);
        let flag = |key: &str| step.get(key).and_then(Value::as_bool);
        if text("type") != Some("Metaspace") || text("replacement") != Some(SPACE) {
            return Err(unsupported("pre_tokenizer", step));
        }
        // Words are joined apart from each other. llama.cpp does not do that, which is the same only
        // when no piece goes over a word's start.
        let goes_over = |token: &Token| token.text.chars().skip(1).any(|char| char == '▁');
        if flag("split").unwrap_or(true) && vocabulary.iter().any(|(_, token)| goes_over(token)) {
            return Err(unsupported("the \"split\" of pre_tokenizer", step));
        }
        replaces = true;
        metaspace |= match (text("prepend_scheme"), flag("add_prefix_space")) {
            (Some("never"), _) | (_, Some(false)) => false,
            (Some("first" | "always") | None, _) => true,
            _ => return Err(unsupported("pre_tokenizer", step)),
        };
    }
    match doubles {
        Some(step) if prepends || !metaspace => return Err(unsupported("normalizer", step)),
        None if metaspace && !prepends => notes.add(format!(
            "{file}: a text that begins with a space gets none in front; llama.cpp puts one before every text"
        )),
        _ => {}
    }
    if replaces {
        Ok(prepends || metaspace)
    } else {
        Err(unsupported("pre_tokenizer", &json.pre_tokenizer))
    }
}

/// The steps of a sequence, or the one step that there is.
fn steps<'a>(step: &'a Value, list: &str) -> &'a [Value] {
    match step.get(list).and_then(Value::as_array) {
        Some(steps) => steps,
        None if step.is_null() => &[],
        None => std::slice::from_ref(step),
    }
}

/// What a tokenizer.json has otherwise than the `pieces` of a tokenizer.model beside it.
pub(super) fn contradiction(json: &TokenizerJson, pieces: &Vocabulary) -> Option<String> {
    let Entries(entries) = &json.model.vocab;
    let is_added = |id| json.added_tokens.iter().any(|token| token.id == id);
    let is_same = |(text, id): &&(String, u64)| pieces.id(text).map(u64::from) == Some(*id);
    let same = entries.iter().filter(is_same).count();
    let surplus = entries
        .iter()
        .filter(|(text, id)| pieces.id(text).is_none() && is_added(*id))
        .count();
    let all = pieces.iter().count().max(entries.len() - surplus);
    if same < all {
        return Some(format!("{} of {all} ids have other pieces there", all - same));
    }
    // Merges come in the order of the scores of what they make.
    let mut last = f32::INFINITY;
    for merge in &json.model.merges {
        let id = pieces.id(&merge.joined());
        let score = id.and_then(|id| pieces.score(id)).unwrap_or(last);
        if score > last {
            return Some("its pieces are joined in another order".into());
        }
        last = score;
    }
    None
}

/// llama.cpp joins any two pieces whose joined text is a piece. A SentencePiece model that was converted to merges lists
/// all those pairs; a BPE model that was trained as such may not.
fn note_missing_merges(file: &str, merges: &[Merge], vocabulary: &Vocabulary, notes: &mut Notes) {
    let pairs: HashSet<(&str, &str)> = merges.iter().map(|merge| (merge.left(), merge.right())).collect();
    let made: HashSet<String> = merges.iter().map(Merge::joined).collect();
    let lacks_pair = |text: &str| {
        text.char_indices()
            .skip(1)
            .map(|(at, _)| text.split_at(at))
            .any(|(left, right)| {
                !pairs.contains(&(left, right)) && vocabulary.id(left).is_some() && vocabulary.id(right).is_some()
            })
    };
    let count = made.iter().filter(|text| lacks_pair(text)).count();
    if count > 0 {
        notes.add(format!(
            "{file}: {count} of {} merged pieces can also be joined in ways that the merges leave out; \
             llama.cpp may split some words otherwise",
            made.len()
        ));
    }
}

/// Lines of `base64 rank`, as the original Llama-3 `tokenizer.model` has.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let is_base64 = |word: &[u8]| {
        word.len() >= 4
            && word
                .iter()
                .all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
    };
    let is_number = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_digit);
    words.next().is_some_and(is_base64) && words.next().is_some_and(is_number) && words.next().is_none()
}

/// `ModelProto.SentencePiece`: piece = 1, score = 2, type = 3.
fn piece(at: usize, bytes: &[u8]) -> Result<Token, (usize, &'static str)> {
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
struct Trainer {
    model_type: u64,
    space_as_suffix: bool,
    unk: i64,
    bos: i64,
    eos: i64,
    pad: i64,
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
    fn read(at: usize, bytes: &[u8]) -> Result<Self, (usize, &'static str)> {
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

    fn model_type_name(&self) -> String {
        match self.model_type {
            1 => "UNIGRAM".into(),
            3 => "WORD".into(),
            4 => "CHAR".into(),
            other => other.to_string(),
        }
    }
}

/// The part of `NormalizerSpec` that matters here; the defaults are the format's.
struct Normalizer {
    name: String,
    has_charsmap: bool,
    dummy_prefix: bool,
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
    fn read(at: usize, bytes: &[u8]) -> Result<Self, (usize, &'static str)> {
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
}
