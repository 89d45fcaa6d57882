//! Codes and scales of a row to bytes of a block type, with what that loses.

mod q2_k;
#[cfg(test)]
mod tests;

use formats::block::{BlockType, q2_0, q4_0, q8_0, tq1_0, tq2_0};
use half::{bf16, f16};

use super::ternary::{Levels, TernaryRow};
use crate::simd::Lanes;

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

    #[inline(always)]
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

/// Room that [`encode`] works in.
#[derive(Default)]
pub struct BlockScratch {
    segments: Vec<Segment>,
    q2_k: q2_k::Found,
}

/// Say what storing a row as blocks of `ty` loses, and write them where `out` is given. Where all scales of a stored
/// scale's weights are equal nothing is lost; else the stored scale is the least-squares one, each weight counting by
/// its importance, or as much as every other where there is none.
///
/// `row.codes`, `importance`: (columns,).  `out`: (`ty.row_bytes(columns)`,).
///
/// # Errors
/// A scale beyond the range of f16.
///
/// # Panics
/// Where `columns` is not a whole number of blocks, or `ty` is no type that such a row is packed into.
#[inline(always)]
pub fn encode(
    lanes: impl Lanes,
    ty: BlockType,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    scratch: &mut BlockScratch,
    out: Option<&mut [u8]>,
) -> Result<Loss, ScaleRange> {
    let mut loss = match ty {
        BlockType::TQ2_0 => encode_blocks(lanes, row, importance, scratch, out, tq2_0::pack),
        BlockType::TQ1_0 => encode_blocks(lanes, row, importance, scratch, out, tq1_0::pack),
        BlockType::Q2_0 => encode_blocks(lanes, row, importance, scratch, out, q2_0::pack),
        BlockType::Q4_0 => encode_blocks(lanes, row, importance, scratch, out, q4_0::pack),
        BlockType::Q8_0 => encode_blocks(lanes, row, importance, scratch, out, q8_0::pack),
        BlockType::Q2_K => q2_k::encode(lanes, row, importance, &mut scratch.q2_k, out),
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
    }?;
    loss.error += row.error;
    Ok(loss)
}

/// Types with one scale a block.
#[inline(always)]
fn encode_blocks<const WEIGHTS: usize, const BYTES: usize>(
    lanes: impl Lanes,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    scratch: &mut BlockScratch,
    mut out: Option<&mut [u8]>,
    pack: impl Fn(&[i8; WEIGHTS], f16) -> [u8; BYTES],
) -> Result<Loss, ScaleRange> {
    let (mut loss, mut run) = (Loss::default(), 0);
    for (block, codes) in row.codes.as_chunks().0.iter().enumerate() {
        let columns = block * WEIGHTS..(block + 1) * WEIGHTS;
        scratch.segments.clear();
        segments(
            lanes,
            row,
            importance,
            columns,
            &mut run,
            WEIGHTS,
            &mut scratch.segments,
        )?;
        let d = f16_of(best_scale(&scratch.segments))?;
        loss = loss + loss_of(&scratch.segments, d.to_f32());
        if let Some(out) = &mut out {
            out[block * BYTES..][..BYTES].copy_from_slice(&pack(codes, d));
        }
    }
    Ok(loss)
}

/// Types without a scale: every weight by itself. `store`: the bytes of a weight, and what they mean.
#[inline(always)]
fn encode_floats<const BYTES: usize>(
    row: &TernaryRow,
    mut out: Option<&mut [u8]>,
    reference: impl Fn(f32) -> Result<f32, ScaleRange>,
    store: impl Fn(f32) -> ([u8; BYTES], f32),
) -> Result<Loss, ScaleRange> {
    let (mut loss, mut start) = (Loss::default(), 0);
    for (&scale, &end) in row.scales.iter().zip(&row.ends) {
        let scale = reference(scale)?;
        for column in start..end {
            let w = scale * f32::from(row.codes[column]);
            let (bytes, meaning) = store(w);
            let (w, error) = (f64::from(w), f64::from(w) - f64::from(meaning));
            loss = loss
                + Loss {
                    error: error * error,
                    energy: w * w,
                };
            if let Some(out) = &mut out {
                out[column * BYTES..][..BYTES].copy_from_slice(&bytes);
            }
        }
        start = end;
    }
    Ok(loss)
}

/// `scale` to nearest f16.
#[inline(always)]
fn f16_of(scale: f32) -> Result<f16, ScaleRange> {
    let rounded = f16::from_f32(scale);
    if rounded.is_finite() {
        Ok(rounded)
    } else {
        Err(ScaleRange { scale })
    }
}

