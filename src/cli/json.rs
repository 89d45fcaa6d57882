//! What `--json` prints: documents, each of a schema with a version. docs/json.md has the rules, docs/schemas the schemas,
//! which `tests/it/json.rs` compares with these types and with what every command prints.

use std::process::ExitCode;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::text::shown_json;
use super::write_out;

/// Something that is printed as JSON.
pub(super) trait Document: Serialize + JsonSchema {
    /// What it tells, and the version of its fields: `tqconv.pack/1`.
    const SCHEMA: &'static str;
}

/// The document with what all have first: its schema, and the version of the program.
pub(super) fn value_of<D: Document>(document: &D) -> serde_json::Result<Value> {
    let mut fields = Map::new();
    fields.insert("schema".into(), D::SCHEMA.into());
    fields.insert("tqconv_version".into(), env!("CARGO_PKG_VERSION").into());
    if let Value::Object(body) = serde_json::to_value(document)? {
        fields.extend(body);
    }
    Ok(Value::Object(fields))
}

/// The document as text, in which nothing can steer a terminal.
pub(super) fn text_of<D: Document>(document: &D) -> serde_json::Result<String> {
    Ok(format!("{}\n", shown_json(&format!("{:#}", value_of(document)?))))
}

/// Write a document to stdout.
pub(super) fn print_json<D: Document>(document: &D) -> anyhow::Result<ExitCode> {
    write_out(&text_of(document)?)
}

/// Why a command could not be done, after `--json`.
#[derive(Serialize, JsonSchema)]
pub(super) struct ErrorReport {
    /// One line: the place, what was found, what was expected, what to do.
    pub message: String,
    /// What the process ends with.
    pub exit_code: u8,
}

impl Document for ErrorReport {
    const SCHEMA: &'static str = "tqconv.error/1";
}

/// The JSON schema of a document, and its name.
pub(super) fn schema<D: Document>() -> (&'static str, Value) {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut schema = generator.into_root_schema_for::<D>().to_value();
    schema["title"] = D::SCHEMA.into();
    for (field, described) in [
        ("schema", json!({ "const": D::SCHEMA })),
        ("tqconv_version", json!({ "type": "string" })),
    ] {
        schema["properties"][field] = described;
        match schema.get_mut("required").and_then(Value::as_array_mut) {
            Some(required) => required.push(field.into()),
            None => schema["required"] = json!([field]),
        }
    }
    (D::SCHEMA, schema)
}
