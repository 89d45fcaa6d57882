//! Five levels of proof.
