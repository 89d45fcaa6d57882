//! Bytes to values and back: block codecs, GGUF and safetensors. Knows no model and opens no file.
#![doc = ""]
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod block;
mod bytes;
mod error;
pub mod gguf;
pub mod safetensors;

pub use error::FormatError;
