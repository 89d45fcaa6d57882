//! llama.cpp as a witness, in a process of its own: this program again, started with a hidden subcommand.
//!
//! llama.cpp may crash, abort, hang or eat memory on a file or a machine; that is a finding, and never the end of what
//! asks it. So this process makes no call into llama.cpp or ggml: everything goes over pipes.
//!
//! ```text
//! Witness --orders--> child: Library (llama.cpp, ggml)
//!         <-answers--        which maps the file by itself
//! ```
//! | file | what lives there |
//! |---|---|
//! | `client`, `size` | what can be asked, and what memory and time it may take |
//! | `protocol` | orders, answers, frames |
//! | `process`, `pipes`, `log` | the parent's end: waiting within limits, threads at the pipes, what the child wrote last |
//! | `error` | what a failure means, and what to try |
//! | `child`, `answer` | the child's end |
//! | `ffi` or `absent` | llama.cpp, or nothing: the one gate of the feature `llama` |

#[cfg_attr(not(feature = "llama"), allow(dead_code))] // which only llama.cpp gives
mod answer;
mod child;
mod client;
mod error;
#[cfg_attr(not(feature = "llama"), path = "absent.rs")]
#[cfg_attr(feature = "llama", allow(unsafe_code))]
mod ffi;
mod log;
mod pipes;
mod process;
mod protocol;
mod size;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::system;

pub use child::serve;
pub use client::{Matrix, Weights, Witness, pieces};
pub use error::{Ending, WitnessError};
pub use protocol::{Piece, Settings};
pub use size::{LONGEST_RUN, ModelSize};

/// Starts the child. No test can have this name, should the program be one that runs tests.
pub const SUBCOMMAND: &str = "llama.cpp-witness";

/// Whether there is a witness to start.
pub const BUILT_IN: bool = ffi::BUILT_IN;

/// For how long a child may give no sign of life; it gives four a second.
const PATIENCE: Duration = Duration::from_secs(20);

/// The program whose child is the witness, and how patient its parent is.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    patience: Duration,
}

impl Program {
    /// The program that is running. It has to serve the subcommand: see [`serve`].
    pub fn this() -> Self {
        Self::at(system::this_program())
    }

    /// A program of the same build.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            patience: PATIENCE,
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// With another time that the child may be silent for; the limits for its work are longer in the same measure.
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}
