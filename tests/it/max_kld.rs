//! `tqconv pack --max-kld`: what is promised is what `verify` finds, on the same text, by engines of its own.

use std::ops::ControlFlow;
use std::path::Path;

use formats::gguf::File;
use serde_json::Value as Json;

use tqconv::choose::{Request, choose};
use tqconv::engine::text::TextOptions;
use tqconv::kernels::Isa;
use tqconv::model::{Checkpoint, Source, TrainingOverrides};
use tqconv::pack::{Embedding, Options, Plan, Rule, Target};
use tqconv::simd::Level;

use crate::data;
use crate::pack::Bench;

/// The mean KLD that each engine of `verify` finds of `file`, by name, in the command that `pack` printed.
fn verified(bench: &Bench, report: &Json) -> Vec<(String, f64)> {
    let command = shlex::split(report["verify"].as_str().unwrap()).unwrap();
    let mut arguments: Vec<_> = command[1..].iter().map(String::as_str).collect();
    arguments.push("--json");
    let ran = bench.run(&arguments);
    let found: Json = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(found["verdict"], "agrees", "{command:?}: {:#}", found["levels"]);
    let engine = |engine: &Json| {
        let kld: Vec<_> = engine["kld_nats"]
            .as_array()
            .unwrap()
            .iter()
            .map(|kld| kld.as_f64().unwrap())
            .collect();
        let mean = kld.iter().sum::<f64>() / kld.len() as f64;
        (engine["engine"]["name"].as_str().unwrap().to_owned(), mean)
    };
    let tested = found["text"]["tested"].as_array().unwrap().iter().map(engine);
    // The others are no engines: exact passes of the file.
    let tested = tested.filter(|(name, _)| name.starts_with("native") || name.starts_with("llama.cpp"));
    tested.collect()
}

/// Whether the engines found what was told of them: of llama.cpp nearly, of our own engine but for the reference, whose
/// pass has another order.
fn agrees(told: &Json, engines: &[(String, f64)]) {
    /// What the oracle's f64 may differ by from f32: 1e-12 where it was measured.
    const SINGLE_PRECISION: f64 = 1e-9;
    for (engine, found) in engines {
        let (key, within) = match engine.starts_with("native") {
            true => ("native", 0.01),
            false => ("cpu", 0.25),
        };
        let told = told["kld_nats"][key].as_f64().unwrap();
        println!("  {engine}: {found:.3e}");
        assert!(
            (found - told).abs() < within * told + SINGLE_PRECISION,
            "{engine} finds {found:e}, told was {told:e}"
        );
    }
}

/// What was found of one budget.
struct Kept {
    kld: f64,
    bytes: usize,
}

/// Pack `input`, and compare what is told of the file with the budget, the file and `verify`.
fn kept(bench: &Bench, input: &Path, budget: f64, options: &str) -> Kept {
    let (file, report) = bench.pack(input, &format!("--max-kld {budget} {options}"));
    let told = &report["max_kld"];
    let of_each = told["kld_nats"].as_object().unwrap();
    let of_each = of_each.values().map(|kld| kld.as_f64().unwrap());
    let kld = of_each.fold(0.0, f64::max);
    println!("{options} {budget:e}: {} bytes, KLD {kld:.3e}", file.len());
    assert!(kld <= budget, "{told:#}");
    let parsed = File::parse(&file).unwrap();
    for linear in told["linears"].as_array().unwrap() {
        let (info, _) = parsed.tensor(linear["name"].as_str().unwrap()).unwrap();
        assert_eq!(info.ty.name(), linear["type"]);
        let tried = linear["tried"].as_array().unwrap();
        let taken = tried.iter().find(|tried| tried["type"] == linear["type"]).unwrap();
        assert_eq!(taken["bytes"].as_u64(), info.bytes());
    }
    let engines = verified(bench, &report);
    assert!(engines[0].0.starts_with("native"));
    agrees(told, &engines);
    let bytes = file.len();
    Kept { kld, bytes }
}

#[test]
fn a_smaller_budget_never_gives_a_smaller_file() {
    let bench = Bench::new();
    let kept: Vec<_> = [1e-2, 3e-4, 2e-4, 1e-4, 3e-5]
        .map(|budget| kept(&bench, &data::fixture("kjv"), budget, ""))
        .into();
    assert!(kept.is_sorted_by(|a, b| a.bytes <= b.bytes && a.kld >= b.kld));
    assert!(
        kept[0].bytes < kept[2].bytes && kept[2].bytes < kept[4].bytes,
        "budgets make a difference"
    );
}

