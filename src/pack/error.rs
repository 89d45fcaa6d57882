//! What can be wrong with a request to pack.

use std::path::{Path, PathBuf};

use formats::FormatError;
use formats::block::BlockType;

use super::biases::DroppedBiases;
use crate::blueprint::Part;
use crate::output::OutputError;

/// A checkpoint that cannot be packed as asked: nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The layout of the output.
    #[error("the output cannot be laid out: {0}")]
    Format(#[from] FormatError),
    /// The output cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The input cannot be read.
    #[error("{}: {source}; check that it can be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Linears whose rows fill no blocks of any allowed type.
    #[error(
        "{} of the linears cannot be stored{}: {}; give each a type that takes any width, for example \
         --tensor-type {}=f16",
        tensors.len(), tried(types), list_widths(tensors), last_part(&tensors[0].0)
    )]
    NoBlock {
        /// Their GGUF names and columns.
        tensors: Vec<(String, usize)>,
        /// The types tried.
        types: Vec<BlockType>,
    },
    /// Linears that no allowed type stores within the allowed error.
    #[error("{}", lossy(tensors, *overall, *max_nmse, types))]
    Lossy {
        /// Each linear that failed: its GGUF name, and the least error of the types tried.
        tensors: Vec<(String, f64)>,
        /// The error over all linears, had all been stored so.
        overall: f64,
        /// The allowed error.
        max_nmse: f64,
        /// The types tried.
        types: Vec<BlockType>,
    },
    /// A number that is NaN or infinite.
    #[error(
        "{}: tensor '{tensor}' is {value} at row {row}, column {column}; a model with such a weight computes nothing, \
         take an earlier checkpoint", path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// The number.
        value: f32,
    },
    /// Biases that the graph of llama.cpp has no place for.
    #[error(
        "llama.cpp's `{graph}` would lose the biases of {}, up to {:.1e} in the rows looked at (NMSE {:.1e} of the \
         outputs, where inputs have a mean square of 1); leave them out with --drop-biases, or train with a method that has none",
        parts(linears), biases.largest, biases.loss.nmse()
    )]
    LostBiases {
        /// The graph.
        graph: &'static str,
        /// The linears of a layer that lose them.
        linears: Vec<Part>,
        /// What is known of them.
        biases: DroppedBiases,
    },
    /// A GGUF file whose weights are of a rotated basis.
    #[error(
        "{}: '{name}' says that its weights are rotated: packed they would load and talk nonsense, since llama.cpp does \
         not rotate activations; take a file without rotation", path.display()
    )]
    Rotated {
        /// The file.
        path: PathBuf,
        /// The key or tensor that says so.
        name: String,
    },
    /// A GGUF file in which no matrix is ternary.
    #[error("{}: none of its {matrices} matrices is ternary or of four levels{problem}; {remedy}", path.display())]
    NoTernary {
        /// The file.
        path: PathBuf,
        /// How many matrices there are.
        matrices: usize,
        /// What some of them are instead, if that is known.
        problem: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A matrix of four levels, as a type that holds three.
    #[error(
        "{}: tensor '{tensor}' has four levels, -3u, -u, u and 3u, which {} does not hold; leave --type out, or give it one \
         that does: --tensor-type {tensor}=q2_k or q4_0", path.display(), names(types)
    )]
    FourLevel {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The types asked for.
        types: Vec<BlockType>,
    },
    /// A matrix that is ternary or of four levels in the rows that were looked at first, and is not at one place.
    #[error(
        "{}: tensor '{tensor}' is {what}, but not at row {row}, column {column}: it was changed after it was made so; \
         take the file before that change", path.display()
    )]
    NotTernary {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it is.
        what: &'static str,
        /// Row, from 0: experts count one below the other.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A tensor of a type that llama.cpp does not read, and that is to stay as it is.
    #[error(
        "{}: tensor '{tensor}' is {ty}, which llama.cpp does not read, and is not ternary; fetch a file of the model for \
         llama.cpp", path.display()
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: BlockType,
    },
    /// A code that ternary weights do not have.
    #[error(
        "{}: tensor '{tensor}' has code 3 at row {row}, column {column}, where BitNet has 0, 1 and 2: the file is damaged, \
         fetch it again", path.display()
    )]
    Code {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row of the matrix, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A scale that leaves the dtype that training computes in.
    #[error(
        "{}: tensor '{tensor}' has an infinite scale in row {row}: the sum of its weights leaves {dtype}, in training, too; \
         take a checkpoint that was trained in bfloat16", path.display()
    )]
    InfiniteScale {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Row, from 0.
        row: usize,
        /// The dtype.
        dtype: String,
    },
    /// A scale beyond the range of f16.
    #[error(
        "tensor '{tensor}' has a scale of {scale} in row {row}, f16 ends at 65504; store it with --tensor-type {tensor}=f32"
    )]
    ScaleRange {
        /// The GGUF name.
        tensor: String,
        /// Row of the checkpoint, from 0.
        row: usize,
        /// The scale.
        scale: f32,
    },
    /// A bias beyond the range of F32.
    #[error(
        "tensor '{tensor}' would be {bias:e} in row {row}, F32 ends at 3.4e38; is lambda ('eps' of config.json) right?"
    )]
    BiasRange {
        /// The GGUF name.
        tensor: String,
        /// Row of the checkpoint, from 0.
        row: usize,
        /// The bias.
        bias: f64,
    },
    /// An embedding that its type cannot hold.
    #[error("tensor '{tensor}' cannot be stored as {ty}: {problem}; use --embedding keep or f16")]
    Embedding {
        /// The GGUF name.
        tensor: String,
        /// The type asked for.
        ty: BlockType,
        /// Why not.
        problem: String,
    },
    /// A type that Ollama refuses.
    #[error("tensor '{tensor}' would be {ty}, which Ollama does not read; leave --type out, or give up --for ollama")]
    Ollama {
        /// The GGUF name.
        tensor: String,
        /// Its type.
        ty: BlockType,
    },
    /// A key that cannot be set so.
    #[error("--metadata {key}={text}: expected {expected}; set it so, or leave it out")]
    Metadata {
        /// The key.
        key: String,
        /// The value given.
        text: String,
        /// What would do.
        expected: String,
    },
    /// A part of a name that no linear has.
    #[error("--tensor-type {text}=...: no linear has that in its name; use a part of a name such as {example}")]
    NoTensor {
        /// The part of a name.
        text: String,
        /// The name of a linear.
        example: String,
    },
    /// The input changed while it was read.
    #[error("{}: changed while it was being packed; pack again when nothing writes it", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// More files than a split can count.
    #[error(
        "--split-max-size {max} would make {files} files, at most 65535 are allowed; allow larger ones with --split-max-size"
    )]
    Split {
        /// The most bytes of a file.
        max: u64,
        /// How many files that makes.
        files: usize,
    },
    /// The caller wanted no more.
    #[error("interrupted; nothing was written, pack again")]
    Interrupted,
}

