//! A Hugging Face Llama directory, and what GGUF calls its parts: shapes, names, row order, metadata, tokenizer.

mod checkpoint;
mod config;
mod error;
mod metadata;
mod names;
pub mod tokenizer;

pub use checkpoint::{Checkpoint, LatentLinear, Source, Stored, Tensors};
pub use config::{
    Architecture, Config, ConfigFile, LambdaSource, Rope, RopeScaling, Training, TrainingOverrides,
};
pub use error::ModelError;
pub use metadata::model_metadata;
pub use names::{EMBEDDING, FINAL_NORM, HEAD, Linear, Part, attention_norm, feed_forward_norm};
