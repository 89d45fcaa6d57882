//! One row: latent weights to codes, scales and bias, then to bytes of a block type, with what that loses.

use formats::block::{BlockType, q2_0, q2_k, q4_0, q8_0, tq1_0, tq2_0};
use formats::safetensors::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;

use crate::model::{Checkpoint, LatentLinear, Linear};
use crate::tequila::{self, Lambda, NotFinite};

/// A linear of the checkpoint with the scale of every group: what its rows are made from.
pub struct Ternary<'a> {
    latent: LatentLinear<'a>,
    columns: usize,
    group_size: usize,
    /// One for each group of the flattened matrix.
    scales: Vec<f32>,
    /// The fixed lambda, where it is not learned.
    lambda: f32,
}

/// The ternary form of one row, and room to make it in.
#[derive(Default)]
pub struct Row {
    w: Vec<f32>,
    lambada: Vec<f32>,
    /// (columns,)
    pub codes: Vec<i8>,
    /// The trained scale of every weight. (columns,)
    pub scales: Vec<f32>,
    /// The offline bias, the layer's own included.
    pub bias: f64,
}

impl<'a> Ternary<'a> {
    /// Take the scales of all groups of `linear`.
    ///
    /// # Errors
    /// The first weight that is not finite, by its index in the flattened matrix.
    pub fn new(checkpoint: &'a Checkpoint, linear: Linear) -> Result<Self, NotFinite> {
        let latent = checkpoint.linear(linear);
        let (rows, columns) = linear.shape(&checkpoint.config);
        let group_size = checkpoint.training.granularity.group_size(rows, columns);
        let scales = group_scales(latent.weight, group_size)?;
        let lambda = checkpoint
            .training
            .lambda
            .fixed(latent.weight.dtype)
            .unwrap_or(0.0);
        Ok(Self {
            latent,
            columns,
            group_size,
            scales,
            lambda,
        })
    }

    /// Split row `row` of the checkpoint into codes, scales and bias.
    ///
    /// # Errors
    /// A learned lambda or a bias that is not finite, by its index in the flattened matrix.
    pub fn split(&self, row: usize, out: &mut Row) -> Result<(), NotFinite> {
        let columns = self.columns;
        let first = row * columns;
        out.w.resize(columns, 0.0);
        out.codes.resize(columns, 0);
        out.scales.resize(columns, 0.0);
        self.latent.weight.read_f32(first, &mut out.w);
        for (group, run) in tequila::runs(row, columns, self.group_size) {
            let scale = self.scales[group];
            out.scales[run.clone()].fill(scale);
            tequila::split(
                &out.w[run.clone()],
                scale,
                self.latent.weight.dtype,
                &mut out.codes[run],
            );
        }
        let lambda = match self.latent.lambada {
            None => Lambda::Fixed(self.lambda),
            Some(lambada) => {
                read_lambada(lambada, row, columns, &mut out.lambada);
                Lambda::Learned(&out.lambada)
            }
        };
        out.bias = tequila::dead_zone_sum(&out.w, &out.codes, lambda);
        if let Some(bias) = self.latent.bias {
            let mut own = [0.0];
            bias.read_f32(row, &mut own);
            out.bias += f64::from(own[0]);
        }
        if out.bias.is_finite() {
            Ok(())
        } else {
            Err(NotFinite { index: first })
        }
    }
}

/// Row `row` of a learned lambda: one number a weight, or one a row.
fn read_lambada(lambada: Tensor, row: usize, columns: usize, out: &mut Vec<f32>) {
    out.resize(columns, 0.0);
    if lambada.shape[1] == columns {
        lambada.read_f32(row * columns, out);
    } else {
        lambada.read_f32(row, &mut out[..1]);
        let lambda = out[0];
        out.fill(lambda);
    }
}

/// The scale of every group of the flattened matrix.
fn group_scales(weight: Tensor, group_size: usize) -> Result<Vec<f32>, NotFinite> {
    let count = weight.len();
    let scale_of = |group: usize| {
        let start = group * group_size;
        let size = group_size.min(count - start);
        let sum = absolute_sum(weight, start, size)?;
        Ok(tequila::scale(sum, size, weight.dtype))
    };
    (0..count.div_ceil(group_size))
        .into_par_iter()
        .map(scale_of)
        .collect()
}

/// Sum of |w| over `size` weights from `start`, a bounded piece at a time: a group can be a whole matrix.
fn absolute_sum(weight: Tensor, start: usize, size: usize) -> Result<f64, NotFinite> {
    const PIECE: usize = 1024;
    let mut piece = [0.0; PIECE];
    let mut sum = 0.0;
    for at in (0..size).step_by(PIECE) {
        let w = &mut piece[..PIECE.min(size - at)];
        weight.read_f32(start + at, w);
        tequila::check_finite(w).map_err(|found| NotFinite {
            index: start + at + found.index,
        })?;
        sum += tequila::absolute_sum(w);
    }
    Ok(sum)
}

