//! safetensors files and their shard index.
