//! Latent weights to codes, scales and biases: a piece of rows is read, the scales of its groups are taken, and each
//! row is split.

use std::ops::Range;

use formats::block::{BlockType, float};
use formats::safetensors::Dtype;
use rayon::prelude::*;

use super::PackError;
use super::encode::{Loss, ScaleRange, Scratch, encode};
use crate::blueprint::Linear;
use crate::model::{Checkpoint, Stored};
use crate::simd::{Lanes, Level, Work};
use crate::tequila::{self, Lambda, NotFinite};

/// A linear of the checkpoint: all that its rows are made from, but for the weights.
pub struct Ternary<'a> {
    linear: Linear,
    weight: Stored<'a>,
    lambada: Option<Stored<'a>>,
    /// The bias that the layer has of its own. (rows,) or none
    bias: Option<Vec<f32>>,
    /// How much the error of each column counts when scales are merged: the square of the preceding norm's weight.
    importance: Option<Vec<f32>>,
    columns: usize,
    group_size: usize,
    /// The fixed lambda, where it is not learned.
    lambda: f32,
    /// The scales of all groups, where a group is too long to be read with a piece.
    scales: Option<Vec<f32>>,
    level: Level,
}

/// Rows of a linear as they are in the file, with the scales of their groups.
#[derive(Default)]
pub struct Piece {
    /// Index of the first number in the flattened matrix.
    first: usize,
    bytes: Vec<u8>,
    /// The first row, and learned lambdas from there on.
    lambada: (usize, Vec<u8>),
    /// The first group, and the scales of the groups from there on.
    scales: (usize, Vec<f32>),
    numbers: Vec<f32>,
}

/// The ternary form of one row, and room to make it in.
#[derive(Default)]
pub struct Row {
    /// Latent weights. (columns,)
    pub w: Vec<f32>,
    /// Learned lambdas, where there are any. (columns,)
    pub lambada: Vec<f32>,
    /// (columns,)
    pub codes: Vec<i8>,
    /// Where the runs of columns that share a trained scale end: the column after the last of each. (runs,)
    pub ends: Vec<usize>,
    /// Their scales. (runs,)
    pub scales: Vec<f32>,
    /// Half of that: what is active. (runs,)
    pub deltas: Vec<f32>,
    /// Sum of |w| over each run, where it is a group. (runs,)
    pub sums: Vec<f64>,
}

/// What a thread needs to work on rows.
#[derive(Default)]
pub struct Bench {
    piece: Piece,
    row: Row,
    scratch: Scratch,
    /// Numbers as they are in a file.
    pub bytes: Vec<u8>,
    /// The same, widened.
    pub numbers: Vec<f32>,
    /// Rows as they are to be written.
    pub out: Vec<u8>,
}

/// What is found of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What each type loses.
    pub losses: Vec<Loss>,
    /// The offline bias of each row, the layer's own included.
    pub biases: Vec<f64>,
    /// Weights in the dead zone.
    pub dead: u64,
}

impl Facts {
    /// What is found of these rows and those that follow.
    pub fn and(mut self, next: Self) -> Self {
        if self.losses.is_empty() {
            return next;
        }
        for (loss, next) in self.losses.iter_mut().zip(next.losses) {
            *loss = *loss + next;
        }
        self.biases.extend(next.biases);
        self.dead += next.dead;
        self
    }
}

