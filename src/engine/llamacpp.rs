//! llama.cpp as a witness: the model through `llama-cpp-2`, single operations of ggml through `llama-cpp-sys-2`.
//!
//! llama.cpp answers a file that it does not understand with an abort of the whole process as often as with an error, so
//! a model is loaded only after [`Shape::read`] has accepted the file. Nothing is printed: what llama.cpp logs while it
//! loads is kept, and told when loading fails.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::num::NonZeroU32;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::gguf::GgufContext;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::shape::Shape;
use super::{Engine, EngineError, Generate, check_tokens};

/// A loaded model. [`Model::session`] makes an engine of it.
pub struct Model {
    model: LlamaModel,
    shape: Shape,
    warnings: String,
}

impl Model {
    /// Load the file at `path`, all layers on the CPU. `file` is the same file, read by us: it has to pass our own
    /// checks first.
    ///
    /// # Errors
    /// Those of [`Shape::read`]; a path that is not UTF-8; whatever llama.cpp refuses, with its log.
    pub fn load(path: &Path, file: &File) -> Result<Self, EngineError> {
        const LOAD: &str = "load the model";
        let shape = Shape::read(file)?;
        if file
            .get("tokenizer.ggml.tokens")
            .and_then(Value::as_strings)
            .is_none()
        {
            return Err(EngineError::Key {
                key: "tokenizer.ggml.tokens".into(),
                found: "absent".into(),
                expected: "the vocabulary: llama.cpp aborts when it is to tokenize without one"
                    .into(),
            });
        }
        if path.to_str().is_none() {
            return Err(refusal(LOAD, "its path is not UTF-8"));
        }
        let params = LlamaModelParams::default().with_n_gpu_layers(0);
        let (model, log) = logged(|| LlamaModel::load_from_file(&BACKEND, path, &params));
        match model {
            Ok(model) => Ok(Model {
                model,
                shape,
                warnings: log,
            }),
            Err(error) => Err(refusal(
                LOAD,
                if log.is_empty() {
                    error.to_string()
                } else {
                    log
                },
            )),
        }
    }

    /// What llama.cpp warned of while it loaded the model; empty if of nothing.
    pub fn warnings(&self) -> &str {
        &self.warnings
    }

    /// The file's shape as we read it.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// An engine over this model, with an empty context.
    ///
    /// # Errors
    /// A context that llama.cpp cannot make: too large for the memory, as a rule.
    pub fn session(&self, settings: Settings) -> Result<Session<'_>, EngineError> {
        let size = u32::try_from(settings.context)
            .ok()
            .and_then(NonZeroU32::new);
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
        let (context, log) = logged(|| self.model.new_context(&BACKEND, params));
        let context =
            context.map_err(|error| refusal("make a context", format!("{error} {log}")))?;
        Ok(Session {
            model: self,
            context,
            settings,
            used: 0,
        })
    }

    /// Token ids of `text`, by llama.cpp's own tokenizer. `add_special` puts the tokens around it that the file asks
    /// for (as a rule the one that begins a text); `parse_special` takes the spelling of a control token for the token.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let tokens = self
            .model
            .vocab()
            .tokenize(text.as_bytes(), add_special, parse_special);
        tokens.into_iter().map(|LlamaToken(id)| id as u32).collect()
    }

    /// The bytes of `tokens`; a character may be spread over several tokens. Control tokens have none.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn detokenize(&self, tokens: &[u32]) -> Result<Vec<u8>, EngineError> {
        let mut bytes = Vec::new();
        for token in self.tokens(tokens)? {
            self.model
                .vocab()
                .token_to_piece_into(token, &mut bytes, false, None);
        }
        Ok(bytes)
    }

    /// Whether `token` ends a text.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn is_end(&self, token: u32) -> Result<bool, EngineError> {
        let [token] = self.tokens(&[token])?[..] else {
            return Ok(false);
        };
        Ok(self.model.vocab().is_eog(token))
    }

    fn tokens(&self, tokens: &[u32]) -> Result<Vec<LlamaToken>, EngineError> {
        if !tokens.is_empty() {
            check_tokens(tokens, self.shape.vocab, 0, usize::MAX)?;
        }
        Ok(tokens
            .iter()
            .map(|&token| LlamaToken(token as i32))
            .collect())
    }
}

