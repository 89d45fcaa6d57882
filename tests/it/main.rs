//! Tests that need more than one room, or data that is not in the repository.

mod data;
mod engine;
