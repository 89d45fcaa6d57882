//! `scripts/train_tequila.py` at tiny size: what it trains is packed as it was trained, and a run that is resumed ends
//! where one in one piece does. Without PyTorch the tests are skipped, and say so.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

/// The Python that has PyTorch: `TQCONV_PYTHON`, or python3.
fn python() -> Option<Command> {
    let name = std::env::var_os("TQCONV_PYTHON").unwrap_or_else(|| "python3".into());
    let mut asked = Command::new(&name);
    let asked = asked.args(["-c", "import torch, safetensors, tokenizers"]).output();
    match asked {
        Ok(output) if output.status.success() => Some(Command::new(name)),
        _ => {
            println!("skipped: {name:?} has no torch, safetensors and tokenizers; TQCONV_PYTHON names one that has");
            None
        }
    }
}

/// Train from `model` on a text that is its own source, into `out`.
fn train(mut python: Command, model: &Path, out: &Path, options: &str) -> Output {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/text/sample.txt");
    let fixed = "--steps 4 --batch 2 --window 32 --warm-up 1 --held-out 0.2 --held-out-tokens 64 --every 2";
    python
        .arg("-B") // leaves no compiled files beside the script
        .arg(scripts.join("train_tequila.py"))
        .args([model, &text, out])
        .args(fixed.split(' '))
        .args(options.split_whitespace());
    python.output().unwrap()
}

fn text(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The number behind `label`.
fn number(text: &str, label: &str) -> f64 {
    let (_, rest) = text
        .split_once(label)
        .unwrap_or_else(|| panic!("no '{label}' in {text}"));
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    rest[..end].trim_end_matches('.').parse().unwrap()
}

#[test]
fn what_is_trained_is_what_is_packed() {
    let Some(_) = python() else { return };
    let model = data::fixture("kjv");
    for method in ["ultraquantv2", "ultraquantv3"] {
        let bench = Bench::new();
        let out = bench.path("trained");
        let options = format!(
            "--method {method} --tqconv {}",
            assert_cmd::cargo::cargo_bin!("tqconv").display()
        );
        let told = text(&train(python().unwrap(), &model, &out, &options));
        // The same checkpoint and text by PyTorch's forward pass and by the oracle.
        let (torch, oracle) = (
            number(&told, "after 4 steps: "),
            number(&told, "of the checkpoint by tqconv: "),
        );
        assert!((torch / oracle - 1.0).abs() < 2e-4, "{told}");
        assert!(told.contains("agrees"), "{told}");
        let config: Json = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
        assert_eq!(
            (&config["quant_method"], &config["group_size"]),
            (&method.into(), &128.into())
        );
        let before = data::Tensors::read(&model, "model");
        let after = data::Tensors::read(&out, "model");
        let name = "model.layers.0.mlp.up_proj.weight";
        assert_ne!(
            before.by_name()[name].bytes,
            after.by_name()[name].bytes,
            "nothing was trained"
        );
    }
}

#[test]
fn a_resumed_run_ends_where_one_in_one_piece_does() {
    let Some(whole) = python() else { return };
    let bench = Bench::new();
    let model = data::fixture("kjv");
    let (at_once, resumed) = (bench.path("at-once"), bench.path("resumed"));
    text(&train(whole, &model, &at_once, ""));
    text(&train(python().unwrap(), &model, &resumed, "--stop-at 2"));
    let told = text(&train(python().unwrap(), &model, &resumed, "--resume"));
    assert!(told.contains("resumed after step 2"), "{told}");
    let [a, b] = [&at_once, &resumed].map(|folder| std::fs::read(folder.join("model.safetensors")).unwrap());
    assert!(a == b, "other weights");
    // Nothing is trained over by mistake.
    let refused = train(python().unwrap(), &model, &resumed, "");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("--resume"), "{why}");
}