impl<'a> Ternary<'a> {
    /// Find what the rows of `linear` are made from. Reads the weights only where a group is longer than a piece.
    ///
    /// # Errors
    /// A file that cannot be read, or a number that is not finite.
    pub fn new(checkpoint: &'a Checkpoint, linear: Linear, level: Level) -> Result<Self, PackError> {
        let name = linear.checkpoint_name();
        let stored = |suffix: &str| checkpoint.tensors.stored(&format!("{name}.{suffix}"));
        let latent = checkpoint.linear(linear);
        let weight = stored("weight").expect("Checkpoint::open found every weight");
        let config = &checkpoint.config;
        let (rows, columns) = linear.shape(&config.dims);
        let bias = latent.bias.and_then(|_| stored("bias"));
        let norm = linear.preceding_norm().map(|norm| config.architecture.norm_name(norm));
        let mut ternary = Self {
            weight,
            lambada: latent.lambada.and_then(|_| stored("Lambada")),
            bias: bias.map(|bias| numbers(bias, &format!("{name}.bias"))).transpose()?,
            importance: norm.map(|norm| importance(checkpoint, &norm)).transpose()?,
            columns,
            group_size: checkpoint.training.granularity.group_size(rows, columns),
            lambda: checkpoint.training.lambda.fixed(weight.dtype).unwrap_or(0.0),
            scales: None,
            level,
            linear,
        };
        if ternary.group_size > tequila::SUM_RUN {
            let groups = 0..weight.len().div_ceil(ternary.group_size);
            ternary.scales = Some(
                groups
                    .map(|group| ternary.long_scale(group))
                    .collect::<Result<_, _>>()?,
            );
        }
        Ok(ternary)
    }

    /// The latent weights.
    pub fn weight(&self) -> Stored<'a> {
        self.weight
    }

    /// Find what each of `types` would lose on `rows` of the checkpoint, which are given in the order of the output, and
    /// put them into `bench.out` as blocks of the last of `types`, if they are to be written.
    ///
    /// # Errors
    /// A file that cannot be read, a number that is not finite, a scale that f16 does not hold.
    pub fn encode(
        &self,
        rows: impl Iterator<Item = usize> + Clone,
        types: &[BlockType],
        write: bool,
        bench: &mut Bench,
    ) -> Result<Facts, PackError> {
        let last = types.last().expect("a type to encode");
        let row_bytes = last.row_bytes(self.columns).expect("the plan checked the width");
        let Bench {
            piece,
            row,
            scratch,
            out,
            ..
        } = bench;
        self.read(rows.clone(), piece)?;
        out.resize(rows.clone().count() * row_bytes, 0);
        let mut facts = Facts {
            losses: vec![Loss::default(); types.len()],
            ..Facts::default()
        };
        for (at, index) in rows.enumerate() {
            let out = write.then(|| &mut out[at * row_bytes..][..row_bytes]);
            let work = EncodeRow {
                ternary: self,
                piece,
                index,
                types,
                row,
                scratch,
                out,
                facts: &mut facts,
            };
            let bias = self.level.run(work).map_err(|error| match error {
                RowError::NotFinite(found) => self.not_finite(NotFinite {
                    index: index * self.columns + found.index,
                }),
                RowError::ScaleRange(ScaleRange { scale }) => PackError::ScaleRange {
                    tensor: format!("{}.weight", self.linear.gguf_name()),
                    row: index,
                    scale,
                },
            })?;
            let bias = bias + self.bias.as_ref().map_or(0.0, |own| f64::from(own[index]));
            // It is stored in F32.
            if !(bias as f32).is_finite() {
                return Err(self.bias_error(row, index, bias));
            }
            facts.biases.push(bias);
        }
        Ok(facts)
    }

    /// Read the rows, and the whole of every group that they share in, and take the groups' scales.
    fn read(&self, rows: impl Iterator<Item = usize>, piece: &mut Piece) -> Result<(), PackError> {
        let (first, last) = rows.fold((usize::MAX, 0), |(first, last), row| (first.min(row), last.max(row)));
        let mut span = first * self.columns..(last + 1) * self.columns;
        let groups = span.start / self.group_size..span.end.div_ceil(self.group_size);
        if self.scales.is_none() {
            span = groups.start * self.group_size..(groups.end * self.group_size).min(self.weight.len());
        }
        piece.first = span.start;
        read_numbers(self.weight, span, &mut piece.bytes)?;
        if let Some(lambada) = self.lambada {
            let width = lambada.shape[1];
            piece.lambada.0 = first;
            read_numbers(lambada, first * width..(last + 1) * width, &mut piece.lambada.1)?;
        }
        if self.scales.is_none() && !self.groups_fill_rows() {
            piece.scales.0 = groups.start;
            self.level
                .run(TakeScales { ternary: self, piece })
                .map_err(|found| self.not_finite(found))?;
        }
        Ok(())
    }

    /// The scale of a group that is read a run at a time.
    fn long_scale(&self, group: usize) -> Result<f32, PackError> {
        let start = group * self.group_size;
        let size = self.group_size.min(self.weight.len() - start);
        let run_sum = |at: usize| {
            let run = start + at..start + (at + tequila::SUM_RUN).min(size);
            let (mut bytes, mut w) = (vec![], vec![0.0; run.len()]);
            read_numbers(self.weight, run.clone(), &mut bytes)?;
            let sum = self.level.run(AbsoluteSum {
                bytes: &bytes,
                dtype: self.weight.dtype,
                w: &mut w,
            });
            sum.map_err(|found| {
                self.not_finite(NotFinite {
                    index: run.start + found.index,
                })
            })
        };
        let starts: Vec<_> = (0..size).step_by(tequila::SUM_RUN).collect();
        let sums = starts
            .into_par_iter()
            .map(run_sum)
            .collect::<Result<Vec<_>, PackError>>()?;
        let sum = sums.into_iter().fold(0.0, |sum, run| sum + run);
        Ok(tequila::scale(sum, size, self.weight.dtype))
    }

    /// Whether no group crosses from a row into the next.
    fn groups_fill_rows(&self) -> bool {
        self.columns.is_multiple_of(self.group_size)
    }

    /// The scale of a group that may cross rows.
    #[inline(always)]
    fn scale(&self, piece: &Piece, group: usize) -> f32 {
        match &self.scales {
            Some(scales) => scales[group],
            None => piece.scales.1[group - piece.scales.0],
        }
    }

    fn not_finite(&self, found: NotFinite) -> PackError {
        let name = format!("{}.weight", self.linear.checkpoint_name());
        not_finite(self.weight, &name, found)
    }

    /// The error of a row whose bias cannot be stored though its weights are finite.
    fn bias_error(&self, row: &Row, index: usize, bias: f64) -> PackError {
        let in_lambada = tequila::check_finite(&row.lambada).err().zip(self.lambada);
        match in_lambada {
            Some((found, lambada)) => {
                let width = lambada.shape[1];
                let index = index * width + found.index.min(width - 1);
                let name = format!("{}.Lambada", self.linear.checkpoint_name());
                not_finite(lambada, &name, NotFinite { index })
            }
            None => PackError::BiasRange {
                tensor: format!("{}.bias", self.linear.gguf_name()),
                row: index,
                bias,
            },
        }
    }
}

