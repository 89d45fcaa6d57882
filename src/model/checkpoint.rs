//! A checkpoint: its tensors compared with what config.json promises.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use formats::safetensors::{Dtype, Tensor};
use serde_json::Value;

use super::ModelError;
use super::card::CARD;
use super::config::{Config, ConfigFile};
use super::error::list;
use super::families::is_linear;
use super::schemes::{self, Scheme, Trained, TrainingOverrides, WEIGHT_SCALE};
use super::source::{Source, parts_in};
use super::tensors::{Stored, Tensors};
use super::{families, unwrap};
use crate::blueprint::{EMBEDDING, HEAD, Linear};
use crate::files::folder_of;

/// A checkpoint in which everything that config.json promises was found.
pub struct Checkpoint {
    /// Where it is.
    pub source: Source,
    /// The shape of the model.
    pub config: Config,
    /// How its weights become ternary.
    pub scheme: Scheme,
    /// What says so.
    pub evidence: &'static str,
    /// Its tensors.
    pub tensors: Tensors,
    /// config.json as it stands there.
    pub config_json: Value,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Open a checkpoint and check that it holds what its config.json says, no less and no more.
    ///
    /// # Errors
    /// Any [`ModelError`].
    pub fn open(source: Source, overrides: &TrainingOverrides) -> Result<Self, ModelError> {
        let file = ConfigFile::read(&source.config)?;
        let tensors = Tensors::open(&source.weights)?;
        let Trained { scheme, evidence } = families::training(&tensors, &file, overrides)?;
        let config = file.config()?;
        let mut checkpoint = Self {
            source,
            config,
            scheme,
            evidence,
            tensors,
            config_json: file.into_json(),
            notes: vec![],
        };
        checkpoint.unwrap_names()?;
        checkpoint.tie_head()?;
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Every file that is read of the checkpoint, and those beside them that belong to it.
    pub fn files(&self) -> Vec<PathBuf> {
        let source = &self.source;
        let mut files = vec![source.weights.clone(), source.config.clone()];
        files.push(source.tokenizer.clone());
        files.extend(self.tensors.files().map(|(path, _)| path.to_owned()));
        let tokenizer = match source.tokenizer.is_dir() {
            true => &source.tokenizer,
            false => folder_of(&source.tokenizer),
        };
        files.extend(parts_in(folder_of(&source.weights)));
        files.push(folder_of(&source.weights).join(CARD));
        files.extend(parts_in(tokenizer));
        files
    }

    /// Read the names as transformers saves them, where all of them are wrapped alike.
    fn unwrap_names(&mut self) -> Result<(), ModelError> {
        let adapters: Vec<_> = self.tensors.names().filter(|name| is_adapter(name)).collect();
        if !adapters.is_empty() {
            return Err(ModelError::SurplusTensors {
                path: self.tensors.path().into(),
                tensors: adapters.into_iter().map(String::from).collect(),
                hint: MERGE,
            });
        }
        let found = |name: &str| self.tensors.get(name).is_some();
        let missing: Vec<_> = self.expected().into_keys().filter(|name| !found(name)).collect();
        let tied_to_head = |name: &str| name == EMBEDDING && self.config.tied_head;
        if missing.iter().all(|name| tied_to_head(name) && found(HEAD)) {
            return Ok(());
        }
        let Some(unwrapped) = unwrap::unwrap(self.tensors.names()) else {
            return Ok(());
        };
        let plain: BTreeSet<_> = unwrapped.names.values().map(String::as_str).collect();
        let head = plain.contains(HEAD);
        let lacks = |name: &str| !(plain.contains(name) || tied_to_head(name) && head);
        if let Some(lacking) = self.expected().into_keys().find(|name| lacks(name)) {
            return Err(ModelError::MissingTensor {
                path: self.tensors.path().into(),
                hint: match unwrapped.found.is_empty() {
                    true => missing_hint(&lacking),
                    false => format!(
                        "the names have {} before them, without which this one is missing still: {}",
                        unwrapped.found,
                        missing_hint(&lacking)
                    )
                    .into(),
                },
                tensor: lacking,
            });
        }
        let mut how = vec![];
        if !unwrapped.found.is_empty() {
            how.push(format!("without {}", unwrapped.found));
        }
        if unwrapped.bare {
            how.push("with 'model.' before them, which a bare LlamaModel leaves out".into());
        }
        self.notes
            .push(format!("the names of tensors are read {}", how.join(" and ")));
        self.tensors.rename(&unwrapped.names);
        Ok(())
    }

    /// As transformers ties the head (modeling_utils.py, `tie_weights`): not where both tables are there and differ.
    fn tie_head(&mut self) -> Result<(), ModelError> {
        if !self.config.tied_head {
            return Ok(());
        }
        match (self.tensors.stored(EMBEDDING), self.tensors.stored(HEAD)) {
            (Some(embedding), Some(head)) => {
                if equal(embedding, head)? {
                    self.notes.push(format!(
                        "config.json ties the head to the embedding, which it equals: {HEAD} is left out"
                    ));
                } else {
                    self.config.tied_head = false;
                    self.notes.push(format!(
                        "config.json ties the head to the embedding, but {HEAD} differs from it: it is kept as the head, \
                         as transformers keeps it"
                    ));
                }
            }
            (None, Some(_)) => {
                let names = BTreeMap::from([(HEAD.into(), EMBEDDING.into())]);
                self.tensors.rename(&names);
                self.notes.push(format!(
                    "config.json ties the head to the embedding, and only {HEAD} is there: it is both"
                ));
            }
            _ => {}
        }
        Ok(())
    }

    /// What their file calls the weights of a linear.
    pub fn weight_name(&self, linear: Linear) -> &str {
        let name = format!("{}.weight", linear.checkpoint_name());
        self.tensors.written(&name).expect("check found every weight")
    }

    /// Whether a linear becomes ternary; else it is stored as it is.
    pub fn is_ternary(&self, linear: Linear) -> bool {
        let (name, dtype) = (self.weight_name(linear), self.weight(linear).dtype);
        self.scheme.training().is_ternary(name, dtype)
    }

    /// The linears that are stored as they are.
    fn kept_note(&self) -> Option<String> {
        let kept = self.config.linears().filter(|linear| !self.is_ternary(*linear));
        let names: Vec<_> = kept.map(|linear| self.weight_name(linear).to_owned()).collect();
        let are = if names.len() == 1 { "is" } else { "are" };
        (!names.is_empty()).then(|| {
            format!(
                "{} of the linears {are} not ternary, and stored as in the checkpoint: {}",
                names.len(),
                list(&names)
            )
        })
    }

    /// The weights of a linear: (rows, columns).
    pub fn weight(&self, linear: Linear) -> Stored<'_> {
        self.beside(linear, "weight").expect("check found every weight")
    }

