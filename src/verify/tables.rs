//! Level 2, everything that is not ternary: norms, embedding, head, rotary factors.

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo};
use formats::safetensors::Tensor;
use half::{bf16, f16};
use rayon::prelude::*;

use super::latent::{rope_factors, row_order};
use super::report::{Check, CheckId, Limit, Unit};
use crate::blueprint::{Linear, Slot};
use crate::metrics::Nmse;
use crate::model::{Checkpoint, Config};

/// The checks. `config`: what the verifier makes of config.json. `max_nmse`: what storing a ternary table may have added.
pub(super) fn check(file: &File, checkpoint: &Checkpoint, config: &Config, max_nmse: f64) -> Vec<Check> {
    let (mut sources, mut tables, mut kept) = (vec![], vec![], vec![]);
    for (slot, source) in config.slots() {
        let name = slot.gguf_name();
        let tensor = |source: Option<String>| {
            let tensor = checkpoint.tensors.get(&source.unwrap_or_default());
            tensor.expect("Checkpoint::open found every tensor")
        };
        match slot {
            Slot::Norm(_) => sources.push((name, tensor(source))),
            Slot::Embedding => {
                let ids = (CheckId::Embedding, CheckId::EmbeddingScales);
                tables.extend(table(file, ids, &name, tensor(source), max_nmse));
            }
            Slot::Head => {
                let ids = (CheckId::Head, CheckId::HeadScales);
                tables.extend(table(file, ids, &name, tensor(source), max_nmse));
            }
            Slot::Linear(linear) if !checkpoint.is_ternary(linear) => kept.push(linear),
            // `codes` compares the first, `rope` the second.
            Slot::Linear(_) | Slot::RopeFactors => {}
        }
    }
    let mut checks = vec![norms(file, sources)];
    checks.append(&mut tables);
    if config.tied_head {
        let separate = file.tensor("output.weight").is_some();
        let problem = separate.then(|| "tensor 'output.weight' is there, the head is the embedding".into());
        let origin = "tie_word_embeddings of config.json, and no other table";
        checks.push(Check::no_problems(CheckId::TiedHead, problem, 1, "tensor", origin));
    }
    checks.extend((!kept.is_empty()).then(|| kept_linears(file, checkpoint, &kept)));
    checks.push(rope(file, config));
    checks
}

/// Linears that are not ternary are the checkpoint's, weights and biases, bit for bit.
fn kept_linears(file: &File, checkpoint: &Checkpoint, linears: &[Linear]) -> Check {
    let (mut wrong, mut of, mut details) = (0, 0, vec![]);
    for &linear in linears {
        let order = row_order(linear, &checkpoint.config);
        for part in ["weight", "bias"] {
            let source = format!("{}.{part}", linear.checkpoint_name());
            let Some(source) = checkpoint.tensors.get(&source) else {
                continue;
            };
            let name = format!("{}.{part}", linear.gguf_name());
            let differ = differing_rows(file, &name, source, &order);
            of += order.len() as u64;
            wrong += differ.len() as u64;
            let place = differ
                .first()
                .map(|row| format!("tensor '{name}' row {row}: not the checkpoint's"));
            details.extend(place);
        }
    }
    const ORIGIN: &str = "the checkpoint's, which are not ternary";
    Check::none_differ(CheckId::KeptLinears, wrong, of, "rows", ORIGIN).with_details(details)
}

/// The rows of a matrix, or the numbers of a bias, that differ. `order`: the checkpoint's row of each row of the file.
fn differing_rows(file: &File, name: &str, source: Tensor, order: &[usize]) -> Vec<usize> {
    let columns = source.len() / order.len();
    let all = || (0..order.len()).collect();
    let Some((info, bytes)) = file
        .tensor(name)
        .filter(|(info, _)| info.weights() == source.len() as u64)
    else {
        return all();
    };
    let Some(row_bytes) = info
        .ty
        .row_bytes(columns)
        .filter(|&row_bytes| row_bytes * order.len() == bytes.len())
    else {
        return all();
    };
    let (mut expected, mut found) = (vec![0f32; columns], vec![0f32; columns]);
    let mut differs = |row: &usize| {
        source.read_f32(order[*row] * columns, &mut expected);
        let read = info
            .ty
            .dequantize_row(&bytes[row * row_bytes..][..row_bytes], &mut found);
        let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        read.is_err() || !expected.iter().zip(&found).all(equal)
    };
    (0..order.len()).filter(|row| differs(row)).collect()
}