/// Take the scale of every group that the piece holds, where groups cross rows.
struct TakeScales<'t, 'a> {
    ternary: &'t Ternary<'a>,
    piece: &'t mut Piece,
}

impl Work for TakeScales<'_, '_> {
    type Output = Result<(), NotFinite>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let Self { ternary, piece } = self;
        let dtype = ternary.weight.dtype;
        let group_bytes = ternary.group_size * ternary.weight.number_bytes();
        piece.scales.1.clear();
        piece.numbers.resize(ternary.group_size, 0.0);
        for (group, bytes) in piece.bytes.chunks(group_bytes).enumerate() {
            let count = bytes.len() / ternary.weight.number_bytes();
            let work = AbsoluteSum {
                bytes,
                dtype,
                w: &mut piece.numbers[..count],
            };
            let sum = work.run(lanes).map_err(|found| NotFinite {
                index: piece.first + group * ternary.group_size + found.index,
            })?;
            piece.scales.1.push(tequila::scale(sum, count, dtype));
        }
        Ok(())
    }
}

/// Sum of |w| over numbers in a file, no more than [`tequila::SUM_RUN`].
struct AbsoluteSum<'t> {
    bytes: &'t [u8],
    dtype: Dtype,
    w: &'t mut [f32],
}

impl Work for AbsoluteSum<'_> {
    type Output = Result<f64, NotFinite>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        widen(self.bytes, self.dtype, self.w);
        let sum = lanes.absolute_sum(self.w);
        check_sums(&[sum], self.w)?;
        Ok(sum)
    }
}

