//! What the input was, for provenance: the digest that a download page shows for each file.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::Progress;
use crate::model::Tensors;

/// The sha256 of every safetensors file, by file name. `progress` is told the bytes read.
pub fn source_hashes(tensors: &Tensors, progress: &Progress) -> Vec<(String, String)> {
    const PIECE: usize = 1 << 20;
    let files: Vec<_> = tensors.files().collect();
    let digest = |bytes: &[u8]| {
        let mut hasher = Sha256::new();
        for piece in bytes.chunks(PIECE) {
            hasher.update(piece);
            progress(piece.len() as u64);
        }
        hasher
            .finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    let name = |path: &std::path::Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    files
        .into_par_iter()
        .map(|(path, bytes)| (name(path), digest(bytes)))
        .collect()
}
