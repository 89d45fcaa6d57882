//! A whole file on all of the text.

use formats::block::BlockType;
use rayon::prelude::*;

use super::backend::Backend;
use super::model::{Model, Types};
use super::passes::Passes;
use super::work::Work;
use super::{ChooseError, Progress};
use crate::engine::text::{Window, Windows};
use crate::kernels::ActivationScales;
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
        whole.reference = whole.states(Types::All(BlockType::F32), ActivationScales::LlamaCpp, doing)?;
        Ok(whole)
    }

    /// The mean KLD of the file with these types, in nats a token, on each backend.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn kld(&mut self, types: &[BlockType]) -> Result<Vec<f64>, ChooseError> {
        self.count += 1;
        let mut found: Vec<f64> = vec![];
        for (index, &backend) in self.backends.iter().enumerate() {
            let scales = backend.scales();
            let alike = |other: &Backend| self.round_alike(types, scales, other.scales());
            let kld = match self.backends[..index].iter().position(alike) {
                Some(other) => found[other],
                None => self.kld_on(types, backend)?,
            };
            found.push(kld);
        }
        Ok(found)
    }

    /// Whether all linears of a file multiply the same activations.
    fn round_alike(&self, types: &[BlockType], a: ActivationScales, b: ActivationScales) -> bool {
        let mut linears = self.model.choices.iter().zip(types);
        linears.all(|(choice, &ty)| a.grouping(ty, choice.shape.1) == b.grouping(ty, choice.shape.1))
    }

    fn kld_on(&self, types: &[BlockType], backend: Backend) -> Result<f64, ChooseError> {
        let (tokens, count) = (self.text.predictions(), self.count);
        let doing = format!("whole file {count} as on {}, on {tokens} tokens", backend.name());
        let states = self.states(Types::Each(types), backend.scales(), doing)?;
        let kld: Vec<_> = self
            .reference
            .par_iter()
            .zip(&states)
            .map(|(x, y)| self.klds(x, y))
            .collect();
        Ok(metrics::mean(&kld.concat()))
    }

    /// The KLD of each token of a window, whose states behind the last layer are `reference` and `tested`.
    fn klds(&self, reference: &[f32], tested: &[f32]) -> Vec<f64> {
        let (ends, dims) = (&self.model.ends, &self.model.hyper.dims);
        let part = LOGITS * dims.hidden;
        let kld = reference
            .chunks(part)
            .zip(tested.chunks(part))
            .flat_map(|(reference, tested)| {
                let expected = self.passes.with(|pass| pass.exact_logits(ends, reference));
                let found = self.passes.with(|pass| pass.logits(ends, tested));
                let expected = Predictions::new(&expected, dims.vocab);
                expected.kld(&Predictions::new(&found, dims.vocab))
            });
        kld.collect()
    }

    /// The states behind the last layer, of each window.
    fn states(&self, types: Types, scales: ActivationScales, doing: String) -> Result<Vec<Vec<f32>>, ChooseError> {
        let layers = self.model.hyper.dims.layers;
        let work = Work::new(self.progress, doing, layers as u64);
        let embed = |window: &Window| self.passes.with(|pass| pass.embed(&self.model.ends, &window.tokens));
        let mut states: Vec<_> = self.text.windows.iter().map(embed).collect();
        for index in 0..layers {
            let layer = self.model.layer(index, types, scales)?;
            let run = |x: &mut Vec<f32>| self.passes.with(|pass| pass.layer(&layer, x));
            states.par_iter_mut().for_each(run);
            work.advance(1)?;
        }
        Ok(states)
    }
}
