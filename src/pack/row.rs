//! The rows of a linear to bytes of the file: made ternary by their source, then encoded, with what is found of them.

use formats::block::BlockType;

use super::PackError;
use super::encode::{BlockScratch, Loss, ScaleRange, encode};
use super::numbers::{number_bytes, numbers};
use super::schemes;
use super::source::{Input, TernaryRows};
use super::ternary::{Levels, TernaryRow};
use crate::blueprint::Linear;
use crate::model::Checkpoint;
use crate::simd::{Lanes, Level, Work};

/// A linear to be packed: the source of its rows, and what encoding them takes besides.
pub struct Ternary<'a> {
    /// Of the tensor in the file.
    name: String,
    rows: Box<dyn TernaryRows + 'a>,
    /// The bias that the layer has of its own. (rows,) or none
    bias: Option<Vec<f32>>,
    /// Whether each row has a bias.
    is_biased: bool,
    /// How much the error of each column counts when scales are merged: the square of the preceding norm's weight.
    /// (columns,) or none
    importance: Option<Vec<f32>>,
    columns: usize,
    level: Level,
}

/// What a thread needs to work on rows.
#[derive(Default)]
pub struct Scratch {
    input: Input,
    row: TernaryRow,
    blocks: BlockScratch,
    /// Numbers as they are in a file.
    pub bytes: Vec<u8>,
    /// The same, widened.
    pub numbers: Vec<f32>,
    /// Rows as they are to be written.
    pub out: Vec<u8>,
}

/// What is found of rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// What each type that was tried loses. (types,)
    pub losses: Vec<Loss>,
    /// The offline bias of each row, the layer's own included, in the order of the file, where it has them. (rows,)
    pub biases: Vec<f64>,
    /// Weights in the dead zone.
    pub dead: u64,
    /// Those of them that were chosen among equal ones.
    pub ties: u64,
}

impl Facts {
    /// What is found of these rows and those that follow.
    pub fn merge(mut self, next: Self) -> Self {
        if self.losses.is_empty() {
            return next;
        }
        for (loss, next) in self.losses.iter_mut().zip(next.losses) {
            *loss = *loss + next;
        }
        self.biases.extend(next.biases);
        self.dead += next.dead;
        self.ties += next.ties;
        self
    }

    /// The biases as a file has them.
    pub fn bias_bytes(&self) -> Vec<u8> {
        number_bytes(self.biases.iter().map(|&bias| bias as f32))
    }
}

impl<'a> Ternary<'a> {
    /// Find what the rows of `linear` are made from. Reads the weights only where a scale takes more of them than a
    /// piece holds.
    ///
    /// # Errors
    /// A file that cannot be read, or a number that is not finite.
    pub fn new(checkpoint: &'a Checkpoint, linear: Linear, level: Level) -> Result<Self, PackError> {
        let config = &checkpoint.config;
        let norm = config.architecture.graph.preceding_norm(linear);
        let norm = norm.map(|norm| config.architecture.norm_name(norm));
        let (_, columns) = linear.shape(&config.dims);
        Ok(Self {
            rows: schemes::rows(checkpoint, linear, level)?,
            bias: schemes::own_bias(checkpoint, linear)?,
            is_biased: checkpoint.has_bias(linear),
            importance: norm.map(|norm| importance(checkpoint, &norm)).transpose()?,
            columns,
            level,
            name: format!("{}.weight", linear.gguf_name()),
        })
    }

    /// The tensor `name`, whose rows are `rows` and nothing besides.
    pub fn alone(name: String, columns: usize, rows: impl TernaryRows + 'a, level: Level) -> Self {
        Self {
            name,
            rows: Box::new(rows),
            bias: None,
            is_biased: false,
            importance: None,
            columns,
            level,
        }
    }

    /// Bytes that a row takes in the input.
    pub fn row_bytes(&self) -> usize {
        self.rows.row_bytes()
    }

