//! What can be wrong with a checkpoint.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use formats::FormatError;

use super::json::WrongKey;

/// A checkpoint that cannot be used: which file, what was found, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that cannot be opened or read.
    #[error("{}: {source}; {}", path.display(), io_remedy(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that breaks its format's rules.
    #[error("{}: {source}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// How.
        source: FormatError,
    },
    /// A file that is needed and not there.
    #[error("{}: no {missing} there; {remedy}", path.display())]
    MissingFile {
        /// Where it was looked for.
        path: PathBuf,
        /// What was looked for.
        missing: String,
        /// What to do.
        remedy: Cow<'static, str>,
    },
    /// A file larger than its kind can be.
    #[error("{}: has more than {limit} bytes, which no {kind} has; is this the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What it should be.
        kind: &'static str,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// A file of JSON that is not JSON.
    #[error("{}: invalid JSON: {problem}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// A key of config.json that is missing or does not hold what it must.
    #[error("{}: key '{key}' is {found}, expected {expected}; fix the key, or copy the file again", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, or "missing".
        found: String,
        /// What it should be, and what to do where it cannot be mended there.
        expected: String,
    },
    /// A setting that the user gave; it overrides config.json.
    #[error("{flag} {found}: expected {expected}; give another value, or leave it out")]
    Argument {
        /// The option.
        flag: &'static str,
        /// What it says.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// An architecture that no GGUF architecture with all seven biases can express.
    #[error("{}: architecture {found} is not supported: {why}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What config.json names.
        found: String,
        /// What would be lost, and what is supported.
        why: String,
    },
    /// Nothing says how the weights become ternary.
    #[error(
        "{}: nothing says that it was trained to be ternary: looked for 'quant_method', 'w_bits', 'quantization_config' of \
         BitNet and 'weight_bits' in config.json; where you know how it was trained, say so with --trained-as NAME: {methods}",
        path.display()
    )]
    NotTrained {
        /// config.json.
        path: PathBuf,
        /// The methods that can be packed.
        methods: String,
    },
    /// Settings that a training method needs.
    #[error(
        "{}: '{method}' needs settings that are missing: {}; set them in config.json, or give --granularity, --group-size \
         and, for eps, --lambda", path.display(), missing.join(", ")
    )]
    MissingSettings {
        /// config.json.
        path: PathBuf,
        /// The method.
        method: String,
        /// Their keys.
        missing: Vec<&'static str>,
    },
    /// A training method whose forward pass is no ternary matrix and a constant, or that is unknown.
    #[error("{}: method '{found}' cannot be packed: {why}", path.display())]
    Method {
        /// config.json.
        path: PathBuf,
        /// Its name.
        found: String,
        /// Why not, and what to do.
        why: String,
    },
    /// Weights that are rounded already, or those of another family of models.
    #[error("{}: {found}; {why}; {remedy}", path.display())]
    NotLatent {
        /// The checkpoint.
        path: PathBuf,
        /// What they are, and by what they were recognised.
        found: String,
        /// Why they cannot be read as latent weights.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A tensor that the model needs and the checkpoint lacks.
    #[error("{}: tensor '{tensor}' is missing; {hint}", path.display())]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What its absence can mean.
        hint: Cow<'static, str>,
    },
    /// Tensors that the model has no place for.
    #[error("{}: {} that the model has no place for: {}; {hint}", path.display(), count(tensors), list(tensors))]
    SurplusTensors {
        /// The checkpoint.
        path: PathBuf,
        /// Their names.
        tensors: Vec<String>,
        /// What they can mean.
        hint: &'static str,
    },
    /// A tensor whose shape contradicts config.json.
    #[error(
        "{}: tensor '{tensor}' has shape {found:?}, config.json makes it {expected:?}; \
         name the config.json of this checkpoint with --config", path.display()
    )]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape that follows from config.json.
        expected: Vec<usize>,
    },
    /// A dtype that holds no weights one can train.
    #[error("{}: tensor '{tensor}' is {found}, expected {expected}", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The dtype in the file.
        found: String,
        /// Which would do.
        expected: &'static str,
    },
    /// A scale that no weights can have.
    #[error("{}: tensor '{tensor}' is {found}, expected a positive number; fetch the checkpoint again", path.display())]
    Scale {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What it holds.
        found: f32,
    },
    /// A tensor that stands in two files.
    #[error(
        "{} and {}: tensor '{tensor}' is in both, expected in one; take all shards from one download",
        first.display(), second.display()
    )]
    TwoFiles {
        /// The first file.
        first: PathBuf,
        /// The second one.
        second: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// An index that does not agree with the shards.
    #[error("{}: {problem}; take index and shards from one download", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What does not agree.
        problem: String,
    },
}

impl From<WrongKey> for ModelError {
    fn from(wrong: WrongKey) -> Self {
        let WrongKey {
            path,
            key,
            found,
            expected,
        } = wrong;
        Self::Key {
            path,
            key,
            found,
            expected,
        }
    }
}

impl ModelError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }

    pub(super) fn format(path: &Path, source: FormatError) -> Self {
        Self::Format {
            path: path.into(),
            source,
        }
    }
}

fn io_remedy(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::QuotaExceeded => "allow more with `ulimit -n`",
        _ => "check the name, and that you may read it",
    }
}

fn count(names: &[String]) -> String {
    match names.len() {
        1 => "a tensor".into(),
        n => format!("{n} tensors"),
    }
}

/// The first few names, and how many more there are.
pub(super) fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("'{name}'"))
        .collect::<Vec<_>>()
        .join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
