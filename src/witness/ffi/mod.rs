//! The gate to llama.cpp: the only place that calls it, run in the child alone.
//!
//! ```text
//! api         the functions, in a table: of the llama.cpp that is linked in (feature `llama`), or of ...
//! loaded      ... a library that the user names
//! parameters  structs that differ from build to build
//! model, products   what is done with them
//! ```
//! llama.cpp answers what it does not understand with an abort of the process as often as with an error; that is the
//! parent's to notice. What it logs goes to stderr, which the parent keeps.

mod api;
mod loaded;
mod model;
mod parameters;
mod products;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::block::BlockType;

use super::answer::{Output, Refusal, can_start_threads};
use super::protocol::{self, Build, Hello, Piece, Work};
use crate::mapped::Mapped;
use api::{Api, GgufParameters};
use loaded::Loaded;
use model::{Layouts, Model, Session};
use products::Products;

/// llama.cpp and what it holds for the parent.
pub(super) struct Library {
    api: Api,
    layouts: Layouts,
    build: Build,
    /// Lives as long as the process: contexts point into it.
    model: Option<&'static Model>,
    sessions: Vec<Option<Session>>,
    products: Option<(Products, Vec<f32>)>,
    file: Option<(PathBuf, Mapped)>,
}

impl Library {
    /// Initialize llama.cpp, which is done once for the process: the library at `path`, or the one that is linked in.
    ///
    /// # Errors
    /// What keeps it from being used, and what to do.
    pub fn open(path: Option<&Path>) -> Result<Self, String> {
        let (api, file, build) = match path {
            Some(path) => {
                let loaded = Loaded::open(path, log)?;
                (loaded.api, Some(loaded.file), loaded.build)
            }
            None => (linked()?, None, None),
        };
        // SAFETY: the callback is a function that lives as long as the process, and needs no user data; the others take
        // no arguments. The last fills ggml's tables for F16, which single operations need.
        unsafe {
            (api.llama_log_set)(Some(log), ptr::null_mut());
            (api.llama_backend_init)();
            (api.ggml_cpu_init)();
        }
        Ok(Self {
            api,
            layouts: Layouts::of(&api)?,
            build: build_of(&api, file, build),
            model: None,
            sessions: vec![],
            products: None,
            file: None,
        })
    }

    pub fn hello(&self) -> Hello {
        // SAFETY: returns a static buffer that only another call of the same function writes to; the child asks from one
        // thread.
        let system = unsafe { text((self.api.llama_print_system_info)()) };
        Hello {
            tqconv: env!("CARGO_PKG_VERSION").into(),
            build: self.build.clone(),
            system,
        }
    }

    /// Do the work, and send the answer.
    pub fn answer(&mut self, work: Work, bulk: Vec<u8>, out: &Output) -> Result<(), Refusal> {
        match work {
            Work::ReadGguf { path } => out.done(&self.read_gguf(&PathBuf::from(path))?, &[]),
            Work::CheckBlocks { path, pieces } => {
                let api = self.api;
                let file = self.map(path.into())?;
                let sound = pieces.iter().map(|piece| check_blocks(&api, file, piece));
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
                let model = Model::load(self.api, &self.layouts, &PathBuf::from(path))?;
                self.model = Some(Box::leak(Box::new(model)));
                out.done(&(), &[])
            }
            Work::Session { settings } => {
                can_start_threads(settings.threads)?;
                let session = self.model()?.session(settings)?;
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
                let bytes = self.model()?.detokenize(&tokens(&bulk))?;
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
        let (api, ty) = (self.api, BlockType::from_id(task.ty).ok_or(OUT_OF_TURN)?);
        let (x, sent) = bulk
            .split_at_checked(4 * task.tokens * task.columns)
            .ok_or(OUT_OF_TURN)?;
        let weights = match &task.weights {
            Some((path, piece)) => part(self.map(path.clone().into())?, piece)?,
            None => sent,
        };
        let products = Products::new(
            api,
            ty,
            (task.rows, task.columns),
            task.tokens,
            weights,
            (task.graphs, task.batch),
            task.threads,
        )?;
        Ok((products, bytemuck::pod_collect_to_vec(x)))
    }

    /// How many tensors and keys ggml's own reader finds in a file; it maps no weights.
    fn read_gguf(&self, path: &Path) -> Result<(usize, usize), Refusal> {
        let (api, path) = (&self.api, c_path(path).map_err(Refusal::CouldNot)?);
        let parameters = GgufParameters {
            no_alloc: true,
            context: ptr::null_mut(),
        };
        // SAFETY: the name lives as long as the call. What comes back is asked and freed once.
        let (tensors, keys) = unsafe {
            let file = (api.gguf_init_from_file)(path.as_ptr(), parameters);
            if file.is_null() {
                return Err(Refusal::Llama(String::new()));
            }
            let counts = ((api.gguf_get_n_tensors)(file), (api.gguf_get_n_kv)(file));
            (api.gguf_free)(file);
            counts
        };
        let count = |n: i64| usize::try_from(n).unwrap_or(0);
        Ok((count(tensors), count(keys)))
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

/// Whether blocks keep to ggml's own rules (no scale that is NaN or infinite, ...): what llama.cpp does with
/// `--check-tensors`. ggml prints the place on stderr by itself.
fn check_blocks(api: &Api, file: &Mapped, piece: &Piece) -> Result<bool, Refusal> {
    let bytes = part(file, piece)?;
    // SAFETY: ggml reads `bytes.len()` bytes and checks that they are whole blocks of the type.
    Ok(unsafe { (api.ggml_validate_row_data)(piece.ty, bytes.as_ptr().cast(), bytes.len()) })
}

/// The functions of the llama.cpp that is linked in.
fn linked() -> Result<Api, String> {
    #[cfg(feature = "llama")]
    return Ok(Api::linked());
    #[cfg(not(feature = "llama"))]
    Err("this program was built without llama.cpp; use one of the same build".into())
}

/// What errors call the build.
fn build_name(api: &Api) -> String {
    let Build { version, ggml, .. } = build_of(api, None, None);
    format!("llama.cpp {version}, ggml {ggml}")
}

/// What the library says of itself.
fn build_of(api: &Api, file: Option<PathBuf>, number: Option<u32>) -> Build {
    // SAFETY: they return constants of the library.
    let (llama, ggml, commit) = unsafe {
        (
            text((api.llama_version)()),
            text((api.ggml_version)()),
            text((api.ggml_commit)()),
        )
    };
    let ggml = match &*commit {
        "unknown" => ggml,
        _ => format!("{ggml} ({commit})"),
    };
    Build {
        version: llama,
        number: number.filter(|number| *number > 0),
        ggml,
        path: file.map(|file| file.to_string_lossy().into_owned()),
    }
}

/// A path as llama.cpp has it: UTF-8 on Windows, elsewhere any bytes.
fn c_path(path: &Path) -> Result<CString, String> {
    if cfg!(windows) && path.to_str().is_none() {
        return Err(format!(
            "{path:?} is not Unicode, as llama.cpp needs it here; rename it"
        ));
    }
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| format!("{} has a zero byte in its name; rename it", path.display()))
}

/// Write llama.cpp's warnings and errors to stderr.
unsafe extern "C" fn log(level: c_int, message: *const c_char, _: *mut c_void) {
    /// Whether the last message was worth keeping: its continuation then is, too.
    static KEEPING: AtomicBool = AtomicBool::new(false);
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock();
    let keep = match level {
        api::WARN | api::ERROR => true,
        api::CONTINUED => KEEPING.load(Ordering::Relaxed),
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
