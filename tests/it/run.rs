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

/// What keys and values are kept in is told, and is our engine's alone.
#[test]
fn the_types_of_the_cache_are_named_and_are_ours_alone() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let file = bench.path("out.gguf");
    let arguments = ["run", file.to_str().unwrap(), "-p", PROMPT, "-n", "2"];
    let types = ["--cache-type-k", "q8_0", "--cache-type-v", "f16"];
    let ran = bench.run(&[&arguments[..], &types].concat());
    let last = String::from_utf8(ran.stderr).unwrap();
    assert!(last.contains("native, Q8_0 keys, F16 values"), "{last}");
    let ran = bench.run(&[&arguments[..], &types, &["--json"]].concat());
    let report: Json = serde_json::from_slice(&ran.stdout).unwrap();
    let engine = &report["engine"];
    assert_eq!([&engine["cache_type_k"], &engine["cache_type_v"]], ["q8_0", "f16"]);

    let refused = |more: &[&str], says: &str| {
        let refused = bench.run(&[&arguments[..], more].concat());
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.contains(says), "{message}");
    };
    refused(&["--cache-type-k", "f16", "--engine", "llama.cpp"], "--engine native");
    refused(
        &["--cache-type-v", "q4_0"],
        "invalid value 'q4_0' for '--cache-type-v <TYPE>'",
    );
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
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
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

/// kjv with a chat template, as `chat.gguf`.
fn with_template(template: &str) -> Bench {
    let bench = Bench::new();
    let (bytes, _) = bench.pack(&data::fixture("kjv"), "");
    let mut file = crate::hostile::input::Gguf::of(&bytes);
    file.set("tokenizer.chat_template", formats::gguf::Value::String(template.into()));
    std::fs::write(bench.path("chat.gguf"), file.bytes()).unwrap();
    bench
}

fn run_chat(bench: &Bench, arguments: &[&str]) -> std::process::Output {
    let file = bench.path("chat.gguf");
    bench.run(&[&["run", file.to_str().unwrap(), "-n", "4"], arguments].concat())
}

#[test]
fn a_model_with_a_template_answers() {
    let bench = with_template(
        "{% for message in messages %}\n{{ message['role'] }}: {{ message['content'].strip() }}\n{% endfor %}\n\
         {% if add_generation_prompt %}assistant:{% endif %}",
    );
    let prompt = |arguments: &[&str]| {
        let ran = run_chat(&bench, &[arguments, &["--json"]].concat());
        let report: Json = serde_json::from_slice(&ran.stdout).unwrap();
        report["prompt"].as_str().unwrap().to_owned()
    };
    assert_eq!(prompt(&["Who art thou? "]), "user: Who art thou?\nassistant:");
    let system = ["--system", "Be brief.", "Who art thou?"];
    assert_eq!(prompt(&system), "system: Be brief.\nuser: Who art thou?\nassistant:");
    assert_eq!(prompt(&["--no-chat", "Who art thou?"]), "Who art thou?");
    // The answer alone is shown.
    let ran = run_chat(&bench, &["Who art thou?"]);
    assert!(
        !String::from_utf8_lossy(&ran.stdout).contains("Who art thou?"),
        "{ran:?}"
    );
}

/// At a terminal an interrupt ends the answer; where none is being given, the conversation.
#[cfg(unix)]
#[test]
fn a_conversation_goes_on_after_an_interrupt() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};
    const TRIES: usize = 20;
    let bench = with_template("{% for message in messages %}{{ message['content'] }}{% endfor %}");
    // An answer that is done before the signal comes proves nothing.
    let interrupted = (0..TRIES).any(|_| {
        let mut terminal = std::fs::File::from(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap());
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, vec![]).unwrap().into_string().unwrap();
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("tqconv"))
            .arg("run")
            .arg(bench.path("chat.gguf"))
            .args(["-n", "200", "--threads", "1"])
            .stdin(std::fs::File::open(name).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        terminal.write_all(b"And God said\n").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        terminal.write_all(b"And it was so\n\x04").unwrap();
        let ran = child.wait_with_output().unwrap();
        let asked = String::from_utf8(ran.stderr).unwrap().matches("> ").count();
        match ran.status.code() {
            Some(0) => {
                assert_eq!(asked, 3, "an answer, another, and the end");
                true
            }
            Some(130) => {
                assert_eq!(
                    asked, 2,
                    "the answer was done, and the interrupt ended the conversation"
                );
                false
            }
            _ => panic!("{}", ran.status),
        }
    });
    assert!(interrupted, "{TRIES} answers were done before the signal came");
}

/// Somebody else's template takes no more than it may.
#[test]
fn a_hostile_template_is_stopped() {
    let doubling = "{% set all = namespace(x='aaaaaaaa') %}{% for i in range(64) %}{% set all.x = all.x ~ all.x %}\
                    {% endfor %}{{ all.x }}";
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    for (template, says) in [
        (doubling, "the chat template"), // which of its limits it meets first depends on the machine
        (endless, "the chat template cannot be applied"),
        ("{% include '/etc/passwd' %}", "the chat template cannot be applied"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "the chat template cannot be applied"),
    ] {
        let ran = run_chat(&with_template(template), &["Hi"]);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(2), "{template}: {said}");
        assert!(said.contains(says) && said.contains("--no-chat"), "{template}: {said}");
    }
}

#[test]
fn a_text_can_come_from_anywhere() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let (file, text) = (bench.path("out.gguf"), bench.path("text"));
    std::fs::write(&text, format!("{PROMPT}\n")).unwrap();
    let (file, text) = (file.to_str().unwrap(), text.to_str().unwrap());
    let run = |arguments: &[&str]| bench.run(&[&["run", file, "-n", "4", "-q"], arguments].concat()).stdout;
    let expected = run(&["-p", PROMPT]);
    assert!(expected.starts_with(PROMPT.as_bytes()));
    assert_eq!(run(&[PROMPT]), expected);
    assert_eq!(run(&["-f", text]), expected);
    assert_eq!(run(&["-c", "64", PROMPT, "--top-k", "1", "--temp", "2"]), expected);
    let system = bench.refused(&["run", file, PROMPT, "--system", "Be brief."]);
    assert!(
        system.contains("--system is for a file with a chat template"),
        "{system}"
    );
}

#[test]
fn a_text_without_end_ends_with_the_context() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let file = bench.path("out.gguf");
    let ran = bench.run(&["run", file.to_str().unwrap(), PROMPT, "-n", "-1", "-c", "32", "--json"]);
    let report: Json = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(report["stopped"], "context");
    let all = report["prompt_tokens"].as_array().unwrap().len() + report["tokens"].as_array().unwrap().len();
    assert_eq!(all, 33, "the last one is not run");
}
