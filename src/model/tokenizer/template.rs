//! The chat template, as transformers finds it.

use serde_json::Value;

use super::content::Content;
use super::files::TokenizerFiles;
use super::{Notes, TokenizerError, settings};
use crate::model::json::Object;

/// The largest chat template, in bytes.
const TEMPLATE_LIMIT: usize = 1 << 20;

/// The default template: that of chat_template.jinja, else of tokenizer_config.json, else of chat_template.json.
/// Templates with other names, and a default that differs from the one taken, are noted.
pub(super) fn chat_template(
    files: &TokenizerFiles,
    config: &Object,
    notes: &mut Notes,
) -> Result<Option<String>, TokenizerError> {
    let mut found = vec![];
    if let Some(content) = &files.chat_template_jinja {
        found.push((content.name.clone(), utf8(content)?));
    }
    for name in &files.other_chat_templates {
        notes.add(format!(
            "the chat template {name:?} of additional_chat_templates is left out"
        ));
    }
    let json = settings::read(files.chat_template_json.as_ref())?;
    for file in [config, &json] {
        found.extend(template_in(file, notes)?.map(|template| (file.name(), template)));
    }
    let mut found = found.into_iter();
    let Some((file, template)) = found.next() else {
        return Ok(None);
    };
    for (other, _) in found.filter(|(_, other)| other.trim_end() != template.trim_end()) {
        notes.add(format!(
            "{file} and {other} have different chat templates; that of {file} is taken, as transformers takes it"
        ));
    }
    if template.len() > TEMPLATE_LIMIT {
        return Err(TokenizerError::TooLarge {
            file,
            what: "chat_template",
            found: template.len() as u64,
            limit: TEMPLATE_LIMIT as u64,
        });
    }
    Ok(Some(template))
}

fn utf8(content: &Content) -> Result<String, TokenizerError> {
    String::from_utf8(content.bytes.clone()).map_err(|error| TokenizerError::Key {
        file: content.name.clone(),
        key: "(whole file)".into(),
        found: format!("bytes that are not UTF-8 at {}", error.utf8_error().valid_up_to()),
        expected: "a Jinja template in UTF-8".into(),
    })
}

/// `chat_template`: a string; or templates by name, of which `default` is taken: a list of
/// `{"name": ..., "template": ...}`, or an object.
fn template_in(file: &Object, notes: &mut Notes) -> Result<Option<String>, TokenizerError> {
    const KEY: &str = "chat_template";
    let Some(value) = file.value(KEY) else {
        return Ok(None);
    };
    let expected = "a string, or a list of {\"name\": string, \"template\": string}";
    let wrong = || TokenizerError::from(file.wrong(KEY, Some(value), expected));
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(String::from).ok_or_else(wrong);
    let mut named = vec![];
    match value {
        Value::String(template) => return Ok(Some(template.clone())),
        Value::Array(entries) => {
            for entry in entries {
                named.push((text(entry.get("name"))?, text(entry.get("template"))?));
            }
        }
        Value::Object(entries) => {
            for (name, template) in entries {
                named.push((name.clone(), text(Some(template))?));
            }
        }
        _ => return Err(wrong()),
    }
    let mut default = None;
    for (name, template) in named {
        if name == "default" {
            default = Some(template);
        } else {
            notes.add(format!("{}: the chat template {name:?} is left out", file.name()));
        }
    }
    Ok(default)
}
