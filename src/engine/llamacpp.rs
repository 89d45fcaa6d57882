//! llama.cpp as an engine: in a process of its own (`witness`), with a file that has passed our own checks first.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use formats::gguf::{File, Value};

use super::hyper::{Dims, Hyper};
use super::{Engine, EngineError, EngineName, Generate, check_tokens};
pub use crate::witness::Settings;
use crate::witness::{ModelSize, Program, Witness};

/// A loaded model. [`Model::session`] makes an engine of it.
pub struct Model {
    witness: Mutex<Witness>,
    vocab: usize,
}

impl Model {
    /// Load the file at `path` in a child of `program`, all layers on the CPU. `file` is the same file, read by us: it
    /// has to pass our own checks first.
    ///
    /// # Errors
    /// Those of [`Hyper::read`]; no vocabulary; whatever llama.cpp refuses, with its log, and its crash.
    pub fn load(program: &Program, path: &Path, file: &File) -> Result<Self, EngineError> {
        let dims = Hyper::read(file)?.dims;
        vocabulary(file)?;
        Self::start(program, path, file, &dims)
    }

    /// The same for a file of any architecture: how much memory and time llama.cpp is given follows from the keys that
    /// all architectures have.
    ///
    /// # Errors
    /// No vocabulary; whatever llama.cpp refuses, with its log, and its crash.
    pub fn load_any(program: &Program, path: &Path, file: &File) -> Result<Self, EngineError> {
        let dims = dims_by_keys(file, vocabulary(file)?);
        Self::start(program, path, file, &dims)
    }

    fn start(program: &Program, path: &Path, file: &File, dims: &Dims) -> Result<Self, EngineError> {
        let mut witness = Witness::start(program)?;
        witness.load(path, size(dims, file))?;
        Ok(Model {
            witness: Mutex::new(witness),
            vocab: dims.vocab,
        })
    }

    /// An engine over this model, with an empty context.
    ///
    /// # Errors
    /// A context that llama.cpp cannot make: too large for the memory, as a rule.
    pub fn session(&self, settings: Settings) -> Result<Session<'_>, EngineError> {
        let number = self.witness().session(settings)?;
        Ok(Session {
            model: self,
            number,
            settings,
            used: 0,
        })
    }

    /// Token ids of `text`, by llama.cpp's own tokenizer. `add_special` puts the tokens around it that the file asks
    /// for (as a rule the one that begins a text); `parse_special` takes the spelling of a control token for the token.
    ///
    /// # Errors
    /// A text that llama.cpp is not given (see [`crate::witness::LONGEST_RUN`]); a crash.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, EngineError> {
        let tokens = self.witness().tokenize(text, add_special, parse_special)?;
        Ok(tokens)
    }

    /// The bytes of `tokens`; a character may be spread over several tokens. Control tokens have none.
    ///
    /// # Errors
    /// A token outside the vocabulary; a crash.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<Vec<u8>, EngineError> {
        self.check(tokens)?;
        Ok(self.witness().detokenize(tokens)?)
    }

    /// Whether `token` ends a text.
    ///
    /// # Errors
    /// A token outside the vocabulary; a crash.
    pub fn is_end(&self, token: u32) -> Result<bool, EngineError> {
        self.check(&[token])?;
        Ok(self.witness().is_end(token)?)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), EngineError> {
        if tokens.is_empty() {
            return Ok(());
        }
        check_tokens(tokens, self.vocab, 0, usize::MAX)
    }

    /// One order at a time. A panic in between leaves nothing half done: the next answer would not fit and be told.
    fn witness(&self) -> MutexGuard<'_, Witness> {
        self.witness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The number of tokens of the file.
fn vocabulary(file: &File) -> Result<usize, EngineError> {
    let tokens = file.get("tokenizer.ggml.tokens").and_then(Value::as_strings);
    tokens.map(|tokens| tokens.len()).ok_or_else(|| EngineError::Key {
        key: "tokenizer.ggml.tokens".into(),
        found: "absent".into(),
        expected: "the vocabulary: llama.cpp aborts when it is to tokenize without one".into(),
    })
}

