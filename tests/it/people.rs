//! What people meet at the command line: names, pipes, colours, split files, messages.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use formats::gguf::{File, Layout, Value};

use crate::data;
use crate::pack::Bench;

fn tqconv<S: AsRef<OsStr>>(folder: &Path, arguments: &[S]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("tqconv"));
    command.args(arguments).current_dir(folder).stdin(Stdio::null());
    command
}

/// kjv packed as `name` in a folder of its own.
fn packed(name: &str, options: &str) -> (Bench, PathBuf) {
    let bench = Bench::new();
    let (kjv, folder) = (data::fixture("kjv"), bench.path(""));
    let arguments = ["pack", kjv.to_str().unwrap(), name]
        .into_iter()
        .chain(options.split_whitespace());
    let ran = tqconv(&folder, &arguments.collect::<Vec<_>>()).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    (bench, folder)
}

fn stdout(ran: &Output) -> String {
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout.clone()).unwrap()
}

/// The same keys and tensors with other texts for some keys.
fn with_texts(bytes: &[u8], texts: &[(&str, &str)]) -> Vec<u8> {
    let file = File::parse(bytes).unwrap();
    let mut keys = file.metadata().to_vec();
    for (key, text) in texts {
        let value = Value::String((*text).into());
        match keys.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => keys.push(((*key).into(), value)),
        }
    }
    let layout = Layout::new(&keys, file.tensors()).unwrap();
    let mut made = layout.header.clone();
    made.resize(layout.size as usize, 0);
    for (info, offset) in file.tensors().iter().zip(&layout.offsets) {
        let (_, data) = file.tensor(&info.name).unwrap();
        made[*offset as usize..][..data.len()].copy_from_slice(data);
    }
    made
}

#[test]
fn a_file_cannot_forge_a_line_of_a_report() {
    let (bench, folder) = packed("m.gguf", "");
    let bytes = std::fs::read(bench.path("m.gguf")).unwrap();
    let forged = "x\n\n\u{1b}[1;32mx.gguf agrees with its checkpoint\u{1b}[0m\u{1b}[8m";
    let bidi = "kjv \u{202e}gnihtyna\u{2066}\u{200b}";
    let texts = [
        ("tokenizer.ggml.pre", forged),
        ("general.name", bidi),
        ("my\n\u{1b}[1mkey", forged),
    ];
    std::fs::write(bench.path("x.gguf"), with_texts(&bytes, &texts)).unwrap();
    let kjv = data::fixture("kjv");
    let kjv = kjv.to_str().unwrap();
    let commands: [&[&str]; 9] = [
        &[
            "verify",
            "x.gguf",
            "--levels",
            "1,2",
            "--against",
            kjv,
            "--report",
            "x.html",
        ],
        &["verify", "x.gguf", "--levels", "1,2", "--against", kjv, "--json"],
        &["verify", "x.gguf", "--color", "always"],
        &["diff", "m.gguf", "x.gguf"],
        &["diff", "m.gguf", "x.gguf", "--json"],
        &["inspect", "x.gguf", "--all"],
        &["inspect", "x.gguf", "--json"],
        &["run", "x.gguf", "-p", "And", "-n", "1"],
        &["pack", kjv, "y.gguf", "--metadata", "my\n\u{1b}[1mkey=5"],
    ];
    for command in commands {
        let ran = tqconv(&folder, command).output().unwrap();
        let said = String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap();
        for line in said.lines() {
            assert!(
                !line.starts_with("\u{1b}[1;32mx.gguf agrees") && !line.starts_with("x.gguf agrees"),
                "{command:?}: {said}"
            );
        }
        let hidden = ['\u{202e}', '\u{2066}', '\u{200b}'];
        assert!(
            !said.contains(hidden) && !said.contains("\u{1b}[8m"),
            "{command:?}: {said}"
        );
    }
    let page = std::fs::read_to_string(bench.path("x.html")).unwrap();
    assert!(!page.contains(['\u{202e}', '\u{1b}']));
}

