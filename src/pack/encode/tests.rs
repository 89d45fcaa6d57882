//! Tests of what blocks hold, and what they lose.

use super::q2_k::{Part, best_multipliers};
use super::*;
use crate::simd::Plain;

/// A row with a scale for every weight.
fn row(codes: &[i8], scales: &[f32]) -> TernaryRow {
    TernaryRow {
        codes: codes.into(),
        ends: (1..=scales.len()).collect(),
        scales: scales.into(),
        ..TernaryRow::default()
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
        ..row.clone()
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
    let mut scratch = BlockScratch::default();
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
fn four_levels_lose_what_their_merged_scales_are_off() {
    let four = |scales: &[f32]| TernaryRow {
        codes: (0..512).map(|i| [-3, 1, 3, -1, -1, 3, 3][i % 7]).collect(),
        levels: Levels::Four,
        ..parts(512, scales)
    };
    for ty in [BlockType::Q2_K, BlockType::Q4_0, BlockType::Q8_0] {
        assert_eq!(nmse(ty, &four(&[0.5])), 0.0, "{ty}");
    }
    // Scales of 16 weights each: Q2_K has multipliers up to 5 for them, Q4_0 one scale for two.
    let scales: Vec<_> = (0..32).map(|i| [5.0, 4.0, 2.0, 1.0][i % 4]).collect();
    assert_eq!(nmse(BlockType::Q2_K, &four(&scales)), 0.0);
    for ty in [BlockType::Q4_0, BlockType::Q8_0] {
        assert!((1e-3..0.1).contains(&nmse(ty, &four(&scales))), "{ty}");
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
    let d = f64::from(best_multipliers(Plain, &mut parts, 15).unwrap().to_f32());
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
    let refused = encode(
        Plain,
        BlockType::TQ2_0,
        &large,
        None,
        &mut BlockScratch::default(),
        None,
    );
    assert_eq!(refused, Err(ScaleRange { scale: 1e5 }));
    assert_eq!(nmse(BlockType::F32, &large), 0.0);
    assert!(nmse(BlockType::TQ2_0, &parts(256, &[1.23e-7])) > 1e-4);
}
