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
    let mut x = [1000.0, 1000.0 + 3f64.ln()];
    softmax(&mut x);
    close(&x, &[0.25, 0.75]);
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
    let hyper = Hyper {
        heads: 2,
        head_dim: 2,
        ..small().0
    };
    let kv = [1.0, 1.0, 1.0, -1.0];
    let mut mixed = [0.0; 8];
    attend(&hyper, &[0.0; 8], &kv, &kv, &mut mixed);
    close(&mixed, &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
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
        vocab: 5,
        hidden: 8,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 6,
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
