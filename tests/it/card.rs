//! `pack --card` and `verify --card`: a README.md for the Hub.

use std::path::Path;
use std::process::{Command, Output};

use formats::gguf::{File, Value};

use crate::data;

const FRONT: &str = "---\nlicense: apache-2.0\nlanguage: [en, 'no']\nbase_model: an-org/A-Model\n---\n# Mine\n";

fn tqconv(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("tqconv"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap()
}

fn succeeds(folder: &Path, line: &str) -> String {
    let ran = tqconv(folder, line);
    assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).unwrap()
}

fn refused(folder: &Path, line: &str) -> String {
    let ran = tqconv(folder, line);
    assert_eq!(ran.status.code(), Some(2), "{line}");
    String::from_utf8(ran.stderr).unwrap()
}

/// kjv with a card of its own, in `in` of a new folder; `out` is empty.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("in")).unwrap();
    std::fs::create_dir(path("out")).unwrap();
    for entry in std::fs::read_dir(data::fixture("kjv")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), path("in").join(entry.file_name())).unwrap();
    }
    std::fs::write(path("in/README.md"), FRONT).unwrap();
    folder
}

#[test]
fn a_card_has_what_the_source_s_card_says_and_then_what_was_verified() {
    let folder = folder();
    succeeds(folder.path(), "pack in out/m.gguf --card");
    let path = folder.path().join("out/README.md");
    let card = std::fs::read_to_string(&path).unwrap();
    let front = "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"no\"\nbase_model: an-org/A-Model\nbase_model_relation: quantized\n";
    assert!(card.starts_with(front), "{card}");
    for part in [
        "| `m.gguf` | 28 x Q2_K |",
        "llama-server -m m.gguf",
        "ollama create m -f Modelfile",
        "lms import m.gguf",
        "tqconv verify out/m.gguf --against in --card README.md",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }

    succeeds(
        folder.path(),
        "verify out/m.gguf --against in --tokens 64 --card out/README.md",
    );
    let verified = std::fs::read_to_string(&path).unwrap();
    assert!(
        verified.contains("checks passed, against what it was packed from"),
        "{verified}"
    );
    assert!(verified.contains("| native "), "{verified}");
    assert!(!verified.contains("Not yet"), "{verified}");
    let (before, after) = (card.split("<!--").next(), card.rsplit("-->").next());
    assert_eq!(
        (verified.split("<!--").next(), verified.rsplit("-->").next()),
        (before, after)
    );

    // A second time the figures are replaced.
    succeeds(folder.path(), "verify out/m.gguf --levels 1 --card out/README.md");
    let again = std::fs::read_to_string(&path).unwrap();
    assert!(!again.contains("| native "), "{again}");
    assert_eq!(again.split("<!--").next(), before);
}

#[test]
fn the_file_has_the_license_and_the_base_model_and_keeps_them() {
    let folder = folder();
    succeeds(folder.path(), "pack in out/m.gguf");
    succeeds(folder.path(), "pack out/m.gguf out/again.gguf --type q4_0 --card");
    for name in ["out/m.gguf", "out/again.gguf"] {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        let file = File::parse(&bytes).unwrap();
        let text = |key: &str| file.get(key).and_then(Value::as_str);
        assert_eq!(text("general.license"), Some("apache-2.0"), "{name}");
        assert_eq!(text("general.base_model.0.organization"), Some("an-org"), "{name}");
        let url = text("general.base_model.0.repo_url");
        assert_eq!(url, Some("https://huggingface.co/an-org/A-Model"), "{name}");
    }
    let card = std::fs::read_to_string(folder.path().join("out/README.md")).unwrap();
    assert!(card.contains("\nbase_model: an-org/A-Model\n"), "{card}");
    succeeds(folder.path(), "verify out/m.gguf --against in --levels 1-2");
}

#[test]
fn no_card_replaces_another_unasked_and_none_an_input() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    let error = refused(folder.path(), "pack in in/m.gguf --card --force");
    assert!(error.contains("in/README.md"), "{error}");
    assert_eq!(std::fs::read_to_string(path("in/README.md")).unwrap(), FRONT);
    assert!(!path("in/m.gguf").exists());

    let error = refused(folder.path(), "pack in out/m.gguf --card --manifest out/README.md");
    assert!(error.contains("name another manifest"), "{error}");
    assert!(!path("out/m.gguf").exists() && !path("out/README.md").exists());

    std::fs::write(path("out/README.md"), "mine").unwrap();
    let error = refused(folder.path(), "pack in out/m.gguf --card");
    assert!(error.contains("out/README.md") && error.contains("--force"), "{error}");
    assert!(!path("out/m.gguf").exists());

    succeeds(folder.path(), "pack in out/m.gguf");
    let error = refused(folder.path(), "verify out/m.gguf --levels 1 --card out/README.md");
    assert!(error.contains("pack --card writes a card with them"), "{error}");
    let error = refused(folder.path(), "verify out/m.gguf --levels 1 --card out/none.md");
    assert!(error.contains("out/none.md"), "{error}");
    let error = refused(folder.path(), "verify out/m.gguf --levels 1 --card out/m.gguf");
    assert!(error.contains("out/m.gguf"), "{error}");
    assert_eq!(std::fs::read_to_string(path("out/README.md")).unwrap(), "mine");
}

#[test]
fn a_card_that_cannot_be_read_is_noted() {
    let folder = folder();
    std::fs::write(folder.path().join("in/README.md"), "---\nlicense: [a\n---\n").unwrap();
    let told = succeeds(folder.path(), "pack in out/m.gguf");
    assert!(told.contains("README.md: invalid front matter"), "{told}");
}
