//! Level 2, the metadata: every key that steers llama.cpp against config.json and the tokenizer's files.

use std::collections::{BTreeMap, HashMap};

use formats::gguf::{Array, File, Value};
use serde_json::Value as Json;

use super::report::{Check, CheckId, NotChecked, SHOWN};
use super::{VerifyError, texts};
use crate::model::tokenizer::{self, TokenizerFiles};
use crate::model::{Checkpoint, Config, RopeScaling};

/// A key that was set by hand, and its value as text.
type ByHand = (String, String);

fn is_by_hand(by_hand: &[ByHand], key: &str) -> bool {
    by_hand.iter().any(|(name, _)| name == key)
}

/// Each key that was set by hand has that value; the last time it was set counts.
pub(super) fn by_hand(file: &File, by_hand: &[ByHand]) -> Option<Check> {
    let wanted: BTreeMap<_, _> = by_hand.iter().map(|(key, text)| (key, text)).collect();
    let is = |value: &Value, text: &str| match value {
        Value::String(value) => value == text,
        Value::U32(value) => text.parse() == Ok(*value),
        Value::Bool(value) => text.parse() == Ok(*value),
        _ => false,
    };
    let wrong = wanted
        .iter()
        .filter(|(key, text)| !file.get(key).is_some_and(|value| is(value, text)));
    let problems = wrong.map(|(key, text)| {
        let found = file.get(key).map_or("absent".into(), Value::brief);
        format!("key '{key}' is {found}, expected {text}")
    });
    (!wanted.is_empty())
        .then(|| Check::no_problems(CheckId::KeysByHand, problems, wanted.len() as u64, "keys", "--metadata"))
}

/// The keys that shape the forward pass.
pub(super) fn config(file: &File, config: &Config, by_hand: &[ByHand]) -> Check {
    let architecture = config.architecture.graph.name;
    let mut expected = vec![("general.architecture".into(), Value::String(architecture.into()))];
    expected.extend(model_keys(config));
    expected.retain(|(key, _)| !is_by_hand(by_hand, key));
    let mut problems: Vec<_> = expected
        .iter()
        .filter(|(key, value)| file.get(key) != Some(value))
        .map(|(key, value)| difference(key, file.get(key), Some(value)))
        .collect();
    // A key that would change the computation, where config.json asks for no change.
    let scaling = format!("{architecture}.rope.scaling.");
    let unexpected = |key: &str| key.starts_with(&scaling) && expected.iter().all(|(name, _)| *name != key);
    for (key, value) in file.metadata().iter().filter(|(key, _)| unexpected(key)) {
        problems.push(difference(key, Some(value), None));
    }
    Check::no_problems(
        CheckId::ModelKeys,
        problems,
        expected.len() as u64,
        "keys",
        "config.json",
    )
}

/// The keys of the architecture, in file order.
pub(super) fn model_keys(config: &Config) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(n.try_into().unwrap_or(u32::MAX));
    let dims = &config.dims;
    let context = config
        .sliding_window
        .map_or(config.context_length, |window| window.min(config.context_length));
    let mut keys = vec![
        ("vocab_size", count(dims.vocab)),
        ("context_length", count(context)),
        ("embedding_length", count(dims.hidden)),
        ("block_count", count(dims.layers)),
        ("feed_forward_length", count(dims.intermediate)),
        ("attention.head_count", count(dims.heads)),
        ("attention.head_count_kv", count(dims.kv_heads)),
        ("attention.key_length", count(dims.head_dim)),
        ("attention.value_length", count(dims.head_dim)),
        ("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
        ("rope.dimension_count", count(dims.head_dim)),
        ("rope.freq_base", Value::F32(config.rope.theta as f32)),
    ];
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push(("rope.scaling.type", Value::String("linear".into())));
        keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
    }
    if config.architecture.graph.scales {
        let variant = &config.variant;
        let scales = [
            ("embedding_scale", variant.embedding_scale),
            ("residual_scale", variant.residual_scale),
            ("logit_scale", variant.logit_scale.recip()), // what llama.cpp divides by
        ];
        keys.extend(scales.map(|(key, scale)| (key, Value::F32(scale as f32))));
    }
    let full = |(key, value)| (format!("{}.{key}", config.architecture.graph.name), value);
    keys.into_iter().map(full).collect()
}