/// What storing ternary weights loses, against the trained scales rounded to f16.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of squared errors.
    pub error: f64,
    /// Sum of squared weights.
    pub energy: f64,
}

impl Loss {
    /// Normalised mean squared error: error / energy, 0 where nothing is stored.
    pub fn nmse(self) -> f64 {
        if self.error == 0.0 {
            0.0
        } else {
            self.error / self.energy
        }
    }
}

impl std::ops::Add for Loss {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            error: self.error + other.error,
            energy: self.energy + other.energy,
        }
    }
}

impl std::iter::Sum for Loss {
    fn sum<I: Iterator<Item = Self>>(losses: I) -> Self {
        losses.fold(Self::default(), |sum, loss| sum + loss)
    }
}

/// A scale that a type cannot hold: too large for f16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleRange {
    /// The scale.
    pub scale: f32,
}

/// Write a row as blocks of `ty` and say what is lost. Where all scales of a stored scale's weights are equal nothing
/// is; else the stored scale is the least-squares one, each weight counting by `importance`.
///
/// `row.codes`, `row.scales`, `importance`: (columns,).  `out`: (`ty.row_bytes(columns)`,).
///
/// # Errors
/// A scale beyond the range of f16.
///
/// # Panics
/// Where `columns` is no whole number of blocks, or `ty` is no type that a ternary row is packed into.
pub fn encode(
    ty: BlockType,
    row: &Row,
    importance: &[f32],
    out: &mut [u8],
) -> Result<Loss, ScaleRange> {
    match ty {
        BlockType::TQ2_0 => encode_blocks(row, importance, out, tq2_0::pack),
        BlockType::TQ1_0 => encode_blocks(row, importance, out, tq1_0::pack),
        BlockType::Q2_0 => encode_blocks(row, importance, out, q2_0::pack),
        BlockType::Q4_0 => encode_blocks(row, importance, out, q4_0::pack),
        BlockType::Q8_0 => encode_blocks(row, importance, out, q8_0::pack),
        BlockType::Q2_K => encode_q2_k(row, importance, out),
        BlockType::F16 => encode_floats(row, out, reference, |w| {
            let stored = f16::from_f32(w);
            (stored.to_le_bytes(), stored.to_f32())
        }),
        BlockType::BF16 => encode_floats(row, out, Ok, |w| {
            let stored = bf16::from_f32(w);
            (stored.to_le_bytes(), stored.to_f32())
        }),
        BlockType::F32 => encode_floats(row, out, Ok, |w| (w.to_le_bytes(), w)),
        _ => panic!("{ty} holds no ternary weights"),
    }
}

/// Types with one scale a block.
fn encode_blocks<const WEIGHTS: usize, const BYTES: usize>(
    row: &Row,
    importance: &[f32],
    out: &mut [u8],
    pack: impl Fn(&[i8; WEIGHTS], f16) -> [u8; BYTES],
) -> Result<Loss, ScaleRange> {
    let mut loss = Loss::default();
    for (run, (codes, bytes)) in row
        .codes
        .as_chunks()
        .0
        .iter()
        .zip(out.as_chunks_mut().0)
        .enumerate()
    {
        let run = Run::new(row, importance, run * WEIGHTS..(run + 1) * WEIGHTS)?;
        let d = f16_of(run.best_scale())?;
        *bytes = pack(codes, d);
        loss = loss + run.loss(d.to_f32());
    }
    Ok(loss)
}

/// Q2_K: d for the block, a multiplier of 4 bits for each 16 weights.
fn encode_q2_k(row: &Row, importance: &[f32], out: &mut [u8]) -> Result<Loss, ScaleRange> {
    let mut loss = Loss::default();
    for (block, (codes, bytes)) in row
        .codes
        .as_chunks()
        .0
        .iter()
        .zip(out.as_chunks_mut().0)
        .enumerate()
    {
        let mut runs = [Run::default(); q2_k::SUB_BLOCKS];
        for (j, run) in runs.iter_mut().enumerate() {
            let start = block * q2_k::WEIGHTS + j * q2_k::SUB_BLOCK;
            *run = Run::new(row, importance, start..start + q2_k::SUB_BLOCK)?;
        }
        let (d, multipliers) = best_multipliers(&runs)?;
        *bytes = q2_k::pack(codes, d, &multipliers);
        loss = runs
            .iter()
            .zip(multipliers)
            .map(|(run, m)| run.loss(d.to_f32() * f32::from(m)))
            .fold(loss, |a, b| a + b);
    }
    Ok(loss)
}

