//! The gate to llama.cpp: the only place that calls it, run in the child alone.
//!
//! Models go through `llama-cpp-2`, single operations of ggml through `llama-cpp-sys-2`. llama.cpp answers what it does
//! not understand with an abort of the process as often as with an error; that is the parent's to notice. What it logs
//! goes to stderr, which the parent keeps.

mod model;
mod products;

use std::ffi::{CStr, c_char, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, ptr};

use formats::block::BlockType;
use llama_cpp_2::gguf::GgufContext;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_sys_2 as sys;

use super::answer::{Output, Refusal, can_start_threads};
use super::protocol::{self, Hello, Piece, Work};
use crate::mapped::Mapped;
use crate::system;
use model::{Model, Session};
use products::Products;

/// Whether llama.cpp is built in.
pub(super) const BUILT_IN: bool = true;

/// llama.cpp and what it holds for the parent.
pub(super) struct Library {
    backend: LlamaBackend,
    /// Lives as long as the process: contexts point into it.
    model: Option<&'static Model>,
    sessions: Vec<Option<Session>>,
    products: Option<(Products, Vec<f32>)>,
    file: Option<(PathBuf, Mapped)>,
}

impl Library {
    /// Initialize llama.cpp, which is done once for the process.
    pub fn open() -> Option<Self> {
        // SAFETY: the callback is a function that lives as long as the process, and needs no user data.
        unsafe { sys::llama_log_set(Some(log), ptr::null_mut()) };
        let backend = LlamaBackend::init().expect("initialized once in this process");
        // SAFETY: no arguments; fills ggml's tables for F16, which single operations need.
        unsafe { sys::ggml_cpu_init() };
        Some(Self {
            backend,
            model: None,
            sessions: vec![],
            products: None,
            file: None,
        })
    }

    pub fn hello(&self) -> Hello {
        // SAFETY: the first two return constants of the library, the third a static buffer that only another call of
        // the same function writes to; the child asks from one thread.
        let (version, commit, system) = unsafe {
            (
                text(sys::ggml_version()),
                text(sys::ggml_commit()),
                text(sys::llama_print_system_info()),
            )
        };
        Hello {
            tqconv: env!("CARGO_PKG_VERSION").into(),
            ggml: match &*commit {
                "unknown" => version,
                _ => format!("{version} ({commit})"),
            },
            system,
        }
    }

    /// Do the work, and send the answer.
    pub fn answer(&mut self, work: Work, bulk: Vec<u8>, out: &Output) -> Result<(), Refusal> {
        match work {
            Work::ReadGguf { path } => out.done(&read_gguf(&PathBuf::from(path))?, &[]),
            Work::CheckBlocks { path, pieces } => {
                let file = self.map(path.into())?;
                let sound = pieces.iter().map(|piece| check_blocks(file, piece));
                out.done(&sound.collect::<Result<Vec<_>, _>>()?, &[])
            }
            Work::Multiply(task) => {
                let (mut products, x) = self.products(task, &bulk)?;
                products.compute(0, &x);
                out.done(&(), &[bytemuck::cast_slice(products.result(0))])
            }
            Work::Prepare(task) => {
                self.products = None; // before there are two of them
                self.products = Some(self.products(task, &bulk)?);
                out.done(&(), &[])
            }
            Work::Compute { graph, repeats, .. } => {
                let (products, x) = self.products.as_mut().ok_or(OUT_OF_TURN)?;
                out.done(&products.time(graph, repeats, x), &[])
            }
            Work::Load { path } => {
                let model = Model::load(&self.backend, &PathBuf::from(path))?;
                self.model = Some(Box::leak(Box::new(model)));
                out.done(&(), &[])
            }
            Work::Session { settings } => {
                can_start_threads(settings.threads)?;
                let session = self.model()?.session(&self.backend, settings)?;
                self.sessions.push(Some(session));
                out.done(&(self.sessions.len() - 1), &[])
            }
            Work::Logits { session } => {
                let session = self.session(session)?;
                out.done(&(), &session.logits(&tokens(&bulk))?)
            }
            Work::Feed { session, used } => {
                let logits = self.session(session)?.feed(&tokens(&bulk), used)?;
                out.done(&(), &[bytemuck::cast_slice(logits)])
            }
            Work::Time { session, prefill } => {
                let tokens = tokens(&bulk);
                let (prefill, decode) = tokens.split_at_checked(prefill).ok_or(OUT_OF_TURN)?;
                out.done(&self.session(session)?.time(prefill, decode)?, &[])
            }
            Work::Close { session } => {
                self.sessions[session] = None;
                out.done(&(), &[])
            }
            Work::Tokenize {
                add_special,
                parse_special,
                stack,
            } => {
                let tokens = self.model()?.tokenize(&bulk, add_special, parse_special, stack)?;
                out.done(&(), &[bytemuck::cast_slice(&tokens)])
            }
            Work::Detokenize => {
                let bytes = self.model()?.detokenize(&tokens(&bulk));
                out.done(&(), &[&bytes])
            }
            Work::IsEnd { token } => out.done(&self.model()?.is_end(token), &[]),
        }
    }

