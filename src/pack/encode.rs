//! Codes and scales of a row to bytes of a block type, with what that loses.

use formats::block::{BlockType, q2_0, q2_k, q4_0, q8_0, tq1_0, tq2_0};
use half::{bf16, f16};

use super::ternary::TernaryRow;
use crate::simd::{LANES, Lanes};

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
pub struct Scratch {
    segments: Vec<Segment>,
    parts: Vec<Part>,
    blocks: Vec<Block>,
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
/// Where `columns` is no whole number of blocks, or `ty` is no type that a ternary row is packed into.
#[inline(always)]
pub fn encode(
    lanes: impl Lanes,
    ty: BlockType,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
    out: Option<&mut [u8]>,
) -> Result<Loss, ScaleRange> {
    match ty {
        BlockType::TQ2_0 => encode_blocks(lanes, row, importance, scratch, out, tq2_0::pack),
        BlockType::TQ1_0 => encode_blocks(lanes, row, importance, scratch, out, tq1_0::pack),
        BlockType::Q2_0 => encode_blocks(lanes, row, importance, scratch, out, q2_0::pack),
        BlockType::Q4_0 => encode_blocks(lanes, row, importance, scratch, out, q4_0::pack),
        BlockType::Q8_0 => encode_blocks(lanes, row, importance, scratch, out, q8_0::pack),
        BlockType::Q2_K => encode_q2_k(lanes, row, importance, scratch, out),
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
#[inline(always)]
fn encode_blocks<const WEIGHTS: usize, const BYTES: usize>(
    lanes: impl Lanes,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
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

/// Q2_K: d for the block, a multiplier of 4 bits for each 16 weights.
#[inline(always)]
fn encode_q2_k(
    lanes: impl Lanes,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    scratch: &mut Scratch,
    mut out: Option<&mut [u8]>,
) -> Result<Loss, ScaleRange> {
    const WEIGHTS: usize = q2_k::WEIGHTS;
    // Where no run of scales ends within a sub-block, those of one run are searched together.
    let aligned = row.ends.iter().all(|end| end.is_multiple_of(q2_k::SUB_BLOCK));
    let cut = if aligned { WEIGHTS } else { q2_k::SUB_BLOCK };
    let Scratch {
        segments: found,
        parts,
        blocks,
    } = scratch;
    found.clear();
    parts.clear();
    blocks.clear();
    // Each step for all blocks: a block's search is a long chain, and the processor takes the next while it waits.
    let mut run = 0;
    for start in (0..row.codes.len()).step_by(WEIGHTS) {
        let (first, first_part) = (found.len(), parts.len());
        let columns = start..start + WEIGHTS;
        segments(lanes, row, importance, columns, &mut run, cut, found)?;
        if common_scale(&found[first..]).is_none() {
            gather_parts(found, first, aligned, parts);
        }
        blocks.push(Block {
            segments: first..found.len(),
            parts: first_part..parts.len(),
            d: f16::ZERO,
        });
    }
    for block in blocks.iter_mut() {
        let parts = &mut parts[block.parts.clone()];
        block.d = match parts.is_empty() {
            true => f16_of(found[block.segments.start].scale)?,
            false => best_multipliers(lanes, parts)?,
        };
    }
    let mut loss = Loss::default();
    for (index, block) in blocks.iter().enumerate() {
        let mut multipliers = [1; q2_k::SUB_BLOCKS];
        let d = block.d.to_f32();
        if block.parts.is_empty() {
            loss = loss + loss_of(&found[block.segments.clone()], d);
        }
        for part in &parts[block.parts.clone()] {
            // Parts follow each other, and the next one takes what is behind this one.
            for (sub_block, multiplier) in multipliers.iter_mut().enumerate() {
                if sub_block >= part.sub_blocks.start {
                    *multiplier = part.multiplier;
                }
            }
            let scale = d * f32::from(part.multiplier);
            loss = loss + loss_of(&found[part.segments.clone()], scale);
        }
        if let Some(out) = &mut out {
            let codes = &row.codes.as_chunks().0[index];
            let out = &mut out.as_chunks_mut().0[index];
            q2_k::pack_into(codes, block.d, &multipliers, out);
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

/// The scale that every stored one is held against: the trained one as f16 has it, or, where f16 has only a poorer
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
    /// How many weights are active.
    active: f64,
    /// How much the active weights count together.
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
        let (importance, active) = match importance {
            Some(h) => lanes.active_sum(codes, &h[start..end]),
            None => {
                let active = lanes.active_count(codes);
                (active as f64, active)
            }
        };
        out.push(Segment {
            start: start - columns.start,
            columns: end - start,
            scale: reference(row.scales[*run])?,
            active: active as f64,
            importance,
        });
        *run += usize::from(end == row.ends[*run]);
        start = end;
    }
    Ok(())
}

/// The scale of all segments, where it is the same.
#[inline(always)]
fn common_scale(segments: &[Segment]) -> Option<f32> {
    let first = segments[0].scale;
    segments.iter().all(|segment| segment.scale == first).then_some(first)
}

/// The t that makes sum of importance * (scale - t)^2 over the active weights smallest.
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
            error: segment.active * off * off,
            energy: segment.active * s * s,
        }
    })
}

/// Sub-blocks that get one multiplier.
#[derive(Clone)]
struct Part {
    segments: std::ops::Range<usize>,
    sub_blocks: std::ops::Range<usize>,
    /// The scale to be met.
    scale: f32,
    /// h: how much it counts.
    importance: f64,
    /// m
    multiplier: u8,
}

/// A block of Q2_K: its segments, and its parts where it has more than one scale.
struct Block {
    segments: std::ops::Range<usize>,
    parts: std::ops::Range<usize>,
    d: f16,
}

/// Segments from `first` on to parts: each by itself where it covers whole sub-blocks, else those of a sub-block
/// together.
#[inline(always)]
fn gather_parts(segments: &[Segment], mut first: usize, aligned: bool, parts: &mut Vec<Part>) {
    while first < segments.len() {
        let sub_block = segments[first].start / q2_k::SUB_BLOCK;
        let in_part = |segment: &Segment| !aligned && segment.start / q2_k::SUB_BLOCK == sub_block;
        let more = segments[first + 1..].iter().take_while(|s| in_part(s)).count();
        let end = first + 1 + more;
        let part = &segments[first..end];
        let last_column = part[more].start + part[more].columns;
        parts.push(Part {
            segments: first..end,
            sub_blocks: sub_block..last_column.div_ceil(q2_k::SUB_BLOCK),
            scale: best_scale(part),
            importance: part.iter().map(|segment| segment.importance).sum(),
            multiplier: 0,
        });
        first = end;
    }
}

/// Find the d and multipliers that make sum of h (s - d m)^2 over all parts smallest: for each multiplier that the
/// largest scale can have, the others follow by rounding, and d by least squares, rounded to f16.
#[inline(always)]
fn best_multipliers(lanes: impl Lanes, parts: &mut [Part]) -> Result<f16, ScaleRange> {
    // One lane for each multiplier of the largest scale, 1..=15, and one more to fill the vectors.
    let top = |lane: usize| (lane + 1).min(usize::from(q2_k::MAX_MULTIPLIER)) as f32;
    let largest = parts.iter().fold(0.0, |largest, part| part.scale.max(largest));
    let (mut hsm, mut hmm) = ([0.0; LANES], [0.0; LANES]);
    for part in parts.iter() {
        let ratio = part.scale / largest;
        let (h, s) = (part.importance, f64::from(part.scale));
        for lane in 0..LANES {
            let m = f64::from((ratio * top(lane)).round_ties_even());
            hsm[lane] += h * s * m;
            hmm[lane] += h * m * m;
        }
    }
    let (mut d, mut error) = ([0.0; LANES], [0.0; LANES]);
    for lane in 0..LANES {
        let fitted = hsm[lane] / hmm[lane];
        let unit = largest / top(lane);
        d[lane] = round_to_f16(if hmm[lane] > 0.0 { fitted as f32 } else { unit });
        let stored = f64::from(d[lane]);
        error[lane] = stored * (stored * hmm[lane] - 2.0 * hsm[lane]);
    }
    let best = lanes.first_least(&error);
    for part in parts {
        part.multiplier = (part.scale / largest * top(best)).round_ties_even() as u8;
    }
    f16_of(d[best])
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Plain;

    /// A row with a scale for every weight.
    fn row(codes: &[i8], scales: &[f32]) -> TernaryRow {
        TernaryRow {
            codes: codes.into(),
            ends: (1..=scales.len()).collect(),
            scales: scales.into(),
        }
    }

    /// The same row with as few runs as possible.
    fn merged(row: &TernaryRow) -> TernaryRow {
        let runs: Vec<_> = row.scales.chunk_by(|a, b| a == b).collect();
        let ends = runs.iter().scan(0, |end, run| {
            *end += run.len();
            Some(*end)
        });
        TernaryRow {
            codes: row.codes.clone(),
            ends: ends.collect(),
            scales: runs.iter().map(|run| run[0]).collect(),
        }
    }

    /// Codes 1, 0, -1, 1, 0, -1, ... and a scale for each of some equal parts.
    fn parts(n: usize, scales: &[f32]) -> TernaryRow {
        let codes: Vec<_> = (0..n).map(|i| [1, 0, -1][i % 3]).collect();
        let scales: Vec<_> = (0..n).map(|i| scales[scales.len() * i / n]).collect();
        row(&codes, &scales)
    }

    fn encoded(ty: BlockType, row: &TernaryRow, importance: Option<&[f32]>) -> (Loss, Vec<u8>) {
        let mut bytes = vec![0xaa; ty.row_bytes(row.codes.len()).unwrap()];
        let mut scratch = Scratch::default();
        let loss = encode(Plain, ty, row, importance, &mut scratch, Some(&mut bytes)).unwrap();
        assert_eq!(encode(Plain, ty, row, importance, &mut scratch, None), Ok(loss));
        (loss, bytes)
    }

    fn nmse(ty: BlockType, row: &TernaryRow) -> f64 {
        let (loss, bytes) = encoded(ty, row, None);
        let mut stored = vec![0.0; row.codes.len()];
        ty.dequantize_row(&bytes, &mut stored).unwrap();
        let weights = row.codes.iter().zip(&row.scales);
        let error: f64 = weights
            .map(|(&code, scale)| scale * f32::from(code))
            .zip(&stored)
            .map(|(a, b)| f64::from(a - b).powi(2))
            .sum();
        assert!(
            (loss.error - error).abs() <= 1e-12 * loss.energy,
            "{ty}: {} is not {error}",
            loss.error
        );
        let (merged_loss, merged_bytes) = encoded(ty, &merged(row), None);
        assert!((merged_loss.error - error).abs() <= 1e-12 * loss.energy);
        assert_eq!(merged_bytes, bytes, "{ty}: the same scales in other runs");
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
            assert_eq!(nmse(ty, &parts(512, &[0.5])), 0.0, "{ty}");
        }
    }