/// Finite f32 cannot add up to an infinite f64: only where a sum of some `w` is not finite must they be looked at.
#[inline(always)]
fn check_sums(sums: &[f64], w: &[f32]) -> Result<(), NotFinite> {
    match sums.iter().fold(true, |finite, sum| finite & sum.is_finite()) {
        true => Ok(()),
        false => tequila::check_finite(w),
    }
}

/// Why a row cannot be stored.
enum RowError {
    /// Counted from the start of the row.
    NotFinite(NotFinite),
    ScaleRange(ScaleRange),
}

/// Split a row and store it; gives its offline bias.
struct EncodeRow<'t, 'a> {
    ternary: &'t Ternary<'a>,
    piece: &'t Piece,
    index: usize,
    types: &'t [BlockType],
    row: &'t mut Row,
    scratch: &'t mut Scratch,
    out: Option<&'t mut [u8]>,
    facts: &'t mut Facts,
}

impl Work for EncodeRow<'_, '_> {
    type Output = Result<f64, RowError>;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let Self {
            ternary,
            piece,
            index,
            types,
            row,
            scratch,
            mut out,
            facts,
        } = self;
        let (bias, active) = split_row(lanes, ternary, piece, index, row).map_err(RowError::NotFinite)?;
        facts.dead += (row.codes.len() - active) as u64;
        let importance = ternary.importance.as_deref();
        for (at, (&ty, total)) in types.iter().zip(&mut facts.losses).enumerate() {
            let out = if at + 1 == types.len() { out.take() } else { None };
            let loss = encode(lanes, ty, row, importance, scratch, out).map_err(RowError::ScaleRange)?;
            *total = *total + loss;
        }
        Ok(bias)
    }
}

/// Split row `index` into codes and runs of equal scale; gives its offline bias, and how many weights are active.
#[inline(always)]
fn split_row(
    lanes: impl Lanes,
    ternary: &Ternary,
    piece: &Piece,
    index: usize,
    row: &mut Row,
) -> Result<(f64, usize), NotFinite> {
    let (columns, weight) = (ternary.columns, ternary.weight);
    let first = (index * columns - piece.first) * weight.number_bytes();
    let bytes = &piece.bytes[first..][..columns * weight.number_bytes()];
    row.w.resize(columns, 0.0);
    widen(bytes, weight.dtype, &mut row.w);
    take_scales(lanes, ternary, piece, index, row)?;
    row.deltas.resize(row.scales.len(), 0.0);
    tequila::deltas(&row.scales, weight.dtype, &mut row.deltas);
    row.codes.resize(columns, 0);
    let split = lanes.split_row(&row.w, &row.ends, &row.deltas, &mut row.codes);
    let bias = match ternary.lambada {
        None => f64::from(ternary.lambda) * split.dead_sum,
        Some(lambada) => {
            read_lambada(lambada, piece, index, columns, &mut row.lambada);
            tequila::dead_zone_sum(&row.w, &row.codes, Lambda::Learned(&row.lambada))
        }
    };
    Ok((bias, split.active))
}

/// The runs of equal scale in row `index`.
#[inline(always)]
fn take_scales(
    lanes: impl Lanes,
    ternary: &Ternary,
    piece: &Piece,
    index: usize,
    row: &mut Row,
) -> Result<(), NotFinite> {
    let runs = tequila::runs(index, ternary.columns, ternary.group_size);
    row.ends.clear();
    row.scales.clear();
    if !ternary.groups_fill_rows() || ternary.scales.is_some() {
        for (group, run) in runs {
            row.ends.push(run.end);
            row.scales.push(ternary.scale(piece, group));
        }
        return Ok(());
    }
    row.sums.clear();
    for (_, run) in runs {
        row.ends.push(run.end);
        row.sums.push(lanes.absolute_sum(&row.w[run]));
    }
    check_sums(&row.sums, &row.w)?;
    row.scales.resize(row.sums.len(), 0.0);
    tequila::scales(&row.sums, ternary.group_size, ternary.weight.dtype, &mut row.scales);
    Ok(())
}

