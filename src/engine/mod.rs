//! Engines: whatever turns tokens into logits.

pub mod text;
