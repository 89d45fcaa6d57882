//! The oracle: a Llama's forward pass as the formulas have it, in f64, one plain loop each. It shares nothing with the
//! packer, the block codecs, the kernels or GGUF: weights come as dense f32 matrices in Hugging Face's row order, and
//! are asked for layer by layer, so that memory holds one layer of them.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Engine, EngineError, check_tokens};

/// The shape of a Llama.
#[derive(Clone, Debug)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Length of the residual stream.
    pub hidden: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Length of one head; even.
    pub head_dim: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f64,
    /// Position encoding.
    pub rope: Rope,
}

/// Rotary position encoding: dimension pair `i` turns by `position * frequency_i`.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Base of the geometric series: `frequency_i = theta^(-2i / head_dim)` before scaling.
    pub theta: f64,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How Hugging Face stretches the frequencies (transformers, `modeling_rope_utils.py`).
#[derive(Clone, Debug)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3: wavelengths above `original_context / low_frequency_factor` are divided by `factor`, those below
    /// `original_context / high_frequency_factor` stay, and between them it goes over linearly.
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Sets the longer of the two wavelengths.
        low_frequency_factor: f64,
        /// Sets the shorter of the two wavelengths.
        high_frequency_factor: f64,
        /// The context length that the model was trained with first.
        original_context: f64,
    },
}

/// `y = W x + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// W: (rows, columns), row-major.
    pub weight: Vec<f32>,
    /// Length of `x`.
    pub columns: usize,
    /// b: (rows,). For a Tequila linear the offline bias is in it.
    pub bias: Option<Vec<f32>>,
}

/// One decoder layer. Rows are in Hugging Face's order: not permuted.
#[derive(Clone, Debug)]
pub struct Layer {
    /// (hidden,) norm before the attention.
    pub attention_norm: Vec<f32>,
    /// (heads * head_dim, hidden)
    pub q: Linear,
    /// (kv_heads * head_dim, hidden)
    pub k: Linear,
    /// (kv_heads * head_dim, hidden)
    pub v: Linear,
    /// (hidden, heads * head_dim)
    pub o: Linear,
    /// (hidden,) norm before the feed-forward part.
    pub ffn_norm: Vec<f32>,
    /// (ffn, hidden)
    pub gate: Linear,
    /// (ffn, hidden)
    pub up: Linear,
    /// (hidden, ffn)
    pub down: Linear,
}

/// Where the oracle gets its weights from. Borrowed where they are held, owned where they are made on demand.
pub trait Weights {
    /// What can go wrong in getting them.
    type Error: std::error::Error + Send + Sync + 'static;

    /// The model's shape.
    fn config(&self) -> &Config;

    /// The embedding (vocab, hidden), row-major.
    ///
    /// # Errors
    /// Those of the source.
    fn embedding(&self) -> Result<Cow<'_, [f32]>, Self::Error>;

    /// Layer `index`, from 0.
    ///
    /// # Errors
    /// Those of the source.
    fn layer(&self, index: usize) -> Result<Cow<'_, Layer>, Self::Error>;

    /// The last norm (hidden,).
    ///
    /// # Errors
    /// Those of the source.
    fn norm(&self) -> Result<Cow<'_, [f32]>, Self::Error>;

    /// The head (vocab, hidden), row-major; `None` where the embedding serves as the head.
    ///
    /// # Errors
    /// Those of the source.
    fn head(&self) -> Result<Option<Cow<'_, [f32]>>, Self::Error>;
}

/// The engine over such weights.
pub struct Oracle<W>(pub W);

impl<W: Weights> Engine for Oracle<W> {
    fn name(&self) -> String {
        "oracle (f64)".into()
    }

    fn vocab(&self) -> usize {
        self.0.config().vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        check_tokens(tokens, self.vocab(), 0, usize::MAX)?;
        forward(&self.0, tokens).map_err(|error| EngineError::Weights(Box::new(error)))
    }
}

/// The whole forward pass: logits (tokens, vocab).
fn forward<W: Weights>(weights: &W, tokens: &[u32]) -> Result<Vec<f32>, W::Error> {
    let config = weights.config();
    let frequencies = config.rope.frequencies(config.head_dim);
    let mut x = embed(&weights.embedding()?, tokens, config.hidden);
    for index in 0..config.layers {
        let layer = weights.layer(index)?;
        let mixed = attention(config, &layer, &frequencies, &x);
        add(&mut x, &mixed);
        let fed = feed_forward(config, &layer, &x);
        add(&mut x, &fed);
    }
    let x = rms_norm(&x, &weights.norm()?, config.norm_epsilon);
    let logits = match weights.head()? {
        Some(head) => matmul(&head, config.hidden, None, &x),
        None => matmul(&weights.embedding()?, config.hidden, None, &x),
    };
    Ok(logits.into_iter().map(|logit| logit as f32).collect())
}

