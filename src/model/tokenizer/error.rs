//! What can be wrong with a tokenizer: each variant names the file, what was found, what was expected and the remedy.

use std::path::PathBuf;

use crate::model::json::WrongKey;

/// Why a tokenizer could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The directory holds no vocabulary.
    #[error(
        "{}: found neither tokenizer.json nor tokenizer.model; copy one from the base model, or name it with --tokenizer",
        .directory.display()
    )]
    Missing {
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// A file could not be read.
    #[error("{}: {source}; check the name, and that you may read it", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a regular file (a device, a socket, a directory).
    #[error("{}: found something that is not a regular file; expected a tokenizer file; name one with --tokenizer", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Larger than a tokenizer can be.
    #[error("{file}: {what} has {found} bytes, the limit is {limit}; is this the right file?")]
    TooLarge {
        /// The file.
        file: String,
        /// What is too large.
        what: &'static str,
        /// Its size in bytes.
        found: u64,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// Not JSON, or not of the expected form.
    #[error("{file}: {source}; expected the JSON that Hugging Face writes, copy the file again")]
    Json {
        /// The file.
        file: String,
        /// Place and expectation.
        source: serde_json::Error,
    },
    /// A SentencePiece model that cannot be decoded.
    #[error("{file}: byte {at}: {what}; expected a SentencePiece model, copy the file again")]
    Protobuf {
        /// The file.
        file: String,
        /// Offset in the file.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A key that is absent or holds something else.
    #[error("{file}: {key}: found {found}, expected {expected}; copy the file again, or fix the key")]
    Key {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What it holds.
        found: String,
        /// What it should hold.
        expected: String,
    },
    /// A kind of tokenizer that llama.cpp's byte-level BPE and SentencePiece cannot express.
    #[error("{file}: {found} is not supported; {remedy}")]
    Unsupported {
        /// The file.
        file: String,
        /// What it asks for.
        found: String,
        /// What is supported, or what to do.
        remedy: &'static str,
    },
    /// No pre-tokenizer of llama.cpp splits text this way.
    #[error(
        "{file}: pre_tokenizer {found} is none that llama.cpp is known to have ({known}); \
         if you know its name in llama.cpp, pass --tokenizer-pre NAME"
    )]
    UnknownPre {
        /// The file.
        file: String,
        /// Its expressions.
        found: String,
        /// The names that are recognised.
        known: String,
    },
    /// `--tokenizer-pre` names nothing.
    #[error("--tokenizer-pre: llama.cpp has no pre-tokenizer '{found}'; name one that it has: {known}")]
    UnknownPreName {
        /// What was asked for.
        found: String,
        /// The names that llama.cpp knows.
        known: String,
    },
    /// Two ids with one text: llama.cpp aborts on that.
    #[error(
        "{file}: the text {text:?} belongs to token {first} and to token {second}; texts must be unique, remove one"
    )]
    DuplicateText {
        /// The file.
        file: String,
        /// The text.
        text: String,
        /// The id that has it.
        first: u32,
        /// The id that asks for it too.
        second: u32,
    },
    /// Two texts with one id.
    #[error("{file}: token {id} is {first:?} and {second:?}; ids must be unique, remove one")]
    DuplicateId {
        /// The file.
        file: String,
        /// The id.
        id: u32,
        /// The text it has.
        first: String,
        /// The text that asks for it too.
        second: String,
    },
    /// A token without a row in the embedding.
    #[error(
        "{file}: token {text:?} has id {id}, the embedding has {rows} rows; tokenizer and weights are of different checkpoints, \
         or tokens were added and the embedding was not resized: name the right one with --tokenizer"
    )]
    NoRow {
        /// The file.
        file: String,
        /// The token's text.
        text: String,
        /// The token's id.
        id: u64,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A merge of texts that are no tokens.
    #[error(
        "{file}: merge {index} ({left:?} + {right:?}) needs the token {missing:?}, which the vocabulary lacks; copy the file again"
    )]
    MergeOfUnknown {
        /// The file.
        file: String,
        /// Position in the list of merges.
        index: usize,
        /// Left part.
        left: String,
        /// Right part.
        right: String,
        /// The text that is no token.
        missing: String,
    },
    /// A special token that the vocabulary does not have.
    #[error(
        "{file}: {key} is {text:?}, which is no token of the vocabulary; name one that is, or copy the files again"
    )]
    UnknownSpecial {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// The text.
        text: String,
    },
    /// A special id outside the vocabulary.
    #[error(
        "{file}: {key} is {id}, the vocabulary has {rows} tokens; name one of them in config.json or tokenizer_config.json"
    )]
    SpecialOutOfRange {
        /// The file.
        file: String,
        /// The key in it.
        key: &'static str,
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// Nothing names a token that the file must name.
    #[error("{file}: {found}; name {key} in tokenizer_config.json or {key}_id in config.json")]
    NoSpecial {
        /// The vocabulary's file.
        file: String,
        /// Why it is needed.
        found: &'static str,
        /// `bos_token` or `eos_token`.
        key: &'static str,
    },
    /// A SentencePiece vocabulary that cannot spell every byte.
    #[error(
        "{file}: the token {missing:?} is missing; llama.cpp needs all of <0x00> to <0xFF> to spell what has no token; name another tokenizer with --tokenizer"
    )]
    NoByteToken {
        /// The file.
        file: String,
        /// The first one missing.
        missing: String,
    },
}

impl From<WrongKey> for TokenizerError {
    fn from(wrong: WrongKey) -> Self {
        Self::Key {
            file: wrong.path.display().to_string(),
            key: wrong.key,
            found: wrong.found,
            expected: wrong.expected,
        }
    }
}
