//! From a checkpoint to a GGUF file: plan every byte, then write.
//!
//! [`Plan::new`] reads all weights once, decides what each tensor becomes and refuses what cannot be written as asked;
//! [`Plan::write`] reads them once more and writes. Both are the same function of a row, [`row::encode`], so that the
//! losses in the plan are those of the file.

mod error;
mod hash;
mod plan;
mod row;
mod rule;
mod write;

pub use error::PackError;
pub use hash::source_hashes;
pub use plan::{Content, Item, Options, Plan, Summary};
pub use row::Loss;
pub use rule::{Embedding, PACKABLE, Rule, Target, ollama_reads};
pub use write::check_output;

/// Told how many bytes of weights have been worked through since it was last told.
pub type Progress<'a> = dyn Fn(u64) + Sync + 'a;
