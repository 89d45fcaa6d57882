//! Hostile and broken input: every case ends in its own error, by exit code 2 and one line that says where, what, and
//! what to do; in bounded time and memory; with nothing left behind. docs/bad-input.md lists the cases by kind.

#[rustfmt::skip] // a table: one line a case
mod cases;
mod changes;
mod gguf;
pub mod input;
#[rustfmt::skip] // a table: one line a case
mod libraries;
mod raw;
mod robust;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use tempfile::TempDir;

use cases::{Case, Input};

/// Address space of a run, in KiB: threads and libraries reserve most of it.
const MEMORY_KIB: u64 = 2 << 20;
/// Processor time of a run, in seconds.
const SECONDS: u64 = 20;

/// Everything in a folder, with its size, to tell whether anything was left or lost.
fn listing(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.symlink_metadata().unwrap();
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, metadata.len());
        }
    }
    found
}

/// The binary, in a shell that bounds its memory and time, and makes a file that grows too large an error.
pub fn bounded(arguments: &[String], limits: &str) -> std::process::Output {
    let script = format!("ulimit -v {MEMORY_KIB}; ulimit -t {SECONDS}; trap '' XFSZ; {limits} exec \"$@\"");
    Command::new("sh")
        .args(["-c", &script, "sh"])
        .arg(assert_cmd::cargo::cargo_bin!("tqconv"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The error of a run within this process.
fn error_of(arguments: &[String]) -> anyhow::Error {
    let witness = assert_cmd::cargo::cargo_bin!("tqconv").to_str().unwrap();
    let all = ["tqconv", "--witness", witness]
        .into_iter()
        .chain(arguments.iter().map(String::as_str));
    let cli = tqconv::cli::Cli::try_parse_from(all).unwrap_or_else(|error| panic!("{error}"));
    match tqconv::cli::run(cli) {
        Err(error) => error,
        Ok(code) => panic!("{arguments:?} was accepted: {code:?}"),
    }
}

/// Run one case; the variants that its error consists of, among them the expected one.
fn check(case: &Case) -> Vec<String> {
    let variants = run(case);
    assert!(
        variants.iter().any(|variant| variant == case.variant),
        "row {}, {}: {} expected, found {variants:?}",
        case.row,
        case.name,
        case.variant
    );
    variants
}

fn run(case: &Case) -> Vec<String> {
    let place = format!("row {}, {}", case.row, case.name);
    let folder = TempDir::new().unwrap();
    let arguments = match &case.input {
        Input::Call(call) => {
            let error = call(folder.path());
            let message = tqconv::cli::message(&error);
            check_message(case, &message, &place);
            return variants::of(&error);
        }
        Input::Command(make) => make(folder.path()),
    };
    let before = listing(folder.path());
    let error = error_of(&arguments);
    let message = tqconv::cli::message(&error);
    check_message(case, &message, &place);
    assert!(has_remedy(&message), "{place}: no remedy in {message}");
    if case.names_file {
        let folder = folder.path().to_str().unwrap();
        assert!(message.contains(folder), "{place}: no file in {message}");
    }
    assert_eq!(listing(folder.path()), before, "{place}: left behind or lost");

    let ran = bounded(&arguments, "");
    let stderr = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.signal(), None, "{place}: {stderr}");
    assert_eq!(ran.status.code(), Some(2), "{place}: {stderr}");
    assert_eq!(stderr.lines().last(), Some(&*format!("error: {message}")), "{place}");
    assert_eq!(stderr.lines().count(), 1, "{place}: {stderr}");
    assert_eq!(listing(folder.path()), before, "{place}: left behind or lost");
    println!("{:>2} {:<28} {message}", case.row, case.variant);
    variants::of(&error)
}

fn check_message(case: &Case, message: &str, place: &str) {
    for part in case.says {
        assert!(message.contains(part), "{place}: no {part:?} in {message}");
    }
    assert!(!message.contains(char::is_control), "{place}: {message:?}");
}

/// Whether a part of the message says what to do, what would do, or asks the question that leads there.
fn has_remedy(message: &str) -> bool {
    const VERBS: [&str; 36] = [
        "allow",
        "build",
        "check",
        "continue",
        "convert",
        "copy",
        "create",
        "fetch",
        "free",
        "fix",
        "give",
        "join",
        "leave",
        "make",
        "mend",
        "merge",
        "move",
        "name",
        "pack",
        "pass",
        "raise",
        "remove",
        "replace",
        "run",
        "save",
        "say",
        "set",
        "shorten",
        "store",
        "supported",
        "take",
        "train",
        "try",
        "unpack",
        "use",
        "wait",
    ];
    let mut parts = message.split_inclusive([';', ':', ',', '(', '?']).skip(1);
    parts.any(|part| {
        let part = part.trim_start();
        let first = part.strip_prefix("or ").unwrap_or(part);
        let first = first.split([' ', ':']).next().unwrap_or_default();
        let question = part.ends_with("right?") || part.ends_with("right file?");
        question || VERBS.contains(&first) || part.starts_with("--") || part.contains(" must say ")
    })
}

#[test]
fn every_case_ends_in_its_own_error() {
    let mut kinds: BTreeMap<_, usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    let mut failed = 0;
    for case in cases::all() {
        // So that one run tells all that is wrong.
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&case))) {
            Ok(variants) => found.extend(variants),
            Err(_) => failed += 1,
        }
        *kinds.entry(case.kind()).or_default() += 1;
    }
    assert_eq!(failed, 0, "cases failed, told above");

    let declared = variants::declared();
    let without: Vec<_> = declared.difference(&found).collect();
    assert!(without.is_empty(), "error variants without a test input: {without:?}");
    assert!(found.is_subset(&declared), "{:?}", found.difference(&declared));
    check_figures(&kinds, declared.len());
}

/// The documents give the figures of this run.
fn check_figures(kinds: &BTreeMap<&str, usize>, variants: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lacking = vec![];
    let mut check = |document: &str, row: String| {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        if !text.contains(&row) {
            lacking.push(format!("{document} lacks {row:?}"));
        }
    };
    let (bad_input, security) = ("docs/bad-input.md", "SECURITY.md");
    for (kind, count) in kinds {
        check(bad_input, format!("\n| {kind} | {count} |"));
    }
    let all: usize = kinds.values().sum();
    let inputs = all - kinds[cases::LIBRARY];
    let handcrafted = raw::handcrafted().len();
    let packs = 2 * changes::ROUNDS;
    check(bad_input, format!("\n| | all | {} |", all + handcrafted));
    check(bad_input, format!("own error | {all}, and {handcrafted} of "));
    check(bad_input, format!("a case | {variants} of {variants} |"));
    check(bad_input, format!("moment each | {packs}: "));
    check(security, format!("memory and time | {inputs} |"));
    check(security, format!("input reaches | 0 of {variants}; "));
    check(security, format!("ggml itself | {handcrafted} of {handcrafted} |"));
    check(security, format!("moment each | {packs}, "));
    assert!(lacking.is_empty(), "{}", lacking.join("\n"));
}
