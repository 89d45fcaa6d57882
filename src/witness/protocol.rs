//! What the two processes say to each other, in frames over pipes:
//!
//! ```text
//! "tqw1" | kind: u8 | length of the header: u32 | length of the bulk: u64 | header (postcard) | bulk
//! ```
//! The bulk is numbers or text as they lie in memory: both ends are the same program. The parent sends an [`Order`] and
//! waits; the child answers with one frame, and sends [`Kind::Alive`] every now and then while it works.

use std::ffi::OsString;
use std::fmt;

use formats::block::BlockType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What each frame begins with.
const MAGIC: [u8; 4] = *b"tqw1";
/// Bytes before the header of a frame.
pub(super) const PREFIX: usize = 17;
/// Bytes of a header at most: names and places, never weights.
const LONGEST_HEADER: u32 = 64 << 20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// To the child: an [`Order`].
    Order,
    /// The child is at work.
    Alive,
    /// The answer.
    Done,
    /// llama.cpp refuses; the header is a text.
    Refused,
    /// It cannot be done here: the machine lacks something. The header is a text.
    CouldNot,
}

const KINDS: [Kind; 5] = [Kind::Order, Kind::Alive, Kind::Done, Kind::Refused, Kind::CouldNot];

/// A frame that is still to be read.
#[derive(Debug)]
pub(super) struct Prefix {
    pub kind: Kind,
    pub header: usize,
    pub bulk: u64,
}

impl Prefix {
    /// `None` where this is no frame of ours.
    pub fn read(bytes: &[u8; PREFIX]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let (&[kind], rest) = rest.split_first_chunk::<1>()?;
        let (header, bulk) = rest.split_first_chunk::<4>()?;
        let header = u32::from_le_bytes(*header);
        if *magic != MAGIC || header > LONGEST_HEADER {
            return None;
        }
        Some(Self {
            kind: *KINDS.get(usize::from(kind))?,
            header: header as usize,
            bulk: u64::from_le_bytes(bulk.try_into().ok()?),
        })
    }
}

/// Prefix and header of a frame that so many bytes of bulk follow.
pub(super) fn head(kind: Kind, header: &impl Serialize, bulk: usize) -> Vec<u8> {
    let header = postcard::to_allocvec(header).expect("plain data can be written");
    let mut bytes = Vec::with_capacity(PREFIX + header.len());
    bytes.extend(MAGIC);
    bytes.push(kind as u8);
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend((bulk as u64).to_le_bytes());
    bytes.extend(header);
    bytes
}

/// What the child says of itself first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// Version of tqconv.
    pub tqconv: String,
    pub build: Build,
    /// The CPU features that ggml was compiled with and found: `CPU : AVX2 = 1 | F16C = 1 | ...`.
    pub system: String,
}

/// A build of llama.cpp.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Build {
    /// Version of llama.cpp: `0.6.0-dev`.
    pub version: String,
    /// The number of the build, where the library has it: 11549 for b11549.
    pub number: Option<u32>,
    /// Version of ggml, with the commit where the build knows it: `0.26.0` or `0.26.0 (abc1234)`.
    pub ggml: String,
    /// The library that was loaded; `None`: llama.cpp is linked in.
    pub path: Option<String>,
}

impl fmt::Display for Build {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "llama.cpp {}", self.version)?;
        if let Some(number) = self.number {
            write!(f, " build {number}")?;
        }
        write!(f, ", ggml {}", self.ggml)?;
        match &self.path {
            Some(path) => write!(f, ", at {path}"),
            None => f.write_str(", linked in"),
        }
    }
}

/// What the child is to do, and what memory it may have for it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub work: Work,
    /// Bytes of data (RLIMIT_DATA).
    pub memory: u64,
}

