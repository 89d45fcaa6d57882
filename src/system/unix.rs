//! Unix: Linux and macOS.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, fallocate, ftruncate, statvfs};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::*;
use signal_hook::iterator::Signals;

use super::{Fault, FileId};

/// What makes a folder and those above it.
pub const MAKE_FOLDER: &str = "mkdir -p";

/// What helps where a process cannot be started.
pub const MORE_PROCESSES: &str = "end other processes, or raise `ulimit -n` and `ulimit -u`";

impl FileId {
    /// # Errors
    /// The system does not say.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    /// # Errors
    /// There is no such file, or the system does not say.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::from(&std::fs::metadata(path)?))
    }
}

impl From<&Metadata> for FileId {
    fn from(metadata: &Metadata) -> Self {
        Self {
            volume: metadata.dev(),
            index: metadata.ino(),
        }
    }
}

/// How many names the file has.
///
/// # Errors
/// The system does not say.
pub fn links(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.nlink())
}

/// Fill `bytes` from `at` on.
///
/// # Errors
/// The file ends before, or cannot be read.
pub fn read_exact_at(file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
    file.read_exact_at(bytes, at)
}

/// Write all of `bytes` from `at` on.
///
/// # Errors
/// They cannot be written.
pub fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    file.write_all_at(bytes, at)
}

/// Open a file of ours to read and write, or make it; what is in it stays. `None` where a link has its name.
///
/// # Errors
/// It cannot be opened.
pub fn open_own(path: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path);
    match opened {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

/// Give the file its length, and blocks of the disk for all of it.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::QuotaExceeded`] where there are not so many.
pub fn reserve(file: &File, size: u64) -> io::Result<()> {
    match retry(|| fallocate(file, FallocateFlags::empty(), 0, size)) {
        // The file system cannot promise blocks: a full disk is then found while writing.
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(retry(|| ftruncate(file, size))?),
        reserved => Ok(reserved?),
    }
}

/// How often a call is made again that a signal has interrupted.
const ATTEMPTS: u32 = 100;

/// Do `call` until no signal interrupts it, for so long as that makes sense: `fallocate` begins anew each time.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..ATTEMPTS {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
    call()
}

/// Wait until the disk has the names in `folder`: a power cut could undo a rename otherwise.
///
/// # Errors
/// The disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let synced = File::open(folder)?.sync_all();
    match synced.as_ref().map_err(Errno::from_io_error) {
        // Not every file system can sync a folder; a folder that may be written and not read is no fault either.
        Err(Some(Errno::INVAL | Errno::OPNOTSUPP | Errno::BADF)) => Ok(()),
        _ => synced,
    }
}

/// Bytes that may be written to the file system of `folder`, where it says.
pub fn free_space(folder: &Path) -> Option<u64> {
    let found = statvfs(folder).ok()?;
    Some(found.f_bavail * found.f_frsize)
}

/// Call `interrupted` each time that the process is asked to end, by a signal that it was not started to ignore.
///
/// # Errors
/// No handler or thread can be had.
pub fn on_interrupt(mut interrupted: impl FnMut() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new(heeded_signals())?;
    let wait = move || signals.forever().for_each(|_| interrupted());
    std::thread::Builder::new().spawn(wait)?;
    Ok(())
}

/// The signals that ask to end, without those that this process was started to ignore (`nohup`).
fn heeded_signals() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    [SIGINT, SIGTERM, SIGHUP]
        .into_iter()
        .filter(|signal| ignored >> (signal - 1) & 1 == 0)
        .collect()
}

/// Leave Ctrl-C to the parent, which gets it, too.
///
/// # Errors
/// No handler can be had.
pub fn leave_interrupts() -> io::Result<()> {
    signal_hook::flag::register(SIGINT, Arc::default())?;
    Ok(())
}

/// Let a write beyond the limit of file sizes be an error (EFBIG): without a handler it ends the process.
///
/// # Errors
/// No handler can be had.
pub fn survive_size_limit() -> io::Result<()> {
    signal_hook::flag::register(SIGXFSZ, Arc::default())?;
    Ok(())
}

/// End with the parent.
///
/// # Errors
/// The system refuses.
pub fn end_with_parent() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

/// Leave no image of the memory behind.
///
/// # Errors
/// The system refuses.
pub fn leave_no_core() -> io::Result<()> {
    limit(Resource::Core, 0)
}

/// Bound the memory that the process may allocate to so many bytes, or to what it was started with.
///
/// # Errors
/// The system refuses.
pub fn limit_memory(bytes: u64) -> io::Result<()> {
    limit(Resource::Data, bytes)
}