    /// Find what each of `types` would lose on `rows` of the checkpoint, which are given in the order of the output,
    /// and put them into `scratch.out` as blocks of the last of `types`, if they are to be written.
    ///
    /// # Errors
    /// A file that cannot be read, a number that is not finite, a scale that f16 does not hold.
    pub fn encode(
        &self,
        rows: impl Iterator<Item = usize> + Clone,
        types: &[BlockType],
        write: bool,
        scratch: &mut Scratch,
    ) -> Result<Facts, PackError> {
        let last = types.last().expect("a type to encode");
        let row_bytes = last.row_bytes(self.columns).expect("the plan checked the width");
        let Scratch {
            input,
            row,
            blocks,
            out,
            ..
        } = scratch;
        let (first, end) = rows
            .clone()
            .fold((usize::MAX, 0), |(first, end), row| (first.min(row), end.max(row + 1)));
        self.rows.read(first..end, input)?;
        out.resize(rows.clone().count() * row_bytes, 0);
        let stored_as = self.rows.stored_as();
        let mut facts = Facts {
            losses: vec![Loss::default(); types.len()],
            ..Facts::default()
        };
        for (at, index) in rows.enumerate() {
            (row.levels, row.error) = (Levels::Three, 0.0); // a thread's last row can have been of another matrix
            let dead_zone = self.rows.row(index, input, row)?;
            let mut out = write.then(|| &mut out[at * row_bytes..][..row_bytes]);
            if stored_as == Some(*last)
                && let Some(out) = out.take()
            {
                out.copy_from_slice(input.weights.get(index * row_bytes..(index + 1) * row_bytes));
            }
            let work = EncodeRow {
                row,
                importance: self.importance.as_deref(),
                types,
                blocks,
                out,
                losses: &mut facts.losses,
            };
            self.level.run(work).map_err(|error| PackError::ScaleRange {
                tensor: self.name.clone(),
                row: index,
                scale: error.scale,
            })?;
            facts.dead += dead_zone.weights as u64;
            facts.ties += dead_zone.ties as u64;
            if self.is_biased {
                facts.biases.push(self.bias(index, dead_zone.bias)?);
            }
        }
        for (loss, &ty) in facts.losses.iter_mut().zip(types) {
            if stored_as == Some(ty) {
                loss.error = 0.0;
            }
        }
        Ok(facts)
    }

    /// The bias of row `index`: that of its dead zone and the layer's own.
    fn bias(&self, index: usize, dead_zone: f64) -> Result<f64, PackError> {
        let bias = dead_zone + self.bias.as_ref().map_or(0.0, |own| f64::from(own[index]));
        // It is stored in F32.
        if (bias as f32).is_finite() {
            return Ok(bias);
        }
        Err(PackError::BiasRange {
            tensor: format!("{}.bias", self.name.trim_end_matches(".weight")),
            row: index,
            bias,
        })
    }
}

/// Encode a row as each of `types`, and write it as the last of them where there is `out`.
struct EncodeRow<'t> {
    row: &'t TernaryRow,
    importance: Option<&'t [f32]>,
    types: &'t [BlockType],
    blocks: &'t mut BlockScratch,
    out: Option<&'t mut [u8]>,
    /// What is lost in all rows. (types,)
    losses: &'t mut [Loss],
}

impl Work for EncodeRow<'_> {
    type Output = Result<(), ScaleRange>;

    #[inline(always)]
    fn run(mut self, lanes: impl Lanes) -> Self::Output {
        for (at, (&ty, total)) in self.types.iter().zip(self.losses).enumerate() {
            let out = if at + 1 == self.types.len() {
                self.out.take()
            } else {
                None
            };
            let loss = encode(lanes, ty, self.row, self.importance, self.blocks, out)?;
            *total = *total + loss;
        }
        Ok(())
    }
}

/// The square of a norm's weight, or of all of them made smaller where one square would be infinite: only their ratios
/// count. (columns,)
fn importance(checkpoint: &Checkpoint, norm: &str) -> Result<Vec<f32>, PackError> {
    const SMALLER: f32 = 1.0 / (1u128 << 65) as f32;
    let stored = checkpoint
        .tensors
        .stored(norm)
        .expect("Checkpoint::open found every norm");
    let mut importance = numbers(stored, norm)?;
    if importance.iter().any(|weight| (weight * weight).is_infinite()) {
        importance.iter_mut().for_each(|weight| *weight *= SMALLER);
    }
    importance.iter_mut().for_each(|weight| *weight *= *weight);
    Ok(importance)
}
