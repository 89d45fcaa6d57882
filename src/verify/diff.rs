//! How two files differ: keys and tensors, by value. A checkpoint stands for the file that it gives by the formula.

use std::collections::HashMap;

use formats::gguf::{File, TensorInfo, Value};
use formats::safetensors::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::keys::model_keys;
use super::latent::{Latent, LatentRow, rope_factors, row_order};
use super::{Progress, VerifyError};
use crate::blueprint::{Linear, Slot};
use crate::metrics::Nmse;
use crate::model::Checkpoint;
use crate::model::tokenizer::Tokenizer;

/// One of the two.
pub enum Side<'a> {
    /// A file.
    Gguf(&'a File<'a>),
    /// A checkpoint and its tokenizer.
    Checkpoint(&'a Checkpoint, &'a Tokenizer),
}

/// What differs, in the order of the first; what only the second has comes last.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Differences {
    /// Keys that differ.
    pub keys: Vec<KeyDifference>,
    /// Keys that are equal.
    pub same_keys: usize,
    /// Tensors that differ.
    pub tensors: Vec<TensorDifference>,
    /// Tensors that are equal.
    pub same_tensors: usize,
}

impl Differences {
    /// Take tensors for equal whose numbers are within `max_nmse`.
    pub fn allow(&mut self, max_nmse: f64) {
        let all = self.tensors.len();
        let within = |tensor: &TensorDifference| tensor.nmse.is_some_and(|nmse| nmse <= max_nmse);
        self.tensors.retain(|tensor| max_nmse == 0.0 || !within(tensor));
        self.same_tensors += all - self.tensors.len();
    }
}

/// One key that differs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyDifference {
    /// Its name.
    pub name: String,
    /// What the first has; `None` where it has no such key.
    pub a: Option<KeyValue>,
    /// What the second has.
    pub b: Option<KeyValue>,
}

/// The value of a key; of two lists, what each has at the first place where they differ.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub struct KeyValue {
    /// As GGUF calls it: `u32`, `array of string`.
    #[serde(rename = "type")]
    pub ty: String,
    /// Values in a list.
    pub length: Option<usize>,
    /// Which of them is `value`, from 0.
    pub index: Option<usize>,
    /// Absent where a list has no such place.
    pub value: Option<serde_json::Value>,
}

/// One tensor that differs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct TensorDifference {
    /// Its name.
    pub name: String,
    /// What the first has; `None` where it has no such tensor.
    pub a: Option<Stored>,
    /// What the second has.
    pub b: Option<Stored>,
    /// NMSE of the second against the first, for tensors of one shape.
    pub nmse: Option<f64>,
    /// The first number that differs.
    pub first: Option<Place>,
}

/// How a tensor is stored.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Stored {
    /// `None` for a checkpoint, which determines numbers, not how they are stored.
    #[serde(rename = "type")]
    pub ty: Option<&'static str>,
    /// Rows first.
    pub shape: Vec<u64>,
}

/// A number that differs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Place {
    /// Its row.
    pub row: usize,
    /// Its column.
    pub column: usize,
    /// What the first has.
    pub a: f32,
    /// What the second has.
    pub b: f32,
}

impl Differences {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tensors.is_empty()
    }
}

/// Compare two sides. Where one is a checkpoint, only the keys that it determines are compared.
///
/// # Errors
/// Blocks of a type that cannot be read, or a checkpoint with numbers that are not finite.
pub fn diff(a: &Side, b: &Side, progress: &Progress) -> Result<Differences, VerifyError> {
    let (keys, same_keys) = diff_keys(a, b);
    let (tensors, same_tensors) = diff_tensors(a, b, progress)?;
    Ok(Differences {
        keys,
        same_keys,
        tensors,
        same_tensors,
    })
}

