//! `verify`, `diff` and `inspect` on a mutated GGUF file: a report or an error, whatever the file holds.
#![no_main]

use clap::Parser;
use libfuzzer_sys::fuzz_target;
use tqconv::cli::{Cli, run};
use tqconv::engine::native::CacheTypes;
use tqconv::engine::text::TextOptions;
use tqconv::kernels::ActivationScales;
use tqconv::verify::{Level, Options, verify};

const SOUND: &[u8] = include_bytes!("../../fixtures/broken/sound.gguf");

fuzz_target!(|data: &[u8]| {
    let path = tqconv_fuzz::folder().join("mutated.gguf");
    std::fs::write(&path, tqconv_fuzz::edited(SOUND, data)).expect("room for a file");
    let options = Options {
        levels: vec![Level::Layout, Level::Codes, Level::Dots],
        for_ollama: true,
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
    let _ = verify(&path, None, &options, &|_, _| ());
    let path = path.to_str().expect("a plain name");
    for arguments in [
        &["tqconv", "inspect", "--all", path][..],
        &["tqconv", "diff", path, path],
    ] {
        let _ = run(Cli::try_parse_from(arguments).expect("sound arguments"));
    }
});
