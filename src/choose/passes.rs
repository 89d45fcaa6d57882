//! Passes that run at the same time.

use std::sync::Mutex;

use super::model::Model;
use crate::engine::native::{Cache, CacheTypes, Pass};

/// Passes through one layer at a time, made when they are needed and kept for the next that needs one.
pub struct Passes<'m> {
    spare: Mutex<Vec<Pass>>,
    new: Box<dyn Fn() -> Pass + Sync + 'm>,
}

impl<'m> Passes<'m> {
    /// For texts of up to `context` tokens; `threads`: of each pass.
    pub fn new(model: &'m Model, context: usize, threads: usize) -> Self {
        Self {
            spare: Mutex::default(),
            new: Box::new(move || {
                let cache = Cache::new(CacheTypes::default(), &model.hyper.dims, 1, context);
                Pass::new(model.hyper.clone(), cache, model.isa, threads)
            }),
        }
    }

    /// Do something with one of them.
    pub fn with<T>(&self, work: impl FnOnce(&mut Pass) -> T) -> T {
        let spare = || self.spare.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pass = spare().pop();
        let mut pass = pass.unwrap_or_else(&self.new);
        let done = work(&mut pass);
        spare().push(pass);
        done
    }
}
