//! One row of a linear: its codes, and its weights where they are stored as numbers.

use formats::block::{BlockError, BlockType};
use formats::gguf::TensorInfo;
use half::{bf16, f16};

use super::super::latent::{Latent, LatentRow};
use super::super::report::Tally;
use super::Places;

/// What was found of one row.
#[derive(Default)]
pub(super) struct RowFound {
    pub tally: Tally,
    /// The first place of each kind.
    pub places: Places,
    /// The bias that the checkpoint gives.
    pub bias: f64,
}

impl RowFound {
    /// Row `from` of the checkpoint, of which the file has nothing that can be read: all of it is lost.
    pub fn missing(latent: &Latent, from: usize, row: &LatentRow) -> Self {
        let energy = latent
            .runs(from)
            .map(|(group, run)| active(&row.codes[run]) * f64::from(latent.references[group]).powi(2))
            .sum();
        let mut found = Self::default();
        found.tally.codes_wrong = latent.columns as u64;
        (found.tally.loss.error, found.tally.loss.energy) = (energy, energy);
        found
    }

    /// The same with what the checkpoint alone says of the row.
    pub fn with_row(mut self, row: &LatentRow) -> Self {
        self.bias = row.bias;
        self.tally.rows = 1;
        self.tally.weights = row.codes.len() as u64;
        self.tally.dead = dead(&row.codes);
        self.tally.largest_bias = row.bias.abs();
        self
    }
}

/// How many codes are 0.
fn dead(codes: &[i8]) -> u64 {
    codes.iter().filter(|&&code| code == 0).count() as u64
}

/// How many are not.
pub(super) fn active(codes: &[i8]) -> f64 {
    (codes.len() as u64 - dead(codes)) as f64
}

/// Keep the first place.
pub(super) fn note(places: &mut Vec<String>, place: impl FnOnce() -> String) {
    if places.is_empty() {
        places.push(place());
    }
}

/// Room for one row, as the checkpoint and as the file have it.
#[derive(Default)]
pub(super) struct Buffers {
    pub latent: LatentRow,
    codes: Vec<i8>,
    scales: Vec<f32>,
    weights: Vec<f32>,
}

/// A linear as the file has it.
pub(super) struct Stored<'a> {
    pub info: &'a TensorInfo,
    bytes: &'a [u8],
    row_bytes: usize,
    pub latent: &'a Latent<'a>,
    /// How much each column counts in a least-squares fit: (columns,).
    pub importance: &'a [f64],
}

impl<'a> Stored<'a> {
    pub fn new(info: &'a TensorInfo, bytes: &'a [u8], latent: &'a Latent, importance: &'a [f64]) -> Self {
        let row_bytes = bytes.len() / latent.rows;
        Self {
            info,
            bytes,
            row_bytes,
            latent,
            importance,
        }
    }

    /// The bytes of row `row` of the file.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Row `row` of the file against row `from` of the checkpoint, which `buffers.latent` holds.
    pub fn compare(&self, row: usize, from: usize, buffers: &mut Buffers) -> RowFound {
        let Buffers {
            latent,
            codes,
            scales,
            weights,
        } = buffers;
        let row = Row {
            stored: self,
            row,
            from,
            latent,
        };
        let found = match self.info.ty.scale_run() {
            Some(run) => row.compare_blocks(run, codes, scales),
            None => row.compare_numbers(codes, weights),
        };
        found.unwrap_or_else(|error| row.not_ternary(&error))
    }
}

/// A row of the file beside the row of the checkpoint that it stands for.
pub(super) struct Row<'a> {
    pub stored: &'a Stored<'a>,
    /// Which row of the file.
    pub row: usize,
    /// Which row of the checkpoint.
    pub from: usize,
    /// That row by the formula.
    pub latent: &'a LatentRow,
}

impl Row<'_> {
    fn not_ternary(&self, error: &BlockError) -> RowFound {
        let mut found = RowFound::missing(self.stored.latent, self.from, self.latent);
        let place = format!("tensor '{}' row {}: {error}", self.stored.info.name, self.row);
        found.places.codes.push(place);
        found
    }

    /// Blocks of codes and scales, one scale for `run` weights.
    fn compare_blocks(&self, run: usize, codes: &mut Vec<i8>, scales: &mut Vec<f32>) -> Result<RowFound, BlockError> {
        let (ty, columns) = (self.stored.info.ty, self.stored.latent.columns);
        codes.resize(columns, 0);
        scales.resize(columns / run, 0.0);
        ty.unpack_ternary_row(self.stored.row(self.row), codes, scales)?;
        let mut found = RowFound::default();
        self.compare_codes(codes, &mut found);
        for (block, scales) in scales.chunks_exact(ty.weights() / run).enumerate() {
            self.compare_scales(block * ty.weights(), scales, codes, &mut found);
        }
        Ok(found)
    }

    fn compare_codes(&self, codes: &[i8], found: &mut RowFound) {
        let expected = &self.latent.codes;
        if expected == codes {
            return;
        }
        let differ = expected.iter().zip(codes).map(|(a, b)| a != b);
        found.tally.codes_wrong = differ.clone().map(u64::from).sum();
        let first = differ.into_iter().position(|differs| differs);
        found.places.codes.extend(first.map(|column| {
            format!(
                "tensor '{}' row {} column {column}: code {}, expected {}",
                self.stored.info.name, self.row, codes[column], expected[column]
            )
        }));
    }

    /// F32, F16 and BF16: every weight is scale * code, rounded once.
    fn compare_numbers(&self, codes: &mut Vec<i8>, weights: &mut Vec<f32>) -> Result<RowFound, BlockError> {
        let (ty, latent) = (self.stored.info.ty, self.stored.latent);
        weights.resize(latent.columns, 0.0);
        ty.dequantize_row(self.stored.row(self.row), weights)?;
        codes.clear();
        codes.extend(weights.iter().map(|&w| i8::from(w > 0.0) - i8::from(w < 0.0)));
        let mut found = RowFound::default();
        for (group, run) in latent.runs(self.from) {
            let scale = match ty {
                BlockType::F16 => latent.references[group],
                _ => latent.scales[group],
            };
            let expected = rounded(ty, scale);
            if expected == 0.0 {
                // Smaller than the type can hold: the loss is counted, the codes are not lost.
                codes[run.clone()].copy_from_slice(&self.latent.codes[run.clone()]);
            }
            for column in run {
                self.compare_number(column, scale, expected, weights[column], &mut found);
            }
        }
        self.compare_codes(codes, &mut found);
        Ok(found)
    }

    /// One weight: `stored`, where the trained one is `scale` times its code, and `expected` is the scale as the type has it.
    fn compare_number(&self, column: usize, scale: f32, expected: f32, stored: f32, found: &mut RowFound) {
        let code = self.latent.codes[column];
        let w = f64::from(scale) * f64::from(code);
        let tally = &mut found.tally;
        tally.loss.add(w, f64::from(stored));
        if code == 0 {
            return;
        }
        tally.scales += 1;
        tally.worst_scale = tally.worst_scale.max((w - f64::from(stored)).abs() / w.abs());
        if stored.abs() != expected {
            tally.scales_wrong += 1;
            note(&mut found.places.scales, || {
                format!(
                    "tensor '{}' row {} column {column}: {stored:e}, expected {expected:e}",
                    self.stored.info.name, self.row
                )
            });
        }
    }
}

fn rounded(ty: BlockType, w: f32) -> f32 {
    match ty {
        BlockType::F16 => f16::from_f32(w).to_f32(),
        BlockType::BF16 => bf16::from_f32(w).to_f32(),
        _ => w,
    }
}
