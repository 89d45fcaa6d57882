//! What a proof says of files and of the machine: digests, the processor, the time, the command.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::shell;
use crate::kernels::Isa;
use crate::model::{Checkpoint, Gguf};

/// A file and its digest.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct FileDigest {
    /// Without its folder.
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

impl FileDigest {
    fn of(path: &Path) -> anyhow::Result<Self> {
        const PIECE: usize = 1 << 20;
        let place = || path.display().to_string();
        let (mut file, mut hasher) = (File::open(path).with_context(place)?, Sha256::new());
        let (mut piece, mut bytes) = (vec![0; PIECE], 0);
        loop {
            let read = file.read(&mut piece).with_context(place)?;
            if read == 0 {
                break;
            }
            hasher.update(&piece[..read]);
            bytes += read as u64;
        }
        Ok(Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes,
            sha256: hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Those of `paths`, in their order.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of_all<P: AsRef<Path> + Sync>(paths: &[P]) -> anyhow::Result<Vec<Self>> {
        paths.par_iter().map(|path| Self::of(path.as_ref())).collect()
    }
}

/// The files of a checkpoint, each once, in the order of their names.
pub fn files_of_checkpoint(checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let files = checkpoint.files().into_iter().filter(|path| path.is_file());
    files.collect::<BTreeSet<_>>().into_iter().collect()
}

/// The files of a model in GGUF, in their order.
pub fn files_of_gguf(gguf: &Gguf) -> Vec<PathBuf> {
    gguf.files().map(|(path, _)| path.to_owned()).collect()
}

/// What computed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Machine {
    /// The processor, as the system calls it; else its architecture.
    pub cpu: String,
    /// The instructions that our kernels use of it.
    pub instructions: &'static str,
    /// Threads of each engine.
    pub threads: usize,
}

impl Machine {
    /// This one.
    pub fn this() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = info.lines().find_map(|line| line.strip_prefix("model name"));
        let name = name.map(|name| name.trim_start_matches([' ', '\t', ':']).trim());
        Self {
            cpu: name.unwrap_or(std::env::consts::ARCH).into(),
            instructions: Isa::best().name(),
            threads: rayon::current_num_threads(),
        }
    }
}

/// The command that is running, as one would type it.
pub fn command_line() -> String {
    let words = std::env::args_os().skip(1);
    shell::command(std::iter::once("tqconv".into()).chain(words))
}

/// `2026-09-30T12:34:56Z`
pub fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    utc(since.as_secs())
}

/// Of seconds since 1970. The date is Howard Hinnant's `civil_from_days` (chrono-compatible low-level date algorithms).
fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (date, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `date -u -d @N` prints them.
    #[test]
    fn times_are_dates() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_790_771_696, "2026-09-30T12:34:56Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }

    /// As `sha256sum` prints it.
    #[test]
    fn digests_are_sha256_sum_s() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let digest = FileDigest::of(&path).unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((&*digest.name, digest.bytes, &*digest.sha256), ("abc", 3, expected));
    }
}
