//! A mutated checkpoint: `pack` refuses it, or `verify` agrees with what was written.
#![no_main]

use std::path::Path;

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use tqconv::cli::{Cli, run};
use tqconv::engine::native::CacheTypes;
use tqconv::engine::text::TextOptions;
use tqconv::kernels::ActivationScales;
use tqconv::model::{Checkpoint, Source, TrainingOverrides};
use tqconv::verify::{Against, Level, Options, Origin, Verdict, verify};

const CONFIG: &[u8] = include_bytes!("../../fixtures/tiny/config.json");
const TOKENIZER: &[u8] = include_bytes!("../../fixtures/tiny/tokenizer.json");
const WEIGHTS: &[u8] = include_bytes!("../../fixtures/tiny/model.safetensors");

fuzz_target!(|data: &[u8]| {
    let Some((&which, edits)) = data.split_first() else {
        return;
    };
    let folder = tqconv_fuzz::folder();
    for (i, (name, sound)) in [
        ("config.json", CONFIG),
        ("tokenizer.json", TOKENIZER),
        ("model.safetensors", WEIGHTS),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = match which % 8 {
            3 if i == 0 => edits.to_vec(),
            4 if i == 1 => edits.to_vec(),
            which if usize::from(which) % 3 == i => tqconv_fuzz::edited(sound, edits),
            _ => sound.to_vec(),
        };
        std::fs::write(folder.join(name), bytes).expect("room for a file");
    }
    let output = folder.join("out.gguf");
    let _ = std::fs::remove_file(&output);
    let arguments = ["tqconv", "pack", "-q", path(folder), path(&output)];
    if run(Cli::try_parse_from(arguments).expect("sound arguments")).is_err() {
        assert!(!output.exists(), "an output was left behind");
        return;
    }
    let source = Source::find(folder, None, None).expect("it was packed");
    let checkpoint = Checkpoint::open(source, &TrainingOverrides::default()).expect("it was packed");
    let origin = Origin::Checkpoint {
        checkpoint: Box::new(checkpoint),
        tokenizer_pre: None,
    };
    let against = Against {
        origin,
        name: "checkpoint".into(),
    };
    let options = Options {
        levels: vec![Level::Layout, Level::Codes, Level::Dots],
        for_ollama: false,
        max_nmse: 1e-4,
        metadata: vec![],
        max_kld: None,
        activations: ActivationScales::default(),
        cache: CacheTypes::default(),
        text: TextOptions::default(),
        level_4_at_any_size: false,
        threads: 1,
        witness: tqconv::witness::Program::this(),
    };
    let report = verify(&output, Some(&against), &options, &|_, _| ()).expect("it can be verified");
    let failed: Vec<_> = report
        .failures()
        .map(|(level, check)| (level, &check.name, &check.details))
        .collect();
    assert!(report.verdict == Verdict::Agrees, "{failed:?}");
});

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}