fn difference(key: &str, found: Option<&Value>, expected: Option<&Value>) -> String {
    let show = |value: Option<&Value>| value.map_or("absent".into(), Value::brief);
    let mut text = format!("key '{key}' is {}, expected {}", show(found), show(expected));
    if let Some(Value::U32(_) | Value::Bool(_) | Value::String(_)) = found {
        text += "; if pack was told so, tell verify, too: --metadata KEY=VALUE";
    }
    if let (Some(Value::Array(found)), Some(Value::Array(expected))) = (found, expected) {
        text += &first_difference(found, expected);
    }
    text
}

/// Where two lists first part.
fn first_difference(found: &Array, expected: &Array) -> String {
    let shorter = found.len().min(expected.len());
    let mut pairs = (0..shorter).map(|at| (at, found.item(at), expected.item(at)));
    match pairs.find(|(_, found, expected)| found != expected) {
        Some((at, Some(found), Some(expected))) => {
            format!(": at {at} {found}, expected {expected}")
        }
        _ => String::new(),
    }
}

/// The tokenizer: its keys against the files read again, and against tokenizer.json as it stands there.
///
/// `pre`: llama.cpp's name of the pre-tokenizer, where the user gives it.
pub(super) fn tokenizer(
    file: &File,
    checkpoint: &Checkpoint,
    pre: Option<&str>,
    by_hand: &[ByHand],
    not_checked: &mut Vec<NotChecked>,
    notes: &mut Vec<String>,
) -> Result<Vec<Check>, VerifyError> {
    let files = TokenizerFiles::of(&checkpoint.source)?;
    let config = &checkpoint.config;
    let read = tokenizer::read(&files, config.dims.vocab, &config.special_ids, pre)?;
    notes.extend(read.notes.iter().cloned());
    let mut expected: BTreeMap<String, Value> = read.into_metadata().into_iter().collect();
    expected.retain(|key, _| !is_by_hand(by_hand, key));
    let mut problems: Vec<_> = expected
        .iter()
        .filter(|(key, value)| file.get(key) != Some(value))
        .map(|(key, value)| difference(key, file.get(key), Some(value)))
        .collect();
    for (key, value) in file.metadata() {
        if key.starts_with("tokenizer.") && !expected.contains_key(key) && !is_by_hand(by_hand, key) {
            problems.push(difference(key, Some(value), None));
        }
    }
    let mut checks = vec![Check::no_problems(
        CheckId::TokenizerKeys,
        problems,
        expected.len() as u64,
        "keys",
        "the tokenizer's files, read again",
    )];
    match &files.tokenizer_json {
        Some(content) => {
            let json: Json = serde_json::from_slice(&content.bytes).map_err(|source| VerifyError::TokenizerJson {
                file: content.name.clone(),
                source,
            })?;
            checks.extend(vocabulary(file, &json, config.dims.vocab));
            let found = texts::check(
                file,
                &texts::Source {
                    name: &content.name,
                    json: &json,
                    named: files.named_tokens()?,
                    pre,
                },
            );
            checks.extend(found.checks);
            not_checked.extend(found.not_checked);
            notes.extend(found.notes);
        }
        None => not_checked.push(NotChecked::new(
            "tokens and merges against tokenizer.json",
            "the checkpoint has no tokenizer.json",
        )),
    }
    Ok(checks)
}

