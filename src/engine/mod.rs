//! Engines: whatever turns tokens into logits. Three of them, sharing as little as they can, so that each is a witness
//! against the others: the oracle (f64, from the latent checkpoint), the native engine (packed weights, our kernels)
//! and llama.cpp.

pub mod backends;
pub mod file;
pub mod hyper;
pub mod llamacpp;
pub mod native;
pub mod oracle;
pub mod sample;
pub mod text;

use std::fmt;
use std::time::{Duration, Instant};

use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use crate::kernels::KernelName;
use crate::witness::WitnessError;

/// Something that predicts the next token.
pub trait Engine {
    /// What reports call it.
    fn name(&self) -> EngineName;

    /// Number of tokens in the vocabulary: the length of a row of logits.
    fn vocab(&self) -> usize;

    /// Logits (tokens, vocab) of every position, from an empty context. The context is empty afterwards.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, more tokens than the context holds; or what the engine itself reports.
    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError>;
}

/// What reports call an engine, and what decides its speed or its figures: `native (x86_64-tq2_0-avx512vnni, 2 threads)`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct EngineName {
    /// `native`, `llama.cpp`, `oracle` or `file`.
    #[serde(rename = "name")]
    pub short: &'static str,
    /// The version of the ggml that computes.
    pub ggml: Option<String>,
    /// Our kernels and layouts, in words.
    pub kernel: Option<String>,
    /// The same in parts.
    pub layouts: Vec<KernelName>,
    /// Where they are not all of the machine.
    pub threads: Option<usize>,
    /// What is rounded, or is not: `f64`, `F16 cache`.
    pub precision: Option<&'static str>,
    /// What it keeps keys in: `f32`, `f16` or `q8_0`.
    pub cache_type_k: Option<&'static str>,
    /// What it keeps values in.
    pub cache_type_v: Option<&'static str>,
}

impl EngineName {
    /// A name, and what it computes in.
    pub fn of_precision(short: &'static str, precision: &'static str) -> Self {
        Self {
            short,
            precision: Some(precision),
            ..Self::default()
        }
    }
}

impl EngineName {
    /// What it keeps keys and values in: `F16 cache`, `F16 keys, Q8_0 values`.
    pub fn cache(&self) -> Option<String> {
        Some(cache_text(self.cache_type_k?, self.cache_type_v?))
    }
}

impl fmt::Display for EngineName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let ggml = self.ggml.as_ref().map(|version| format!("ggml {version}"));
        let precision = self.cache().or(self.precision.map(String::from));
        let details = [ggml, self.kernel.clone(), self.threads.map(threads_text), precision];
        let details: Vec<_> = details.into_iter().flatten().collect();
        write!(f, "{} ({})", self.short, details.join(", "))
    }
}

/// An engine that keeps a context, so that text can be generated token by token.
pub trait Generate: Engine {
    /// How many tokens the context holds.
    fn context(&self) -> usize;

    /// Empty the context.
    fn reset(&mut self);

    /// Append `tokens` to the context; the logits (vocab,) of the last one.
    ///
    /// # Errors
    /// As [`Engine::logits`]; the context is then as it was before.
    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError>;

    /// How long a prefill from an empty context takes, and decoding token by token after it.
    ///
    /// # Errors
    /// As [`Engine::logits`].
    fn time(&mut self, prefill: &[u32], decode: &[u32]) -> Result<(Duration, Duration), EngineError> {
        self.reset();
        let start = Instant::now();
        self.feed(prefill)?;
        let prefill = start.elapsed();
        let start = Instant::now();
        for token in decode {
            self.feed(&[*token])?;
        }
        Ok((prefill, start.elapsed()))
    }
}

/// `F16 cache`, `F16 keys, Q8_0 values`.
pub fn cache_text(keys: &str, values: &str) -> String {
    let [keys, values] = [keys, values].map(str::to_uppercase);
    match keys == values {
        true => format!("{keys} cache"),
        false => format!("{keys} keys, {values} values"),
    }
}

/// `1 thread`, `2 threads`.
pub fn threads_text(count: usize) -> String {
    format!("{count} thread{}", if count == 1 { "" } else { "s" })
}