/// Types without a scale: every weight by itself. `store`: the bytes of a weight, and what they mean.
fn encode_floats<const BYTES: usize>(
    row: &Row,
    out: &mut [u8],
    reference: impl Fn(f32) -> Result<f32, ScaleRange>,
    store: impl Fn(f32) -> ([u8; BYTES], f32),
) -> Result<Loss, ScaleRange> {
    let mut loss = Loss::default();
    for ((&code, &scale), bytes) in row.codes.iter().zip(&row.scales).zip(out.as_chunks_mut().0) {
        let w = reference(scale)? * f32::from(code);
        let (stored, meaning) = store(w);
        *bytes = stored;
        let (w, error) = (f64::from(w), f64::from(w) - f64::from(meaning));
        loss = loss
            + Loss {
                error: error * error,
                energy: w * w,
            };
    }
    Ok(loss)
}

/// `scale` to nearest f16.
fn f16_of(scale: f32) -> Result<f16, ScaleRange> {
    let rounded = f16::from_f32(scale);
    if rounded.is_finite() {
        Ok(rounded)
    } else {
        Err(ScaleRange { scale })
    }
}

/// The scale that every stored one is held against: the trained one as f16 has it, or, where f16 has only a poorer
/// subnormal number for it, the trained one itself, so that this counts as a loss.
fn reference(scale: f32) -> Result<f32, ScaleRange> {
    let rounded = f16_of(scale)?;
    Ok(if rounded.is_normal() {
        rounded.to_f32()
    } else {
        scale
    })
}

/// Weights that will share a stored scale, as the sums that a least-squares fit needs. With c the code, s the
/// reference scale and h the importance of each weight:
#[derive(Clone, Copy, Default)]
struct Run {
    /// The scale, where all weights have the same.
    common: Option<f32>,
    /// sum of s / n, for runs that are all dead zone
    mean: f64,
    /// sum of h c^2
    h: f64,
    /// sum of h c^2 s
    hs: f64,
    /// sum of c^2
    n: f64,
    /// sum of c^2 s
    s: f64,
    /// sum of c^2 s^2
    ss: f64,
}

impl Run {
    fn new(
        row: &Row,
        importance: &[f32],
        weights: std::ops::Range<usize>,
    ) -> Result<Self, ScaleRange> {
        let scales = &row.scales[weights.clone()];
        let first = reference(scales[0])?;
        let mut run = Self {
            common: Some(first),
            ..Self::default()
        };
        for ((&code, &scale), &h) in row.codes[weights.clone()]
            .iter()
            .zip(scales)
            .zip(&importance[weights.clone()])
        {
            let scale = if scale == scales[0] {
                first
            } else {
                reference(scale)?
            };
            if scale != first {
                run.common = None;
            }
            let (active, s, h) = (f64::from(code * code), f64::from(scale), f64::from(h));
            run.mean += s;
            run.h += h * active;
            run.hs += h * active * s;
            run.n += active;
            run.s += active * s;
            run.ss += active * s * s;
        }
        run.mean /= weights.len() as f64;
        Ok(run)
    }

    /// The t that makes sum of h c^2 (s - t)^2 smallest.
    fn best_scale(&self) -> f32 {
        match self.common {
            Some(scale) => scale,
            None if self.h > 0.0 => (self.hs / self.h) as f32,
            None => self.mean as f32,
        }
    }

    /// What storing `scale` for the whole run loses.
    fn loss(&self, scale: f32) -> Loss {
        let t = f64::from(scale);
        let error = if self.common == Some(scale) {
            0.0
        } else {
            self.ss - 2.0 * t * self.s + t * t * self.n
        };
        Loss {
            error: error.max(0.0),
            energy: self.ss,
        }
    }
}

