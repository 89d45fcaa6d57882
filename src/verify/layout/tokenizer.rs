//! The keys of the tokenizer.

use formats::gguf::{File, Value};

use super::super::report::{Check, CheckId};

/// The keys of the tokenizer in the types that llama.cpp demands, and consistent with each other (llama-vocab.cpp).
pub fn check(file: &File) -> Check {
    let mut keys = TokenizerKeys {
        file,
        problems: vec![],
        checked: 0,
    };
    keys.check();
    Check::no_problems(
        CheckId::TokenizerTypes,
        keys.problems,
        keys.checked,
        "keys",
        "llama.cpp throws otherwise (llama-vocab.cpp)",
    )
}

struct TokenizerKeys<'a> {
    file: &'a File<'a>,
    problems: Vec<String>,
    checked: u64,
}

impl<'a> TokenizerKeys<'a> {
    fn check(&mut self) {
        let tokens = self.required("tokens", "array of string").map(length);
        let model = self
            .required("model", "string")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let tokens = tokens.unwrap_or(0);
        match model {
            "gpt2" => {
                self.required("merges", "array of string");
                self.required("pre", "string");
                self.merges();
            }
            "llama" => {
                let scores = self.required("scores", "array of f32").map(length);
                self.one_for_each_token("scores", scores, tokens);
            }
            other => self.problem("model", format!("{other:?}, expected \"gpt2\" or \"llama\"")),
        }
        let types = self.required("token_type", "array of i32").map(length);
        self.one_for_each_token("token_type", types, tokens);
        for name in ["bos", "eos", "unknown", "padding"] {
            let key = format!("{name}_token_id");
            let id = self.optional(&key, "u32").and_then(Value::as_u32);
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                self.problem(&key, format!("{id}, the vocabulary has {tokens} tokens"));
            }
        }
        for name in ["add_bos_token", "add_eos_token", "add_space_prefix"] {
            self.optional(name, "bool");
        }
    }

    /// Each is two tokens with a space between them.
    fn merges(&mut self) {
        let merges = self.get("merges").and_then(Value::as_strings);
        let broken = merges
            .unwrap_or_default()
            .iter()
            .position(|merge| merge.split(' ').filter(|part| !part.is_empty()).count() != 2);
        if let (Some(at), Some(merges)) = (broken, merges) {
            let found = format!("{:?} at {at}, expected two tokens and a space", merges[at]);
            self.problem("merges", found);
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.file.get(&format!("tokenizer.ggml.{name}"))
    }

    fn required(&mut self, name: &str, ty: &str) -> Option<&'a Value> {
        if self.get(name).is_none() {
            self.checked += 1;
            self.problem(name, format!("absent, expected {ty}"));
        }
        self.optional(name, ty)
    }

    fn optional(&mut self, name: &str, ty: &str) -> Option<&'a Value> {
        let found = self.get(name)?.type_name();
        self.checked += 1;
        if found == ty {
            return self.get(name);
        }
        self.problem(name, format!("of type {found}, expected {ty}"));
        None
    }

    fn one_for_each_token(&mut self, name: &str, found: Option<usize>, tokens: usize) {
        if let Some(found) = found.filter(|&found| found != tokens) {
            self.problem(name, format!("a list of {found}, the vocabulary has {tokens} tokens"));
        }
    }

    fn problem(&mut self, name: &str, found: String) {
        self.problems.push(format!("key 'tokenizer.ggml.{name}' is {found}"));
    }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(array) => array.len(),
        _ => 0,
    }
}
