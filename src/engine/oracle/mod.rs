//! The oracle: a decoder's forward pass as the formulas have it, in f64, one plain loop each. It shares nothing with the
//! packer, the block codecs, the kernels or GGUF: weights come as dense f32 rows in Hugging Face's order, and are asked for
//! a few rows at a time, each once for all texts together.

mod product;
#[cfg(test)]
mod tests;
mod weights;

use std::ops::Range;

use rayon::prelude::*;

pub use product::Precision;
pub use weights::{AttentionRounding, Rounding, Rows, Weights};

use self::product::product;
pub use crate::blueprint::{Norm, Part};

use super::hyper::{Dims, Hyper, Pairing, QkNorm};
use super::{Engine, EngineError, EngineName, check_tokens};

/// The forward pass over such weights.
pub struct Oracle<'a, W: ?Sized> {
    /// The weights.
    pub weights: &'a W,
    /// In what products are computed.
    pub precision: Precision,
}

/// A text, run from an empty context.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Whether the activations of each matrix are rounded as engines round them ([`Rows::rounding`]), keys and values as
    /// they keep them ([`Weights::round_head`]), and what is multiplied with these ([`Weights::attention_rounding`]).
    pub rounded: bool,
}

impl<W: Weights + ?Sized> Oracle<'_, W> {
    /// What the last norm makes of every token: (tokens, hidden), sequence behind sequence. `progress` is told the number
    /// of each layer when it is done.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, or those of the weights.
    pub fn states(&self, sequences: &[Sequence], progress: &dyn Fn(usize)) -> Result<Vec<f64>, EngineError> {
        let hyper = self.weights.hyper();
        for sequence in sequences {
            check_tokens(sequence.tokens, hyper.dims.vocab, 0, usize::MAX)?;
        }
        let pass = Pass {
            oracle: self,
            hyper,
            frequencies: frequencies(hyper),
            sequences,
        };
        let mut x = pass.embed()?;
        for layer in 0..hyper.dims.layers {
            let mixed = pass.attention(layer, &x)?;
            add(&mut x, &mixed, hyper.variant.residual_scale);
            let fed = pass.feed_forward(layer, &x)?;
            add(&mut x, &fed, hyper.variant.residual_scale);
            progress(layer);
        }
        pass.norm(Norm::Last, &x)
    }

    /// Logits (tokens, vocab) of some [`Oracle::states`], and behind them those of others that are rounded for the head, too.
    ///
    /// # Errors
    /// Those of the weights.
    pub fn logits_of(&self, exact: &[f64], rounded: &[f64]) -> Result<Vec<f32>, EngineError> {
        let head = self.weights.head()?;
        let mut states = [exact, rounded].concat();
        let rounded = &mut states[exact.len()..];
        round_rows(head.rounding(), rounded, head.shape().1);
        let mut logits: Vec<f32> = product(&*head, &states, self.precision)?;
        let scale = self.weights.hyper().variant.logit_scale;
        logits
            .iter_mut()
            .for_each(|logit| *logit = (f64::from(*logit) * scale) as f32);
        Ok(logits)
    }
}

impl<W: Weights + ?Sized> Engine for Oracle<'_, W> {
    fn name(&self) -> EngineName {
        EngineName::of_precision("oracle", "f64")
    }

    fn vocab(&self) -> usize {
        self.weights.hyper().dims.vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let sequence = Sequence { tokens, rounded: false };
        let states = self.states(&[sequence], &|_| {})?;
        self.logits_of(&states, &[])
    }
}

/// One run of some sequences.
struct Pass<'a, W: ?Sized> {
    oracle: &'a Oracle<'a, W>,
    hyper: &'a Hyper,
    /// Radians a position for each dimension pair.
    frequencies: Vec<f64>,
    sequences: &'a [Sequence<'a>],
}

