//! Level 2 where the file was packed from a GGUF file: whether every tensor and key of that is here.
//!
//! A tensor of the same type is a copy, bit for bit. A matrix in blocks of codes and scales has the other's codes, and the
//! nearest f16 of its scale where that is one for a block; what merging several lost is counted, and has a limit. In any
//! other type each number is the other's, rounded once, or within the limit of that type.

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use half::f16;
use rayon::prelude::*;

use super::latent::reference;
use super::report::{Check, CheckId, Limit, LinearFacts, SHOWN, Tally, Unit};
use super::{Options, Progress, tables};
use crate::metrics;

/// What was found.
pub(super) struct Converted {
    pub checks: Vec<Check>,
    /// The matrices whose type has changed.
    pub facts: Vec<LinearFacts>,
}

/// Compare `file` with `source`, which it was packed from.
pub(super) fn check(file: &File, source: &File, options: &Options, progress: &Progress) -> Converted {
    let mut found = Found::default();
    let all = source.tensors().len() as f64;
    for (done, info) in source.tensors().iter().enumerate() {
        progress(&format!("codes: {}", info.name), Some(done as f64 / all));
        found.add(file, source, info);
    }
    let known = |info: &&TensorInfo| source.tensor(&info.name).is_none();
    for info in file.tensors().iter().filter(known) {
        found.differ(format!("tensor '{}' is in this file alone", info.name));
    }
    let mut checks = found.checks(options.max_nmse);
    checks.push(keys(file, source, options));
    checks.append(&mut found.tables);
    Converted {
        checks,
        facts: found.facts,
    }
}

#[derive(Default)]
struct Found {
    /// Tensors that are to be equal, or to be there at all.
    copies: u64,
    differ: Vec<String>,
    facts: Vec<LinearFacts>,
    codes: Vec<String>,
    scales: Vec<String>,
    tables: Vec<Check>,
}

impl Found {
    fn differ(&mut self, place: String) {
        self.copies += 1;
        self.differ.push(place);
    }

    fn add(&mut self, file: &File, source: &File, info: &TensorInfo) {
        let name = &info.name;
        let (Some((_, expected)), Some((stored, bytes))) = (source.tensor(name), file.tensor(name)) else {
            return self.differ(format!("tensor '{name}' is missing"));
        };
        if stored.shape != info.shape {
            let (found, expected) = (&stored.shape, &info.shape);
            return self.differ(format!("tensor '{name}' has shape {found:?}, expected {expected:?}"));
        }
        if stored.ty == info.ty {
            match bytes == expected {
                true => self.copies += 1,
                false => self.differ(format!("tensor '{name}' has other bytes")),
            }
            return;
        }
        let rows = Rows {
            ty: info.ty,
            bytes: expected,
            shape: (info.rows() as usize, info.columns() as usize),
        };
        let id = match &**name {
            "token_embd.weight" => Some(CheckId::Embedding),
            "output.weight" => Some(CheckId::Head),
            _ => None,
        };
        match stored.ty.scale_run() {
            // Q8_0 holds ternary weights, but a table in it is seldom ternary.
            Some(run) if id.is_none() || tables::table_limit(stored.ty).is_none() => {
                self.add_matrix(stored, bytes, run, &rows);
            }
            _ => self.tables.push(table(file, id, name, &rows)),
        }
    }

    fn add_matrix(&mut self, info: &TensorInfo, bytes: &[u8], run: usize, source: &Rows) {
        let (rows, columns) = source.shape;
        let row_bytes = bytes.len() / rows.max(1);
        let compare = |room: &mut Room, row: usize| {
            source.read(row, room, columns);
            Row {
                info,
                run,
                row,
                bytes: &bytes[row * row_bytes..][..row_bytes],
            }
            .compare(room)
        };
        let found: Vec<RowFound> = (0..rows).into_par_iter().map_init(Room::default, compare).collect();
        let mut tally = Tally::default();
        for row in found {
            tally += row.tally;
            self.codes.extend(row.code);
            self.scales.extend(row.scale);
        }
        self.codes.truncate(SHOWN + 1);
        self.scales.truncate(SHOWN + 1);
        let name = info.name.trim_end_matches(".weight");
        let (layer, part) = layer_and_part(name);
        self.facts.push(LinearFacts {
            name: name.into(),
            layer,
            part: part.into(),
            ty: info.ty.to_string(),
            tally,
            dots: None,
        });
    }

