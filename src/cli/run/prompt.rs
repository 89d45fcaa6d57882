//! What `run` was given: the text, and for a chat what was said, as tokens.

use std::io::{self, IsTerminal};

use anyhow::Context as _;
use formats::gguf::{File, Value};

use super::RunArgs;
use super::template::apply;
use crate::cli::Context;
use crate::engine::text::{Chat, Message, Text};

/// The text that was given: on the command line, in a file, or all of standard input; `None` where somebody sits at a
/// terminal.
pub fn given(args: &RunArgs) -> anyhow::Result<Option<String>> {
    if let Some(path) = &args.file {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        return Ok(Some(without_last_line_end(text)));
    }
    match args.prompt.as_ref().or(args.text.as_ref()) {
        Some(text) if text != "-" => Ok(Some(text.clone())),
        None if io::stdin().is_terminal() => Ok(None),
        _ => {
            let text = io::read_to_string(io::stdin()).context("standard input")?;
            Ok(Some(without_last_line_end(text)))
        }
    }
}

fn without_last_line_end(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
    }
    text
}

/// What has been said.
pub struct Conversation<'a> {
    called: &'a Context,
    text: &'a Text,
    chat: Chat,
}

impl<'a> Conversation<'a> {
    /// One that begins with `system`, if there is something to begin with. `template`: that of `file`.
    pub fn new(called: &'a Context, file: &File, text: &'a Text, template: &str, system: Option<&str>) -> Self {
        let tokens = file.get("tokenizer.ggml.tokens").and_then(Value::as_strings);
        let token = |id: u32| {
            tokens
                .and_then(|tokens| tokens.get(id as usize))
                .cloned()
                .unwrap_or_default()
        };
        Self {
            called,
            text,
            chat: Chat {
                template: template.into(),
                bos: token(text.bos()),
                eos: token(text.eos()),
                messages: system
                    .map(|system| Message::new("system", system))
                    .into_iter()
                    .collect(),
            },
        }
    }

    /// Something more was said.
    pub fn say(&mut self, role: &str, content: impl Into<String>) {
        self.chat.messages.push(Message::new(role, content));
    }

    /// What the model is to continue: as text, and as tokens.
    ///
    /// # Errors
    /// The template cannot be applied.
    pub fn prompt(&self) -> anyhow::Result<(String, Vec<u32>)> {
        let prompt = apply(self.called.witness.path(), &self.chat)?;
        let mut tokens = self.text.encode_with_specials(&prompt, true);
        // Most templates begin a text, and so do most tokenizers.
        if tokens.starts_with(&[self.text.bos(); 2]) {
            tokens.remove(0);
        }
        // The answer is yet to come.
        if tokens.last() == Some(&self.text.eos()) && !prompt.ends_with(&self.chat.eos) {
            tokens.pop();
        }
        Ok((prompt, tokens))
    }
}
