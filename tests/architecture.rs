//! The arrows between rooms point one way: this fails when one turns.

use std::path::{Path, PathBuf};

/// Each room of `src/`, and the rooms it may name. docs/architecture.md draws them.
const MAY_USE: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "engine", "kernels", "mapped", "metrics", "model", "output", "pack", "simd", "verify", "witness",
        ],
    ),
    ("pack", &["model", "output", "simd"]),
    (
        "verify",
        &["engine", "kernels", "mapped", "metrics", "model", "witness"],
    ),
    ("engine", &["kernels", "mapped", "simd", "witness"]),
    ("witness", &["kernels", "mapped"]),
    ("model", &["mapped", "output"]),
    ("kernels", &["simd"]),
    ("simd", &[]),
    ("metrics", &[]),
    ("output", &[]),
    ("mapped", &[]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The room a file belongs to: the first part of its path below `src`.
fn room(file: &Path, src: &Path) -> String {
    let first = file.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The rooms that a line names as `crate::room`, also within `use crate::{a, b}` on one line.
fn named(line: &str) -> Vec<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut names = vec![];
    for rest in line.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(list) => names.extend(list.split(',').map(|part| word(part.trim()))),
            None => names.push(word(rest)),
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn turned(src: &Path) -> Vec<String> {
    let mut files = vec![];
    sources(src, &mut files);
    let mut turned = vec![];
    for file in files {
        let room = room(&file, src);
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == room) else {
            if room != "lib" && room != "main" {
                turned.push(format!(
                    "{}: `{room}` is no room of docs/architecture.md",
                    file.display()
                ));
            }
            continue;
        };
        for (number, line) in std::fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for name in named(code)
                .iter()
                .filter(|name| **name != room && !allowed.contains(&name.as_str()))
            {
                turned.push(format!(
                    "{}:{}: `{room}` may not use `{name}`",
                    file.display(),
                    number + 1
                ));
            }
        }
    }
    turned
}

#[test]
fn arrows_between_rooms_point_one_way() {
    let turned = turned(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(turned.is_empty(), "{}", turned.join("\n"));
}

#[test]
fn formats_knows_nobody() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/Cargo.toml");
    assert!(!std::fs::read_to_string(manifest).unwrap().contains("tqconv\""));
}

#[test]
fn a_turned_arrow_is_found() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("simd.rs"),
        "//! x\nuse crate::{metrics, pack::Plan};\n",
    )
    .unwrap();
    std::fs::write(folder.path().join("attic.rs"), "").unwrap();
    let mut turned = turned(folder.path());
    turned.sort();
    assert_eq!(turned.len(), 3, "{turned:?}");
    assert!(
        turned[1].ends_with("simd.rs:2: `simd` may not use `metrics`"),
        "{turned:?}"
    );
}
