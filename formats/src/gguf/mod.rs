//! GGUF version 3: header, metadata, tensor infos.
