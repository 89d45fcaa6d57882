//! Limits of the machine: what it lacks is said, with exit code 2, and nothing is left behind.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::data;
use crate::pack::Bench;

/// The binary in a shell in which `limits` hold.
fn limited(limits: &str, arguments: &[&str]) -> Output {
    Command::new("bash")
        .args(["-c", &format!("{limits}; exec \"$@\""), "bash"])
        .arg(assert_cmd::cargo::cargo_bin!("tqconv"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Exit code 2, and one line that ends with what to do.
fn assert_says(ran: &Output, remedy: &str) {
    let stderr = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(2), "{stderr}");
    assert!(stderr.starts_with("error: ") && stderr.contains(remedy), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_file_that_may_not_grow_is_an_error_and_no_signal() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    for options in [&[][..], &["--split-max-size", "700000"]] {
        let output = bench.path("out.gguf");
        let arguments = [&["pack", kjv.to_str().unwrap(), output.to_str().unwrap()], options].concat();
        assert_says(&limited("ulimit -f 500", &arguments), "ulimit -f");
        assert_eq!(output.parent().unwrap().read_dir().unwrap().count(), 0);
    }
}

#[test]
fn too_few_open_files_are_said() {
    let shards = data::fixture("corners/lambada-biases-shards");
    let bench = Bench::new();
    let output = bench.path("out.gguf");
    let arguments = ["pack", shards.to_str().unwrap(), output.to_str().unwrap()];
    assert_says(&limited("ulimit -n 5", &arguments), "ulimit -n");
    assert!(!output.exists());
}

#[test]
fn too_few_threads_are_said() {
    let binary = assert_cmd::cargo::cargo_bin!("tqconv");
    let kjv = data::fixture("kjv");
    // The limit does not hold for root.
    let script = format!("ulimit -u 1; exec '{}' inspect '{}'", binary.display(), kjv.display());
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        "12345",
        "--regid",
        "12345",
        "--clear-groups",
        "bash",
        "-c",
        &script,
    ]);
    match command.output() {
        Ok(ran) if !String::from_utf8_lossy(&ran.stderr).starts_with("setpriv") => {
            if ran.status.code() == Some(126) {
                println!("skipped: another user cannot run the binary");
                return;
            }
            assert_says(&ran, "ulimit -u");
        }
        _ => println!("skipped: becoming another user needs root and setpriv"),
    }
}

#[test]
fn nobody_may_be_listening() {
    if !Path::new("/dev/full").exists() {
        return println!("skipped: there is no /dev/full");
    }
    let kjv = data::fixture("kjv");
    let kjv = kjv.to_str().unwrap();
    let ran = limited("exec 2>/dev/full", &["pack", "none", "x.gguf"]);
    assert_eq!(ran.status.code(), Some(2));
    for command in [
        &["inspect", kjv][..],
        &["completions", "bash"],
        &["inspect", kjv, "--json"],
    ] {
        assert_says(&limited("exec 1>/dev/full", command), "make room on the disk");
        let closed = limited("exec 1>&-", command);
        assert_ne!(closed.status.code(), Some(101), "{closed:?}");
        let ran = limited("set -o pipefail; exec 1> >(true); sleep 0.1", command);
        assert_eq!(ran.status.code(), Some(0), "{command:?}");
    }
}