/// Row `index` of a learned lambda: one number a weight, or one a row.
#[inline(always)]
fn read_lambada(lambada: Stored, piece: &Piece, index: usize, columns: usize, out: &mut Vec<f32>) {
    out.resize(columns, 0.0);
    let width = lambada.shape[1];
    let row_bytes = width * lambada.number_bytes();
    let bytes = &piece.lambada.1[(index - piece.lambada.0) * row_bytes..][..row_bytes];
    widen(bytes, lambada.dtype, &mut out[..width]);
    if width < columns {
        let lambda = out[0];
        out.fill(lambda);
    }
}

/// Little-endian numbers as f32.
#[inline(always)]
pub fn widen(bytes: &[u8], dtype: Dtype, out: &mut [f32]) {
    match dtype {
        Dtype::F32 => float::read_f32(bytes, out),
        Dtype::F16 => float::read_f16(bytes, out),
        _ => float::read_bf16(bytes, out),
    }
}

/// The bytes of `range` of a tensor's numbers.
pub fn read_numbers(stored: Stored, range: Range<usize>, out: &mut Vec<u8>) -> Result<(), PackError> {
    out.resize(range.len() * stored.number_bytes(), 0);
    stored
        .read(range.start, out)
        .map_err(|source| PackError::read(stored.path, source))
}

/// All numbers of a short tensor, all finite.
pub fn numbers(stored: Stored, name: &str) -> Result<Vec<f32>, PackError> {
    let (mut bytes, mut numbers) = (vec![], vec![0.0; stored.len()]);
    read_numbers(stored, 0..stored.len(), &mut bytes)?;
    widen(&bytes, stored.dtype, &mut numbers);
    tequila::check_finite(&numbers).map_err(|found| not_finite(stored, name, found))?;
    Ok(numbers)
}

/// The square of a norm's weight, or of all of them made smaller where one square would be infinite: only their ratios
/// count. (columns,)
fn importance(checkpoint: &Checkpoint, norm: &str) -> Result<Vec<f32>, PackError> {
    const SMALLER: f32 = 1.0 / (1u128 << 65) as f32;
    let stored = checkpoint
        .tensors
        .stored(norm)
        .expect("Checkpoint::open found every norm");
    let mut importance = numbers(stored, norm)?;
    if importance.iter().any(|weight| (weight * weight).is_infinite()) {
        importance.iter_mut().for_each(|weight| *weight *= SMALLER);
    }
    importance.iter_mut().for_each(|weight| *weight *= *weight);
    Ok(importance)
}

