//! The steps of a forward pass, whatever holds the weights: states in the order of the model, positions, the cache.

use super::attention::Attention;
use super::cache::Cache;
use super::chunks::for_each_row;
use super::math;
use super::rotation::Rotation;
use super::weights::{Ends, Layer, Linear};
use crate::engine::hyper::{Hyper, QkNorm};
use crate::kernels::memory::LineVec;
use crate::kernels::{self, Activations, Grouping, Matrix, Threads};
use crate::simd::Level;

/// What computes a forward pass, one step after another.
pub struct Pass {
    pub(super) hyper: Hyper,
    pub(super) threads: Threads,
    level: Level,
    rotation: Rotation,
    attention: Attention,
    pub(super) cache: Cache,
    /// Positions in the cache.
    pub(super) used: usize,
    buffers: Buffers,
}

/// What lives during one batch, (tokens, width) each; kept so that decoding allocates nothing large.
struct Buffers {
    activations: Activations,
    x: Vec<f32>,
    normed: LineVec<f32>,
    q: LineVec<f32>,
    k: LineVec<f32>,
    v: LineVec<f32>,
    /// What the heads have made of the values.
    mixed: LineVec<f32>,
    /// First the gate, then silu(gate) * up.
    gate: LineVec<f32>,
    up: LineVec<f32>,
    out: LineVec<f32>,
}

impl Pass {
    /// A pass through models of this shape, with a cache for them.
    pub fn new(hyper: Hyper, cache: Cache, isa: kernels::Isa, threads: usize) -> Self {
        let level = Level::widest();
        Self {
            rotation: Rotation::new(&hyper),
            cache,
            used: 0,
            buffers: Buffers::new(isa),
            threads: Threads::new(threads),
            level,
            attention: Attention::new(level, isa),
            hyper,
        }
    }

    /// The shape of the model.
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }

    /// The states of `tokens` before the first layer: (tokens, hidden).
    pub fn embed(&mut self, ends: &Ends, tokens: &[u32]) -> Vec<f32> {
        self.start(ends, tokens);
        std::mem::take(&mut self.buffers.x)
    }

    /// Run a layer on `x`, the states of the first tokens of a text: (tokens, hidden), no more than the cache has room
    /// for. The cache is empty before and after.
    pub fn layer(&mut self, layer: &Layer, x: &mut Vec<f32>) {
        std::mem::swap(&mut self.buffers.x, x);
        self.used = 0;
        self.rotation.prepare(0, self.buffers.x.len() / self.hyper.dims.hidden);
        self.attention(0, layer);
        self.feed_forward(layer);
        std::mem::swap(&mut self.buffers.x, x);
    }

    /// Logits (tokens, vocab) of the states `x` behind the last layer: (tokens, hidden).
    pub fn logits(&mut self, ends: &Ends, x: &[f32]) -> Vec<f32> {
        self.buffers.x.clear();
        self.buffers.x.extend_from_slice(x);
        self.head(ends)
    }

    /// As [`logits`](Self::logits), but a head of halves multiplies activations that are not rounded.
    pub fn exact_logits(&mut self, ends: &Ends, x: &[f32]) -> Vec<f32> {
        self.buffers.x.clear();
        self.buffers.x.extend_from_slice(x);
        self.head_with(ends, ends.head.grouping().exact())
    }

    /// Look up `tokens`, which follow those in the cache.
    pub(super) fn start(&mut self, ends: &Ends, tokens: &[u32]) {
        let (x, hidden) = (&mut self.buffers.x, self.hyper.dims.hidden);
        x.resize(tokens.len() * hidden, 0.0);
        for (x, &token) in x.chunks_exact_mut(hidden).zip(tokens) {
            ends.embedding.read(token, x);
            math::scale(x, self.hyper.variant.embedding_scale as f32);
        }
        self.rotation.prepare(self.used, tokens.len());
    }

    /// Go on with the last `wanted` tokens alone; whether there are any.
    pub(super) fn keep(&mut self, wanted: usize) -> bool {
        let x = &mut self.buffers.x;
        x.drain(..x.len() - wanted * self.hyper.dims.hidden);
        wanted > 0
    }

    /// `x += o(attention(norm(x)))`
    /// `index`: of the layer, in the cache.
    pub(super) fn attention(&mut self, index: usize, layer: &Layer) {
        self.project(layer);
        self.cache
            .store(index, self.used, &self.buffers.k, &self.buffers.v, &self.threads);
        self.mix(index, layer);
    }

    /// `q, k, v = linears(norm(x))`, q and k at their positions.
    fn project(&mut self, layer: &Layer) {
        let Pass {
            hyper,
            threads,
            level,
            buffers: b,
            rotation,
            ..
        } = self;
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
    fn mix(&mut self, index: usize, layer: &Layer) {
        let Pass {
            hyper,
            threads,
            level,
            attention,
            buffers: b,
            ..
        } = self;
        let width = hyper.dims.q_width();
        b.mixed.resize(b.q.len(), 0.0);
        attention.attend(&self.cache, threads, (index, self.used), &b.q, width, &mut b.mixed);
        if let Some(weight) = &layer.attention_sub_norm {
            let epsilon = hyper.norm_epsilon as f32;
            let norm = |_, mixed: &mut [f32]| math::rms_norm_pieces(*level, mixed, weight, epsilon);
            for_each_row(threads, &mut b.mixed, width, norm);
        }
        multiply(&mut b.activations, &b.mixed, [(&layer.o.matrix, &mut b.out)], threads);
        b.add_out(layer.o.bias.as_deref(), hyper, threads);
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    pub(super) fn feed_forward(&mut self, layer: &Layer) {
        let Pass {
            hyper,
            threads,
            level,
            buffers: b,
            ..
        } = self;
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
    pub(super) fn head(&mut self, ends: &Ends) -> Vec<f32> {
        self.head_with(ends, ends.head.grouping())
    }

    fn head_with(&mut self, ends: &Ends, grouping: Grouping) -> Vec<f32> {
        let Pass {
            hyper,
            threads,
            level,
            buffers: b,
            ..
        } = self;
        b.norm(*level, &ends.norm, hyper.norm_epsilon as f32, threads);
        b.activations
            .quantize(&b.normed, ends.head.columns(), grouping, threads);
        let mut logits = vec![0.0; b.activations.tokens() * ends.head.rows()];
        ends.head.multiply(&b.activations, &mut logits, threads);
        math::scale(&mut logits, hyper.variant.logit_scale as f32);
        logits
    }
}

impl Buffers {
    fn new(isa: kernels::Isa) -> Self {
        Buffers {
            activations: Activations::new(isa),
            x: Vec::new(),
            normed: LineVec::new(0),
            q: LineVec::new(0),
            k: LineVec::new(0),
            v: LineVec::new(0),
            mixed: LineVec::new(0),
            gate: LineVec::new(0),
            up: LineVec::new(0),
            out: LineVec::new(0),
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
    products: [(&Matrix, &mut LineVec<f32>); N],
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
