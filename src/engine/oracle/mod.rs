//! The oracle: a Llama's forward pass as the formulas have it, in f64, one plain loop each. It shares nothing with the
//! packer, the block codecs, the kernels or GGUF: weights come as dense f32 rows in Hugging Face's order, and are asked for
//! a few rows at a time, each once for all texts together.

mod product;
mod weights;

use rayon::prelude::*;

pub use product::Precision;
pub use weights::{Config, Norm, Part, Rope, RopeScaling, Rounding, Rows, Weights};

use self::product::product;
use super::{Engine, EngineError, EngineName, check_tokens};

/// The forward pass over such weights.
pub struct Oracle<'a, W> {
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
    /// Whether the activations of each matrix are rounded as engines round them ([`Rows::rounding`]).
    pub rounded: bool,
}

impl<W: Weights> Oracle<'_, W> {
    /// What the last norm makes of every token: (tokens, hidden), sequence behind sequence. `progress` is told the number
    /// of each layer when it is done.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, or those of the weights.
    pub fn states(&self, sequences: &[Sequence], progress: &dyn Fn(usize)) -> Result<Vec<f64>, EngineError> {
        let config = self.weights.config();
        for sequence in sequences {
            check_tokens(sequence.tokens, config.vocab, 0, usize::MAX)?;
        }
        let pass = Pass {
            oracle: self,
            config,
            frequencies: config.rope.frequencies(config.head_dim),
            sequences,
        };
        let mut x = pass.embed()?;
        for layer in 0..config.layers {
            let mixed = pass.attention(layer, &x)?;
            add(&mut x, &mixed);
            let fed = pass.feed_forward(layer, &x)?;
            add(&mut x, &fed);
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
        product(&*head, &states, self.precision)
    }
}

impl<W: Weights> Engine for Oracle<'_, W> {
    fn name(&self) -> EngineName {
        EngineName::new("oracle", "f64")
    }

    fn vocab(&self) -> usize {
        self.weights.config().vocab
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let sequence = Sequence { tokens, rounded: false };
        let states = self.states(&[sequence], &|_| {})?;
        self.logits_of(&states, &[])
    }
}

/// One run of some sequences.
struct Pass<'a, W> {
    oracle: &'a Oracle<'a, W>,
    config: &'a Config,
    /// Radians a position for each dimension pair.
    frequencies: Vec<f64>,
    sequences: &'a [Sequence<'a>],
}

impl<W: Weights> Pass<'_, W> {
    /// `x_t = embedding[token_t]`: (tokens, hidden).
    fn embed(&self) -> Result<Vec<f64>, EngineError> {
        let embedding = self.oracle.weights.embedding()?;
        let (mut row, mut x) = (vec![0.0; self.config.hidden], vec![]);
        for &token in self.sequences.iter().flat_map(|sequence| sequence.tokens) {
            let token = token as usize;
            embedding.read(token..token + 1, &mut row, &mut [0.0])?;
            x.extend(row.iter().map(|&w| f64::from(w)));
        }
        Ok(x)
    }

    /// `o(softmax(q k^T / sqrt(head_dim)) v)` of the normed `x`, causal. (tokens, hidden) to (tokens, hidden).
    fn attention(&self, layer: usize, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let Config { heads, kv_heads, .. } = *self.config;
        let x = self.norm(Norm::Attention(layer), x)?;
        let mut q = self.linear(layer, Part::Q, &x)?;
        let mut k = self.linear(layer, Part::K, &x)?;
        let v = self.linear(layer, Part::V, &x)?;
        let width = self.config.head_dim;
        let mut mixed = vec![0.0; q.len()]; // (tokens, heads, head_dim)
        let mut rest = (&mut mixed[..], &mut q[..], &mut k[..], &v[..]);
        for sequence in self.sequences {
            let tokens = sequence.tokens.len();
            let (mixed, q, k, v);
            (mixed, rest.0) = rest.0.split_at_mut(tokens * heads * width);
            (q, rest.1) = rest.1.split_at_mut(tokens * heads * width);
            (k, rest.2) = rest.2.split_at_mut(tokens * kv_heads * width);
            (v, rest.3) = rest.3.split_at(tokens * kv_heads * width);
            rotate(q, heads, width, &self.frequencies);
            rotate(k, kv_heads, width, &self.frequencies);
            attend(self.config, q, k, v, mixed);
        }
        self.linear(layer, Part::O, &mixed)
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
        self.linear(layer, Part::Down, &gated)
    }

    /// (tokens, hidden) to (tokens, hidden).
    fn norm(&self, norm: Norm, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let weight = self.oracle.weights.norm(norm)?;
        Ok(rms_norm(x, &weight, self.config.norm_epsilon))
    }

    /// (tokens, columns) to (tokens, rows).
    fn linear(&self, layer: usize, part: Part, x: &[f64]) -> Result<Vec<f64>, EngineError> {
        let matrix = self.oracle.weights.linear(layer, part)?;
        let columns = matrix.shape().1;
        let mut x = x.to_vec();
        let mut rest = &mut x[..];
        for sequence in self.sequences {
            let of_sequence;
            (of_sequence, rest) = rest.split_at_mut(sequence.tokens.len() * columns);
            if sequence.rounded {
                round_rows(matrix.rounding(), of_sequence, columns);
            }
        }
        product(&*matrix, &x, self.oracle.precision)
    }
}