/// Tokens, kinds and merges against tokenizer.json, taken literally, as far as the embedding has rows.
fn vocabulary(file: &File, json: &Json, rows: usize) -> Vec<Check> {
    let strings = |key: &str| file.get(key).and_then(Value::as_strings).unwrap_or_default();
    let stored = strings("tokenizer.ggml.tokens");
    let mut wanted: HashMap<usize, String> = HashMap::new();
    if let Some(vocab) = json.pointer("/model/vocab").and_then(Json::as_object) {
        let ids = vocab
            .iter()
            .filter_map(|(text, id)| Some((id.as_u64()? as usize, text.clone())));
        wanted.extend(ids);
    }
    let added: Vec<(usize, String, bool)> = json
        .get("added_tokens")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(|token| {
            let (id, text) = (token.get("id")?.as_u64()?, token.get("content")?.as_str()?);
            Some((id as usize, text.to_owned(), token.get("special")?.as_bool()?))
        })
        .filter(|(id, _, _)| *id < rows)
        .collect();
    wanted.extend(added.iter().map(|(id, text, _)| (*id, text.clone())));

    let mut wrong: Vec<_> = wanted
        .iter()
        .filter(|(id, text)| stored.get(**id) != Some(text))
        .collect();
    wrong.sort();
    let details = wrong.iter().take(SHOWN + 1).map(|(id, text)| {
        format!(
            "token {id} is {:?}, expected {text:?}",
            stored.get(**id).map_or("absent", |s| s)
        )
    });
    let of = wanted.len() as u64;
    let tokens = Check::none_differ(
        CheckId::Tokens,
        wrong.len() as u64,
        of,
        "tokens",
        "tokenizer.json, id by id",
    )
    .with_details(details.collect());

    let mut checks = vec![tokens, control_tokens(file, &added)];
    if file.get("tokenizer.ggml.model").and_then(Value::as_str) == Some("gpt2") {
        checks.push(merges(strings("tokenizer.ggml.merges"), json));
    }
    checks
}

/// Special tokens steer: none of them may be spelled by a text, or printed.
fn control_tokens(file: &File, added: &[(usize, String, bool)]) -> Check {
    const CONTROL: i32 = 3; // LLAMA_TOKEN_TYPE_CONTROL
    const UNKNOWN: i32 = 2;
    let types = match file.get("tokenizer.ggml.token_type") {
        Some(Value::Array(Array::I32(types))) => types.as_slice(),
        _ => &[],
    };
    let special: Vec<_> = added.iter().filter(|(_, _, special)| *special).collect();
    let problems = special
        .iter()
        .filter(|(id, _, _)| !matches!(types.get(*id), Some(&(CONTROL | UNKNOWN))))
        .map(|(id, text, _)| format!("token {id} {text:?} is special, its type is {:?}", types.get(*id)));
    Check::no_problems(
        CheckId::SpecialTokens,
        problems,
        special.len() as u64,
        "tokens",
        "tokenizer.json: \"special\"",
    )
}

/// The merges in their order; tokenizer.json has each as `"left right"` or `["left", "right"]`.
fn merges(stored: &[String], json: &Json) -> Check {
    let list = json.pointer("/model/merges").and_then(Json::as_array);
    let empty = vec![];
    let list = list.unwrap_or(&empty);
    let wanted = list.iter().map(|merge| match merge {
        Json::String(pair) => pair.clone(),
        pair => {
            let part = |i: usize| pair[i].as_str().unwrap_or_default().replace(' ', "\u{120}");
            format!("{} {}", part(0), part(1))
        }
    });
    let wrong: Vec<_> = wanted
        .enumerate()
        .filter(|(rank, merge)| stored.get(*rank) != Some(merge))
        .map(|(rank, merge)| format!("merge {rank} is {:?}, expected {merge:?}", stored.get(rank)))
        .collect();
    let surplus = stored.len().saturating_sub(list.len());
    let mut problems = wrong;
    if surplus > 0 {
        problems.push(format!("{surplus} merges more than tokenizer.json has"));
    }
    Check::no_problems(
        CheckId::Merges,
        problems,
        list.len() as u64,
        "merges",
        "tokenizer.json, in order",
    )
}
