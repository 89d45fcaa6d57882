//! The weights of a checkpoint that storing has changed as much as the file's, in other directions.

use std::ops::Range;

use super::super::tables::{holds_ternary_alone, table_limit};
use super::stored::{Stored, StoredRows};
use crate::engine::EngineError;
use crate::engine::hyper::Hyper;
use crate::engine::oracle::{Norm, Part, Rows, Weights};
use crate::metrics::Nmse;

/// The checkpoint, with what storing each row lost turned round or not, by chance: another file that is as far from the
/// checkpoint as this one, as long as this one is no further from it than it may be.
pub struct Turned<'a> {
    /// The weights of the checkpoint, or of what else the file was packed from.
    pub latent: &'a dyn Weights,
    pub stored: &'a Stored<'a>,
    /// The NMSE that storing a linear may have added.
    pub max_nmse: f64,
}

impl Weights for Turned<'_> {
    fn hyper(&self) -> &Hyper {
        self.latent.hyper()
    }

    fn embedding(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        let stored = self.stored.rows("token_embd", false)?;
        self.table(self.latent.embedding()?, stored)
    }

    fn head(&self) -> Result<Box<dyn Rows + '_>, EngineError> {
        match self.stored.file.tensor("output.weight") {
            Some(_) => self.table(self.latent.head()?, self.stored.rows("output", false)?),
            None => self.embedding(),
        }
    }

    fn linear(&self, layer: usize, part: Part) -> Result<Box<dyn Rows + '_>, EngineError> {
        Ok(Box::new(TurnedRows {
            latent: self.latent.linear(layer, part)?,
            stored: self.stored.linear(layer, part)?,
            max_nmse: self.max_nmse + SCALE_ROUNDED,
            ternary: true,
        }))
    }

    fn norm(&self, norm: Norm) -> Result<Vec<f32>, EngineError> {
        self.latent.norm(norm)
    }
}

impl<'a> Turned<'a> {
    fn table(&self, latent: Box<dyn Rows + 'a>, stored: StoredRows<'a>) -> Result<Box<dyn Rows + 'a>, EngineError> {
        Ok(Box::new(TurnedRows {
            latent,
            max_nmse: match holds_ternary_alone(stored.ty) {
                true => self.max_nmse + SCALE_ROUNDED,
                false => table_limit(stored.ty).unwrap_or(ROUNDED),
            },
            ternary: holds_ternary_alone(stored.ty),
            stored: Box::new(stored),
        }))
    }
}

/// What storing a scale as F16 may cost, relative and squared; it is no part of `--max-nmse`, which counts from there.
const SCALE_ROUNDED: f64 = 1.0 / (1u64 << 22) as f64;

/// What rounding a number to BF16 may cost, relative and squared; to F16, less.
const ROUNDED: f64 = 1.0 / (1u64 << 16) as f64;

struct TurnedRows<'a> {
    latent: Box<dyn Rows + 'a>,
    stored: Box<dyn Rows + 'a>,
    max_nmse: f64,
    /// Whether a weight of another sign is a wrong code.
    ternary: bool,
}

impl Rows for TurnedRows<'_> {
    fn shape(&self) -> (usize, usize) {
        self.latent.shape()
    }

    fn read(&self, rows: Range<usize>, weights: &mut [f32], bias: &mut [f64]) -> Result<(), EngineError> {
        let columns = self.shape().1;
        let mut stored = vec![0.0; weights.len()];
        self.stored.read(rows.clone(), &mut stored, bias)?;
        self.latent.read(rows.clone(), weights, bias)?;
        let nmse = nmse(weights, &stored);
        if nmse == 0.0 {
            return Ok(());
        }
        let share = (self.max_nmse / nmse).sqrt().min(1.0) as f32;
        let pairs = weights.chunks_exact_mut(columns).zip(stored.chunks_exact(columns));
        for (row, (weights, stored)) in rows.zip(pairs) {
            if self.ternary && another_code(weights, stored) {
                continue;
            }
            let sign = if heads(row) { share } else { -share };
            for (weight, stored) in weights.iter_mut().zip(stored) {
                *weight += sign * (stored - *weight);
            }
        }
        Ok(())
    }
}

/// Whether a weight of `stored` cannot stand for the trained one: it has another sign, or is none for a zero. One that is too
/// small to be stored is a loss of its own.
fn another_code(trained: &[f32], stored: &[f32]) -> bool {
    let pairs = trained.iter().zip(stored);
    pairs.fold(false, |found, (&a, &b)| {
        found | ((b != 0.0) & ((a == 0.0) | ((a < 0.0) != (b < 0.0)))) // no early exit: it vectorises
    })
}

/// [`metrics::nmse`](crate::metrics::nmse), with sums in f32 within pieces: it is only asked how near it is to a limit.
fn nmse(trained: &[f32], stored: &[f32]) -> f64 {
    const LANES: usize = 16;
    const PIECE: usize = 256 * LANES;
    let mut sums = Nmse::default();
    for (trained, stored) in trained.chunks(PIECE).zip(stored.chunks(PIECE)) {
        let (mut errors, mut energies) = ([0f32; LANES], [0f32; LANES]);
        for (a, b) in trained.chunks(LANES).zip(stored.chunks(LANES)) {
            for (lane, (&a, &b)) in a.iter().zip(b).enumerate() {
                errors[lane] += (a - b) * (a - b);
                energies[lane] += a * a;
            }
        }
        sums += Nmse {
            error: errors.iter().sum::<f32>().into(),
            energy: energies.iter().sum::<f32>().into(),
        };
    }
    sums.value()
}

/// The toss of a coin (the finalizer of SplitMix64).
fn heads(row: usize) -> bool {
    let mut x = (row as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) & 1 == 1
}

#[cfg(test)]
mod tests;
