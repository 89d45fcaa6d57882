//! What the input was, for provenance: the digest that a download page shows for each file.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::PackError;
use super::origin::Origin;

/// Hexadecimal digits of a sha256.
pub const DIGITS: usize = 64;

/// The sha256 of every file of weights, as long as `go_on` says so.
///
/// # Errors
/// A file that cannot be read, or that it was not to go on.
pub fn source_hashes(origin: Origin, go_on: impl Fn() -> bool + Sync) -> Result<Vec<String>, PackError> {
    const PIECE: usize = 1 << 20;
    let digest = |path: &Path, length: usize| {
        let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
        for start in (0..length).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(length - start)];
            origin
                .read_file(path, start as u64, piece)
                .map_err(|source| PackError::read(path, source))?;
            hasher.update(piece);
            if !go_on() {
                return Err(PackError::Interrupted);
            }
        }
        let digits = hasher.finalize();
        Ok(digits.iter().map(|byte| format!("{byte:02x}")).collect())
    };
    let files = origin.files();
    files
        .into_par_iter()
        .map(|(path, length)| digest(path, length))
        .collect()
}
