//! What the weights of a checkpoint are: recognised from names, from keys of config.json, and from the numbers
//! themselves, before anything is made of them. The numbers decide before config.json does.

use std::collections::BTreeMap;

use formats::safetensors::Dtype;
use rayon::prelude::*;

use super::ModelError;
use super::config::ConfigFile;
use super::error::list;
use super::schemes::{Floats, Scheme, Trained, TrainingOverrides};
use super::tensors::Tensors;
use super::weights::{Weights, look};

/// Why the weights cannot be read as latent ones.
struct Refusal {
    found: String,
    why: String,
    remedy: &'static str,
}

const LATENT_ONLY: &str = "take the latent checkpoint that they were made from";

/// How the linears become ternary: as they are, where the tensors say so, else as config.json and `overrides` say.
///
/// # Errors
/// Those of [`recognise`] and [`ConfigFile::training`].
pub fn training(tensors: &Tensors, config: &ConfigFile, overrides: &TrainingOverrides) -> Result<Trained, ModelError> {
    match recognise(tensors, config, overrides)? {
        Some(trained) => Ok(trained),
        None => config.training(overrides),
    }
}

/// The scheme, where the tensors alone say it; `None` for latent weights.
///
/// # Errors
/// [`ModelError::NotLatent`] where they are of a family that cannot be packed, or contradict `overrides`; weights that
/// cannot be read.
pub fn recognise(
    tensors: &Tensors,
    config: &ConfigFile,
    overrides: &TrainingOverrides,
) -> Result<Option<Trained>, ModelError> {
    let refuse = |refusal: Refusal| refusal.of(tensors);
    if let Some(refusal) = rotated(tensors, config).or_else(|| single_norms(tensors)) {
        return Err(refuse(refusal));
    }
    if has_codes(tensors, config, overrides).map_err(refuse)? {
        return Ok(Some(Trained {
            scheme: Scheme::Packed(config.packed()?),
            evidence: "U8 tensors with a weight_scale, and 'quantization_config' of config.json",
        }));
    }
    if let Some(floats) = numbers(tensors)?.family(tensors, overrides).map_err(refuse)? {
        return Ok(Some(Trained {
            scheme: Scheme::Floats(with_dead_zone(floats, tensors, config)),
            evidence: "the numbers of the linears, whatever config.json says",
        }));
    }
    of_another_rule(tensors).map_or(Ok(None), |refusal| Err(refuse(refusal)))
}

impl Refusal {
    fn of(self, tensors: &Tensors) -> ModelError {
        let Self { found, why, remedy } = self;
        ModelError::NotLatent {
            path: tensors.path().into(),
            found,
            why,
            remedy,
        }
    }
}

/// Whether a dead zone, which config.json names, is in biases beside weights that are ternary already.
fn with_dead_zone(mut floats: Floats, tensors: &Tensors, config: &ConfigFile) -> Floats {
    let has_biases = tensors.names().any(|name| name.ends_with("_proj.bias"));
    let method = config.value("quant_method").and_then(|method| method.as_str());
    let method = method.filter(|method| method.starts_with("ultraquant"));
    floats.lost_dead_zone = method.filter(|_| !has_biases).map(String::from);
    floats
}

const WITH_ITS_CONFIG: &str = "name the config.json of this checkpoint with --config";

const AS_THEY_ARE: &str = "leave --trained-as out: they are packed as they are";

fn holders(linears: usize) -> String {
    match linears {
        1 => "one linear holds".into(),
        count => format!("{count} linears hold"),
    }
}