    fn model(&self) -> Result<&'static Model, Refusal> {
        self.model.ok_or(OUT_OF_TURN)
    }

    fn session(&mut self, number: usize) -> Result<&mut Session, Refusal> {
        let session = self.sessions.get_mut(number).and_then(Option::as_mut);
        session.ok_or(OUT_OF_TURN)
    }

    /// The products of `task`, and their activations.
    fn products(&mut self, task: protocol::Products, bulk: &[u8]) -> Result<(Products, Vec<f32>), Refusal> {
        can_start_threads(task.threads)?;
        let ty = BlockType::from_id(task.ty).ok_or(OUT_OF_TURN)?;
        let (x, sent) = bulk
            .split_at_checked(4 * task.tokens * task.columns)
            .ok_or(OUT_OF_TURN)?;
        let weights = match &task.weights {
            Some((path, piece)) => part(self.map(path.clone().into())?, piece)?,
            None => sent,
        };
        let products = Products::new(
            ty,
            (task.rows, task.columns),
            task.tokens,
            weights,
            (task.graphs, task.batch),
            task.threads,
        )?;
        Ok((products, bytemuck::pod_collect_to_vec(x)))
    }

    /// The file, which is mapped once.
    fn map(&mut self, path: PathBuf) -> Result<&Mapped, Refusal> {
        if self.file.as_ref().is_none_or(|(mapped, _)| *mapped != path) {
            let file = Mapped::open(&path).map_err(|error| {
                Refusal::CouldNot(format!(
                    "the file cannot be mapped: {error}; check that you may read it"
                ))
            })?;
            self.file = Some((path, file));
        }
        Ok(&self.file.as_ref().expect("just mapped").1)
    }
}

/// An order that does not follow from those before it: a fault of tqconv, told and not panicked about.
const OUT_OF_TURN: Refusal = Refusal::Llama(String::new());

fn tokens(bulk: &[u8]) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(bulk)
}

fn part<'a>(file: &'a Mapped, piece: &Piece) -> Result<&'a [u8], Refusal> {
    let rest = usize::try_from(piece.start).ok().and_then(|start| file.get(start..));
    let length = usize::try_from(piece.length).ok();
    rest.zip(length)
        .and_then(|(rest, length)| rest.get(..length))
        .ok_or_else(|| Refusal::CouldNot("the file has become shorter; leave it as it is meanwhile".into()))
}

/// How many tensors and keys ggml's own reader finds in a file; it maps no weights.
fn read_gguf(path: &Path) -> Result<(usize, usize), Refusal> {
    let context = open(path, GgufContext::from_file)?.ok_or_else(|| Refusal::Llama(String::new()))?;
    let count = |n: i64| usize::try_from(n).unwrap_or(0);
    Ok((count(context.n_tensors()), count(context.n_kv())))
}

/// Whether blocks keep to ggml's own rules (no scale that is NaN or infinite, ...): what llama.cpp does with
/// `--check-tensors`. ggml prints the place on stderr by itself.
fn check_blocks(file: &Mapped, piece: &Piece) -> Result<bool, Refusal> {
    let bytes = part(file, piece)?;
    // SAFETY: ggml reads `bytes.len()` bytes and checks that they are whole blocks of the type.
    Ok(unsafe { sys::ggml_validate_row_data(piece.ty, bytes.as_ptr().cast(), bytes.len()) })
}

/// Call `use_path` with a name of the file that is UTF-8, as llama-cpp-2 wants it: its own, or that of a descriptor.
fn open<T>(path: &Path, use_path: impl FnOnce(&Path) -> T) -> Result<T, Refusal> {
    if path.to_str().is_some() {
        return Ok(use_path(path));
    }
    let file = fs::File::open(path).map_err(|error| {
        Refusal::CouldNot(format!(
            "the file cannot be opened: {error}; check that you may read it"
        ))
    })?;
    let name = system::utf8_name(&file).ok_or_else(|| {
        Refusal::CouldNot(format!(
            "{path:?} is not Unicode, as llama.cpp needs it here; rename the file"
        ))
    })?;
    Ok(use_path(&name))
}

/// Write llama.cpp's warnings and errors to stderr.
unsafe extern "C" fn log(level: sys::ggml_log_level, message: *const c_char, _: *mut c_void) {
    /// Whether the last message was worth keeping: its continuation then is, too.
    static KEEPING: AtomicBool = AtomicBool::new(false);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let keep = match level {
        sys::GGML_LOG_LEVEL_WARN | sys::GGML_LOG_LEVEL_ERROR => true,
        sys::GGML_LOG_LEVEL_CONT => KEEPING.load(Ordering::Relaxed),
        _ => false,
    };
    KEEPING.store(keep, Ordering::Relaxed);
    if keep {
        // SAFETY: llama.cpp passes a C string that lives during the call.
        let message = unsafe { CStr::from_ptr(message) };
        let _ = std::io::stderr().write_all(message.to_bytes());
    }
}

/// # Safety
/// `pointer` is a C string.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: by this function's contract.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}
