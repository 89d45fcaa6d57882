//! What `pack` writes is what its own command verifies: random requests, and the command that each prints, run as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use fastrand::Rng;
use tempfile::TempDir;

use crate::data;

/// So long, and so many requests, at most; but for a few that are always made.
const TIME: Duration = Duration::from_secs(20);
const LEAST: u32 = 6;
const REQUESTS: u64 = 150;

fn one_of<'a>(random: &mut Rng, choices: &[&'a str]) -> &'a str {
    random.choice(choices).expect("there are choices")
}

const TYPES: [&str; 9] = ["tq2_0", "tq1_0", "q2_0", "q2_k", "q4_0", "q8_0", "f16", "bf16", "f32"];

/// Flags and the values that they are given.
const FLAGS: [(&str, &[&str]); 11] = [
    ("--for", &["any", "cpu", "gpu", "arm", "ollama"]),
    ("--max-nmse", &["0", "1e-6", "1e-3", "1e-2", "1"]),
    ("--type", &TYPES),
    (
        "--tensor-type",
        &["ffn_down=q8_0", "blk.0.=f16", "attn_q=q4_0", "nosuch=f16"],
    ),
    ("--embedding", &["f32", "f16", "bf16", "q8_0", "q6_k", "q4_k"]),
    ("--split-max-size", &["9000", "300000", "1M"]),
    (
        "--trained-as",
        &["ultraquantv2", "ultraquantv3", "absmean", "sherry", "twn", "bitnet"],
    ),
    ("--granularity", &["per_group", "per_channel", "per_tensor"]),
    ("--group-size", &["32", "64", "128", "100"]),
    ("--lambda", &["0", "1e-3", "0.37", "-2"]),
    ("--tokenizer-pre", &["gpt-2", "qwen2", "llama-bpe"]),
];

const METADATA: [&str; 15] = [
    "general.name=It's a \"name\" of $HOME",
    "general.name=\u{202e}\n\u{1b}[1m",
    "general.license=",
    "my.own_key=5",
    "My-Key=5",
    "llama.context_length=64",
    "llama.context_length=100000",
    "tokenizer.chat_template={% for m in messages %}{{ m.content }}{% endfor %}",
    "tokenizer.ggml.eos_token_id=3",
    "tokenizer.ggml.bos_token_id=2",
    "tokenizer.ggml.eot_token_id=5",
    "tokenizer.ggml.eos_token_id=999999",
    "tokenizer.ggml.add_bos_token=true",
    "tokenizer.ggml.add_eos_token=true",
    "llama.rope.freq_base=5",
];

const OUTPUTS: [&str; 6] = [
    "out.gguf",
    "a b.gguf",
    "it's $x.gguf",
    "-x.gguf",
    "\u{fc}\u{200b}.gguf",
    "none",
];

/// A folder to pack in, with the checkpoints' settings in another place, too.
struct Place {
    folder: TempDir,
    inputs: Vec<PathBuf>,
}

impl Place {
    fn new() -> Self {
        let corners = std::fs::read_dir(data::fixture("corners")).unwrap();
        let mut inputs: Vec<_> = corners.map(|entry| entry.unwrap().path()).collect();
        inputs.push(data::fixture("tiny"));
        inputs.sort();
        Self {
            folder: TempDir::new().unwrap(),
            inputs,
        }
    }

    fn request(&self, random: &mut Rng) -> Vec<String> {
        let input = &self.inputs[random.usize(..self.inputs.len())];
        let mut words = vec![text(input), one_of(random, &OUTPUTS).into()];
        for (flag, values) in FLAGS {
            if random.u32(..5) == 0 {
                words.extend([flag.into(), one_of(random, values).into()]);
            }
        }
        for _ in 0..random.u32(..3) {
            words.extend(["--metadata".into(), one_of(random, &METADATA).into()]);
        }
        for flag in ["--exact", "--hash"] {
            if random.u32(..6) == 0 {
                words.push(flag.into());
            }
        }
        for (flag, name) in [("--config", "config.json"), ("--tokenizer", "tokenizer.json")] {
            if random.u32(..6) == 0 {
                let elsewhere = self.folder.path().join(format!("other {name}"));
                std::fs::copy(input.join(name), elsewhere).unwrap();
                words.extend([flag.into(), format!("other {name}")]);
            }
        }
        // Words that begin with a dash are options but for the output.
        if words[1].starts_with('-') {
            words[1].insert_str(0, "./");
        }
        words.insert(0, "pack".into());
        words.push("--force".into());
        words
    }

    fn run(&self, program: &str, arguments: &[String]) -> Output {
        let binary: PathBuf = assert_cmd::cargo::cargo_bin!("tqconv").into();
        let path = format!(
            "{}:{}",
            binary.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("PATH", path)
            .current_dir(self.folder.path());
        command.output().unwrap()
    }
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().into()
}

/// Whether nothing failed but what llama.cpp computes with AMX: see [`data::llama_cpp_has_amx`].
fn only_llama_cpp_is_nan(said: &str) -> bool {
    let mut failed = said
        .lines()
        .filter(|line| line.trim_start().starts_with("FAIL"))
        .peekable();
    let is_nan = |line: &str| line.trim_start().starts_with("FAIL llama.cpp against file") && line.contains(": NaN");
    data::llama_cpp_has_amx() && failed.peek().is_some() && failed.all(is_nan)
}

/// Level 4 may disagree: its limits are for models that predict something, which the smallest fixtures do not.
#[test]
fn whatever_pack_writes_its_own_command_verifies() {
    let (place, start) = (Place::new(), Instant::now());
    let (mut packed, mut refused) = (0, 0);
    for seed in 0..REQUESTS {
        if start.elapsed() > TIME && packed >= LEAST {
            break;
        }
        let request = place.request(&mut Rng::with_seed(seed));
        let ran = place.run("tqconv", &request);
        let stderr = String::from_utf8_lossy(&ran.stderr);
        if ran.status.code() != Some(0) {
            assert_eq!(ran.status.code(), Some(2), "seed {seed}: {request:?}: {stderr}");
            refused += 1;
            continue;
        }
        let said = String::from_utf8(ran.stdout).unwrap();
        let command = said.lines().find_map(|line| line.strip_prefix("prove it:")).unwrap();
        let proof = place.run("bash", &["-c".into(), command.trim().into()]);
        let (stdout, stderr) = (
            String::from_utf8_lossy(&proof.stdout),
            String::from_utf8_lossy(&proof.stderr),
        );
        assert!(
            proof.status.code() == Some(0) || only_llama_cpp_is_nan(&stdout),
            "seed {seed}: {request:?}\n{command}\n{stdout}{stderr}"
        );
        packed += 1;
    }
    println!("{packed} requests packed and verified, {refused} refused");
    assert!(packed >= LEAST, "{packed} packed, {refused} refused");
}