/// How an engine over a [`Model`] computes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many tokens the context holds.
    pub context: usize,
    /// Threads to compute with.
    pub threads: usize,
    /// Keep keys and values in F32 and do without flash attention, so that nothing but the weights and activations is
    /// rounded. Otherwise as llama.cpp comes: F16, and flash attention where it can.
    pub exact_cache: bool,
}

/// llama.cpp with a context, as an [`Engine`].
pub struct Session<'model> {
    model: &'model Model,
    context: LlamaContext<'model>,
    settings: Settings,
    /// Tokens in the context.
    used: usize,
}

impl Session<'_> {
    /// Run `tokens` after those already in the context; logits of all of them, or of the last, are then to be had.
    fn decode(&mut self, tokens: &[u32], all_logits: bool) -> Result<(), EngineError> {
        check_tokens(tokens, self.vocab(), self.used, self.settings.context)?;
        const DECODE: &str = "run the tokens";
        let mut batch = LlamaBatch::new(tokens.len(), 1);
        for (i, &token) in tokens.iter().enumerate() {
            let logits = all_logits || i + 1 == tokens.len();
            batch
                .add(
                    LlamaToken(token as i32),
                    (self.used + i) as i32,
                    &[0],
                    logits,
                )
                .map_err(|error| refusal(DECODE, error.to_string()))?;
        }
        self.context
            .decode(&mut batch)
            .map_err(|error| refusal(DECODE, error.to_string()))?;
        self.used += tokens.len();
        Ok(())
    }
}

impl Engine for Session<'_> {
    fn name(&self) -> String {
        let cache = if self.settings.exact_cache {
            "F32 cache"
        } else {
            "F16 cache"
        };
        format!(
            "llama.cpp (ggml {}, {}, {cache})",
            ggml_version(),
            super::threads_text(self.settings.threads)
        )
    }

    fn vocab(&self) -> usize {
        self.model.shape.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reset();
        self.decode(tokens, true)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.vocab());
        for i in 0..tokens.len() {
            logits.extend_from_slice(self.context.get_logits_ith(i as i32));
        }
        self.reset();
        Ok(logits)
    }
}

impl Generate for Session<'_> {
    fn context(&self) -> usize {
        self.settings.context
    }

    fn reset(&mut self) {
        self.context.clear_kv_cache();
        self.used = 0;
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.decode(tokens, false)?;
        Ok(self.context.get_logits_ith(-1).to_vec())
    }
}

/// How many tensors and keys ggml's own reader finds in the file at `path`; it maps no weights.
///
/// # Errors
/// What ggml logs when it refuses the file.
pub fn read_gguf(path: &Path) -> Result<(usize, usize), EngineError> {
    let (context, log) = logged(|| GgufContext::from_file(path));
    let context = context.ok_or_else(|| refusal("read the file", log))?;
    let count = |n: i64| usize::try_from(n).unwrap_or(0);
    Ok((count(context.n_tensors()), count(context.n_kv())))
}

/// ggml's version, with the commit where the build knows it, for reports: `0.26.0` or `0.26.0 (abc1234)`.
pub fn ggml_version() -> String {
    // SAFETY: both return a constant of the library.
    let (version, commit) = unsafe { (text(sys::ggml_version()), text(sys::ggml_commit())) };
    if commit == "unknown" {
        version
    } else {
        format!("{version} ({commit})")
    }
}

/// The CPU features that ggml was compiled with and found, for reports: `CPU : AVX2 = 1 | F16C = 1 | ...`.
pub fn system_info() -> String {
    LazyLock::force(&BACKEND);
    // SAFETY: returns a static buffer, which only another call of the same function writes to.
    let _one_at_a_time = lock(&LOG);
    unsafe { text(sys::llama_print_system_info()) }
}

