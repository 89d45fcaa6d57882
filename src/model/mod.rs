//! A Hugging Face Llama directory, and what GGUF calls its parts: shapes, names, row order, metadata, tokenizer.

mod checkpoint;
mod config;
mod error;
mod families;
mod metadata;
mod names;
mod schemes;
mod source;
mod tensors;
pub mod tokenizer;
mod unwrap;
mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Architecture, Config, ConfigFile, Rope, RopeScaling};
pub use error::ModelError;
pub use families::check_latent;
pub use metadata::model_metadata;
pub use names::{EMBEDDING, FINAL_NORM, HEAD, Linear, Part, attention_norm, feed_forward_norm};
#[cfg(test)]
pub use schemes::MadeUp;
pub use schemes::{Granularity, LAMBADA, Lambda, Scheme, Tequila, TrainingOverrides};
pub use source::Source;
pub use tensors::{Stored, Tensors};
