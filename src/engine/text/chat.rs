//! A conversation as text, by the chat template of a file, as transformers applies it (utils/chat_template_utils.py).
//!
//! The template is somebody else's program: it reads no file and no clock, and its steps are counted. What it may take of
//! memory is for the caller to limit, who runs it in a process of its own.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

/// Instructions of minijinja: templates in use take some thousands for a conversation.
const STEPS: u64 = 10_000_000;

/// A conversation and the template for it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Chat {
    pub template: String,
    /// The texts of the tokens that begin and end a text.
    pub bos: String,
    pub eos: String,
    pub messages: Vec<Message>,
}

/// What somebody said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }
}

impl Chat {
    /// The text that the model is to continue with its answer.
    ///
    /// # Errors
    /// What the template says of the conversation, or that it is no template, or takes too many steps.
    pub fn text(&self) -> Result<String, Error> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax?);
        environment.set_fuel(Some(STEPS));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |says: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, says))
        });
        let messages = self
            .messages
            .iter()
            .map(|message| Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())]));
        environment.template_from_str(&self.template)?.render(context! {
            messages => messages.collect::<Vec<_>>(),
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            add_generation_prompt => true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(template: &str) -> Result<String, Error> {
        let messages = vec![Message::new("system", " Be brief. "), Message::new("user", "Hi")];
        let (bos, eos) = ("<s>".into(), "</s>".into());
        let template = template.into();
        Chat {
            template,
            bos,
            eos,
            messages,
        }
        .text()
    }

    /// A template of ChatML, and what Jinja2 3.1 makes of it with trim_blocks and lstrip_blocks, which transformers sets: the
    /// line end behind `}}` stays.
    #[test]
    fn a_template_in_use_gives_what_jinja2_gives() {
        let template = "{% for message in messages %}\n    {{- '<|im_start|>' + message['role'] + '\\n' + \
                        message['content'] + '<|im_end|>' + '\\n' }}\n{% endfor %}\n{% if add_generation_prompt %}\n    \
                        {{- '<|im_start|>assistant\\n' }}\n{% endif %}\n";
        let expected = "<|im_start|>system\n Be brief. <|im_end|>\n\n<|im_start|>user\nHi<|im_end|>\n\n\
                        <|im_start|>assistant\n\n";
        assert_eq!(text(template).unwrap(), expected);
    }

    #[test]
    fn methods_of_python_and_the_marks_are_there() {
        let template = "{{ bos_token }}{{ messages[0].content.strip() }}{% if messages[1]['role'] == 'user' %}!\
                        {% endif %}{{ 'a,b'.split(',')[1].upper() }}{{ messages | length }}{{ eos_token }}";
        assert_eq!(text(template).unwrap(), "<s>Be brief.!B2</s>");
        assert_eq!(
            text("{{ messages[1] | tojson }}").unwrap(),
            r#"{"role": "user", "content": "Hi"}"#
        );
    }

    #[test]
    fn a_template_can_refuse_and_cannot_run_for_ever() {
        let refused = text("{{ raise_exception('no system role') }}").unwrap_err();
        assert!(refused.to_string().contains("no system role"), "{refused}");
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert_eq!(text(endless).unwrap_err().kind(), ErrorKind::OutOfFuel);
        for file in [
            "{% include '/etc/passwd' %}",
            "{% extends 'x' %}",
            "{% import 'x' as y %}",
        ] {
            text(file).unwrap_err();
        }
    }
}
