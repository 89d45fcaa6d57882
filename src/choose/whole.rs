//! A whole file on all of the text.

use formats::block::BlockType;
use rayon::prelude::*;

use super::backend::Backend;
use super::model::{Model, Types};
use super::passes::Passes;
use super::work::Work;
use super::{ChooseError, Progress};
use crate::engine::EngineError;
use crate::engine::text::{Window, Windows};
use crate::metrics::{self, Predictions};

/// Tokens whose logits are held at a time.
const LOGITS: usize = 128;

/// What whole files are measured with.
pub struct Whole<'m, 'p, 'a> {
    model: &'m Model<'p, 'a>,
    text: &'m Windows,
    backends: &'m [Backend],
    progress: &'m Progress<'m>,
    passes: Passes<'m>,
    /// The states of the reference behind the last layer, of each window: (tokens, hidden).
    reference: Vec<Vec<f32>>,
    /// Files that were measured.
    count: usize,
}

impl<'m, 'p, 'a> Whole<'m, 'p, 'a> {
    /// # Errors
    /// Weights that cannot be read; no memory; an interruption.
    pub fn new(
        model: &'m Model<'p, 'a>,
        text: &'m Windows,
        backends: &'m [Backend],
        progress: &'m Progress<'m>,
    ) -> Result<Self, ChooseError> {
        // Windows at the same time, and what threads are left over for each.
        let threads = rayon::current_num_threads() / text.windows.len();
        let mut whole = Self {
            passes: Passes::new(model, text.window, threads.max(1)),
            reference: vec![],
            count: 0,
            model,
            text,
            backends,
            progress,
        };
        let doing = format!("the reference, on {} tokens", text.predictions());
        whole.reference = whole.states(Types::All(BlockType::F32), Backend::NATIVE, doing)?;
        Ok(whole)
    }

    /// The mean KLD of the file with these types, in nats a token, on each backend, up to one where it is over `budget`.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn kld(&mut self, types: &[BlockType], budget: f64) -> Result<Vec<f64>, ChooseError> {
        self.count += 1;
        let (mut found, mut states) = (vec![], vec![]);
        for &backend in self.backends {
            let alike = |(other, _): &(Backend, _)| self.round_alike(types, backend, *other);
            let place = match states.iter().position(alike) {
                Some(place) => place,
                None => {
                    let (tokens, count) = (self.text.predictions(), self.count);
                    let doing = format!("whole file {count} as {}, on {tokens} tokens", backend.place());
                    states.push((backend, self.states(Types::Each(types), backend, doing)?));
                    states.len() - 1
                }
            };
            let kld = self.mean_kld(&states[place].1, backend)?;
            found.push(kld);
            if kld.is_nan() || kld > budget {
                break;
            }
        }
        Ok(found)
    }

    /// Whether all linears of a file multiply the same activations.
    fn round_alike(&self, types: &[BlockType], a: Backend, b: Backend) -> bool {
        let [a, b] = [a, b].map(|backend| backend.options(self.model.isa));
        let mut linears = self.model.choices.iter().zip(types);
        linears.all(|(choice, &ty)| a.grouping(ty, choice.shape.1) == b.grouping(ty, choice.shape.1))
    }

    /// The mean KLD of a file, whose states behind the last layer are `states`, of each window.
    fn mean_kld(&self, states: &[Vec<f32>], backend: Backend) -> Result<f64, EngineError> {
        let windows = self.reference.par_iter().zip(states);
        let kld: Result<Vec<_>, _> = windows.map(|(x, y)| self.klds(x, y, backend)).collect();
        Ok(metrics::mean(&kld?.concat()))
    }

    /// The KLD of each token of a window, whose states behind the last layer are `reference` and `tested`.
    fn klds(&self, reference: &[f32], tested: &[f32], backend: Backend) -> Result<Vec<f64>, EngineError> {
        let (ends, dims) = (&self.model.ends, &self.model.hyper.dims);
        let part = LOGITS * dims.hidden;
        let mut kld = vec![];
        for (reference, tested) in reference.chunks(part).zip(tested.chunks(part)) {
            let expected = self.passes.with(|pass| pass.exact_logits(ends, reference))?;
            let found = self.passes.with(|pass| match backend {
                Backend::Native(_) => pass.exact_logits(ends, tested),
                Backend::Cpu | Backend::Cuda => pass.logits(ends, tested),
            })?;
            let expected = Predictions::new(&expected, dims.vocab);
            kld.extend(expected.kld(&Predictions::new(&found, dims.vocab)));
        }
        Ok(kld)
    }

    /// The states behind the last layer, of each window.
    fn states(&self, types: Types, backend: Backend, doing: String) -> Result<Vec<Vec<f32>>, ChooseError> {
        let layers = self.model.hyper.dims.layers;
        let work = Work::new(self.progress, doing, layers as u64);
        let embed = |window: &Window| self.passes.with(|pass| pass.embed(&self.model.ends, &window.tokens));
        let states: Result<Vec<_>, _> = self.text.windows.iter().map(embed).collect();
        let mut states = states?;
        for index in 0..layers {
            let layer = self.model.layer(index, types, backend)?;
            let run = |x: &mut Vec<f32>| self.passes.with(|pass| pass.layer(&layer, x));
            states.par_iter_mut().try_for_each(run)?;
            work.advance(1)?;
        }
        Ok(states)
    }
}
