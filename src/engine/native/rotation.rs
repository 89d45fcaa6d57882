//! Rotary positions.

use crate::engine::hyper::{Hyper, Pairing};
use crate::simd::{Lanes, Level, Work};

/// Angles of some consecutive positions.
pub struct Rotation {
    /// (head_dim / 2,) radians a position.
    frequencies: Vec<f64>,
    /// (positions, head_dim / 2) cosine and sine.
    turns: Vec<(f32, f32)>,
    pairing: Pairing,
}

impl Rotation {
    pub fn new(hyper: &Hyper) -> Self {
        let rope = &hyper.rope;
        let frequency = |i: usize| {
            let exponent = -2.0 * i as f64 / hyper.dims.head_dim as f64;
            let factor = rope.factors.as_ref().map_or(1.0, |factors| factors[i]);
            rope.base.powf(exponent) / rope.divisor / factor
        };
        Rotation {
            frequencies: (0..hyper.dims.head_dim / 2).map(frequency).collect(),
            turns: Vec::new(),
            pairing: rope.pairing,
        }
    }

    /// Get ready for the positions `first` to `first + count - 1`.
    pub fn prepare(&mut self, first: usize, count: usize) {
        let turn = |angle: f64| (angle.cos() as f32, angle.sin() as f32);
        let of = |position: usize| self.frequencies.iter().map(move |f| turn(position as f64 * f));
        self.turns = (first..first + count).flat_map(of).collect();
    }

    /// Turn the pairs of every head. `x`: (heads, head_dim) of the position that is `index` after the first.
    pub fn apply(&self, level: Level, index: usize, x: &mut [f32]) {
        let pairs = self.frequencies.len();
        let turns = &self.turns[index * pairs..][..pairs];
        match self.pairing {
            Pairing::Interleaved => level.run(TurnInterleaved { turns, x }),
            Pairing::Halves => level.run(TurnHalves { turns, x }),
        }
    }
}

struct TurnInterleaved<'a> {
    /// (head_dim / 2,) cosine and sine.
    turns: &'a [(f32, f32)],
    /// (heads, head_dim)
    x: &'a mut [f32],
}

impl Work for TurnInterleaved<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        for head in self.x.chunks_exact_mut(2 * self.turns.len()) {
            for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(self.turns) {
                let [a, b] = pair;
                turn_pair(a, b, turn);
            }
        }
    }
}

/// As [`TurnInterleaved`].
struct TurnHalves<'a> {
    turns: &'a [(f32, f32)],
    x: &'a mut [f32],
}

impl Work for TurnHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: impl Lanes) {
        for head in self.x.chunks_exact_mut(2 * self.turns.len()) {
            let (first, second) = head.split_at_mut(self.turns.len());
            for ((a, b), turn) in first.iter_mut().zip(second).zip(self.turns) {
                turn_pair(a, b, turn);
            }
        }
    }
}

#[inline(always)]
fn turn_pair(a: &mut f32, b: &mut f32, (cos, sin): &(f32, f32)) {
    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: usize = 6;

    /// Numbers in -2..2 without a pattern.
    fn numbers(seed: usize, count: usize) -> Vec<f32> {
        let number = |i: usize| (i * 7919 + seed * 104_729) % 1009;
        (0..count).map(|i| number(i) as f32 / 252.0 - 2.0).collect()
    }

    #[test]
    fn every_level_turns_with_the_same_bits() {
        for (pairs, pairing) in [1, 12, 32]
            .iter()
            .flat_map(|&pairs| [(pairs, Pairing::Interleaved), (pairs, Pairing::Halves)])
        {
            let mut rotation = Rotation {
                frequencies: (0..pairs).map(|i| 1.0 / (i + 1) as f64).collect(),
                turns: Vec::new(),
                pairing,
            };
            rotation.prepare(5, 2);
            let x = numbers(4, HEADS * 2 * pairs);
            let turned = |level| {
                let mut x = x.clone();
                rotation.apply(level, 1, &mut x);
                x
            };
            let expected = turned(Level::BASELINE);
            for level in Level::available() {
                assert_eq!(turned(level), expected, "{} {pairs} {pairing:?}", level.name());
            }
            // The last pair of the first head.
            let (a, b) = match pairing {
                Pairing::Interleaved => (2 * pairs - 2, 2 * pairs - 1),
                Pairing::Halves => (pairs - 1, 2 * pairs - 1),
            };
            let (sin, cos) = (6.0 / pairs as f64).sin_cos();
            let exact = f64::from(x[a]) * cos - f64::from(x[b]) * sin;
            assert!((f64::from(expected[a]) - exact).abs() < 1e-6, "{pairs} {pairing:?}");
        }
    }
}
