//! Matrix times activations, from packed weights; chosen by what the CPU can do.

pub mod level;