fn diff_keys(a: &Side, b: &Side) -> (Vec<KeyDifference>, usize) {
    let (keys_a, keys_b) = (a.keys(), b.keys());
    let names = united(&keys_a, &keys_b, |(key, _)| key);
    let (by_name_a, by_name_b) = (by_name(&keys_a), by_name(&keys_b));
    let (mut differ, mut same) = (vec![], 0);
    for name in names {
        let (in_a, in_b) = (by_name_a.get(name), by_name_b.get(name));
        let undetermined = |side: &Side, value: Option<_>| matches!(side, Side::Checkpoint(..)) && value.is_none();
        if in_a == in_b {
            same += 1;
        } else if !undetermined(a, in_a) && !undetermined(b, in_b) {
            let (a, b) = key_values(in_a.copied(), in_b.copied());
            let name = name.into();
            differ.push(KeyDifference { name, a, b });
        }
    }
    (differ, same)
}

fn by_name(keys: &[(String, Value)]) -> HashMap<&str, &Value> {
    keys.iter().map(|(key, value)| (key.as_str(), value)).collect()
}

/// The names of the first, then those that only the second has.
fn united<'a, T>(a: &'a [T], b: &'a [T], name: impl Fn(&'a T) -> &'a String) -> Vec<&'a str> {
    let mut names: Vec<&str> = a.iter().map(|item| name(item).as_str()).collect();
    let known: std::collections::HashSet<_> = names.iter().copied().collect();
    names.extend(
        b.iter()
            .map(|item| name(item).as_str())
            .filter(|name| !known.contains(name)),
    );
    names
}

/// Two values; of lists the first place that differs.
fn key_values(a: Option<&Value>, b: Option<&Value>) -> (Option<KeyValue>, Option<KeyValue>) {
    let at = match (a, b) {
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            let shorter = a.len().min(b.len());
            Some((0..shorter).find(|&at| a.item(at) != b.item(at)).unwrap_or(shorter))
        }
        _ => None,
    };
    let key_value = |value: &Value| {
        let (length, shown) = match value {
            Value::Array(list) => (Some(list.len()), at.and_then(|at| list.item(at))),
            value => (None, Some(value.to_json())),
        };
        KeyValue {
            ty: value.type_name(),
            length,
            index: at,
            value: shown,
        }
    };
    (a.map(key_value), b.map(key_value))
}

fn diff_tensors(a: &Side, b: &Side, progress: &Progress) -> Result<(Vec<TensorDifference>, usize), VerifyError> {
    let (tensors_a, tensors_b) = (a.tensors(), b.tensors());
    let by_name = |tensors: &[Outline]| -> HashMap<_, _> {
        let named = tensors.iter().map(|tensor| (tensor.name.clone(), tensor.clone()));
        named.collect()
    };
    let (by_name_a, by_name_b) = (by_name(&tensors_a), by_name(&tensors_b));
    let (mut differ, mut same) = (vec![], 0);
    let names = united(&tensors_a, &tensors_b, |tensor| &tensor.name);
    for (done, name) in names.iter().copied().enumerate() {
        progress(name, Some(done as f64 / names.len() as f64));
        let (in_a, in_b) = (by_name_a.get(name).cloned(), by_name_b.get(name).cloned());
        let mut difference = TensorDifference {
            name: name.into(),
            a: in_a.as_ref().map(Outline::stored),
            b: in_b.as_ref().map(Outline::stored),
            nmse: None,
            first: None,
        };
        if let (Some(in_a), Some(in_b)) = (&in_a, &in_b)
            && in_a.shape == in_b.shape
        {
            let found = compare(&a.rows(in_a)?, &b.rows(in_b)?, in_a)?;
            let types = in_a.ty == in_b.ty || in_a.ty.is_none() || in_b.ty.is_none();
            if types && found.first.is_none() {
                same += 1;
                continue;
            }
            difference.nmse = Some(found.nmse.value());
            difference.first = found.first;
        }
        differ.push(difference);
    }
    Ok((differ, same))
}

