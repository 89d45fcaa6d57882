//! What a GGUF file holds.

use std::collections::BTreeMap;
use std::path::Path;

use formats::block::BlockType;
use formats::gguf::{File, TensorInfo, Value};
use rayon::prelude::*;
use serde_json::json;

use super::super::activations;
use super::super::text::shown;
use super::super::{lossy, render};
use super::json::{GgufReport, InspectReport, TensorReport, TypeReport};

/// What a stored type needs of an engine: measured or read in the engines' sources, see docs/types.md.
fn engines(ty: BlockType) -> &'static str {
    match ty {
        BlockType::TQ1_0 | BlockType::TQ2_0 => {
            "llama.cpp since September 2024; CPU, Metal (TQ2_0), Vulkan; not CUDA; not Ollama"
        }
        BlockType::Q2_0 => "llama.cpp b10015 and later; fast on CUDA, Metal, Vulkan and Arm, slow on x86; not Ollama",
        ty if ty.is_prism() => {
            "PrismML's fork of llama.cpp only; `tqconv pack IN.gguf OUT.gguf` makes a file for others"
        }
        ty if ty.ollama_reads() => "every llama.cpp and Ollama",
        _ => "llama.cpp; not Ollama",
    }
}

/// A GGUF file to look at.
pub struct Gguf<'a> {
    pub path: &'a Path,
    pub file: &'a File<'a>,
    pub bytes: u64,
}

/// The tensors of one type.
#[derive(Default)]
struct Share {
    tensors: usize,
    weights: u64,
    bytes: u64,
    /// Weights with code 0, in tensors that are ternary.
    dead: u64,
    /// Weights of tensors that are ternary.
    ternary: u64,
}

impl Gguf<'_> {
    fn shares(&self) -> BTreeMap<BlockType, Share> {
        let mut shares = BTreeMap::<_, Share>::new();
        for info in self.file.tensors() {
            let share = shares.entry(info.ty).or_default();
            let weights = info.weights();
            share.tensors += 1;
            share.weights += weights;
            share.bytes += info.bytes().unwrap_or(0);
            if let Some(dead) = self.dead_weights(info) {
                share.dead += dead;
                share.ternary += weights;
            }
        }
        shares
    }

    /// How many weights of a ternary matrix have code 0; `None` for one that is not ternary.
    fn dead_weights(&self, info: &TensorInfo) -> Option<u64> {
        let run = info.ty.scale_run()?;
        let (_, data) = self.file.tensor(&info.name)?;
        // Without weights a row may have any width.
        let columns = usize::try_from(info.columns()).ok().filter(|_| !data.is_empty())?;
        let row_bytes = info.ty.row_bytes(columns)?;
        data.par_chunks_exact(row_bytes)
            .map_init(
                || (vec![0; columns], vec![0.0; columns / run]),
                |(codes, scales), row| {
                    info.ty.unpack_ternary_row(row, codes, scales).ok()?;
                    Some(codes.iter().filter(|&&code| code == 0).count() as u64)
                },
            )
            .sum()
    }

    pub fn text(&self, all: bool) -> String {
        let file = self.file;
        let mut text = format!(
            "{}: GGUF version {}, {} tensors, {} keys, {}\n\n",
            shown(&lossy(self.path)),
            file.version(),
            file.tensors().len(),
            file.metadata().len(),
            render::bytes(self.bytes)
        );
        let keys = file
            .metadata()
            .iter()
            .filter(|(_, value)| all || !matches!(value, Value::Array(_)));
        let shown: Vec<_> = keys.map(|(key, value)| (key.as_str(), brief(value))).collect();
        text += &render::facts(&shown);
        let shares = self.shares();
        let types: Vec<_> = shares.keys().copied().collect();
        let rows = shares.into_iter().map(|(ty, share)| {
            let dead = if share.ternary > 0 {
                render::percent(share.dead as f64 / share.ternary as f64)
            } else {
                String::new()
            };
            let (tensors, weights) = (share.tensors.to_string(), render::count(share.weights));
            vec![
                ty.to_string(),
                tensors,
                weights,
                render::bytes(share.bytes),
                dead,
                engines(ty).into(),
            ]
        });
        text += "\n";
        text += &render::table(
            &["type", ">tensors", ">weights", ">size", ">dead zone", "runs on"],
            rows.collect(),
        );
        text += &activations::table(&types);
        if all {
            let rows = file.tensors().iter().map(|info| {
                let shape: Vec<_> = info.shape.iter().rev().map(u64::to_string).collect();
                vec![
                    info.name.clone(),
                    info.ty.to_string(),
                    shape.join(" x "),
                    info.bytes().map_or(String::new(), render::bytes),
                ]
            });
            text += "\n";
            text += &render::table(&["tensor", "type", ">rows x columns", ">size"], rows.collect());
        }
        text
    }

    /// With the values of lists where `all` is wanted.
    pub fn json(&self, all: bool) -> InspectReport {
        let file = self.file;
        let metadata = file
            .metadata()
            .iter()
            .map(|(key, value)| (key.clone(), listed(value, all)));
        let tensors = file.tensors().iter().map(|info| TensorReport {
            name: info.name.clone(),
            ty: info.ty.to_string(),
            shape: info.shape.iter().rev().copied().collect(),
            bytes: info.bytes(),
        });
        let types = self.shares().into_iter().map(|(ty, share)| {
            let report = TypeReport {
                tensors: share.tensors,
                weights: share.weights,
                bytes: share.bytes,
                dead_share: (share.ternary > 0).then(|| share.dead as f64 / share.ternary as f64),
                runs_on: engines(ty),
                activations: activations::report(ty),
            };
            (ty.name(), report)
        });
        InspectReport::Gguf(GgufReport {
            path: lossy(self.path),
            bytes: self.bytes,
            gguf_version: file.version(),
            alignment_bytes: file.alignment(),
            ollama: file.tensors().iter().all(|info| info.ty.ollama_reads()),
            types: types.collect(),
            metadata: metadata.collect(),
            tensors: tensors.collect(),
        })
    }
}

/// A value as JSON. The values of a list take many times its memory: those longer than any vocabulary are never listed.
fn listed(value: &Value, all: bool) -> serde_json::Value {
    const MAX: usize = 1 << 22;
    match value {
        Value::Array(array) if !all || array.len() > MAX => {
            json!({ "type": value.type_name(), "length": array.len() })
        }
        value => value.to_json(),
    }
}

/// The start of a value.
fn brief(value: &Value) -> String {
    const WIDTH: usize = 72;
    let text = match value {
        Value::Array(array) => format!(
            "{} of {} values: {}",
            value.type_name(),
            array.len(),
            array.first(WIDTH).to_json()
        ),
        Value::String(text) => shown(text),
        value => value.to_json().to_string(),
    };
    if text.chars().count() <= WIDTH {
        text
    } else {
        text.chars().take(WIDTH).chain("...".chars()).collect()
    }
}
