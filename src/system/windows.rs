//! Windows. The standard library takes paths of any length and any UTF-16.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::windows::fs::{FileExt, OpenOptionsExt};
use std::os::windows::io::AsHandle;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use winapi_util::Handle;
use winapi_util::file::{Information, information};

use super::{Fault, FileId};

/// What makes a folder and those above it.
pub const MAKE_FOLDER: &str = "mkdir";

/// What helps where a process cannot be started.
pub const MORE_PROCESSES: &str = "end other processes";

/// Flags of CreateFileW.
const FILE_FLAG_OPEN_REPARSE_POINT: u32 = 0x0020_0000;
const FILE_FLAG_BACKUP_SEMANTICS: u32 = 0x0200_0000;

impl FileId {
    /// # Errors
    /// The system does not say.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::from(&information(file)?))
    }

    /// # Errors
    /// There is no such file, or the system does not say.
    pub fn at(path: &Path) -> io::Result<Self> {
        let handle = Handle::from_path_any(path)?;
        Ok(Self::from(&information(&handle)?))
    }
}

impl From<&Information> for FileId {
    fn from(found: &Information) -> Self {
        Self {
            volume: found.volume_serial_number(),
            index: found.file_index(),
        }
    }
}

/// How many names the file has.
///
/// # Errors
/// The system does not say.
pub fn links(file: &File) -> io::Result<u64> {
    Ok(information(file)?.number_of_links())
}

/// Fill `bytes` from `at` on.
///
/// # Errors
/// The file ends before, or cannot be read.
pub fn read_exact_at(file: &File, mut bytes: &mut [u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = file.seek_read(bytes, at)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes = &mut bytes[count..];
        at += count as u64;
    }
    Ok(())
}

/// Write all of `bytes` from `at` on.
///
/// # Errors
/// They cannot be written.
pub fn write_all_at(file: &File, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = file.seek_write(bytes, at)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[count..];
        at += count as u64;
    }
    Ok(())
}

/// Open a file of ours to read and write, or make it; what is in it stays. `None` where a link has its name.
///
/// # Errors
/// It cannot be opened.
pub fn open_own(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(FILE_FLAG_OPEN_REPARSE_POINT)
        .open(path)?;
    let is_link = file.metadata()?.is_symlink();
    Ok((!is_link).then_some(file))
}

/// Give the file its length, and clusters of the disk for all of it.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] where there are not so many.
pub fn reserve(file: &File, size: u64) -> io::Result<()> {
    file.set_len(size)
}

/// Wait until the disk has the names in `folder`: a power cut could undo a rename otherwise.
///
/// # Errors
/// The disk fails.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    let opened = OpenOptions::new()
        .write(true)
        .custom_flags(FILE_FLAG_BACKUP_SEMANTICS)
        .open(folder);
    match opened.and_then(|folder| folder.sync_all()) {
        // Not every file system can open a folder to write, or flush it; those with a journal write it soon.
        Err(error) if is_unable(&error) => Ok(()),
        synced => synced,
    }
}

fn is_unable(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        PermissionDenied | InvalidInput | Unsupported | IsADirectory
    )
}

/// Bytes that may be written to the file system of `folder`, where it says.
pub fn free_space(folder: &Path) -> Option<u64> {
    fs4::available_space(folder).ok()
}

/// Call `interrupted` each time that the process is asked to end.
///
/// # Errors
/// The process has such a handler already, or no thread can be had.
pub fn on_interrupt(interrupted: impl FnMut() + Send + 'static) -> io::Result<()> {
    ctrlc::set_handler(interrupted).map_err(io::Error::other)
}

/// Leave Ctrl-C to the parent, which gets it, too.
///
/// # Errors
/// No handler can be had.
pub fn leave_interrupts() -> io::Result<()> {
    on_interrupt(|| {})
}

/// There is no limit of file sizes.
///
/// # Errors
/// None.
pub fn survive_size_limit() -> io::Result<()> {
    Ok(())
}

/// The end of stdin has to do it.
///
/// # Errors
/// None.
pub fn end_with_parent() -> io::Result<()> {
    Ok(())
}

/// Nothing is left behind unless the administrator has asked for it.
///
/// # Errors
/// None.
pub fn leave_no_core() -> io::Result<()> {
    Ok(())
}

/// There is no such limit for a process that is running.
///
/// # Errors
/// None.
pub fn limit_memory(_: u64) -> io::Result<()> {
    Ok(())
}

/// Bytes that this process may allocate: it is not told.
pub fn memory_limit() -> Option<u64> {
    None
}

/// Bytes that a process can still get here: no limit is known.
pub fn available_memory() -> u64 {
    u64::MAX
}

/// A handle of stdout of one's own. What anything else of this process prints there comes between.
///
/// # Errors
/// No handle can be had.
pub fn take_stdout() -> io::Result<File> {
    Ok(io::stdout().as_handle().try_clone_to_owned()?.into())
}

/// The program that is running; its file cannot be replaced meanwhile.
pub fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_default()
}

/// (exit code, name, what it says), of ntstatus.h
const STATUSES: [(u32, &str, Fault); 7] = [
    (0xc000_001d, "illegal instruction", Fault::Instruction),
    (0xc000_0409, "fail fast", Fault::Abort),
    (0xc000_0005, "access violation", Fault::Address),
    (0xc000_00fd, "stack overflow", Fault::Address),
    (0xc000_0006, "in-page error", Fault::Mapping),
    (0xc000_0094, "integer division by zero", Fault::Arithmetic),
    (0xc000_013a, "Ctrl-C", Fault::Outside),
];

/// How a process ended, and why where that is known.
pub fn ending(status: ExitStatus) -> (String, Option<Fault>) {
    let Some(code) = status.code() else {
        return ("no exit code".into(), None);
    };
    let unsigned = code as u32;
    match STATUSES.iter().find(|(number, ..)| *number == unsigned) {
        Some((_, name, fault)) => (format!("{name}, {unsigned:#x}"), Some(*fault)),
        None if code < 0 => (format!("exit code {unsigned:#x}"), None),
        None => (format!("exit code {code}"), None),
    }
}

/// Whether this process may use the tile registers of AMX.
pub fn permit_tiles() -> bool {
    false
}

/// What to do where the machine lacks something, for people who do not know the system's words for it. The numbers are
/// those of winerror.h.
pub fn limit_hint(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        4 => Some("close files of other programs"), // ERROR_TOO_MANY_OPEN_FILES
        // ERROR_NOT_ENOUGH_MEMORY, ERROR_OUTOFMEMORY, ERROR_COMMITMENT_LIMIT
        8 | 14 | 1455 => Some("make memory free, or enlarge the paging file"),
        // ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION, ERROR_USER_MAPPED_FILE
        32 | 33 | 1224 => Some("close the program that has the file open"),
        39 | 112 => Some("make room on the disk"), // ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::windows::process::ExitStatusExt;

    #[test]
    fn an_ending_has_a_name() {
        for (raw, name, fault) in [
            (0xc000_001d, "illegal instruction, 0xc000001d", Some(Fault::Instruction)),
            (0xc000_0022, "exit code 0xc0000022", None),
            (7, "exit code 7", None),
        ] {
            assert_eq!(ending(ExitStatus::from_raw(raw)), (name.into(), fault));
        }
    }
}
