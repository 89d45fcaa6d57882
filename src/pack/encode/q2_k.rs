//! Q2_K: d for a block of 256 weights, and a multiplier of 4 bits for each 16 of them.

use std::ops::Range;

use formats::block::q2_k::{
    MAX_FOUR_LEVEL_MULTIPLIER, MAX_MULTIPLIER, SUB_BLOCK, SUB_BLOCKS, WEIGHTS, pack_four_levels_into, pack_into,
};
use half::f16;

use super::{Loss, ScaleRange, Segment, best_scale, common_scale, f16_of, loss_of, round_to_f16, segments};
use crate::pack::ternary::{Levels, TernaryRow};
use crate::simd::{LANES, Lanes};

/// The blocks of a row.
#[derive(Default)]
pub struct Found {
    segments: Vec<Segment>,
    parts: Vec<Part>,
    blocks: Vec<Block>,
}

/// A block: its segments, and its parts where it has more than one scale.
struct Block {
    segments: Range<usize>,
    parts: Range<usize>,
    d: f16,
}

/// Sub-blocks that get one multiplier.
pub struct Part {
    pub segments: Range<usize>,
    pub sub_blocks: Range<usize>,
    /// The scale to be met.
    pub scale: f32,
    /// h: how much it counts.
    pub importance: f64,
    /// m
    pub multiplier: u8,
}

/// As [`super::encode`].
///
/// Each step is done for all blocks before the next: a block's search is a long chain, and the processor takes the next
/// block while it waits.
#[inline(always)]
pub fn encode(
    lanes: impl Lanes,
    row: &TernaryRow,
    importance: Option<&[f32]>,
    found: &mut Found,
    mut out: Option<&mut [u8]>,
) -> Result<Loss, ScaleRange> {
    cut(lanes, row, importance, found)?;
    let Found {
        segments,
        parts,
        blocks,
    } = found;
    let most = match row.levels {
        Levels::Three => MAX_MULTIPLIER,
        Levels::Four => MAX_FOUR_LEVEL_MULTIPLIER,
    };
    for block in blocks.iter_mut() {
        let parts = &mut parts[block.parts.clone()];
        block.d = match parts.is_empty() {
            true => f16_of(segments[block.segments.start].scale)?,
            false => best_multipliers(lanes, parts, most)?,
        };
    }
    let mut loss = Loss::default();
    for (index, block) in blocks.iter().enumerate() {
        let (parts, d) = (&parts[block.parts.clone()], block.d.to_f32());
        let mut multipliers = [1; SUB_BLOCKS];
        if parts.is_empty() {
            loss = loss + loss_of(&segments[block.segments.clone()], d);
        }
        for part in parts {
            multipliers[part.sub_blocks.clone()].fill(part.multiplier);
            let scale = d * f32::from(part.multiplier);
            loss = loss + loss_of(&segments[part.segments.clone()], scale);
        }
        if let Some(out) = &mut out {
            let (codes, out) = (&row.codes.as_chunks().0[index], &mut out.as_chunks_mut().0[index]);
            match row.levels {
                Levels::Three => pack_into(codes, block.d, &multipliers, out),
                Levels::Four => pack_four_levels_into(codes, block.d, &multipliers, out),
            }
        }
    }
    Ok(loss)
}

/// Cut the row into blocks, segments and parts.
#[inline(always)]
fn cut(lanes: impl Lanes, row: &TernaryRow, importance: Option<&[f32]>, found: &mut Found) -> Result<(), ScaleRange> {
    // Where no run of scales ends within a sub-block, those of one run are searched together.
    let aligned = row.ends.iter().all(|end| end.is_multiple_of(SUB_BLOCK));
    let cut = if aligned { WEIGHTS } else { SUB_BLOCK };
    found.segments.clear();
    found.parts.clear();
    found.blocks.clear();
    let mut run = 0;
    for start in (0..row.codes.len()).step_by(WEIGHTS) {
        let (first, first_part) = (found.segments.len(), found.parts.len());
        let columns = start..start + WEIGHTS;
        segments(lanes, row, importance, columns, &mut run, cut, &mut found.segments)?;
        if common_scale(&found.segments[first..]).is_none() {
            gather_parts(&found.segments, first, aligned, &mut found.parts);
        }
        found.blocks.push(Block {
            segments: first..found.segments.len(),
            parts: first_part..found.parts.len(),
            d: f16::ZERO,
        });
    }
    Ok(())
}

/// Segments from `first` on to parts: each by itself where it covers whole sub-blocks, else those of a sub-block
/// together.
#[inline(always)]
fn gather_parts(segments: &[Segment], mut first: usize, aligned: bool, parts: &mut Vec<Part>) {
    while first < segments.len() {
        let sub_block = segments[first].start / SUB_BLOCK;
        let in_part = |segment: &Segment| !aligned && segment.start / SUB_BLOCK == sub_block;
        let more = segments[first + 1..].iter().take_while(|s| in_part(s)).count();
        let end = first + 1 + more;
        let part = &segments[first..end];
        let last_column = part[more].start + part[more].columns;
        parts.push(Part {
            segments: first..end,
            sub_blocks: sub_block..last_column.div_ceil(SUB_BLOCK),
            scale: best_scale(part),
            importance: part.iter().map(|segment| segment.importance).sum(),
            multiplier: 0,
        });
        first = end;
    }
}

/// Find the d and multipliers that make sum of h (s - d m)^2 over all parts smallest: for each multiplier that the
/// largest scale can have, 1..=`most`, the others follow by rounding, and d by least squares, rounded to f16.
#[inline(always)]
pub fn best_multipliers(lanes: impl Lanes, parts: &mut [Part], most: u8) -> Result<f16, ScaleRange> {
    // One lane for each of up to 15 multipliers of the largest scale, and one more to fill the vectors.
    let top = |lane: usize| (lane + 1).min(usize::from(most)) as f32;
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
