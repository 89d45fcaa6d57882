//! A model of llama.cpp, its contexts and its tokenizer.

use std::hint::black_box;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::thread;
use std::time::{Duration, Instant};

use super::super::answer::Refusal;
use super::super::protocol::Settings;
use super::api::{self, Api, Batch, LlamaContext, LlamaModel, LlamaVocab};
use super::parameters::{CONTEXT, CONTEXT_LACKS, Layout, MODEL, Parameters};
use super::{build_name, c_path};

/// Where this build of llama.cpp has the parameters.
#[derive(Clone, Debug)]
pub(super) struct Layouts {
    model: Layout,
    context: Layout,
}

impl Layouts {
    /// # Errors
    /// A build with other parameters than any that is known.
    pub fn of(api: &Api) -> Result<Self, String> {
        // SAFETY: they fill a struct of theirs, which is smaller than the block. What they leave of it is not known, and
        // compared with nothing but defaults; `black_box` makes it bytes like any others.
        let (model, context) = unsafe {
            (
                black_box((api.llama_model_default_params)()),
                black_box((api.llama_context_default_params)()),
            )
        };
        let unknown = |name: &str, error| {
            let build = build_name(api);
            format!("{name} gives {error}: no layout that is known ({build}); name a build from b10603 to b11739")
        };
        Ok(Self {
            model: Layout::of(&model, &MODEL, &[&[]]).map_err(|error| unknown("llama_model_default_params", error))?,
            context: Layout::of(&context, &CONTEXT, &CONTEXT_LACKS)
                .map_err(|error| unknown("llama_context_default_params", error))?,
        })
    }
}

/// A loaded model, on the CPU.
pub(super) struct Model {
    api: Api,
    layouts: Layouts,
    pointer: NonNull<LlamaModel>,
    vocab: Vocab,
}

// SAFETY: the model is not changed once it is loaded, and llama.h allows it to be used from several threads.
unsafe impl Send for Model {}
// SAFETY: as for `Send`; the contexts, which do change, are not shared.
unsafe impl Sync for Model {}

impl Model {
    pub fn load(api: Api, layouts: &Layouts, path: &Path) -> Result<Self, Refusal> {
        /// A list of devices, ended by a null pointer, without any but the CPU.
        static NO_DEVICES: usize = 0;
        let path = c_path(path).map_err(Refusal::CouldNot)?;
        // SAFETY: the parameters are the build's own but for the two that are set where it has them; the list lives as
        // long as the process, the name as long as the call.
        let pointer = unsafe {
            let mut parameters = (api.llama_model_default_params)();
            layouts.model.point(&mut parameters, "devices", &NO_DEVICES);
            layouts.model.set(&mut parameters, "n_gpu_layers", 0);
            (api.llama_model_load_from_file)(path.as_ptr(), parameters)
        };
        let pointer = NonNull::new(pointer).ok_or_else(|| refused("null result from llama.cpp"))?;
        // SAFETY: the model is loaded.
        let vocab = unsafe { (api.llama_model_get_vocab)(pointer.as_ptr()) };
        Ok(Self {
            api,
            layouts: layouts.clone(),
            pointer,
            vocab: Vocab { api, pointer: vocab },
        })
    }

    /// A context of this model, empty.
    pub fn session(&'static self, settings: Settings) -> Result<Session, Refusal> {
        let size = u32::try_from(settings.context).unwrap_or(u32::MAX);
        let threads = u32::try_from(settings.threads)
            .unwrap_or(u32::MAX)
            .clamp(1, i32::MAX as u32);
        let layout = &self.layouts.context;
        // SAFETY: takes no arguments, and returns plain numbers and null pointers.
        let mut parameters: Parameters = unsafe { (self.api.llama_context_default_params)() };
        let mut set = |name, value| layout.set(&mut parameters, name, value);
        set("n_ctx", size);
        set("n_batch", size);
        set("n_threads", threads);
        set("n_threads_batch", threads);
        if settings.exact_cache {
            set("type_k", api::F32);
            set("type_v", api::F32);
            set("flash_attn_type", api::NO_FLASH_ATTENTION);
        }
        // SAFETY: the model lives as long as the process; the parameters are the build's own but for those that are set
        // where it has them.
        let pointer = unsafe { (self.api.llama_init_from_model)(self.pointer.as_ptr(), parameters) };
        let pointer = NonNull::new(pointer).ok_or_else(|| refused("null reference from llama.cpp"))?;
        Ok(Session { model: self, pointer })
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
            let split = || self.vocab.tokenize(text, add_special, parse_special);
            let started = thread::Builder::new().stack_size(stack).spawn_scoped(scope, split);
            started.map(|thread| thread.join().expect("splitting does not panic"))
        });
        tokens.map_err(|error| {
            Refusal::CouldNot(format!(
                "no thread with a stack of {stack} bytes can be started: {error}; use a text with shorter words"
            ))
        })?
    }

    /// The bytes of tokens that the vocabulary has. Control tokens have none.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<Vec<u8>, Refusal> {
        let pieces = tokens.iter().map(|&token| self.vocab.piece(token));
        Ok(pieces.collect::<Result<Vec<_>, _>>()?.concat())
    }

    pub fn is_end(&self, token: u32) -> bool {
        // SAFETY: the vocabulary lives as long as the model, and has the token.
        unsafe { (self.api.llama_vocab_is_eog)(self.vocab.pointer, token as i32) }
    }
}