    #[test]
    fn scales_of_128_weights_fit_blocks_of_64_and_32_only() {
        let row = parts(256, &[0.5, 0.4375]);
        let lossless: Vec<_> = TYPES.into_iter().filter(|&ty| nmse(ty, &row) == 0.0).collect();
        assert_eq!(
            lossless,
            [BlockType::Q2_0, BlockType::Q2_K, BlockType::Q4_0, BlockType::Q8_0]
        ); // 0.5 / 0.4375 = 8 / 7
        assert!(nmse(BlockType::TQ2_0, &row) > 4e-3);
    }

    #[test]
    fn scales_that_change_anywhere_are_merged_within_their_sub_block() {
        // Groups of 24 weights: a sub-block of 16 lies in one or two of them.
        let scales: Vec<_> = (0..256).map(|i| [0.5, 0.25, 0.125][i / 24 % 3]).collect();
        let codes: Vec<_> = (0..256).map(|i| [1, 0, -1, -1, 1][i % 5]).collect();
        for ty in TYPES {
            assert!(nmse(ty, &row(&codes, &scales)) < 0.4, "{ty}");
        }
    }

    #[test]
    fn q2_k_is_never_farther_off_than_its_coarsest_ratio() {
        for step in 0..100 {
            let ratio = 1.0 + step as f32 / 50.0;
            let scale = f16::from_f32(0.25 * ratio).to_f32();
            let nmse = nmse(BlockType::Q2_K, &parts(256, &[0.25, scale]));
            assert!(nmse <= 0.0173f64.powi(2), "{ratio}: {nmse}");
        }
    }

