//! How the weights of a checkpoint were trained to be ternary, as config.json and the command line say it: one file for
//! each scheme, with its names, its keys, its tensors and what it refuses. [`METHODS`] is the table of them,
//! [`REFUSED`] that of those which are known and not packed.
//!
//! What a scheme computes is in `pack::schemes`, and once more, plainly, in `verify::schemes`.

mod bitnet;
mod clipped;
mod floats;
#[cfg(test)]
mod made_up;
mod packed;
mod sherry;
mod tequila;
mod twn;

use formats::gguf::Value;
use formats::safetensors::Dtype;
use schemars::JsonSchema;
use serde::Serialize;

pub use bitnet::BitNet;
pub use clipped::{CLIP, Clipped};
pub use floats::Floats;
#[cfg(test)]
pub use made_up::MadeUp;
pub use packed::{Direction, Packed, WEIGHT_SCALE};
pub use sherry::{QUAD, Sherry};
pub use tequila::{LAMBADA, Lambda, Tequila};
pub use twn::Twn;

use super::ModelError;
use super::config::ConfigFile;

/// How the weights of a checkpoint become ternary.
#[derive(Clone, Debug, PartialEq)]
pub enum Scheme {
    Tequila(Tequila),
    Floats(Floats),
    Packed(Packed),
    Sherry(Sherry),
    Twn(Twn),
    Clipped(Clipped),
    BitNet(BitNet),
    #[cfg(test)]
    MadeUp(MadeUp),
}

/// A scheme, and what says that a checkpoint was trained so.
#[derive(Clone, Debug, PartialEq)]
pub struct Trained {
    pub scheme: Scheme,
    /// For example `'quant_method' of config.json`.
    pub evidence: &'static str,
}

type Read = fn(&Settings) -> Result<Scheme, ModelError>;

/// Each method that can be packed, as `quant_method` of config.json and `--trained-as` name it, and what reads its
/// settings.
const METHODS: &[(&str, Read)] = &[
    (tequila::FIXED, tequila::read),
    (tequila::LEARNED, tequila::read),
    (tequila::ABSMEAN, tequila::read),
    (sherry::METHOD, sherry::read),
    (twn::METHOD, twn::read),
    (clipped::LSQ, clipped::read),
    (clipped::SEQ, clipped::read),
    (bitnet::METHOD, bitnet::read),
    #[cfg(test)]
    (made_up::METHOD, made_up::read),
];

/// Each method that is known and cannot be packed, and why.
const REFUSED: &[(&str, &str)] = &[
    (
        "ultraquant",
        "it multiplies the dead zone by the sign of each activation, which no constant bias can stand for; train with \
         ultraquantv2 or ultraquantv3",
    ),
    ("ultraquantv4", "its forward pass is not a matrix and a constant"),
    (
        "dlt",
        "its weights are code times scale plus gamma, which is no ternary matrix",
    ),
];

/// The methods that can be packed.
fn methods() -> String {
    let names: Vec<_> = METHODS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

/// A scheme and its settings, for programs.
#[derive(Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct TrainingFacts {
    /// As config.json calls the method, or `ternary floats` for weights that are ternary in their file.
    pub quant_method: &'static str,
    /// What shares a scale: `per_group`, `per_channel` or `per_tensor`.
    pub granularity: Option<&'static str>,
    /// Weights that share a scale, for `per_group`.
    pub group_size: Option<usize>,
    /// The factor of the dead zone, where it is one number.
    pub lambda: Option<f64>,
    /// How packed codes meet their scale, as config.json names it.
    pub linear_class: Option<&'static str>,
    /// Linears that are ternary in their file.
    pub ternary_linears: Option<usize>,
    /// Weights that share a scale at least, for those.
    pub weights_a_scale: Option<usize>,
}

/// What any part of the program asks of a scheme, besides what it computes.
pub trait Training {
    /// In a few words, for people: the method and its settings.
    fn text(&self) -> String;

