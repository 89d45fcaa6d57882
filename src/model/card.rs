//! The model card beside a checkpoint: what the front matter of its README.md says (Hugging Face Hub, "Model Cards").

use std::path::Path;

use formats::gguf::{Array, Value};
use serde::Deserialize;

use crate::files;

/// The file that the Hub shows, and whose front matter it reads.
pub const CARD: &str = "README.md";

const LICENSE: &str = "general.license";
const LICENSE_NAME: &str = "general.license.name";
const LICENSE_LINK: &str = "general.license.link";
const LANGUAGES: &str = "general.languages";
const BASE_MODEL: &str = "general.base_model";
/// Where repositories are.
const HUB: &str = "https://huggingface.co/";

/// Most bytes that are read of a card.
const MOST_BYTES: u64 = 1 << 20;

/// What a card says of its model.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Card {
    /// The Hub's name of the license, `apache-2.0`; `other` where the next two tell.
    pub license: Option<String>,
    pub license_name: Option<String>,
    pub license_link: Option<String>,
    /// ISO 639 codes.
    #[serde(rename = "language", deserialize_with = "one_or_many")]
    pub languages: Vec<String>,
    /// Repositories that the model was made from: `OWNER/NAME`.
    #[serde(rename = "base_model", deserialize_with = "one_or_many")]
    pub base_models: Vec<String>,
}

impl Card {
    /// The card in a folder; empty where there is none, or none with front matter.
    ///
    /// # Errors
    /// A card that cannot be read, for a note: nothing of the model depends on it.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(CARD);
        if !path.exists() {
            return Ok(Self::default());
        }
        let said = |why: String| {
            format!(
                "{}: {why}: its license, languages and base model are not noted",
                path.display()
            )
        };
        let bytes = files::read(&path, MOST_BYTES).map_err(|error| said(error.to_string()))?;
        let bytes = bytes.ok_or_else(|| said(format!("has more than {MOST_BYTES} bytes")))?;
        let text = String::from_utf8(bytes).map_err(|_| said("is not UTF-8".into()))?;
        match front_matter(&text) {
            Some(yaml) => serde_saphyr::from_str(yaml).map_err(|error| {
                let error = error.to_string();
                said(format!(
                    "invalid front matter: {}",
                    error.lines().next().unwrap_or_default()
                ))
            }),
            None => Ok(Self::default()),
        }
    }
}

impl Card {
    /// GGUF's keys of the same facts (gguf-py, metadata.py, `set_gguf_meta_model`).
    pub fn keys(&self) -> Vec<(String, Value)> {
        let mut keys = vec![];
        let license = [
            (LICENSE, &self.license),
            (LICENSE_NAME, &self.license_name),
            (LICENSE_LINK, &self.license_link),
        ];
        for (key, text) in license {
            keys.extend(text.clone().map(|text| (key.to_owned(), Value::String(text))));
        }
        if !self.base_models.is_empty() {
            keys.push((format!("{BASE_MODEL}.count"), Value::U32(self.base_models.len() as u32)));
        }
        for (index, repository) in self.base_models.iter().enumerate() {
            let mut put = |what: &str, text: &str| {
                keys.push((format!("{BASE_MODEL}.{index}.{what}"), Value::String(text.into())));
            };
            match repository.split_once('/') {
                Some((owner, name)) => {
                    put("name", name);
                    put("organization", owner);
                    put("repo_url", &format!("{HUB}{repository}"));
                }
                None => put("name", repository),
            }
        }
        if !self.languages.is_empty() {
            keys.push((LANGUAGES.into(), Value::Array(Array::String(self.languages.clone()))));
        }
        keys
    }

    /// What the keys of a file say.
    pub fn of_keys(keys: &[(String, Value)]) -> Self {
        let get = |wanted: &str| keys.iter().find(|(key, _)| key == wanted).map(|(_, value)| value);
        let text = |key: &str| get(key).and_then(Value::as_str).map(String::from);
        let base_model = |index: usize| {
            let url = text(&format!("{BASE_MODEL}.{index}.repo_url"))?;
            Some(url.strip_prefix(HUB)?.to_owned())
        };
        Self {
            license: text(LICENSE),
            license_name: text(LICENSE_NAME),
            license_link: text(LICENSE_LINK),
            languages: get(LANGUAGES).and_then(Value::as_strings).unwrap_or_default().to_vec(),
            base_models: (0..).map_while(base_model).collect(),
        }
    }
}

/// What stands between two lines of three hyphens at the front of a text.
fn front_matter(text: &str) -> Option<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rest = text.strip_prefix("---")?;
    let (first, rest) = rest.split_once('\n')?;
    let mut end = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return first.trim().is_empty().then_some(&rest[..end]);
        }
        end += line.len();
    }
    None
}

/// A string, a list of them, or nothing.
fn one_or_many<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::deserialize(deserializer)? {
        None => vec![],
        Some(Words::One(word)) => vec![word],
        Some(Words::Many(words)) => words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Card, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CARD), text).unwrap();
        Card::read(folder.path())
    }

    #[test]
    fn front_matter_says_what_the_hub_reads() {
        let text = "---\r\nlicense: apache-2.0\r\nlanguage:\r\n- en\r\n- 'no'\r\nbase_model: an-org/A-Model\r\ntags: [x]\r\n---\r\n# A\r\n";
        let expected = Card {
            license: Some("apache-2.0".into()),
            languages: vec!["en".into(), "no".into()],
            base_models: vec!["an-org/A-Model".into()],
            ..Card::default()
        };
        let found = read(text).unwrap();
        assert_eq!(found, expected);
        assert_eq!(Card::of_keys(&found.keys()), expected);
    }

    #[test]
    fn a_card_without_front_matter_says_nothing() {
        for text in [
            "",
            "# A\n---\nlicense: mit\n---\n",
            "---\nlicense: mit\n",
            "--- x\nlicense: mit\n---\n",
            "---\n---\n",
        ] {
            assert_eq!(read(text).unwrap(), Card::default(), "{text:?}");
        }
        assert_eq!(Card::read(Path::new("no/such/folder")).unwrap(), Card::default());
    }

    #[test]
    fn a_card_that_cannot_be_read_is_told_of() {
        for text in [
            "---\nlicense: [a\n---\n",
            "---\nlicense: {a: b}\n---\n",
            "---\nlanguage: [[en]]\n---\n",
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains("README.md: invalid front matter"), "{text:?}: {why}");
        }
        let deep = format!("---\nlanguage: {}\n---\n", "[".repeat(100_000));
        assert!(read(&deep).is_err());
    }
}