impl PackError {
    /// The input cannot be read; that it ends early means that it is not what was opened.
    pub(super) fn read(path: &Path, source: std::io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            std::io::ErrorKind::UnexpectedEof => Self::Changed { path },
            _ => Self::Read { path, source },
        }
    }
}

/// `o_proj, gate_proj and up_proj`
fn parts(linears: &[Part]) -> String {
    let names: Vec<_> = linears.iter().map(|part| part.short_name()).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}", others.join(", ")),
        _ => names.concat(),
    }
}

fn names(types: &[BlockType]) -> String {
    types.iter().map(|ty| ty.name()).collect::<Vec<_>>().join(", ")
}

fn tried(types: &[BlockType]) -> String {
    match types {
        [ty] => format!(" as {ty} (a row must be a multiple of {})", ty.weights()),
        types => format!(" in any of {} (a row must be a multiple of 256 or 32)", names(types)),
    }
}

fn list_widths(tensors: &[(String, usize)]) -> String {
    let mut parts: Vec<String> = vec![];
    for (name, columns) in tensors {
        let part = format!("{} ({columns} columns)", last_part(name));
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", ")
}

/// `ffn_down` of `blk.3.ffn_down.weight`.
fn last_part(name: &str) -> &str {
    name.trim_end_matches(".weight").rsplit('.').next().unwrap_or(name)
}

fn lossy(tensors: &[(String, f64)], overall: f64, max_nmse: f64, types: &[BlockType]) -> String {
    let (worst, needed) = tensors
        .iter()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .expect("a tensor failed");
    format!(
        "storing as {} loses too much: NMSE {:.1e} over all linears, {needed:.1e} in the worst ('{worst}'); \
         every linear must be within --max-nmse, which is {max_nmse:.1e}: allow it with --max-nmse {}, or leave --type out",
        names(types),
        overall,
        round_up(*needed)
    )
}

/// `value` rounded up to two digits, as one would type it.
fn round_up(value: f64) -> String {
    let unit = 10f64.powi(value.log10().floor() as i32 - 1);
    format!("{:.1e}", (value / unit).ceil() * unit)
}
