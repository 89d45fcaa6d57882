//! llama.cpp as a witness of level 4: its logits, and the tokens that it splits texts into.

use std::path::Path;

use formats::gguf::File;

use super::report::Check;
use super::windows::Windows;
use crate::engine::{Engine, EngineError};

/// llama.cpp, where there is one.
#[cfg(feature = "llama")]
pub(super) struct Witness(crate::engine::llamacpp::Model);

/// What tokenizers stumble over: spaces, digits, accents, scripts, contractions, line ends, symbols, code.
#[cfg(feature = "llama")]
const HARD: [&str; 8] = [
    "  two  spaces,\ttabs\n\nand lines \r\n",
    "1 12 123 1234567 3.14 1,000",
    "don't I'LL we've Zoë naïve Ångström",
    "Привет мир, 你好世界, مرحبا, こんにちは",
    "a\u{301} \u{1F600}\u{200D} \u{FEFF}",
    "<|begin_of_text|> is text here",
    "fn main() { println!(\"{}\", x[0]); }",
    " ",
];

#[cfg(feature = "llama")]
impl Witness {
    /// Whether llama.cpp splits texts into the tokens that we split them into.
    pub(super) fn same_tokens(&self, text: &Windows) -> Check {
        let texts = || HARD.into_iter().chain([text.samples.text.as_str()]);
        let problems: Vec<_> = texts()
            .filter_map(|sample| {
                let (ours, theirs) = (
                    text.samples.tokenizer.encode(sample, false),
                    self.0.tokenize(sample, false, false),
                );
                let at =
                    (0..ours.len().max(theirs.len())).find(|&i| ours.get(i) != theirs.get(i))?;
                let start: String = sample.chars().take(24).collect();
                Some(format!(
                    "token {at} of {start:?}: {:?} to us, {:?} to llama.cpp",
                    ours.get(at),
                    theirs.get(at)
                ))
            })
            .collect();
        const ORIGIN: &str = "our tokenizer and llama.cpp's on the same keys";
        Check::no_problems(
            "texts split alike",
            problems,
            texts().count() as u64,
            "texts",
            ORIGIN,
        )
    }

    pub(super) fn load(path: &Path, file: &File) -> Result<Self, String> {
        let model = crate::engine::llamacpp::Model::load(path, file);
        model.map(Self).map_err(|error| error.to_string())
    }

    pub(super) fn engine(
        &self,
        text: &Windows,
        threads: usize,
    ) -> Result<Box<dyn Engine + '_>, EngineError> {
        let settings = crate::engine::llamacpp::Settings {
            context: text.window,
            threads,
            exact_cache: true,
        };
        Ok(Box::new(self.0.session(settings)?))
    }
}

#[cfg(not(feature = "llama"))]
pub(super) enum Witness {}

#[cfg(not(feature = "llama"))]
impl Witness {
    pub(super) fn load(_: &Path, _: &File) -> Result<Self, String> {
        Err(super::NO_LLAMA.into())
    }

    pub(super) fn same_tokens(&self, _: &Windows) -> Check {
        match *self {}
    }

    pub(super) fn engine(
        &self,
        _: &Windows,
        _: usize,
    ) -> Result<Box<dyn Engine + '_>, EngineError> {
        match *self {}
    }
}
