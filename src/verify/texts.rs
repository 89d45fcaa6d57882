//! Level 2, the texts: what the file makes of texts that tokenizers stumble over, beside the checkpoint's own
//! tokenizer.json, run by the library that it was written for.
//!
//! A tokenizer.json can ask for what llama.cpp has no place for. The check is against what it says without that, so that
//! nothing else can differ; a note has the texts that differ from all that it says.

use formats::gguf::tokenizer::{SHOWN_TEXTS, is_made_control, pre_tokenizer};
use formats::gguf::{File, Value};
use serde_json::{Value as Json, json};

use super::report::{Check, CheckId, NotChecked};
use crate::engine::text::{HARD, Own, Text, TextError};

const ID: CheckId = CheckId::TextsAsTokenizerJson;

/// A tokenizer.json, and what is beside it.
pub(super) struct Source<'a> {
    /// What messages call it.
    pub name: &'a str,
    /// Its content.
    pub json: &'a Json,
    /// Texts that the files beside it name as tokens.
    pub named: Vec<String>,
    /// llama.cpp's name of the pre-tokenizer, where the user gives it.
    pub pre: Option<&'a str>,
}

/// What was found.
pub(super) struct Found {
    pub checks: Vec<Check>,
    pub notes: Vec<String>,
    pub not_checked: Vec<NotChecked>,
}

/// Compare the ids of the file with those of tokenizer.json.
pub(super) fn check(file: &File, source: &Source) -> Found {
    compare(file, source).unwrap_or_else(|error| Found {
        checks: vec![],
        notes: vec![],
        not_checked: vec![NotChecked::new(ID.name(), error.to_string())],
    })
}

fn compare(file: &File, source: &Source) -> Result<Found, TextError> {
    let mut text = Text::from_gguf(file)?;
    let followed = Followed::new(file, source);
    let all = Own::from_json(source.json.to_string().as_bytes(), source.named.clone())?;
    let part = Own::from_json(followed.json.to_string().as_bytes(), followed.named)?;
    let (hard, lost): (Vec<_>, Vec<_>) = HARD.iter().partition(|(_, hard)| text.can_spell(hard));
    let (mut wrong, mut samples) = (vec![], vec![]);
    for &(name, hard) in &hard {
        let (found, part) = (text.encode_with_specials(hard, false), part.encode(hard)?);
        wrong.extend(first_difference(name, &found, &part));
        samples.push(Sample {
            name,
            text: hard,
            found,
            expected: all.encode(hard)?,
        });
    }
    let mut notes = vec![];
    if !followed.without.is_empty() {
        let what = format!("llama.cpp has no place for {}", followed.without.join(", "));
        notes.extend(other_ids(source, &samples, &what));
    }
    if text.split_as_llama_cpp()? {
        for sample in &mut samples {
            sample.found = text.encode_with_specials(sample.text, false);
        }
        let what = "llama.cpp splits by other expressions than its pre-tokenizer is named for";
        notes.extend(other_ids(source, &samples, what));
    }
    if !lost.is_empty() {
        let names: Vec<_> = lost.iter().map(|(name, _)| *name).collect();
        notes.push(format!(
            "{}: no token for some bytes of {} test texts, which are lost: {}",
            source.name,
            names.len(),
            names.join(", ")
        ));
    }
    let (mut checks, mut not_checked) = (vec![], vec![]);
    if followed.merges_are_scores || wrong.is_empty() {
        const ORIGIN: &str = "tokenizer.json run by its own library, without what llama.cpp has no place for";
        checks.push(Check::no_problems(ID, wrong, samples.len() as u64, "texts", ORIGIN));
    } else {
        let why = "its merges leave out pairs that llama.cpp joins; the notes name the texts that differ";
        not_checked.push(NotChecked::new(ID.name(), why));
    }
    Ok(Found {
        checks,
        notes,
        not_checked,
    })
}

/// A text that tokenizers stumble over.
struct Sample {
    name: &'static str,
    text: &'static str,
    /// The ids that the file gives it.
    found: Vec<u32>,
    /// Those by all that tokenizer.json says.
    expected: Vec<u32>,
}

fn first_difference(name: &str, found: &[u32], expected: &[u32]) -> Option<String> {
    let at = (0..found.len().max(expected.len())).find(|&at| found.get(at) != expected.get(at))?;
    let (found, expected) = (found.get(at), expected.get(at));
    Some(format!("{name}: token {at} is {found:?}, expected {expected:?}"))
}

/// A note that names the texts that get other ids, if there are any.
fn other_ids(source: &Source, samples: &[Sample], what: &str) -> Option<String> {
    let differ = samples.iter().filter(|sample| sample.found != sample.expected);
    let names: Vec<_> = differ.map(|sample| sample.name).collect();
    (!names.is_empty()).then(|| {
        format!(
            "{}: {what}: {} of {} test texts get other ids: {}",
            source.name,
            names.len(),
            samples.len(),
            names.join(", ")
        )
    })
}

