//! JSON objects of a checkpoint, read key by key so that every complaint names its file and key.

use std::path::PathBuf;

use serde_json::{Map, Value};

/// A file whose top level is an object; or none, which has no keys.
#[derive(Default)]
pub struct Object {
    pub(super) path: PathBuf,
    pub(super) value: Value,
}

/// A key that does not hold what it must.
pub struct WrongKey {
    pub path: PathBuf,
    pub key: String,
    /// Its value, or "missing".
    pub found: String,
    pub expected: String,
}

/// What a key must hold that is stored as an f32.
pub const POSITIVE: &str = "a positive number that an f32 can hold";

impl Object {
    /// # Errors
    /// No object.
    pub fn new(path: PathBuf, value: Value) -> Result<Self, WrongKey> {
        let object = Self { path, value };
        match object.value.is_object() {
            true => Ok(object),
            false => Err(object.wrong("(top level)", Some(&object.value), "an object")),
        }
    }

    /// What messages call the file.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The value of a key; null counts as missing.
    pub fn value(&self, key: &str) -> Option<&Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    /// All keys and values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.value.as_object().into_iter().flatten()
    }

    pub fn wrong(&self, key: &str, found: Option<&Value>, expected: impl Into<String>) -> WrongKey {
        WrongKey {
            path: self.path.clone(),
            key: key.into(),
            found: found.map_or("missing".into(), brief),
            expected: expected.into(),
        }
    }

    /// The value of a key as `read` takes it, if it has one.
    fn read<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WrongKey> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let found = read(value);
        found.map(Some).ok_or_else(|| self.wrong(key, Some(value), expected))
    }

    /// A whole number from 1 to 2^31 - 1, which is what a GGUF key and a tensor's shape can hold.
    pub fn count(&self, key: &str) -> Result<Option<usize>, WrongKey> {
        self.read(key, "a whole number from 1 to 2147483647", |value| {
            let count = value.as_u64().filter(|count| (1..=0x7fff_ffff).contains(count));
            count.map(|count| count as usize)
        })
    }

    pub fn required_count(&self, key: &str) -> Result<usize, WrongKey> {
        self.count(key)?.ok_or_else(|| self.wrong(key, None, "a whole number"))
    }

    /// A whole number that takes memory, or time, beyond what its tensors do.
    pub fn limited(&self, key: &str, max: usize, why: &str) -> Result<usize, WrongKey> {
        match self.required_count(key)? {
            count if count <= max => Ok(count),
            _ => Err(self.wrong(key, self.value(key), format!("at most {max}{why}"))),
        }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, WrongKey> {
        let finite = |value: &Value| value.as_f64().filter(|number| number.is_finite());
        self.read(key, "a finite number", finite)
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>, WrongKey> {
        match self.number(key)? {
            Some(number) if !is_positive(number) => Err(self.wrong(key, self.value(key), POSITIVE)),
            number => Ok(number),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, WrongKey> {
        self.read(key, "a string", Value::as_str)
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, WrongKey> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub fn object(&self, key: &str) -> Result<Option<&Map<String, Value>>, WrongKey> {
        self.read(key, "an object", Value::as_object)
    }

    /// A token id or a list of them. A negative one stands for none, in PyTorch and in early conversions of Llama.
    pub fn ids(&self, key: &str, notes: &mut Vec<String>) -> Result<Vec<u32>, WrongKey> {
        let Some(value) = self.value(key) else {
            return Ok(vec![]);
        };
        let mut ids = vec![];
        let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for id in listed {
            match (id.as_i64(), id.as_u64().map(u32::try_from)) {
                (Some(..0), _) => notes.push(format!(
                    "{}: '{key}' is {id}, which stands for no token: it is left out",
                    self.name()
                )),
                (_, Some(Ok(id))) => ids.push(id),
                _ => return Err(self.wrong(key, Some(value), "a token id or a list of them")),
            }
        }
        Ok(ids)
    }
}

/// Positive and finite as an f32, which is what a GGUF file holds.
pub fn is_positive(number: f64) -> bool {
    let stored = number as f32;
    stored > 0.0 && stored.is_finite()
}

/// A value for messages: short ones in full, long ones by their kind.
pub fn brief(value: &Value) -> String {
    const SHOWN: usize = 80; // bytes
    let text = value.to_string();
    match value {
        _ if text.len() <= SHOWN => text,
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(entries) => format!("an object of {} entries", entries.len()),
        Value::String(text) => format!("a string of {} bytes", text.len()),
        _ => text,
    }
}
