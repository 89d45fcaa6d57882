//! Tests that need more than one room, llama.cpp, or data that is not in the repository: one binary, so that llama.cpp
//! is linked once. What needs a shell, signals or links runs on Unix alone.

mod card;
#[cfg(feature = "llama")]
mod conformance;
mod data;
mod decoders;
mod diff;
#[cfg(feature = "llama")]
mod dots;
mod engine;
mod families;
#[cfg(unix)]
mod hostile;
#[cfg(not(unix))]
mod hostile {
    #[allow(dead_code)] // which the cases of bad input need
    pub mod input;
}
mod json;
mod library;
#[cfg(unix)]
mod limits;
mod max_kld;
mod pack;
#[cfg(feature = "llama")]
mod pack_experts;
mod pack_four_levels;
mod pack_gguf;
#[cfg(unix)]
mod pack_speed;
#[cfg(unix)]
mod people;
mod promise;
mod readings;
mod run;
mod stored;
mod texts;
mod tokenizer;
mod train;
mod verify;
mod verify_gguf;
#[cfg(feature = "llama")]
mod witness;
