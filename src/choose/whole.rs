//! A whole file on all of the text.

use formats::block::BlockType;

use super::backend::Backend;
use super::model::{Model, Types};
use super::work::Work;
use super::{ChooseError, Progress};
use crate::engine::native::Pass;
use crate::engine::text::Windows;
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
    pass: Pass,
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
        let threads = rayon::current_num_threads();
        let mut whole = Self {
            pass: Pass::new(model.hyper.clone(), 1, text.window, model.isa, threads),
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

    fn kld_on(&mut self, types: &[BlockType], backend: Backend) -> Result<f64, ChooseError> {
        let (tokens, count) = (self.text.predictions(), self.count);
        let doing = format!("whole file {count} as on {}, on {tokens} tokens", backend.name());
        let states = self.states(Types::Each(types), backend.scales(), doing)?;
        let (ends, dims) = (&self.model.ends, &self.model.hyper.dims);
        let mut kld = vec![];
        for (reference, states) in self.reference.iter().zip(&states) {
            let parts = reference
                .chunks(LOGITS * dims.hidden)
                .zip(states.chunks(LOGITS * dims.hidden));
            for (reference, states) in parts {
                let expected = self.pass.logits(ends, reference);
                let found = self.pass.logits(ends, states);
                let expected = Predictions::new(&expected, dims.vocab);
                kld.extend(expected.kld(&Predictions::new(&found, dims.vocab)));
            }
        }
        Ok(metrics::mean(&kld))
    }

    /// The states behind the last layer, of each window.
    fn states(&mut self, types: Types, scales: ActivationScales, doing: String) -> Result<Vec<Vec<f32>>, ChooseError> {
        let layers = self.model.hyper.dims.layers;
        let work = Work::new(self.progress, doing, layers as u64);
        let windows = self.text.windows.iter();
        let mut states: Vec<_> = windows
            .map(|window| self.pass.embed(&self.model.ends, &window.tokens))
            .collect();
        for index in 0..layers {
            let layer = self.model.layer(index, types, scales)?;
            for x in &mut states {
                self.pass.layer(&layer, x);
            }
            work.advance(1)?;
        }
        Ok(states)
    }
}
