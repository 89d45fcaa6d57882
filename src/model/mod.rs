//! A Hugging Face Llama directory, and what GGUF calls its parts.
