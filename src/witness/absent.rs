//! What stands in for llama.cpp where it is not built in: nothing to start.

use super::answer::{Output, Refusal};
use super::protocol::{Hello, Work};

/// Whether llama.cpp is built in.
pub(super) const BUILT_IN: bool = false;

/// llama.cpp, of which there is none.
pub(super) enum Library {}

impl Library {
    pub fn open() -> Option<Self> {
        None
    }

    pub fn hello(&self) -> Hello {
        match *self {}
    }

    pub fn answer(&mut self, _: Work, _: Vec<u8>, _: &Output) -> Result<(), Refusal> {
        match *self {}
    }
}
