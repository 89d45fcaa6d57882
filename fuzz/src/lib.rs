//! What the fuzz targets share: a bound on memory, and the folder that they write into.
//!
//! Each target is one room's way in. An input is refused with an error or accepted; a panic, a hang, or more memory than
//! [`LIMIT`] is a fault. `scripts/fuzz.sh` runs them all.

use std::alloc::System;
use std::path::Path;
use std::sync::OnceLock;

use cap::Cap;
use tempfile::TempDir;

/// The most memory in bytes that a target may hold: inputs have at most 64 KiB.
pub const LIMIT: usize = 256 << 20;

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, LIMIT);

/// A folder of this process, in memory where the system has such a place.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        match memory.is_dir() {
            true => TempDir::new_in(memory),
            false => TempDir::new(),
        }
        .expect("a folder to write into")
    });
    folder.path()
}

/// `sound` with the changes that `edits` asks for, each in five bytes: two of place, one of kind, two of value.
pub fn edited(sound: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    for &[low, high, kind, a, b] in edits.as_chunks().0 {
        let at = usize::from(u16::from_le_bytes([low, high])).min(bytes.len().saturating_sub(1));
        match kind % 8 {
            _ if bytes.is_empty() => {}
            0 => bytes[at] ^= 1 << (a % 8),
            1 => bytes[at] = a,
            2 if at + 1 < bytes.len() => bytes[at..at + 2].copy_from_slice(&[a, b]),
            3 => bytes.truncate(at),
            4 => bytes.insert(at, a),
            5 => drop(bytes.remove(at)),
            6 => {
                let end = (at + usize::from(b)).min(bytes.len());
                bytes[at..end].fill(a);
            }
            _ => {
                let end = (at + usize::from(a)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
    bytes
}
