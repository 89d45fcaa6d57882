//! An input that shrinks or is rewritten while it is packed: an error, or the file of one of the two states whole. Never a
//! signal, never a file of both.

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::data;

/// Rounds, each with the change at another time.
pub const ROUNDS: u32 = 40;

fn pack(input: &Path, output: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("tqconv"));
    command.args(["pack", "-q", "--force"]).arg(input).arg(output);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The output of a pack that nothing disturbs, and how long it takes.
fn undisturbed(input: &Path, output: &Path) -> (Vec<u8>, Duration) {
    let start = Instant::now();
    let ran = pack(input, output).output().unwrap();
    let time = start.elapsed();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    (std::fs::read(output).unwrap(), time)
}

/// Pack many times, and each time do `change` to the weights a little later. How many packs were disturbed.
fn disturb(change: impl Fn(&std::fs::File, u32)) -> u32 {
    let folder = TempDir::new().unwrap();
    let (input, output) = (folder.path().join("kjv"), folder.path().join("out.gguf"));
    data::copy_folder(&data::fixture("kjv"), &input);
    let weights = input.join("model.safetensors");
    let sound = std::fs::read(&weights).unwrap();
    let (before, time) = undisturbed(&input, &output);
    let mut refused = 0;
    for round in 0..ROUNDS {
        std::fs::write(&weights, &sound).unwrap();
        let _ = std::fs::remove_file(&output);
        let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
        // Beyond the granularity of a file's time.
        std::thread::sleep(Duration::from_millis(20));
        let child = pack(&input, &output).spawn().unwrap();
        std::thread::sleep(time * round / ROUNDS);
        change(&file, round);
        let ran = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.signal(), None, "round {round}: {stderr}");
        match ran.status.code() {
            Some(0) => {
                let written = std::fs::read(&output).unwrap();
                let changed = written != before && written != undisturbed(&input, &output).0;
                assert!(!changed, "round {round}: a file of two states");
            }
            Some(2) => {
                refused += 1;
                assert!(stderr.contains("model.safetensors"), "round {round}: {stderr}");
                assert!(!output.exists(), "round {round}: left behind");
            }
            code => panic!("round {round}: {code:?} {stderr}"),
        }
        assert!(!folder.path().join("out.gguf.tqconv.partial").exists(), "round {round}");
    }
    refused
}

#[test]
fn an_input_that_shrinks_is_an_error() {
    let refused = disturb(|file, round| file.set_len(u64::from(round) * 100_000).unwrap());
    println!("{refused} of {ROUNDS} packs refused, the others were done before");
    assert!(refused > 0);
}

#[test]
fn an_input_that_is_rewritten_is_an_error() {
    // Other weights, each finite.
    let refused = disturb(|file, _| file.write_all_at(&[0x3c; 4 << 20], 1 << 20).unwrap());
    println!("{refused} of {ROUNDS} packs refused, the others saw one state");
    assert!(refused > 0);
}
