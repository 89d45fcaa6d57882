//! The proof of docs/adding.md, "A new training scheme": a checkpoint of a scheme that exists in tests alone is
//! inspected, packed, and verified by the scheme's second witness.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::Value;

use super::{Cli, run};

/// Let config.json of `folder` say something else.
fn edit_config(folder: &Path, edit: impl Fn(&mut Value)) {
    let path = folder.join("config.json");
    let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

#[test]
fn a_made_up_scheme_is_packed_and_verified() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixture.join(file), folder.path().join(file)).unwrap();
    }
    edit_config(folder.path(), |config| {
        config["quant_method"] = "made-up".into();
        config["threshold"] = 0.7.into();
        config.as_object_mut().unwrap().remove("eps");
    });
    let (checkpoint, output) = (folder.path().to_str().unwrap(), folder.path().join("made-up.gguf"));
    let output = output.to_str().unwrap();
    let tqconv = |args: &[&str]| run(Cli::parse_from(["tqconv", "--quiet"].iter().chain(args)));

    assert_eq!(tqconv(&["inspect", checkpoint]).unwrap(), ExitCode::SUCCESS);
    assert_eq!(tqconv(&["pack", checkpoint, output]).unwrap(), ExitCode::SUCCESS);
    let verify = ["verify", output, "--against", checkpoint, "--levels", "2"];
    assert_eq!(tqconv(&verify).unwrap(), ExitCode::SUCCESS);

    // The file is no longer what the checkpoint gives.
    edit_config(folder.path(), |config| config["threshold"] = 0.8.into());
    assert_eq!(tqconv(&verify).unwrap(), ExitCode::from(1));
    // And the scheme refuses what it cannot be.
    edit_config(folder.path(), |config| config["threshold"] = Value::Null);
    let error = tqconv(&verify).unwrap_err().to_string();
    assert!(error.contains("key 'threshold' is missing"), "{error}");
}