/// The d and multipliers that make sum of h (s - d m)^2 over all runs smallest: for each multiplier that the largest
/// scale can have, the others follow by rounding, and d by least squares.
fn best_multipliers(
    runs: &[Run; q2_k::SUB_BLOCKS],
) -> Result<(f16, [u8; q2_k::SUB_BLOCKS]), ScaleRange> {
    let first = runs[0].common;
    if let Some(scale) = first.filter(|_| runs.iter().all(|run| run.common == first)) {
        return Ok((f16_of(scale)?, [1; q2_k::SUB_BLOCKS]));
    }
    let scales = runs.map(|run| run.best_scale());
    let largest = scales.into_iter().fold(0.0, f32::max);
    let mut best = (f64::INFINITY, f16::ZERO, [0; q2_k::SUB_BLOCKS]);
    for top in 1..=q2_k::MAX_MULTIPLIER {
        let unit = largest / f32::from(top);
        let multipliers = scales.map(|scale| (scale / unit).round() as u8); // at most `top`, as no scale is larger
        let pairs = || {
            runs.iter()
                .zip(multipliers)
                .map(|(run, m)| (run, f64::from(m)))
        };
        let (hsm, hmm) = pairs().fold((0.0, 0.0), |(hsm, hmm), (run, m)| {
            (hsm + run.hs * m, hmm + run.h * m * m)
        });
        let d = f16_of(if hmm > 0.0 { (hsm / hmm) as f32 } else { unit })?;
        let error = pairs()
            .map(|(run, m)| m * f64::from(d) * (m * f64::from(d) * run.h - 2.0 * run.hs))
            .sum();
        if error < best.0 {
            best = (error, d, multipliers);
        }
    }
    Ok((best.1, best.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(codes: &[i8], scales: &[f32]) -> Row {
        Row {
            codes: codes.into(),
            scales: scales.into(),
            ..Row::default()
        }
    }

    /// Codes 1, 0, -1, 1, 0, -1, ... and a scale for each half.
    fn halves(n: usize, scales: [f32; 2]) -> Row {
        let codes: Vec<_> = (0..n).map(|i| [1, 0, -1][i % 3]).collect();
        let scales: Vec<_> = (0..n).map(|i| scales[2 * i / n]).collect();
        row(&codes, &scales)
    }

    fn nmse(ty: BlockType, row: &Row) -> f64 {
        let columns = row.codes.len();
        let mut bytes = vec![0xaa; ty.row_bytes(columns).unwrap()];
        let loss = encode(ty, row, &vec![1.0; columns], &mut bytes).unwrap();
        let mut stored = vec![0.0; columns];
        ty.dequantize_row(&bytes, &mut stored).unwrap();
        let weights: Vec<_> = row
            .codes
            .iter()
            .zip(&row.scales)
            .map(|(&c, &s)| s * f32::from(c))
            .collect();
        let error: f64 = weights
            .iter()
            .zip(&stored)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum();
        assert!(
            (loss.error - error).abs() <= 1e-12 * loss.energy,
            "{ty}: {} is not {error}",
            loss.error
        );
        loss.nmse()
    }

    const TYPES: [BlockType; 6] = [
        BlockType::TQ2_0,
        BlockType::TQ1_0,
        BlockType::Q2_0,
        BlockType::Q2_K,
        BlockType::Q4_0,
        BlockType::Q8_0,
    ];

    #[test]
    fn one_scale_a_block_loses_nothing() {
        for ty in TYPES
            .into_iter()
            .chain([BlockType::F16, BlockType::BF16, BlockType::F32])
        {
            assert_eq!(nmse(ty, &halves(512, [0.5, 0.5])), 0.0, "{ty}");
        }
    }

    #[test]
    fn scales_of_128_weights_fit_blocks_of_64_and_32_only() {
        let row = halves(256, [0.5, 0.4375]);
        let lossless: Vec<_> = TYPES
            .into_iter()
            .filter(|&ty| nmse(ty, &row) == 0.0)
            .collect();
        assert_eq!(
            lossless,
            [
                BlockType::Q2_0,
                BlockType::Q2_K,
                BlockType::Q4_0,
                BlockType::Q8_0
            ]
        ); // 0.5 / 0.4375 = 8 / 7
        assert!(nmse(BlockType::TQ2_0, &row) > 4e-3);
    }

    #[test]
    fn q2_k_is_never_farther_off_than_its_coarsest_ratio() {
        for step in 0..100 {
            let ratio = 1.0 + step as f32 / 50.0;
            let scale = f16::from_f32(0.25 * ratio).to_f32();
            let nmse = nmse(BlockType::Q2_K, &halves(256, [0.25, scale]));
            assert!(nmse <= 0.0173f64.powi(2), "{ratio}: {nmse}");
        }
    }

    #[test]
    fn the_merged_scale_is_the_weighted_mean_of_the_active_weights() {
        let mut row = halves(64, [1.0, 3.0]);
        row.codes.fill(0);
        (row.codes[0], row.codes[63]) = (1, -1);
        let mut importance = vec![1.0; 64];
        importance[63] = 3.0;
        let mut bytes = [0; 18];
        encode(BlockType::Q2_0, &row, &importance, &mut bytes).unwrap();
        assert_eq!(q2_0::view(&bytes).scale().to_f32(), 2.5);
    }

    #[test]
    fn a_scale_beyond_f16_is_refused_and_a_subnormal_one_counted() {
        let large = halves(256, [1e5, 1e5]);
        let mut bytes = [0; 66];
        let refused = encode(BlockType::TQ2_0, &large, &[1.0; 256], &mut bytes);
        assert_eq!(refused, Err(ScaleRange { scale: 1e5 }));
        assert_eq!(nmse(BlockType::F32, &large), 0.0);
        assert!(nmse(BlockType::TQ2_0, &halves(256, [1.23e-7, 1.23e-7])) > 1e-4);
    }
}
