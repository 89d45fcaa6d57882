//! The arrows between rooms point one way, and no files import each other: this fails where either is untrue.

mod imports;

use std::collections::BTreeSet;
use std::path::Path;

use imports::{Crate, reached};

/// Each room of `src/`, and the rooms it may import. docs/architecture.md draws them.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "bench",
            "blueprint",
            "choose",
            "engine",
            "files",
            "kernels",
            "mapped",
            "metrics",
            "model",
            "output",
            "pack",
            "simd",
            "system",
            "verify",
            "witness",
        ],
    ),
    (
        "choose",
        &["blueprint", "engine", "kernels", "metrics", "pack", "system"],
    ),
    ("pack", &["blueprint", "model", "output", "simd"]),
    (
        "verify",
        &[
            "bench",
            "blueprint",
            "engine",
            "kernels",
            "mapped",
            "metrics",
            "model",
            "witness",
        ],
    ),
    ("bench", &["engine", "kernels", "metrics", "witness"]),
    ("engine", &["blueprint", "kernels", "mapped", "simd", "witness"]),
    ("witness", &["kernels", "mapped", "system"]),
    ("model", &["blueprint", "files", "mapped"]),
    ("kernels", &["simd", "system"]),
    ("blueprint", &[]),
    ("simd", &[]),
    ("metrics", &[]),
    ("output", &["files", "system"]),
    ("mapped", &["files", "system"]),
    ("files", &[]),
    ("system", &[]),
];

/// What belongs to one system alone: named in the room `system` and nowhere else.
const SYSTEMS: &[&str] = &[
    "std/os",
    "ctrlc",
    "fs4",
    "libc",
    "nix",
    "rustix",
    "signal_hook",
    "winapi_util",
    "windows_sys",
];

/// Files that import each other and have yet to be cut apart. Nothing is added here; who cuts a cycle takes it out.
const CYCLES: &[&[&str]] = &[];

fn may_use(room: &str) -> Option<&'static [&'static str]> {
    MAY_USE.iter().find(|(name, _)| *name == room).map(|(_, rooms)| *rooms)
}

/// The imports of one room by another that may not.
fn turned(code: &Crate) -> Vec<String> {
    let mut turned = vec![];
    for room in code
        .files
        .iter()
        .filter_map(|file| file.room())
        .collect::<BTreeSet<_>>()
    {
        if may_use(room).is_none() {
            turned.push(format!("`{room}` is no room of docs/architecture.md"));
        }
    }
    for import in &code.imports {
        let (Some(from), Some(to)) = (import.from.room(), import.to.room()) else {
            continue;
        };
        if from != to && may_use(from).is_some_and(|allowed| !allowed.contains(&to)) {
            turned.push(format!("{}: `{from}` may not use `{to}`", import.place));
        }
    }
    turned
}

/// What belongs to one system alone, outside of its room.
fn unportable(code: &Crate) -> Vec<String> {
    let is_system = |to: &str| {
        SYSTEMS
            .iter()
            .any(|system| format!("{to}/").starts_with(&format!("{system}/")))
    };
    code.foreign
        .iter()
        .filter(|import| import.from.room() != Some("system") && is_system(&import.to.to_string()))
        .map(|import| format!("{}: {}", import.place, import.to))
        .collect()
}

/// The cycles of a crate that are not listed, and those listed that are no more.
fn cycles_but(code: &Crate, listed: &[&[&str]]) -> Vec<String> {
    let found = code.cycles();
    let within = |cycle: &[String], listed: &[&str]| cycle.iter().all(|file| listed.contains(&file.as_str()));
    let new = found
        .iter()
        .filter(|cycle| !listed.iter().any(|known| within(cycle, known)));
    let gone = listed
        .iter()
        .filter(|known| !found.iter().any(|cycle| within(cycle, known)));
    let new = new.map(|cycle| format!("import each other: {}", cycle.join(", ")));
    new.chain(gone.map(|known| format!("no cycle any more, take it out: {}", known.join(", "))))
        .collect()
}

fn this_crate() -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

#[test]
fn arrows_between_rooms_point_one_way() {
    let turned = turned(&this_crate());
    assert!(turned.is_empty(), "{}", turned.join("\n"));
}

#[test]
fn no_files_import_each_other() {
    let different = cycles_but(&this_crate(), CYCLES);
    assert!(different.is_empty(), "{}", different.join("\n"));
    let formats = Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/src"));
    assert_eq!(cycles_but(&formats, &[]), [""; 0]);
}

#[test]
fn only_one_room_knows_systems() {
    let found = unportable(&this_crate());
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_belongs_to_one_system_is_found_however_it_is_written() {
    for text in [
        "use std::os::unix::fs::FileExt;",
        "use std::{fs, os::fd::AsFd};",
        "fn f() { std::os::windows::io::g() }",
        "fn f() { g!(rustix::fs::fsync(1)) }",
        "use rustix;",
        "use signal_hook as signals;",
    ] {
        assert_eq!(unportable(&planted(&[("pack/mod.rs", text)])).len(), 1, "{text}");
        assert_eq!(unportable(&planted(&[("system/unix.rs", text)])), [""; 0], "{text}");
    }
    for text in [
        "use std::fs;",
        "use own::rustix;",
        "#[cfg(test)] mod tests { use std::os::unix; }",
    ] {
        assert_eq!(unportable(&planted(&[("pack/mod.rs", text)])), [""; 0], "{text}");
    }
}

/// The arrows themselves: no room reaches itself, and what the packer knows is out of the verifier's reach.
#[test]
fn no_way_along_the_arrows_leads_back() {
    let beyond = |room| reached(room, |at| may_use(at).unwrap().iter().copied());
    for (room, _) in MAY_USE {
        assert!(!beyond(room).contains(room), "{room} reaches itself");
    }
    assert!(!beyond("verify").contains("pack"));
    assert!(!beyond("pack").contains("verify"));
    assert!(!beyond("verify").contains("choose"));
    assert!(!beyond("choose").contains("verify"));
}

#[test]
fn the_documentation_has_every_room() {
    let text = include_str!("../../docs/architecture.md");
    for (room, _) in MAY_USE {
        assert!(*room == "main" || text.contains(&format!("| `src/{room}")), "{room}");
    }
}

#[test]
fn formats_knows_nobody() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/Cargo.toml");
    assert!(!std::fs::read_to_string(manifest).unwrap().contains("tqconv\""));
}