/// Work for llama.cpp. Numbers and texts go in the bulk of the frame, and come back there. Paths need not be UTF-8.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Work {
    /// ggml's GGUF reader -> (tensors, keys)
    ReadGguf { path: OsString },
    /// ggml's rules for the blocks of these pieces -> whether each keeps to them
    CheckBlocks { path: OsString, pieces: Vec<Piece> },
    /// One product; bulk as in `Prepare` -> (tokens, rows)
    Multiply(Products),
    /// Make graphs of products; bulk: activations (tokens, columns), then the weights if they are not in a file
    Prepare(Products),
    /// Compute one graph so often -> seconds
    Compute { ty: u32, graph: usize, repeats: usize },
    /// Load a model
    Load { path: OsString },
    /// Make a context -> its number
    Session { settings: Settings },
    /// Tokens, from an empty context -> logits (tokens, vocab)
    Logits { session: usize },
    /// Tokens, after so many in the context, or from an empty one -> logits (vocab,) of the last
    Feed { session: usize, used: usize },
    /// Tokens: a prefill of so many from an empty context, then the others one by one -> seconds of both
    Time { session: usize, prefill: usize },
    /// Drop the context
    Close { session: usize },
    /// Text -> tokens; on a stack of so many bytes
    Tokenize {
        add_special: bool,
        parse_special: bool,
        stack: usize,
    },
    /// Tokens -> bytes
    Detokenize,
    /// -> whether the token ends a text
    IsEnd { token: u32 },
}

/// Blocks of one type within a file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Piece {
    /// ggml's number of the type.
    pub ty: u32,
    /// Where they begin.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// Products of one matrix with one batch of activations, in graphs of several, each with its own copy of the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Products {
    pub ty: u32,
    pub rows: usize,
    pub columns: usize,
    pub tokens: usize,
    pub graphs: usize,
    pub batch: usize,
    pub threads: usize,
    /// Where the weights are; `None`: in the bulk.
    pub weights: Option<(OsString, Piece)>,
}

/// How a context of llama.cpp computes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// How many tokens the context holds.
    pub context: usize,
    /// Threads to compute with.
    pub threads: usize,
    /// Keep keys and values in F32 and do without flash attention, so that nothing but the weights and activations is
    /// rounded. Otherwise as llama.cpp comes: F16, and flash attention where it can.
    pub exact_cache: bool,
}

impl fmt::Display for Work {
    /// What the child is doing, to follow "while".
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Work::ReadGguf { .. } => f.write_str("reading the file's header"),
            Work::CheckBlocks { .. } => f.write_str("checking the blocks of the weights"),
            Work::Multiply(products) | Work::Prepare(products) => {
                let (rows, columns) = (products.rows, products.columns);
                write!(f, "multiplying {}, {rows} x {columns}", name(products.ty))
            }
            Work::Compute { ty, .. } => write!(f, "multiplying {}", name(*ty)),
            Work::Load { .. } => f.write_str("loading the model"),
            Work::Session { settings } => {
                write!(f, "making a context of {} tokens", settings.context)
            }
            Work::Logits { .. } => f.write_str("computing logits"),
            Work::Feed { .. } => f.write_str("running tokens"),
            Work::Time { .. } => f.write_str("being timed"),
            Work::Close { .. } => f.write_str("dropping a context"),
            Work::Tokenize { .. } => f.write_str("splitting a text into tokens"),
            Work::Detokenize => f.write_str("joining tokens to a text"),
            Work::IsEnd { .. } => f.write_str("looking a token up"),
        }
    }
}

fn name(ty: u32) -> String {
    BlockType::from_id(ty).map_or_else(|| format!("type {ty}"), |ty| ty.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_frame_is_told() {
        let order = Order {
            work: Work::IsEnd { token: 7 },
            memory: 1 << 40,
        };
        let frame = head(Kind::Order, &order, 5);
        let (prefix, header) = frame.split_first_chunk::<PREFIX>().unwrap();
        let read = Prefix::read(prefix).unwrap();
        assert_eq!((read.kind, read.header, read.bulk), (Kind::Order, header.len(), 5));
        let order: Order = postcard::from_bytes(header).unwrap();
        assert!(matches!(order.work, Work::IsEnd { token: 7 }));
        // Another magic, an unknown kind, a header beyond all measure.
        for (place, byte) in [(0, b'T'), (4, KINDS.len() as u8), (8, 0x10)] {
            let mut prefix = *prefix;
            prefix[place] = byte;
            assert!(Prefix::read(&prefix).is_none(), "byte {place}");
        }
    }
}