    /// The bias that the layer has of its own: (rows,).
    pub fn own_bias(&self, linear: Linear) -> Option<Stored<'_>> {
        self.beside(linear, "bias")
    }

    /// Whether a linear adds a bias: that of its dead zone, its layer's own, or the sum of both.
    pub fn has_bias(&self, linear: Linear) -> bool {
        self.scheme.training().has_biases() || self.own_bias(linear).is_some()
    }

    /// Another tensor of a linear, by its last name: those of its scheme, as `check` has found no others.
    pub fn beside(&self, linear: Linear, name: &str) -> Option<Stored<'_>> {
        self.tensors.stored(&format!("{}.{name}", linear.checkpoint_name()))
    }

    /// What the output will do otherwise than transformers; for the user to read.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.tensors.notes.clone();
        notes.extend(self.notes.iter().chain(&self.config.notes).cloned());
        notes.extend(self.dtype_note());
        notes.extend(self.frequency_note());
        notes.extend(self.kept_note());
        if let Scheme::Packed(packed) = &self.scheme {
            let scales = self.config.linears().filter_map(|linear| self.weight_scale(linear));
            notes.extend(packed.scale_notes(&scales.collect::<Vec<_>>()));
        }
        notes.extend(self.scheme.training().notes());
        if let Some(window) = self
            .config
            .sliding_window
            .filter(|window| *window < self.config.context_length)
        {
            notes.push(format!(
                "attention sees {window} tokens back, which llama.cpp's `{}` cannot limit: the context is set to \
                 {window} tokens, within which both are the same",
                self.config.architecture.graph.name
            ));
        }
        notes
    }

    /// Scales are rounded to the dtype of the weights: in another one they are other scales.
    fn dtype_note(&self) -> Option<String> {
        let stated = self.config.dtype.filter(|_| !self.scheme.training().is_stored())?;
        let mut dtypes = self.config.linears().map(|linear| self.weight(linear).dtype);
        let other = dtypes.find(|dtype| *dtype != stated)?;
        let name = match stated {
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
            _ => "float32",
        };
        Some(format!(
            "config.json says that the model is {name}, but linears are stored as {other}: their codes, scales and biases \
             are those of {other}. For those of {name}, load the model with dtype={name} and save it with \
             save_pretrained(); where training rounded in {other}, set \"dtype\" in config.json to match"
        ))
    }

    /// Early conversions of Llama hold the frequencies of the rotation, which transformers computes anew.
    fn frequency_note(&self) -> Option<String> {
        let config = &self.config;
        let differs = |(_, tensor): &(&str, Tensor)| {
            let mut found = vec![0.0; tensor.len()];
            tensor.dtype.bytes().inspect(|_| tensor.read_f32(0, &mut found));
            !config.rope.has_frequencies(&found, config.dims.head_dim)
        };
        let frequencies = self.tensors.iter().filter(|(name, _)| name.ends_with(FREQUENCIES));
        let (name, _) = frequencies.into_iter().find(differs)?;
        Some(format!(
            "'{name}' contradicts config.json ({}), which is taken, as in transformers",
            config.rope
        ))
    }

    fn check(&self) -> Result<(), ModelError> {
        let expected = self.expected();
        for (name, shapes) in &expected {
            self.check_tensor(name, shapes)?;
        }
        for linear in self.config.linears() {
            let (name, shape) = (linear.checkpoint_name(), linear.shape(&self.config.dims));
            let checked = self.scheme.training().check(&name, shape, self.weight(linear).dtype);
            checked.map_err(|wrong| wrong.in_file(&self.source.config))?;
        }
        self.check_scales()?;
        let tied_head = |name: &str| self.config.tied_head && name == HEAD;
        let left_out = |name: &str| name.ends_with(FREQUENCIES) || self.scheme.training().leaves_out(name);
        let surplus: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, _)| name)
            .filter(|name| !expected.contains_key(*name) && !tied_head(name) && !left_out(name))
            .map(|name| self.tensors.written_name(name).to_owned())
            .collect();
        if surplus.is_empty() {
            return Ok(());
        }
        Err(ModelError::SurplusTensors {
            path: self.tensors.path().into(),
            hint: surplus_hint(&surplus),
            tensors: surplus,
        })
    }

    /// The scales beside packed codes are positive numbers.
    fn check_scales(&self) -> Result<(), ModelError> {
        for linear in self.config.linears() {
            if let Some(scale) = self
                .weight_scale(linear)
                .filter(|scale| !scale.is_finite() || *scale <= 0.0)
            {
                let tensor = format!("{}.{WEIGHT_SCALE}", linear.checkpoint_name());
                return Err(ModelError::Scale {
                    path: self.tensors.file_of(&tensor).into(),
                    tensor,
                    found: scale,
                });
            }
        }
        Ok(())
    }

    /// The scale beside packed codes.
    fn weight_scale(&self, linear: Linear) -> Option<f32> {
        let name = format!("{}.{WEIGHT_SCALE}", linear.checkpoint_name());
        let (tensor, mut scale) = (self.tensors.get(&name)?, [0.0]);
        tensor.read_f32(0, &mut scale);
        Some(scale[0])
    }

    /// Every tensor that must be there, with the shapes it may have.
    fn expected(&self) -> BTreeMap<String, Vec<Vec<usize>>> {
        let mut expected = BTreeMap::new();
        for (slot, name) in self.config.slots() {
            expected.extend(name.map(|name| (name, vec![slot.shape(&self.config.dims)])));
        }
        let training = self.scheme.training();
        for linear in self.config.linears() {
            let name = linear.checkpoint_name();
            let (rows, columns) = linear.shape(&self.config.dims);
            let bias = format!("{name}.bias");
            let is_beside = training.is_stored() && self.tensors.get(&bias).is_some();
            if is_beside || self.config.has_own_bias(linear.part) {
                expected.insert(bias, vec![vec![rows]]);
            }
            let weight = format!("{name}.weight");
            let dtype = self.tensors.get(&weight).map_or(Dtype::F32, |weight| weight.dtype);
            if training.is_ternary(self.tensors.written_name(&weight), dtype) {
                let beside = training.tensors(rows, columns).into_iter();
                expected.extend(beside.map(|(part, shapes)| (format!("{name}.{part}"), shapes)));
                expected.insert(weight, vec![training.weight_shape(rows, columns, dtype)]);
            }
        }
        expected
    }

    fn check_tensor(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), ModelError> {
        let path = self.tensors.file_of(name).to_owned();
        let Some(tensor) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                path,
                tensor: name.into(),
                hint: missing_hint(name),
            });
        };
        if !shapes.iter().any(|shape| shape == tensor.shape) {
            let (found, expected) = (tensor.shape.to_vec(), shapes[0].clone());
            return Err(ModelError::Shape {
                path,
                tensor: self.tensors.written_name(name).into(),
                found,
                expected,
            });
        }
        let holds_codes = tensor.dtype == Dtype::U8 && matches!(self.scheme, Scheme::Packed(_)) && is_linear(name);
        if tensor.dtype.bytes().is_none() && !holds_codes {
            let found = tensor.dtype.to_string();
            let expected = "F32, F16 or BF16; a checkpoint that is already quantized cannot be packed, take the one it was made from";
            return Err(ModelError::Dtype {
                path,
                tensor: name.into(),
                found,
                expected,
            });
        }
        Ok(())
    }
}

