//! The functions of llama.cpp and ggml that are called, and their plain types: llama.h, ggml.h, ggml-cpu.h, gguf.h.
//!
//! They are in one table, filled from the llama.cpp that is linked in or from a library that the user names. The structs
//! here are those that have not changed since builds of 2025; the parameters of llama.cpp, which do, are in `parameters`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::{PhantomData, PhantomPinned};

use super::parameters::Parameters;

/// What only llama.cpp knows the inside of.
macro_rules! opaque {
    ($($name:ident)*) => {
        $(#[repr(C)]
        pub struct $name {
            inside: [u8; 0],
            // Not Send, not Sync, not Unpin.
            marker: PhantomData<(*mut u8, PhantomPinned)>,
        })*
    };
}
opaque!(LlamaModel LlamaContext LlamaVocab LlamaMemory GgufContext GgmlContext GgmlTensor GgmlGraph GgmlThreadpool);

/// llama_batch
#[repr(C)]
pub struct Batch {
    pub n_tokens: i32,
    pub token: *mut i32,
    pub embd: *mut f32,
    pub pos: *mut i32,
    pub n_seq_id: *mut i32,
    pub seq_id: *mut *mut i32,
    pub logits: *mut i8,
}

/// gguf_init_params
#[repr(C)]
pub struct GgufParameters {
    pub no_alloc: bool,
    pub context: *mut *mut GgmlContext,
}

/// ggml_init_params
#[repr(C)]
pub struct ContextParameters {
    pub mem_size: usize,
    pub mem_buffer: *mut c_void,
    pub no_alloc: bool,
}

/// ggml_cplan as far as it is read or written, and room for what follows.
#[repr(C)]
pub struct Plan {
    pub work_size: usize,
    pub work_data: *mut u8,
    rest: [u64; 30],
}

/// ggml_threadpool_params: only ggml reads and writes it.
#[repr(C)]
pub struct ThreadpoolParameters([u64; 256]);

impl ThreadpoolParameters {
    pub const ZERO: Self = Self([0; 256]);
}

/// ggml_type_traits_cpu as far as it is read.
#[repr(C)]
pub struct CpuTraits {
    from_float: *const c_void,
    /// Null where there is no product.
    pub vec_dot: *const c_void,
}

/// ggml_log_callback: level, message, user data
pub type LogCallback = unsafe extern "C" fn(c_int, *const c_char, *mut c_void);

/// GGML_TYPE_F32
pub const F32: u32 = 0;
/// GGML_STATUS_SUCCESS
pub const SUCCESS: c_int = 0;
/// GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR and GGML_LOG_LEVEL_CONT
pub const WARN: c_int = 3;
pub const ERROR: c_int = 4;
pub const CONTINUED: c_int = 5;
/// LLAMA_FLASH_ATTN_TYPE_DISABLED
pub const NO_FLASH_ATTENTION: u32 = 0;

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions. Calling one is sound where its header's conditions hold.
        #[derive(Clone, Copy)]
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($type),*) $(-> $answer)?,)*
        }

        impl Api {
            /// Those of the llama.cpp that is linked in.
            #[cfg(feature = "llama")]
            pub fn linked() -> Self {
                use llama_cpp_sys_2 as _; // which links it
                unsafe extern "C" {
                    $(fn $name($($argument: $type),*) $(-> $answer)?;)*
                }
                Self { $($name,)* }
            }

            /// Those at the addresses that `find` gives for their names.
            ///
            /// # Errors
            /// The names of those that it does not find.
            ///
            /// # Safety
            /// What `find` gives for a name is the function that the headers declare under this name.
            pub unsafe fn at(find: impl Fn(&CStr) -> Option<*const c_void>) -> Result<Self, Vec<&'static str>> {
                let mut missing = vec![];
                let mut address = |name: &'static CStr| {
                    find(name).unwrap_or_else(|| {
                        missing.extend(name.to_str());
                        std::ptr::null()
                    })
                };
                $(let $name = address(const { c_name(concat!(stringify!($name), "\0")) });)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    $(
                        // SAFETY: not null, and a function of this type by this function's contract.
                        $name: unsafe {
                            std::mem::transmute::<*const c_void, unsafe extern "C" fn($($type),*) $(-> $answer)?>($name)
                        },
                    )*
                })
            }
        }
    };
}