/// A tensor without its numbers.
#[derive(Clone, PartialEq)]
struct Outline {
    name: String,
    /// `None` for a checkpoint, which determines numbers, not how they are stored.
    ty: Option<formats::block::BlockType>,
    /// Columns first.
    shape: Vec<u64>,
}

impl Outline {
    fn columns(&self) -> usize {
        self.shape.first().map_or(1, |&n| n as usize)
    }

    fn rows(&self) -> usize {
        self.shape.iter().skip(1).product::<u64>() as usize
    }

    fn stored(&self) -> Stored {
        Stored {
            ty: self.ty.map(|ty| ty.name()),
            shape: self.shape.iter().rev().copied().collect(),
        }
    }
}

/// The numbers of a tensor, row by row.
enum Rows<'a> {
    Blocks(&'a TensorInfo, &'a [u8]),
    Table(Tensor<'a>),
    Linear(Latent<'a>, Vec<usize>),
    /// A linear that is stored as it is, and the checkpoint's row of each row.
    Kept(Tensor<'a>, Vec<usize>),
    Numbers(Vec<f32>),
}

impl Rows<'_> {
    fn read(&self, row: usize, latent: &mut LatentRow, out: &mut [f32]) -> Result<(), VerifyError> {
        match self {
            Rows::Blocks(info, bytes) => {
                let size = info.ty.row_bytes(out.len()).unwrap_or(0);
                info.ty.dequantize_row(&bytes[row * size..][..size], out)?;
            }
            Rows::Table(tensor) => tensor.read_f32(row * out.len(), out),
            Rows::Kept(tensor, order) => tensor.read_f32(order[row] * out.len(), out),
            Rows::Numbers(numbers) => out.copy_from_slice(&numbers[row * out.len()..][..out.len()]),
            Rows::Linear(linear, order) => {
                linear.read(order[row], latent)?;
                for (group, run) in linear.runs(order[row]) {
                    for column in run {
                        out[column] = linear.references[group] * f32::from(latent.codes[column]);
                    }
                }
            }
        }
        Ok(())
    }
}

/// How two tensors of one shape differ.
#[derive(Default)]
struct Found {
    nmse: Nmse,
    first: Option<Place>,
}

fn compare(a: &Rows, b: &Rows, outline: &Outline) -> Result<Found, VerifyError> {
    if let (Rows::Blocks(info_a, a), Rows::Blocks(info_b, b)) = (a, b)
        && info_a.ty == info_b.ty
        && a == b
    {
        return Ok(Found::default());
    }
    if outline.shape.contains(&0) {
        return Ok(Found::default());
    }
    let columns = outline.columns();
    let rows = (0..outline.rows())
        .into_par_iter()
        .map_init(
            || (LatentRow::default(), vec![0.0; columns], vec![0.0; columns]),
            |(latent, in_a, in_b), row| {
                a.read(row, latent, in_a)?;
                b.read(row, latent, in_b)?;
                Ok(compare_row(row, in_a, in_b))
            },
        )
        .collect::<Result<Vec<_>, VerifyError>>()?;
    Ok(rows.into_iter().fold(Found::default(), |mut all, row| {
        all.nmse += row.nmse;
        all.first = all.first.or(row.first);
        all
    }))
}

fn compare_row(row: usize, a: &[f32], b: &[f32]) -> Found {
    let mut found = Found::default();
    for (column, (&a, &b)) in a.iter().zip(b).enumerate() {
        found.nmse.add(a.into(), b.into());
        if a != b && found.first.is_none() {
            found.first = Some(Place { row, column, a, b });
        }
    }
    found
}

impl<'a> Side<'a> {
    fn keys(&self) -> Vec<(String, Value)> {
        match self {
            Side::Gguf(file) => file.metadata().to_vec(),
            Side::Checkpoint(checkpoint, tokenizer) => {
                let mut keys = model_keys(&checkpoint.config);
                keys.extend(tokenizer.metadata());
                keys
            }
        }
    }

    fn tensors(&self) -> Vec<Outline> {
        match self {
            Side::Gguf(file) => file
                .tensors()
                .iter()
                .map(|info| Outline {
                    name: info.name.clone(),
                    ty: Some(info.ty),
                    shape: info.shape.clone(),
                })
                .collect(),
            Side::Checkpoint(checkpoint, _) => expected(checkpoint),
        }
    }

    fn rows(&self, outline: &Outline) -> Result<Rows<'a>, VerifyError> {
        match self {
            Side::Gguf(file) => {
                let (info, bytes) = file.tensor(&outline.name).expect("the outline is of this file");
                Ok(Rows::Blocks(info, bytes))
            }
            Side::Checkpoint(checkpoint, _) => checkpoint_rows(checkpoint, &outline.name),
        }
    }
}

