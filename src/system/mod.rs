//! What each system does in its own way: files at positions and on the disk, signals, limits, the end of a process. One
//! file for Unix, one for Windows, with the same functions; no other file of `src/` names a system's own interface, but for
//! the loader of libraries, which is unsafe to call (`witness/ffi/loaded.rs`).
//!
//! | promised | Unix | Windows |
//! |---|---|---|
//! | [`FileId`] is equal for all names of a file | device and inode | volume and file index; ReFS may give two files one |
//! | [`open_own`] follows no link | `O_NOFOLLOW` | the link itself is opened, and told from a file |
//! | [`reserve`] finds a full disk | `fallocate` | clusters are taken with the length |
//! | [`sync_folder`]: a rename outlasts a power cut | `fsync` of the folder | the same where the file system has it |
//! | [`on_interrupt`] | INT, TERM, HUP unless ignored (`nohup`; seen on Linux alone) | Ctrl-C, Ctrl-Break, closing |
//! | [`end_with_parent`] | a signal on Linux; elsewhere the end of stdin does it | the end of stdin does it |
//! | [`take_stdout`] keeps foreign output out of it | yes | no: a reader has to notice it |
//! | [`permit_tiles`]: AMX's registers | Linux, where it says so | no: nobody has tried it |
//! | [`limit_memory`] | `RLIMIT_DATA`, which macOS does not keep | no limit |
//!
//! A file that another process has open or mapped can be replaced on Unix; on Windows this is an error. Locks, and waiting
//! for the disk to have a file, are the standard library's.

#[cfg(unix)]
mod unix;
#[cfg(windows)]
mod windows;

#[cfg(unix)]
pub use unix::*;
#[cfg(windows)]
pub use windows::*;

/// Which file a path leads to, through links and under any of its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    volume: u64,
    index: u64,
}

/// Why the system ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An instruction that the CPU does not have.
    Instruction,
    /// The process ended itself.
    Abort,
    /// An address that is not the process's.
    Address,
    /// Mapped memory that is not there any more.
    Mapping,
    /// A division by zero.
    Arithmetic,
    /// Another process, the user or the system.
    Outside,
    /// The limit of processor time.
    ProcessorTime,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::ErrorKind;
    use std::path::PathBuf;

    fn folder_and_file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn bytes_are_read_and_written_at_their_place() {
        let (_folder, path) = folder_and_file(b"0123456789");
        let file = open_own(&path).unwrap().unwrap();
        write_all_at(&file, b"ab", 9).unwrap();
        write_all_at(&file, b"xy", 2).unwrap();
        let mut read = [0; 4];
        read_exact_at(&file, &mut read, 1).unwrap();
        assert_eq!(&read, b"1xy4");
        assert_eq!(std::fs::read(&path).unwrap(), b"01xy45678ab");
        let beyond = read_exact_at(&file, &mut read, 8).unwrap_err();
        assert_eq!(beyond.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_has_one_identity_under_all_its_names() {
        let (folder, path) = folder_and_file(b"");
        let (second, other) = (folder.path().join("second"), folder.path().join("other"));
        std::fs::hard_link(&path, &second).unwrap();
        std::fs::write(&other, b"").unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(FileId::of(&file).unwrap(), FileId::at(&second).unwrap());
        assert_ne!(FileId::at(&path).unwrap(), FileId::at(&other).unwrap());
        let none = FileId::at(&folder.path().join("none")).unwrap_err();
        assert_eq!(none.kind(), ErrorKind::NotFound);
        assert_eq!(links(&file).unwrap(), 2);
    }

    #[test]
    fn a_file_gets_its_length_at_once() {
        let (folder, path) = folder_and_file(b"");
        for size in [0, 100_000] {
            reserve(&open_own(&path).unwrap().unwrap(), size).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), size);
        }
        sync_folder(folder.path()).unwrap();
        assert!(free_space(folder.path()).unwrap() > 0);
    }

    #[test]
    fn this_program_can_be_started() {
        let mut command = std::process::Command::new(this_program());
        let ran = command.arg("--list").output().unwrap();
        assert!(ran.status.success());
        assert_eq!(ending(ran.status), ("exit code 0".into(), None));
    }
}