impl<W: Weights + ?Sized> Pass<'_, W> {
    /// `x_t = embedding_scale * embedding[token_t]`: (tokens, hidden).
    fn embed(&self) -> Result<Vec<f64>, EngineError> {
        let embedding = self.oracle.weights.embedding()?;
        let (mut row, mut x) = (vec![0.0; self.hyper.dims.hidden], vec![]);
        for &token in self.sequences.iter().flat_map(|sequence| sequence.tokens) {
            let token = token as usize;
            embedding.read(token..token + 1, &mut row, &mut [0.0])?;
            x.extend(row.iter().map(|&w| self.hyper.variant.embedding_scale * f64::from(w)));
        }
        Ok(x)
    }

    /// `o(softmax(q k^T / sqrt(head_dim)) v)` of the normed `x`, causal. (tokens, hidden) to (tokens, hidden).
    fn attention(&self, layer: usize, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let x = self.norm(Norm::Attention(layer), x)?;
        let mut q = self.linear(layer, Part::Q, &x)?;
        let mut k = self.linear(layer, Part::K, &x)?;
        let mut v = self.linear(layer, Part::V, &x)?;
        if self.hyper.variant.qk_norm == QkNorm::BeforeRope {
            q = self.norm(Norm::Query(layer), &q)?;
            k = self.norm(Norm::Key(layer), &k)?;
        }
        for tokens in self.ranges() {
            let (q_width, kv_width) = (self.hyper.dims.q_width(), self.hyper.dims.kv_width());
            rotate(&mut q[of(&tokens, q_width)], q_width, self.hyper, &self.frequencies);
            rotate(&mut k[of(&tokens, kv_width)], kv_width, self.hyper, &self.frequencies);
        }
        if self.hyper.variant.qk_norm == QkNorm::AfterRope {
            q = self.norm(Norm::Query(layer), &q)?;
            k = self.norm(Norm::Key(layer), &k)?;
        }
        self.round_heads(&mut k, &mut v);
        let mut mixed = vec![0.0; q.len()]; // (tokens, heads, head_dim)
        for (sequence, tokens) in self.sequences.iter().zip(self.ranges()) {
            let (of_q, of_kv) = (
                of(&tokens, self.hyper.dims.q_width()),
                of(&tokens, self.hyper.dims.kv_width()),
            );
            let rounding = match sequence.rounded {
                true => self.oracle.weights.attention_rounding(),
                false => AttentionRounding::default(),
            };
            attend(
                self.hyper,
                rounding,
                &q[of_q.clone()],
                &k[of_kv.clone()],
                &v[of_kv],
                &mut mixed[of_q],
            );
        }
        if self.hyper.variant.sub_norms {
            mixed = self.norm(Norm::AttentionSub(layer), &mixed)?;
        }
        self.linear(layer, Part::O, &mixed)
    }

    /// Round keys and values of the sequences that are rounded. `k`, `v`: (tokens, kv_heads, head_dim).
    fn round_heads(&self, k: &mut [f64], v: &mut [f64]) {
        let dims = &self.hyper.dims;
        for (sequence, tokens) in self.sequences.iter().zip(self.ranges()) {
            if sequence.rounded {
                let [k, v] = [&mut *k, &mut *v].map(|x| &mut x[of(&tokens, dims.kv_width())]);
                let heads = k
                    .par_chunks_exact_mut(dims.head_dim)
                    .zip(v.par_chunks_exact_mut(dims.head_dim));
                heads.for_each(|(k, v)| self.oracle.weights.round_head(k, v));
            }
        }
    }

    /// `down(silu(gate(x)) * up(x))` of the normed `x`. (tokens, hidden) to (tokens, hidden).
    fn feed_forward(&self, layer: usize, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let x = self.norm(Norm::FeedForward(layer), x)?;
        let mut gated = self.linear(layer, Part::Gate, &x)?;
        let up = self.linear(layer, Part::Up, &x)?;
        gated
            .par_iter_mut()
            .zip(up)
            .for_each(|(gate, up)| *gate = silu(*gate) * up);
        if self.hyper.variant.sub_norms {
            gated = self.norm(Norm::FeedForwardSub(layer), &gated)?;
        }
        self.linear(layer, Part::Down, &gated)
    }

    /// Each piece of `x` that is as long as the norm.
    fn norm(&self, norm: Norm, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let weight = self.oracle.weights.norm(norm)?;
        Ok(rms_norm(x, &weight, self.hyper.norm_epsilon))
    }

    /// The places of each sequence's tokens among all.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.sequences.iter().scan(0, |end, sequence| {
            let start = *end;
            *end += sequence.tokens.len();
            Some(start..*end)
        })
    }

    /// (tokens, columns) to (tokens, rows).
    fn linear(&self, layer: usize, part: Part, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let matrix = self.oracle.weights.linear(layer, part)?;
        let columns = matrix.shape().1;
        let mut x = x.to_vec();
        for (sequence, tokens) in self.sequences.iter().zip(self.ranges()) {
            if sequence.rounded {
                round_rows(matrix.rounding(), &mut x[of(&tokens, columns)], columns);
            }
        }
        product(&*matrix, &x, self.oracle.precision)
    }
}

