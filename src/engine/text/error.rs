//! Why the tokenizer of a GGUF file cannot be used here.

/// A fault of the `tokenizer.*` keys.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A text of which nothing can be predicted.
    #[error("the text is too short: two tokens at least are needed; give a longer one")]
    TooShort,
    /// A key is not there.
    #[error("key '{key}' is missing; convert the model again")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key has a value of another type.
    #[error("key '{key}': found {found}, expected {expected}; convert the model again")]
    Type {
        /// The key.
        key: &'static str,
        /// The type it has.
        found: String,
        /// The type llama.cpp demands.
        expected: &'static str,
    },
    /// An array is not as long as the vocabulary.
    #[error("key '{key}': found {found} values for {rows} tokens; convert the model again")]
    Length {
        /// The key.
        key: &'static str,
        /// Values in the array.
        found: usize,
        /// Tokens in the vocabulary.
        rows: usize,
    },
    /// An id outside the vocabulary.
    #[error("key '{key}': found token {id}, the vocabulary has {rows}; convert the model again")]
    Range {
        /// The key.
        key: &'static str,
        /// The id.
        id: u32,
        /// Tokens in the vocabulary.
        rows: usize,
    },
    /// A kind of vocabulary that is not supported.
    #[error(
        "key 'tokenizer.ggml.model': found '{found}', supported are 'gpt2' and 'llama'; use the llama.cpp engine (`run --engine llama.cpp`)"
    )]
    Model {
        /// Its name.
        found: String,
    },
    /// A pre-tokenizer whose expressions are not known.
    #[error(
        "key 'tokenizer.ggml.pre': how '{found}' splits text is not known here; use the llama.cpp engine (`run --engine llama.cpp`)"
    )]
    PreTokenizer {
        /// Its name.
        found: String,
    },
    /// A merge that is not a pair of tokens, or does not make one.
    #[error(
        "key 'tokenizer.ggml.merges': value {index}, '{found}', is not two tokens that join to a third; convert the model again"
    )]
    Merge {
        /// Position in the array.
        index: usize,
        /// The value.
        found: String,
    },
    /// Two tokens with the same text.
    #[error("key 'tokenizer.ggml.tokens': tokens {first} and {second} are both '{text}'; convert the model again")]
    Duplicate {
        /// The text.
        text: String,
        /// One id.
        first: u32,
        /// The other.
        second: u32,
    },
    /// A score that cannot be compared.
    #[error("key 'tokenizer.ggml.scores': value {index} is not a number; convert the model again")]
    Score {
        /// Position in the array.
        index: usize,
    },
    /// A byte that cannot be spelled.
    #[error("key 'tokenizer.ggml.tokens': the token '{text}' is missing; convert the model again")]
    NoByteToken {
        /// `<0xXX>`
        text: String,
    },
    /// The tokenizer could not be built.
    #[error("the keys 'tokenizer.*' make no tokenizer: {source}; convert the model again")]
    Build {
        /// Why.
        source: tokenizers::Error,
    },
    /// A tokenizer.json that the library `tokenizers` does not run.
    #[error("the library `tokenizers` cannot run it: {source}; save it again with transformers")]
    Library {
        /// Why.
        source: tokenizers::Error,
    },
}
