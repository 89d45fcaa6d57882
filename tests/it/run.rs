//! `tqconv run`: the text goes to stdout as it comes, and Ctrl-C ends it.

use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

const PROMPT: &str = "In the beginning";

#[test]
fn text_continues_the_prompt_and_the_last_line_tells_the_speed() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "--type q4_0");
    let file = bench.path("out.gguf");
    let arguments = ["run", file.to_str().unwrap(), "-p", PROMPT, "-n", "8"];
    let ran = bench.run(&arguments);
    let (text, last) = (
        String::from_utf8(ran.stdout).unwrap(),
        String::from_utf8(ran.stderr).unwrap(),
    );
    assert!(ran.status.success(), "{last}");
    assert!(text.starts_with(PROMPT) && text.len() > PROMPT.len() + 8, "{text}");
    assert!(
        last.contains("generated: 8 tokens, ") && last.contains(" tok/s"),
        "{last}"
    );

    let ran = bench.run(&[&arguments[..], &["--json"]].concat());
    let report: Json = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(format!("{PROMPT}{}\n", report["text"].as_str().unwrap()), text);
    assert_eq!(report["stopped"], "length");
}

/// Finer activations are our engine's, which names them; llama.cpp has its own.
#[test]
fn finer_activations_are_named_and_are_ours_alone() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let file = bench.path("out.gguf");
    let arguments = ["run", file.to_str().unwrap(), "-p", PROMPT, "-n", "2", "--json"];
    for (scales, named) in [("llama.cpp", "per 256"), ("per-64", "per 64"), ("per-32", "per 32")] {
        let ran = bench.run(&[&arguments[..], &["--activations", scales]].concat());
        let report: Json = serde_json::from_slice(&ran.stdout).unwrap();
        let engine = report["engine"].to_string();
        assert!(engine.contains(&format!("activations {named}")), "{engine}");
    }
    let refused = bench.run(&[&arguments[..], &["--activations", "per-32", "--engine", "llama.cpp"]].concat());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(message.contains("--engine native"), "{message}");
}

/// An interrupted text is whole as far as it goes, and what was measured is told.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_text() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    const TRIES: usize = 20;
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "--type q4_0");
    // A text that is done before the signal comes proves nothing.
    let interrupted = (0..TRIES).any(|_| {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("tqconv"))
            .arg("run")
            .arg(bench.path("out.gguf"))
            .args(["-p", PROMPT, "-n", "100000", "--threads", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut [0; PROMPT.len()])
            .unwrap();
        let id = child.id().to_string();
        Command::new("kill").args(["-INT", &id]).status().unwrap();
        let ran = child.wait_with_output().unwrap();
        let last = String::from_utf8(ran.stderr).unwrap();
        match ran.status.code() {
            Some(130) => {
                assert!(ran.stdout.ends_with(b"\n") && last.contains("(interrupted)"), "{last}");
                true
            }
            Some(0) => false,
            _ => panic!("{}: {last}", ran.status),
        }
    });
    assert!(interrupted, "{TRIES} texts were done before the signal came");
}
