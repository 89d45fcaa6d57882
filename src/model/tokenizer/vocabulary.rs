//! The tokens by id: one row of the embedding each, every text once.

use std::hash::BuildHasher;

use hashbrown::hash_table::Entry;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::settings::token;
use super::{Notes, TokenizerError};
use crate::model::json::Object;

/// What llama.cpp may do with a token. The numbers are those of `tokenizer.ggml.token_type` and of SentencePiece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    /// Text.
    Normal = 1,
    /// Stands for what cannot be spelled.
    Unknown = 2,
    /// Steers the model; not part of the text.
    Control = 3,
    /// Text that is recognised before the text is split.
    UserDefined = 4,
    /// A row without a token.
    Unused = 5,
    /// One byte, spelled `<0xXX>`.
    Byte = 6,
}

/// One entry of the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// As stored: byte-level texts in GPT-2's alphabet, SentencePiece texts with `▁` for a space.
    pub text: String,
    /// What it is for.
    pub kind: TokenType,
    /// SentencePiece joins the pair with the highest score first. Byte-level BPE has none: 0.
    pub score: f32,
}

/// A vocabulary under construction.
pub(super) struct Vocabulary<'a> {
    file: &'a str,
    slots: Vec<Option<Token>>,
    ids: Ids,
    /// Added tokens beyond the last row.
    without_row: Vec<WithoutRow>,
}

/// An added token beyond the last row of the embedding.
struct WithoutRow {
    file: String,
    id: u64,
    text: String,
}

/// The ids by text. The texts themselves are in the slots.
struct Ids {
    table: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Ids {
    fn with_capacity(count: usize) -> Self {
        Self {
            table: HashTable::with_capacity(count),
            hasher: DefaultHashBuilder::default(),
        }
    }

    fn get(&self, slots: &[Option<Token>], text: &str) -> Option<u32> {
        let hash = self.hasher.hash_one(text);
        self.table.find(hash, |&id| has_text(slots, id, text)).copied()
    }

    fn remove(&mut self, slots: &[Option<Token>], text: &str) {
        let hash = self.hasher.hash_one(text);
        if let Ok(entry) = self.table.find_entry(hash, |&id| has_text(slots, id, text)) {
            entry.remove();
        }
    }

    /// Gives the text to `id`, or says which id has it.
    fn insert(&mut self, slots: &[Option<Token>], text: &str, id: u32) -> Result<(), u32> {
        let hash = self.hasher.hash_one(text);
        let same = |&id: &u32| has_text(slots, id, text);
        let rehash = |&id: &u32| self.hasher.hash_one(text_of(slots, id).unwrap_or_default());
        match self.table.entry(hash, same, rehash) {
            Entry::Occupied(taken) => Err(*taken.get()),
            Entry::Vacant(free) => {
                free.insert(id);
                Ok(())
            }
        }
    }
}

fn text_of(slots: &[Option<Token>], id: u32) -> Option<&str> {
    Some(&slots.get(id as usize)?.as_ref()?.text)
}

fn has_text(slots: &[Option<Token>], id: u32, text: &str) -> bool {
    text_of(slots, id) == Some(text)
}

impl<'a> Vocabulary<'a> {
    /// Room for one token a row; `file` is named in errors.
    pub fn new(file: &'a str, rows: usize) -> Self {
        Self {
            file,
            slots: vec![None; rows],
            ids: Ids::with_capacity(rows),
            without_row: vec![],
        }
    }

    /// The file that holds the vocabulary.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// Gives `id` to a token that no other id has.
    pub fn insert(&mut self, id: u64, token: Token) -> Result<(), TokenizerError> {
        if let Some(taken) = self.slots.get(id as usize).and_then(Option::as_ref) {
            return Err(TokenizerError::DuplicateId {
                file: self.file.into(),
                id: id as u32,
                first: taken.text.clone(),
                second: token.text,
            });
        }
        self.replace(self.file, id, token)
    }

    /// Gives `id` to a token whether or not the id had another; `file` says so.
    pub fn replace(&mut self, file: &str, id: u64, token: Token) -> Result<(), TokenizerError> {
        let rows = self.slots.len();
        let at = usize::try_from(id).ok().filter(|&at| at < rows);
        let (Some(at), Ok(row)) = (at, u32::try_from(id)) else {
            return Err(TokenizerError::NoRow {
                file: file.into(),
                text: token.text,
                id,
                rows,
            });
        };
        if let Some(old) = text_of(&self.slots, row) {
            self.ids.remove(&self.slots, old);
            self.slots[at] = None;
        }
        match self.ids.insert(&self.slots, &token.text, row) {
            Err(first) => Err(TokenizerError::DuplicateText {
                file: file.into(),
                text: token.text,
                first,
                second: row,
            }),
            Ok(()) => {
                self.slots[at] = Some(token);
                Ok(())
            }
        }
    }

