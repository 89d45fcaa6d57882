//! How the weights of a checkpoint were trained to be ternary, as config.json and the command line say it: one file for
//! each scheme, with its names, its keys, its tensors and what it refuses. [`METHODS`] is the table of them,
//! [`REFUSED`] that of those which are known and not packed.
//!
//! What a scheme computes is in `pack::schemes`, and once more, plainly, in `verify::schemes`.

mod floats;
#[cfg(test)]
mod made_up;
mod packed;
mod tequila;

use formats::gguf::Value;
use formats::safetensors::Dtype;

pub use floats::Floats;
#[cfg(test)]
pub use made_up::MadeUp;
pub use packed::{Direction, Packed, WEIGHT_SCALE};
pub use tequila::{LAMBADA, Lambda, Tequila};

use super::ModelError;
use super::config::ConfigFile;

/// How the weights of a checkpoint become ternary.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheme {
    Tequila(Tequila),
    Floats(Floats),
    Packed(Packed),
    #[cfg(test)]
    MadeUp(MadeUp),
}

type Read = fn(&Settings) -> Result<Scheme, ModelError>;

/// Each `quant_method` of config.json that can be packed, and what reads its settings.
const METHODS: &[(&str, Read)] = &[
    (tequila::FIXED, tequila::read),
    (tequila::LEARNED, tequila::read),
    #[cfg(test)]
    (made_up::METHOD, made_up::read),
];

/// Each `quant_method` that is known and cannot be packed, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "ultraquant",
        "it multiplies the dead zone by the sign of each activation, which no constant bias can stand for; train with \
         ultraquantv2 or ultraquantv3",
    ),
    (
        "ultraquantv4",
        "its forward pass is not a matrix and a constant; supported: ultraquantv2, ultraquantv3",
    ),
    (
        "sherry",
        "Sherry keeps the three largest of every four weights and has no biases, which is another formula; supported: \
         ultraquantv2, ultraquantv3",
    ),
    (
        "absmean",
        "it is ultraquantv2 without biases; set that with --quant-method ultraquantv2 --lambda 0",
    ),
    (
        "twn",
        "its threshold and scale are another formula; supported: ultraquantv2, ultraquantv3",
    ),
    ("lsq", LEARNED_SCALES),
    ("seq", LEARNED_SCALES),
    ("dlt", LEARNED_SCALES),
];

const LEARNED_SCALES: &str = "its scales are learned, which is another formula; supported: ultraquantv2, ultraquantv3";

/// What any part of the program asks of a scheme, besides what it computes.
pub trait Training {
    /// In a few words, for people: the method and its settings.
    fn text(&self) -> String;

    /// The same for programs, by the names of config.json.
    fn json(&self) -> serde_json::Value;

    /// The keys that a packed file notes it by; `tqconv.` comes before them. `dtype`: that of the weights.
    fn keys(&self, dtype: Dtype) -> Vec<(&'static str, Value)>;

    /// The tensors that a linear of `rows` x `columns` has beside `.weight` and `.bias`: their last names, and the
    /// shapes that each may have.
    fn tensors(&self, _rows: usize, _columns: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
        vec![]
    }

    /// Whether zeros go on working as a bias: then every linear has one, whether its layer has one of its own or not.
    fn has_biases(&self) -> bool {
        false
    }

    /// What else must hold for a linear called `name` in the checkpoint. `shape`: (rows, columns).
    ///
    /// # Errors
    /// The key of config.json that contradicts it.
    fn check(&self, _name: &str, _shape: (usize, usize), _dtype: Dtype) -> Result<(), Contradiction> {
        Ok(())
    }

    /// Whether the linear whose weights the file calls `name` becomes ternary; else it is stored as it is.
    fn is_ternary(&self, _name: &str, _dtype: Dtype) -> bool {
        true
    }

    /// Whether codes and scales are in the checkpoint: the dtype rounds none of them, and beside weights that were baked
    /// may be the biases of their dead zone, which config.json does not promise.
    fn is_stored(&self) -> bool {
        false
    }

    /// The shape of the weights of a linear of `rows` x `columns` in the checkpoint.
    fn weight_shape(&self, rows: usize, columns: usize, _dtype: Dtype) -> Vec<usize> {
        vec![rows, columns]
    }

    /// Whether a tensor that the model has no place for is left out.
    fn leaves_out(&self, _name: &str) -> bool {
        false
    }

    /// What is odd about the settings, for people to read.
    fn notes(&self) -> Vec<String> {
        vec![]
    }
}

impl Scheme {
    /// What its zeros are called.
    pub fn zeros(&self) -> &'static str {
        match self.training().has_biases() {
            true => "dead zone",
            false => "zeros",
        }
    }

