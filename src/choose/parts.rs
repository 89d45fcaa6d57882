//! What each type costs each linear alone: one linear in one type, all others as in the reference.
//!
//! All layers are gone through once. The states of the reference, and those of every linear that was changed so far, go
//! through the layer in F32; beside them start those of this layer's linears, from the reference's. So every layer is made
//! once, and only one at a time is in memory.

use std::sync::Arc;

use formats::block::BlockType;
use rayon::prelude::*;

use super::backend::Backend;
use super::model::{Model, Types};
use super::passes::Passes;
use super::work::Work;
use super::{ChooseError, Progress, Tried};
use crate::blueprint::{Linear, Part};
use crate::engine::EngineError;
use crate::engine::native::Layer;
use crate::engine::text::{Window, Windows};
use crate::kernels::Options;
use crate::metrics::Predictions;
use crate::pack::Choice;
use crate::system::available_memory;

/// Multiplications that may be spent, as long as [`LEAST_TOKENS`] are measured: about a minute on two cores.
const MULTIPLICATIONS: u64 = 3_000_000_000_000;
const LEAST_TOKENS: u64 = 64;
const MOST_TOKENS: u64 = 512;
/// Tokens whose logits are held at a time.
const LOGITS: usize = 64;

/// What was measured.
pub struct Parts {
    /// Of each choice.
    pub tried: Vec<Vec<Tried>>,
    /// Tokens that it was measured on.
    pub tokens: usize,
}

/// A linear in one of its types.
#[derive(Clone, Copy)]
struct Change {
    linear: Linear,
    choice: usize,
    /// Which of those that are tried.
    index: usize,
    ty: BlockType,
}

/// The states of a window: (tokens, hidden).
struct States {
    window: usize,
    /// None in the reference.
    change: Option<Change>,
    x: Vec<f32>,
}

/// Measure all choices of `model`, as on `backend`.
///
/// # Errors
/// Weights that cannot be read; too little memory; an interruption.
pub fn measure(model: &Model, text: &Windows, backend: Backend, progress: &Progress) -> Result<Parts, ChooseError> {
    let mut tried: Vec<_> = model
        .choices
        .iter()
        .map(|choice| worth_trying(choice, backend.options(model.isa)))
        .collect();
    let changes = changes(model, &tried);
    if changes.is_empty() {
        return Ok(Parts { tried, tokens: 0 });
    }
    let windows = windows(text, MULTIPLICATIONS / multiplications(model, &changes));
    let tokens: usize = windows.iter().map(|window| window.len()).sum();
    check_memory(model, changes.len(), tokens)?;
    let work = Work::new(
        progress,
        format!("each linear alone, on {tokens} tokens"),
        tokens as u64 * multiplications(model, &changes),
    );
    let sweep = Sweep {
        model,
        backend,
        windows: &windows,
        changes: &changes,
        work: &work,
        passes: Passes::new(model, text.window, 1),
    };
    let states = sweep.layers()?;
    let sums = sweep.head(&states)?;
    for (states, sum) in states.iter().zip(sums) {
        if let Some(Change { choice, index, .. }) = states.change {
            *tried[choice][index].kld.get_or_insert(0.0) += sum / tokens as f64;
        }
    }
    Ok(Parts { tried, tokens })
}

/// The types of a linear without those that a smaller one equals or betters: one that loses nothing, and multiplies
/// activations with a scale for as few. (Q8_0 holds codes and scales as Q4_0 does.)
fn worth_trying(choice: &Choice, options: Options) -> Vec<Tried> {
    let (rows, columns) = choice.shape;
    let mut tried: Vec<Tried> = vec![];
    let mut finest = usize::MAX;
    for &(ty, loss) in &choice.types {
        let group = options.grouping(ty, columns).group();
        let has_q4_0 = tried.iter().any(|tried| tried.ty == BlockType::Q4_0);
        if finest <= group || (ty == BlockType::Q8_0 && has_q4_0) {
            continue;
        }
        if loss.error == 0.0 {
            finest = group;
        }
        tried.push(Tried {
            ty,
            bytes: rows as u64 * ty.row_bytes(columns).expect("the plan checked the width") as u64,
            kld: None,
        });
    }
    tried
}

/// What has to be measured, layer by layer: types that round activations to 8 bits, of linears that have a choice.
fn changes(model: &Model, tried: &[Vec<Tried>]) -> Vec<Change> {
    let is_rounded = |ty| !matches!(ty, BlockType::F16 | BlockType::BF16 | BlockType::F32);
    let of_linear = |linear| {
        let choice = model.choice(linear)?;
        let types = tried[choice].iter().map(|tried| tried.ty).enumerate();
        let types = types.filter(move |(_, ty)| tried[choice].len() > 1 && is_rounded(*ty));
        Some(types.map(move |(index, ty)| Change {
            linear,
            choice,
            index,
            ty,
        }))
    };
    Linear::all(&model.hyper.dims).filter_map(of_linear).flatten().collect()
}

fn weights_of_layer(model: &Model) -> u64 {
    let shapes = Part::ALL.into_iter().map(|part| part.shape(&model.hyper.dims));
    shapes.map(|(rows, columns)| (rows * columns) as u64).sum()
}

fn weights_of_head(model: &Model) -> u64 {
    (model.hyper.dims.vocab * model.hyper.dims.hidden) as u64
}