    /// Marks `text` as an added token with this id. Special ones, and texts that look it, are control tokens;
    /// others are recognised in the text. The unknown token stays what it is. Another file than the vocabulary's own
    /// may give an id a new text, as transformers lets it. A token beyond the last row is kept for
    /// [`Vocabulary::check_without_row`].
    pub fn overlay(&mut self, file: &str, id: u64, text: &str, special: bool) -> Result<(), TokenizerError> {
        if id >= self.slots.len() as u64 {
            if self.without_row.iter().all(|token| token.id != id) {
                let (file, text) = (file.into(), text.into());
                self.without_row.push(WithoutRow { file, id, text });
            }
            return Ok(());
        }
        let old = usize::try_from(id).ok().and_then(|id| self.slots.get(id)?.as_ref());
        let same = old.filter(|old| old.text == text);
        let kind = match same.map(|token| token.kind) {
            Some(kind @ (TokenType::Unknown | TokenType::Byte)) => kind,
            _ if special || looks_special(text) => TokenType::Control,
            _ => TokenType::UserDefined,
        };
        let token = Token {
            text: text.into(),
            kind,
            score: same.map_or(ADDED_SCORE, |token| token.score),
        };
        if same.is_none() && file == self.file {
            self.insert(id, token)
        } else {
            self.replace(file, id, token)
        }
    }

    /// Added tokens beyond the last row are left out with a note: tokens were added and the embedding was not resized.
    ///
    /// # Errors
    /// One that the chat template writes, or that begins or ends a text.
    pub fn check_without_row(
        &self,
        chat_template: Option<&str>,
        settings: [&Object; 2],
        notes: &mut Notes,
    ) -> Result<(), TokenizerError> {
        let mut used = vec![];
        for key in ["bos_token", "eos_token"] {
            for file in settings {
                used.extend(token(file, key)?);
            }
        }
        let is_used = |token: &&WithoutRow| {
            used.contains(&token.text.as_str()) || chat_template.is_some_and(|template| template.contains(&token.text))
        };
        if let Some(WithoutRow { file, id, text }) = self.without_row.iter().find(is_used) {
            return Err(TokenizerError::NoRow {
                file: file.clone(),
                text: text.clone(),
                id: *id,
                rows: self.slots.len(),
            });
        }
        for WithoutRow { file, id, text } in &self.without_row {
            notes.add(format!(
                "{file}: the added token {text:?} has id {id}, and the embedding {} rows: it was not resized; the token is left out",
                self.slots.len()
            ));
        }
        Ok(())
    }

    /// Makes a control token of `text`, where it is a plain one.
    pub fn set_control(&mut self, text: &str) {
        let slot = self.id(text).and_then(|id| self.slots.get_mut(id as usize)?.as_mut());
        if let Some(token) = slot.filter(|token| token.kind == TokenType::Normal) {
            token.kind = TokenType::Control;
        }
    }

    /// The id of `text`.
    pub fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(&self.slots, text)
    }

    /// The text of `id`.
    pub fn text(&self, id: u32) -> Option<&str> {
        text_of(&self.slots, id)
    }

    /// The score of `id`.
    pub fn score(&self, id: u32) -> Option<f32> {
        Some(self.slots.get(id as usize)?.as_ref()?.score)
    }

    /// Tokens that are there, to set what they are for.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Token> {
        self.slots.iter_mut().flatten()
    }

    /// Tokens that are there, with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Token)> {
        self.slots
            .iter()
            .zip(0..)
            .filter_map(|(slot, id)| Some((id, slot.as_ref()?)))
    }

    /// Every row's token; rows without one get a text of their own and are unused.
    pub fn into_tokens(self) -> Vec<Token> {
        let unused = |id| {
            let mut text = format!("[PAD{id}]");
            while self.id(&text).is_some() {
                text.push('_');
            }
            Token {
                text,
                kind: TokenType::Unused,
                score: UNUSED_SCORE,
            }
        };
        let free = (0..).zip(&self.slots).filter(|(_, slot)| slot.is_none());
        let mut unused: Vec<_> = free.map(|(id, _): (usize, _)| unused(id)).collect();
        unused.reverse();
        let slots = self.slots.into_iter();
        slots.filter_map(|slot| slot.or_else(|| unused.pop())).collect()
    }
}

/// What llama.cpp's own converter gives to added tokens: they are recognised before any pair is joined.
const ADDED_SCORE: f32 = -1_000.0;

/// What llama.cpp's own converter gives to rows without a token; no pair of pieces ever joins to one.
const UNUSED_SCORE: f32 = -10_000.0;

/// Texts like `<|eot_id|>` steer the model whatever the file says of them.
fn looks_special(text: &str) -> bool {
    let between = |open: &str, close: &str| {
        text.len() > open.len() + close.len() && text.starts_with(open) && text.ends_with(close)
    };
    between("<|", "|>") || between("<｜", "｜>")
}