/// The tensors of the file that a checkpoint gives.
fn expected(checkpoint: &Checkpoint) -> Vec<Outline> {
    let dims = &checkpoint.config.dims;
    let outline = |name: String, shape: Vec<u64>| Outline { name, ty: None, shape };
    let mut tensors = vec![];
    for (slot, _) in checkpoint.config.slots() {
        tensors.push(outline(slot.gguf_name(), slot.gguf_shape(dims)));
        if let Slot::Linear(linear) = slot {
            let (rows, _) = linear.shape(dims);
            if checkpoint.has_bias(linear) {
                tensors.push(outline(bias_name(linear), vec![rows as u64]));
            }
        }
    }
    tensors
}

fn bias_name(linear: Linear) -> String {
    format!("{}.bias", linear.gguf_name())
}

fn checkpoint_rows<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<Rows<'a>, VerifyError> {
    let config = &checkpoint.config;
    if let Some(linear) = config.linears().find(|linear| bias_name(*linear) == name) {
        let order = row_order(linear, config);
        if !checkpoint.is_ternary(linear) {
            return Ok(Rows::Numbers(kept_biases(checkpoint, linear, &order)));
        }
        let latent = Latent::new(checkpoint, linear)?;
        return biases(&latent, &order).map(Rows::Numbers);
    }
    let slots = config.slots();
    let (slot, source) = slots
        .iter()
        .find(|(slot, _)| slot.gguf_name() == name)
        .expect("the outline is of this checkpoint");
    match slot {
        Slot::Linear(linear) if checkpoint.is_ternary(*linear) => {
            let latent = Latent::new(checkpoint, *linear)?;
            Ok(Rows::Linear(latent, row_order(*linear, config)))
        }
        Slot::Linear(linear) => {
            let tensor = checkpoint.tensors.get(source.as_deref().unwrap_or_default());
            let tensor = tensor.expect("Checkpoint::open found every tensor");
            Ok(Rows::Kept(tensor, row_order(*linear, config)))
        }
        Slot::RopeFactors => {
            let factors = rope_factors(config).unwrap_or_default();
            Ok(Rows::Numbers(factors.into_iter().map(|factor| factor as f32).collect()))
        }
        Slot::Embedding | Slot::Norm(_) | Slot::Head => {
            let source = source.as_deref().unwrap_or_default();
            let tensor = checkpoint.tensors.get(source);
            Ok(Rows::Table(tensor.expect("Checkpoint::open found every tensor")))
        }
    }
}

/// Those of a linear that is stored as it is, in the order of the file.
fn kept_biases(checkpoint: &Checkpoint, linear: Linear, order: &[usize]) -> Vec<f32> {
    let mut biases = vec![0.0; order.len()];
    if let Some(tensor) = checkpoint.tensors.get(&format!("{}.bias", linear.checkpoint_name())) {
        tensor.read_f32(0, &mut biases);
    }
    order.iter().map(|&row| biases[row]).collect()
}

fn biases(latent: &Latent, order: &[usize]) -> Result<Vec<f32>, VerifyError> {
    order
        .par_iter()
        .map_init(LatentRow::default, |row, &from| {
            latent.read(from, row)?;
            Ok(row.bias as f32)
        })
        .collect()
}