/// The scale that every stored one is compared with: the trained one as f16 has it, or, where f16 has only a poorer
/// subnormal number for it, the trained one itself, so that this counts as a loss.
#[inline(always)]
fn reference(scale: f32) -> Result<f32, ScaleRange> {
    let rounded = round_to_f16(scale);
    if rounded > f16::MAX.to_f32_const() {
        return Err(ScaleRange { scale });
    }
    let subnormal = rounded < f16::MIN_POSITIVE.to_f32_const();
    Ok(if subnormal { scale } else { rounded })
}

/// Columns of a block that share a trained scale.
#[derive(Clone, Copy)]
struct Segment {
    /// First column, from the start of the block.
    start: usize,
    /// How many columns.
    columns: usize,
    /// The scale to be stored.
    scale: f32,
    /// The sum of the squared codes: of ternary ones, how many are active.
    energy: f64,
    /// The same, each counting by its importance.
    importance: f64,
}

/// Cut `columns` where the scale changes and at every multiple of `cut`. `run` is the index of the row's run that
/// holds the first column, and is moved to that of the column after the last. What is found is added to `out`.
#[inline(always)]
fn segments(
    lanes: impl Lanes,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    columns: std::ops::Range<usize>,
    run: &mut usize,
    cut: usize,
    out: &mut Vec<Segment>,
) -> Result<(), ScaleRange> {
    let mut start = columns.start;
    while start < columns.end {
        let end = row.ends[*run].min((start / cut + 1) * cut);
        let codes = &row.codes[start..end];
        let importance = importance.map(|importance| &importance[start..end]);
        let (importance, energy) = match row.levels {
            Levels::Three => energy(lanes, codes, importance),
            Levels::Four => energy_of_four(codes, importance),
        };
        out.push(Segment {
            start: start - columns.start,
            columns: end - start,
            scale: reference(row.scales[*run])?,
            energy,
            importance,
        });
        *run += usize::from(end == row.ends[*run]);
        start = end;
    }
    Ok(())
}

/// How much the active of ternary weights count together, and how many they are.
#[inline(always)]
fn energy(lanes: impl Lanes, codes: &[i8], importance: Option<&[f32]>) -> (f64, f64) {
    let (importance, active) = match importance {
        Some(importance) => lanes.active_sum(codes, importance),
        None => {
            let active = lanes.active_count(codes);
            (active as f64, active)
        }
    };
    (importance, active as f64)
}

/// The same for four levels, whose outer ones count nine times.
#[inline(always)]
fn energy_of_four(codes: &[i8], importance: Option<&[f32]>) -> (f64, f64) {
    let squares = codes.iter().map(|&code| f64::from(i32::from(code).pow(2)));
    let energy = squares.clone().sum();
    let importance = importance.map_or(energy, |importance| {
        squares
            .zip(importance)
            .map(|(square, &importance)| square * f64::from(importance))
            .sum()
    });
    (importance, energy)
}

/// The scale of all segments, where it is the same.
#[inline(always)]
fn common_scale(segments: &[Segment]) -> Option<f32> {
    let first = segments[0].scale;
    segments.iter().all(|segment| segment.scale == first).then_some(first)
}

/// The t that makes sum of importance * code^2 * (scale - t)^2 smallest.
#[inline(always)]
fn best_scale(segments: &[Segment]) -> f32 {
    if let Some(scale) = common_scale(segments) {
        return scale;
    }
    let sum = |term: fn(&Segment) -> f64| segments.iter().map(term).sum::<f64>();
    let importance = sum(|segment| segment.importance);
    let best = if importance > 0.0 {
        sum(|segment| segment.importance * f64::from(segment.scale)) / importance
    } else {
        sum(|segment| segment.columns as f64 * f64::from(segment.scale)) / sum(|segment| segment.columns as f64)
    };
    best as f32
}

/// What storing `scale` for all segments loses.
#[inline(always)]
fn loss_of(segments: &[Segment], scale: f32) -> Loss {
    segments.iter().fold(Loss::default(), |loss, segment| {
        let (s, off) = (f64::from(segment.scale), f64::from(segment.scale) - f64::from(scale));
        loss + Loss {
            error: segment.energy * off * off,
            energy: segment.energy * s * s,
        }
    })
}

/// `x` >= 0 rounded to the nearest f16, ties to even, as long as it is in f16's range: without a branch, so that lanes
/// of it are vectors.
#[inline(always)]
fn round_to_f16(x: f32) -> f32 {
    const DROPPED: u32 = 13; // bits of significand that f16 lacks
    const SUBNORMAL: f32 = 0.75; // the last bit of a f32 between 1/2 and 1 is the last of a subnormal f16, 2^-24
    let bits = x.to_bits();
    let half_less = (1 << (DROPPED - 1)) - 1;
    let rounded = (bits + half_less + (bits >> DROPPED & 1)) >> DROPPED << DROPPED;
    if x < f16::MIN_POSITIVE.to_f32_const() {
        (x + SUBNORMAL) - SUBNORMAL
    } else {
        f32::from_bits(rounded)
    }
}
