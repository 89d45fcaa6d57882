//! What `--json` prints: each document validates against its schema, and docs/schemas has the schemas of this version.
//! Written anew with `TQCONV_WRITE_SCHEMAS=1 cargo test --test it json::`, where no field that was there has changed.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value as Json;

use crate::data;
use crate::pack::Bench;

/// `tqconv.pack/1` is in docs/schemas/pack-1.json.
fn schema_file(name: &str) -> PathBuf {
    let file = name.trim_start_matches("tqconv.").replace('/', "-");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("docs/schemas").join(file + ".json")
}

/// Every field of a schema, by its place, with what it may hold.
fn fields(schema: &Json) -> Vec<(String, Json)> {
    let mut found = vec![];
    let mut rest = vec![(String::new(), schema)];
    while let Some((place, schema)) = rest.pop() {
        for (name, part) in schema.as_object().into_iter().flatten() {
            let place = format!("{place}/{name}");
            if name == "properties" {
                for (field, holds) in part.as_object().into_iter().flatten() {
                    let mut holds = holds.clone();
                    if let Some(holds) = holds.as_object_mut() {
                        holds.remove("description");
                    }
                    found.push((format!("{place}/{field}"), holds));
                }
            }
            rest.push((place, part));
        }
    }
    found
}

#[test]
fn docs_have_the_schemas() {
    let writes = std::env::var_os("TQCONV_WRITE_SCHEMAS").is_some();
    for (name, schema) in tqconv::cli::schemas() {
        let path = schema_file(name);
        let old = std::fs::read_to_string(&path).ok();
        let old = old.map(|text| serde_json::from_str::<Json>(&text).unwrap());
        let new = fields(&schema);
        for field in old.iter().flat_map(fields) {
            assert!(
                new.contains(&field),
                "{name}: {} is another or missing: give the schema the next version (docs/json.md)",
                field.0
            );
        }
        if writes {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, format!("{schema:#}\n")).unwrap();
        } else {
            assert_eq!(old, Some(schema), "{}: write it anew", path.display());
        }
    }
}

/// What a command printed, which must be a valid document of `schema`.
fn document(ran: &Output, schema: &str) -> Json {
    let text = String::from_utf8_lossy(&ran.stdout);
    let found: Json = serde_json::from_str(&text).unwrap_or_else(|error| {
        let stderr = String::from_utf8_lossy(&ran.stderr);
        panic!("{schema}: {error}: {text}{stderr}")
    });
    valid(&found, schema);
    found
}

/// A document is a valid one of `schema`.
fn valid(found: &Json, schema: &str) {
    assert_eq!(found["schema"], schema, "{found:#}");
    let schemas = tqconv::cli::schemas();
    let (_, strict) = schemas.iter().find(|(name, _)| *name == schema).unwrap();
    let mut strict = strict.clone();
    strict["unevaluatedProperties"] = false.into();
    let validator = jsonschema::validator_for(&strict).unwrap();
    let problems: Vec<_> = validator.iter_errors(found).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{schema}: {problems:#?}");
}

/// Rows and columns of a tensor of a document.
fn shape<'a>(document: &'a Json, tensor: &str) -> &'a Json {
    let mut tensors = document["tensors"].as_array().unwrap().iter();
    &tensors.find(|found| found["name"] == tensor).unwrap()["shape"]
}

#[test]
fn every_document_validates() {
    let (bench, kjv) = (Bench::new(), data::fixture("kjv"));
    let (kjv, file) = (kjv.to_str().unwrap(), bench.path("m.gguf"));
    let (file, exact) = (file.to_str().unwrap(), bench.path("exact.gguf"));
    let exact = exact.to_str().unwrap();
    let told = |arguments: &[&str], schema: &str| document(&bench.run(&[arguments, &["--json"]].concat()), schema);

    let packed = told(&["pack", kjv, file], "tqconv.pack/1");
    told(
        &["pack", kjv, exact, "--exact", "--split-max-size", "1M"],
        "tqconv.pack/1",
    );
    told(&["pack", file, exact, "--dry-run", "--for", "ollama"], "tqconv.pack/1");
    let looked = told(&["inspect", file], "tqconv.inspect/1");
    let checkpoint = told(&["inspect", kjv], "tqconv.inspect/1");
    let weights = format!("{kjv}/model.safetensors");
    told(&["inspect", &weights], "tqconv.inspect/1");

    // One name for the path, one order of shapes.
    assert_eq!((&packed["path"], &looked["path"]), (&file.into(), &file.into()));
    for (document, tensor) in [
        (&packed, "blk.0.ffn_down.weight"),
        (&looked, "blk.0.ffn_down.weight"),
        (&checkpoint, "model.layers.0.mlp.down_proj.weight"),
    ] {
        assert_eq!(*shape(document, tensor), serde_json::json!([256, 768]));
    }
    // Lists of keys only where they are asked for.
    let tokens = |document: &Json| document["metadata"]["tokenizer.ggml.tokens"].clone();
    assert_eq!(tokens(&looked)["type"], "array of string");
    let all = told(&["inspect", file, "--all"], "tqconv.inspect/1");
    let listed = tokens(&all).as_array().unwrap().len();
    assert_eq!(tokens(&looked)["length"], listed);

    told(&["diff", file, file], "tqconv.diff/1");
    told(&["diff", file, kjv], "tqconv.diff/1");
    told(&["run", file, "-p", "And", "-n", "4"], "tqconv.run/1");
    let levels = ["verify", file, "--against", kjv, "--levels", "1-5", "--tokens", "32"];
    told(&levels, "tqconv.verify/1");
    told(&["verify", file, "--levels", "1"], "tqconv.verify/1");
    let (manifest, statement) = (bench.path("manifest.json"), bench.path("statement.json"));
    told(
        &["pack", kjv, file, "--force", "--manifest", manifest.to_str().unwrap()],
        "tqconv.pack/1",
    );
    valid(
        &serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap(),
        "tqconv.manifest/1",
    );
    told(
        &[&levels[..], &["--attest", statement.to_str().unwrap()]].concat(),
        "tqconv.verify/1",
    );
    let statement: Json = serde_json::from_slice(&std::fs::read(statement).unwrap()).unwrap();
    valid(&statement["predicate"], "tqconv.verification/1");
    let model = [
        "bench",
        file,
        "--prefill",
        "4",
        "--decode",
        "2",
        "--runs",
        "1",
        "--thread-counts",
        "1",
    ];
    told(&model, "tqconv.bench/1");
    let products = [
        "bench",
        "--type",
        "q2_k",
        "--shape",
        "64x256",
        "--tokens",
        "1",
        "--thread-counts",
        "1",
    ];
    told(&[&products[..], &["--seconds", "0.01"]].concat(), "tqconv.bench/1");
}

#[test]
fn errors_are_documents_too() {
    let bench = Bench::new();
    for (arguments, says) in [
        (&["inspect", "nowhere"][..], "nowhere"),
        (&["pack", "nowhere", "x.gguf"], "nowhere"),
        (&["diff", "nowhere", "x.gguf", "--max-nmse=-1"], "invalid value '-1'"),
        (&["bench", "--frobnicate"], "--frobnicate"),
    ] {
        let ran = bench.run(&[arguments, &["--json"]].concat());
        let error = document(&ran, "tqconv.error/1");
        assert_eq!((ran.status.code(), &error["exit_code"]), (Some(2), &2.into()));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(says), "{message}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains(message), "{message}");
    }
}
