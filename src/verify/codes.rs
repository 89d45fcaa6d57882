//! Level 2, the linears: every code, every scale and every bias of the file against the checkpoint.
//!
//! A stored scale that stands for one trained scale has to be its nearest f16. One that stands for several has to be the
//! least-squares fit (each active weight counting by the square of the preceding norm's weight), to half a step of f16; how
//! far it is from the trained scales is the NMSE of the matrix, and has a limit of its own.

use formats::block::{BlockError, BlockType, q2_k};
use formats::gguf::{File, TensorInfo};
use half::{bf16, f16};
use rayon::prelude::*;

use super::latent::{Latent, LatentRow, row_order};
use super::report::{Check, Histogram, Limit, LinearFacts, SHOWN};
use super::{Progress, VerifyError};
use crate::metrics;
use crate::model::{Checkpoint, Linear};

/// What the linears of a file were found to be.
pub(super) struct Linears {
    pub checks: Vec<Check>,
    pub facts: Vec<LinearFacts>,
    pub scales: Histogram,
    pub biases: Histogram,
}

/// Hold all linears against the checkpoint.
pub(super) fn check(
    file: &File,
    checkpoint: &Checkpoint,
    max_nmse: f64,
    progress: &Progress,
) -> Result<Linears, VerifyError> {
    let mut all = All::default();
    for linear in Linear::all(&checkpoint.config) {
        progress(&format!("codes: {}", linear.gguf_name()), None);
        all.add(compare(file, checkpoint, linear)?);
    }
    Ok(all.finish(file, max_nmse))
}

/// What was found of all linears so far.
#[derive(Default)]
struct All {
    facts: Vec<LinearFacts>,
    codes: Vec<String>,
    scales: Vec<String>,
    merged: Vec<String>,
    biases: Vec<String>,
    bias_values: Vec<f32>,
    octaves: Octaves,
}

/// One linear compared.
struct Compared {
    facts: LinearFacts,
    codes: Vec<String>,
    scales: Vec<String>,
    merged: Vec<String>,
    biases: Vec<String>,
    bias_values: Vec<f32>,
    octaves: Octaves,
}

impl All {
    fn add(&mut self, found: Compared) {
        self.facts.push(found.facts);
        self.codes.extend(found.codes);
        self.scales.extend(found.scales);
        self.merged.extend(found.merged);
        self.biases.extend(found.biases);
        self.bias_values.extend(found.bias_values);
        self.octaves.add(&found.octaves);
    }

    fn finish(self, file: &File, max_nmse: f64) -> Linears {
        let sum = |count: fn(&LinearFacts) -> u64| self.facts.iter().map(count).sum::<u64>();
        let (error, energy) = self.facts.iter().fold((0.0, 0.0), |(error, energy), facts| {
            (error + facts.error, energy + facts.energy)
        });
        let nmse = if error == 0.0 { 0.0 } else { error / energy };
        let ours = file.get("tqconv.version").is_some();

        let mut checks = vec![
            Check::none_differ("codes", sum(|f| f.codes_wrong), sum(|f| f.weights), "codes", FORMULA)
                .with_details(self.codes),
        ];
        let (single, merged) = (sum(|f| f.scales), sum(|f| f.merged));
        if single > 0 || merged == 0 {
            let wrong = sum(|f| f.scales_wrong);
            checks.push(Check::none_differ("scales", wrong, single, "scales", NEAREST).with_details(self.scales));
        }
        if ours && merged > 0 {
            let wrong = sum(|f| f.merged_wrong);
            checks.push(
                Check::none_differ("merged scales", wrong, merged, "scales", LEAST_SQUARES).with_details(self.merged),
            );
        }
        checks.push(worst_nmse(&self.facts, max_nmse));
        if let Some(formats::gguf::Value::F64(recorded)) = file.get("tqconv.weight_nmse") {
            checks.push(recorded_nmse(*recorded, nmse));
        }
        checks.push(
            Check::none_differ("biases", sum(|f| f.biases_wrong), sum(|f| f.rows), "biases", BIAS)
                .with_details(self.biases),
        );
        Linears {
            checks,
            scales: self.octaves.histogram(),
            biases: linear_histogram(&self.bias_values),
            facts: self.facts,
        }
    }
}

