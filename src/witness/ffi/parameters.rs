//! The parameters of llama.cpp for models and contexts, which builds of llama.cpp lay out differently.
//!
//! They are passed by value, in memory: whoever passes more than the callee knows passes the same. So one block with room
//! for all of them stands for each, and what a build sets its fields to by default tells where they are in it.

use std::fmt;

/// llama_model_params or llama_context_params, and bytes that mean nothing.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Parameters([u64; WORDS]);

/// Of eight bytes: several times what any build of llama.cpp needs.
const WORDS: usize = 128;

/// A field: its name, its bytes, and what it is by default.
pub type Field = (&'static str, usize, u64);

const fn word(name: &'static str, default: u32) -> Field {
    (name, 4, default as u64)
}

const fn float(name: &'static str, default: f32) -> Field {
    (name, 4, default.to_bits() as u64)
}

/// A pointer or a size.
const fn wide(name: &'static str) -> Field {
    (name, 8, 0)
}

const fn flag(name: &'static str, default: bool) -> Field {
    (name, 1, default as u64)
}

/// -1: to be chosen by llama.cpp.
const CHOOSE: u32 = u32::MAX;
/// GGML_TYPE_F16
const F16: u32 = 1;
/// LLAMA_SPLIT_MODE_LAYER
const BY_LAYER: u32 = 1;

/// What all builds begin llama_model_params with.
pub const MODEL: [Field; 4] = [
    wide("devices"),
    wide("tensor_buft_overrides"),
    word("n_gpu_layers", CHOOSE),
    word("split_mode", BY_LAYER),
];

/// llama_context_params up to its last flag.
pub const CONTEXT: [Field; 34] = [
    word("n_ctx", 512),
    word("n_batch", 2048),
    word("n_ubatch", 512),
    word("n_seq_max", 1),
    word("n_rs_seq", 0),
    word("n_outputs_max", 0),
    word("n_outputs_max_per_seq", 1),
    word("n_threads", 4),
    word("n_threads_batch", 4),
    word("ctx_type", 0),
    word("rope_scaling_type", CHOOSE),
    word("pooling_type", CHOOSE),
    word("attention_type", CHOOSE),
    word("flash_attn_type", CHOOSE),
    float("rope_freq_base", 0.0),
    float("rope_freq_scale", 0.0),
    float("yarn_ext_factor", -1.0),
    float("yarn_attn_factor", -1.0),
    float("yarn_beta_fast", -1.0),
    float("yarn_beta_slow", -1.0),
    word("yarn_orig_ctx", 0),
    float("defrag_thold", -1.0),
    wide("cb_eval"),
    wide("cb_eval_user_data"),
    word("type_k", F16),
    word("type_v", F16),
    wide("moe_cache_size"),
    wide("abort_callback"),
    wide("abort_callback_data"),
    flag("embeddings", false),
    flag("offload_kqv", true),
    flag("no_perf", true),
    flag("op_offload", true),
    flag("swa_full", true),
];

/// Which fields of [`CONTEXT`] are missing: none in builds from b11548 on, one in those from b10603 on.
pub const CONTEXT_LACKS: [&[&str]; 2] = [&[], &["moe_cache_size"]];

/// Where the fields of a parameter struct are.
#[derive(Clone, Debug)]
pub struct Layout(Vec<(Field, usize)>);

/// A default that is another than in any layout that is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Unknown {
    pub field: &'static str,
    pub found: u64,
    pub expected: u64,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { field, found, expected } = self;
        write!(f, "{found:#x} where {field} is, expected {expected:#x}")
    }
}

impl Layout {
    /// As C lays the fields out: each at a multiple of its size.
    pub fn new(fields: &[Field], lacks: &[&str]) -> Self {
        let mut end = 0usize;
        let fields = fields.iter().filter(|(name, ..)| !lacks.contains(name));
        let placed = fields.map(|field| {
            let start = end.next_multiple_of(field.1);
            end = start + field.1;
            (*field, start)
        });
        Self(placed.collect())
    }

    /// The layout of `defaults`, of those that lack these fields: the first one whose defaults are all there.
    ///
    /// # Errors
    /// None is. What is wrong with the one that fits longest.
    pub fn of(defaults: &Parameters, fields: &[Field], lacks: &[&[&str]]) -> Result<Self, Unknown> {
        let mut closest: Option<(usize, Unknown)> = None;
        for lacks in lacks {
            let layout = Self::new(fields, lacks);
            let wrong = layout
                .0
                .iter()
                .position(|&(field, at)| defaults.get(at, field.1) != field.2);
            let Some(wrong) = wrong else {
                return Ok(layout);
            };
            if closest.as_ref().is_none_or(|(most, _)| *most < wrong) {
                let ((field, size, expected), at) = layout.0[wrong];
                let found = defaults.get(at, size);
                closest = Some((wrong, Unknown { field, found, expected }));
            }
        }
        Err(closest.expect("a layout is known").1)
    }

    /// Where a field is.
    ///
    /// # Panics
    /// Where there is none of this name.
    pub fn place(&self, name: &str) -> usize {
        let found = self.0.iter().find(|((field, ..), _)| *field == name);
        found.unwrap_or_else(|| panic!("a field called {name}")).1
    }

