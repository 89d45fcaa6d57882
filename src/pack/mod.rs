//! From a checkpoint, or from a GGUF file whose weights are ternary already, to a GGUF file: decide, then read, pack and
//! write in one pass.
//!
//! [`Plan::new`] and [`Plan::of_gguf`] decide all that the weights have no say in, and refuse what cannot be written as
//! asked; [`Plan::run`] reads all weights once, and writes. What a linear becomes is guessed from some of its rows before the
//! pass, and proven on all of them by it: a file takes its name only when every guess was right.

mod biases;
mod choice;
mod encode;
mod error;
mod graph;
mod hash;
mod latent;
mod layout;
mod metadata;
mod naming;
mod numbers;
mod options;
mod origin;
mod pass;
mod plan;
mod rounded;
mod row;
mod rule;
mod run;
mod scaled;
mod schemes;
mod source;
mod ternary;

use std::ops::ControlFlow;

pub use biases::DroppedBiases;
pub use choice::Choice;
pub use encode::Loss;
pub use error::PackError;
pub use graph::{model_metadata, rope_factors};
pub use layout::paths;
pub use options::Options;
pub use origin::Origin;
pub use plan::Plan;
pub use rule::{Embedding, Larger, PACKABLE, Rule, TABLES, TERNARY_TABLES, Target};
pub use run::{Item, Output, Packed, Summary};

/// Told how many bytes of weights have been worked through since it was last told; says whether to go on.
pub type Progress<'a> = dyn Fn(u64) -> ControlFlow<()> + Sync + 'a;
