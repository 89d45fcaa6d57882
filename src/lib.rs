//! Pack Tequila ternary checkpoints into GGUF files for llama.cpp and Ollama, and prove the result.
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
