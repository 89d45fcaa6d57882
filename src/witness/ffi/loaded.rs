//! A llama.cpp of the user's: a shared library that is loaded by this process.

use std::env::consts::{ARCH, DLL_PREFIX, DLL_SUFFIX};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::api::{Api, LogCallback};

/// How many functions that are missing are named.
const SHOWN: usize = 3;

/// A library that has all functions, and where it is.
pub struct Loaded {
    pub api: Api,
    pub file: PathBuf,
    /// llama.cpp's number of the build, where the library has it.
    pub build: Option<u32>,
}

impl Loaded {
    /// Load the library at `path`, or the one of a folder that holds it, and the backends beside it. `log` is told what
    /// they have to say.
    ///
    /// # Errors
    /// What was found, and what to do.
    pub fn open(path: &Path, log: LogCallback) -> Result<Self, String> {
        let file = library_file(path)?;
        let unreadable = |error| format!("{error}; check that you may read it");
        if let Some(found) = other_processor(&file).map_err(unreadable)? {
            return Err(format!("it is a library for {found}; name one for {ARCH}"));
        }
        // SAFETY: the code that runs is that of a library which the user names to be run.
        let main = unsafe { Library::new(&file) };
        let main = main.map_err(|error| {
            let error = error.to_string();
            format!("it cannot be loaded: {error}; name one of llama.cpp for this system, its ggml libraries beside it")
        })?;
        let mut libraries = vec![main];
        libraries.extend(loaded_beside(&file));
        load_backends(&libraries, &file, log)?;
        libraries.extend(loaded_beside(&file));
        // They live as long as the process: nothing unloads them.
        let libraries: &'static [Library] = libraries.leak();
        // SAFETY: llama.cpp and ggml give these names to these functions. That it is they, and not others of the same
        // names, is for the user to say.
        let api = unsafe { Api::at(|name| symbol(libraries, name)) };
        let api = api.map_err(|missing| {
            let mut names = missing[..missing.len().min(SHOWN)].join(", ");
            if missing.len() > SHOWN {
                names += &format!(" and {} others", missing.len() - SHOWN);
            }
            format!("it has no {names}; name libllama of a llama.cpp of 2026 (b10603 or later), its ggml libraries beside it")
        })?;
        // SAFETY: where it is, it is an int that llama.cpp's build fills in (build-info.cpp).
        let build = symbol(libraries, c"LLAMA_BUILD_NUMBER").map(|number| unsafe { *number.cast::<c_int>() });
        let build = build.and_then(|number| u32::try_from(number).ok());
        Ok(Self { api, file, build })
    }
}

/// The library that `path` names: itself, or where it is a folder, libllama in it.
fn library_file(path: &Path) -> Result<PathBuf, String> {
    let (prefix, plain) = (format!("{DLL_PREFIX}llama."), format!("{DLL_PREFIX}llama{DLL_SUFFIX}"));
    let unreadable = |error: io::Error| format!("{error}; name {plain}, or the folder that holds it");
    let path = fs::canonicalize(path).map_err(unreadable)?;
    if !path.is_dir() {
        return Ok(path);
    }
    let mut found = vec![];
    for entry in fs::read_dir(&path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        // libllama.so, libllama.so.0, libllama.v0.5.0.so; not libllama-common.so
        let is = |name: &str| name.starts_with(&prefix) && name.contains(DLL_SUFFIX);
        if name.to_str().is_some_and(is) {
            found.push((name != *plain, name));
        }
    }
    let none = || format!("the folder has no {plain}; name the library, or the folder that holds it");
    let (_, name) = found.into_iter().min().ok_or_else(none)?;
    fs::canonicalize(path.join(name)).map_err(unreadable)
}

/// The name of the processor that an ELF file was built for, where it is not this one. The system's loader reports such a
/// library as a missing file.
fn other_processor(file: &Path) -> io::Result<Option<String>> {
    let mut head = vec![];
    File::open(file)?.take(20).read_to_end(&mut head)?;
    let (Some(b"\x7fELF"), Some(machine)) = (head.first_chunk(), head.get(18..20)) else {
        return Ok(None);
    };
    let machine = u16::from_le_bytes([machine[0], machine[1]]);
    let name = match machine {
        3 => "x86",
        40 => "arm",
        62 => "x86_64",
        183 => "aarch64",
        _ => return Ok(Some(format!("another processor (ELF machine {machine})"))),
    };
    Ok((name != ARCH).then(|| name.to_owned()))
}