    /// Error of storing `parts` with these multipliers and the best d.
    fn error(parts: &[(f32, f64)], multipliers: &[u8]) -> f64 {
        let pairs = || parts.iter().zip(multipliers);
        let hsm: f64 = pairs().map(|((s, h), &m)| h * f64::from(*s) * f64::from(m)).sum();
        let hmm: f64 = pairs().map(|((_, h), &m)| h * f64::from(m).powi(2)).sum();
        let d = f64::from(f16::from_f32((hsm / hmm) as f32).to_f32());
        pairs()
            .map(|((s, h), &m)| h * (f64::from(*s) - d * f64::from(m)).powi(2))
            .sum()
    }

    fn searched(parts: &[(f32, f64)]) -> f64 {
        let mut parts: Vec<_> = (0..)
            .zip(parts)
            .map(|(index, &(scale, importance))| Part {
                segments: index..index + 1,
                sub_blocks: index..index + 1,
                scale,
                importance,
                multiplier: 0,
            })
            .collect();
        let d = f64::from(best_multipliers(Plain, &mut parts).unwrap().to_f32());
        let off = |part: &Part| f64::from(part.scale) - d * f64::from(part.multiplier);
        parts.iter().map(|part| part.importance * off(part).powi(2)).sum()
    }

    #[test]
    fn the_search_finds_the_best_of_all_pairs_of_multipliers() {
        let mut worse = 0;
        for step in 0..=1000 {
            for importance in [1.0, 0.3, 4.0] {
                let ratio = 1.0 - step as f32 / 1001.0;
                let parts = [(0.02, 100.0), (0.02 * ratio, 100.0 * importance)];
                let all = (0..=15).flat_map(|a| (0..=15).map(move |b| [a, b]));
                let best = all
                    .filter(|pair| pair != &[0, 0])
                    .map(|pair| error(&parts, &pair))
                    .fold(f64::INFINITY, f64::min);
                let found = searched(&parts);
                // Multipliers follow by rounding the ratio, which is not weighted: next to 1 / 15 that can cost a little.
                assert!(found <= 1.3 * best + 1e-12, "{parts:?}: {found} instead of {best}");
                worse += u32::from(found > best * (1.0 + 1e-9) + 1e-15);
            }
        }
        assert!(worse <= 60, "{worse} of 3003 are not the best");
    }