/// Frequencies of the rotation.
const FREQUENCIES: &str = "rotary_emb.inv_freq";

const MERGE: &str = "merge the adapter (LoRA, peft) into the model first, with merge_and_unload(), and save that";

/// What peft adds beside and around the layers of a model.
fn is_adapter(name: &str) -> bool {
    const PARTS: [&str; 7] = [
        "lora_",
        ".base_layer.",
        ".modules_to_save.",
        "hada_w",
        "lokr_w",
        "ia3_l",
        "oft_",
    ];
    PARTS.iter().any(|part| name.contains(part))
}

/// Whether two tables hold the same numbers.
fn equal(a: Stored, b: Stored) -> Result<bool, ModelError> {
    const PIECE: usize = 1 << 16;
    if a.shape != b.shape || a.dtype.bytes().is_none() || b.dtype.bytes().is_none() {
        return Ok(false);
    }
    let (mut bytes, mut left, mut right) = (vec![], vec![], vec![]);
    for start in (0..a.len()).step_by(PIECE) {
        let length = PIECE.min(a.len() - start);
        for (table, numbers) in [(a, &mut left), (b, &mut right)] {
            bytes.resize(length * table.number_bytes(), 0);
            let read = table.read(start, &mut bytes);
            read.map_err(|source| ModelError::io(table.path, source))?;
            numbers.resize(length, 0.0);
            let (dtype, shape) = (table.dtype, &[length][..]);
            Tensor {
                dtype,
                shape,
                bytes: &bytes,
            }
            .read_f32(0, numbers);
        }
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}

fn missing_hint(name: &str) -> Cow<'static, str> {
    let hint = if name == HEAD {
        "where the head is the embedding, config.json must say \"tie_word_embeddings\": true"
    } else if let Some(hint) = schemes::missing_hint(name) {
        hint
    } else if name.ends_with(".bias") {
        "config.json promises it (attention_bias, mlp_bias): fix the key, or fetch the checkpoint again"
    } else {
        "config.json promises it: fetch the checkpoint again, or name its config.json with --config"
    };
    hint.into()
}

fn surplus_hint(names: &[String]) -> &'static str {
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    if let Some(hint) = names.iter().find_map(|name| schemes::surplus_hint(name)) {
        hint
    } else if any(".qweight") || any(".SCB") || any("weight_scale") {
        "the checkpoint is already quantized (GPTQ, AWQ, bitsandbytes, FP8 or packed BitNet): take the one it was made from"
    } else if any(".bias") {
        "config.json must say \"attention_bias\" or \"mlp_bias\": true where the layers have biases"
    } else {
        "name the config.json of this checkpoint with --config"
    }
}
