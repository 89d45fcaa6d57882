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
mod chunks;
mod math;
mod weights;

use std::time::{Duration, Instant};

use formats::gguf::File;
use rayon::prelude::*;

use self::attention::{Cache, Rotation};
use self::chunks::for_each_row;
use self::weights::{Embedding, Layer, Linear, Tensors};
use super::hyper::{Hyper, QkNorm};
use super::{Engine, EngineError, EngineName, Generate, check_tokens, threads_text};
use crate::blueprint::Norm;
use crate::kernels::{self, ActivationScales, Activations, Grouping, Matrix, Threads};
use crate::simd::Level;

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
}

impl Settings {
    /// The best instructions that the CPU has, and activations rounded as llama.cpp rounds them.
    pub fn new(context: usize, threads: usize) -> Self {
        Settings {
            context,
            threads,
            kernels: kernels::Options::default(),
        }
    }

    /// The same, with activations rounded in this way.
    #[must_use]
    pub fn with_activations(mut self, activations: ActivationScales) -> Self {
        self.kernels.activations = activations;
        self
    }
}

/// The engine. It borrows the file for the embedding, of which it reads single rows.
pub struct Native<'file> {
    hyper: Hyper,
    settings: Settings,
    threads: Threads,
    level: Level,
    embedding: Embedding<'file>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
    rotation: Rotation,
    cache: Cache,
    /// Positions in the cache.
    used: usize,
    buffers: Buffers,
    load_time: Duration,
}

/// What lives during one batch, (tokens, width) each; kept so that decoding allocates nothing large.
struct Buffers {
    activations: Activations,
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// What the heads have made of the values.
    mixed: Vec<f32>,
    /// First the gate, then silu(gate) * up.
    gate: Vec<f32>,
    up: Vec<f32>,
    out: Vec<f32>,
}

