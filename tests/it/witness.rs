//! llama.cpp in a process of its own: whatever happens to it is found, told, and the end of nothing else.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use formats::gguf::{File, Layout, Value};
use serde_json::Value as Json;
use tqconv::witness::{Program, SUBCOMMAND, Witness, WitnessError};

use crate::data;
use crate::pack::Bench;

fn binary() -> &'static Path {
    assert_cmd::cargo::cargo_bin!("tqconv")
}

/// The program that every test of llama.cpp starts.
pub fn program() -> Program {
    Program::at(binary().into())
}

/// Checks of a report that failed: (level, name, details).
fn failed(report: &Json) -> Vec<(u64, String, String)> {
    let levels = report["levels"].as_array().unwrap();
    let checks = levels.iter().flat_map(|level| {
        let checks = level["checks"].as_array().unwrap().iter();
        checks.map(move |check| (level["number"].as_u64().unwrap(), check))
    });
    checks
        .filter(|(_, check)| check["pass"] == false)
        .map(|(level, check)| {
            let name = check["name"].as_str().unwrap().into();
            (level, name, check["details"].to_string())
        })
        .collect()
}

fn report(ran: &Output) -> Json {
    serde_json::from_slice(&ran.stdout)
        .unwrap_or_else(|_| panic!("{}: {}", ran.status, String::from_utf8_lossy(&ran.stderr)))
}

#[test]
fn the_version_names_the_llama_cpp_that_is_linked_in() {
    let told = Command::new(binary()).arg("--version").output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    let linked = Witness::start(&program())
        .ok()
        .map(|witness| witness.build().to_string());
    let expected = linked.unwrap_or_else(|| "no llama.cpp linked in; --llama PATH names one".into());
    assert_eq!(told, format!("tqconv {}\n{expected}\n", env!("CARGO_PKG_VERSION")));
}

/// Children of a process, by /proc.
#[cfg(target_os = "linux")]
fn children(parent: u32) -> Vec<u32> {
    let parent_of = |id: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // After the name, which is in brackets: state, parent.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        if fields.next() == Some("Z") {
            return None;
        }
        fields.next()?.parse().ok()
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&id| parent_of(id) == Some(parent))
        .collect()
}