    /// The same for programs, by the names of config.json.
    fn facts(&self) -> TrainingFacts;

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
    /// What it says of itself.
    pub fn training(&self) -> &dyn Training {
        match self {
            Scheme::Tequila(scheme) => scheme,
            Scheme::Floats(scheme) => scheme,
            Scheme::Packed(scheme) => scheme,
            Scheme::Sherry(scheme) => scheme,
            Scheme::Twn(scheme) => scheme,
            Scheme::Clipped(scheme) => scheme,
            Scheme::BitNet(scheme) => scheme,
            #[cfg(test)]
            Scheme::MadeUp(scheme) => scheme,
        }
    }
}

/// Tensors that belong to a scheme: what their names hold, what their absence can mean, and what their presence where
/// the scheme of the checkpoint has no place for them.
const HINTS: [(&str, &str, &str); 2] = [
    (LAMBADA, tequila::MISSING_LAMBADA, tequila::SURPLUS_LAMBADA),
    (CLIP, clipped::MISSING_CLIP, clipped::SURPLUS_CLIP),
];

/// What the absence of the tensor `name` can mean, where it belongs to a scheme.
pub(super) fn missing_hint(name: &str) -> Option<&'static str> {
    let mut hints = HINTS.iter();
    let found = hints.find(|(part, ..)| name.ends_with(&format!(".{part}")));
    found.map(|(_, missing, _)| *missing)
}

/// What a tensor means that the scheme of the checkpoint has no place for, where it belongs to another.
pub(super) fn surplus_hint(name: &str) -> Option<&'static str> {
    let found = HINTS.iter().find(|(part, ..)| name.contains(&format!(".{part}")));
    found.map(|(.., surplus)| *surplus)
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
    /// The name of a method that can be packed.
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
    method: String,
}