/// The error of a number that is NaN or infinite.
pub fn not_finite(stored: Stored, name: &str, found: NotFinite) -> PackError {
    let mut bytes = vec![];
    let mut value = [0.0];
    if let Err(error) = read_numbers(stored, found.index..found.index + 1, &mut bytes) {
        return error;
    }
    widen(&bytes, stored.dtype, &mut value);
    let columns = if stored.shape.len() == 2 {
        stored.shape[1]
    } else {
        stored.len()
    };
    PackError::NotFinite {
        path: stored.path.into(),
        tensor: name.into(),
        row: found.index / columns,
        column: found.index % columns,
        value: value[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Split;

    /// Numbers of every kind whose sums depend on their order: like weights, denormal, both zeros, and `extreme`.
    fn mixed(n: usize, seed: usize, extreme: &[f32]) -> Vec<f32> {
        let special = [0.0, -0.0, 1e-41, -1e-45, f32::MIN_POSITIVE, 0.5, -0.5];
        let kind = |i: usize| (i + seed) * 7919 % 1009;
        (0..n)
            .map(|i| match kind(i) {
                k if k < 50 => special[k % special.len()],
                k if k < 60 && !extreme.is_empty() => extreme[k % extreme.len()],
                k => (k as f32 - 500.0) * 10f32.powi(k as i32 % 9 - 6),
            })
            .collect()
    }

    /// All passes over a row, as bits.
    struct Passes<'t> {
        w: &'t [f32],
        importance: &'t [f32],
        ends: &'t [usize],
        deltas: &'t [f32],
    }

    #[derive(Debug, PartialEq)]
    struct Found {
        absolute_sum: u64,
        codes: Vec<i8>,
        dead_sum: u64,
        active_sum: u64,
        active: [usize; 3],
    }

    impl Work for Passes<'_> {
        type Output = Found;

        #[inline(always)]
        fn run(self, lanes: impl Lanes) -> Found {
            // What was there before is not to show.
            let mut codes = vec![9; self.w.len()];
            let Split { dead_sum, active } = lanes.split_row(self.w, self.ends, self.deltas, &mut codes);
            let (active_sum, counted) = lanes.active_sum(&codes, self.importance);
            Found {
                absolute_sum: lanes.absolute_sum(self.w).to_bits(),
                dead_sum: dead_sum.to_bits(),
                active_sum: active_sum.to_bits(),
                active: [active, counted, lanes.active_count(&codes)],
                codes,
            }
        }
    }

    /// The same by the formula. A scale of twice delta has that delta.
    fn by_formula(passes: &Passes) -> Found {
        let mut codes = vec![9; passes.w.len()];
        let mut start = 0;
        for (&end, &delta) in passes.ends.iter().zip(passes.deltas) {
            let run = start..end;
            let scale = if delta.is_infinite() { 0.0 } else { 2.0 * delta };
            tequila::split(&passes.w[run.clone()], scale, Dtype::F32, &mut codes[run]);
            start = end;
        }
        let dead_sum = tequila::dead_zone_sum(passes.w, &codes, Lambda::Fixed(1.0));
        Found {
            absolute_sum: tequila::absolute_sum(passes.w).to_bits(),
            dead_sum: dead_sum.to_bits(),
            active_sum: tequila::active_sum(passes.importance, &codes).to_bits(),
            active: [tequila::active_count(&codes); 3],
            codes,
        }
    }

    #[test]
    fn every_level_computes_the_bits_of_the_formula() {
        let extremes = [&[][..], &[f32::INFINITY, f32::NEG_INFINITY], &[f32::MAX, f32::MIN]];
        let lengths = (1..=70).chain([127, 128, 129, 256, 1000, 2048]);
        for (n, run) in lengths.flat_map(|n| [1, 3, 16, 24, 64, 100, n].map(|run| (n, run))) {
            for extreme in extremes {
                let (w, importance) = (mixed(n, run, extreme), mixed(n, n, &[]));
                let ends: Vec<_> = (1..=n.div_ceil(run)).map(|k| (k * run).min(n)).collect();
                let delta = |k| [0.5, 1e-41, f32::INFINITY, 40.0, 1e-45][k % 5];
                let deltas: Vec<_> = (0..ends.len()).map(delta).collect();
                let passes = || Passes {
                    w: &w,
                    importance: &importance,
                    ends: &ends,
                    deltas: &deltas,
                };
                let expected = by_formula(&passes());
                for level in Level::available() {
                    let found = level.run(passes());
                    assert_eq!(found, expected, "{}: {n} in runs of {run}", level.name());
                }
            }
        }
    }

    #[test]
    fn scales_of_many_groups_are_those_of_each() {
        for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
            let values = mixed(1000, 1, &[]);
            let sums: Vec<_> = values.iter().map(|&w| f64::from(w).abs()).collect();
            let (mut scales, mut deltas) = (vec![9.0; 1000], vec![9.0; 1000]);
            tequila::scales(&sums, 24, dtype, &mut scales);
            tequila::deltas(&scales, dtype, &mut deltas);
            for ((sum, scale), delta) in sums.into_iter().zip(scales).zip(deltas) {
                assert_eq!(scale, tequila::scale(sum, 24, dtype));
                assert_eq!(delta, tequila::delta(scale, dtype));
            }
        }
    }
}
