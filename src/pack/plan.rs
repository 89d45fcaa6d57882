//! Deciding: every name, type, size and offset, every bias and every loss, before a byte is written.

use std::collections::BTreeMap;

use formats::block::BlockType;
use formats::gguf::{Layout, TensorInfo, Value};
use formats::safetensors::{Dtype, Tensor};
use rayon::prelude::*;

use super::row::{Loss, Row, ScaleRange, Ternary, encode};
use super::rule::{Embedding, Rule, Target, ollama_reads};
use super::{PackError, Progress};
use crate::model::{
    Checkpoint, EMBEDDING, FINAL_NORM, HEAD, Linear, Part, attention_norm, feed_forward_norm,
    model_metadata,
};
use crate::tequila::{Granularity, NotFinite, check_finite};

/// What the caller decides.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the type of each linear is found.
    pub rule: Rule,
    /// How embedding and head are stored.
    pub embedding: Embedding,
    /// `general.name`
    pub name: Option<String>,
    /// The keys of the tokenizer.
    pub tokenizer: Vec<(String, Value)>,
    /// Keys over those that are derived, as text: the type is that of the key, string for a new one.
    pub metadata: Vec<(String, String)>,
    /// sha256 of each input file, by file name, for provenance.
    pub hashes: Vec<(String, String)>,
}

/// One tensor of the output.
pub struct Item {
    /// Its name, type and shape in the file.
    pub info: TensorInfo,
    /// Where its weights come from.
    pub content: Content,
}

/// Where the weights of a tensor come from.
pub enum Content {
    /// These numbers: norms, biases, rotary factors.
    Numbers(Vec<f32>),
    /// A table of the checkpoint, in its dtype or converted: embedding and head.
    Table(&'static str),
    /// A ternary linear.
    Linear {
        /// Which one.
        linear: Linear,
        /// The loss of each row, in the order of the file.
        losses: Vec<Loss>,
    },
}

/// Everything decided.
pub struct Plan<'a> {
    /// What is packed.
    pub checkpoint: &'a Checkpoint,
    /// Keys and values, in file order.
    pub metadata: Vec<(String, Value)>,
    /// Tensors, in file order.
    pub items: Vec<Item>,
    /// Where each goes.
    pub layout: Layout,
    /// What a person wants to know of it.
    pub summary: Summary,
}

/// The figures of a plan.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Weights of all linears.
    pub ternary_weights: u64,
    /// Bytes of all linears without their biases.
    pub ternary_bytes: u64,
    /// How many of the ternary weights are in the dead zone.
    pub dead_weights: u64,
    /// The largest bias, as a magnitude.
    pub largest_bias: f64,
    /// The loss over all linears.
    pub loss: Loss,
    /// The linear with the largest NMSE, and that.
    pub worst: Option<(String, f64)>,
    /// How many linears became each type.
    pub linears: BTreeMap<BlockType, usize>,
    /// Bytes of the output.
    pub bytes: u64,
}

impl Summary {
    /// Bits that a ternary weight takes, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.ternary_bytes as f64 / self.ternary_weights as f64
    }

    /// The share of ternary weights in the dead zone, 0 to 1.
    pub fn dead_share(&self) -> f64 {
        self.dead_weights as f64 / self.ternary_weights as f64
    }

    /// The type of most linears.
    pub fn main_type(&self) -> BlockType {
        self.linears
            .iter()
            .max_by_key(|(_, count)| **count)
            .map_or(BlockType::F32, |(ty, _)| *ty)
    }
}

/// What is found of one row while planning.
struct RowFacts {
    loss: Loss,
    bias: f64,
    dead: u64,
}

/// A linear measured in one type.
struct Measured {
    ty: BlockType,
    rows: Vec<RowFacts>,
}

impl Measured {
    fn loss(&self) -> Loss {
        self.rows.iter().map(|row| row.loss).sum()
    }
}

/// The linears that cannot be written as asked, gathered so that all are named at once.
#[derive(Default)]
struct Refused {
    no_block: Vec<(String, usize)>,
    lossy: Vec<(String, f64)>,
    types: Vec<BlockType>,
    loss: Loss,
}

