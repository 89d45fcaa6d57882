//! SentencePiece vocabularies, from tokenizer.model or from a tokenizer.json with byte fallback.
//!
//! llama.cpp joins, again and again, the adjacent pair whose joined text is the piece with the highest score, the
//! leftmost first (llama-vocab.cpp:97-104, 120-168). tokenizer.model has the scores. tokenizer.json has ranked merges
//! instead; a piece's score is then minus the rank of the first merge that makes it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::content::Content;
use super::json::{Entries, Merge, TokenizerJson, step_name};
use super::proto_model::Model;
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

/// Reads a tokenizer.model.
pub(super) fn read_model<'a>(
    content: &'a Content,
    rows: usize,
    notes: &mut Notes,
) -> Result<SentencePiece<'a>, TokenizerError> {
    let file = content.name.as_str();
    if is_tiktoken(&content.bytes) {
        return Err(TokenizerError::Unsupported {
            file: file.into(),
            found: "a tiktoken vocabulary".into(),
            remedy: "take the tokenizer.json of the same model, which lists the same tokens",
        });
    }
    let fault = |(at, what)| TokenizerError::Protobuf {
        file: file.into(),
        at,
        what,
    };
    let Model {
        pieces,
        trainer,
        normalizer,
    } = Model::read(&content.bytes).map_err(fault)?;
    if let Some((found, remedy)) = trainer.unsupported().or_else(|| normalizer.unsupported()) {
        let file = file.into();
        return Err(TokenizerError::Unsupported { file, found, remedy });
    }
    normalizer.note(file, notes);
    // An id that is not among the pieces means that the model has no such token.
    let count = pieces.len();
    let id = |id: i64| u32::try_from(id).ok().filter(|&id| (id as usize) < count);
    let mut vocabulary = Vocabulary::new(file, rows);
    for (id, piece) in (0..).zip(pieces) {
        vocabulary.insert(id, piece)?;
    }
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