/// `x_t = embedding[token_t]`: (tokens, hidden).
fn embed(embedding: &[f32], tokens: &[u32], hidden: usize) -> Vec<f64> {
    let row = |token: u32| &embedding[token as usize * hidden..][..hidden];
    tokens
        .iter()
        .flat_map(|&token| row(token))
        .map(|&w| f64::from(w))
        .collect()
}

/// `o(softmax(q k^T / sqrt(head_dim)) v)` of the normed `x`, causal. (tokens, hidden) to (tokens, hidden).
fn attention(config: &Config, layer: &Layer, frequencies: &[f64], x: &[f64]) -> Vec<f64> {
    let &Config {
        heads,
        kv_heads,
        head_dim,
        ..
    } = config;
    let x = rms_norm(x, &layer.attention_norm, config.norm_epsilon);
    let mut q = layer.q.apply(&x);
    let mut k = layer.k.apply(&x);
    let v = layer.v.apply(&x);
    rotate(&mut q, heads, head_dim, frequencies);
    rotate(&mut k, kv_heads, head_dim, frequencies);

    let mut mixed = vec![0.0; q.len()]; // (tokens, heads, head_dim)
    mixed
        .par_chunks_mut(heads * head_dim)
        .enumerate()
        .for_each(|(token, mixed)| {
            for (head, mixed) in mixed.chunks_mut(head_dim).enumerate() {
                let kv_head = head / (heads / kv_heads);
                let q = &q[(token * heads + head) * head_dim..][..head_dim];
                let start = |past: usize| (past * kv_heads + kv_head) * head_dim;
                let mut weights: Vec<f64> = (0..=token)
                    .map(|past| dot(q, &k[start(past)..][..head_dim]) / (head_dim as f64).sqrt())
                    .collect();
                softmax(&mut weights);
                for (past, weight) in weights.into_iter().enumerate() {
                    for (mixed, v) in mixed.iter_mut().zip(&v[start(past)..][..head_dim]) {
                        *mixed += weight * v;
                    }
                }
            }
        });
    layer.o.apply(&mixed)
}

/// `down(silu(gate(x)) * up(x))` of the normed `x`. (tokens, hidden) to (tokens, hidden).
fn feed_forward(config: &Config, layer: &Layer, x: &[f64]) -> Vec<f64> {
    let x = rms_norm(x, &layer.ffn_norm, config.norm_epsilon);
    let mut gated = layer.gate.apply(&x);
    for (gate, up) in gated.iter_mut().zip(layer.up.apply(&x)) {
        *gate = silu(*gate) * up;
    }
    layer.down.apply(&gated)
}

impl Linear {
    /// (tokens, columns) to (tokens, rows).
    fn apply(&self, x: &[f64]) -> Vec<f64> {
        matmul(&self.weight, self.columns, self.bias.as_deref(), x)
    }
}

