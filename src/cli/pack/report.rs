//! What came of a pack, for a person.

use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::block::BlockType;

use super::args::TargetArg;
use super::next::Next;
use super::{PackArgs, choose};
use crate::choose::Chosen;
use crate::cli::text::shown;
use crate::cli::{activations, card, lossy, render};
use crate::model::Scheme;
use crate::pack::{Larger, Origin, Packed};

/// What there is to tell of a pack.
pub(super) struct Report<'a> {
    pub args: &'a PackArgs,
    pub packed: &'a Packed<'a>,
    /// As it was named, or called after the model.
    pub output: &'a Path,
    /// Where the types were chosen by their KLD.
    pub chosen: Option<&'a Chosen>,
    pub next: Next<'a>,
    pub paths: &'a [PathBuf],
    /// Where the card goes, if one is asked for.
    pub card: Option<&'a Path>,
    pub notes: Vec<String>,
    pub time: Duration,
}

impl Report<'_> {
    pub fn text(&self) -> String {
        let mut text = if self.args.dry_run {
            self.tensors()
        } else {
            String::new()
        };
        text += &self.headline();
        text += &render::facts(&self.facts());
        for note in &self.notes {
            text += &format!("note: {}\n", shown(note));
        }
        if !self.args.dry_run {
            text += &self.next.text();
        }
        text
    }

    fn headline(&self) -> String {
        let (output, bytes) = (
            shown(&self.paths[0].display().to_string()),
            render::bytes(self.packed.summary.bytes),
        );
        match self.args.dry_run {
            true => format!("\n{output} would be written: {bytes}\n"),
            false => format!("{output}: {bytes} in {}\n", render::seconds(self.time)),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        const WORTH_A_RATE: u64 = 100_000_000; // bytes; below, starting up takes most of the time
        let summary = &self.packed.summary;
        let input = self.packed.origin.bytes();
        let rate = input as f64 / 1e9 / self.time.as_secs_f64();
        let mut facts = vec![
            (
                "training",
                self.scheme().map_or(String::new(), |scheme| scheme.training().text()),
            ),
            ("known by", self.evidence().unwrap_or_default().into()),
            (
                "linears",
                format!(
                    "{}: {} weights, {:.4} bits per weight",
                    render::counts(&summary.linears),
                    render::count(summary.ternary_weights),
                    summary.bits_per_weight()
                ),
            ),
            ("weight NMSE", self.loss()),
            ("activations", activations::line(&self.types())),
            ("not smaller", self.larger()),
        ];
        facts.extend(
            self.chosen
                .into_iter()
                .flat_map(|chosen| choose::facts(self.args, chosen)),
        );
        facts.extend(match self.packed.origin {
            Origin::Checkpoint(checkpoint) => vec![
                (render::zeros(&checkpoint.scheme), render::percent(summary.dead_share())),
                ("ties", ties(summary.ties)),
                ("largest bias", self.largest_bias()),
                ("biases lost", self.dropped()),
                ("embedding", self.table("token_embd.weight")),
                ("head", self.table("output.weight")),
            ],
            Origin::Gguf(_) => vec![
                ("zeros", render::percent(summary.dead_share())),
                ("other tensors", self.others()),
            ],
        });
        facts.retain(|(_, text)| !text.is_empty());
        if !self.args.dry_run && input >= WORTH_A_RATE {
            facts.push(("speed", format!("{rate:.2} GB/s of input ({})", render::bytes(input))));
        }
        facts
    }

    pub fn scheme(&self) -> Option<&Scheme> {
        match self.packed.origin {
            Origin::Checkpoint(checkpoint) => Some(&checkpoint.scheme),
            Origin::Gguf(_) => None,
        }
    }

    /// What says how a checkpoint was trained.
    pub fn evidence(&self) -> Option<&'static str> {
        match self.packed.origin {
            Origin::Checkpoint(checkpoint) => Some(checkpoint.evidence),
            Origin::Gguf(_) => None,
        }
    }

    /// The tensors that are not ternary matrices, by type.
    fn others(&self) -> String {
        let mut counts = std::collections::BTreeMap::<_, usize>::new();
        for item in self.packed.items.iter().filter(|item| item.loss.is_none()) {
            *counts.entry(item.info.ty).or_default() += 1;
        }
        render::counts(&counts)
    }

    /// Type and size of embedding or head, and what would make it smaller; empty where there is none.
    fn table(&self, name: &str) -> String {
        let Some(item) = self.packed.items.iter().find(|item| item.info.name == name) else {
            return String::new();
        };
        let (info, bytes) = (&item.info, item.info.bytes().unwrap_or_default());
        let share = bytes as f64 / self.packed.summary.bytes as f64;
        let smaller = usize::try_from(info.columns())
            .ok()
            .and_then(|columns| BlockType::Q8_0.row_bytes(columns));
        let saved = smaller.and_then(|row| bytes.checked_sub(row as u64 * info.rows()));
        let saved = match saved.filter(|saved| *saved > 0) {
            Some(saved) => format!("; --embedding q8_0 saves {}", render::bytes(saved)),
            None => String::new(),
        };
        format!(
            "{} {} ({} of all){saved}",
            info.ty,
            render::bytes(bytes),
            render::percent(share)
        )
    }

    /// The types of the linears.
    pub fn types(&self) -> Vec<BlockType> {
        self.packed.summary.linears.keys().copied().collect()
    }

    fn loss(&self) -> String {
        let summary = &self.packed.summary;
        match &summary.worst {
            Some((name, worst)) if *worst > 0.0 => {
                format!(
                    "{} over all, {} in the worst ({name})",
                    render::small(summary.loss.nmse()),
                    render::small(*worst)
                )
            }
            _ => "0: every scale and code is stored as trained".into(),
        }
    }

    /// Empty where the file has no biases.
    fn largest_bias(&self) -> String {
        let mut items = self.packed.items.iter();
        match items.any(|item| item.info.name.ends_with(".bias")) {
            true => render::small(self.packed.summary.largest_bias),
            false => String::new(),
        }
    }

    /// What --drop-biases costs; empty where it drops none.
    fn dropped(&self) -> String {
        let Some(dropped) = &self.packed.summary.dropped else {
            return String::new();
        };
        format!(
            "{} linears, up to {}, NMSE {} of their outputs where inputs have a mean square of 1; verify tells what the \
             model loses",
            dropped.linears,
            render::small(dropped.largest),
            render::small(dropped.loss.nmse())
        )
    }

    /// Why linears became a larger type than the smallest, and what would make them smaller; empty where none did.
    fn larger(&self) -> String {
        let Some((linears, why)) = self.packed.summary.larger else {
            return String::new();
        };
        let why = match why {
            Larger::Width { ty, columns } => {
                format!("{columns} columns are not a multiple of {ty}'s {}", ty.weights())
            }
            Larger::Loss { ty, nmse } => {
                let (nmse, max) = (render::small(nmse), render::small(self.args.limit()));
                format!("{ty} would lose {nmse}, --max-nmse is {max}")
            }
            Larger::LossAgain { ty, nmse } => {
                let nmse = render::small(nmse);
                format!("the input was packed with a loss, and {ty} would lose {nmse} more: --type asks for it")
            }
        };
        let other = match self.args.target {
            TargetArg::Any | TargetArg::Cpu => "; --for gpu and --for arm try Q2_0 first, 2.25 bits per weight",
            TargetArg::Gpu | TargetArg::Arm | TargetArg::Ollama => "",
        };
        let things = if linears == 1 { "linear" } else { "linears" };
        format!("{linears} {things}: {why}{other}")
    }

    fn tensors(&self) -> String {
        let rows = self.packed.items.iter().map(|item| {
            let nmse = item.loss.map(|loss| render::small(loss.nmse()));
            let shape: Vec<_> = item.info.shape.iter().rev().map(u64::to_string).collect();
            let bytes = item.info.bytes().map_or(String::new(), render::bytes);
            vec![
                item.info.name.clone(),
                item.info.ty.to_string(),
                shape.join(" x "),
                bytes,
                nmse.unwrap_or_default(),
            ]
        });
        let tensors = render::table(&["tensor", "type", ">rows x columns", ">size", ">NMSE"], rows.collect());
        tensors
            + &self
                .chosen
                .map_or(String::new(), |chosen| format!("\n{}", choose::table(chosen)))
    }

    /// The card beside the file.
    pub fn card(&self) -> card::New<'_> {
        let summary = &self.packed.summary;
        let (repository, origin) = match self.packed.origin {
            Origin::Checkpoint(checkpoint) => (checkpoint.source.repository(), checkpoint.scheme.training().text()),
            Origin::Gguf(_) => (None, format!("from {}", lossy(&self.args.input))),
        };
        card::New {
            keys: &self.packed.metadata,
            repository,
            origin,
            file: &self.paths[0],
            files: self.paths.len(),
            linears: render::counts(&summary.linears),
            bytes: summary.bytes,
            bits_per_weight: summary.bits_per_weight(),
            nmse: summary.loss.nmse(),
            ollama: self.packed.items.iter().all(|item| item.info.ty.ollama_reads()),
            verify: self.next.verify(),
        }
    }
}

/// Zeros that training chooses among equal weights as the machine happens to; empty where there are none.
fn ties(ties: u64) -> String {
    match ties {
        0 => String::new(),
        _ => format!(
            "{} zeros were chosen among equal weights: the last, as on CUDA",
            render::count(ties)
        ),
    }
}