    /// Set a field of four bytes.
    pub fn set(&self, parameters: &mut Parameters, name: &str, value: u32) {
        let at = self.place(name);
        parameters.bytes()[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// Set a pointer.
    pub fn point<T>(&self, parameters: &mut Parameters, name: &str, to: *const T) {
        let at = self.place(name);
        parameters.bytes()[at..at + 8].copy_from_slice(&(to as u64).to_ne_bytes());
    }
}

impl Parameters {
    fn bytes(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    /// The field of so many bytes at `start`.
    fn get(&self, start: usize, size: usize) -> u64 {
        let bytes: &[u8] = bytemuck::cast_slice(&self.0);
        let mut value = [0; 8];
        value[..size].copy_from_slice(&bytes[start..start + size]);
        u64::from_le_bytes(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What llama_context_default_params of a build leaves in a block that was full of 0xee.
    fn block(words: &[u32]) -> Parameters {
        let mut block = Parameters([0xeeee_eeee_eeee_eeee; WORDS]);
        for (to, word) in block.bytes().chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        block
    }

    const MINUS: u32 = 0xbf80_0000;
    /// Of b10603, b11227 and b11413 (llama-cpp-py-sync), and llama.cpp 0.5.0 (@node-llama-cpp/linux-x64 3.22.1).
    #[rustfmt::skip]
    const V0_5_0: [u32; 40] = [
        512, 2048, 512, 1, 0, 0, 1, 4, 4, 0, CHOOSE, CHOOSE, CHOOSE, CHOOSE, 0, 0, MINUS, MINUS, MINUS, MINUS, 0, MINUS,
        0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0x0101_0100, 0xeeee_0001, 0, 0, 0, 0, 0, 0,
    ];
    /// Of b11549 and b11739 (xllamacpp 2026.10.11549, llama-cpp-py-sync 0.11739).
    #[rustfmt::skip]
    const B11549: [u32; 42] = [
        512, 2048, 512, 1, 0, 0, 1, 4, 4, 0, CHOOSE, CHOOSE, CHOOSE, CHOOSE, 0, 0, MINUS, MINUS, MINUS, MINUS, 0, MINUS,
        0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0x0101_0100, 0xeeee_0001, 0, 0, 0, 0, 0, 0,
    ];

    #[test]
    fn builds_are_told_by_their_defaults() {
        let layout = |words: &[u32]| Layout::of(&block(words), &CONTEXT, &CONTEXT_LACKS);
        let place = |words: &[u32], name| layout(words).unwrap().place(name);
        assert_eq!(place(&V0_5_0, "embeddings"), 128);
        assert_eq!(place(&B11549, "embeddings"), 136);
        // Another field in front, one more at the end.
        let mut newer = B11549.to_vec();
        newer.insert(3, 7);
        let unknown = layout(&newer).unwrap_err();
        assert_eq!(unknown.to_string(), "0x7 where n_seq_max is, expected 0x1");
        let longer = [&B11549[..], &[1, 2, 3]].concat();
        assert_eq!(place(&longer, "type_v"), 108);
    }

    #[test]
    fn what_is_set_is_there() {
        let layout = Layout::new(&CONTEXT, &[]);
        let mut parameters = block(&B11549);
        layout.set(&mut parameters, "flash_attn_type", 0);
        layout.set(&mut parameters, "n_threads", 7);
        let changed = (0..42).filter(|i| parameters.get(4 * i, 4) != u64::from(B11549[*i]));
        assert_eq!(changed.collect::<Vec<_>>(), [7, 13]);
        layout.point(&mut parameters, "cb_eval", &layout);
        assert_eq!(parameters.get(88, 8), &raw const layout as u64);
    }

    /// The headers of the llama.cpp that is linked in, as bindgen reads them.
    #[cfg(feature = "llama")]
    #[test]
    fn fields_are_where_the_headers_have_them() {
        use llama_cpp_sys_2::{llama_context_params as Context, llama_model_params as Model};
        use std::mem::offset_of;

        let model = Layout::new(&MODEL, &[]);
        assert_eq!(model.place("devices"), offset_of!(Model, devices));
        assert_eq!(model.place("n_gpu_layers"), offset_of!(Model, n_gpu_layers));
        let lacks = if offset_of!(Context, embeddings) == 128 { 1 } else { 0 };
        let context = Layout::new(&CONTEXT, CONTEXT_LACKS[lacks]);
        for (name, place) in [
            ("n_ctx", offset_of!(Context, n_ctx)),
            ("n_batch", offset_of!(Context, n_batch)),
            ("n_threads", offset_of!(Context, n_threads)),
            ("n_threads_batch", offset_of!(Context, n_threads_batch)),
            ("flash_attn_type", offset_of!(Context, flash_attn_type)),
            ("type_k", offset_of!(Context, type_k)),
            ("type_v", offset_of!(Context, type_v)),
            ("swa_full", offset_of!(Context, swa_full)),
        ] {
            assert_eq!(context.place(name), place, "{name}");
        }
        assert!(size_of::<Context>() * 4 < size_of::<Parameters>());
    }
}