impl Rope {
    /// Radians a position for each dimension pair: (head_dim / 2,).
    fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        (0..head_dim / 2)
            .map(|i| {
                self.scaling
                    .stretch(self.theta.powf(-2.0 * i as f64 / head_dim as f64))
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(&self, frequency: f64) -> f64 {
        match *self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                let wavelength = std::f64::consts::TAU / frequency;
                if wavelength < original_context / high_frequency_factor {
                    frequency
                } else if wavelength > original_context / low_frequency_factor {
                    frequency / factor
                } else {
                    let smooth = (original_context / wavelength - low_frequency_factor)
                        / (high_frequency_factor - low_frequency_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        }
    }
}

/// Turn the pairs (i, i + head_dim / 2) of every head by `position * frequency_i`. `x`: (tokens, heads, head_dim).
fn rotate(x: &mut [f64], heads: usize, head_dim: usize, frequencies: &[f64]) {
    for (position, x) in x.chunks_mut(heads * head_dim).enumerate() {
        for head in x.chunks_mut(head_dim) {
            let (first, second) = head.split_at_mut(head_dim / 2);
            for ((a, b), frequency) in first.iter_mut().zip(second).zip(frequencies) {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// `x / sqrt(mean x^2 + epsilon) * weight`, row by row. `x`: (tokens, hidden), `weight`: (hidden,).
fn rms_norm(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean_square + epsilon).sqrt();
        y.extend(
            x.iter()
                .zip(weight)
                .map(|(x, &w)| x * factor * f64::from(w)),
        );
    }
    y
}

/// `exp(x_i) / sum_j exp(x_j)`, shifted by the maximum so that nothing overflows.
fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - max).exp();
        sum += *x;
    }
    for x in x {
        *x /= sum;
    }
}

/// `x * sigmoid(x)`.
fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// `x += y`.
fn add(x: &mut [f64], y: &[f64]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `y_t = W x_t + b`: W (rows, columns), x (tokens, columns), y (tokens, rows).
fn matmul(weight: &[f32], columns: usize, bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
    /// Tokens that share one pass over the weights.
    const TOKENS: usize = 16;
    let rows = weight.len() / columns;
    let mut y = vec![0.0; x.len() / columns * rows];
    y.par_chunks_mut(TOKENS * rows)
        .zip(x.par_chunks(TOKENS * columns))
        .for_each(|(y, x)| {
            for (row, w) in weight.chunks_exact(columns).enumerate() {
                let bias = bias.map_or(0.0, |bias| f64::from(bias[row]));
                for (y, x) in y.chunks_mut(rows).zip(x.chunks(columns)) {
                    y[row] = dot(x, w) + bias;
                }
            }
        });
    y
}

/// `sum_i a_i b_i`. Products and sums are in f64; several sums side by side let the compiler use vectors.
fn dot<T: Copy + Into<f64>>(a: &[f64], b: &[T]) -> f64 {
    const LANES: usize = 32;
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane].into();
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(&a, &b)| a * b.into()).sum();
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} is not {expected}"
            );
        }
    }

    #[test]
    fn norm_by_hand() {
        // mean square of (3, 4) is 12.5; with epsilon 3.5 the root is 4.
        close(&rms_norm(&[3.0, 4.0], &[1.0, 2.0], 3.5), &[0.75, 2.0]);
    }

    #[test]
    fn silu_and_softmax_by_hand() {
        close(
            &[silu(0.0), silu(2.0)],
            &[0.0, 2.0 / (1.0 + (-2.0f64).exp())],
        );
        let mut x = [1000.0, 1000.0 + 3f64.ln()];
        softmax(&mut x);
        close(&x, &[0.25, 0.75]);
    }

    #[test]
    fn matmul_by_hand() {
        // Rows (1, 2, 3) and (0, -1, 1); more tokens than share a pass, more columns than lanes.
        let w = [1.0, 2.0, 3.0, 0.0, -1.0, 1.0];
        let y = matmul(&w, 3, Some(&[10.0, 20.0]), &[1.0, 1.0, 1.0, 0.0, 2.0, 5.0]);
        close(&y, &[16.0, 20.0, 29.0, 23.0]);
        let x: Vec<f64> = (0..40 * 70).map(|i| (i % 70) as f64).collect();
        close(&matmul(&[1.0; 70], 70, None, &x), &[2415.0; 40]);
    }

    #[test]
    fn rotation_turns_the_halves() {
        let quarter = std::f64::consts::FRAC_PI_2;
        let mut x = [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0];
        rotate(&mut x, 1, 4, &[quarter, 0.0]);
        // Position 0 stays; at position 1 the pair (1, 3) turns by 90 degrees, the pair (2, 4) not at all.
        close(&x, &[9.0, 9.0, 9.0, 9.0, -3.0, 2.0, 1.0, 4.0]);
    }

    #[test]
    fn llama3_scaling_by_hand() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 800.0,
        };
        let tau = std::f64::consts::TAU;
        // Wavelengths 100 (short), 1000 (long) and 400: smooth = (2 - 1) / (4 - 1) = 1/3.
        close(&[scaling.stretch(tau / 100.0)], &[tau / 100.0]);
        close(&[scaling.stretch(tau / 1000.0)], &[tau / 8000.0]);
        close(
            &[scaling.stretch(tau / 400.0)],
            &[tau / 400.0 * (2.0 / 3.0 / 8.0 + 1.0 / 3.0)],
        );
    }

    #[test]
    fn attention_averages_what_it_cannot_tell_apart() {
        // Queries are zero, so every token mixes the values of all tokens up to itself evenly.
        // Two query heads share one value head; o adds the two heads.
        let linear = |weight: &[f32], columns| Linear {
            weight: weight.to_vec(),
            columns,
            bias: None,
        };
        let identity = linear(&[1.0, 0.0, 0.0, 1.0], 2);
        let zero = linear(&[0.0; 8], 2);
        let layer = Layer {
            attention_norm: vec![1.0; 2],
            q: zero.clone(),
            k: identity.clone(),
            v: identity,
            o: linear(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0], 4),
            ffn_norm: vec![1.0; 2],
            gate: zero.clone(),
            up: zero.clone(),
            down: zero,
        };
        let config = Config {
            vocab: 1,
            hidden: 2,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            norm_epsilon: 0.0,
            rope: Rope {
                theta: 1.0,
                scaling: RopeScaling::None,
            },
        };
        let mixed = attention(&config, &layer, &[1.0], &[1.0, 1.0, 1.0, -1.0]);
        close(&mixed, &[2.0, 2.0, 2.0, 0.0]);
    }
}