/// With all that one budget can be met by, the file that meets it is smaller than the smallest of one type that does.
#[test]
fn a_mixed_file_is_smaller_than_those_of_one_type() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let one_type = |ty: &str| kept(&bench, &kjv, 1.0, &format!("--type {ty}"));
    let (small, large) = (one_type("q2_k"), one_type("q4_0"));
    let between = 0.5 * (small.kld + large.kld);
    let mixed = kept(&bench, &kjv, between, "");
    assert!(small.bytes < mixed.bytes && mixed.bytes < large.bytes);
    let share = (mixed.bytes - small.bytes) as f64 / (large.bytes - small.bytes) as f64;
    assert!(
        share < 0.5,
        "half of what the larger type saves takes less than half of its bytes: {share}"
    );
}

#[test]
fn what_was_packed_is_chosen_from_again() {
    let (bench, again) = (Bench::new(), Bench::new());
    let (exact, _) = bench.pack(&data::fixture("kjv"), "--type q4_0");
    let input = bench.path("exact.gguf");
    std::fs::write(&input, exact).unwrap();
    let from_gguf = kept(&again, &input, 2e-4, "");
    let from_checkpoint = kept(&again, &data::fixture("kjv"), 2e-4, "");
    // Scales are merged by the weights of norms where a checkpoint has them.
    assert!((from_gguf.bytes as f64 / from_checkpoint.bytes as f64 - 1.0).abs() < 0.05);
}

#[test]
fn the_same_request_gives_the_same_bytes_with_any_number_of_threads() {
    let bench = Bench::new();
    let kjv = data::fixture("kjv");
    let files = ["--threads 1", "--threads 2", "--threads 5"]
        .map(|threads| bench.pack(&kjv, &format!("--max-kld 2e-4 {threads}")).0);
    assert!(files[0] == files[1] && files[0] == files[2]);
}

/// Types and figures, bit for bit.
#[test]
fn every_instruction_set_chooses_alike() {
    let source = Source::find(&data::fixture("kjv"), None, None).unwrap();
    let checkpoint = Checkpoint::open(source, &TrainingOverrides::default()).unwrap();
    let options = Options {
        rule: Rule {
            target: Target::Cpu,
            max_nmse: f64::INFINITY,
            measured: true,
            ty: None,
            tensor_types: vec![],
        },
        embedding: Embedding::Keep,
        drop_biases: false,
        name: None,
        organization: None,
        card: Default::default(),
        metadata: vec![],
        hash: false,
        split_max_size: None,
        level: Level::widest(),
    };
    let files = tqconv::model::tokenizer::TokenizerFiles::of(&checkpoint.source).unwrap();
    let config = &checkpoint.config;
    let tokenizer = tqconv::model::tokenizer::read(&files, config.dims.vocab, &config.special_ids, None).unwrap();
    let keys = tokenizer.into_metadata();
    let of = |isa| {
        let mut plan = Plan::new(&checkpoint, &options).unwrap();
        let request = Request {
            max_kld: 3e-4,
            text: TextOptions::default(),
            target: Target::Cpu,
            isa,
        };
        let chosen = choose(&mut plan, &keys, &request, &|_, _| ControlFlow::Continue(())).unwrap();
        format!("{chosen:?}")
    };
    let best = of(Isa::best());
    assert!(best.contains("Q2_K") && best.contains("kld: Some("));
    for isa in Isa::available() {
        if isa != Isa::Scalar {
            assert_eq!(of(isa), best, "{isa}");
        }
    }
}

/// llama.cpp rounds the activations of F16 to f16 and those of a BF16 head to bf16, our engine does not: what is told is
/// what each has, and a budget below either is refused.
#[test]
fn halves_cost_what_llama_cpp_rounds() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let (_, report) = bench.pack(&kjv, "--max-kld 3e-6");
    assert_eq!(report["linears"], serde_json::json!({"F16": 28}));
    let told = |engine: &str| report["max_kld"]["kld_nats"][engine].as_f64().unwrap();
    assert!(
        told("native") < 0.5 * told("cpu"),
        "{:#}",
        report["max_kld"]["kld_nats"]
    );
    agrees(&report["max_kld"], &verified(&bench, &report));
    let (kjv, out) = (kjv.to_str().unwrap().to_owned(), bench.path("refused.gguf"));
    let ran = bench.run(&["pack", &kjv, out.to_str().unwrap(), "--max-kld", "1e-9"]);
    let message = String::from_utf8(ran.stderr).unwrap();
    assert!(
        message.contains("no types have a mean KLD of --max-kld 1e-9 or less: the best have"),
        "{message}"
    );
    assert!(!out.exists());
}

/// A trained network of real shape, whose activations have outliers.
#[test]
fn a_trained_network_keeps_its_budget() {
    let Some(checkpoint) = data::find("smol8-tequila") else {
        return;
    };
    let bench = Bench::new();
    kept(&bench, &checkpoint, 2e-3, "");
}