impl Settings<'_> {
    /// Over how many weights a scale is taken; of the keys that say so, those that are lacking go into `missing`.
    fn granularity(&self, missing: &mut Vec<&'static str>) -> Result<Option<Granularity>, ModelError> {
        let size = self.group_size()?;
        let name = match &self.given.granularity {
            Some(name) => Some(name.as_str()),
            None => self.file.text("granularity")?,
        };
        match (name, size) {
            (Some("per_channel"), _) => Ok(Some(Granularity::Channel)),
            (Some("per_tensor"), _) => Ok(Some(Granularity::Tensor)),
            (Some("per_group"), Some(size)) if size > 0 => Ok(Some(Granularity::Group(size))),
            (Some("per_group"), Some(_)) => Err(self.wrong("group_size", "0".into(), "a positive number of weights")),
            (Some("per_group"), None) => {
                missing.push("group_size");
                Ok(None)
            }
            (Some(found), _) => {
                let found = format!("{found:?}");
                Err(self.wrong("granularity", found, "per_group, per_channel or per_tensor"))
            }
            (None, size) => {
                missing.push("granularity");
                missing.extend(size.is_none().then_some("group_size"));
                Ok(None)
            }
        }
    }

    /// The granularity of a method of AngelSlim that has no other settings.
    fn required_granularity(&self, method: &str) -> Result<Granularity, ModelError> {
        let mut missing = vec![];
        let granularity = self.granularity(&mut missing)?;
        let granularity = granularity.ok_or_else(|| self.missing(missing))?;
        self.check_bits(method)?;
        Ok(granularity)
    }

    /// `w_bits`, where it is there, is that of ternary training: another one makes another method of the same name.
    fn check_bits(&self, method: &str) -> Result<(), ModelError> {
        let Some(bits) = self.file.value("w_bits") else {
            return Ok(());
        };
        let why = match bits.as_f64() {
            Some(0.0) => return Ok(()),
            Some(1.0) => "its weights are binary, -s and +s",
            Some(2.0) if method == clipped::SEQ => "its weights have four levels, -3u, -u, u and 3u",
            _ => "its weights are not ternary",
        };
        Err(ModelError::Method {
            path: self.file.path.clone(),
            found: method.into(),
            why: format!(
                "with 'w_bits' {bits} {why}; take the checkpoint that was trained with 0, which stands for 1.58 bits"
            ),
        })
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

    /// The error of settings that the method needs.
    fn missing(&self, missing: Vec<&'static str>) -> ModelError {
        ModelError::MissingSettings {
            path: self.file.path.clone(),
            method: self.method.clone(),
            missing,
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
    /// Nothing says how, a method that cannot be packed, a value that cannot be.
    pub fn training(&self, overrides: &TrainingOverrides) -> Result<Trained, ModelError> {
        let (method, evidence) = self.method(overrides)?;
        let settings = Settings {
            file: self,
            given: overrides,
            method,
        };
        let method = settings.method.as_str();
        if let Some((_, read)) = METHODS.iter().find(|(name, _)| *name == method) {
            let scheme = read(&settings)?;
            return Ok(Trained { scheme, evidence });
        }
        let refused = REFUSED.iter().find(|(name, _)| *name == method);
        let why = refused.map_or("unknown", |(_, why)| why);
        if overrides.method.is_some() {
            let expected = format!("one of {} ({method}: {why})", methods());
            return Err(settings.wrong("quant_method", format!("{method:?}"), &expected));
        }
        Err(ModelError::Method {
            path: self.path.clone(),
            found: method.into(),
            why: format!("{why}; supported: {}", methods()),
        })
    }

    /// The name of the method, and what says so.
    fn method(&self, given: &TrainingOverrides) -> Result<(String, &'static str), ModelError> {
        if let Some(method) = &given.method {
            return Ok((method.clone(), "--trained-as"));
        }
        match (self.text("quant_method")?, bitnet::evidence(self)) {
            (Some(method), None) => return Ok((method.into(), "'quant_method' of config.json")),
            (None, Some(evidence)) => return Ok((bitnet::METHOD.into(), evidence)),
            (Some(_), Some(evidence)) => {
                let expected =
                    format!("none beside {evidence}, which says BitNet: say which is right with --trained-as");
                return Err(self.key_error("quant_method", self.value("quant_method"), expected));
            }
            (None, None) => {}
        }
        if self.value("w_bits").is_some() {
            return Ok((
                clipped::SEQ.into(),
                "'w_bits' and no 'quant_method' in config.json, as ParetoQ writes it",
            ));
        }
        Err(ModelError::NotTrained {
            path: self.path.clone(),
            methods: methods(),
        })
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

    /// # Errors
    /// Groups that leave a remainder of the matrix `name`, which training could not reshape. `shape`: (rows, columns).
    fn check(self, name: &str, (rows, columns): (usize, usize)) -> Result<(), Contradiction> {
        match self {
            Granularity::Group(size) if !(rows * columns).is_multiple_of(size) => Err(Contradiction {
                key: "group_size",
                found: size.to_string(),
                expected: format!("a divisor of the {rows} x {columns} weights of {name}"),
            }),
            _ => Ok(()),
        }
    }

    /// What a packed file notes of `method`.
    fn keys(self, method: &str) -> Vec<(&'static str, Value)> {
        let mut keys = vec![
            ("quant_method", Value::String(method.into())),
            ("granularity", Value::String(self.name().into())),
        ];
        if let Granularity::Group(size) = self {
            keys.push(("group_size", Value::U64(size as u64)));
        }
        keys
    }

    /// The scheme `method` of this granularity.
    fn facts(self, method: &'static str) -> TrainingFacts {
        let group_size = match self {
            Granularity::Group(size) => Some(size),
            Granularity::Channel | Granularity::Tensor => None,
        };
        TrainingFacts {
            quant_method: method,
            granularity: Some(self.name()),
            group_size,
            ..TrainingFacts::default()
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