    fn checks(&mut self, max_nmse: f64) -> Vec<Check> {
        const COPIED: &str = "the source's, bit for bit";
        const CODES: &str = "the source's, exactly";
        const NEAREST: &str = "the source's to nearest in f16, where a block has one";
        let sum: Tally = self.facts.iter().map(|facts| facts.tally).sum();
        let take = |id, wrong, of, things, origin, places: &mut Vec<String>| {
            Check::none_differ(id, wrong, of, things, origin).with_details(std::mem::take(places))
        };
        let differ = self.differ.len() as u64;
        let (codes, scales) = (sum.codes_wrong, sum.scales_wrong);
        vec![
            take(
                CheckId::CopiedTensors,
                differ,
                self.copies,
                "tensors",
                COPIED,
                &mut self.differ,
            ),
            take(CheckId::Codes, codes, sum.weights, "codes", CODES, &mut self.codes),
            take(CheckId::Scales, scales, sum.scales, "scales", NEAREST, &mut self.scales),
            self.worst_nmse(max_nmse),
        ]
    }

    fn worst_nmse(&self, at_most: f64) -> Check {
        let worst = metrics::worst(self.facts.iter().map(|facts| (facts, facts.tally.loss.value())));
        let found = worst.as_ref().map_or(0.0, |(_, nmse)| *nmse);
        let origin = "--max-nmse, for the worst matrix";
        let check = Check::new(CheckId::WeightNmse, found, Unit::Ratio, Limit { at_most }, origin);
        match worst.filter(|(_, nmse)| *nmse != 0.0) {
            Some((worst, _)) => check.named(format!("weight NMSE ({})", worst.name)),
            None => check,
        }
    }
}

/// `blk.7.ffn_up` is `ffn_up` of layer 7.
fn layer_and_part(name: &str) -> (usize, &str) {
    let parts = name.strip_prefix("blk.").and_then(|name| name.split_once('.'));
    let parts = parts.and_then(|(layer, part)| Some((layer.parse().ok()?, part)));
    parts.unwrap_or((0, name))
}

fn table(file: &File, id: Option<CheckId>, name: &str, source: &Rows) -> Check {
    let read = |row, out: &mut [f32]| source.dequantize(row, out);
    let other = CheckId::ConvertedTensor;
    let check = tables::converted(file, id.unwrap_or(other), name, source.shape, &read);
    match id {
        Some(_) => check,
        None => check.named(format!("{} '{name}'", other.name())),
    }
}

/// A matrix of the source, whatever lies beyond two dimensions one below the other.
struct Rows<'a> {
    ty: BlockType,
    bytes: &'a [u8],
    shape: (usize, usize),
}

impl Rows<'_> {
    fn read(&self, row: usize, room: &mut Room, columns: usize) {
        room.w.resize(columns, 0.0);
        self.dequantize(row, &mut room.w);
    }

    /// What cannot be read is NaN, which differs from everything.
    fn dequantize(&self, row: usize, out: &mut [f32]) {
        let row_bytes = self.bytes.len() / self.shape.0;
        let bytes = &self.bytes[row * row_bytes..][..row_bytes];
        if self.ty.dequantize_row(bytes, out).is_err() {
            out.fill(f32::NAN);
        }
    }
}

/// Room for one row: the source's weights, and the file's codes and scales.
#[derive(Default)]
struct Room {
    w: Vec<f32>,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

/// A row of blocks of codes and scales, one scale for `run` weights.
struct Row<'a> {
    info: &'a TensorInfo,
    run: usize,
    row: usize,
    bytes: &'a [u8],
}

#[derive(Default)]
struct RowFound {
    tally: Tally,
    /// The first code that differs, and the first scale.
    code: Option<String>,
    scale: Option<String>,
}

