//! The variants of all error enums: those that the sources declare, and those that an error consists of.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use formats::FormatError;
use formats::block::{BlockError, Found, NotTernary};
use tqconv::choose::ChooseError;
use tqconv::engine::EngineError;
use tqconv::engine::text::TextError;
use tqconv::kernels::KernelError;
use tqconv::mapped::OpenError;
use tqconv::model::ModelError;
use tqconv::model::tokenizer::TokenizerError;
use tqconv::output::OutputError;
use tqconv::pack::PackError;
use tqconv::verify::VerifyError;
use tqconv::witness::WitnessError;

/// `Enum::Variant` of every error enum of the sources.
pub fn declared() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![];
    sources(&root.join("src"), &mut files);
    sources(&root.join("formats/src"), &mut files);
    let mut declared = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        for derived in text.split("thiserror::Error").skip(1) {
            // The item that the derive belongs to comes before any other.
            let Some((_, rest)) = derived.split_once("pub ") else {
                continue;
            };
            let Some(rest) = rest.strip_prefix("enum ") else {
                continue;
            };
            let (name, body) = rest.split_once(" {\n").unwrap();
            let (body, _) = body.split_once("\n}").unwrap();
            declared.extend(
                body.lines()
                    .filter_map(variant)
                    .map(|variant| format!("{name}::{variant}")),
            );
        }
    }
    assert!(declared.len() > 80, "the sources are read: {declared:?}");
    declared
}

/// The name of the variant that starts on this line of an enum.
fn variant(line: &str) -> Option<&str> {
    let name = line.strip_prefix("    ")?;
    let end = name.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(name.len());
    name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| &name[..end])
}

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

/// The variants in the chain of an error.
pub fn of(error: &anyhow::Error) -> Vec<String> {
    let mut found = vec![];
    error.chain().for_each(|cause| add(cause, &mut found));
    found
}

fn add(error: &(dyn Error + 'static), found: &mut Vec<String>) {
    macro_rules! look {
        ($($ty:ident)*) => {
            $(if let Some(error) = error.downcast_ref::<$ty>() {
                found.push(named(stringify!($ty), error));
            })*
        };
    }
    look!(FormatError BlockError ChooseError ModelError TokenizerError OpenError OutputError PackError EngineError TextError KernelError VerifyError WitnessError Found);
    if let Some(NotTernary { found: what, .. }) = error.downcast_ref() {
        found.push(named("Found", what));
    }
    // A transparent variant is not in the chain beside what it holds.
    match error.downcast_ref() {
        Some(PackError::Format(error)) => add(error, found),
        Some(PackError::Output(error)) => add(error, found),
        _ => {}
    }
    if let Some(EngineError::Witness(error)) = error.downcast_ref() {
        add(error, found);
    }
    if let Some(ChooseError::Pack(error)) = error.downcast_ref() {
        add(error, found);
    }
    match error.downcast_ref() {
        Some(VerifyError::Open(error)) => add(error, found),
        Some(VerifyError::Model(error)) => add(error, found),
        Some(VerifyError::Tokenizer(error)) => add(error, found),
        Some(VerifyError::Engine(error)) => add(error, found),
        Some(VerifyError::Witness(error)) => add(error, found),
        Some(VerifyError::Block(error)) => add(error, found),
        _ => {}
    }
}

fn named(ty: &str, error: &impl Debug) -> String {
    let text = format!("{error:?}");
    let end = text.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(text.len());
    format!("{ty}::{}", &text[..end])
}