fn signal(name: &str, id: u32) {
    let _ = Command::new("kill")
        .args([format!("-{name}"), id.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Start `verify` of all levels but the last, which is much longer.
fn verify(bench: &Bench, options: &[&str]) -> Child {
    Command::new(binary())
        .arg("verify")
        .arg(bench.path("out.gguf"))
        .arg("--against")
        .arg(data::fixture("kjv"))
        .args(["--levels", "1-4", "--json", "--threads", "1"])
        .args(options)
        // More than a pipe holds.
        .stdout(std::fs::File::create(bench.path("report")).unwrap())
        .spawn()
        .unwrap()
}

/// Exit code and report of what [`verify`] started.
fn verdict(bench: &Bench, mut verify: Child) -> (Option<i32>, Json) {
    let code = verify.wait().unwrap().code();
    let report = std::fs::read(bench.path("report")).unwrap();
    (code, serde_json::from_slice(&report).unwrap())
}

/// The witness is ended at 20 moments in four ways: each time the report is whole, and one check says what happened.
#[cfg(target_os = "linux")]
#[test]
fn a_witness_that_is_ended_from_outside_is_a_finding() {
    const MOMENTS: u32 = 20;
    // (signal, what the report says)
    const SIGNALS: [(&str, &str); 4] = [
        ("ILL", "SIGILL"),
        ("ABRT", "SIGABRT"),
        ("KILL", "SIGKILL"),
        ("STOP", "was silent for 2 s"),
    ];
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let begin = Instant::now();
    let (_, report) = verdict(&bench, verify(&bench, &[]));
    let whole = begin.elapsed();
    assert_eq!(failed(&report), []);
    for moment in 0..MOMENTS {
        let (name, says) = SIGNALS[moment as usize % SIGNALS.len()];
        // A signal that comes when the work is done changes nothing: earlier, then.
        let mut delay = whole * moment / MOMENTS;
        loop {
            let mut process = verify(&bench, &["--witness-patience", "2"]);
            let begin = Instant::now();
            while process.try_wait().unwrap().is_none()
                && (begin.elapsed() < delay || children(process.id()).is_empty())
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            children(process.id()).iter().for_each(|&id| signal(name, id));
            let (code, report) = verdict(&bench, process);
            if code == Some(0) {
                delay = delay * 3 / 4;
                continue;
            }
            assert_eq!(code, Some(1));
            let failed = failed(&report);
            let [(level, check, details)] = &failed[..] else {
                panic!("{name} after {delay:?}: {failed:?}");
            };
            assert!(details.contains(says), "{details}");
            for other in report["levels"].as_array().unwrap() {
                let expected = if other["number"] == *level { "failed" } else { "passed" };
                assert_eq!(other["status"], expected, "{name} after {delay:?}: {other:#}");
            }
            assert_eq!(report["levels"].as_array().unwrap().len(), 4);
            println!("{name} after {delay:?}: level {level}, {check}: {details}");
            break;
        }
    }
}

/// A program that stands in for the witness. It is written by another process: where this one had it open for writing
/// while another thread starts a program, it could not be run.
fn stand_in(bench: &Bench, name: &str, script: &str) -> PathBuf {
    let path = bench.path(name);
    let write = "cat > \"$1\" && chmod +x \"$1\"";
    let mut writer = Command::new("sh")
        .args(["-c", write, "sh"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let script = format!("#!/bin/sh\n{script}\n");
    writer.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(writer.wait().unwrap().success());
    path
}

/// What a real witness says first.
fn hello(bench: &Bench) -> PathBuf {
    let witness = Command::new(binary())
        .arg(SUBCOMMAND)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(witness.status.success());
    let path = bench.path("hello");
    std::fs::write(&path, witness.stdout).unwrap();
    path
}

#[test]
fn whatever_the_witness_answers_is_told() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let hello = hello(&bench);
    let hello = format!("cat {}", hello.to_str().unwrap());
    let alive = r"printf 'tqw1\001\000\000\000\000\000\000\000\000\000\000\000\000'";
    let read = "head -c 1 > /dev/null"; // the order has come
    // (name, script, what is said of it)
    let cases = [
        (
            "garbage",
            "echo Good morning to you all".into(),
            "answered \"Good morning to y\"",
        ),
        ("half", r"printf 'tqw1\002\010\000\000'".into(), "exit code 0"),
        (
            "too-much",
            r"printf 'tqw1\002\000\000\000\000\377\377\377\377\377\377\377\377'; sleep 9".into(),
            "answered 18446744073709551615 bytes",
        ),
        (
            "exit",
            "echo I would rather not >&2; exit 3".into(),
            "exit code 3; its last words: I would rather not",
        ),
        ("late-exit", format!("{hello}; {read}; exit 3"), "exit code 3"),
        (
            "no-memory",
            format!("{hello}; {read}; echo std::bad_alloc >&2; kill -ABRT $$"),
            "wanted more than",
        ),
        (
            "abort",
            format!("{hello}; {read}; echo 'GGML_ASSERT(x)' >&2; kill -ABRT $$"),
            "SIGABRT (it gave up); its last words: GGML_ASSERT(x)",
        ),
        (
            "deaf",
            format!("{hello}; while :; do {alive}; sleep 0.1; done"),
            "gave no answer within 6 s",
        ),
        ("silent", format!("{hello}; exec sleep 60"), "was silent for 2 s"),
        (
            "foreign",
            format!("{hello}; {alive}; {hello}; sleep 9"),
            "answered something else while reading",
        ),
    ];
    for (name, script, says) in cases {
        let fake = stand_in(&bench, name, &script);
        let file = bench.path("out.gguf");
        let levels = if name == "exit" { "1,3" } else { "1" };
        let mut arguments = vec!["--witness", fake.to_str().unwrap(), "--witness-patience", "2"];
        arguments.extend(["verify", file.to_str().unwrap(), "--levels", levels, "--json"]);
        let ran = bench.run(&arguments);
        let report = report(&ran);
        let failed = failed(&report);
        assert_eq!(ran.status.code(), Some(1), "{name}");
        let (1, "ggml's reader", details) = (failed[0].0, &*failed[0].1, &failed[0].2) else {
            panic!("{name}: {failed:?}");
        };
        assert_eq!(failed.len(), levels.split(',').count(), "{name}: {failed:?}");
        let details: Vec<String> = serde_json::from_str(details).unwrap();
        assert!(details[0].contains(says), "{name}: {details:?}");
        println!("{name}: {}", details[0]);
        if levels == "1" {
            continue;
        }
        // Our own product needs nobody.
        assert_eq!((failed[1].0, &*failed[1].1), (3, "ggml's product"));
        let checks = report["levels"][1]["checks"].as_array().unwrap();
        assert!(
            checks
                .iter()
                .any(|check| check["name"] == "our kernels against f64" && check["pass"] == true)
        );
    }
}

#[test]
fn run_and_bench_say_the_same_and_end_with_2() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let fake = stand_in(&bench, "fake", "echo I would rather not >&2; exit 3");
    let (fake, file) = (fake.to_str().unwrap(), bench.path("out.gguf"));
    let file = file.to_str().unwrap();
    for command in [
        &["run", file, "--engine", "llama.cpp", "-p", "And", "-n", "2"][..],
        &["bench", file, "--runs", "1", "--thread-counts", "1"],
        &["bench", "--type", "tq2_0", "--shape", "64x256", "--seconds", "0.01"],
    ] {
        let error = bench.refused(&[&["--witness", fake], command].concat());
        let words = "llama.cpp crashed while starting: exit code 3; its last words: I would rather not";
        assert!(error.contains(words), "{error}");
    }
    let error = bench.refused(&["--witness", "nowhere", "verify", file, "--levels", "1"]);
    assert!(error.contains("llama.cpp cannot be started as nowhere"), "{error}");
}

/// What the machine lacks is no verdict about the file.
#[test]
fn too_few_descriptors_are_no_finding() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let mut told = 0;
    for descriptors in 4..20 {
        let limit = format!("ulimit -n {descriptors}; exec \"$@\"");
        let ran = Command::new("sh")
            .args(["-c", &limit, "sh"])
            .arg(binary())
            .arg("verify")
            .arg(bench.path("out.gguf"))
            .args(["--levels", "1"])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&ran.stderr);
        let code = ran.status.code();
        assert!(matches!(code, Some(0 | 2)), "{descriptors}: {}: {error}", ran.status);
        told += usize::from(error.contains("llama.cpp cannot be started"));
    }
    assert!(told > 0);
}

/// A child whose parent is no more ends; so does one whose parent is interrupted.
#[cfg(target_os = "linux")]
#[test]
fn the_witness_ends_with_its_parent() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    for (name, code) in [("KILL", None), ("INT", Some(130))] {
        let mut process = Command::new(binary())
            .arg("run")
            .arg(bench.path("out.gguf"))
            .args(["--engine", "llama.cpp", "-p", "And", "-n", "1000", "--temp", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        process.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
        let witness = children(process.id());
        assert_eq!(witness.len(), 1);
        // As a terminal does it: to the whole group.
        match name {
            "INT" => drop(
                Command::new("kill")
                    .args(["-INT", "--", &format!("-{}", process.id())])
                    .status(),
            ),
            _ => signal(name, process.id()),
        }
        // Where nobody reads, the text ends by itself.
        let _ = process.stdout.as_mut().unwrap().read_to_end(&mut vec![]);
        assert_eq!(process.wait().unwrap().code(), code, "{name}");
        let begin = Instant::now();
        while Path::new(&format!("/proc/{}/exe", witness[0])).exists() {
            assert!(begin.elapsed() < Duration::from_secs(5), "{name}: it lives on");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// llama.cpp's AMX code works where the CPU has AMX: with GCC 12 it dies of SIGILL unless built with -fno-dse
/// (.cargo/config.toml). Only products of several tokens with repacked weights run it.
#[cfg(target_os = "linux")]
#[test]
fn amx_multiplies() {
    if !data::llama_cpp_has_amx() {
        println!("skipped: this CPU has no AMX");
        return;
    }
    let system = Witness::start(&program()).unwrap().system().to_owned();
    assert!(system.contains("AMX_INT8 = 1"), "built without AMX: {system}");
    let bench = Bench::new();
    for ty in ["q4_0", "q8_0"] {
        bench.pack(&data::fixture("kjv"), &format!("--type {ty}"));
        let (_, report) = verdict(&bench, verify(&bench, &[]));
        assert_eq!(failed(&report), [], "{ty}");
        let checks = report["levels"][3]["checks"].as_array().unwrap();
        assert!(
            checks
                .iter()
                .any(|check| check["name"] == "llama.cpp against file: mean KLD"),
            "{ty}"
        );
    }
}

/// llama.cpp's `std::regex` goes one level deeper with each character of a word.
#[test]
fn a_long_word_is_split() {
    let bench = Bench::new();
    let (bytes, _) = bench.pack(&data::fixture("kjv"), "");
    let file = File::parse(&bytes).unwrap();
    let mut keys = file.metadata().to_vec();
    let pre = keys.iter_mut().find(|(key, _)| key == "tokenizer.ggml.pre");
    pre.unwrap().1 = Value::String("gpt-4o".into());
    let path = bench.path("out.gguf");
    std::fs::write(&path, rewritten(&file, &keys)).unwrap();
    let text = bench.path("text");
    for char in ["a", " "] {
        std::fs::write(&text, char.repeat(60_000)).unwrap();
        let arguments = [
            "verify",
            path.to_str().unwrap(),
            "--levels",
            "4",
            "--tokens",
            "2",
            "--json",
            "--text",
        ];
        let ran = bench.run(&[&arguments[..], &[text.to_str().unwrap()]].concat());
        let report = report(&ran);
        assert_eq!(failed(&report), [], "{char:?}");
        let checks = report["levels"][0]["checks"].as_array().unwrap();
        assert!(checks.iter().any(|check| check["name"] == "texts split alike"));
    }
    let mut witness = Witness::start(&program()).unwrap();
    let error = witness.tokenize(&"a".repeat(2 << 20), false, false).unwrap_err();
    assert!(matches!(error, WitnessError::LongRun { length } if length == 2 << 20));
}

#[test]
fn a_name_need_not_be_utf_8() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let path = bench.path("").join(std::ffi::OsStr::from_bytes(b"m\xff.gguf"));
    std::fs::rename(bench.path("out.gguf"), &path).unwrap();
    let ran = Command::new(binary())
        .arg("verify")
        .arg(&path)
        .args(["--levels", "1,3,4", "--tokens", "16"])
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(0), "{}", String::from_utf8_lossy(&ran.stdout));
}

/// The file with other keys.
fn rewritten(file: &File, keys: &[(String, Value)]) -> Vec<u8> {
    let layout = Layout::new(keys, file.tensors()).unwrap();
    let mut bytes = layout.header;
    bytes.resize(layout.size as usize, 0);
    for (info, offset) in file.tensors().iter().zip(layout.offsets) {
        let (_, data) = file.tensor(&info.name).unwrap();
        bytes[offset as usize..][..data.len()].copy_from_slice(data);
    }
    bytes
}

/// What llama.cpp would abort of is refused by us, by name.
#[test]
fn what_llama_cpp_aborts_of_is_refused_before() {
    let bench = Bench::new();
    let (bytes, _) = bench.pack(&data::fixture("kjv"), "");
    let file = File::parse(&bytes).unwrap();
    type Keys = Vec<(String, Value)>;
    let with = |change: &dyn Fn(&mut Keys)| {
        let mut keys = file.metadata().to_vec();
        change(&mut keys);
        rewritten(&file, &keys)
    };
    let mut cases = vec![
        (
            "'llama.expert_group_count' is 1 (u32), expected 0",
            with(&|keys| keys.push(("llama.expert_group_count".into(), Value::U32(1)))),
        ),
        (
            "a list that has \"a\\0b\", expected tokens without NUL",
            with(&|keys| {
                let tokens = keys.iter_mut().find(|(key, _)| key == "tokenizer.ggml.tokens");
                let Value::Array(formats::gguf::Array::String(tokens)) = &mut tokens.unwrap().1 else {
                    panic!("strings");
                };
                tokens[100] = "a\0b".into();
            }),
        ),
    ];
    for alignment in [1, 2, 4, 8, 16] {
        // Until the data lies where 32 does not divide.
        let misaligned = (0..32).find_map(|length| {
            let bytes = with(&|keys| {
                keys.push(("general.alignment".into(), Value::U32(alignment)));
                keys.push(("tqconv.filler".into(), Value::String("n".repeat(length))));
            });
            let start = File::parse(&bytes).ok()?.data_start();
            (start % 32 != 0).then_some(bytes)
        });
        cases.push(("expected tensors at multiples of 32", misaligned.unwrap()));
    }
    for (says, bytes) in cases {
        let path = bench.path("out.gguf");
        std::fs::write(&path, bytes).unwrap();
        let path = path.to_str().unwrap();
        for engine in ["native", "llama.cpp"] {
            let error = bench.refused(&["run", path, "--engine", engine, "-p", "And", "-n", "2"]);
            assert!(error.contains(says), "{error}");
        }
        let ran = bench.run(&["verify", path, "--levels", "1", "--json"]);
        let failed = failed(&report(&ran));
        let named = failed.iter().any(|(level, name, details)| {
            *level == 1
                && name == "the architecture's tensors"
                && details.contains(&says.replace('\\', "\\\\").replace('"', "\\\""))
        });
        assert!(named, "{says}: {failed:?}");
    }
}
