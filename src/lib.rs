//! Pack Tequila ternary checkpoints into GGUF files for llama.cpp and Ollama, and prove the result.
//!
//! [`model`] reads a checkpoint, [`pack`] plans and writes a file, [`verify`] proves it, [`engine`] runs it; [`cli`] is the
//! program. What a checkpoint would become:
//!
//! ```
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use tqconv::model::{Checkpoint, Source, TrainingOverrides};
//! use tqconv::pack::{Embedding, Options, Plan, Rule, Target};
//! use tqconv::simd::Level;
//!
//! let source = Source::find(Path::new("fixtures/kjv"), None, None)?;
//! let checkpoint = Checkpoint::open(source, &TrainingOverrides::default())?;
//! let options = Options {
//!     rule: Rule { target: Target::Any, max_nmse: 1e-4, measured: false, ty: None, tensor_types: vec![] },
//!     embedding: Embedding::Keep,
//!     drop_biases: false,
//!     name: None,
//!     organization: None,
//!     card: Default::default(),
//!     metadata: vec![],
//!     hash: false,
//!     split_max_size: None,
//!     level: Level::widest(),
//! };
//! // With an output in place of `None` it is written.
//! let packed = Plan::new(&checkpoint, &options)?.run(vec![], None, &|_| ControlFlow::Continue(()))?;
//! assert_eq!(packed.summary.main_type().name(), "Q2_K");
//! assert_eq!(packed.summary.bits_per_weight(), 2.625);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub mod bench;
pub mod blueprint;
pub mod choose;
pub mod cli;
pub mod engine;
pub mod files;
#[allow(unsafe_code)]
pub mod kernels;
#[allow(unsafe_code)]
pub mod mapped;
pub mod metrics;
pub mod model;
pub mod output;
pub mod pack;
#[allow(unsafe_code)]
pub mod simd;
pub mod system;
pub mod verify;
pub mod witness;
