//! `pack --manifest`: what was packed into what, with the digest of every file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum as _;
use schemars::JsonSchema;
use serde::Serialize;

use super::PackArgs;
use crate::cli::evidence::{FileDigest, files_of_checkpoint, files_of_gguf};
use crate::cli::json::Document;
use crate::model::TrainingFacts;
use crate::pack::{Embedding, Origin, PackError, Packed};

/// The manifest of a pack.
#[derive(Serialize, JsonSchema)]
pub(in crate::cli) struct Manifest {
    /// The files that were written.
    outputs: Vec<FileDigest>,
    /// The files that were read, the tokenizer's among them, and those that belong to them.
    inputs: Vec<InputDigest>,
    request: Request,
    /// How a checkpoint was trained.
    training: Option<TrainingFacts>,
    losses: Losses,
}

/// A file that was read.
#[derive(Serialize, JsonSchema)]
struct InputDigest {
    #[serde(flatten)]
    file: FileDigest,
    /// `weights`, `config`, `tokenizer` or `other`.
    role: &'static str,
}

/// What was asked for.
#[derive(Serialize, JsonSchema)]
struct Request {
    /// Where the file is to run, as `--for` names it.
    target: String,
    /// The NMSE that storing a matrix was allowed to add.
    max_nmse: f64,
    /// The type of all linears, where it was given.
    #[serde(rename = "type")]
    ty: Option<&'static str>,
    /// The type of linears whose names have a part, by that part.
    tensor_types: BTreeMap<String, &'static str>,
    /// The type of embedding and head; null for the input's own.
    embedding: Option<&'static str>,
    drop_biases: bool,
    split_max_size_bytes: Option<u64>,
    /// Keys that were set by hand.
    metadata: BTreeMap<String, String>,
    /// What was said of the checkpoint, as words of a command.
    checkpoint_options: Vec<String>,
}

impl Request {
    fn new(args: &PackArgs) -> Self {
        let types = args.tensor_type.iter().map(|(part, ty)| (part.clone(), ty.name()));
        let words = args.checkpoint.words();
        Self {
            target: args
                .target
                .to_possible_value()
                .map_or(String::new(), |value| value.get_name().into()),
            max_nmse: args.limit(),
            ty: args.ty.map(|ty| ty.name()),
            tensor_types: types.collect(),
            embedding: match args.embedding {
                Embedding::Keep => None,
                Embedding::As(ty) => Some(ty.name()),
            },
            drop_biases: args.drop_biases,
            split_max_size_bytes: args.split_max_size,
            metadata: args.metadata.iter().cloned().collect(),
            checkpoint_options: words.iter().map(|word| word.to_string_lossy().into()).collect(),
        }
    }
}

/// What storing lost, as NMSE.
#[derive(Serialize, JsonSchema)]
struct Losses {
    /// Over all linears.
    nmse: f64,
    /// Of each tensor that is ternary, by its name.
    tensors: BTreeMap<String, f64>,
}

impl Document for Manifest {
    const SCHEMA: &'static str = "tqconv.manifest/1";
}

impl Manifest {
    /// Of what was packed into `outputs`: reads all of it once more.
    ///
    /// # Errors
    /// A file that cannot be read, or that has changed since it was packed.
    pub(super) fn new(args: &PackArgs, packed: &Packed, outputs: &[PathBuf]) -> anyhow::Result<Self> {
        let inputs = match packed.origin {
            Origin::Checkpoint(checkpoint) => files_of_checkpoint(checkpoint),
            Origin::Gguf(gguf) => files_of_gguf(gguf),
        };
        let digests = FileDigest::of_all(&inputs)?;
        if let Some(path) = packed.origin.changed() {
            return Err(PackError::Changed { path: path.into() }.into());
        }
        let weights: Vec<_> = packed.origin.files().into_iter().map(|(path, _)| path).collect();
        let input = |(path, file): (&PathBuf, FileDigest)| InputDigest {
            role: if weights.contains(&path.as_path()) {
                "weights"
            } else {
                role(&file.name)
            },
            file,
        };
        let losses = packed.items.iter();
        let losses = losses.filter_map(|item| Some((item.info.name.clone(), item.loss?.nmse())));
        Ok(Self {
            outputs: FileDigest::of_all(outputs)?,
            inputs: inputs.iter().zip(digests).map(input).collect(),
            request: Request::new(args),
            training: match packed.origin {
                Origin::Checkpoint(checkpoint) => Some(checkpoint.scheme.training().facts()),
                Origin::Gguf(_) => None,
            },
            losses: Losses {
                nmse: packed.summary.loss.nmse(),
                tensors: losses.collect(),
            },
        })
    }
}

/// What a file of a checkpoint that holds no weights is there for.
fn role(name: &str) -> &'static str {
    const TOKENIZER: [&str; 5] = [
        "tokenizer",
        "special_tokens_map",
        "added_tokens",
        "chat_template",
        "vocab",
    ];
    match name {
        "config.json" => "config",
        name if TOKENIZER.iter().any(|start| name.starts_with(start)) => "tokenizer",
        _ => "other",
    }
}