impl Row<'_> {
    fn compare(&self, room: &mut Room) -> RowFound {
        let (ty, Room { w, codes, scales }) = (self.info.ty, room);
        codes.resize(w.len(), 0);
        scales.resize(w.len() / self.run, 0.0);
        let mut found = RowFound::default();
        (found.tally.rows, found.tally.weights) = (1, w.len() as u64);
        let ternary = ty.unpack_ternary_row(self.bytes, codes, scales);
        let levels = match &ternary {
            Ok(()) => 1.0,
            Err(_) => 3.0,
        };
        if let Err(error) = ternary.or_else(|_| ty.unpack_four_level_row(self.bytes, codes, scales)) {
            found.tally.codes_wrong = w.len() as u64;
            found.code = Some(format!("tensor '{}' row {}: {error}", self.info.name, self.row));
            return found;
        }
        let runs = ty.weights() / self.run;
        let blocks = w.chunks_exact(ty.weights()).zip(codes.chunks_exact(ty.weights()));
        for (index, ((w, codes), scales)) in blocks.zip(scales.chunks_exact(runs)).enumerate() {
            let one = one_scale(w, levels);
            for (at, (w, codes)) in w.chunks_exact(self.run).zip(codes.chunks_exact(self.run)).enumerate() {
                let column = index * ty.weights() + at * self.run;
                self.compare_run(column, w, codes, scales[at], &mut found);
                if w.iter().any(|&w| w != 0.0) {
                    self.compare_scale(column, one, scales[at], &mut found);
                }
            }
        }
        found
    }

    /// Codes of one run, and what storing its weights lost.
    fn compare_run(&self, start: usize, w: &[f32], codes: &[i8], scale: f32, found: &mut RowFound) {
        for (at, (&w, &code)) in w.iter().zip(codes).enumerate() {
            let level: f32 = if w.abs() > 2.0 * scale.abs() && code.abs() == 3 {
                3.0
            } else {
                1.0
            };
            let expected = if w == 0.0 { 0.0 } else { level.copysign(w) };
            let stored = f32::from(code) * scale.signum();
            let trained = reference(w.abs()).copysign(w);
            found.tally.loss.add(trained.into(), (f32::from(code) * scale).into());
            found.tally.dead += u64::from(w == 0.0);
            // Codes of a scale of 0 are weights of 0, whatever they are.
            if stored != expected && (w != 0.0 || scale != 0.0) {
                found.tally.codes_wrong += 1;
                found.code.get_or_insert_with(|| {
                    let (name, row, column) = (&self.info.name, self.row, start + at);
                    format!("tensor '{name}' row {row} column {column}: code {stored}, the source has {w:e}")
                });
            }
        }
    }

    /// `one`: the source's scale, where its block has one.
    fn compare_scale(&self, start: usize, one: Option<f32>, scale: f32, found: &mut RowFound) {
        let Some(expected) = one.map(|scale| f16::from_f32(scale).to_f32()) else {
            found.tally.merged += 1;
            return;
        };
        found.tally.scales += 1;
        if scale.abs() != expected {
            found.tally.scales_wrong += 1;
            found.scale.get_or_insert_with(|| {
                let (name, row, end) = (&self.info.name, self.row, start + self.run - 1);
                format!("tensor '{name}' row {row} columns {start} to {end}: scale {scale:e}, expected {expected:e}")
            });
        }
    }
}

/// The scale of weights that are all 0 or `levels` times it or once.
fn one_scale(w: &[f32], levels: f32) -> Option<f32> {
    let magnitudes = || w.iter().map(|w| w.abs()).filter(|&w| w != 0.0);
    let scale = magnitudes().fold(f32::INFINITY, f32::min);
    magnitudes().all(|w| w == scale || w == levels * scale).then_some(scale)
}

/// Every key of the source is here with its value and in its order, but for those that say what the tensors are.
fn keys(file: &File, source: &File, options: &Options) -> Check {
    let by_hand = |key: &str| options.metadata.iter().any(|(name, _)| name == key);
    let own = |key: &str| {
        matches!(
            key,
            "general.alignment" | "general.file_type" | "general.quantization_version"
        ) || key.starts_with("tqconv.")
            || key.starts_with("split.")
            || by_hand(key)
    };
    let copied = |file: &File| -> Vec<(String, Value)> {
        let keys = file.metadata().iter().filter(|(key, _)| !own(key));
        keys.cloned().collect()
    };
    let (found, expected) = (copied(file), copied(source));
    let mut problems = vec![];
    for (key, value) in &expected {
        match file.get(key) {
            Some(found) if found == value => {}
            found => {
                let found = found.map_or("absent".into(), Value::brief);
                problems.push(format!("key '{key}' is {found}, expected {}", value.brief()));
            }
        }
    }
    let known = |key: &str| expected.iter().any(|(name, _)| name == key);
    let alone = found.iter().filter(|(key, _)| !known(key));
    problems.extend(alone.map(|(key, _)| format!("key '{key}' is in this file alone")));
    if problems.is_empty() && found != expected {
        problems.push("the keys are in another order".into());
    }
    let of = expected.len() as u64;
    Check::no_problems(CheckId::CopiedKeys, problems, of, "keys", "the source's, in its order")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_one_scale_or_several() {
        assert_eq!(one_scale(&[0.0, -2.0, 2.0], 1.0), Some(2.0));
        assert_eq!(one_scale(&[0.0, -2.0, 2.5], 1.0), None);
        assert_eq!(one_scale(&[6.0, -2.0, 2.0], 3.0), Some(2.0));
        assert_eq!(one_scale(&[6.0, -2.0, 2.0], 1.0), None);
    }

    #[test]
    fn names_give_layers() {
        assert_eq!(layer_and_part("blk.12.ffn_up_exps"), (12, "ffn_up_exps"));
        assert_eq!(layer_and_part("output"), (0, "output"));
    }
}
