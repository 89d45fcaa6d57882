//! Metadata values: thirteen types, kept as typed as the file has them, since llama.cpp is strict about them.

use crate::FormatError;
use crate::bytes::Cursor;

/// Arrays longer than this are refused, as in ggml (gguf.cpp).
const MAX_ARRAY: u64 = 1 << 30;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

macro_rules! value_types {
    ($($variant:ident $type:ty, $id:literal, $name:literal;)*) => {
        /// One metadata value.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Value {
            $(#[doc = $name] $variant($type),)*
            /// true or false
            Bool(bool),
            /// UTF-8 text
            String(String),
            /// values of one type
            Array(Array),
        }

        /// The values of an array, all of one type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = $name] $variant(Vec<$type>),)*
            /// true or false
            Bool(Vec<bool>),
            /// UTF-8 texts
            String(Vec<String>),
        }

        impl Value {
            /// The type's id and name in GGUF.
            fn kind(&self) -> (u32, &'static str) {
                match self {
                    $(Value::$variant(_) => ($id, $name),)*
                    Value::Bool(_) => (7, "bool"),
                    Value::String(_) => (STRING, "string"),
                    Value::Array(_) => (ARRAY, "array"),
                }
            }

            pub(super) fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.kind().0.to_le_bytes());
                match self {
                    $(Value::$variant(value) => out.extend(value.to_le_bytes()),)*
                    Value::Bool(value) => out.push((*value).into()),
                    Value::String(text) => encode_string(text, out),
                    Value::Array(array) => array.encode(out),
                }
            }

            pub(super) fn read(key: &str, cursor: &mut Cursor) -> Result<Self, FormatError> {
                let what = format!("the value of key '{key}'");
                match cursor.u32(&what)? {
                    $($id => read_number(cursor, &what).map(|bytes| Value::$variant(<$type>::from_le_bytes(bytes))),)*
                    7 => Ok(Value::Bool(read_number::<1>(cursor, &what)? != [0])),
                    STRING => cursor.string(&what).map(Value::String),
                    ARRAY => Array::read(key, &what, cursor).map(Value::Array),
                    id => Err(FormatError::ValueType { key: key.into(), id, nested: "" }),
                }
            }
        }

        impl Array {
            /// Number of values.
            pub fn len(&self) -> usize {
                match self {
                    $(Array::$variant(values) => values.len(),)*
                    Array::Bool(values) => values.len(),
                    Array::String(values) => values.len(),
                }
            }

            fn kind(&self) -> (u32, &'static str) {
                match self {
                    $(Array::$variant(_) => ($id, $name),)*
                    Array::Bool(_) => (7, "bool"),
                    Array::String(_) => (STRING, "string"),
                }
            }

            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.kind().0.to_le_bytes());
                out.extend((self.len() as u64).to_le_bytes());
                match self {
                    $(Array::$variant(values) => values.iter().for_each(|value| out.extend(value.to_le_bytes())),)*
                    Array::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
                    Array::String(values) => values.iter().for_each(|text| encode_string(text, out)),
                }
            }

            fn read(key: &str, what: &str, cursor: &mut Cursor) -> Result<Self, FormatError> {
                let id = cursor.u32(what)?;
                let count = cursor.u64(what)?;
                if count > MAX_ARRAY {
                    return Err(FormatError::Limit { what: format!("the number of values of key '{key}'"), found: count, max: MAX_ARRAY });
                }
                match id {
                    $($id => read_numbers(cursor, count, what, <$type>::from_le_bytes).map(Array::$variant),)*
                    7 => read_numbers(cursor, count, what, |byte: [u8; 1]| byte != [0]).map(Array::Bool),
                    STRING => read_strings(cursor, count, what).map(Array::String),
                    id => Err(FormatError::ValueType {
                        key: key.into(),
                        id,
                        nested: if id == ARRAY { ": an array of arrays is not allowed" } else { "" },
                    }),
                }
            }

            /// The first values, `count` of them at most.
            pub fn first(&self, count: usize) -> Array {
                match self {
                    $(Array::$variant(values) => Array::$variant(values.iter().take(count).copied().collect()),)*
                    Array::Bool(values) => Array::Bool(values.iter().take(count).copied().collect()),
                    Array::String(values) => Array::String(values.iter().take(count).cloned().collect()),
                }
            }

            /// The value at `index` as JSON.
            pub fn item(&self, index: usize) -> Option<serde_json::Value> {
                match self {
                    $(Array::$variant(values) => values.get(index).map(|&value| value.into()),)*
                    Array::Bool(values) => values.get(index).map(|&value| value.into()),
                    Array::String(values) => values.get(index).map(|text| text.as_str().into()),
                }
            }

            /// The values as JSON, for `--json` output: about 60 bytes of memory each.
            pub fn to_json(&self) -> serde_json::Value {
                match self {
                    $(Array::$variant(values) => values.as_slice().into(),)*
                    Array::Bool(values) => values.as_slice().into(),
                    Array::String(values) => values.as_slice().into(),
                }
            }
        }
    };
}