impl<'a> Plan<'a> {
    /// Read all weights and decide what each tensor becomes. `progress` is told the bytes of weights read.
    ///
    /// # Errors
    /// Any [`PackError`] about the request or the weights; nothing has been written.
    pub fn new(
        checkpoint: &'a Checkpoint,
        options: &Options,
        progress: &Progress,
    ) -> Result<Self, PackError> {
        let mut plan = Planner {
            checkpoint,
            options,
            progress,
            items: vec![],
            summary: Summary::default(),
        };
        let mut refused = Refused::default();
        plan.table("token_embd.weight", EMBEDDING)?;
        if let Some(factors) = checkpoint
            .config
            .rope
            .llama3_factors(checkpoint.config.head_dim)
        {
            plan.numbers("rope_freqs.weight", factors);
        }
        for linear in Linear::all(&checkpoint.config) {
            if let Some((norm, name)) = norm_before(linear) {
                plan.norm(&name, &norm)?;
            }
            plan.linear(linear, &mut refused)?;
        }
        plan.norm("output_norm.weight", FINAL_NORM)?;
        if !checkpoint.config.tied_head {
            plan.table("output.weight", HEAD)?;
        }
        refused.into_result(options, plan.summary.loss)?;
        plan.finish()
    }
}

impl Refused {
    fn into_result(self, options: &Options, stored: Loss) -> Result<(), PackError> {
        if !self.no_block.is_empty() {
            return Err(PackError::NoBlock {
                tensors: self.no_block,
                types: self.types,
            });
        }
        if !self.lossy.is_empty() {
            let (overall, max_nmse) = ((self.loss + stored).nmse(), options.rule.max_nmse);
            return Err(PackError::Lossy {
                tensors: self.lossy,
                overall,
                max_nmse,
                types: self.types,
            });
        }
        Ok(())
    }
}

/// The norm that a layer applies before this linear, where the linear is the first to use it: its name in the
/// checkpoint and in the file.
fn norm_before(linear: Linear) -> Option<(String, String)> {
    match linear.part {
        Part::Q => Some((
            attention_norm(linear.layer),
            format!("blk.{}.attn_norm.weight", linear.layer),
        )),
        Part::Gate => Some((
            feed_forward_norm(linear.layer),
            format!("blk.{}.ffn_norm.weight", linear.layer),
        )),
        _ => None,
    }
}

struct Planner<'a, 'o> {
    checkpoint: &'a Checkpoint,
    options: &'o Options,
    progress: &'o Progress<'o>,
    items: Vec<Item>,
    summary: Summary,
}

