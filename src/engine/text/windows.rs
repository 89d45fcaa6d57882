//! A text cut into windows of tokens.

use formats::gguf::Value;

use super::{Text, TextError};

/// What the engines predict.
#[derive(Clone, Debug)]
pub struct TextOptions {
    pub text: String,
    /// Where it is from, for the report.
    pub source: String,
    /// At most so many predictions.
    pub tokens: usize,
    /// Tokens that see each other.
    pub window: usize,
}

impl Default for TextOptions {
    /// A few verses of the King James Bible, which is in the public domain.
    fn default() -> Self {
        Self {
            text: include_str!("sample.txt").into(),
            source: "built-in text".into(),
            tokens: 512,
            window: 256,
        }
    }
}

/// A text as windows of tokens, each to be run from an empty context.
pub struct Windows {
    pub windows: Vec<Window>,
    /// Tokens of the longest one.
    pub window: usize,
    /// What the model's tokenizer is to be compared on.
    pub samples: Samples,
}

/// Our tokenizer of the model, and the text.
pub struct Samples {
    pub tokenizer: Text,
    pub text: String,
}

pub struct Window {
    pub tokens: Vec<u32>,
    /// The token that follows each.
    pub next: Vec<u32>,
}

impl Windows {
    /// Cut the text for a model with these `keys`, which sees up to `context` tokens.
    ///
    /// # Errors
    /// Those of [`Text::from_keys`]; a text without two tokens.
    pub fn cut(keys: &[(String, Value)], context: usize, options: &TextOptions) -> Result<Self, TextError> {
        let mut text = Text::from_keys(keys)?;
        let tokens = text.encode(&options.text, false);
        let first = text.encode("", true).first().copied();
        let first = first.filter(|&token| token == text.bos()); // where every text begins with it
        let window = options.window.min(context);
        let lead = usize::from(first.is_some());
        let step = window.saturating_sub(lead).max(1);
        let count = options.tokens.min(tokens.len().saturating_sub(1));
        if count == 0 {
            return Err(TextError::TooShort);
        }
        let windows: Vec<_> = (0..count)
            .step_by(step)
            .map(|start| {
                let end = (start + step).min(count);
                let lead = first.into_iter();
                Window {
                    tokens: lead.clone().chain(tokens[start..end].iter().copied()).collect(),
                    next: lead
                        .map(|_| tokens[start])
                        .chain(tokens[start + 1..=end].iter().copied())
                        .collect(),
                }
            })
            .collect();
        // Compared with llama.cpp, text is split as llama.cpp is known to split it.
        text.split_as_llama_cpp()?;
        Ok(Self {
            window: windows[0].tokens.len(),
            windows,
            samples: Samples {
                tokenizer: text,
                text: options.text.clone(),
            },
        })
    }

    pub fn predictions(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }

    /// The windows, as many of them together as have up to `tokens` tokens, at least one.
    pub fn batches(&self, tokens: usize) -> impl Iterator<Item = &[Window]> {
        self.windows.chunks((tokens / self.window).max(1))
    }
}
