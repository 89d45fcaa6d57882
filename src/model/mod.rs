//! A Hugging Face directory: what its config.json says, its tensors, and its tokenizer as GGUF has it.

pub mod card;
mod checkpoint;
mod config;
mod error;
mod families;
mod gguf;
mod json;
mod schemes;
mod source;
mod tensors;
pub mod tokenizer;
mod unwrap;
mod weights;

pub use checkpoint::Checkpoint;
pub use config::{Config, ConfigFile, Rope, RopeScaling};
pub use error::ModelError;
pub use families::recognise;
pub use gguf::{Gguf, is_gguf};
#[cfg(test)]
pub use schemes::MadeUp;
pub use schemes::{
    BitNet, CLIP, Clipped, Direction, Floats, Granularity, LAMBADA, Lambda, Packed, QUAD, Scheme, Sherry, Tequila,
    Trained, TrainingFacts, TrainingOverrides, Twn, WEIGHT_SCALE,
};
pub use source::Source;
pub use tensors::{Blocks, Stored, Tensors};
pub use weights::{Weights, is_three_times, look};
