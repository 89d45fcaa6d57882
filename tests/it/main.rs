//! Tests that need more than one room, llama.cpp, or data that is not in the repository: one binary, so that llama.cpp
//! is linked once.

#[cfg(feature = "llama")]
mod conformance;
mod data;
mod decoders;
mod diff;
#[cfg(feature = "llama")]
mod dots;
mod engine;
mod families;
mod hostile;
mod library;
mod limits;
mod max_kld;
mod pack;
#[cfg(feature = "llama")]
mod pack_experts;
mod pack_four_levels;
mod pack_gguf;
mod pack_speed;
mod people;
mod promise;
mod readings;
mod run;
mod stored;
mod texts;
mod tokenizer;
mod verify;
mod verify_gguf;
#[cfg(feature = "llama")]
mod witness;