/// Every norm is the checkpoint's, widened to F32, bit for bit.
fn norms(file: &File, sources: Vec<(String, Tensor)>) -> Check {
    let (mut wrong, mut of, mut details) = (0, 0, vec![]);
    for (name, source) in sources {
        let mut expected = vec![0.0; source.len()];
        source.read_f32(0, &mut expected);
        of += expected.len() as u64;
        let Some(found) = floats(file, &name).filter(|found| found.len() == expected.len()) else {
            wrong += expected.len() as u64;
            details.push(format!("tensor '{name}' is missing, not F32, or of another shape"));
            continue;
        };
        let differ = |&i: &usize| found[i].to_bits() != expected[i].to_bits();
        let places: Vec<_> = (0..found.len()).filter(differ).collect();
        wrong += places.len() as u64;
        details.extend(
            places
                .first()
                .map(|&i| format!("tensor '{name}' column {i}: {:e}, expected {:e}", found[i], expected[i])),
        );
    }
    Check::none_differ(CheckId::Norms, wrong, of, "numbers", "the checkpoint's, widened to F32").with_details(details)
}

/// A tensor of F32 numbers.
fn floats(file: &File, name: &str) -> Option<Vec<f32>> {
    let (info, bytes) = file.tensor(name)?;
    let numbers = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
    (info.ty == BlockType::F32).then(|| numbers.collect())
}

/// What a table may lose in a type that is no copy of the checkpoint's: the step of a block is its largest weight over the
/// number of levels on one side, a step's mean square error is step^2 / 12, and the largest weight of a block is taken to
/// be at most 4 times the root mean square.
pub(super) fn table_limit(ty: BlockType) -> Option<f64> {
    match ty {
        BlockType::Q8_0 => Some(1e-4),   // 127 levels: 16 / 127^2 / 12 = 8.3e-5
        BlockType::Q6_K => Some(1.5e-3), // 32 levels: 16 / 32^2 / 12 = 1.3e-3
        BlockType::Q4_K => Some(2.5e-2), // 7.5 levels: 16 / 7.5^2 / 12 = 2.4e-2
        _ => None,
    }
}

/// Embedding or head against the checkpoint's. Of a type that holds ternary weights alone each code is equal, and each
/// scale where it stands for one; what those lose that stand for several is within `max_nmse`, by the second of `ids`.
fn table(file: &File, ids: (CheckId, CheckId), name: &str, source: Tensor, max_nmse: f64) -> Vec<Check> {
    const CODES: &str = "the checkpoint's codes; its scale to nearest in f16 where a block has one";
    const SCALES: &str = "--max-nmse, from the numbers to nearest in f16";
    let shape = (source.shape[0], source.shape[1]);
    let read = |row: usize, out: &mut [f32]| source.read_f32(row * shape.1, out);
    let ternary = |info: &TensorInfo| holds_ternary_alone(info.ty) && has_shape(info, shape);
    let Some((info, bytes)) = file.tensor(name).filter(|(info, _)| ternary(info)) else {
        return vec![converted(file, ids.0, name, shape, &read)];
    };
    let found = compare(info.ty, bytes, shape, &read);
    let place = found.first.map(|place| place.describe(name)).into_iter().collect();
    let codes = Check::none_differ(ids.0, found.wrong, source.len() as u64, "numbers", CODES).with_details(place);
    let (nmse, limit) = (found.loss.value(), Limit { at_most: max_nmse });
    vec![codes, Check::new(ids.1, nmse, Unit::Ratio, limit, SCALES)]
}

fn has_shape(info: &TensorInfo, (rows, columns): (usize, usize)) -> bool {
    info.columns() == columns as u64 && info.rows() == rows as u64
}

/// Whether a block type holds codes and scales and nothing in between.
pub(super) fn holds_ternary_alone(ty: BlockType) -> bool {
    ty.scale_run().is_some() && table_limit(ty).is_none()
}

/// A table that may have been converted: equal where its type can hold the source's numbers or their rounding, else within
/// a limit. `shape`: (rows, columns). `read`: a row of the source.
pub(super) fn converted(file: &File, id: CheckId, name: &str, shape: (usize, usize), read: &ReadRow) -> Check {
    const ROUNDED: &str = "the source's, rounded to the type at most once";
    let of = (shape.0 * shape.1) as u64;
    let Some((info, bytes)) = file.tensor(name).filter(|(info, _)| has_shape(info, shape)) else {
        let missing = vec![format!("tensor '{name}' is missing or of another shape")];
        return Check::none_differ(id, of, of, "numbers", ROUNDED).with_details(missing);
    };
    let found = compare(info.ty, bytes, shape, read);
    if let Some(at_most) = table_limit(info.ty) {
        const ORIGIN: &str = "one step of the type, uniformly off (docs/verify.md)";
        let check = Check::new(id, found.loss.value(), Unit::Ratio, Limit { at_most }, ORIGIN);
        return check.named(format!("{} NMSE ({})", id.name(), info.ty));
    }
    let place = found.first.map(|place| place.describe(name));
    Check::none_differ(id, found.wrong, of, "numbers", ROUNDED).with_details(place.into_iter().collect())
}

/// How a table differs.
#[derive(Default)]
struct TableFound {
    wrong: u64,
    loss: Nmse,
    first: Option<Place>,
}

struct Place {
    row: usize,
    column: usize,
    found: f32,
    expected: f32,
}