/// Round each row of `x` (tokens, columns).
fn round_rows(rounding: Rounding, x: &mut [f64], columns: usize) {
    x.par_chunks_exact_mut(columns).for_each(|x| rounding.apply(x));
}

/// `mixed = softmax(q k^T / sqrt(head_dim)) v`, causal. `q`, `mixed`: (tokens, heads, head_dim); `k`, `v`: (tokens,
/// kv_heads, head_dim).
fn attend(config: &Config, q: &[f64], k: &[f64], v: &[f64], mixed: &mut [f64]) {
    let &Config {
        heads,
        kv_heads,
        head_dim,
        ..
    } = config;
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
}

/// Turn the pairs (i, i + head_dim / 2) of every head by `position * frequency_i`. `x`: (tokens, heads, head_dim).
fn rotate(x: &mut [f64], heads: usize, head_dim: usize, frequencies: &[f64]) {
    x.par_chunks_mut(heads * head_dim)
        .enumerate()
        .for_each(|(position, x)| {
            let turns: Vec<_> = frequencies
                .iter()
                .map(|frequency| (position as f64 * frequency).sin_cos())
                .collect();
            for head in x.chunks_mut(head_dim) {
                let (first, second) = head.split_at_mut(head_dim / 2);
                for ((a, b), (sin, cos)) in first.iter_mut().zip(second).zip(&turns) {
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        });
}

/// `x / sqrt(mean x^2 + epsilon) * weight`, row by row. `x`: (tokens, hidden), `weight`: (hidden,).
fn rms_norm(x: &[f64], weight: &[f32], epsilon: f64) -> Vec<f64> {
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(weight.len()) {
        let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean_square + epsilon).sqrt();
        y.extend(x.iter().zip(weight).map(|(x, &w)| x * factor * f64::from(w)));
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

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
        }
    }

    #[test]
    fn norm_by_hand() {
        // mean square of (3, 4) is 12.5; with epsilon 3.5 the root is 4.
        close(&rms_norm(&[3.0, 4.0], &[1.0, 2.0], 3.5), &[0.75, 2.0]);
    }

    #[test]
    fn silu_and_softmax_by_hand() {
        close(&[silu(0.0), silu(2.0)], &[0.0, 2.0 / (1.0 + (-2.0f64).exp())]);
        let mut x = [1000.0, 1000.0 + 3f64.ln()];
        softmax(&mut x);
        close(&x, &[0.25, 0.75]);
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
    fn attention_averages_what_it_cannot_tell_apart() {
        // Queries are zero, so every token mixes the values of all tokens up to itself evenly.
        // Two query heads share one value head.
        let config = Config {
            vocab: 1,
            hidden: 2,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            ffn: 1,
            norm_epsilon: 0.0,
            rope: Rope {
                theta: 1.0,
                scaling: RopeScaling::None,
            },
        };
        let kv = [1.0, 1.0, 1.0, -1.0];
        let mut mixed = [0.0; 8];
        attend(&config, &[0.0; 8], &kv, &kv, &mut mixed);
        close(&mixed, &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
    }

    /// A model of one layer whose numbers are all of order 1, with texts of its own for every position.
    struct Small(Config);

    impl Weights for Small {
        fn config(&self) -> &Config {
            &self.0
        }

        fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
            Ok(Box::new(Held::new(5, 8, 1)))
        }

        fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
            self.embedding()
        }

        fn linear(&self, _: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
            let (rows, columns) = match part {
                Part::Q | Part::O => (8, 8),
                Part::K | Part::V => (4, 8),
                Part::Gate | Part::Up => (6, 8),
                Part::Down => (8, 6),
            };
            Ok(Box::new(Held::new(rows, columns, 2 + part as u64)))
        }

        fn norm(&self, _: Norm) -> Result<Vec<f32>, EngineError> {
            Ok(vec![1.0; 8])
        }
    }

    fn small() -> Small {
        Small(Config {
            vocab: 5,
            hidden: 8,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
            ffn: 6,
            norm_epsilon: 1e-5,
            rope: Rope {
                theta: 100.0,
                scaling: RopeScaling::None,
            },
        })
    }

    fn oracle(weights: &Small) -> Oracle<'_, Small> {
        Oracle {
            weights,
            precision: Precision::Double,
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let small = small();
        let mut oracle = oracle(&small);
        let exact = |tokens| Sequence { tokens, rounded: false };
        let (a, b) = ([1, 2, 3], [4, 0]);
        let together = oracle.states(&[exact(&a), exact(&b)], &|_| {}).unwrap();
        let together = oracle.logits_of(&together, &[]).unwrap();
        let apart = [oracle.logits(&a).unwrap(), oracle.logits(&b).unwrap()].concat();
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(together.iter().zip(&apart).all(close));
        assert!(oracle.states(&[exact(&[5])], &|_| {}).is_err());
    }

    #[test]
    fn only_rounded_sequences_are_rounded() {
        let small = small();
        let oracle = oracle(&small);
        let both = [false, true].map(|rounded| Sequence {
            tokens: &[1, 2, 3],
            rounded,
        });
        let states = oracle.states(&both, &|_| {}).unwrap();
        let (exact, rounded) = states.split_at(states.len() / 2);
        let alone = oracle.states(&both[..1], &|_| {}).unwrap();
        close(exact, &alone);
        let largest = exact
            .iter()
            .zip(rounded)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        assert!(largest > 1e-4 && largest < 0.1, "{largest}"); // bfloat16 has 8 bits
    }

    /// A matrix that is held in memory.
    pub(super) struct Held {
        pub weights: Vec<f32>,
        pub columns: usize,
        pub bias: Vec<f64>,
    }

    impl Held {
        /// Numbers between -1 and 1.
        fn new(rows: usize, columns: usize, seed: u64) -> Self {
            let number = |i: usize| ((seed * 1000 + i as u64) as f32).sin();
            Self {
                weights: (0..rows * columns).map(number).collect(),
                columns,
                bias: (0..rows).map(|row| row as f64 / 10.0).collect(),
            }
        }
    }

    impl Rows for Held {
        fn shape(&self) -> (usize, usize) {
            (self.bias.len(), self.columns)
        }

        fn read(&self, rows: std::ops::Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
            weights.copy_from_slice(&self.weights[rows.start * self.columns..][..weights.len()]);
            bias.copy_from_slice(&self.bias[rows]);
            Ok(())
        }

        fn rounding(&self) -> Rounding {
            Rounding::Bf16
        }
    }
}