value_types! {
    U8 u8, 0, "u8";
    I8 i8, 1, "i8";
    U16 u16, 2, "u16";
    I16 i16, 3, "i16";
    U32 u32, 4, "u32";
    I32 i32, 5, "i32";
    F32 f32, 6, "f32";
    U64 u64, 10, "u64";
    I64 i64, 11, "i64";
    F64 f64, 12, "f64";
}

impl Value {
    /// The type as people write it: `u32`, `string`, `array of f32`.
    pub fn type_name(&self) -> String {
        match self {
            Value::Array(array) => format!("array of {}", array.kind().1),
            value => value.kind().1.into(),
        }
    }

    /// The text of a string value.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// A `u32` value; no other integer type, as in llama.cpp.
    pub fn as_u32(&self) -> Option<u32> {
        match self {
            Value::U32(value) => Some(*value),
            _ => None,
        }
    }

    /// An `f32` value.
    pub fn as_f32(&self) -> Option<f32> {
        match self {
            Value::F32(value) => Some(*value),
            _ => None,
        }
    }

    /// A `bool` value.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// The texts of a string array.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Value::Array(Array::String(values)) => Some(values),
            _ => None,
        }
    }

    /// The value and its type on one short line, for messages: `3 (u32)`, `a list of 7`.
    pub fn brief(&self) -> String {
        const SHOWN: usize = 60;
        let text = match self {
            Value::Array(array) => return format!("a list of {}", array.len()),
            Value::String(text) => format!("{:?}", text.chars().take(SHOWN).collect::<String>()),
            // JSON has no such numbers.
            Value::F32(number) if !number.is_finite() => number.to_string(),
            Value::F64(number) if !number.is_finite() => number.to_string(),
            value => value.to_json().to_string(),
        };
        let cut = matches!(self, Value::String(text) if text.chars().nth(SHOWN).is_some());
        format!("{text}{} ({})", if cut { "..." } else { "" }, self.type_name())
    }

    /// The value as JSON, for `--json` output and listings.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::U8(v) => (*v).into(),
            Value::I8(v) => (*v).into(),
            Value::U16(v) => (*v).into(),
            Value::I16(v) => (*v).into(),
            Value::U32(v) => (*v).into(),
            Value::I32(v) => (*v).into(),
            Value::F32(v) => shortest(*v).into(),
            Value::U64(v) => (*v).into(),
            Value::I64(v) => (*v).into(),
            Value::F64(v) => (*v).into(),
            Value::Bool(v) => (*v).into(),
            Value::String(v) => v.as_str().into(),
            Value::Array(array) => array.to_json(),
        }
    }
}

impl Array {
    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The f64 that reads like `value` does: 0.1, not 0.10000000149.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

pub(super) fn encode_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn read_number<const N: usize>(cursor: &mut Cursor, what: &str) -> Result<[u8; N], FormatError> {
    let bytes = cursor.take(N as u64, what)?;
    Ok(*bytes.first_chunk().expect("take gives what it was asked for"))
}

/// `count` numbers of `N` bytes; nothing is allocated before the bytes are known to be there.
fn read_numbers<T, const N: usize>(
    cursor: &mut Cursor,
    count: u64,
    what: &str,
    decode: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, FormatError> {
    let bytes = cursor.take(count.saturating_mul(N as u64), what)?;
    Ok(bytes.as_chunks().0.iter().map(|&number| decode(number)).collect())
}

fn read_strings(cursor: &mut Cursor, count: u64, what: &str) -> Result<Vec<String>, FormatError> {
    const LENGTH_FIELD: u64 = 8;
    if count.saturating_mul(LENGTH_FIELD) > cursor.remaining() as u64 {
        cursor.take(count.saturating_mul(LENGTH_FIELD), what)?;
    }
    (0..count).map(|_| cursor.string(what)).collect()
}
