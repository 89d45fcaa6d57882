//! A model of llama.cpp, its contexts and its tokenizer.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::super::answer::Refusal;
use super::super::protocol::Settings;
use super::open;

/// A loaded model, all layers on the CPU.
pub(super) struct Model(LlamaModel);

impl Model {
    pub fn load(backend: &LlamaBackend, path: &Path) -> Result<Self, Refusal> {
        let params = LlamaModelParams::default().with_n_gpu_layers(0);
        let model = open(path, |path| LlamaModel::load_from_file(backend, path, &params))?;
        model.map(Self).map_err(refused)
    }

    /// A context of this model, empty.
    pub fn session(&'static self, backend: &LlamaBackend, settings: Settings) -> Result<Session, Refusal> {
        let size = u32::try_from(settings.context).ok().and_then(NonZeroU32::new);
        let threads = i32::try_from(settings.threads).unwrap_or(i32::MAX).max(1);
        let mut params = LlamaContextParams::default()
            .with_n_ctx(size)
            .with_n_batch(size.map_or(0, NonZeroU32::get))
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        if settings.exact_cache {
            params = params
                .with_type_k(KvCacheType::F32)
                .with_type_v(KvCacheType::F32)
                .with_flash_attention_policy(sys::LLAMA_FLASH_ATTN_TYPE_DISABLED);
        }
        let context = self.0.new_context(backend, params).map_err(refused)?;
        Ok(Session(context))
    }

    /// Tokens of `text`. `stack`: bytes for the thread that splits it; llama.cpp's regular expressions go deeper with
    /// each character of a word.
    pub fn tokenize(
        &self,
        text: &[u8],
        add_special: bool,
        parse_special: bool,
        stack: usize,
    ) -> Result<Vec<u32>, Refusal> {
        let tokens = thread::scope(|scope| {
            let split = || self.0.vocab().tokenize(text, add_special, parse_special);
            let started = thread::Builder::new().stack_size(stack).spawn_scoped(scope, split);
            started.map(|thread| thread.join().expect("splitting does not panic"))
        });
        let tokens = tokens.map_err(|error| {
            Refusal::CouldNot(format!(
                "no thread with a stack of {stack} bytes can be started: {error}; use a text with shorter words"
            ))
        })?;
        Ok(tokens.into_iter().map(|LlamaToken(id)| id as u32).collect())
    }

    /// The bytes of tokens that the vocabulary has. Control tokens have none.
    pub fn detokenize(&self, tokens: &[u32]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &token in tokens {
            let token = LlamaToken(token as i32);
            self.0.vocab().token_to_piece_into(token, &mut bytes, false, None);
        }
        bytes
    }

    pub fn is_end(&self, token: u32) -> bool {
        self.0.vocab().is_eog(LlamaToken(token as i32))
    }
}

/// A context.
pub(super) struct Session(LlamaContext<'static>);

impl Session {
    /// Logits of all `tokens`, from an empty context: a row of bytes for each.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<&[u8]>, Refusal> {
        self.decode(tokens, 0, true)?;
        let row = |i| bytemuck::cast_slice(self.0.get_logits_ith(i));
        Ok((0..tokens.len() as i32).map(row).collect())
    }

    /// Append `tokens` to the `used` ones of the context; the logits of the last one.
    pub fn feed(&mut self, tokens: &[u32], used: usize) -> Result<&[f32], Refusal> {
        self.decode(tokens, used, false)?;
        Ok(self.0.get_logits_ith(-1))
    }

    /// Times of a prefill from an empty context, and of decoding token by token after it.
    pub fn time(&mut self, prefill: &[u32], decode: &[u32]) -> Result<(Duration, Duration), Refusal> {
        self.0.clear_kv_cache();
        let start = Instant::now();
        black_box(self.feed(prefill, 0)?.to_vec());
        let prefill_time = start.elapsed();
        let start = Instant::now();
        for (i, token) in decode.iter().enumerate() {
            black_box(self.feed(&[*token], prefill.len() + i)?.to_vec());
        }
        Ok((prefill_time, start.elapsed()))
    }

    /// Run `tokens` after the first `used` of the context, which is emptied where that is none.
    fn decode(&mut self, tokens: &[u32], used: usize, all_logits: bool) -> Result<(), Refusal> {
        if used == 0 {
            self.0.clear_kv_cache();
        }
        let mut batch = LlamaBatch::new(tokens.len(), 1);
        for (i, &token) in tokens.iter().enumerate() {
            let logits = all_logits || i + 1 == tokens.len();
            let position = (used + i) as i32;
            batch
                .add(LlamaToken(token as i32), position, &[0], logits)
                .map_err(refused)?;
        }
        self.0.decode(&mut batch).map_err(refused)
    }
}

fn refused(error: impl std::fmt::Display) -> Refusal {
    Refusal::Llama(error.to_string())
}