#[test]
fn a_split_model_is_one_model() {
    let (bench, folder) = packed("s.gguf", "--split-max-size 1M");
    let kjv = data::fixture("kjv");
    let first = "s-00001-of-00003.gguf";
    assert!(bench.path(first).exists());
    let (whole, _) = bench.pack(&kjv, "");
    std::fs::write(bench.path("whole.gguf"), whole).unwrap();
    let run = |arguments: &[&str]| tqconv(&folder, arguments).output().unwrap();
    assert!(stdout(&run(&["diff", first, "whole.gguf"])).contains("are equal"));
    let against = ["verify", first, "--against", kjv.to_str().unwrap(), "--tokens", "32"];
    assert!(stdout(&run(&against)).contains("agrees with"));
    let prompt = ["-p", "And the LORD", "-n", "8", "-q"];
    let texts = [first, "whole.gguf"].map(|model| stdout(&run(&[&["run", model][..], &prompt].concat())));
    assert_eq!(texts[0], texts[1]);
    let json: serde_json::Value = serde_json::from_str(&stdout(&run(&["inspect", first, "--json"]))).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 66);
    let q2_k = &json["types"]["Q2_K"]["activations"];
    assert_eq!(
        (&q2_k["cpu"]["few_tokens"], &q2_k["cuda"]["many_tokens"]),
        (&256.into(), &64.into())
    );
    assert!(q2_k["metal"]["few_tokens"].is_null());
    let bench_ = [
        "bench",
        first,
        "--prefill",
        "4",
        "--decode",
        "2",
        "--runs",
        "1",
        "--thread-counts",
        "1",
    ];
    assert!(run(&bench_).status.success());
    let ollama = run(&["verify", first, "--levels", "1", "--for", "ollama"]);
    assert_eq!(ollama.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&ollama.stdout).contains("llama-gguf-split --merge"));
}

#[test]
fn names_that_are_no_utf_8_end_in_no_panic() {
    let (bench, folder) = packed("m.gguf", "");
    let name = OsStr::from_bytes(b"m\xff\n.gguf");
    std::fs::rename(bench.path("m.gguf"), folder.join(name)).unwrap();
    let checkpoint = OsStr::from_bytes(b"kjv\xfe");
    data::copy_folder(&data::fixture("kjv"), &folder.join(checkpoint));
    let word = OsStr::new;
    let output = OsStr::from_bytes(b"new\xfe.gguf");
    let commands: [Vec<&OsStr>; 8] = [
        vec![word("inspect"), name, word("--json")],
        vec![word("inspect"), checkpoint, word("--json")],
        vec![word("diff"), name, checkpoint, word("--json")],
        vec![
            word("run"),
            name,
            word("-p"),
            word("And"),
            word("-n"),
            word("1"),
            word("--json"),
        ],
        vec![
            word("verify"),
            name,
            word("--against"),
            checkpoint,
            word("--levels"),
            word("2,3"),
            word("--json"),
        ],
        vec![word("verify"), name, word("--levels"), word("1"), word("--json")],
        vec![word("pack"), checkpoint, output, word("--json")],
        vec![
            word("pack"),
            checkpoint,
            output,
            word("--json"),
            word("--split-max-size"),
            word("1M"),
        ],
    ];
    for command in commands {
        let ran = tqconv(&folder, &command).output().unwrap();
        let stderr = String::from_utf8(ran.stderr).unwrap();
        assert!(
            matches!(ran.status.code(), Some(0..=2)),
            "{command:?}: {} {stderr}",
            ran.status
        );
        assert!(!stderr.contains("panicked"), "{command:?}: {stderr}");
        if ran.status.code() != Some(2) {
            serde_json::from_slice::<serde_json::Value>(&ran.stdout).unwrap();
        }
    }
    assert!(folder.join(output).exists());
    assert!(folder.join(OsStr::from_bytes(b"new\xfe-00001-of-00003.gguf")).exists());
}