/// The vocabulary of a model, which it lives as long as.
struct Vocab {
    api: Api,
    pointer: *const LlamaVocab,
}

// SAFETY: it does not change.
unsafe impl Sync for Vocab {}

impl Vocab {
    fn tokenize(&self, text: &[u8], add_special: bool, parse_special: bool) -> Result<Vec<u32>, Refusal> {
        let length = i32::try_from(text.len()).map_err(|_| refused("the text has more than 2 GB"))?;
        filled(text.len() / 2 + 8, |tokens: &mut [u32], most| {
            // SAFETY: text and tokens are as long as is said; both are only used during the call.
            unsafe {
                (self.api.llama_tokenize)(
                    self.pointer,
                    text.as_ptr().cast(),
                    length,
                    tokens.as_mut_ptr().cast(),
                    most,
                    add_special,
                    parse_special,
                )
            }
        })
    }

    fn piece(&self, token: u32) -> Result<Vec<u8>, Refusal> {
        filled(16, |bytes: &mut [u8], most| {
            // SAFETY: as many bytes as are said can be written; the vocabulary has the token.
            unsafe {
                let to = bytes.as_mut_ptr().cast();
                (self.api.llama_token_to_piece)(self.pointer, token as i32, to, most, 0, false)
            }
        })
    }
}

/// What `fill` writes to a slice of so many: it returns how many it has written, or how many it needs, as a negative.
fn filled<T: Copy + Default>(length: usize, fill: impl Fn(&mut [T], i32) -> i32) -> Result<Vec<T>, Refusal> {
    let mut space = vec![T::default(); length];
    for _ in 0..2 {
        let most = i32::try_from(space.len()).unwrap_or(i32::MAX);
        match fill(&mut space, most) {
            i32::MIN => break,
            more if more < 0 => space.resize(more.unsigned_abs() as usize, T::default()),
            written => {
                space.truncate(written as usize);
                return Ok(space);
            }
        }
    }
    Err(refused("more tokens than llama.cpp can count"))
}

/// A context.
pub(super) struct Session {
    model: &'static Model,
    pointer: NonNull<LlamaContext>,
}

impl Session {
    /// Logits of all `tokens`, from an empty context: a row of bytes for each.
    pub fn logits(&mut self, tokens: &[u32]) -> Result<Vec<&[u8]>, Refusal> {
        self.decode(tokens, 0, true)?;
        let row = |i| Ok(bytemuck::cast_slice(self.row(i)?));
        (0..tokens.len() as i32).map(row).collect()
    }

    /// Append `tokens` to the `used` ones of the context; the logits of the last one.
    pub fn feed(&mut self, tokens: &[u32], used: usize) -> Result<&[f32], Refusal> {
        self.decode(tokens, used, false)?;
        self.row(-1)
    }

    /// Times of a prefill from an empty context, and of decoding token by token after it.
    pub fn time(&mut self, prefill: &[u32], decode: &[u32]) -> Result<(Duration, Duration), Refusal> {
        self.clear();
        let start = Instant::now();
        black_box(self.feed(prefill, 0)?.to_vec());
        let prefill_time = start.elapsed();
        let start = Instant::now();
        for (i, token) in decode.iter().enumerate() {
            black_box(self.feed(&[*token], prefill.len() + i)?.to_vec());
        }
        Ok((prefill_time, start.elapsed()))
    }

    /// The logits of token `index` of the last batch; -1: of its last.
    fn row(&self, index: i32) -> Result<&[f32], Refusal> {
        let api = &self.model.api;
        // SAFETY: the context lives. Where there are logits, there is one for each token of the vocabulary, until the
        // next batch, for which this borrow has to end.
        unsafe {
            let row = (api.llama_get_logits_ith)(self.pointer.as_ptr(), index);
            let length = (api.llama_vocab_n_tokens)(self.model.vocab.pointer);
            if row.is_null() {
                return Err(refused("no logits"));
            }
            Ok(std::slice::from_raw_parts(row, length as usize))
        }
    }

    fn clear(&mut self) {
        let api = &self.model.api;
        // SAFETY: the context lives, and its memory as long.
        unsafe { (api.llama_memory_clear)((api.llama_get_memory)(self.pointer.as_ptr()), true) }
    }

    /// Run `tokens` after the first `used` of the context, which is emptied where that is none.
    fn decode(&mut self, tokens: &[u32], used: usize, all_logits: bool) -> Result<(), Refusal> {
        if used == 0 {
            self.clear();
        }
        let count = tokens.len();
        let mut ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let mut positions: Vec<i32> = (used..used + count).map(|position| position as i32).collect();
        let (mut sequence, mut one) = (0i32, vec![1i32; count]);
        let mut sequences = vec![&raw mut sequence; count];
        let mut logits: Vec<i8> = (0..count).map(|i| (all_logits || i + 1 == count).into()).collect();
        let batch = Batch {
            n_tokens: count as i32,
            token: ids.as_mut_ptr(),
            embd: ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: one.as_mut_ptr(),
            seq_id: sequences.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        // SAFETY: every array has as many elements as there are tokens, and lives during the call.
        match unsafe { (self.model.api.llama_decode)(self.pointer.as_ptr(), batch) } {
            0 => Ok(()),
            code => Err(refused(&format!("llama_decode returns {code}"))),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by `llama_init_from_model`, freed once.
        unsafe { (self.model.api.llama_free)(self.pointer.as_ptr()) }
    }
}

fn refused(why: &str) -> Refusal {
    Refusal::Llama(why.into())
}
