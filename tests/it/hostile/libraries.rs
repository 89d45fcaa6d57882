//! Libraries that `--llama` names and that are no llama.cpp which can be used.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::cases::{List, text_of};

/// All of them; row 41.
pub fn libraries(cases: &mut List) {
    let mut case = |says, make: fn(&Path) -> PathBuf| {
        cases.command(41, "WitnessError::Library", says, move |folder| {
            let model = text_of(&crate::data::fixture("broken/sound.gguf"));
            vec!["verify".into(), model, "--llama".into(), text_of(&make(folder))]
        });
    };
    case(&["No such file or directory", "name libllama"], |folder| folder.join("libllama.so"));
    case(&["the folder has no libllama.so", "name the library, or the folder that holds it"], |folder| folder.into());
    case(&["cannot be loaded: ", "file too short", "name one of llama.cpp for this system"], |folder| file(folder, b""));
    case(&["cannot be loaded: ", "invalid ELF header"], |folder| file(folder, &[b'a'; 100_000]));
    case(&["it is a library for another processor (ELF machine 243); name one for "], |folder| {
        let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x03\0".to_vec();
        head.extend(243u16.to_le_bytes());
        file(folder, &head)
    });
    case(&["it has no llama_backend_init, llama_log_set, llama_version and ", " others; name libllama of "], |folder| {
        stub(folder, "int something_else;", |_| false)
    });
    case(&["it has no ggml_threadpool_resume; name libllama of a llama.cpp of 2026"], |folder| {
        stub(folder, "", |name| name != "ggml_threadpool_resume")
    });
    case(&["llama_context_default_params gives 0x100 where n_ctx is, expected 0x200", "llama.cpp 9.9.9", "name a build"], |folder| {
        stub(folder, "", |_| true)
    });
    case(&["it ends its process: SIGABRT", "name another build"], |folder| {
        stub(folder, "void abort(void); __attribute__((constructor)) static void end(void) { abort(); }", |_| true)
    });
    case(&["cannot be loaded: ", "undefined symbol: nowhere_to_be_found"], |folder| {
        stub(folder, "extern int nowhere_to_be_found; int *p(void) { return &nowhere_to_be_found; }", |_| true)
    });
}

fn file(folder: &Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("libllama.so");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A library with those functions of llama.cpp's that are `wanted`, which do nothing, and parameters of another layout.
fn stub(folder: &Path, and: &str, wanted: fn(&str) -> bool) -> PathBuf {
    const TABLE: &str = include_str!("../../../src/witness/ffi/api.rs");
    let mut source = format!("{and}\nstruct parameters {{ unsigned words[40]; }};\n");
    let names = TABLE.lines().filter_map(|line| line.strip_prefix("    fn ")?.split('(').next());
    for name in names.filter(|name| wanted(name)) {
        source += &match name {
            "llama_version" | "ggml_version" | "ggml_commit" => {
                format!("const char *{name}(void) {{ return \"9.9.9\"; }}\n")
            }
            "llama_model_default_params" => format!(
                "struct parameters {name}(void) {{ struct parameters p = {{ {{ 0, 0, 0, 0, -1, 1 }} }}; return p; }}\n"
            ),
            "llama_context_default_params" => {
                format!("struct parameters {name}(void) {{ struct parameters p = {{ {{ 256 }} }}; return p; }}\n")
            }
            _ => format!("void {name}(void) {{}}\n"),
        };
    }
    let (library, text) = (folder.join("libllama.so"), folder.join("stub.c"));
    std::fs::write(&text, source).unwrap();
    let options = ["-shared", "-fPIC", "-w", "-o"];
    let compiled = Command::new("cc").args(options).arg(&library).arg(&text).status().unwrap();
    assert!(compiled.success(), "cc, which links Rust programs, too, makes {}", library.display());
    library
}
