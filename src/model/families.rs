//! Checkpoints whose weights are not latent ones: recognised from names, from keys of config.json, and
//! from the numbers themselves, before anything is made of them.

use rayon::prelude::*;

use super::ModelError;
use super::config::ConfigFile;
use super::error::list;
use super::tensors::Tensors;
use super::weights::{Weights, look};

/// Why the weights cannot be read as latent ones.
struct Refusal {
    found: String,
    why: String,
    remedy: &'static str,
}

const LATENT_ONLY: &str = "take the latent checkpoint that they were made from";

/// Refuse a checkpoint whose linears are not latent weights.
///
/// # Errors
/// [`ModelError::NotLatent`]; weights that cannot be read.
pub fn check_latent(tensors: &Tensors, config: &ConfigFile) -> Result<(), ModelError> {
    let named = packed(tensors, config)
        .or_else(|| rotated(tensors, config))
        .or_else(|| other_tensors(tensors));
    let refusal = match named {
        Some(refusal) => Some(refusal),
        None => numbers(tensors)?,
    };
    match refusal {
        None => Ok(()),
        Some(Refusal { found, why, remedy }) => Err(ModelError::NotLatent {
            path: tensors.path().into(),
            found,
            why,
            remedy,
        }),
    }
}

fn holders(linears: usize) -> String {
    match linears {
        1 => "one linear holds".into(),
        count => format!("{count} linears hold"),
    }
}

/// The weights of linears, whatever their names begin with.
fn is_linear(name: &str) -> bool {
    name.ends_with("_proj.weight")
}

fn names(tensors: &Tensors, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let names = tensors.names().filter(|name| wanted(name));
    names.map(String::from).collect()
}

/// BitNet's codes, four of them in a byte.
fn packed(tensors: &Tensors, config: &ConfigFile) -> Option<Refusal> {
    let is_packed = |name: &str| is_linear(name) && tensors.get(name).is_some_and(|t| t.dtype.to_string() == "U8");
    let codes = names(tensors, is_packed);
    let scale = format!("{}_scale", codes.first()?);
    let (found, why) = match (tensors.get(&scale), config.bitnet()) {
        (Some(_), Some(section)) => {
            let multiplies = section.get("linear_class") == Some(&"autobitlinear".into());
            let how = if multiplies { "times" } else { "divided by" };
            (
                "the codes of packed BitNet, four in a byte, with a weight_scale".into(),
                format!("they are ternary already: code {how} weight_scale"),
            )
        }
        (Some(_), None) => (
            "U8 with a weight_scale, as packed BitNet".into(),
            "whether the scale multiplies or divides stands in 'quantization_config' of config.json, which does not \
             name BitNet"
                .into(),
        ),
        (None, _) => (
            format!("U8, without a tensor '{scale}'"),
            "codes without scales are no weights".into(),
        ),
    };
    Some(Refusal {
        found: format!("{} {found}: {}", holders(codes.len()), list(&codes)),
        why,
        remedy: LATENT_ONLY,
    })
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

/// Tensors that other methods save beside the weights.
fn other_tensors(tensors: &Tensors) -> Option<Refusal> {
    let one = |part: &str| names(tensors, |name| name.contains(part)).into_iter().next();
    if let Some(name) = one("_proj.weight_quantizer.") {
        return Some(Refusal {
            found: format!("'{name}' is a quantizer of AngelSlim's own training"),
            why: "it is saved half way, with weights that are still latent".into(),
            remedy: "take what the end of that training saves, whose weights are ternary",
        });
    }
    if let Some(name) = one("_proj.gamma") {
        return Some(Refusal {
            found: format!("'{name}' is the shift of DLT"),
            why: "its weights are code times scale plus gamma, which is no ternary matrix".into(),
            remedy: "train with a method that has none",
        });
    }
    let name = one("_proj.rms_norm.")?;
    Some(Refusal {
        found: format!("'{name}' is a norm of a single linear, as BitNet has them with use_rms_norm"),
        why: "no architecture of llama.cpp has a place for it".into(),
        remedy: "take a model that was trained without use_rms_norm",
    })
}

/// What the numbers of the linears say.
fn numbers(tensors: &Tensors) -> Result<Option<Refusal>, ModelError> {
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
    Ok(Groups::of(kinds).refusal(tensors))
}

/// The linears by what they hold.
#[derive(Default)]
struct Groups {
    latent: Vec<String>,
    ternary: Vec<String>,
    /// Of the ternary ones: fewest and most weights a scale, least and largest share of weights that are not zero.
    runs: Vec<usize>,
    shares: Vec<f64>,
    binary: Vec<String>,
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
                Weights::Unknown => continue,
                Weights::Latent => &mut groups.latent,
                Weights::Ternary { run, share } => {
                    groups.runs.push(run);
                    groups.shares.push(share);
                    &mut groups.ternary
                }
                Weights::Binary { .. } => &mut groups.binary,
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

    fn refusal(&self, tensors: &Tensors) -> Option<Refusal> {
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
            remedy: LATENT_ONLY,
        })
    }

    fn ternary_text(&self) -> String {
        let (least, most) = (self.runs.iter().min(), self.runs.iter().max());
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