/// A name with its final zero as C has it.
const fn c_name(name: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("one zero, at the end"),
    }
}

functions! {
    fn llama_backend_init();
    fn llama_log_set(callback: Option<LogCallback>, data: *mut c_void);
    fn llama_version() -> *const c_char;
    fn llama_print_system_info() -> *const c_char;
    fn llama_model_default_params() -> Parameters;
    fn llama_model_load_from_file(path: *const c_char, parameters: Parameters) -> *mut LlamaModel;
    fn llama_model_get_vocab(model: *const LlamaModel) -> *const LlamaVocab;
    fn llama_vocab_n_tokens(vocab: *const LlamaVocab) -> i32;
    fn llama_vocab_is_eog(vocab: *const LlamaVocab, token: i32) -> bool;
    fn llama_tokenize(
        vocab: *const LlamaVocab,
        text: *const c_char,
        length: i32,
        tokens: *mut i32,
        most: i32,
        add_special: bool,
        parse_special: bool
    ) -> i32;
    fn llama_token_to_piece(
        vocab: *const LlamaVocab,
        token: i32,
        piece: *mut c_char,
        length: i32,
        lstrip: i32,
        special: bool
    ) -> i32;
    fn llama_context_default_params() -> Parameters;
    fn llama_init_from_model(model: *mut LlamaModel, parameters: Parameters) -> *mut LlamaContext;
    fn llama_free(context: *mut LlamaContext);
    fn llama_get_memory(context: *const LlamaContext) -> *mut LlamaMemory;
    fn llama_memory_clear(memory: *mut LlamaMemory, data: bool);
    fn llama_decode(context: *mut LlamaContext, batch: Batch) -> i32;
    fn llama_get_logits_ith(context: *mut LlamaContext, index: i32) -> *mut f32;
    fn gguf_init_from_file(path: *const c_char, parameters: GgufParameters) -> *mut GgufContext;
    fn gguf_get_n_tensors(file: *const GgufContext) -> i64;
    fn gguf_get_n_kv(file: *const GgufContext) -> i64;
    fn gguf_free(file: *mut GgufContext);
    fn ggml_version() -> *const c_char;
    fn ggml_commit() -> *const c_char;
    fn ggml_cpu_init();
    fn ggml_validate_row_data(ty: u32, data: *const c_void, bytes: usize) -> bool;
    fn ggml_get_type_traits_cpu(ty: u32) -> *const CpuTraits;
    fn ggml_tensor_overhead() -> usize;
    fn ggml_graph_overhead_custom(size: usize, gradients: bool) -> usize;
    fn ggml_init(parameters: ContextParameters) -> *mut GgmlContext;
    fn ggml_free(context: *mut GgmlContext);
    fn ggml_new_tensor_2d(context: *mut GgmlContext, ty: u32, ne0: i64, ne1: i64) -> *mut GgmlTensor;
    fn ggml_get_data(tensor: *const GgmlTensor) -> *mut c_void;
    fn ggml_nelements(tensor: *const GgmlTensor) -> i64;
    fn ggml_mul_mat(context: *mut GgmlContext, a: *mut GgmlTensor, b: *mut GgmlTensor) -> *mut GgmlTensor;
    fn ggml_new_graph_custom(context: *mut GgmlContext, size: usize, gradients: bool) -> *mut GgmlGraph;
    fn ggml_build_forward_expand(graph: *mut GgmlGraph, tensor: *mut GgmlTensor);
    fn ggml_graph_plan(graph: *const GgmlGraph, threads: c_int, pool: *mut GgmlThreadpool) -> Plan;
    fn ggml_graph_compute(graph: *mut GgmlGraph, plan: *mut Plan) -> c_int;
    fn ggml_threadpool_params_init(parameters: *mut ThreadpoolParameters, threads: c_int);
    fn ggml_threadpool_new(parameters: *mut ThreadpoolParameters) -> *mut GgmlThreadpool;
    fn ggml_threadpool_free(pool: *mut GgmlThreadpool);
    fn ggml_threadpool_pause(pool: *mut GgmlThreadpool);
    fn ggml_threadpool_resume(pool: *mut GgmlThreadpool);
}
