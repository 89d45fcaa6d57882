//! A Hugging Face directory: what its config.json says, its tensors, and its tokenizer as GGUF has it.

mod checkpoint;
mod config;
mod error;
mod families;
mod json;
mod source;
mod tensors;
pub mod tokenizer;
mod unwrap;
mod weights;

pub use checkpoint::{Checkpoint, LatentLinear};
pub use config::{Config, ConfigFile, LambdaSource, Rope, RopeScaling, Training, TrainingOverrides};
pub use error::ModelError;
pub use families::check_latent;
pub use source::Source;
pub use tensors::{Stored, Tensors};