/// Multiplications for each token.
fn multiplications(model: &Model, changes: &[Change]) -> u64 {
    let layers = model.hyper.dims.layers;
    let from = |layer| (layers - layer) as u64 * weights_of_layer(model) + weights_of_head(model);
    let changed = changes.iter().map(|change| from(change.linear.layer));
    from(0) + changed.sum::<u64>()
}

/// About so many tokens of the text, the first of each window: on many networks a window's first token decides how coarsely
/// the activations of all are rounded.
fn windows(text: &Windows, tokens: u64) -> Vec<&[u32]> {
    let (tokens, all) = (tokens.clamp(LEAST_TOKENS, MOST_TOKENS) as usize, text.predictions());
    let some = |window: &Window| (window.tokens.len() * tokens.min(all)).div_ceil(all);
    text.windows
        .iter()
        .map(|window| &window.tokens[..some(window)])
        .collect()
}

/// States, a layer in F32 and what it is made from, its changed linears, and logits.
fn check_memory(model: &Model, changes: usize, tokens: usize) -> Result<(), ChooseError> {
    let dims = &model.hyper.dims;
    let states = ((1 + changes) * tokens * dims.hidden * 4) as u64;
    let layer = weights_of_layer(model) * (4 + 4 + 4);
    let logits = (LOGITS * dims.vocab * 4 * (1 + rayon::current_num_threads())) as u64;
    let (needed, available) = (states + layer + logits, available_memory());
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    match needed <= available {
        true => Ok(()),
        false => Err(ChooseError::Memory {
            needed: gigabytes(needed),
            available: gigabytes(available),
        }),
    }
}

struct Sweep<'m, 'p, 'a> {
    model: &'m Model<'p, 'a>,
    backend: Backend,
    windows: &'m [&'m [u32]],
    changes: &'m [Change],
    work: &'m Work<'m>,
    passes: Passes<'m>,
}

impl Sweep<'_, '_, '_> {
    /// The states behind the last layer: first those of the reference, a window each.
    fn layers(&self) -> Result<Vec<States>, ChooseError> {
        let model = self.model;
        let embed = |(window, tokens): (usize, &&[u32])| {
            let x = self.passes.with(|pass| pass.embed(&model.ends, tokens))?;
            let change = None;
            Ok(States { window, change, x })
        };
        let states: Result<Vec<_>, EngineError> = self.windows.iter().enumerate().map(embed).collect();
        let mut states = states?;
        for index in 0..model.hyper.dims.layers {
            let exact = model.layer(index, Types::All(BlockType::F32), Backend::NATIVE)?;
            let changed = self.changed(index, &exact)?;
            let mut new: Vec<_> = changed
                .iter()
                .flat_map(|changed| states[..self.windows.len()].iter().map(move |states| (changed, states)))
                .map(|((change, layer), &States { window, ref x, .. })| {
                    let (change, x) = (Some(*change), x.clone());
                    (layer, States { window, change, x })
                })
                .collect();
            let old = states.iter_mut().map(|states| (&exact, states));
            let all: Vec<_> = old
                .chain(new.iter_mut().map(|(layer, states)| (*layer, states)))
                .collect();
            all.into_par_iter().try_for_each(|(layer, states)| {
                self.passes.with(|pass| pass.layer(layer, &mut states.x))?;
                let tokens = self.windows[states.window].len() as u64;
                self.work.advance(tokens * weights_of_layer(model))
            })?;
            states.extend(new.into_iter().map(|(_, states)| states));
        }
        Ok(states)
    }

    /// A layer with each of its changes.
    fn changed(&self, index: usize, exact: &Layer) -> Result<Vec<(Change, Layer)>, ChooseError> {
        let of_layer = self.changes.iter().filter(|change| change.linear.layer == index);
        let changed = of_layer.map(|change| {
            let matrix = self.model.matrix(change.choice, change.ty, self.backend)?;
            let place = Part::ALL.iter().position(|part| *part == change.linear.part);
            let mut layer = exact.clone();
            layer.linears_mut()[place.expect("one of all")].matrix = Arc::new(matrix);
            Ok((*change, layer))
        });
        changed.collect()
    }

    /// The KLD of all states from those of the reference, added up over their tokens. The head rounds activations for both:
    /// what that costs says nothing of a part.
    fn head(&self, states: &[States]) -> Result<Vec<f64>, ChooseError> {
        let (ends, dims) = (&self.model.ends, &self.model.hyper.dims);
        let mut sums = vec![0.0; states.len()];
        for reference in &states[..self.windows.len()] {
            for (part, x) in reference.x.chunks(LOGITS * dims.hidden).enumerate() {
                let expected = self.passes.with(|pass| pass.logits(ends, x))?;
                let expected = Predictions::new(&expected, dims.vocab);
                let start = part * LOGITS * dims.hidden;
                let of_window = states.par_iter().zip(&mut sums);
                let of_window = of_window.filter(|(states, _)| states.window == reference.window);
                of_window.try_for_each(|(states, sum)| {
                    let found = self
                        .passes
                        .with(|pass| pass.logits(ends, &states.x[start..][..x.len()]))?;
                    *sum += expected.kld(&Predictions::new(&found, dims.vocab)).iter().sum::<f64>();
                    let tokens = (x.len() / dims.hidden) as u64;
                    self.work.advance(tokens * weights_of_head(self.model))
                })?;
            }
        }
        Ok(sums)
    }
}
