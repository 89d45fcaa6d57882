//! `tqconv diff`: nothing, one number, one key, one type; and a checkpoint in the place of a file.

use std::path::PathBuf;

use formats::gguf::File;
use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

struct Pair {
    bench: Bench,
    a: PathBuf,
    b: PathBuf,
}

impl Pair {
    /// The kjv fixture packed twice.
    fn new(options_a: &str, options_b: &str) -> Self {
        let bench = Bench::new();
        let write = |name: &str, options: &str| {
            let (bytes, _) = bench.pack(&data::fixture("kjv"), options);
            std::fs::write(bench.path(name), bytes).unwrap();
            bench.path(name)
        };
        let (a, b) = (write("a.gguf", options_a), write("b.gguf", options_b));
        Self { bench, a, b }
    }

    fn diff(&self) -> (i32, Json) {
        let (a, b) = (self.a.to_str().unwrap(), self.b.to_str().unwrap());
        let ran = self.bench.run(&["diff", a, b, "--json"]);
        let error = String::from_utf8_lossy(&ran.stderr);
        let report = serde_json::from_slice(&ran.stdout);
        (ran.status.code().unwrap(), report.unwrap_or_else(|_| panic!("{error}")))
    }

    /// The line for people: the first of the output.
    fn headline(&self) -> String {
        let (a, b) = (self.a.to_str().unwrap(), self.b.to_str().unwrap());
        let ran = self.bench.run(&["diff", a, b]);
        let text = String::from_utf8(ran.stdout).unwrap();
        text.lines().next().unwrap().to_owned()
    }

    /// Change byte `at` of `tensor` in b.
    fn change(&self, tensor: &str, at: usize) {
        let mut bytes = std::fs::read(&self.b).unwrap();
        let file = File::parse(&bytes).unwrap();
        let data = file.tensor(tensor).unwrap().1;
        let start = data.as_ptr() as usize - bytes.as_ptr() as usize;
        bytes[start + at] ^= 1;
        std::fs::write(&self.b, bytes).unwrap();
    }
}

fn names(differences: &Json) -> Vec<&str> {
    let differences = differences.as_array().unwrap();
    differences.iter().map(|d| d["name"].as_str().unwrap()).collect()
}

#[test]
fn equal_files_differ_in_nothing() {
    let pair = Pair::new("", "");
    let (code, report) = pair.diff();
    assert_eq!(code, 0);
    assert_eq!((names(&report["keys"]), names(&report["tensors"])), (vec![], vec![]));
    assert_eq!(report["same_tensors"], 66);
    assert!(pair.headline().ends_with("are equal: 33 keys and 66 tensors"));
}

#[test]
fn one_changed_number_is_found_where_it_is() {
    let pair = Pair::new("", "");
    pair.change("blk.2.attn_norm.weight", 4 * 11);
    let (code, report) = pair.diff();
    assert_eq!(code, 1);
    assert_eq!(names(&report["keys"]), [""; 0]);
    assert_eq!(names(&report["tensors"]), ["blk.2.attn_norm.weight"]);
    let found = &report["tensors"][0];
    assert_eq!(
        (&found["first"]["row"], &found["first"]["column"]),
        (&0.into(), &11.into())
    );
    let nmse = found["nmse"].as_f64().unwrap();
    assert!(nmse > 0.0 && nmse < 1e-13, "{nmse}");
    assert!(pair.headline().contains("differ in 0 keys and 1 tensors"));
}

#[test]
fn one_changed_key_is_found_with_both_values() {
    let pair = Pair::new("", "--metadata llama.context_length=500000");
    let (code, report) = pair.diff();
    assert_eq!(code, 1);
    assert_eq!(names(&report["keys"]), ["llama.context_length"]);
    let value = |side: &str| (&report["keys"][0][side]["type"], &report["keys"][0][side]["value"]);
    assert_eq!(value("a"), (&"u32".into(), &1024.into()));
    assert_eq!(value("b"), (&"u32".into(), &500_000.into()));
    assert_eq!(names(&report["tensors"]), [""; 0]);
}

#[test]
fn types_are_compared_by_what_they_hold() {
    // Both types hold the weights exactly: the types differ, the numbers do not.
    let (code, report) = Pair::new("--type q2_0", "--type q4_0").diff();
    assert_eq!(code, 1);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 28);
    for tensor in tensors {
        assert_eq!((&tensor["nmse"], &tensor["first"]), (&0.0.into(), &Json::Null));
    }
    // Q2_K does not: as much as the file itself records.
    let pair = Pair::new("--exact", "");
    let (_, report) = pair.diff();
    let bytes = std::fs::read(&pair.b).unwrap();
    let file = File::parse(&bytes).unwrap();
    let recorded = file.get("tqconv.weight_nmse").unwrap().to_json().as_f64().unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    let nmse = tensors.iter().map(|tensor| tensor["nmse"].as_f64().unwrap());
    let mean = nmse.sum::<f64>() / tensors.len() as f64;
    assert!(
        (0.5..2.0).contains(&(mean / recorded)),
        "{mean:e}, recorded {recorded:e}"
    );
}

#[test]
fn the_order_is_that_of_the_first_and_stable() {
    let pair = Pair::new("", "--exact");
    let (first, second) = (pair.diff().1, pair.diff().1);
    assert_eq!(first, second);
    let bytes = std::fs::read(&pair.a).unwrap();
    let file = File::parse(&bytes).unwrap();
    let order = file.tensors().iter().map(|info| info.name.as_str());
    let differing = names(&first["tensors"]);
    let expected: Vec<_> = order.filter(|name| differing.contains(name)).collect();
    assert_eq!(differing, expected);
}

#[test]
fn a_checkpoint_stands_for_the_file_that_it_gives() {
    let mut pair = Pair::new("", "--exact");
    pair.a = data::fixture("kjv");
    let (code, report) = pair.diff();
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["same_tensors"], 66);
    // And it does not stand for one with a changed bias.
    pair.change("blk.3.attn_output.bias", 4 * 200);
    let (code, report) = pair.diff();
    assert_eq!(code, 1);
    assert_eq!(names(&report["tensors"]), ["blk.3.attn_output.bias"]);
    assert_eq!(report["tensors"][0]["first"]["column"], 200);
}

#[test]
fn corners_stand_for_their_files_too() {
    for corner in [
        "across-rows",
        "channel-f32-llama3-untied",
        "lambada-biases-shards",
        "tensor-f16",
    ] {
        let bench = Bench::new();
        let checkpoint = data::fixture(&format!("corners/{corner}"));
        bench.pack(&checkpoint, "--exact");
        let file = bench.path("out.gguf");
        let ran = bench.run(&["diff", file.to_str().unwrap(), checkpoint.to_str().unwrap()]);
        let text = String::from_utf8_lossy(&ran.stdout);
        assert_eq!(ran.status.code(), Some(0), "{corner}: {text}");
    }
}

#[test]
fn what_cannot_be_read_is_an_error() {
    let bench = Bench::new();
    bench.pack(&data::fixture("kjv"), "");
    let file = bench.path("out.gguf");
    let file = file.to_str().unwrap();
    assert!(bench.refused(&["diff", file, "nowhere.gguf"]).contains("nowhere.gguf"));
    let readme = data::fixture("README.md");
    let error = bench.refused(&["diff", file, readme.to_str().unwrap()]);
    assert!(error.contains("not a GGUF file"), "{error}");
}