const FORMULA: &str = "the formula of training, exactly";
const NEAREST: &str = "the trained scale to nearest in f16";
const LEAST_SQUARES: &str = "the least-squares fit, to half a step of f16";
const BIAS: &str = "sum of lambda * w over the dead zone, in F32 bit for bit";

fn worst_nmse(facts: &[LinearFacts], max_nmse: f64) -> Check {
    let worst = metrics::worst(facts.iter().map(|facts| (facts, facts.nmse())));
    let (name, found) = match worst {
        Some((worst, nmse)) if nmse != 0.0 => (format!("weight NMSE ({})", worst.name), nmse),
        _ => ("weight NMSE".into(), 0.0),
    };
    Check::new(
        name,
        found,
        "",
        Limit::AtMost(max_nmse),
        "--max-nmse, for the worst linear",
    )
}

/// The file says what it lost. The sums are taken in another order, so that only rounding may part them.
fn recorded_nmse(recorded: f64, found: f64) -> Check {
    let distance = if recorded == found {
        0.0
    } else {
        (found - recorded).abs() / recorded.abs()
    };
    let check = Check::new(
        "recorded NMSE, off by",
        distance,
        "",
        Limit::AtMost(1e-9),
        "key tqconv.weight_nmse; f64 sums in another order",
    );
    if check.pass {
        return check;
    }
    check.with_details(vec![format!("the file records {recorded:e}, it holds {found:e}")])
}

/// What one row was found to be.
#[derive(Default)]
struct RowFound {
    codes_wrong: u64,
    scales: u64,
    scales_wrong: u64,
    merged: u64,
    merged_wrong: u64,
    worst_scale: f64,
    error: f64,
    energy: f64,
    dead: u64,
    bias: f64,
    code: Option<String>,
    scale: Option<String>,
    merge: Option<String>,
}

fn compare(file: &File, checkpoint: &Checkpoint, linear: Linear) -> Result<Compared, VerifyError> {
    let latent = Latent::new(checkpoint, linear)?;
    let order = row_order(linear, &checkpoint.config);
    let name = format!("{}.weight", linear.gguf_name());
    let (info, bytes) = match file.tensor(&name) {
        Some((info, bytes)) if has_shape(info, &latent) => (Some(info), bytes),
        _ => (None, &[][..]),
    };
    let importance = importance(checkpoint, linear);
    let stored = info.map(|info| Stored::new(info, bytes, &latent, &importance));

    let rows: Vec<RowFound> = order
        .par_iter()
        .enumerate()
        .map_init(Buffers::default, |buffers, (row, &from)| {
            latent.read(from, &mut buffers.latent)?;
            let mut found = match &stored {
                Some(stored) => stored.compare(row, from, buffers),
                None => RowFound::missing(&latent, from, &buffers.latent),
            };
            found.bias = buffers.latent.bias;
            found.dead = dead(&buffers.latent.codes);
            Ok(found)
        })
        .collect::<Result<_, VerifyError>>()?;

    let mut compared = Compared::new(linear, &latent, info, &rows);
    if info.is_none() {
        let problem = format!("tensor '{name}' is missing or of another shape");
        compared.codes = vec![problem];
    } else if compared.facts.codes_wrong > compared.facts.weights / SUSPICIOUS {
        compared.codes.truncate(1);
        compared
            .codes
            .extend(diagnose(checkpoint, linear, &latent, info, bytes));
    }
    compare_biases(file, linear, &order, &mut compared);
    Ok(compared)
}

/// One code in this many wrong is no accident: something stands in another place.
const SUSPICIOUS: u64 = 100;

fn has_shape(info: &TensorInfo, latent: &Latent) -> bool {
    info.columns() == latent.columns as u64 && info.rows() == latent.rows as u64
}

fn dead(codes: &[i8]) -> u64 {
    codes.iter().filter(|&&code| code == 0).count() as u64
}