/// A crate of these files.
fn planted(files: &[(&str, &str)]) -> Crate {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = folder.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Crate::read(folder.path())
}

/// What is wrong with a file of the room `verify`, each as `LINE: ...`.
fn turned_in(text: &str) -> Vec<String> {
    let code = planted(&[("verify/codes/mod.rs", text), ("pack/mod.rs", "")]);
    let line = |turned: String| turned.rsplit_once("mod.rs:").unwrap().1.to_owned();
    turned(&code).into_iter().map(line).collect()
}

#[test]
fn a_turned_arrow_is_found_however_it_is_written() {
    for (text, line) in [
        ("use crate::pack::Plan;", 1),
        ("use crate::{metrics,\n pack::Plan};", 2),
        (
            "use crate::{\n    metrics::{self, nmse},\n    pack::{row::{\n    encode as e}},\n};",
            4,
        ),
        ("use crate::pack::*;", 1),
        ("pub use crate::pack::Plan;", 1),
        ("use super::super::pack::Plan;", 1),
        ("mod inner { use super::super::super::pack::Plan; }", 1),
        ("fn f() {\n    use crate::pack::Plan;\n}", 2),
        ("fn f() -> usize {\n    crate::pack::encode(1)\n}", 2),
        ("fn f(plan: &crate::pack::Plan) {}", 1),
        (
            "fn f() {\n    assert!(g(1),\n        \"{}\", crate::pack::encode(1));\n}",
            3,
        ),
        ("macro_rules! m { () => { $crate::pack::encode(1) }; }", 1),
        ("use crate as root;\nfn f() { root::pack::encode(1) }", 2),
    ] {
        let found = turned_in(text);
        assert!(!found.is_empty(), "{text}");
        for turned in found {
            assert_eq!(turned, format!("{line}: `verify` may not use `pack`"), "{text}");
        }
    }
}

#[test]
fn what_is_no_import_is_none() {
    for text in [
        "// use crate::pack::Plan;\n/// [`crate::pack::Plan`]\nfn f() { g(\"crate::pack::Plan\") }",
        "use formats::pack::Plan;",
        "fn f() { let pack = 1; g(pack) }",
        "#[cfg(test)]\nmod tests { use crate::pack::Plan; }",
    ] {
        assert_eq!(turned_in(text), [""; 0], "{text}");
    }
}

/// Files of tests may use what they like, and those below them.
#[test]
fn files_of_tests_are_left_out() {
    let tests = [
        ("verify/mod.rs", "#[cfg(test)]\nmod tests;"),
        ("verify/tests.rs", "mod more;\nuse crate::pack::Plan;"),
        ("verify/tests/more.rs", "use crate::pack::Plan;"),
    ];
    assert!(turned(&planted(&tests)).is_empty());
    let code = [("verify/mod.rs", "mod tests;"), tests[1], tests[2]];
    assert_eq!(turned(&planted(&code)).len(), 2);
}

#[test]
fn a_room_that_nobody_drew_is_found() {
    assert_eq!(
        turned(&planted(&[("attic.rs", "")])),
        ["`attic` is no room of docs/architecture.md"]
    );
}

#[test]
fn a_cycle_between_files_is_found() {
    let two = planted(&[
        ("pack/a.rs", "use super::b::B;"),
        ("pack/b.rs", "fn f() { crate::pack::a::g() }"),
    ]);
    assert_eq!(cycles_but(&two, &[]), ["import each other: pack/a, pack/b"]);
    assert_eq!(cycles_but(&two, &[&["pack/a", "pack/b", "pack/c"]]), [""; 0]);
    let three = planted(&[
        ("a.rs", "use crate::b;"),
        ("b/mod.rs", "use crate::c::{self};"),
        ("c.rs", "use crate::a::A;"),
    ]);
    assert_eq!(cycles_but(&three, &[]), ["import each other: a, b, c"]);
    let face = [
        ("pack/mod.rs", "mod a;\nmod b;\npub use b::B as Face;"),
        ("pack/a.rs", "use super::Face;"),
    ];
    let through_face = planted(&[face[0], face[1], ("pack/b.rs", "use crate::pack::a::g;")]);
    assert_eq!(cycles_but(&through_face, &[]), ["import each other: pack/a, pack/b"]);
    let one_way = planted(&[face[0], face[1], ("pack/b.rs", "")]);
    assert_eq!(cycles_but(&one_way, &[]), [""; 0]);
}

#[test]
fn a_listed_cycle_that_is_gone_is_found() {
    let code = planted(&[("pack/a.rs", "use super::b::B;"), ("pack/b.rs", "")]);
    assert_eq!(
        cycles_but(&code, &[&["pack/a", "pack/b"]]),
        ["no cycle any more, take it out: pack/a, pack/b"]
    );
}
