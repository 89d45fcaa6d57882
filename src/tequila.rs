//! The formula: latent weights to scales, codes and offline biases (arXiv 2509.23809, as AngelSlim's
//! `UltraQuantLinear` computes it). Plain loops without a branch, which compilers turn into vector code.
//!
//! ```text
//! y = A x + bias            A = scale * code
//! scale = mean |w| over the group          delta = scale / 2
//! code  = +1 where w >= delta, -1 where w <= -delta, else 0 (the dead zone)
//! bias  = sum of lambda * w over the dead zone of the row
//! ```
//!
//! Groups are runs of the flattened row-major matrix, so that they may cross rows. Scale, delta and the comparison
//! are in the checkpoint's dtype (each rounded once); products and the sum of the bias are in f64.
//! docs/tequila.md has the derivation.
//!
//! Sums run in 16 lanes: lane l adds up the numbers l, l + 16, l + 32, ..., then the lanes are added by halves.
//! The order is part of the definition, so that a result is the same to the bit for any vector length.

use formats::safetensors::Dtype;

/// Over how many weights a scale is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Runs of this many weights of the flattened matrix.
    Group(usize),
    /// One scale a row.
    Channel,
    /// One scale a matrix.
    Tensor,
}

impl Granularity {
    /// Weights a scale in a matrix of `rows` x `columns`.
    pub fn group_size(self, rows: usize, columns: usize) -> usize {
        match self {
            Granularity::Group(size) => size,
            Granularity::Channel => columns,
            Granularity::Tensor => rows * columns,
        }
    }
}

/// A number in the latent weights that is NaN or infinite, by its index in the slice that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Index of the first such number.
    pub index: usize,
}

/// Lanes of every sum: as many f64 as two of the longest vectors hold.
const LANES: usize = 16;

/// Numbers that are chosen before they are added up: in two plain loops, each of which compilers turn into vector code.
const CHOSEN: usize = 8 * LANES;

/// The most weights that [`absolute_sum`] adds up in lanes; longer groups are cut into runs of this many, whose sums
/// are added in order.
pub const SUM_RUN: usize = 1 << 16;