impl RowFound {
    /// Row `from` of the checkpoint, of which the file has nothing that can be read: all of it is lost.
    fn missing(latent: &Latent, from: usize, row: &LatentRow) -> Self {
        let energy = latent
            .runs(from)
            .map(|(group, run)| {
                let active = run.len() as f64 - dead(&row.codes[run]) as f64;
                active * f64::from(latent.references[group]).powi(2)
            })
            .sum();
        Self {
            codes_wrong: latent.columns as u64,
            error: energy,
            energy,
            ..Self::default()
        }
    }
}

impl Compared {
    fn new(linear: Linear, latent: &Latent, info: Option<&TensorInfo>, rows: &[RowFound]) -> Self {
        let gguf_name = linear.gguf_name();
        let mut facts = LinearFacts {
            layer: linear.layer,
            part: gguf_name.rsplit('.').next().unwrap_or_default().into(),
            name: gguf_name,
            ty: info.map_or(String::new(), |info| info.ty.to_string()),
            weights: (latent.rows * latent.columns) as u64,
            rows: latent.rows as u64,
            ..LinearFacts::default()
        };
        for row in rows {
            facts.codes_wrong += row.codes_wrong;
            facts.scales += row.scales;
            facts.scales_wrong += row.scales_wrong;
            facts.merged += row.merged;
            facts.merged_wrong += row.merged_wrong;
            facts.worst_scale = facts.worst_scale.max(row.worst_scale);
            facts.error += row.error;
            facts.energy += row.energy;
            facts.dead += row.dead;
            facts.largest_bias = facts.largest_bias.max(row.bias.abs());
        }
        let places = |place: fn(&RowFound) -> &Option<String>| {
            rows.iter()
                .filter_map(|row| place(row).clone())
                .take(SHOWN + 1)
                .collect()
        };
        let mut octaves = Octaves::default();
        latent.scales.iter().for_each(|&scale| octaves.count(scale));
        Self {
            facts,
            codes: places(|row| &row.code),
            scales: places(|row| &row.scale),
            merged: places(|row| &row.merge),
            biases: vec![],
            bias_values: rows.iter().map(|row| row.bias as f32).collect(),
            octaves,
        }
    }
}

/// How much each column counts in a least-squares fit: the square of the preceding norm's weight, 1 where there is none.
fn importance(checkpoint: &Checkpoint, linear: Linear) -> Vec<f64> {
    let (_, columns) = linear.shape(&checkpoint.config);
    let mut norm = vec![1f32; columns];
    let name = linear.preceding_norm();
    if let Some(tensor) = name.and_then(|name| checkpoint.tensors.get(&name)) {
        tensor.read_f32(0, &mut norm);
    }
    norm.into_iter().map(|w| f64::from(w) * f64::from(w)).collect()
}

/// Room for one row, as the checkpoint and as the file have it.
#[derive(Default)]
struct Buffers {
    latent: LatentRow,
    codes: Vec<i8>,
    scales: Vec<f32>,
    weights: Vec<f32>,
}

/// A linear as the file has it.
struct Stored<'a> {
    info: &'a TensorInfo,
    bytes: &'a [u8],
    row_bytes: usize,
    latent: &'a Latent<'a>,
    importance: &'a [f64],
}

impl<'a> Stored<'a> {
    fn new(info: &'a TensorInfo, bytes: &'a [u8], latent: &'a Latent, importance: &'a [f64]) -> Self {
        let row_bytes = bytes.len() / latent.rows;
        Self {
            info,
            bytes,
            row_bytes,
            latent,
            importance,
        }
    }

    fn row(&self, row: usize) -> &'a [u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }

    /// Row `row` of the file against row `from` of the checkpoint, which `buffers.latent` holds.
    fn compare(&self, row: usize, from: usize, buffers: &mut Buffers) -> RowFound {
        match self.info.ty.scale_run() {
            Some(run) => self.compare_blocks(row, from, run, buffers),
            None => self.compare_numbers(row, from, buffers),
        }
    }