impl<'file> Native<'file> {
    /// Pack the weights of `file` for the kernels.
    ///
    /// # Errors
    /// Those of [`Hyper::read`]; a matrix of a type that no kernel multiplies; no memory.
    pub fn load(file: &File<'file>, settings: Settings) -> Result<Self, EngineError> {
        let start = Instant::now();
        let hyper = Hyper::read(file)?;
        let tensors = Tensors {
            file,
            options: settings.kernels,
        };
        let embedding = Embedding::load(&tensors, &hyper)?;
        let head = if file.tensor("output.weight").is_some() {
            "output.weight"
        } else {
            "token_embd.weight"
        };
        // Together, so that no thread waits at the end of each small matrix.
        let (layers, head) = rayon::join(
            || -> Vec<_> {
                let layers = (0..hyper.dims.layers).into_par_iter();
                let load = |index| Layer::load(&tensors, index);
                layers.map(load).collect()
            },
            || tensors.matrix(head),
        );
        let layers = layers.into_iter().collect::<Result<_, _>>()?;
        Ok(Native {
            embedding,
            layers,
            norm: tensors.norm(Norm::Last)?,
            head: head?,
            rotation: Rotation::new(&hyper),
            cache: Cache::new(&hyper, settings.context),
            used: 0,
            buffers: Buffers::new(settings.kernels.isa),
            threads: Threads::new(settings.threads),
            level: Level::widest(),
            hyper,
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
        self.threads.count()
    }

    /// Bytes of weights that one decoded token reads: all linears and the head.
    pub fn packed_bytes(&self) -> usize {
        let linears = self.layers.iter().flat_map(Layer::linears);
        linears.map(|linear| linear.matrix.packed_bytes()).sum::<usize>() + self.head.packed_bytes()
    }

    /// The kernel of the linears, for reports; all that occur, where layers differ.
    pub fn kernel_name(&self) -> String {
        let mut names = Vec::new();
        for linear in self.layers.iter().flat_map(Layer::linears) {
            let name = linear.matrix.kernel_name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(" and ")
    }

    /// Run up to `BATCH` tokens through all layers; `buffers.x` is then (wanted, hidden) of the last `wanted` of them,
    /// before the last norm.
    fn run_layers(&mut self, tokens: &[u32], wanted: usize) {
        let Buffers { x, .. } = &mut self.buffers;
        x.resize(tokens.len() * self.hyper.dims.hidden, 0.0);
        for (x, &token) in x.chunks_exact_mut(self.hyper.dims.hidden).zip(tokens) {
            self.embedding.read(token, x);
            math::scale(x, self.hyper.variant.embedding_scale as f32);
        }
        self.rotation.prepare(self.used, tokens.len());
        for index in 0..self.layers.len() {
            self.attention(index);
            if index + 1 == self.layers.len() {
                // Behind its attention nothing sees a token but the token itself.
                let unwanted = (tokens.len() - wanted) * self.hyper.dims.hidden;
                self.buffers.x.drain(..unwanted);
            }
            if !self.buffers.x.is_empty() {
                self.feed_forward(index);
            }
        }
        self.used += tokens.len();
    }

    /// `x += o(attention(norm(x)))`
    fn attention(&mut self, index: usize) {
        self.project(index);
        self.cache
            .store(index, self.used, &self.buffers.k, &self.buffers.v, &self.threads);
        self.mix(index);
    }

    /// `q, k, v = linears(norm(x))`, q and k at their positions.
    fn project(&mut self, index: usize) {
        let Native {
            hyper,
            layers,
            threads,
            level,
            buffers: b,
            rotation,
            ..
        } = self;
        let layer = &layers[index];
        let epsilon = hyper.norm_epsilon as f32;
        b.norm(*level, &layer.attention_norm, epsilon, threads);
        multiply(
            &mut b.activations,
            &b.normed,
            [
                (&layer.q.matrix, &mut b.q),
                (&layer.k.matrix, &mut b.k),
                (&layer.v.matrix, &mut b.v),
            ],
            threads,
        );
        let place = |token: usize, x: &mut [f32], linear: &Linear, norm: &Option<Vec<f32>>| {
            linear.add_bias(x);
            let norm = |at: QkNorm, x: &mut [f32]| match norm {
                Some(weight) if hyper.variant.qk_norm == at => math::rms_norm_pieces(*level, x, weight, epsilon),
                _ => {}
            };
            norm(QkNorm::BeforeRope, x);
            rotation.apply(*level, token, x);
            norm(QkNorm::AfterRope, x);
        };
        let (q, k) = ((&layer.q, &layer.q_norm), (&layer.k, &layer.k_norm));
        for_each_row(threads, &mut b.q, hyper.dims.q_width(), |token, x| {
            place(token, x, q.0, q.1)
        });
        for_each_row(threads, &mut b.k, hyper.dims.kv_width(), |token, x| {
            place(token, x, k.0, k.1)
        });
        for_each_row(threads, &mut b.v, hyper.dims.kv_width(), |_, v| layer.v.add_bias(v));
    }

    /// `x += o(softmax(q k^T / sqrt(head_dim)) v)` over the cache.
    fn mix(&mut self, index: usize) {
        let Native {
            hyper,
            layers,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        let (layer, width) = (&layers[index], hyper.dims.q_width());
        b.mixed.resize(b.q.len(), 0.0);
        let at = (index, self.used);
        self.cache.attend(*level, at, &b.q, width, &mut b.mixed, threads);
        if let Some(weight) = &layer.attention_sub_norm {
            let epsilon = hyper.norm_epsilon as f32;
            let norm = |_, mixed: &mut [f32]| math::rms_norm_pieces(*level, mixed, weight, epsilon);
            for_each_row(threads, &mut b.mixed, width, norm);
        }
        multiply(&mut b.activations, &b.mixed, [(&layer.o.matrix, &mut b.out)], threads);
        b.add_out(layer.o.bias.as_deref(), hyper, threads);
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn feed_forward(&mut self, index: usize) {
        let Native {
            hyper,
            layers,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        let layer = &layers[index];
        let epsilon = hyper.norm_epsilon as f32;
        b.norm(*level, &layer.ffn_norm, epsilon, threads);
        multiply(
            &mut b.activations,
            &b.normed,
            [(&layer.gate.matrix, &mut b.gate), (&layer.up.matrix, &mut b.up)],
            threads,
        );
        let up = &b.up;
        for_each_row(threads, &mut b.gate, hyper.dims.intermediate, |token, gate| {
            layer.gate.add_bias(gate);
            let up = &up[token * hyper.dims.intermediate..][..hyper.dims.intermediate];
            math::swiglu(*level, gate, up, layer.up.bias.as_deref());
            if let Some(weight) = &layer.ffn_sub_norm {
                math::rms_norm_pieces(*level, gate, weight, epsilon);
            }
        });
        multiply(&mut b.activations, &b.gate, [(&layer.down.matrix, &mut b.out)], threads);
        b.add_out(layer.down.bias.as_deref(), hyper, threads);
    }

    /// Logits (wanted, vocab) of the tokens in `buffers.x`.
    fn head(&mut self) -> Vec<f32> {
        let Native {
            hyper,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        b.norm(*level, &self.norm, hyper.norm_epsilon as f32, threads);
        let mut logits = Vec::new();
        multiply(&mut b.activations, &b.normed, [(&self.head, &mut logits)], threads);
        math::scale(&mut logits, hyper.variant.logit_scale as f32);
        logits
    }
}

impl Engine for Native<'_> {
    fn name(&self) -> EngineName {
        let details = format!("{}, {}", self.kernel_name(), threads_text(self.threads()));
        EngineName::new("native", details)
    }

    fn vocab(&self) -> usize {
        self.hyper.dims.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.reset();
        check_tokens(tokens, self.hyper.dims.vocab, 0, self.settings.context)?;
        let mut logits = Vec::with_capacity(tokens.len() * self.hyper.dims.vocab);
        for batch in tokens.chunks(BATCH) {
            self.run_layers(batch, batch.len());
            logits.extend(self.head());
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
        self.used = 0;
    }

    fn feed(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        check_tokens(tokens, self.hyper.dims.vocab, self.used, self.settings.context)?;
        let last = (tokens.len() - 1) / BATCH;
        for (index, batch) in tokens.chunks(BATCH).enumerate() {
            self.run_layers(batch, usize::from(index == last));
        }
        Ok(self.head())
    }
}

impl Buffers {
    fn new(isa: kernels::Isa) -> Self {
        Buffers {
            activations: Activations::new(isa),
            x: Vec::new(),
            normed: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            mixed: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            out: Vec::new(),
        }
    }

    /// `normed = norm(x)`
    fn norm(&mut self, level: Level, weight: &[f32], epsilon: f32, threads: &Threads) {
        let hidden = weight.len();
        self.normed.resize(self.x.len(), 0.0);
        let x = &self.x;
        for_each_row(threads, &mut self.normed, hidden, |token, normed| {
            let x = &x[token * hidden..][..hidden];
            math::rms_norm(level, x, weight, epsilon, normed);
        });
    }

    /// `x += residual_scale * (out + bias)`
    fn add_out(&mut self, bias: Option<&[f32]>, hyper: &Hyper, threads: &Threads) {
        let (out, hidden) = (&self.out, hyper.dims.hidden);
        for_each_row(threads, &mut self.x, hidden, |token, x| {
            let out = &out[token * hidden..][..hidden];
            math::add_scaled(x, out, bias, hyper.variant.residual_scale as f32);
        });
    }
}

/// The products of several matrices with the same `x`, which is quantized once for all that round it the same way.
fn multiply<const N: usize>(
    activations: &mut Activations,
    x: &[f32],
    products: [(&Matrix, &mut Vec<f32>); N],
    threads: &Threads,
) {
    let mut quantized: Option<Grouping> = None;
    for (matrix, y) in products {
        if quantized != Some(matrix.grouping()) {
            activations.quantize(x, matrix.columns(), matrix.grouping(), threads);
            quantized = Some(matrix.grouping());
        }
        y.resize(activations.tokens() * matrix.rows(), 0.0);
        matrix.multiply(activations, y, threads);
    }
}