    #[test]
    fn lanes_of_rounding_are_f16() {
        // Every f16 of either kind, the number halfway to the next, and its neighbours.
        for bits in 0..f16::MAX.to_bits() {
            let (x, next) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            let halfway = (x + next) / 2.0;
            for x in [x, halfway, halfway.next_down().max(0.0), halfway.next_up()] {
                assert_eq!(round_to_f16(x), f16::from_f32(x).to_f32(), "{x:e}");
            }
        }
    }

    #[test]
    fn the_merged_scale_is_the_weighted_mean_of_the_active_weights() {
        let mut row = merged(&parts(64, &[1.0, 3.0]));
        row.codes.fill(0);
        (row.codes[0], row.codes[63]) = (1, -1);
        let mut importance = vec![1.0; 64];
        importance[63] = 3.0;
        let (_, bytes) = encoded(BlockType::Q2_0, &row, Some(&importance));
        let block: &[u8; 18] = bytes.first_chunk().unwrap();
        assert_eq!(q2_0::view(block).scale().to_f32(), 2.5);
    }

    #[test]
    fn a_scale_beyond_f16_is_refused_and_a_subnormal_one_counted() {
        let large = parts(256, &[1e5, 1e5]);
        let refused = encode(Plain, BlockType::TQ2_0, &large, None, &mut Scratch::default(), None);
        assert_eq!(refused, Err(ScaleRange { scale: 1e5 }));
        assert_eq!(nmse(BlockType::F32, &large), 0.0);
        assert!(nmse(BlockType::TQ2_0, &parts(256, &[1.23e-7])) > 1e-4);
    }
}