    /// What it says of itself.
    pub fn training(&self) -> &dyn Training {
        match self {
            Scheme::Tequila(scheme) => scheme,
            Scheme::Floats(scheme) => scheme,
            Scheme::Packed(scheme) => scheme,
            #[cfg(test)]
            Scheme::MadeUp(scheme) => scheme,
        }
    }
}

/// What the absence of the tensor `name` can mean, where it belongs to a scheme.
pub(super) fn missing_hint(name: &str) -> Option<&'static str> {
    let belongs = name.ends_with(&format!(".{LAMBADA}"));
    belongs.then_some(tequila::MISSING_LAMBADA)
}

/// What a tensor means that the scheme of the checkpoint has no place for, where it belongs to another.
pub(super) fn surplus_hint(name: &str) -> Option<&'static str> {
    let belongs = name.contains(&format!(".{LAMBADA}"));
    belongs.then_some(tequila::SURPLUS_LAMBADA)
}

/// A key of config.json that cannot be as it is.
pub struct Contradiction {
    pub key: &'static str,
    pub found: String,
    pub expected: String,
}

/// What the command line says of the training; it goes before what config.json says.
#[derive(Clone, Debug, Default)]
pub struct TrainingOverrides {
    /// `quant_method`
    pub method: Option<String>,
    /// `granularity`
    pub granularity: Option<String>,
    /// `group_size`
    pub group_size: Option<usize>,
    /// `eps`
    pub lambda: Option<f64>,
}

/// config.json, and what the command line says in its place.
pub(super) struct Settings<'a> {
    file: &'a ConfigFile,
    given: &'a TrainingOverrides,
}

impl Settings<'_> {
    fn method(&self) -> Result<Option<String>, ModelError> {
        self.text("quant_method", self.given.method.as_ref())
    }

    fn granularity(&self) -> Result<Option<String>, ModelError> {
        self.text("granularity", self.given.granularity.as_ref())
    }

    fn group_size(&self) -> Result<Option<usize>, ModelError> {
        match self.given.group_size {
            Some(size) => Ok(Some(size)),
            None => Ok(self.file.count("group_size")?),
        }
    }

    fn lambda(&self) -> Result<Option<f64>, ModelError> {
        match self.given.lambda {
            Some(lambda) => Ok(Some(lambda)),
            None => Ok(self.file.number("eps")?),
        }
    }

    fn text(&self, key: &str, given: Option<&String>) -> Result<Option<String>, ModelError> {
        match given {
            Some(text) => Ok(Some(text.clone())),
            None => Ok(self.file.text(key)?.map(String::from)),
        }
    }

    fn wrong(&self, key: &'static str, found: String, expected: &str) -> ModelError {
        let expected = expected.into();
        Contradiction { key, found, expected }.in_file(&self.file.path)
    }
}

impl Contradiction {
    pub(super) fn in_file(self, path: &std::path::Path) -> ModelError {
        ModelError::Key {
            path: path.into(),
            key: self.key.into(),
            found: self.found,
            expected: self.expected,
        }
    }
}

impl ConfigFile {
    /// How the weights become ternary: config.json, with what the command line says over it.
    ///
    /// # Errors
    /// No sign of Tequila, a method that cannot be packed, a value that cannot be.
    pub fn training(&self, overrides: &TrainingOverrides) -> Result<Scheme, ModelError> {
        let settings = Settings {
            file: self,
            given: overrides,
        };
        // Where nothing says how, Tequila's reader says what it looked for.
        let method = settings.method()?.unwrap_or(tequila::FIXED.into());
        let known = METHODS.iter().find(|(name, _)| *name == method);
        let Some((_, read)) = known else {
            let refused = REFUSED.iter().find(|(name, _)| *name == method);
            return Err(ModelError::Method {
                path: self.path.clone(),
                found: method,
                why: refused.map_or("unknown; supported: ultraquantv2, ultraquantv3", |(_, why)| why),
            });
        };
        read(&settings)
    }
}

/// Over how many weights a scale is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Granularity {
    /// Runs of this many weights of the flattened matrix.
    Group(usize),
    /// One scale a row.
    Channel,
    /// One scale a matrix.
    Tensor,
}

impl Granularity {
    /// Weights a scale in a matrix of `rows` x `columns`.
    pub fn group_size(self, rows: usize, columns: usize) -> usize {
        match self {
            Granularity::Group(size) => size,
            Granularity::Channel => columns,
            Granularity::Tensor => rows * columns,
        }
    }

    /// As config.json calls it.
    fn name(self) -> &'static str {
        match self {
            Granularity::Group(_) => "per_group",
            Granularity::Channel => "per_channel",
            Granularity::Tensor => "per_tensor",
        }
    }
}

/// The name in config.json, and the number of weights where it says one.
impl std::fmt::Display for Granularity {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Granularity::Group(size) => write!(f, "{} {size}", self.name()),
            Granularity::Channel | Granularity::Tensor => f.write_str(self.name()),
        }
    }
}