/// Hold every block of a tensor against ggml's own rules (a scale that is NaN or infinite, ...): what llama.cpp does with
/// `--check-tensors`. ggml prints the place on stderr by itself.
///
/// # Errors
/// The tensor whose data ggml does not accept.
pub fn check_tensor(info: &TensorInfo, bytes: &[u8]) -> Result<(), EngineError> {
    // SAFETY: ggml reads `bytes.len()` bytes and checks that they are whole blocks of the type.
    if unsafe {
        sys::ggml_validate_row_data(
            info.ty.id() as sys::ggml_type,
            bytes.as_ptr().cast(),
            bytes.len(),
        )
    } {
        return Ok(());
    }
    let reason = format!(
        "tensor '{}' has data that ggml's own check does not accept",
        info.name
    );
    Err(refusal("use the weights", reason))
}

/// One product of ggml: `y_t = W x_t`, by the same kernels that llama.cpp uses on the CPU for tensors it has not
/// repacked, activations rounded as they round them.
///
/// `weight`: (rows, columns) in blocks of `ty`.  `x`: (tokens, columns).  Returns (tokens, rows).
///
/// # Errors
/// A type that ggml cannot multiply, lengths that do not fit, or more memory than there is.
pub fn ggml_mul_mat(
    ty: BlockType,
    rows: usize,
    columns: usize,
    weight: &[u8],
    x: &[f32],
    threads: usize,
) -> Result<Vec<f32>, EngineError> {
    const MULTIPLY: &str = "multiply";
    LazyLock::force(&BACKEND);
    if !can_multiply(ty) {
        return Err(refusal(
            MULTIPLY,
            format!("ggml has no product of {ty} on the CPU"),
        ));
    }
    let bytes = ty.row_bytes(columns).and_then(|row| row.checked_mul(rows));
    if rows == 0
        || columns == 0
        || x.is_empty()
        || bytes != Some(weight.len())
        || !x.len().is_multiple_of(columns)
    {
        return Err(refusal(
            MULTIPLY,
            format!(
                "{} bytes of {ty} and {} activations do not fit {rows} x {columns}",
                weight.len(),
                x.len()
            ),
        ));
    }
    let tokens = x.len() / columns;
    let context = OperationContext::new(weight.len() + 4 * (x.len() + rows * tokens))
        .ok_or_else(|| refusal(MULTIPLY, "ggml has no memory for the operation"))?;
    let mut y = vec![0f32; rows * tokens];
    // SAFETY: the context lives to the end of the block and has room for three tensors with their data and one graph;
    // tensors are (columns, rows) and (columns, tokens), so the copies are exactly as long as their destinations, and the
    // result is (rows, tokens) F32, as long as `y`; the work buffer outlives the computation.
    let status = unsafe {
        let ctx = context.0.as_ptr();
        let w =
            sys::ggml_new_tensor_2d(ctx, ty.id() as sys::ggml_type, columns as i64, rows as i64);
        ptr::copy_nonoverlapping(weight.as_ptr(), (*w).data.cast(), weight.len());
        let a = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, columns as i64, tokens as i64);
        ptr::copy_nonoverlapping(x.as_ptr(), (*a).data.cast(), x.len());
        let product = sys::ggml_mul_mat(ctx, w, a);
        let graph = sys::ggml_new_graph(ctx);
        sys::ggml_build_forward_expand(graph, product);
        let mut plan = sys::ggml_graph_plan(graph, threads.clamp(1, 512) as c_int, ptr::null_mut());
        let mut work = vec![0u8; plan.work_size];
        plan.work_data = work.as_mut_ptr();
        let status = sys::ggml_graph_compute(graph, &mut plan);
        ptr::copy_nonoverlapping((*product).data.cast(), y.as_mut_ptr(), y.len());
        status
    };
    if status == sys::GGML_STATUS_SUCCESS {
        Ok(y)
    } else {
        Err(refusal(MULTIPLY, format!("status {status}")))
    }
}

