//! How much there is to do at level 4, and how much is done.

use std::cell::Cell;

use super::super::Progress;
use crate::engine::hyper::Hyper;
use crate::engine::text::Windows;

/// How much there is to do, in tokens through one layer in f32.
pub struct Work<'a> {
    progress: &'a Progress<'a>,
    pub hyper: &'a Hyper,
    /// Layers that the head is worth.
    pub head: f64,
    /// Passes in f32 that all reference passes are worth.
    pub passes: f64,
    total: f64,
    done: Cell<f64>,
}

impl<'a> Work<'a> {
    /// What an engine takes, in passes in f32.
    pub const ENGINE: f64 = 0.5;

    /// `passes`: those in f32 that all reference passes are worth; `engines`: how many there are.
    pub fn new(progress: &'a Progress<'a>, hyper: &'a Hyper, text: &Windows, passes: f64, engines: usize) -> Self {
        let kinds = 2 * (hyper.dims.q_width() + hyper.dims.kv_width()) + 3 * hyper.dims.intermediate;
        let head = hyper.dims.vocab as f64 / kinds as f64; // columns or rows beside the residual stream
        let mut work = Self {
            progress,
            hyper,
            head,
            passes,
            total: 0.0,
            done: Cell::new(0.0),
        };
        work.total = text.predictions() as f64 * work.model() * (passes + Self::ENGINE * engines as f64);
        work
    }

    /// Layers that the model is worth.
    pub fn model(&self) -> f64 {
        self.hyper.dims.layers as f64 + self.head
    }

    /// `units` more are done; from here on it is `doing`.
    pub fn advance(&self, doing: &str, units: f64) {
        self.done.set(self.done.get() + units);
        (self.progress)(&format!("logits: {doing}"), Some(self.done.get() / self.total));
    }
}