impl<'a> Planner<'a, '_> {
    fn numbers(&mut self, name: &str, numbers: Vec<f32>) {
        let info = TensorInfo {
            name: name.into(),
            ty: BlockType::F32,
            shape: vec![numbers.len() as u64],
        };
        self.items.push(Item {
            info,
            content: Content::Numbers(numbers),
        });
    }

    fn norm(&mut self, name: &str, source: &str) -> Result<(), PackError> {
        let numbers = self.vector(source)?;
        self.numbers(name, numbers);
        Ok(())
    }

    /// A vector of the checkpoint, all finite.
    fn vector(&self, source: &str) -> Result<Vec<f32>, PackError> {
        let tensor = self.tensor(source);
        let mut numbers = vec![0.0; tensor.len()];
        tensor.read_f32(0, &mut numbers);
        check_finite(&numbers).map_err(|found| self.not_finite(source, found))?;
        Ok(numbers)
    }

    fn table(&mut self, name: &str, source: &'static str) -> Result<(), PackError> {
        let tensor = self.tensor(source);
        self.check_table(tensor, source)?;
        let ty = match self.options.embedding {
            Embedding::As(ty) => ty,
            Embedding::Keep => stored_as(tensor.dtype),
        };
        let (rows, columns) = (tensor.shape[0] as u64, tensor.shape[1]);
        if ty.row_bytes(columns).is_none() {
            let problem = format!("{columns} columns are no multiple of {}", ty.weights());
            return Err(PackError::Embedding {
                tensor: name.into(),
                ty,
                problem,
            });
        }
        let info = TensorInfo {
            name: name.into(),
            ty,
            shape: vec![columns as u64, rows],
        };
        self.items.push(Item {
            info,
            content: Content::Table(source),
        });
        Ok(())
    }

    fn check_table(&self, tensor: Tensor, source: &str) -> Result<(), PackError> {
        let columns = tensor.shape[1];
        (0..tensor.shape[0])
            .into_par_iter()
            .try_for_each_init(
                || vec![0.0; columns],
                |numbers, row| {
                    tensor.read_f32(row * columns, numbers);
                    check_finite(numbers).map_err(|found| NotFinite {
                        index: row * columns + found.index,
                    })
                },
            )
            .map_err(|found| self.not_finite(source, found))?;
        (self.progress)(tensor.bytes.len() as u64);
        Ok(())
    }

    fn linear(&mut self, linear: Linear, refused: &mut Refused) -> Result<(), PackError> {
        let name = format!("{}.weight", linear.gguf_name());
        let (rows, columns) = linear.shape(&self.checkpoint.config);
        let candidates = self.options.rule.candidates(&name);
        let fitting: Vec<_> = candidates
            .iter()
            .copied()
            .filter(|ty| ty.row_bytes(columns).is_some())
            .collect();
        if fitting.is_empty() {
            refused.no_block.push((name, columns));
            refused.types = candidates;
            return Ok(());
        }
        let Some(measured) = self.first_within(linear, &name, &fitting, refused)? else {
            return Ok(());
        };
        (self.progress)(self.checkpoint.linear(linear).weight.bytes.len() as u64);

        let bytes = measured
            .ty
            .row_bytes(columns)
            .expect("it is among the fitting")
            * rows;
        self.note(&name, &measured, (rows * columns) as u64, bytes as u64);
        let Measured { ty, rows: facts } = measured;
        let info = TensorInfo {
            name,
            ty,
            shape: vec![columns as u64, rows as u64],
        };
        let losses = facts.iter().map(|row| row.loss).collect();
        self.items.push(Item {
            info,
            content: Content::Linear { linear, losses },
        });
        let biases = facts.iter().map(|row| row.bias as f32).collect();
        self.numbers(&format!("{}.bias", linear.gguf_name()), biases);
        Ok(())
    }

    /// The first of `types` that stores the linear within the allowed error.
    fn first_within(
        &self,
        linear: Linear,
        name: &str,
        types: &[BlockType],
        refused: &mut Refused,
    ) -> Result<Option<Measured>, PackError> {
        let ternary = Ternary::new(self.checkpoint, linear).map_err(|found| {
            self.not_finite(&format!("{}.weight", linear.checkpoint_name()), found)
        })?;
        let importance = importance(self.checkpoint, linear);
        let mut least: Option<Loss> = None;
        for &ty in types {
            let measured = self.measure(linear, name, &ternary, &importance, ty)?;
            let loss = measured.loss();
            if loss.nmse() <= self.options.rule.max_nmse {
                return Ok(Some(measured));
            }
            least = Some(
                least
                    .filter(|least| least.nmse() <= loss.nmse())
                    .unwrap_or(loss),
            );
        }
        let least = least.expect("types is not empty");
        refused.lossy.push((name.into(), least.nmse()));
        refused.loss = refused.loss + least;
        refused.types = types.into();
        Ok(None)
    }

    fn measure(
        &self,
        linear: Linear,
        name: &str,
        ternary: &Ternary,
        importance: &[f32],
        ty: BlockType,
    ) -> Result<Measured, PackError> {
        let config = &self.checkpoint.config;
        let (rows, columns) = linear.shape(config);
        let row_bytes = ty
            .row_bytes(columns)
            .expect("the caller chose a type that fits");
        let facts = (0..rows)
            .into_par_iter()
            .map_init(
                || (Row::default(), vec![0; row_bytes]),
                |(row, bytes), index| {
                    let index = linear.checkpoint_row(index, config);
                    ternary
                        .split(index, row)
                        .map_err(|_| self.not_finite_part(linear, index))?;
                    let loss =
                        encode(ty, row, importance, bytes).map_err(|ScaleRange { scale }| {
                            PackError::ScaleRange {
                                tensor: name.into(),
                                row: index,
                                scale,
                            }
                        })?;
                    let dead = row.codes.iter().filter(|&&code| code == 0).count() as u64;
                    Ok(RowFacts {
                        loss,
                        bias: row.bias,
                        dead,
                    })
                },
            )
            .collect::<Result<_, PackError>>()?;
        Ok(Measured { ty, rows: facts })
    }

    fn note(&mut self, name: &str, measured: &Measured, weights: u64, bytes: u64) {
        let summary = &mut self.summary;
        let loss = measured.loss();
        summary.ternary_weights += weights;
        summary.ternary_bytes += bytes;
        summary.dead_weights += measured.rows.iter().map(|row| row.dead).sum::<u64>();
        summary.largest_bias = measured
            .rows
            .iter()
            .map(|row| row.bias.abs())
            .fold(summary.largest_bias, f64::max);
        summary.loss = summary.loss + loss;
        *summary.linears.entry(measured.ty).or_default() += 1;
        if summary
            .worst
            .as_ref()
            .is_none_or(|(_, worst)| loss.nmse() > *worst)
        {
            summary.worst = Some((name.into(), loss.nmse()));
        }
    }

    fn finish(mut self) -> Result<Plan<'a>, PackError> {
        if self.options.rule.target == Target::Ollama
            && let Some(item) = self.items.iter().find(|item| !ollama_reads(item.info.ty))
        {
            return Err(PackError::Ollama {
                tensor: item.info.name.clone(),
                ty: item.info.ty,
            });
        }
        let metadata = self.metadata()?;
        let infos: Vec<_> = self.items.iter().map(|item| item.info.clone()).collect();
        let layout = Layout::new(&metadata, &infos)?;
        self.summary.bytes = layout.size;
        Ok(Plan {
            checkpoint: self.checkpoint,
            metadata,
            items: self.items,
            layout,
            summary: self.summary,
        })
    }

    fn metadata(&self) -> Result<Vec<(String, Value)>, PackError> {
        let text = |text: &str| Value::String(text.into());
        let weights = self
            .items
            .iter()
            .map(|item| item.info.shape.iter().product::<u64>())
            .sum();
        let mut keys = vec![
            ("general.architecture".into(), text("llama")),
            ("general.type".into(), text("model")),
            (
                "general.size_label".into(),
                Value::String(size_label(weights)),
            ),
            (
                "general.file_type".into(),
                Value::U32(file_type(self.summary.main_type())),
            ),
            ("general.quantization_version".into(), Value::U32(2)), // GGML_QNT_VERSION
        ];
        if let Some(name) = &self.options.name {
            keys.insert(2, ("general.name".into(), text(name)));
        }
        keys.extend(model_metadata(&self.checkpoint.config));
        keys.extend(self.options.tokenizer.iter().cloned());
        keys.extend(self.provenance());
        for (key, text) in &self.options.metadata {
            set_key(&mut keys, key, text)?;
        }
        Ok(keys)
    }

    /// What was packed, and how: keys that engines pass over.
    fn provenance(&self) -> Vec<(String, Value)> {
        let training = &self.checkpoint.training;
        let (granularity, group_size) = match training.granularity {
            Granularity::Group(size) => ("per_group", Some(size)),
            Granularity::Channel => ("per_channel", None),
            Granularity::Tensor => ("per_tensor", None),
        };
        let mut keys = vec![
            (
                "tqconv.version",
                Value::String(env!("CARGO_PKG_VERSION").into()),
            ),
            (
                "tqconv.quant_method",
                Value::String(training.lambda.method().into()),
            ),
            ("tqconv.granularity", Value::String(granularity.into())),
        ];
        if let Some(size) = group_size {
            keys.push(("tqconv.group_size", Value::U64(size as u64)));
        }
        let first = Linear {
            layer: 0,
            part: Part::Q,
        };
        if let Some(lambda) = training
            .lambda
            .fixed(self.checkpoint.linear(first).weight.dtype)
        {
            keys.push(("tqconv.lambda", Value::F32(lambda)));
        }
        keys.push(("tqconv.weight_nmse", Value::F64(self.summary.loss.nmse())));
        if !self.options.hashes.is_empty() {
            let (files, hashes) = self.options.hashes.iter().cloned().unzip();
            keys.push((
                "tqconv.source.files",
                Value::Array(formats::gguf::Array::String(files)),
            ));
            keys.push((
                "tqconv.source.sha256",
                Value::Array(formats::gguf::Array::String(hashes)),
            ));
        }
        keys.into_iter()
            .map(|(key, value)| (key.into(), value))
            .collect()
    }

    fn tensor(&self, name: &str) -> Tensor<'a> {
        self.checkpoint
            .tensors
            .get(name)
            .expect("Checkpoint::open found every tensor")
    }

    /// The tensor of a linear that holds what is not finite in `row`: lambda or bias, as the weights were checked before.
    fn not_finite_part(&self, linear: Linear, row: usize) -> PackError {
        let latent = self.checkpoint.linear(linear);
        let parts = [("Lambada", latent.lambada), ("bias", latent.bias)];
        let first_in = |tensor: Tensor| {
            let width = tensor.len() / tensor.shape[0];
            let mut numbers = vec![0.0; width];
            tensor.read_f32(row * width, &mut numbers);
            check_finite(&numbers).err().map(|found| NotFinite {
                index: row * width + found.index,
            })
        };
        let found = parts
            .iter()
            .find_map(|(suffix, tensor)| Some((*suffix, first_in((*tensor)?)?)));
        let (suffix, found) = found.unwrap_or(("weight", NotFinite { index: row }));
        self.not_finite(&format!("{}.{suffix}", linear.checkpoint_name()), found)
    }

    fn not_finite(&self, name: &str, found: NotFinite) -> PackError {
        let tensor = self.tensor(name);
        let columns = if tensor.shape.len() == 2 {
            tensor.shape[1]
        } else {
            tensor.len()
        };
        let mut value = [0.0];
        tensor.read_f32(found.index, &mut value);
        PackError::NotFinite {
            path: self.checkpoint.tensors.file_of(name).into(),
            tensor: name.into(),
            row: found.index / columns,
            column: found.index % columns,
            value: value[0],
        }
    }
}

