//! Tokens back to text.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::{BYTE, CONTROL, NORMAL, Text, UNKNOWN, USER_DEFINED};

/// The bytes that a token adds to a text (llama-vocab.cpp: `token_to_piece` without special tokens).
pub(super) fn token_bytes(text: &str, kind: i32, is_byte_level: bool) -> Vec<u8> {
    match kind {
        UNKNOWN | CONTROL => Vec::new(),
        USER_DEFINED => text.into(),
        NORMAL if is_byte_level => {
            // A text outside the alphabet stands for itself.
            text.chars()
                .map(alphabet_byte)
                .collect::<Option<_>>()
                .unwrap_or_else(|| text.into())
        }
        NORMAL => text.replace('▁', " ").into(),
        BYTE => {
            let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            digits
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .into_iter()
                .collect()
        }
        _ => Vec::new(),
    }
}

/// GPT-2's alphabet, by byte: printable Latin-1 is itself, and the other bytes, in order, are the characters from U+0100.
pub(super) fn alphabet() -> [char; 256] {
    let mut next = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => byte.into(),
        _ => next.next().unwrap_or_default(),
    })
}

/// The byte that a character of GPT-2's alphabet stands for.
fn alphabet_byte(char: char) -> Option<u8> {
    static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| alphabet().into_iter().zip(0..=u8::MAX).collect());
    BYTES.get(&char).copied()
}

/// Decodes tokens one by one and never gives out half a character.
pub struct Decoder<'a> {
    text: &'a Text,
    /// The start of a character that the next tokens may complete.
    pending: Vec<u8>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(text: &'a Text) -> Self {
        Self {
            text,
            pending: Vec::new(),
        }
    }

    /// The text that is complete with this token. Ids outside the vocabulary have none.
    pub fn push(&mut self, id: u32) -> String {
        self.pending
            .extend(self.text.bytes.get(id as usize).into_iter().flatten());
        let mut complete = String::new();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            let (valid, invalid) = match std::str::from_utf8(rest) {
                Ok(_) => (rest.len(), Some(0)),
                // `None`: the rest could still become a character.
                Err(error) => (error.valid_up_to(), error.error_len()),
            };
            complete += &String::from_utf8_lossy(&rest[..valid]);
            rest = &rest[valid..];
            let Some(invalid) = invalid else { break };
            if invalid > 0 {
                complete.push(char::REPLACEMENT_CHARACTER);
            }
            rest = &rest[invalid..];
        }
        self.pending = rest.to_vec();
        complete
    }

    /// What is left: nothing, or U+FFFD for a character that was not completed.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into()
    }
}