    fn compare_blocks(&self, row: usize, from: usize, run: usize, buffers: &mut Buffers) -> RowFound {
        let Buffers {
            latent, codes, scales, ..
        } = buffers;
        codes.resize(self.latent.columns, 0);
        scales.resize(self.latent.columns / run, 0.0);
        if let Err(error) = self.info.ty.unpack_ternary_row(self.row(row), codes, scales) {
            return self.not_ternary(row, from, latent, &error);
        }
        let mut found = RowFound::default();
        self.compare_codes(row, &latent.codes, codes, &mut found);
        let block = self.info.ty.weights();
        for start in (0..self.latent.columns).step_by(block) {
            let stored = &scales[start / run..(start + block) / run];
            self.compare_scales(row, from, start, stored, latent, codes, &mut found);
        }
        found
    }

    fn not_ternary(&self, row: usize, from: usize, expected: &LatentRow, error: &BlockError) -> RowFound {
        let place = format!("tensor '{}' row {row}: {error}", self.info.name);
        RowFound {
            code: Some(place),
            ..RowFound::missing(self.latent, from, expected)
        }
    }

    fn compare_codes(&self, row: usize, expected: &[i8], codes: &[i8], found: &mut RowFound) {
        if expected == codes {
            return;
        }
        let differ = expected.iter().zip(codes).map(|(a, b)| a != b);
        found.codes_wrong = differ.clone().map(u64::from).sum();
        let first = differ.into_iter().position(|differs| differs);
        found.code = first.map(|column| {
            format!(
                "tensor '{}' row {row} column {column}: code {}, expected {}",
                self.info.name, codes[column], expected[column]
            )
        });
    }

    /// The scales of one block of the file, the weights of which start at column `start`.
    #[allow(clippy::too_many_arguments, reason = "one block of one row, seen from both sides")]
    fn compare_scales(
        &self,
        row: usize,
        from: usize,
        start: usize,
        stored: &[f32],
        latent: &LatentRow,
        codes: &[i8],
        found: &mut RowFound,
    ) {
        let width = self.info.ty.weights();
        let run = width / stored.len();
        let group_at = |column: usize| (from * self.latent.columns + column) / self.latent.group_size;
        let (first, last) = (group_at(start), group_at(start + width - 1));
        let references = &self.latent.references[first..=last];
        let one = references.iter().all(|scale| *scale == references[0]);

        let mut fit = Fit::default();
        let mut column = start;
        while column < start + width {
            // A stretch of weights with one trained and one stored scale.
            let group = group_at(column);
            let group_end = (group + 1) * self.latent.group_size - from * self.latent.columns;
            let end = group_end.min(column - column % run + run).min(start + width);
            let (scale, t) = (self.latent.references[group], stored[(column - start) / run]);
            let stretch = column..end;
            let (expected, codes) = (&latent.codes[stretch.clone()], &codes[stretch.clone()]);
            let active = (expected.len() as u64 - dead(expected)) as f64;
            let (s, t) = (f64::from(scale), f64::from(t));
            found.energy += active * s * s;
            found.error += if expected == codes {
                active * (s - t) * (s - t)
            } else {
                let pairs = expected.iter().zip(codes);
                pairs
                    .map(|(&a, &b)| (s * f64::from(a) - t * f64::from(b)).powi(2))
                    .sum()
            };
            if !one && active > 0.0 {
                found.worst_scale = found.worst_scale.max((t - s).abs() / s);
                let h = expected.iter().zip(&self.importance[stretch]);
                fit.add(h.map(|(&code, &h)| f64::from(code * code) * h).sum(), s, t);
            }
            column = end;
        }
        if one {
            self.compare_exact(row, start, run, f16::from_f32(self.latent.scales[first]), stored, found);
        } else {
            self.compare_merged(row, start, stored, fit, found);
        }
    }