/// Set the soft limit of a resource, within the hard one.
fn limit(resource: Resource, bytes: u64) -> io::Result<()> {
    let maximum = getrlimit(resource).maximum;
    let current = Some(maximum.map_or(bytes, |maximum| maximum.min(bytes)));
    Ok(setrlimit(resource, Rlimit { current, maximum })?)
}

/// Bytes that this process may allocate, where it is told.
pub fn memory_limit() -> Option<u64> {
    getrlimit(Resource::Data).current
}

/// Bytes that a process can still get here: what its limits and the system leave, as far as they are known.
pub fn available_memory() -> u64 {
    let limits = [Resource::As, Resource::Data].map(|resource| getrlimit(resource).current);
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    });
    let known = limits.into_iter().chain([system]).flatten();
    known.min().unwrap_or(u64::MAX)
}

/// Take stdout for one's own: what anything else of this process prints there goes to stderr.
///
/// # Errors
/// No descriptor can be had.
pub fn take_stdout() -> io::Result<File> {
    let own = rustix::io::dup(rustix::stdio::stdout())?;
    rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
    Ok(own.into())
}

/// The program that is running; on Linux that very file, even where its name has come to mean another.
pub fn this_program() -> PathBuf {
    #[cfg(target_os = "linux")]
    return "/proc/self/exe".into();
    #[cfg(not(target_os = "linux"))]
    std::env::current_exe().unwrap_or_default()
}

/// (signal, name, what it says)
const SIGNALS: [(i32, &str, Fault); 8] = [
    (SIGILL, "SIGILL", Fault::Instruction),
    (SIGABRT, "SIGABRT", Fault::Abort),
    (SIGSEGV, "SIGSEGV", Fault::Address),
    (SIGBUS, "SIGBUS", Fault::Mapping),
    (SIGFPE, "SIGFPE", Fault::Arithmetic),
    (SIGKILL, "SIGKILL", Fault::Outside),
    (SIGTERM, "SIGTERM", Fault::Outside),
    (SIGXCPU, "SIGXCPU", Fault::ProcessorTime),
];

/// How a process ended, and why where that is known.
pub fn ending(status: ExitStatus) -> (String, Option<Fault>) {
    let Some(signal) = status.signal() else {
        let code = status
            .code()
            .map_or("no exit code".into(), |code| format!("exit code {code}"));
        return (code, None);
    };
    match SIGNALS.iter().find(|(number, ..)| *number == signal) {
        Some((_, name, fault)) => ((*name).into(), Some(*fault)),
        None => (format!("signal {signal}"), None),
    }
}

/// Ask for the tile registers of AMX, for all threads of this process; whether it may use them.
#[allow(unsafe_code, reason = "no crate has this call")]
pub fn permit_tiles() -> bool {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        // asm/prctl.h and asm/fpu/types.h of Linux 5.16, which was the first to have them.
        const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
        const XFEATURE_XTILE_DATA: libc::c_ulong = 18;
        // SAFETY: the call takes two numbers and reads and writes nothing of this process.
        let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA) };
        answer == 0
    }
    #[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
    false
}

/// What to raise where the machine lacks something, for people who do not know the system's words for it.
pub fn limit_hint(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::MFILE | Errno::NFILE => Some("raise the limit of open files with `ulimit -n`"),
        Errno::FBIG => Some("raise the limit of a file's size with `ulimit -f`, or name another folder"),
        Errno::AGAIN => Some("raise the limit of processes and threads with `ulimit -u`, or pass a smaller --threads"),
        Errno::NOMEM => Some("make memory free, or raise its limit with `ulimit -v`"),
        Errno::NOSPC | Errno::DQUOT => Some("make room on the disk"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_is_interrupted_for_ever_ends() {
        let mut calls = 0;
        let interrupted = retry(|| {
            calls += 1;
            Err::<(), _>(Errno::INTR)
        });
        assert_eq!((interrupted, calls), (Err(Errno::INTR), ATTEMPTS));
        let mut calls = 0;
        let done = retry(|| {
            calls += 1;
            if calls < 3 { Err(Errno::INTR) } else { Ok(calls) }
        });
        assert_eq!(done, Ok(3));
    }

    #[test]
    fn a_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(open_own(&link).unwrap().is_none());
        assert!(!target.exists());
    }

    #[test]
    fn an_ending_has_a_name() {
        for (raw, name, fault) in [
            (SIGILL, "SIGILL", Some(Fault::Instruction)),
            (SIGUSR1, "signal 10", None),
            (7 << 8, "exit code 7", None),
        ] {
            let name = name.replace("10", &SIGUSR1.to_string());
            assert_eq!(ending(ExitStatus::from_raw(raw)), (name, fault));
        }
    }
}