/// Whether ggml has a CPU kernel for a matrix of `ty`.
fn can_multiply(ty: BlockType) -> bool {
    // SAFETY: every id of `BlockType` is below GGML_TYPE_COUNT, and the table that is pointed into is constant.
    unsafe {
        (*sys::ggml_get_type_traits_cpu(ty.id() as sys::ggml_type))
            .vec_dot
            .is_some()
    }
}

/// Memory for the tensors of one operation.
struct OperationContext(NonNull<sys::ggml_context>);

impl OperationContext {
    /// Room for three tensors of `data` bytes together and one graph.
    fn new(data: usize) -> Option<Self> {
        const TENSORS: usize = 3;
        const PADDING: usize = 64;
        // SAFETY: these take no pointers that could be wrong; with no buffer given, ggml allocates its own.
        NonNull::new(unsafe {
            let overhead =
                TENSORS * (sys::ggml_tensor_overhead() + PADDING) + sys::ggml_graph_overhead();
            sys::ggml_init(sys::ggml_init_params {
                mem_size: data + overhead,
                mem_buffer: ptr::null_mut(),
                no_alloc: false,
            })
        })
        .map(OperationContext)
    }
}

impl Drop for OperationContext {
    fn drop(&mut self) {
        // SAFETY: made by `ggml_init`, freed once.
        unsafe { sys::ggml_free(self.0.as_ptr()) }
    }
}

/// llama.cpp and ggml, initialized once for the process, their log in our hands.
static BACKEND: LazyLock<LlamaBackend> = LazyLock::new(|| {
    // SAFETY: the callback is a function that lives as long as the process, and needs no user data.
    unsafe { sys::llama_log_set(Some(keep_log), ptr::null_mut()) };
    let backend = LlamaBackend::init().expect("nothing else in this process initializes llama.cpp");
    // SAFETY: no arguments; fills ggml's tables for F16, which single operations need.
    unsafe { sys::ggml_cpu_init() };
    backend
});

/// What is logged while [`logged`] runs.
static LOG: Mutex<Log> = Mutex::new(Log {
    text: None,
    keeping: false,
});

struct Log {
    /// `None` while nobody listens.
    text: Option<String>,
    /// Whether the last message was worth keeping: its continuation then is, too.
    keeping: bool,
}

/// The result of `action`, and what llama.cpp meanwhile logged as a warning or an error.
///
/// One at a time: messages do not say what they belong to, and llama.cpp makes contexts of one model one at a time only.
fn logged<T>(action: impl FnOnce() -> T) -> (T, String) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = lock(&ONE_AT_A_TIME);
    LazyLock::force(&BACKEND);
    *lock(&LOG) = Log {
        text: Some(String::new()),
        keeping: false,
    };
    let result = action();
    let text = lock(&LOG).text.take().unwrap_or_default();
    (result, text.trim().replace('\n', "; "))
}

unsafe extern "C" fn keep_log(level: sys::ggml_log_level, message: *const c_char, _: *mut c_void) {
    let log = &mut *lock(&LOG);
    log.keeping = match level {
        sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_ERROR => true,
        sys::GGML_LOG_LEVEL_CONT => log.keeping,
        _ => false,
    };
    if let (true, Some(kept)) = (log.keeping, &mut log.text) {
        // SAFETY: llama.cpp passes a C string that lives during the call.
        kept.push_str(&unsafe { text(message) });
    }
}

/// A panic elsewhere leaves nothing half done in what these locks protect.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
/// `pointer` is a C string.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

fn refusal(doing: &'static str, log: impl Into<String>) -> EngineError {
    let log: Vec<String> = log.into().lines().map(|line| line.trim().into()).collect();
    EngineError::LlamaCpp {
        doing,
        log: log.join("; "),
    }
}