/// Let ggml load the backends beside the library, where none for the CPU is linked to it.
fn load_backends(libraries: &[Library], file: &Path, log: LogCallback) -> Result<(), String> {
    /// GGML_BACKEND_DEVICE_TYPE_CPU
    const CPU: c_int = 0;
    type Set = unsafe extern "C" fn(Option<LogCallback>, *mut c_void);
    type Find = unsafe extern "C" fn(c_int) -> *const c_void;
    type Load = unsafe extern "C" fn(*const c_char);
    let (Some(set), Some(find), Some(load)) = (
        symbol(libraries, c"llama_log_set"),
        symbol(libraries, c"ggml_backend_dev_by_type"),
        symbol(libraries, c"ggml_backend_load_all_from_path"),
    ) else {
        return Ok(()); // It is told with all others that are missing.
    };
    let folder = super::c_path(file.parent().unwrap_or(file))?;
    // SAFETY: these are the functions that llama.h and ggml-backend.h declare, and they are called as those say; the
    // callback lives as long as the process, the name as long as the call.
    let found = unsafe {
        let set = std::mem::transmute::<*const c_void, Set>(set);
        let find = std::mem::transmute::<*const c_void, Find>(find);
        let load = std::mem::transmute::<*const c_void, Load>(load);
        set(Some(log), std::ptr::null_mut());
        if find(CPU).is_null() {
            load(folder.as_ptr());
        }
        !find(CPU).is_null()
    };
    if found {
        return Ok(());
    }
    let found = "there is no backend of ggml for this CPU beside it";
    Err(format!("{found}; copy libggml-cpu of the same build to its folder"))
}

/// The address of a function or a variable in the first library that has it.
fn symbol(libraries: &[Library], name: &CStr) -> Option<*const c_void> {
    libraries.iter().find_map(|library| {
        // SAFETY: a symbol is an address, and any pointer can hold one.
        let address = unsafe { *library.get::<*const c_void>(name.to_bytes_with_nul()).ok()? };
        (!address.is_null()).then_some(address)
    })
}

/// Libraries of ggml in the same folder that are loaded already: not every system looks into what a library needs.
fn loaded_beside(file: &Path) -> Vec<Library> {
    let folder = file.parent().and_then(|folder| fs::read_dir(folder).ok());
    let files = folder.into_iter().flatten().flatten().map(|entry| entry.path());
    let is_ggml = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(&format!("{DLL_PREFIX}ggml")) && name.contains(DLL_SUFFIX)
    };
    files.filter(is_ggml).filter_map(|path| if_loaded(&path)).collect()
}

#[cfg(unix)]
fn if_loaded(path: &Path) -> Option<Library> {
    use libloading::os::unix::{Library, RTLD_LAZY};
    /// RTLD_NOLOAD of the system's dlfcn.h.
    const NO_LOAD: c_int = if cfg!(target_os = "linux") { 4 } else { 0x10 };
    // SAFETY: no code runs, since nothing is loaded.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | NO_LOAD) };
    library.ok().map(Into::into)
}

#[cfg(windows)]
fn if_loaded(path: &Path) -> Option<Library> {
    let library = libloading::os::windows::Library::open_already_loaded(path);
    library.ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_stands_for_its_library() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let refused = library_file(&path).unwrap_err();
        assert!(
            refused.contains("the folder has no") && refused.contains("; name"),
            "{refused}"
        );
        let write = |name: &str| std::fs::write(path.join(name), "").unwrap();
        write(&format!("{DLL_PREFIX}llama-common{DLL_SUFFIX}"));
        library_file(&path).unwrap_err();
        for version in ["v0.5.0", "v0.4.0"] {
            write(&format!("{DLL_PREFIX}llama.{version}{DLL_SUFFIX}"));
        }
        let found = library_file(&path).unwrap();
        assert_eq!(found, path.join(format!("{DLL_PREFIX}llama.v0.4.0{DLL_SUFFIX}")));
        let plain = format!("{DLL_PREFIX}llama{DLL_SUFFIX}");
        write(&plain);
        assert_eq!(library_file(&path).unwrap(), path.join(&plain));
        assert_eq!(library_file(&path.join(&plain)).unwrap(), path.join(plain));
    }

    #[test]
    fn libraries_for_other_processors_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |machine: u16| {
            let file = folder.path().join("libllama.so");
            let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
            head.extend(machine.to_le_bytes());
            std::fs::write(&file, head).unwrap();
            other_processor(&file).unwrap()
        };
        let [ours, other] = if cfg!(target_arch = "x86_64") {
            [62, 183]
        } else {
            [183, 62]
        };
        assert_eq!(told(ours), None);
        assert_eq!(
            told(other).as_deref(),
            Some(if other == 62 { "x86_64" } else { "aarch64" })
        );
        assert!(told(243).unwrap().contains("machine 243"));
    }
}
