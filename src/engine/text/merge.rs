//! SentencePiece's way from text to tokens.
//!
//! Every character is a symbol. Again and again the two adjacent symbols whose joined text is the token with the highest
//! score become one, the leftmost pair first among equals. What is no token in the end is spelled in bytes
//! (llama-vocab.cpp:110-258).

use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use super::TextError;

/// Texts and scores of a SentencePiece vocabulary.
pub(super) struct Pieces {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// The token of each byte.
    bytes: Vec<u32>,
}

/// A run of the text: `start..end` in bytes, and its neighbours that still exist.
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that would join to a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Where the joined text ends; if it no longer does, one of the two has grown and the pair is gone.
    end: usize,
}

impl Pieces {
    pub fn new(ids: HashMap<String, u32>, scores: &[f32]) -> Result<Self, TextError> {
        if let Some(index) = scores.iter().position(|score| score.is_nan()) {
            return Err(TextError::Score { index });
        }
        let mut bytes = vec![0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            let text = format!("<0x{byte:02X}>");
            *id = *ids.get(&text).ok_or(TextError::NoByteToken { text })?;
        }
        Ok(Self {
            ids,
            scores: scores.to_vec(),
            bytes,
        })
    }

    /// Appends the tokens of `text`, whose spaces are `▁`.
    pub fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, char))| Symbol {
                start,
                end: start + char.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        let Some(last) = symbols.last_mut() else {
            return;
        };
        last.next = None;

        let mut pairs = BinaryHeap::new();
        for right in 1..symbols.len() {
            pairs.extend(self.pair(text, &symbols, right - 1, right));
        }
        while let Some(Pair { left, right, end, .. }) = pairs.pop() {
            // Both must still be there, and be neighbours.
            if symbols[left].next != Some(right) || symbols[right].end != end {
                continue;
            }
            let next = symbols[right].next;
            symbols[left].end = end;
            symbols[left].next = next;
            symbols[right].next = None; // no pair of it is valid any more
            if let Some(next) = next {
                symbols[next].previous = Some(left);
                pairs.extend(self.pair(text, &symbols, left, next));
            }
            if let Some(previous) = symbols[left].previous {
                pairs.extend(self.pair(text, &symbols, previous, left));
            }
        }

        let mut at = Some(0);
        while let Some(symbol) = at.map(|index| &symbols[index]) {
            let piece = &text[symbol.start..symbol.end];
            match self.ids.get(piece) {
                Some(&id) => ids.push(id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
            at = symbol.next;
        }
    }

    /// The pair of two neighbours, when they join to a token.
    fn pair(&self, text: &str, symbols: &[Symbol], left: usize, right: usize) -> Option<Pair> {
        let end = symbols[right].end;
        let id = *self.ids.get(&text[symbols[left].start..end])?;
        Some(Pair {
            score: self.scores[id as usize],
            left,
            right,
            end,
        })
    }
}

/// The highest score first, then the leftmost.
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        let scores = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        scores.then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}
