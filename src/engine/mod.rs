//! Engines: whatever turns tokens into logits.