/// Add term(x, y) to the lanes. `x`, `y`: (n,), a multiple of the lanes but for the last time.
#[inline(always)]
fn add(lanes: &mut [f64; LANES], x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f64) {
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let (whole_y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in whole_x.iter().zip(whole_y) {
        for l in 0..LANES {
            lanes[l] += term(x[l], y[l]);
        }
    }
    for ((lane, &x), &y) in lanes.iter_mut().zip(rest_x).zip(rest_y) {
        *lane += term(x, y);
    }
}

/// The lanes added by halves: l and l + 8, then l and l + 4, and so on.
#[inline(always)]
fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of term(x, y) where the code is chosen, in lanes; term(0, y) is 0. `x`, `y`, `codes`: (n,).
#[inline(always)]
fn chosen_sum(
    x: &[f32],
    y: &[f32],
    codes: &[i8],
    is_chosen: impl Fn(i8) -> bool,
    term: impl Fn(f32, f32) -> f64,
) -> f64 {
    let (mut lanes, mut chosen) = ([0.0; LANES], [0.0; CHOSEN]);
    let pieces = x.chunks(CHOSEN).zip(y.chunks(CHOSEN));
    for ((x, y), codes) in pieces.zip(codes.chunks(CHOSEN)) {
        for ((chosen, &x), &code) in chosen.iter_mut().zip(x).zip(codes) {
            *chosen = if is_chosen(code) { x } else { 0.0 };
        }
        add(&mut lanes, &chosen[..x.len()], y, &term);
    }
    fold(lanes)
}

/// Sum of |w| in f64: exact for a group of bf16 or f16 weights of like size.
#[inline(always)]
pub fn absolute_sum(w: &[f32]) -> f64 {
    let mut sum = 0.0;
    for run in w.chunks(SUM_RUN) {
        let mut lanes = [0.0; LANES];
        add(&mut lanes, run, run, |w, _| f64::from(w.abs()));
        sum += fold(lanes);
    }
    sum
}

/// scale = mean |w| of a group of `count` weights whose |w| add up to `sum`, rounded once to `dtype`.
pub fn scale(sum: f64, count: usize, dtype: Dtype) -> f32 {
    dtype.round(sum / count as f64)
}

/// [`scale`] of groups of `count` weights by their sums. `sums`, `scales`: (groups,).
#[inline(always)]
pub fn scales(sums: &[f64], count: usize, dtype: Dtype, scales: &mut [f32]) {
    dtype.round_all(sums.iter().map(|sum| sum / count as f64), scales);
}

/// [`delta`] of every scale. `scales`, `deltas`: (groups,).
#[inline(always)]
pub fn deltas(scales: &[f32], dtype: Dtype, deltas: &mut [f32]) {
    dtype.round_all(scales.iter().map(|&scale| f64::from(scale) / 2.0), deltas);
    for (delta, &scale) in deltas.iter_mut().zip(scales) {
        *delta = if scale == 0.0 { f32::INFINITY } else { *delta };
    }
}

/// delta = scale / 2, in `dtype`. Where scale is zero (a group of zeros, or of weights so small that their mean rounds
/// to zero) A is zero whatever a comparison says: no weight reaches infinity, so every code is 0.
#[inline(always)]
pub fn delta(scale: f32, dtype: Dtype) -> f32 {
    if scale == 0.0 {
        f32::INFINITY
    } else {
        dtype.round(f64::from(scale) / 2.0)
    }
}

/// Codes of weights that share `scale`, and nothing else: the bias is [`dead_zone_sum`].
///
/// `w`, `codes`: (n,). Equality with delta is active.
#[inline(always)]
pub fn split(w: &[f32], scale: f32, dtype: Dtype, codes: &mut [i8]) {
    let delta = delta(scale, dtype);
    for (code, &w) in codes.iter_mut().zip(w) {
        *code = i8::from(w >= delta) - i8::from(w <= -delta);
    }
}

/// The factor of the dead-zone weights of a row.
#[derive(Clone, Copy, Debug)]
pub enum Lambda<'a> {
    /// One number for the whole model (`eps` of config.json, rounded to the checkpoint's dtype).
    Fixed(f32),
    /// One learned number a weight: the row's part of the tensor `Lambada`. (n,)
    Learned(&'a [f32]),
}

/// sum of lambda * w over the dead zone: the offline bias of a row. `w`, `codes`: (n,).
#[inline(always)]
pub fn dead_zone_sum(w: &[f32], codes: &[i8], lambda: Lambda) -> f64 {
    let dead = |code| code == 0;
    match lambda {
        Lambda::Fixed(lambda) => f64::from(lambda) * chosen_sum(w, w, codes, dead, |w, _| f64::from(w)),
        Lambda::Learned(lambda) => chosen_sum(w, lambda, codes, dead, |w, lambda| f64::from(lambda) * f64::from(w)),
    }
}

/// sum of importance * code^2: how much the active weights of a run count when scales are merged.
/// `importance`, `codes`: (n,).
#[inline(always)]
pub fn active_sum(importance: &[f32], codes: &[i8]) -> f64 {
    let active = |code| code != 0;
    chosen_sum(importance, importance, codes, active, |h, _| f64::from(h))
}

/// How many codes are not 0.
#[inline(always)]
pub fn active_count(codes: &[i8]) -> usize {
    /// So many fit the byte that each lane of a vector counts in.
    const RUN: usize = 192;
    let mut count = 0;
    for run in codes.chunks(RUN) {
        let mut active = 0u8;
        for &code in run {
            active += u8::from(code != 0);
        }
        count += usize::from(active);
    }
    count
}

/// The first number that is NaN or infinite.
///
/// # Errors
/// Where there is one.
#[inline(always)]
pub fn check_finite(w: &[f32]) -> Result<(), NotFinite> {
    // All are looked at, so that no branch keeps the loop from being vectorised.
    if w.iter().fold(true, |finite, w| finite & w.is_finite()) {
        return Ok(());
    }
    let index = w.iter().position(|w| !w.is_finite()).unwrap_or(0);
    Err(NotFinite { index })
}

/// The runs of equal scale in row `row` of a matrix with `columns` columns: (group, columns of the row it covers).
pub fn runs(row: usize, columns: usize, group_size: usize) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let first = row * columns;
    let groups = first / group_size..=(first + columns - 1) / group_size;
    groups.map(move |group| {
        let start = (group * group_size).max(first) - first;
        let end = ((group + 1) * group_size).min(first + columns) - first;
        (group, start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_with_delta_is_active() {
        let w = [1.0, -1.0, 0.5, -0.5, 0.25, -0.25, 0.499, -0.499];
        let mut codes = [9; 8];
        split(&w, 1.0, Dtype::F32, &mut codes);
        assert_eq!(codes, [1, -1, 1, -1, 0, 0, 0, 0]);
    }

    #[test]
    fn a_group_of_zeros_has_no_active_weight() {
        let mut codes = [9; 3];
        split(&[0.0, -0.0, 0.0], scale(0.0, 3, Dtype::BF16), Dtype::BF16, &mut codes);
        assert_eq!(codes, [0; 3]);
    }

    #[test]
    fn the_scale_is_rounded_once() {
        // 1 + 2^-8 + 2^-40 lies just above the tie between the bf16 neighbours 1 and 1 + 2^-7.
        let mean = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
        assert_eq!(scale(mean, 1, Dtype::BF16), 1.0 + 2f32.powi(-7));
        assert_eq!(scale(1.0 + 2f64.powi(-8), 1, Dtype::BF16), 1.0);
        assert_eq!(scale(-mean, 1, Dtype::BF16), -1.0 - 2f32.powi(-7));
    }

    #[test]
    fn only_the_dead_zone_enters_the_bias() {
        let w = [1.0, 0.25, -0.125, -2.0];
        let codes = [1, 0, 0, -1];
        assert_eq!(dead_zone_sum(&w, &codes, Lambda::Fixed(0.5)), 0.0625);
        assert_eq!(dead_zone_sum(&w, &codes, Lambda::Learned(&[9.0, 1.0, 2.0, 9.0])), 0.0);
    }

    /// Numbers whose sum depends on its order.
    fn mixed(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| ((i * 7919) % 1009) as f32 * 10f32.powi((i % 7) as i32 - 3) - 50.0)
            .collect()
    }

    #[test]
    fn sums_of_any_length_are_true() {
        for n in [0, 1, 15, 16, 17, 127, 128, 129, 1000, SUM_RUN + 3] {
            let w = mixed(n);
            let mut codes = vec![0; n];
            split(&w, 100.0, Dtype::F32, &mut codes);
            let near = |found: f64, terms: Vec<f64>| {
                let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|x| x.abs()).sum::<f64>());
                assert!((found - sum).abs() <= 1e-13 * size, "{n}: {found} is not {sum}");
            };
            near(absolute_sum(&w), w.iter().map(|&w| f64::from(w).abs()).collect());
            let dead = |&(w, code): &(f32, i8)| f64::from(w) * f64::from(u8::from(code == 0));
            let pairs: Vec<_> = w.iter().copied().zip(codes.iter().copied()).collect();
            near(
                dead_zone_sum(&w, &codes, Lambda::Fixed(0.5)),
                pairs.iter().map(|pair| dead(pair) / 2.0).collect(),
            );
            let lambda = mixed(n);
            let products = pairs
                .iter()
                .zip(&lambda)
                .map(|(pair, &lambda)| dead(pair) * f64::from(lambda));
            near(dead_zone_sum(&w, &codes, Lambda::Learned(&lambda)), products.collect());
            near(
                active_sum(&w, &codes),
                pairs.iter().map(|pair| f64::from(pair.0) - dead(pair)).collect(),
            );
            assert_eq!(active_count(&codes), codes.iter().filter(|&&code| code != 0).count());
        }
    }

    #[test]
    fn lanes_are_added_by_halves() {
        // Lane 0 gets 1 and then 2^53, at which another 1 would be lost; lane 8 gets 1.
        let mut w = [0.0; 32];
        (w[0], w[16], w[8]) = (1.0, 2f32.powi(53), 1.0);
        assert_eq!(absolute_sum(&w), 2f64.powi(53));
        (w[0], w[8], w[24]) = (0.0, 1.0, 1.0);
        assert_eq!(absolute_sum(&w), 2f64.powi(53) + 2.0);
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let mut w = vec![1.0; 100];
        assert_eq!(check_finite(&w), Ok(()));
        w[99] = f32::NAN;
        w[77] = f32::NEG_INFINITY;
        assert_eq!(check_finite(&w), Err(NotFinite { index: 77 }));
    }

    #[test]
    fn groups_cross_rows() {
        let all: Vec<_> = (0..2).map(|row| runs(row, 192, 128).collect::<Vec<_>>()).collect();
        assert_eq!(all[0], [(0, 0..128), (1, 128..192)]);
        assert_eq!(all[1], [(1, 0..64), (2, 64..192)]);
        assert_eq!(runs(1, 4, 8).collect::<Vec<_>>(), [(0, 0..4)]);
    }
}