    /// All weights of the block were trained with one scale: each stored one has to be that, as f16 has it.
    fn compare_exact(&self, row: usize, start: usize, run: usize, expected: f16, stored: &[f32], found: &mut RowFound) {
        found.scales += stored.len() as u64;
        for (index, &scale) in stored.iter().enumerate() {
            if scale != expected.to_f32() {
                found.scales_wrong += 1;
                found.scale.get_or_insert_with(|| {
                    format!(
                        "tensor '{}' row {row} columns {}: scale {scale:e}, expected {:e}",
                        self.info.name,
                        span(start + index * run, run),
                        expected.to_f32()
                    )
                });
            }
        }
    }

    /// Several trained scales in one block: the stored d has to be the least-squares one.
    fn compare_merged(&self, row: usize, start: usize, stored: &[f32], fit: Fit, found: &mut RowFound) {
        found.merged += stored.len() as u64;
        let d = match self.info.ty {
            // The multipliers are given; d is what is fitted to them.
            BlockType::Q2_K => q2_k_factor(self.row(row), start),
            _ => stored[0],
        };
        let Some(best) = fit.best(d) else { return };
        let step = f16_step(best);
        let rounding = best.abs() * 4e-6; // the fit may have been made in f32
        if (f64::from(d) - best).abs() <= 0.5 * step + rounding {
            return;
        }
        found.merged_wrong += stored.len() as u64;
        found.merge.get_or_insert_with(|| {
            format!(
                "tensor '{}' row {row} columns {}: scale {d:e}, the least-squares fit is {best:e}",
                self.info.name,
                span(start, self.info.ty.weights())
            )
        });
    }

    /// F32, F16 and BF16: every weight is scale * code, rounded once.
    fn compare_numbers(&self, row: usize, from: usize, buffers: &mut Buffers) -> RowFound {
        let Buffers {
            latent, codes, weights, ..
        } = buffers;
        weights.resize(self.latent.columns, 0.0);
        if let Err(error) = self.info.ty.dequantize_row(self.row(row), weights) {
            return self.not_ternary(row, from, latent, &error);
        }
        codes.clear();
        codes.extend(weights.iter().map(|&w| i8::from(w > 0.0) - i8::from(w < 0.0)));
        let mut found = RowFound::default();
        let round = |w: f32| match self.info.ty {
            BlockType::F16 => f16::from_f32(w).to_f32(),
            BlockType::BF16 => bf16::from_f32(w).to_f32(),
            _ => w,
        };
        for (group, run) in self.latent.runs(from) {
            let scale = match self.info.ty {
                BlockType::F16 => self.latent.references[group],
                _ => self.latent.scales[group],
            };
            let expected = round(scale);
            for column in run {
                let code = latent.codes[column];
                if expected == 0.0 {
                    codes[column] = code; // smaller than the type can hold: the loss is counted, the code is not lost
                }
                let (w, stored) = (f64::from(scale) * f64::from(code), f64::from(weights[column]));
                found.energy += w * w;
                found.error += (w - stored) * (w - stored);
                if code == 0 {
                    continue;
                }
                found.scales += 1;
                found.worst_scale = found.worst_scale.max((w - stored).abs() / w.abs());
                if weights[column].abs() != expected {
                    found.scales_wrong += 1;
                    found.scale.get_or_insert_with(|| {
                        format!(
                            "tensor '{}' row {row} column {column}: {:e}, expected {expected:e}",
                            self.info.name, weights[column]
                        )
                    });
                }
            }
        }
        self.compare_codes(row, &latent.codes, codes, &mut found);
        found
    }
}

/// `first..last` as people write it.
fn span(start: usize, width: usize) -> String {
    format!("{start} to {}", start + width - 1)
}

/// The d of the Q2_K block whose weights start at column `start`.
fn q2_k_factor(row: &[u8], start: usize) -> f32 {
    let block = row.as_chunks().0.get(start / q2_k::WEIGHTS);
    block.map_or(f32::NAN, |block| q2_k::view(block).d().to_f32())
}

/// Sums of a least-squares fit: stored = d * m has to come close to the trained s.
#[derive(Default)]
struct Fit {
    /// (sum of h c^2, s, stored) of each stretch
    stretches: Vec<(f64, f64, f64)>,
}

impl Fit {
    fn add(&mut self, h: f64, s: f64, stored: f64) {
        self.stretches.push((h, s, stored));
    }

