//! The integration tests, one binary, so that llama.cpp is linked once.

#[cfg(feature = "llama")]
mod dots;
