//! The one integration test binary: llama.cpp is linked once.

#[cfg(feature = "llama")]
mod conformance;