/// Why an engine cannot load a model or has no logits to give.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing to predict from.
    #[error("no tokens to predict from; give a longer prompt or text")]
    NoTokens,
    /// A token that the embedding has no row for.
    #[error(
        "token {token} at position {position} is outside the vocabulary of {vocab}; take text and model from one tokenizer"
    )]
    Token {
        /// Where it stands, from 0.
        position: usize,
        /// Its id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// More tokens than the context holds.
    #[error("{needed} tokens do not fit the context of {context}: shorten the text")]
    ContextFull {
        /// Tokens in the context if these were added.
        needed: usize,
        /// What it holds.
        context: usize,
    },
    /// A metadata key that is absent, of another type, or outside what the engine runs.
    #[error("key '{key}' is {found}, expected {expected}; convert the model again")]
    Key {
        /// The key.
        key: String,
        /// Its value, or "absent".
        found: String,
        /// What the engine runs.
        expected: String,
    },
    /// One part of a model that was written as several files.
    #[error("one of {count} files of a model; join them with `llama-gguf-split --merge`")]
    Split {
        /// How many there are, as the key `split.count` says.
        count: String,
    },
    /// A tensor that the architecture must have.
    #[error("tensor '{name}' is absent or empty; convert the model again")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor that the engine would leave out of the computation.
    #[error(
        "tensor '{name}' is no part of architecture '{architecture}' as this engine knows it: its effect would be lost; run the file with llama.cpp itself"
    )]
    UnknownTensor {
        /// Its name.
        name: String,
        /// The file's.
        architecture: &'static str,
    },
    /// A tensor of the wrong shape, columns first.
    #[error("tensor '{name}' has shape {found:?}, expected {expected:?}; convert the model again")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        found: Vec<u64>,
        /// The shape that the metadata call for.
        expected: Vec<u64>,
    },
    /// A tensor of a type that the engine cannot use in this place.
    #[error("tensor '{name}' has type {found}, expected {expected}; convert the model again")]
    Type {
        /// The tensor.
        name: String,
        /// Its type.
        found: String,
        /// What can be used.
        expected: &'static str,
    },
    /// A tensor of a type that llama.cpp does not have.
    #[error(
        "tensor '{name}' has type {found}, which only PrismML's fork of llama.cpp reads; pack the file as another type: \
         `tqconv pack IN.gguf OUT.gguf`"
    )]
    Fork {
        /// The tensor.
        name: String,
        /// Its type.
        found: BlockType,
    },
    /// A matrix that our kernels cannot take.
    #[error("tensor '{name}': {source}; convert the model again")]
    Kernel {
        /// The tensor.
        name: String,
        /// Why not.
        source: crate::kernels::KernelError,
    },
    /// A type of the cache whose groups a head has no whole number of.
    #[error(
        "heads of {head_dim} numbers are no whole groups of {group}, which share a scale in {ty}; pass --cache-type-k f16 \
         --cache-type-v f16"
    )]
    CacheType {
        /// The type.
        ty: &'static str,
        /// Numbers that share a scale.
        group: usize,
        /// Numbers in a head.
        head_dim: usize,
    },
    /// Memory for keys and values.
    #[error(
        "no memory of {bytes} bytes for keys and values: {source}; use fewer tokens, keep them in less (--cache-type-k f16 \
         --cache-type-v f16), or close other programs"
    )]
    CacheMemory {
        /// How much.
        bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// Memory whose speed was to be measured.
    #[error("no memory of {bytes} bytes to measure its speed: {source}; close other programs")]
    Memory {
        /// How much.
        bytes: usize,
        /// What the system says.
        source: std::io::Error,
    },
    /// The oracle's weights could not be had.
    #[error("the weights cannot be read: {0}; fetch the checkpoint again")]
    Weights(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// llama.cpp refused, or is no more.
    #[error(transparent)]
    Witness(#[from] WitnessError),
}

/// `tokens` can follow `used` tokens in a context of `context`, and the vocabulary has them all.
fn check_tokens(tokens: &[u32], vocab: usize, used: usize, context: usize) -> Result<(), EngineError> {
    if tokens.is_empty() {
        return Err(EngineError::NoTokens);
    }
    if let Some(position) = tokens.iter().position(|&token| token as usize >= vocab) {
        return Err(EngineError::Token {
            position: used + position,
            token: tokens[position],
            vocab,
        });
    }
    let needed = used + tokens.len();
    if needed > context {
        return Err(EngineError::ContextFull { needed, context });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_checked() {
        assert!(check_tokens(&[0, 4], 5, 6, 8).is_ok());
        assert!(matches!(check_tokens(&[], 5, 0, 8), Err(EngineError::NoTokens)));
        assert!(matches!(
            check_tokens(&[1, 5], 5, 2, 8),
            Err(EngineError::Token {
                position: 3,
                token: 5,
                vocab: 5
            })
        ));
        assert!(matches!(
            check_tokens(&[1, 2, 3], 5, 6, 8),
            Err(EngineError::ContextFull { needed: 9, context: 8 })
        ));
    }
}