/// The numbers of some tokens, `width` of each.
fn of(tokens: &Range<usize>, width: usize) -> Range<usize> {
    tokens.start * width..tokens.end * width
}

/// Radians a position for each pair of dimensions: (head_dim / 2,).
fn frequencies(hyper: &Hyper) -> Vec<f64> {
    let rope = &hyper.rope;
    let plain = |pair: usize| rope.base.powf(-2.0 * pair as f64 / hyper.dims.head_dim as f64);
    let factor = |pair: usize| rope.factors.as_ref().map_or(1.0, |factors| factors[pair]);
    let pairs = 0..hyper.dims.head_dim / 2;
    pairs.map(|pair| plain(pair) / rope.divisor / factor(pair)).collect()
}

/// Round each row of `x` (tokens, columns).
fn round_rows(rounding: Rounding, x: &mut [f64], columns: usize) {
    x.par_chunks_exact_mut(columns).for_each(|x| rounding.apply(x));
}

/// `mixed = softmax(q k^T / sqrt(head_dim)) v`, causal, by powers of two: `e^x = 2^(x log2 e)`. `q`, `mixed`: (tokens,
/// heads, head_dim); `k`, `v`: (tokens, kv_heads, head_dim).
fn attend(hyper: &Hyper, rounding: AttentionRounding, q: &[f64], k: &[f64], v: &[f64], mixed: &mut [f64]) {
    let Dims {
        heads,
        kv_heads,
        head_dim,
        ..
    } = hyper.dims;
    let scale = std::f64::consts::LOG2_E / (head_dim as f64).sqrt();
    mixed
        .par_chunks_mut(heads * head_dim)
        .enumerate()
        .for_each(|(token, mixed)| {
            for (head, mixed) in mixed.chunks_mut(head_dim).enumerate() {
                let kv_head = head / (heads / kv_heads);
                let q = &q[(token * heads + head) * head_dim..][..head_dim];
                let mut q: Vec<f64> = q.iter().map(|q| q * scale).collect();
                rounding.queries.apply(&mut q);
                let start = |past: usize| (past * kv_heads + kv_head) * head_dim;
                let mut weights: Vec<f64> = (0..=token).map(|past| dot(&q, &k[start(past)..][..head_dim])).collect();
                softmax(&mut weights, rounding.weights);
                for (past, weight) in weights.into_iter().enumerate() {
                    for (mixed, v) in mixed.iter_mut().zip(&v[start(past)..][..head_dim]) {
                        *mixed += weight * v;
                    }
                }
            }
        });
}

/// Turn the pairs of every head by `position * frequency_i`. `x`: (tokens, width), the heads of a token side by side.
fn rotate(x: &mut [f64], width: usize, hyper: &Hyper, frequencies: &[f64]) {
    x.par_chunks_mut(width).enumerate().for_each(|(position, x)| {
        let angles = frequencies.iter().map(|frequency| position as f64 * frequency);
        let turns: Vec<_> = angles.map(f64::sin_cos).collect();
        for head in x.chunks_mut(hyper.dims.head_dim) {
            for (pair, (sin, cos)) in turns.iter().enumerate() {
                let (i, j) = match hyper.rope.pairing {
                    Pairing::Interleaved => (2 * pair, 2 * pair + 1),
                    Pairing::Halves => (pair, pair + hyper.dims.head_dim / 2),
                };
                (head[i], head[j]) = (head[i] * cos - head[j] * sin, head[j] * cos + head[i] * sin);
            }
        }
    });
}

/// `x / sqrt(mean x^2 + epsilon) * weight` of each piece of `x`. `x`: (pieces, width), `weight`: (width,).
fn rms_norm(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean_square + epsilon).sqrt();
        y.extend(x.iter().zip(weight).map(|(x, &w)| x * factor * f64::from(w)));
    }
    y
}

/// `2^x_i / sum_j 2^x_j`, shifted by a whole number so that nothing overflows and the largest is between 1/2 and 1: so they
/// are rounded.
fn softmax(x: &mut [f64], rounding: Rounding) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max).ceil();
    for x in &mut *x {
        *x = (*x - max).exp2();
    }
    rounding.apply(x);
    let sum: f64 = x.iter().sum();
    for x in x {
        *x /= sum;
    }
}

/// `x * sigmoid(x)`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x += scale * y`.
fn add(x: &mut [f64], y: &[f64], scale: f64) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += scale * y;
    }
}

/// `sum_i a_i b_i`. Several sums side by side let the compiler use vectors.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
