//! What came of a pack, as JSON.

use std::collections::BTreeMap;

use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use super::choose::ChosenReport;
use super::report::Report;
use crate::cli::activations::{self, ActivationsReport};
use crate::cli::json::Document;
use crate::cli::lossy;
use crate::model::TrainingFacts;
use crate::pack::Item;

/// `tqconv pack --json`.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct PackReport {
    /// The output, as it was named.
    path: String,
    /// The files that it consists of.
    files: Vec<String>,
    /// Whether it was written; not with `--dry-run`.
    written: bool,
    /// Of all files together.
    bytes: u64,
    /// How long it took.
    seconds: f64,
    /// Of the files of weights that were read.
    input_bytes: u64,
    /// How a checkpoint was trained.
    training: Option<TrainingFacts>,
    /// What says so.
    known_by: Option<&'static str>,
    /// How many linears became each type.
    linears: BTreeMap<&'static str, usize>,
    /// How much of the output is of each type.
    types: Vec<TypeReport>,
    /// How activations are rounded for each type of the linears.
    activations: BTreeMap<&'static str, Option<ActivationsReport>>,
    /// Weights of all linears.
    ternary_weights: u64,
    /// Of these, scales included.
    bits_per_weight: f64,
    /// The share of these that are zeros, 0 to 1.
    dead_share: f64,
    /// Zeros that were chosen among weights of equal magnitude.
    ties: u64,
    /// As a magnitude.
    largest_bias: f64,
    /// With `--drop-biases`, where biases were left out.
    dropped_biases: Option<DroppedReport>,
    /// With `--max-kld`: what was measured.
    max_kld: Option<ChosenReport>,
    /// The NMSE that storing adds, over all linears.
    nmse: f64,
    /// Of the linear that loses the most.
    worst_nmse: Option<f64>,
    /// That linear.
    worst_tensor: Option<String>,
    /// For Ollama.
    modelfile: Option<String>,
    /// For the Hugging Face Hub.
    card: Option<String>,
    /// The command that verifies the output.
    verify: String,
    /// What a person should know beside it.
    notes: Vec<String>,
    /// In the order of the file.
    tensors: Vec<TensorReport>,
}

/// The tensors of one type.
#[derive(Serialize, JsonSchema)]
struct TypeReport {
    #[serde(rename = "type")]
    ty: &'static str,
    tensors: usize,
    bytes: u64,
}

/// Biases that were left out.
#[derive(Serialize, JsonSchema)]
struct DroppedReport {
    /// How many linears lost them.
    linears: usize,
    /// As a magnitude.
    largest: f64,
    /// Of the outputs of those linears, where inputs have a mean square of 1.
    output_nmse: f64,
}

/// A tensor of the output.
#[derive(Serialize, JsonSchema)]
struct TensorReport {
    name: String,
    #[serde(rename = "type")]
    ty: &'static str,
    /// Rows first.
    shape: Vec<u64>,
    /// Which of the files it is in, from 0.
    file: usize,
    /// Where it starts in that file.
    offset_bytes: u64,
    bytes: Option<u64>,
    /// What storing it adds, where it is ternary.
    nmse: Option<f64>,
}

impl Document for PackReport {
    const SCHEMA: &'static str = "tqconv.pack/1";
}

impl PackReport {
    pub(super) fn new(report: &Report) -> Self {
        let (packed, summary) = (report.packed, &report.packed.summary);
        let worst = summary.worst.as_ref();
        Self {
            path: lossy(report.output),
            files: report.paths.iter().map(|path| lossy(path)).collect(),
            written: !report.args.dry_run,
            bytes: summary.bytes,
            seconds: report.time.as_secs_f64(),
            input_bytes: packed.origin.bytes(),
            training: report.scheme().map(|scheme| scheme.training().facts()),
            known_by: report.evidence(),
            linears: summary.linears.iter().map(|(ty, count)| (ty.name(), *count)).collect(),
            types: types(&packed.items),
            activations: activations::reports(report.types()),
            ternary_weights: summary.ternary_weights,
            bits_per_weight: summary.bits_per_weight(),
            dead_share: summary.dead_share(),
            ties: summary.ties,
            largest_bias: summary.largest_bias,
            dropped_biases: summary.dropped.map(|dropped| DroppedReport {
                linears: dropped.linears,
                largest: dropped.largest,
                output_nmse: dropped.loss.nmse(),
            }),
            max_kld: report.chosen.map(|chosen| ChosenReport::new(report.args, chosen)),
            nmse: summary.loss.nmse(),
            worst_nmse: worst.map(|(_, nmse)| *nmse),
            worst_tensor: worst.map(|(name, _)| name.clone()),
            modelfile: report.next.modelfile.map(lossy),
            card: report.card.map(lossy),
            verify: report.next.verify(),
            notes: report.notes.clone(),
            tensors: packed.items.iter().map(TensorReport::new).collect(),
        }
    }
}

impl TensorReport {
    fn new(item: &Item) -> Self {
        Self {
            name: item.info.name.clone(),
            ty: item.info.ty.name(),
            shape: item.info.shape.iter().rev().copied().collect(),
            file: item.file,
            offset_bytes: item.offset,
            bytes: item.info.bytes(),
            nmse: item.loss.map(|loss| loss.nmse()),
        }
    }
}

fn types(items: &[Item]) -> Vec<TypeReport> {
    let mut types = BTreeMap::new();
    for item in items {
        let (tensors, bytes) = types.entry(item.info.ty).or_insert((0, 0));
        *tensors += 1;
        *bytes += item.info.bytes().unwrap_or(0);
    }
    let report = |(ty, (tensors, bytes)): (BlockType, (usize, u64))| TypeReport {
        ty: ty.name(),
        tensors,
        bytes,
    };
    types.into_iter().map(report).collect()
}
