use super::*;
use crate::engine::hyper::{Rope, Variant};

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
    let x = [1000.0, 1000.0 + 3f64.log2(), 0.0];
    let of = |rounding| {
        let mut x = x;
        softmax(&mut x, rounding);
        x
    };
    close(&of(Rounding::None), &[0.25, 0.75, 0.0]);
    // Of the powers 1/4 and 3/4, which bfloat16 has; of 2^-0.3 it has 0.8125 (2^-0.3 = 0.81225...).
    close(&of(Rounding::Bf16), &[0.25, 0.75, 0.0]);
    let mut x = [7.7, 7.0];
    softmax(&mut x, Rounding::Bf16);
    close(&x, &[0.8125 / 1.3125, 0.5 / 1.3125]);
}

#[test]
fn rotation_turns_pairs() {
    let turned = |pairing| {
        let mut hyper = small().0;
        hyper.rope.pairing = pairing;
        let mut x = [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0];
        rotate(&mut x, 4, &hyper, &[std::f64::consts::FRAC_PI_2, 0.0]);
        x
    };
    // Position 0 stays; at position 1 the first pair turns by 90 degrees, the second not at all.
    close(&turned(Pairing::Halves), &[9.0, 9.0, 9.0, 9.0, -3.0, 2.0, 1.0, 4.0]);
    close(
        &turned(Pairing::Interleaved),
        &[9.0, 9.0, 9.0, 9.0, -2.0, 1.0, 3.0, 4.0],
    );
}

#[test]
fn attention_averages_what_it_cannot_tell_apart() {
    // Queries are zero, so every token mixes the values of all tokens up to itself evenly.
    // Two query heads share one value head.
    let mut hyper = small().0;
    (hyper.dims.heads, hyper.dims.head_dim) = (2, 2);
    let kv = [1.0, 1.0, 1.0, -1.0];
    let mut mixed = [0.0; 8];
    attend(&hyper, AttentionRounding::default(), &[0.0; 8], &kv, &kv, &mut mixed);
    close(&mixed, &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
}

/// Two tokens of one head of one dimension: the query log2(e) * 1.001 is 1.4453125 in bfloat16, of which the second key
/// takes twice as much as the first.
#[test]
fn attention_rounds_queries_and_weights_where_it_is_asked_to() {
    let mut hyper = small().0;
    (hyper.dims.heads, hyper.dims.kv_heads, hyper.dims.head_dim) = (1, 1, 1);
    let of = |queries, weights| {
        let mut mixed = [0.0; 2];
        let rounding = AttentionRounding { queries, weights };
        attend(&hyper, rounding, &[0.0, 1.001], &[1.0, 2.0], &[0.0, 1.0], &mut mixed);
        mixed[1]
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp2());
    let exact = std::f64::consts::LOG2_E * 1.001;
    close(&[of(Rounding::None, Rounding::None)], &[sigmoid(exact)]);
    close(&[of(Rounding::Bf16, Rounding::None)], &[sigmoid(1.4453125)]);
    let weights = [(exact - 3.0).exp2(), (2.0 * exact - 3.0).exp2()].map(|w| f64::from(half::bf16::from_f64(w)));
    close(
        &[of(Rounding::None, Rounding::Bf16)],
        &[weights[1] / (weights[0] + weights[1])],
    );
}

/// A model of one layer whose numbers are all of order 1, with texts of its own for every position.
struct Small(Hyper);

impl Weights for Small {
    fn hyper(&self) -> &Hyper {
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
    Small(Hyper {
        dims: Dims {
            vocab: 5,
            hidden: 8,
            intermediate: 6,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 4,
        },
        context: 8,
        norm_epsilon: 1e-5,
        rope: Rope {
            base: 100.0,
            divisor: 1.0,
            factors: None,
            pairing: Pairing::Halves,
        },
        variant: Variant::LLAMA,
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