/// The weights of linears, whatever their names begin with.
pub fn is_linear(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

fn names(tensors: &Tensors, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = tensors.names().filter(|name| wanted(name));
    names.map(String::from).collect()
}

/// Whether there are BitNet's codes, four of them in a byte; refused where they are not all that such weights need.
fn has_codes(tensors: &Tensors, config: &ConfigFile, overrides: &TrainingOverrides) -> Result<bool, Refusal> {
    let is_packed = |name: &str| is_linear(name) && tensors.get(name).is_some_and(|t| t.dtype == Dtype::U8);
    let codes = names(tensors, is_packed);
    let scale = |codes: &String| format!("{codes}_scale");
    let refusal = |names: &[String], found: &str, why: &str, remedy| {
        let found = format!("{} {found}: {}", holders(names.len()), list(names));
        let why = why.into();
        Err(Refusal { found, why, remedy })
    };
    let without_scale: Vec<_> = codes
        .iter()
        .filter(|codes| tensors.get(&scale(codes)).is_none())
        .cloned()
        .collect();
    if let Some(first) = without_scale.first() {
        let found = format!("U8, without a tensor '{}'", scale(first));
        return refusal(
            &without_scale,
            &found,
            "codes without scales are no weights",
            LATENT_ONLY,
        );
    }
    if !codes.is_empty() && config.bitnet().is_none() {
        let why = "whether the scale multiplies or divides stands in 'quantization_config' of config.json, which does \
                   not name BitNet";
        return refusal(&codes, "U8 with a weight_scale, as packed BitNet", why, WITH_ITS_CONFIG);
    }
    if !codes.is_empty() && overrides.method.is_some() {
        let found = "the codes of packed BitNet, four in a byte, with a weight_scale";
        return refusal(
            &codes,
            found,
            "they are ternary already, and no latent weights",
            AS_THEY_ARE,
        );
    }
    Ok(!codes.is_empty())
}

/// Weights of a rotated basis look as others do, and need activations that are rotated, too.
fn rotated(tensors: &Tensors, config: &ConfigFile) -> Option<Refusal> {
    let mut signs = names(tensors, is_rotation);
    signs.extend(config.settings(is_rotation));
    let found = (!signs.is_empty()).then(|| list(&signs))?;
    Some(Refusal {
        found: format!("{found} says that the weights are of a rotated basis (as Bonsai 2)"),
        why: "no engine rotates the activations, and without that the file would load and talk nonsense".into(),
        remedy: "take a checkpoint that was not rotated",
    })
}

fn is_rotation(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["hadamard", "rotation", "signs"].iter().any(|word| name.contains(word))
}

/// What other methods save beside the weights that they train.
fn of_another_rule(tensors: &Tensors) -> Option<Refusal> {
    let one = |part: &str| names(tensors, |name| name.contains(part)).into_iter().next();
    if let Some(name) = one("_proj.weight_quantizer.") {
        return Some(Refusal {
            found: format!("'{name}' is a quantizer of AngelSlim's own training"),
            why: "it is saved half way, with weights that are still latent".into(),
            remedy: "take what the end of that training saves, whose weights are ternary",
        });
    }
    let name = one("_proj.gamma")?;
    Some(Refusal {
        found: format!("'{name}' is the shift of DLT"),
        why: "its weights are code times scale plus gamma, which is no ternary matrix".into(),
        remedy: "train with a method that has none",
    })
}

/// BitNet with a norm in front of every linear.
fn single_norms(tensors: &Tensors) -> Option<Refusal> {
    let name = names(tensors, |name| name.contains("_proj.rms_norm."))
        .into_iter()
        .next()?;
    Some(Refusal {
        found: format!("'{name}' is a norm of a single linear, as BitNet has them with use_rms_norm"),
        why: "no architecture of llama.cpp has a place for it".into(),
        remedy: "take a model that was trained without use_rms_norm",
    })
}

/// What the numbers of the linears say.
fn numbers(tensors: &Tensors) -> Result<Groups, ModelError> {
    let linears: Vec<_> = names(tensors, is_linear)
        .into_iter()
        .filter(|name| {
            let tensor = tensors.get(name).expect("it was listed");
            tensor.shape.len() == 2 && tensor.dtype.bytes().is_some()
        })
        .collect();
    let kinds = linears.into_par_iter().map(|name| {
        let stored = tensors.stored(&name).expect("it was listed");
        match look(stored) {
            Ok(weights) => Ok((name, weights)),
            Err(source) => Err(ModelError::io(stored.path, source)),
        }
    });
    let kinds: Vec<_> = kinds.collect::<Result<_, _>>()?;
    Ok(Groups::of(kinds))
}

/// The linears by what they hold.
#[derive(Default)]
struct Groups {
    latent: Vec<String>,
    /// Those with too few weights that are not zero to tell.
    unknown: Vec<String>,
    ternary: Vec<String>,
    /// Of the ternary ones: the share of weights that are not zero.
    shares: Vec<f64>,
    binary: Vec<String>,
    /// Of the ternary and the binary ones: the most weights over which every scale holds.
    runs: BTreeMap<String, usize>,
    four_level: Vec<String>,
    nearly: Vec<String>,
    /// Of the first that is nearly ternary: whether small weights are zero, row and column where it breaks.
    broken: Option<(bool, usize, usize)>,
}

impl Groups {
    fn of(kinds: Vec<(String, Weights)>) -> Self {
        let mut groups = Self::default();
        for (name, weights) in kinds {
            let group = match weights {
                Weights::Unknown => &mut groups.unknown,
                Weights::Latent => &mut groups.latent,
                Weights::Ternary { run, share } => {
                    groups.runs.insert(name.clone(), run);
                    groups.shares.push(share);
                    &mut groups.ternary
                }
                Weights::Binary { run } => {
                    groups.runs.insert(name.clone(), run);
                    &mut groups.binary
                }
                Weights::FourLevel { .. } => &mut groups.four_level,
                Weights::NearlyTernary { zeros, row, column } => {
                    groups.broken.get_or_insert((zeros, row, column));
                    &mut groups.nearly
                }
            };
            group.push(name);
        }
        groups
    }

    /// The linears as ternary ones, where most of them are; `None` where they are latent.
    fn family(self, tensors: &Tensors, overrides: &TrainingOverrides) -> Result<Option<Floats>, Refusal> {
        let others = self.latent.len() + self.unknown.len();
        let rounded_otherwise = !self.four_level.is_empty() || !self.nearly.is_empty();
        let are_ternary = !self.ternary.is_empty() && self.runs.len() > others && !rounded_otherwise;
        if !are_ternary || overrides.method.is_some() {
            return self.refusal(tensors, are_ternary).map_or(Ok(None), Err);
        }
        Ok(Some(Floats {
            runs: self.runs,
            lost_dead_zone: None,
        }))
    }

    /// `are_ternary`: and would be packed as such, but for what the command line says.
    fn refusal(&self, tensors: &Tensors, are_ternary: bool) -> Option<Refusal> {
        let kinds = [
            (&self.ternary, self.ternary_text()),
            (&self.four_level, "four levels, -3s, -s, +s and +3s".into()),
            (&self.binary, "one magnitude and no zeros, -s and +s".into()),
            (&self.nearly, "almost, but not quite, only -s, 0 and +s".into()),
        ];
        let found: Vec<_> = kinds.iter().filter(|(names, _)| !names.is_empty()).collect();
        let rest = match self.latent.is_empty() {
            true => String::new(),
            false => format!(
                ", {} other weights: {} (was a LoRA adapter merged, or were they left out of training?)",
                if self.latent.len() == 1 {
                    "one holds".into()
                } else {
                    format!("{} hold", self.latent.len())
                },
                list(&self.latent)
            ),
        };
        let found = match found[..] {
            [] => return None,
            [(names, what)] if rest.is_empty() => {
                format!("all {} linears hold {what}", names.len())
            }
            _ => {
                let parts = found
                    .iter()
                    .map(|(names, what)| format!("{} {what}: {}", holders(names.len()), list(names)));
                parts.collect::<Vec<_>>().join(", ") + &rest
            }
        };
        let why = if !self.ternary.is_empty() {
            self.ternary_reason(tensors)
        } else if !self.four_level.is_empty() {
            "they are rounded already, and not ternary (SEQ or ParetoQ at 2 bits): Tequila's formula would make \
             three levels of four"
                .into()
        } else if !self.binary.is_empty() {
            "they are rounded already, and binary (1 bit): training with Tequila does not leave such weights".into()
        } else {
            self.nearly_reason()
        };
        Some(Refusal {
            found,
            why,
            remedy: if are_ternary { AS_THEY_ARE } else { LATENT_ONLY },
        })
    }

    fn ternary_text(&self) -> String {
        let (least, most) = (self.runs.values().min(), self.runs.values().max());
        let (least, most) = (least.unwrap_or(&0), most.unwrap_or(&0));
        let runs = match least == most {
            true => least.to_string(),
            false => format!("{least} to {most}"),
        };
        format!("only -s, 0 and +s, with one s for at least {runs} weights")
    }

    /// Tequila takes the mean of all magnitudes for the scale.
    fn ternary_reason(&self, tensors: &Tensors) -> String {
        let least = self.shares.iter().copied().fold(1.0, f64::min);
        let most = self.shares.iter().copied().fold(0.0, f64::max);
        let (least, most) = (format!("{least:.2}"), format!("{most:.2}"));
        let shares = match least == most {
            true => least,
            false => format!("{least} to {most}"),
        };
        let mut text = format!(
            "they are ternary already (as TriLM, Bonsai and BitCPM4 are published, and as AngelSlim bakes them); read as \
             latent ones they would keep their codes and get scales of {shares} of the true ones"
        );
        if !names(tensors, |name| name.ends_with("_proj.bias")).is_empty() {
            text += ", and their biases would be added to a dead zone that is in them already";
        }
        text
    }

    fn nearly_reason(&self) -> String {
        let (zeros, row, column) = self.broken.unwrap_or_default();
        let what = match zeros {
            true => "rounded once more, as AngelSlim's w + (q - w) leaves them",
            false => "changed afterwards: was a LoRA adapter merged into ternary weights?",
        };
        format!("the first of them breaks at row {row}, column {column}: they are ternary weights, {what}")
    }
}