/// The shape of a model of any architecture. What its keys do not say is taken to be large.
fn dims_by_keys(file: &File, vocab: usize) -> Dims {
    const LARGE: usize = 1 << 14;
    let architecture = file
        .get("general.architecture")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let number = |key: &str| {
        let value = file.get(&format!("{architecture}.{key}")).and_then(Value::as_u32);
        value.map(|number| number as usize).filter(|&number| number > 0)
    };
    let hidden = number("embedding_length").unwrap_or(LARGE);
    let heads = number("attention.head_count").unwrap_or(hidden.div_ceil(64));
    Dims {
        vocab,
        hidden,
        layers: number("block_count").unwrap_or(128),
        heads,
        kv_heads: number("attention.head_count_kv").unwrap_or(heads),
        head_dim: number("attention.key_length").unwrap_or(hidden.div_ceil(heads)),
        intermediate: number("feed_forward_length").unwrap_or(LARGE).max(hidden),
    }
}

/// What the model makes llama.cpp read, keep and compute.
fn size(dims: &Dims, file: &File) -> ModelSize {
    let tensors = file.tensors().iter();
    let (q, kv) = (dims.q_width(), dims.kv_width());
    ModelSize {
        file: file.data_start() + tensors.clone().filter_map(|info| info.bytes()).sum::<u64>(),
        header: file.data_start(),
        weights: tensors.map(|info| info.weights()).sum::<u64>() + (dims.vocab * dims.hidden) as u64,
        attention: (2 * q * dims.layers) as u64,
        cache: (2 * kv * dims.layers) as u64,
        heads: dims.heads as u64,
        activations: (4 * dims.hidden + 2 * q + 2 * kv + 3 * dims.intermediate) as u64,
        vocab: dims.vocab as u64,
    }
}

/// llama.cpp with a context, as an [`Engine`].
pub struct Session<'model> {
    model: &'model Model,
    number: usize,
    settings: Settings,
    /// Tokens in the context.
    used: usize,
}

impl Session<'_> {
    fn check(&self, tokens: &[u32], used: usize) -> Result<(), EngineError> {
        check_tokens(tokens, self.vocab(), used, self.settings.context)
    }
}

impl Engine for Session<'_> {
    fn name(&self) -> EngineName {
        let (precision, cache) = match self.settings.exact_cache {
            true => ("F32 cache", "f32"),
            false => ("F16 cache", "f16"),
        };
        let witness = self.model.witness();
        EngineName {
            short: "llama.cpp",
            ggml: Some(witness.build().ggml.clone()),
            threads: Some(self.settings.threads),
            precision: Some(precision),
            cache_type_k: Some(cache),
            cache_type_v: Some(cache),
            ..EngineName::default()
        }
    }

    fn vocab(&self) -> usize {
        self.model.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.check(tokens, 0)?;
        self.used = 0;
        Ok(self.model.witness().logits(self.number, tokens)?)
    }
}

impl Generate for Session<'_> {
    fn context(&self) -> usize {
        self.settings.context
    }

    fn reset(&mut self) {
        self.used = 0;
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.check(tokens, self.used)?;
        let logits = self.model.witness().feed(self.number, tokens, self.used)?;
        self.used += tokens.len();
        Ok(logits)
    }

    /// Measured where llama.cpp computes, so that what passes between the processes does not count.
    fn time(&mut self, prefill: &[u32], decode: &[u32]) -> Result<(Duration, Duration), EngineError> {
        self.check(prefill, 0)?;
        self.check(decode, prefill.len())?;
        let times = self.model.witness().time(self.number, prefill, decode)?;
        self.used = prefill.len() + decode.len();
        Ok(times)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // A child that is no more needs no closing.
        let _ = self.model.witness().close(self.number);
    }
}
