//! How much of a measurement is done.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{ChooseError, Progress};
use crate::pack::PackError;

/// How much there is to do, and how much is done, in any unit.
pub struct Work<'a> {
    progress: &'a Progress<'a>,
    doing: String,
    total: u64,
    done: AtomicU64,
}

impl<'a> Work<'a> {
    pub fn new(progress: &'a Progress<'a>, doing: String, total: u64) -> Self {
        let done = AtomicU64::new(0);
        Self {
            progress,
            doing,
            total: total.max(1),
            done,
        }
    }

    /// So many more units are done.
    ///
    /// # Errors
    /// It was interrupted.
    pub fn advance(&self, units: u64) -> Result<(), ChooseError> {
        let done = self.done.fetch_add(units, Ordering::Relaxed) + units;
        let share = done as f64 / self.total as f64;
        match (self.progress)(&self.doing, share.min(1.0)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(PackError::Interrupted.into()),
        }
    }
}