/// How much the error of each column counts when scales are merged: the square of the preceding norm's weight, where
/// there is one. (columns,)
pub(super) fn importance(checkpoint: &Checkpoint, linear: Linear) -> Vec<f32> {
    let (_, columns) = linear.shape(&checkpoint.config);
    let mut importance = vec![1.0; columns];
    if let Some(norm) = linear
        .preceding_norm()
        .and_then(|norm| checkpoint.tensors.get(&norm))
    {
        norm.read_f32(0, &mut importance);
        importance.iter_mut().for_each(|weight| *weight *= *weight);
    }
    importance
}

/// The block type that holds a dtype's numbers as they are.
fn stored_as(dtype: Dtype) -> BlockType {
    match dtype {
        Dtype::F16 => BlockType::F16,
        Dtype::BF16 => BlockType::BF16,
        Dtype::F32 | Dtype::Other(_) => BlockType::F32,
    }
}

/// Give `key` the value written as `text`, in the type that the key has; a new key is a string.
fn set_key(keys: &mut Vec<(String, Value)>, key: &str, text: &str) -> Result<(), PackError> {
    let wrong = |expected: &'static str| PackError::Metadata {
        key: key.into(),
        text: text.into(),
        expected,
    };
    if key.is_empty() || matches!(key, "general.architecture" | "general.alignment") {
        return Err(wrong("another key: this one decides how the file is read"));
    }
    let Some((_, value)) = keys.iter_mut().find(|(name, _)| name == key) else {
        keys.push((key.into(), Value::String(text.into())));
        return Ok(());
    };
    *value = match value {
        Value::String(_) => Value::String(text.into()),
        Value::U32(_) => Value::U32(text.parse().map_err(|_| wrong("a whole number"))?),
        Value::F32(_) => Value::F32(text.parse().map_err(|_| wrong("a number"))?),
        Value::Bool(_) => Value::Bool(text.parse().map_err(|_| wrong("true or false"))?),
        _ => {
            return Err(wrong(
                "a key whose value is text, a number or true or false",
            ));
        }
    };
    Ok(())
}

/// `llama_ftype` of include/llama.h: shown to people, decides nothing.
fn file_type(ty: BlockType) -> u32 {
    match ty {
        BlockType::F16 => 1,
        BlockType::Q4_0 => 2,
        BlockType::Q8_0 => 7,
        BlockType::Q2_K => 10,
        BlockType::BF16 => 32,
        BlockType::TQ1_0 => 36,
        BlockType::TQ2_0 => 37,
        BlockType::Q2_0 => 41,
        _ => 0,
    }
}

/// The number of weights as in model names: `3.7M`, `1.2B`, `70B`.
fn size_label(weights: u64) -> String {
    let (value, unit) = match weights {
        0..1_000_000 => (weights as f64 / 1e3, "K"),
        1_000_000..1_000_000_000 => (weights as f64 / 1e6, "M"),
        _ => (weights as f64 / 1e9, "B"),
    };
    if value < 10.0 {
        format!("{value:.1}{unit}")
    } else {
        format!("{value:.0}{unit}")
    }
}