impl Place {
    fn describe(&self, name: &str) -> String {
        format!(
            "tensor '{name}' row {} column {}: {:e}, expected {:e}",
            self.row, self.column, self.found, self.expected
        )
    }
}

/// Writes a row of the source.
pub(super) type ReadRow<'a> = dyn Fn(usize, &mut [f32]) + Sync + 'a;

fn compare(ty: BlockType, bytes: &[u8], (rows, columns): (usize, usize), read: &ReadRow) -> TableFound {
    let Some(row_bytes) = ty.row_bytes(columns).filter(|&bytes| bytes > 0) else {
        return TableFound {
            wrong: (rows * columns) as u64,
            ..TableFound::default()
        };
    };
    let rows: Vec<TableFound> = bytes
        .par_chunks_exact(row_bytes)
        .enumerate()
        .map_init(
            || (vec![0.0; columns], vec![0.0; columns]),
            |(expected, found), (row, bytes)| {
                read(row, expected);
                // A type that cannot be read leaves NaN, which differs from everything.
                if ty.dequantize_row(bytes, found).is_err() {
                    found.fill(f32::NAN);
                }
                compare_row(ty, row, expected, found)
            },
        )
        .collect();
    rows.into_iter().fold(TableFound::default(), |mut all, row| {
        all.wrong += row.wrong;
        all.loss += row.loss;
        all.first = all.first.or(row.first);
        all
    })
}

/// `expected`: a row of the source. (columns,)
fn compare_row(ty: BlockType, row: usize, expected: &[f32], found: &[f32]) -> TableFound {
    let ternary = holds_ternary_alone(ty);
    let round = |w: f32| match ty {
        _ if ternary && !f16::from_f32(w).is_normal() => w,
        _ if ternary => f16::from_f32(w).to_f32(),
        BlockType::F16 => f16::from_f32(w).to_f32(),
        BlockType::BF16 => bf16::from_f32(w).to_f32(),
        _ => w,
    };
    let mut all = TableFound::default();
    let one_scale: Vec<bool> = match ternary {
        true => expected.chunks(ty.weights()).map(have_one_magnitude).collect(),
        false => vec![],
    };
    for (column, (&w, &stored)) in expected.iter().zip(found).enumerate() {
        let expected = round(w);
        let trained = if ternary { expected } else { w };
        all.loss += Nmse {
            error: f64::from(trained - stored).powi(2),
            energy: f64::from(trained).powi(2),
        };
        let sign = |w: f32| i8::from(w > 0.0) - i8::from(w < 0.0);
        let differs = match ternary {
            true => {
                let exact = one_scale[column / ty.weights()];
                stored.is_nan() || sign(stored) != sign(expected) || (exact && stored.abs() != expected.abs())
            }
            false => stored.to_bits() != expected.to_bits(),
        };
        if differs {
            all.wrong += 1;
            all.first.get_or_insert(Place {
                row,
                column,
                found: stored,
                expected,
            });
        }
    }
    all
}

/// Whether all numbers that are not zero have one magnitude.
fn have_one_magnitude(numbers: &[f32]) -> bool {
    let mut magnitudes = numbers.iter().filter(|w| **w != 0.0).map(|w| w.abs());
    let first = magnitudes.next();
    magnitudes.all(|magnitude| Some(magnitude) == first)
}

/// `rope_freqs.weight` is there for Llama 3's scaling, and only then, with its factors.
fn rope(file: &File, config: &Config) -> Check {
    const NAME: &str = "rope_freqs.weight";
    let stored = file.tensor(NAME).map(|_| floats(file, NAME).unwrap_or_default());
    let Some(expected) = rope_factors(config) else {
        let problem = stored.map(|_| format!("tensor '{NAME}' is there"));
        return Check::no_problems(
            CheckId::NoRotaryFactors,
            problem,
            1,
            "tensor",
            "config.json has no scaling that needs them",
        );
    };
    let problems = match stored {
        None => vec![format!("tensor '{NAME}' is missing")],
        Some(found) => rope_problems(&expected, &found),
    };
    Check::no_problems(
        CheckId::RotaryFactors,
        problems,
        expected.len() as u64,
        "factors",
        "rope parameters of config.json, to 2 steps of F32",
    )
}

fn rope_problems(expected: &[f64], found: &[f32]) -> Vec<String> {
    const STEPS: f64 = 2.0 * f32::EPSILON as f64;
    if expected.len() != found.len() {
        let (found, expected) = (found.len(), expected.len());
        return vec![format!(
            "tensor 'rope_freqs.weight' has {found} factors in F32, expected {expected}"
        )];
    }
    let pairs = expected.iter().zip(found).enumerate();
    pairs
        .filter(|(_, (expected, found))| {
            let distance = (f64::from(**found) - **expected).abs();
            distance.is_nan() || distance > STEPS * expected.abs()
        })
        .map(|(i, (expected, found))| format!("tensor 'rope_freqs.weight' factor {i}: {found}, expected {expected}"))
        .collect()
}
