//! Block types of ggml: how weights become bytes.
