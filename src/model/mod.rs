//! A Hugging Face Llama directory, and what GGUF calls its parts: shapes, names, row order, metadata, tokenizer.

mod checkpoint;
mod config;
mod error;
mod families;
mod metadata;
mod names;
mod source;
mod tensors;
pub mod tokenizer;
mod unwrap;
mod weights;

pub use checkpoint::{Checkpoint, LatentLinear};
pub use config::{Architecture, Config, ConfigFile, LambdaSource, Rope, RopeScaling, Training, TrainingOverrides};
pub use error::ModelError;
pub use families::check_latent;
pub use metadata::model_metadata;
pub use names::{EMBEDDING, FINAL_NORM, HEAD, Linear, Part, attention_norm, feed_forward_norm};
pub use source::Source;
pub use tensors::{Stored, Tensors};