    /// The d that makes sum of h (s - d m)^2 smallest, where `stored = d * m`; `None` where no weight counts.
    fn best(&self, d: f32) -> Option<f64> {
        let d = f64::from(d);
        // Where d is 0, every multiplier is as good: the fit to one scale then tells that it should not be.
        let m = |stored: f64| if stored == d { 1.0 } else { stored / d };
        let hsm: f64 = self.stretches.iter().map(|&(h, s, t)| h * s * m(t)).sum();
        let hmm: f64 = self.stretches.iter().map(|&(h, _, t)| h * m(t) * m(t)).sum();
        (hmm > 0.0).then(|| hsm / hmm)
    }
}

/// The distance of neighbours among f16 numbers of about `x`.
fn f16_step(x: f64) -> f64 {
    const SMALLEST: i32 = -24; // of the subnormal numbers
    const FRACTION: i32 = 10;
    let exponent = x.abs().log2().floor() as i32;
    2f64.powi((exponent - FRACTION).max(SMALLEST))
}

/// Where the rows of a badly wrong tensor may come from: the checkpoint's order, or another linear.
fn diagnose(
    checkpoint: &Checkpoint,
    linear: Linear,
    latent: &Latent,
    info: Option<&TensorInfo>,
    bytes: &[u8],
) -> Option<String> {
    let info = info?;
    let stored = Stored::new(info, bytes, latent, &[]);
    let plain: Vec<usize> = (0..latent.rows).collect();
    if row_order(linear, &checkpoint.config) != plain && holds(&stored, latent, &plain)? {
        return Some(format!(
            "tensor '{}' holds its rows in the checkpoint's order: they are not permuted for llama.cpp",
            info.name
        ));
    }
    let shape = linear.shape(&checkpoint.config);
    let others =
        Linear::all(&checkpoint.config).filter(|other| *other != linear && other.shape(&checkpoint.config) == shape);
    for other in others {
        let order = row_order(other, &checkpoint.config);
        let latent = Latent::new(checkpoint, other).ok()?;
        if holds(&stored, &latent, &order)? {
            return Some(format!("tensor '{}' holds {}", info.name, other.checkpoint_name()));
        }
    }
    None
}

/// Whether the codes of a sample of rows are those of `latent` in this order.
fn holds(stored: &Stored, latent: &Latent, order: &[usize]) -> Option<bool> {
    const SAMPLES: usize = 16;
    let step = latent.rows.div_ceil(SAMPLES);
    let run = stored.info.ty.scale_run()?;
    let mut expected = LatentRow::default();
    let mut codes = vec![0; latent.columns];
    let mut scales = vec![0.0; latent.columns / run];
    for row in (step / 2..latent.rows).step_by(step) {
        let bytes = stored.row(row);
        stored.info.ty.unpack_ternary_row(bytes, &mut codes, &mut scales).ok()?;
        latent.read(order[row], &mut expected).ok()?;
        if codes != expected.codes {
            return Some(false);
        }
    }
    Some(true)
}

