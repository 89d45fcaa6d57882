//! A decoder's forward pass straight from a GGUF: packed weights on our kernels, everything else in f32.
//!
//! ```text
//! x = embedding[token]
//! for each layer:   q, k, v = linears(norm(x));  turn q and k by their positions;  x += o(attention(q, k, v))
//!                   gate, up = linears(norm(x));                                   x += down(silu(gate) * up)
//! logits = head(norm(x))
//! ```
//! What an architecture computes otherwise ([`Variant`](super::hyper::Variant)) stands where it comes in. Tokens go
//! through in batches, so that the weights are read once for up to 512 of them.

mod attention;
mod cache;
mod cells;
mod chunks;
mod math;
mod numbers;
mod pass;
mod products;
mod rotation;
mod softmax;
mod weights;

use std::time::{Duration, Instant};

use formats::gguf::File;
use rayon::prelude::*;

pub use self::cache::Cache;
pub use self::cells::{CacheType, CacheTypes};
pub use self::pass::Pass;
pub use self::weights::{Ends, Layer, Linear, Source, Tensor, Tensors};
use super::hyper::Hyper;
use super::{Engine, EngineError, EngineName, Generate, check_tokens};
use crate::kernels::{self, ActivationScales, KernelName};

/// Most tokens that go through the layers together.
const BATCH: usize = 512;

/// How the engine computes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How many tokens the context holds.
    pub context: usize,
    /// Threads to compute with; 0 means one for each core.
    pub threads: usize,
    /// Instructions and rounding of activations.
    pub kernels: kernels::Options,
    /// What keys and values are kept in.
    pub cache: CacheTypes,
}

impl Settings {
    /// The best instructions that the CPU has, and activations rounded as llama.cpp rounds them.
    pub fn new(context: usize, threads: usize) -> Self {
        Settings {
            context,
            threads,
            kernels: kernels::Options::default(),
            cache: CacheTypes::default(),
        }
    }

    /// The same, with these instructions for matrix products.
    #[must_use]
    pub fn with_isa(mut self, isa: kernels::Isa) -> Self {
        self.kernels.isa = isa;
        self
    }

    /// The same, with activations rounded in this way.
    #[must_use]
    pub fn with_activations(mut self, activations: ActivationScales) -> Self {
        self.kernels.activations = activations;
        self
    }

    /// The same, with keys and values kept in these types.
    #[must_use]
    pub fn with_cache(self, cache: CacheTypes) -> Self {
        Settings { cache, ..self }
    }
}

/// The engine. It borrows the file for the embedding, of which it reads single rows.
pub struct Native<'file> {
    ends: Ends<'file>,
    layers: Vec<Layer>,
    pass: Pass,
    settings: Settings,
    load_time: Duration,
}

impl<'file> Native<'file> {
    /// Pack the weights of `file` for the kernels.
    ///
    /// # Errors
    /// Those of [`Hyper::read`]; a matrix of a type that no kernel multiplies; heads that a type of the cache does not
    /// divide; no memory.
    pub fn load(file: &File<'file>, settings: Settings) -> Result<Self, EngineError> {
        let start = Instant::now();
        let hyper = Hyper::read(file)?;
        settings.cache.check(hyper.dims.head_dim)?;
        let tensors = Tensors::new(file, settings.kernels);
        // Together, so that no thread waits at the end of each small matrix.
        let (layers, ends) = rayon::join(
            || -> Vec<_> {
                let layers = (0..hyper.dims.layers).into_par_iter();
                let load = |index| Layer::load(&tensors, index);
                layers.map(load).collect()
            },
            || Ends::load(&tensors, &hyper),
        );
        let cache = Cache::new(settings.cache, &hyper.dims, hyper.dims.layers, settings.context)?;
        Ok(Native {
            ends: ends?,
            layers: layers.into_iter().collect::<Result<_, _>>()?,
            pass: Pass::new(hyper, cache, settings.kernels.isa, settings.threads),
            settings,
            load_time: start.elapsed(),
        })
    }

    /// How long it took to pack the weights.
    pub fn load_time(&self) -> Duration {
        self.load_time
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pass.threads.count()
    }

    /// Bytes of weights that one decoded token reads: all linears and the head.
    pub fn packed_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears);
        linears.map(|linear| linear.matrix.packed_bytes()).sum::<usize>() + self.ends.head.packed_bytes()
    }

    /// Bytes of keys and values, for the whole context.
    pub fn cache_bytes(&self) -> usize {
        self.pass.cache.bytes()
    }

    /// The kernels of the linears, for reports.
    pub fn layouts(&self) -> Vec<KernelName> {
        let mut layouts = vec![];
        for linear in self.layers.iter().flat_map(Layer::linears) {
            let layout = linear.matrix.kernel();
            if !layouts.contains(&layout) {
                layouts.push(layout);
            }
        }
        layouts
    }

    /// Run up to `BATCH` tokens through all layers; the states of the last `wanted` of them are then ready for the head.
    fn run_layers(&mut self, tokens: &[u32], wanted: usize) {
        let Native { ends, layers, pass, .. } = self;
        pass.start(ends, tokens);
        let mut any = true;
        for (index, layer) in layers.iter().enumerate() {
            pass.attention(index, layer);
            if index + 1 == layers.len() {
                // Behind its attention nothing sees a token but the token itself.
                any = pass.keep(wanted);
            }
            if any {
                pass.feed_forward(layer);
            }
        }
        pass.used += tokens.len();
    }
}

impl Engine for Native<'_> {
    fn name(&self) -> EngineName {
        let layouts = self.layouts();
        EngineName {
            short: "native",
            kernel: Some(
                layouts
                    .iter()
                    .map(KernelName::to_string)
                    .collect::<Vec<_>>()
                    .join(" and "),
            ),
            layouts,
            threads: Some(self.threads()),
            cache_type_k: Some(self.settings.cache.keys.name()),
            cache_type_v: Some(self.settings.cache.values.name()),
            ..EngineName::default()
        }
    }

    fn vocab(&self) -> usize {
        self.pass.hyper.dims.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reset();
        check_tokens(tokens, self.pass.hyper.dims.vocab, 0, self.settings.context)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.pass.hyper.dims.vocab);
        for batch in tokens.chunks(BATCH) {
            self.run_layers(batch, batch.len());
            logits.extend(self.pass.head(&self.ends));
        }
        self.reset();
        Ok(logits)
    }
}

impl Generate for Native<'_> {
    fn context(&self) -> usize {
        self.settings.context
    }

    fn reset(&mut self) {
        self.pass.used = 0;
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        check_tokens(
            tokens,
            self.pass.hyper.dims.vocab,
            self.pass.used,
            self.settings.context,
        )?;
        let last = (tokens.len() - 1) / BATCH;
        for (index, batch) in tokens.chunks(BATCH).enumerate() {
            self.run_layers(batch, usize::from(index == last));
        }
        Ok(self.pass.head(&self.ends))
    }
}
