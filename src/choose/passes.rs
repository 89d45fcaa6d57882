//! Passes that run at the same time.

use std::sync::Mutex;

use super::model::Model;
use crate::engine::EngineError;
use crate::engine::native::{Cache, CacheTypes, Pass};

/// Passes through one layer at a time, made when they are needed and kept for the next that needs one.
pub struct Passes<'m> {
    spare: Mutex<Vec<Pass>>,
    new: Box<dyn Fn() -> Result<Pass, EngineError> + Sync + 'm>,
}

impl<'m> Passes<'m> {
    /// For texts of up to `context` tokens; `threads`: of each pass.
    pub fn new(model: &'m Model, context: usize, threads: usize) -> Self {
        Self {
            spare: Mutex::default(),
            new: Box::new(move || {
                let cache = Cache::new(CacheTypes::default(), &model.hyper.dims, 1, context)?;
                Ok(Pass::new(model.hyper.clone(), cache, model.isa, threads))
            }),
        }
    }

    /// Do something with one of them.
    ///
    /// # Errors
    /// There is no memory for its cache.
    pub fn with<T>(&self, work: impl FnOnce(&mut Pass) -> T) -> Result<T, EngineError> {
        let spare = || self.spare.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let pass = spare().pop();
        let mut pass = pass.map_or_else(&self.new, Ok)?;
        let done = work(&mut pass);
        spare().push(pass);
        Ok(done)
    }
}