/// The bias tensor against what the checkpoint gives, bit for bit.
fn compare_biases(file: &File, linear: Linear, order: &[usize], compared: &mut Compared) {
    let name = format!("{}.bias", linear.gguf_name());
    let expected = &compared.bias_values;
    let found: Option<Vec<f32>> = file
        .tensor(&name)
        .filter(|(info, _)| info.ty == BlockType::F32)
        .map(|(_, bytes)| bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
        .filter(|found: &Vec<f32>| found.len() == expected.len());
    let Some(found) = found else {
        let largest = compared.facts.largest_bias;
        if largest > 0.0 {
            compared.facts.biases_wrong = compared.facts.rows;
            compared.biases = vec![format!(
                "tensor '{name}' is missing or of another shape: biases up to {largest:.1e} are left out"
            )];
        }
        return;
    };
    let wrong: Vec<usize> = (0..found.len())
        .filter(|&row| found[row].to_bits() != expected[row].to_bits())
        .collect();
    compared.facts.biases_wrong = wrong.len() as u64;
    compared.biases = wrong
        .iter()
        .take(SHOWN + 1)
        .map(|&row| {
            format!(
                "tensor '{name}' row {row}: bias {:e}, expected {:e}",
                found[row], expected[row]
            )
        })
        .collect();
    let mut plain = vec![0.0; expected.len()];
    order.iter().zip(expected).for_each(|(&from, &bias)| plain[from] = bias);
    if !wrong.is_empty() && found == plain {
        compared.biases.truncate(1);
        compared.biases.push(format!(
            "tensor '{name}' holds its rows in the checkpoint's order: they are not permuted for llama.cpp"
        ));
    }
}

/// Counts of positive numbers in small parts of an octave.
#[derive(Clone, Default)]
struct Octaves(std::collections::BTreeMap<i32, u64>);

impl Octaves {
    const PER_OCTAVE: f64 = 24.0;

    fn count(&mut self, value: f32) {
        if value > 0.0 {
            let bin = (f64::from(value).log2() * Self::PER_OCTAVE).floor() as i32;
            *self.0.entry(bin).or_default() += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        for (bin, count) in &other.0 {
            *self.0.entry(*bin).or_default() += count;
        }
    }

    fn histogram(&self) -> Histogram {
        let first = self.0.first_key_value().map_or(0, |(bin, _)| *bin);
        let last = self.0.last_key_value().map_or(0, |(bin, _)| *bin);
        let edge = |bin: i32| (f64::from(bin) / Self::PER_OCTAVE).exp2();
        Histogram {
            logarithmic: true,
            from: edge(first),
            to: edge(last + 1),
            counts: (first..=last)
                .map(|bin| self.0.get(&bin).copied().unwrap_or(0))
                .collect(),
        }
    }
}

/// Counts in equal bins around 0.
fn linear_histogram(values: &[f32]) -> Histogram {
    const BINS: usize = 61;
    let largest = values.iter().fold(0f64, |max, &v| max.max(f64::from(v).abs()));
    let mut counts = vec![0; BINS];
    for &value in values {
        let place = if largest > 0.0 { f64::from(value) / largest } else { 0.0 };
        let bin = ((place + 1.0) / 2.0 * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    Histogram {
        logarithmic: false,
        from: -largest,
        to: largest,
        counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_f16() {
        for x in [1.0, 1.5, 0.75, 6.1e-5, 3e-6] {
            let here = f16::from_f64(x);
            let next = f16::from_bits(here.to_bits() + 1);
            assert_eq!(f16_step(here.to_f64()), next.to_f64() - here.to_f64(), "{x}");
        }
    }

    #[test]
    fn the_fit_is_the_least_squares_one() {
        // One scale for s = 1 (twice as important) and s = 4: (2 * 1 + 1 * 4) / 3.
        let mut fit = Fit::default();
        fit.add(2.0, 1.0, 0.5);
        fit.add(1.0, 4.0, 0.5);
        assert_eq!(fit.best(0.5), Some(2.0));
        // Multipliers 1 and 4 fit exactly with d = 1.
        let mut fit = Fit::default();
        fit.add(2.0, 1.0, 0.5);
        fit.add(1.0, 4.0, 2.0);
        assert_eq!(fit.best(0.5), Some(1.0));
        assert_eq!(Fit::default().best(1.0), None);
    }

    #[test]
    fn histograms_hold_every_value() {
        let found = linear_histogram(&[-1.0, 0.0, 0.25, 1.0]);
        assert_eq!(found.counts.iter().sum::<u64>(), 4);
        assert_eq!((found.counts[0], found.counts[30], found.counts[60]), (1, 1, 1));
        let mut octaves = Octaves::default();
        [0.5, 0.5, 1.99].into_iter().for_each(|scale| octaves.count(scale));
        let found = octaves.histogram();
        assert_eq!((found.from, found.to), (0.5, 2.0));
        assert_eq!((found.counts[0], found.counts.len()), (2, 48));
        assert_eq!(found.counts.iter().sum::<u64>(), 3);
    }
}