#[test]
fn quiet_says_nothing_and_pipes_are_read_or_refused() {
    let (_bench, folder) = packed("m.gguf", "");
    let kjv = data::fixture("kjv");
    let kjv = kjv.to_str().unwrap();
    let quiet = tqconv(&folder, &["pack", kjv, "m.gguf", "--force", "-q"])
        .output()
        .unwrap();
    assert!(quiet.status.success() && quiet.stdout.is_empty() && quiet.stderr.is_empty());
    let given = tqconv(&folder, &["run", "m.gguf", "-p", "And the", "-n", "4", "-q"])
        .output()
        .unwrap();
    assert!(given.stderr.is_empty());
    let mut piped = tqconv(&folder, &["run", "m.gguf", "-p", "-", "-n", "4", "-q"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    piped.stdin.take().unwrap().write_all(b"And the\n").unwrap();
    assert_eq!(stdout(&piped.wait_with_output().unwrap()), stdout(&given));
    let refused = tqconv(&folder, &["pack", kjv, "-"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(!folder.join("-").exists());
}

#[test]
fn colours_follow_the_usual_rules() {
    let (_bench, folder) = packed("m.gguf", "");
    let paints = |arguments: &[&str], variables: &[(&str, &str)]| {
        let all = ["verify", "m.gguf", "--levels", "1"].iter().chain(arguments).copied();
        let mut command = tqconv(&folder, &all.collect::<Vec<_>>());
        command
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .envs(variables.iter().copied());
        stdout(&command.output().unwrap()).contains('\u{1b}')
    };
    assert!(!paints(&[], &[]), "a pipe");
    assert!(paints(&[], &[("CLICOLOR_FORCE", "1")]));
    assert!(!paints(&[], &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(paints(&["--color", "always"], &[("NO_COLOR", "1")]));
    assert!(!paints(&["--color", "never"], &[("CLICOLOR_FORCE", "1")]));
}

#[test]
fn a_larger_type_says_why() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let output = bench.path("x.gguf");
    let pack = |options: &[&str]| {
        let arguments = [
            &["pack", kjv.to_str().unwrap(), output.to_str().unwrap(), "--force"],
            options,
        ]
        .concat();
        stdout(&bench.run(&arguments))
    };
    let said = pack(&["--max-nmse", "1e-9"]);
    for part in [
        "not smaller",
        "28 linears: Q2_K would lose ",
        "--max-nmse is 1.0e-9",
        "--for gpu",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!pack(&[]).contains("not smaller"));
    assert!(!pack(&["--type", "q4_0"]).contains("not smaller"));
}

#[test]
fn the_commands_for_ollama_are_legal() {
    let (bench, folder) = packed("My Model.gguf", "--for ollama");
    let modelfile = std::fs::read_to_string(bench.path("My Model.Modelfile")).unwrap();
    let expected = "FROM ./My Model.gguf\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nPARAMETER num_ctx 1024\n";
    assert!(modelfile.starts_with(expected), "{modelfile}");
    let kjv = data::fixture("kjv");
    let kjv = kjv.to_str().unwrap();
    let ran = tqconv(&folder, &["pack", kjv, "My Model.gguf", "--for", "ollama", "--force"])
        .output()
        .unwrap();
    assert!(stdout(&ran).contains("ollama create my-model -f 'My Model.Modelfile' && ollama run my-model"));
    for (options, says) in [
        (&["m.gguf", "--split-max-size", "1M"][..], "split"),
        (&["m.Modelfile"], "name the output m.gguf"),
    ] {
        let arguments = [&["pack", kjv, "--for", "ollama"], options].concat();
        let ran = tqconv(&folder, &arguments).output().unwrap();
        assert_eq!(ran.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&ran.stderr).contains(says), "{ran:?}");
    }
    // A link where the Modelfile goes is replaced, and what it leads to is left alone.
    std::fs::write(folder.join("kept"), "kept").unwrap();
    std::os::unix::fs::symlink(folder.join("kept"), folder.join("n.Modelfile")).unwrap();
    let ran = tqconv(&folder, &["pack", kjv, "n.gguf", "--for", "ollama", "--force"])
        .output()
        .unwrap();
    assert!(ran.status.success());
    assert_eq!(std::fs::read(folder.join("kept")).unwrap(), b"kept");
}

#[test]
fn differences_within_a_limit_are_none() {
    let (_bench, folder) = packed("m.gguf", "");
    let kjv = data::fixture("kjv");
    let diff = |options: &[&str]| {
        let arguments = [&["diff", "m.gguf", kjv.to_str().unwrap()], options].concat();
        tqconv(&folder, &arguments).output().unwrap().status.code()
    };
    assert_eq!(diff(&[]), Some(1));
    assert_eq!(diff(&["--max-nmse", "1e-9"]), Some(1));
    assert_eq!(diff(&["--max-nmse", "1e-4"]), Some(0));
}

#[test]
fn every_command_has_examples_in_its_help() {
    for command in [
        "pack",
        "verify",
        "run",
        "inspect",
        "diff",
        "bench",
        "completions",
        "man",
    ] {
        let ran = tqconv(Path::new("."), &[command, "--help"]).output().unwrap();
        let help = stdout(&ran);
        assert!(help.contains("\nExamples:\n"), "{command}: {help}");
        assert!(
            ["completions", "man"].contains(&command) || help.contains("--json"),
            "{command}"
        );
        let heads: Vec<_> = help
            .lines()
            .filter(|line| line.ends_with(':') && !line.starts_with(' '))
            .collect();
        assert_eq!(heads[heads.len() - 2], "General:", "{command}: {heads:?}");
    }
}

#[test]
fn every_command_has_a_man_page() {
    let bench = Bench::new();
    stdout(&tqconv(&bench.path(""), &["man", "."]).output().unwrap());
    for page in [
        "tqconv.1",
        "tqconv-pack.1",
        "tqconv-verify.1",
        "tqconv-run.1",
        "tqconv-bench.1",
    ] {
        let page = std::fs::read_to_string(bench.path(page)).unwrap();
        assert!(page.contains(".SH NAME") && page.contains("\nExamples:"), "{page}");
    }
    let ran = tqconv(&bench.path(""), &["man", "nowhere"]).output().unwrap();
    assert_eq!(ran.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&ran.stderr).contains("nowhere"), "{ran:?}");
}

#[test]
fn the_verdict_comes_last_and_a_level_takes_a_line() {
    let (_bench, folder) = packed("m.gguf", "");
    let kjv = data::fixture("kjv");
    let verify = |options: &[&str]| {
        let arguments = [
            &[
                "verify",
                "m.gguf",
                "--against",
                kjv.to_str().unwrap(),
                "--levels",
                "1,2",
            ],
            options,
        ];
        stdout(&tqconv(&folder, &arguments.concat()).output().unwrap())
    };
    let said = verify(&[]);
    assert!(
        said.lines().last().unwrap().starts_with("m.gguf agrees with "),
        "{said}"
    );
    assert!(
        said.starts_with("level 1 layout: ") && said.contains("\nlevel 2 codes: "),
        "{said}"
    );
    assert!(!said.contains("0 wrong of"), "{said}");
    assert!(verify(&["-v"]).contains("0 wrong of"));
    assert_eq!(verify(&["-q"]).lines().count(), 1);
}

#[test]
fn another_model_is_said_first() {
    let (_bench, folder) = packed("m.gguf", "");
    let tiny = data::fixture("tiny");
    let tiny = tiny.to_str().unwrap();
    let ran = tqconv(&folder, &["verify", "m.gguf", "--against", tiny, "--levels", "1,2"])
        .output()
        .unwrap();
    let said = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(ran.status.code(), Some(1), "{said}");
    let first = said.lines().next().unwrap();
    assert!(first.contains("is another model: layers 4, expected 1"), "{said}");
    assert!(
        said.lines().last().unwrap().starts_with("m.gguf disagrees with "),
        "{said}"
    );
    assert!(said.lines().count() < 12, "{said}");
}

#[test]
fn what_nobody_names_is_named_after_the_model() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let (folder, kjv) = (bench.path(""), kjv.to_str().unwrap());
    std::fs::create_dir(bench.path("models")).unwrap();
    let said = stdout(&tqconv(&folder, &["pack", kjv]).output().unwrap());
    assert!(said.starts_with("kjv-3.7M-Q2_K.gguf: "), "{said}");
    assert!(said.contains("--embedding q8_0 saves "), "{said}");
    let arguments = [
        "pack",
        "kjv-3.7M-Q2_K.gguf",
        "models",
        "--type",
        "q4_0",
        "--max-nmse",
        "1",
    ];
    stdout(&tqconv(&folder, &arguments).output().unwrap());
    assert!(bench.path("models/kjv-3.7M-Q4_0.gguf").exists());
    // It is not replaced unasked.
    let again = tqconv(&folder, &["pack", kjv]).output().unwrap();
    assert_eq!(again.status.code(), Some(2));
}

/// As the system's own program computes it.
fn sha256(path: &Path) -> String {
    let ran = Command::new("sha256sum").arg(path).output().unwrap();
    stdout(&ran).split(' ').next().unwrap().to_owned()
}

fn read_json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_manifest_has_the_digest_of_every_file() {
    let (bench, _) = packed("m.gguf", "--manifest m.json --split-max-size 1M --embedding q8_0");
    let manifest = read_json(&bench.path("m.json"));
    let files = |side: &str| manifest[side].as_array().unwrap().clone();
    assert!(files("outputs").len() > 1);
    for (side, folder) in [("outputs", bench.path("")), ("inputs", data::fixture("kjv"))] {
        for file in files(side) {
            let path = folder.join(file["name"].as_str().unwrap());
            assert_eq!(file["sha256"], sha256(&path), "{file}");
            assert_eq!(file["bytes"], path.metadata().unwrap().len(), "{file}");
        }
    }
    let role = |name: &str| {
        let mut inputs = files("inputs").into_iter();
        inputs
            .find(|file| file["name"] == name)
            .map(|file| file["role"].clone())
    };
    assert_eq!(role("model.safetensors"), Some("weights".into()));
    assert_eq!(role("config.json"), Some("config".into()));
    assert_eq!(role("tokenizer.json"), Some("tokenizer".into()));
    assert_eq!(manifest["request"]["embedding"], "Q8_0");
    assert_eq!(manifest["losses"]["tensors"].as_object().unwrap().len(), 28);
}

#[test]
fn a_statement_is_the_same_twice_and_notices_a_byte() {
    let (bench, folder) = packed("m.gguf", "");
    let kjv = data::fixture("kjv");
    let attest = |name: &str, options: &[&str]| {
        let against = [
            "verify",
            "m.gguf",
            "--against",
            kjv.to_str().unwrap(),
            "--tokens",
            "32",
            "--attest",
            name,
        ];
        tqconv(&folder, &[&against, options].concat()).output().unwrap();
        std::fs::read(bench.path(name)).unwrap()
    };
    let first = attest("a.json", &["--reproducible"]);
    assert!(first == attest("b.json", &["--reproducible"]));
    let statement = read_json(&bench.path("a.json"));
    assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(
        statement["subject"][0]["digest"]["sha256"],
        sha256(&bench.path("m.gguf"))
    );
    let predicate = &statement["predicate"];
    assert_eq!(
        (&predicate["verdict"], &predicate["verified_at"]),
        (&"agrees".into(), &serde_json::Value::Null)
    );
    let against = predicate["against"].as_array().unwrap();
    let weights = against.iter().find(|file| file["name"] == "model.safetensors").unwrap();
    assert_eq!(weights["sha256"], sha256(&kjv.join("model.safetensors")));
    attest("c.json", &["--levels", "1"]);
    let dated = read_json(&bench.path("c.json"));
    assert!(dated["predicate"]["verified_at"].as_str().unwrap().ends_with('Z'));
    assert!(
        dated["predicate"]["command"]
            .as_str()
            .unwrap()
            .starts_with("tqconv verify m.gguf")
    );

    let mut bytes = std::fs::read(bench.path("m.gguf")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(bench.path("m.gguf"), bytes).unwrap();
    attest("d.json", &["--reproducible"]);
    let changed = read_json(&bench.path("d.json"));
    assert_eq!(changed["predicate"]["verdict"], "disagrees");
    assert_ne!(changed["subject"], statement["subject"]);
}

#[test]
fn limits_that_are_no_numbers_are_refused() {
    let none: [OsString; 0] = [];
    assert_eq!(tqconv(Path::new("."), &none).output().unwrap().status.code(), Some(2));
    for arguments in [
        ["pack", "a", "b", "--max-nmse", "nan"],
        ["pack", "a", "b", "--max-nmse=-inf", "-q"],
        ["verify", "a", "--max-nmse", "nan", "-q"],
        ["verify", "a", "--max-kld", "nan", "-q"],
        ["diff", "a", "b", "--max-nmse=-1", "-q"],
    ] {
        let ran = tqconv(Path::new("."), &arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert!(
            ran.status.code() == Some(2) && stderr.contains("not negative"),
            "{arguments:?}: {stderr}"
        );
    }
}
