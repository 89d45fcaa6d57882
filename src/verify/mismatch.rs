//! Whether a file can be of what it is compared with at all: where the shapes of the models differ, every number does.

use std::fmt;

use formats::gguf::{File, Value};
use schemars::JsonSchema;
use serde::Serialize;

use super::Reference;

/// What another model has in the place of the file's.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Mismatch {
    /// `layers`, for example.
    pub what: &'static str,
    /// What the file has.
    pub found: String,
    /// What the model that it is compared with has.
    pub expected: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} {}, expected {}", self.what, self.found, self.expected)
    }
}

/// How the shape of the model in `file` differs from that of its reference. What the file does not say is no difference.
pub(super) fn of(file: &File, reference: Reference) -> Vec<Mismatch> {
    let expected = match reference {
        Reference::Gguf { file, .. } => shape(file),
        Reference::Checkpoint { checkpoint, .. } => {
            let (config, dims) = (&checkpoint.config, &checkpoint.config.dims);
            let count = |n: usize| Some(n.to_string());
            [
                Some(config.architecture.graph.name.into()),
                count(dims.layers),
                count(dims.hidden),
                count(dims.intermediate),
                count(dims.vocab),
            ]
        }
    };
    let pairs = WHAT.into_iter().zip(shape(file)).zip(expected);
    let different = pairs.filter_map(|((what, found), expected)| {
        let (found, expected) = found.zip(expected)?;
        (found != expected).then_some(Mismatch { what, found, expected })
    });
    different.collect()
}

const WHAT: [&str; 5] = [
    "architecture",
    "layers",
    "hidden size",
    "feed-forward size",
    "vocabulary",
];

/// Each of [`WHAT`], where the file has it.
fn shape(file: &File) -> [Option<String>; 5] {
    let architecture = file.get("general.architecture").and_then(Value::as_str);
    let number = |name: &str| {
        let key = format!("{}.{name}", architecture?);
        Some(file.get(&key)?.as_u32()?.to_string())
    };
    [
        architecture.map(String::from),
        number("block_count"),
        number("embedding_length"),
        number("feed_forward_length"),
        file.tensor("token_embd.weight")
            .map(|(info, _)| info.rows().to_string()),
    ]
}