/// A tokenizer.json without what llama.cpp has no place for.
struct Followed {
    json: Json,
    named: Vec<String>,
    /// What is left out of it.
    without: Vec<&'static str>,
    /// Whether joining by scores is joining by merges: always for byte-level vocabularies, which have merges.
    merges_are_scores: bool,
}

impl Followed {
    fn new(file: &File, source: &Source) -> Self {
        let mut followed = Self {
            json: source.json.clone(),
            named: source.named.clone(),
            without: vec![],
            merges_are_scores: true,
        };
        followed.plain_added_tokens();
        followed.tokens_by_text();
        if file.get("tokenizer.ggml.model").and_then(Value::as_str) == Some("llama") {
            followed.spaces();
            followed.merges_are_scores = lists_all_pairs(source.json);
            if !followed.merges_are_scores {
                followed.without.push("its own order of merges");
            }
        } else {
            followed.set("normalizer", Json::Null, "its normalizer");
            if let Some(pre) = source.pre.and_then(pre_tokenizer) {
                let split = |expression: &&str| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
                let mut steps: Vec<_> = pre.splits.iter().map(split).collect();
                steps.push(
                    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
                );
                let steps = json!({"type": "Sequence", "pretokenizers": steps});
                followed.set(
                    "pre_tokenizer",
                    steps,
                    "its pre_tokenizer, for which --tokenizer-pre names another",
                );
                followed.json["model"]["ignore_merges"] = pre.ignore_merges.into();
            }
        }
        followed
    }

    fn set(&mut self, key: &str, value: Json, what: &'static str) {
        let old = self.json.get(key).cloned().unwrap_or_default();
        let is_empty = old
            .get("normalizers")
            .and_then(Json::as_array)
            .is_some_and(Vec::is_empty);
        if old != value && !is_empty {
            self.without.push(what);
        }
        self.json[key] = value;
    }

    /// llama.cpp finds added tokens wherever they are written.
    fn plain_added_tokens(&mut self) {
        let mut stripped = false;
        let tokens = self.json.get_mut("added_tokens").and_then(Json::as_array_mut);
        for token in tokens.into_iter().flatten() {
            for flag in ["lstrip", "rstrip", "single_word", "normalized"] {
                stripped |= flag != "normalized" && token[flag] == true;
                token[flag] = false.into();
            }
        }
        if stripped {
            self.without.push("lstrip, rstrip and single_word of its added tokens");
        }
    }

    /// llama.cpp finds some tokens by their texts.
    fn tokens_by_text(&mut self) {
        let added = |text: &str| {
            let tokens = self.json["added_tokens"].as_array().into_iter().flatten();
            tokens.into_iter().any(|token| token["content"] == text)
        };
        let vocab = self.json["model"]["vocab"].as_object().into_iter().flatten();
        let by_text: Vec<_> = vocab
            .map(|(text, _)| text)
            .filter(|text| is_made_control(text) || SHOWN_TEXTS.contains(&text.as_str()))
            .filter(|text| !added(text) && !self.named.contains(text))
            .cloned()
            .collect();
        if !by_text.is_empty() {
            self.without.push("marks as plain text");
        }
        self.named.extend(by_text);
    }

    /// Spaces become `▁`, with one put before each stretch of text, or none.
    fn spaces(&mut self) {
        let steps = |key: &str, list: &str| match &self.json[key] {
            Json::Null => vec![],
            step => step[list].as_array().cloned().unwrap_or_else(|| vec![step.clone()]),
        };
        let prepends = steps("normalizer", "normalizers")
            .iter()
            .any(|step| step["type"] == "Prepend");
        let metaspace = steps("pre_tokenizer", "pretokenizers").iter().any(|step| {
            step["type"] == "Metaspace" && step["prepend_scheme"] != "never" && step["add_prefix_space"] != false
        });
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prefix = json!({"type": "Prepend", "prepend": "▁"});
        let normalizers = match prepends || metaspace {
            true => vec![prefix, space],
            false => vec![space],
        };
        if metaspace {
            self.without.push("its own rule for a space in front");
        }
        self.json["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers});
        self.json["pre_tokenizer"] = Json::Null;
    }
}

/// Whether the merges list each pair of tokens that joins to a token that they make, all pairs of a token in a row: then
/// the score of the token says when they join.
fn lists_all_pairs(json: &Json) -> bool {
    let Some(vocab) = json.pointer("/model/vocab").and_then(Json::as_object) else {
        return true;
    };
    let merges = json.pointer("/model/merges").and_then(Json::as_array);
    let pair = |merge: &Json| match merge {
        Json::String(pair) => pair.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        pair => Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned())),
    };
    let mut made: Vec<(String, usize)> = vec![];
    for (left, right) in merges.into_iter().flatten().filter_map(pair) {
        let joined = left + &right;
        match made.last_mut() {
            Some((text, count)) if *text == joined => *count += 1,
            _ => made.push((joined, 1)),
        }
    }
    // A token that is made in two places of the list has fewer pairs in each than there are.
    made.iter().all(|(text, count)| {
        let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
        let pairs = splits.filter(|(left, right)| vocab.contains_key(*left) && vocab.contains_key(*right));
        pairs.count() == *count
    })
}
