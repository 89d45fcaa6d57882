//! A text cut into windows of tokens.

use formats::gguf::File;

use super::TextOptions;
use crate::engine::hyper::Hyper;
use crate::engine::text::Text;

/// A text as windows of tokens, each to be run from an empty context.
pub(super) struct Windows {
    pub windows: Vec<Window>,
    /// Tokens of the longest one.
    pub window: usize,
    /// What the file's tokenizer is to be compared on.
    pub samples: Samples,
}

/// Our tokenizer of the file, and the text.
pub(super) struct Samples {
    pub tokenizer: Text,
    pub text: String,
}

pub(super) struct Window {
    pub tokens: Vec<u32>,
    /// The token that follows each.
    pub next: Vec<u32>,
}

impl Windows {
    pub fn cut(file: &File, options: &TextOptions) -> Result<Self, String> {
        let mut text = Text::from_gguf(file).map_err(|error| error.to_string())?;
        let tokens = text.encode(&options.text, false);
        let first = text.encode("", true).first().copied();
        let first = first.filter(|&token| token == text.bos()); // where every text begins with it
        let context = Hyper::read(file).map_or(usize::MAX, |hyper| hyper.context);
        let window = options.window.min(context);
        let lead = usize::from(first.is_some());
        let step = window.saturating_sub(lead).max(1);
        let count = options.tokens.min(tokens.len().saturating_sub(1));
        if count == 0 {
            return Err("the text is too short: two tokens at least are needed".into());
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
        text.split_as_llama_cpp().map_err(|error| error.to_string())?;
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
