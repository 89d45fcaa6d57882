//! safetensors: a header of names, dtypes, shapes and byte ranges, then the bytes; and the index of a sharded set.
//! The `safetensors` crate checks that the ranges tile the file; the rules that it does not keep are kept here.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::FormatError;
use crate::error::describe_start;

/// The longest header in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// How numbers are stored. Only the three that a checkpoint is trained in can be read as weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// 16-bit brain float.
    BF16,
    /// Anything else, by its name in the format.
    Other(safetensors::Dtype),
}

impl Dtype {
    /// Bytes of one number, for the three float types.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Dtype::F32 => Some(4),
            Dtype::F16 | Dtype::BF16 => Some(2),
            Dtype::Other(_) => None,
        }
    }

    /// `value` rounded once to this dtype (to nearest, ties to even), as f32.
    pub fn round(self, value: f64) -> f32 {
        match self {
            Dtype::F16 => f16::from_f32(round_to_odd(value)).to_f32(),
            Dtype::BF16 => bf16::from_f32(round_to_odd(value)).to_f32(),
            Dtype::F32 | Dtype::Other(_) => value as f32,
        }
    }
}

/// `value` as f32, towards zero, with the last bit set where that is inexact: a second rounding to fewer bits then
/// gives what one rounding of `value` would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
fn round_to_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || !nearest.is_finite() {
        return nearest;
    }
    let beyond = f64::from(nearest).abs() > value.abs();
    let toward_zero = nearest.to_bits() - u32::from(beyond);
    f32::from_bits(toward_zero | 1)
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Dtype::Other(dtype) => write!(f, "{dtype:?}"),
            dtype => write!(f, "{dtype:?}"),
        }
    }
}

/// What the header says of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// For example `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Slowest dimension first: a matrix is `[rows, columns]`.
    pub shape: Vec<usize>,
    /// Where its numbers are, bytes from the start of the file.
    pub range: Range<usize>,
}

impl Entry {
    /// The tensor in the bytes of the file that the header came from.
    pub fn view<'a>(&'a self, file: &'a [u8]) -> Tensor<'a> {
        Tensor {
            dtype: self.dtype,
            shape: &self.shape,
            bytes: &file[self.range.clone()],
        }
    }
}

/// A tensor's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// How the numbers are stored.
    pub dtype: Dtype,
    /// Slowest dimension first: a matrix is `[rows, columns]`.
    pub shape: &'a [usize],
    /// The numbers, little-endian, row-major.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no numbers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers from `start` on, as many as `out` takes, widened to f32.
    ///
    /// # Panics
    /// Where the range is not in the tensor, or the dtype is not one of the three float types.
    pub fn read_f32(&self, start: usize, out: &mut [f32]) {
        let size = self.dtype.bytes().expect("a float dtype");
        let bytes = &self.bytes[start * size..][..out.len() * size];
        match self.dtype {
            Dtype::F32 => widen(bytes, out, f32::from_le_bytes),
            Dtype::F16 => widen(bytes, out, |number| f16::from_le_bytes(number).to_f32()),
            _ => widen(bytes, out, |number| bf16::from_le_bytes(number).to_f32()),
        }
    }
}

fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn([u8; N]) -> f32) {
    for (out, &number) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = decode(number);
    }
}

/// The tensors of one file by name, in the order of their bytes.
///
/// # Errors
/// Truncation, a header that is too long, no JSON, or breaks a rule (names that stand twice, ranges that
/// overlap, leave holes or do not match shape and dtype); with what the file looks like when it is something else.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    let (start, length) = header_range(bytes)?;
    let data = start + length;
    check_header(&bytes[start..data])?;
    let metadata: safetensors::tensor::Metadata = serde_json::from_slice(&bytes[start..data])
        .map_err(|error| FormatError::Safetensors {
            problem: format!("header: {error}"),
        })?;
    let end = data as u64 + metadata.data_len() as u64;
    if end != bytes.len() as u64 {
        return Err(FormatError::Safetensors {
            problem: format!(
                "the header describes a file of {end} bytes, this one has {}",
                bytes.len()
            ),
        });
    }
    let mut entries = Vec::new();
    for name in metadata.offset_keys() {
        check_name(&name)?;
        let info = metadata
            .info(&name)
            .expect("the name came from this header");
        let (from, to) = info.data_offsets;
        let (dtype, shape) = (dtype(info.dtype), info.shape.clone());
        entries.push(Entry {
            name,
            dtype,
            shape,
            range: data + from..data + to,
        });
    }
    Ok(entries)
}

/// Whether these bytes start like a safetensors file: used to tell what an argument is, not to accept it.
pub fn looks_like(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && header_range(bytes).is_ok()
}

fn header_range(bytes: &[u8]) -> Result<(usize, usize), FormatError> {
    const LENGTH_FIELD: usize = 8;
    let Some(field) = bytes.first_chunk::<LENGTH_FIELD>() else {
        return Err(FormatError::Safetensors {
            problem: format!(
                "{} bytes are too short for a header ({})",
                bytes.len(),
                describe_start(bytes)
            ),
        });
    };
    let length = u64::from_le_bytes(*field);
    if length > MAX_HEADER {
        return Err(FormatError::Safetensors {
            problem: format!(
                "the header would be {length} bytes long, at most {MAX_HEADER} are allowed; the file starts with {}",
                describe_start(bytes)
            ),
        });
    }
    if length > (bytes.len() - LENGTH_FIELD) as u64 {
        return Err(FormatError::Truncated {
            what: "the safetensors header".into(),
            at: LENGTH_FIELD as u64,
            need: length,
            end: bytes.len() as u64,
        });
    }
    Ok((LENGTH_FIELD, length as usize))
}

/// What the crate lets pass: a header that starts with a space, and names that stand twice.
fn check_header(header: &[u8]) -> Result<(), FormatError> {
    if header.first() != Some(&b'{') {
        return Err(FormatError::Safetensors {
            problem: format!(
                "the header starts with {}, expected '{{'",
                describe_start(header)
            ),
        });
    }
    serde_json::from_slice::<UniqueNames>(header)
        .map(|_| ())
        .map_err(|error| FormatError::Safetensors {
            problem: format!("header: {error}"),
        })
}

fn check_name(name: &str) -> Result<(), FormatError> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name.chars().any(char::is_control) {
        "holds a control character"
    } else {
        return Ok(());
    };
    Err(FormatError::Name {
        what: "tensor",
        name: name.escape_debug().to_string(),
        problem,
    })
}

fn dtype(dtype: safetensors::Dtype) -> Dtype {
    match dtype {
        safetensors::Dtype::F32 => Dtype::F32,
        safetensors::Dtype::F16 => Dtype::F16,
        safetensors::Dtype::BF16 => Dtype::BF16,
        other => Dtype::Other(other),
    }
}

/// A JSON object whose keys are all different; the values are passed over.
struct UniqueNames;

impl<'de> Deserialize<'de> for UniqueNames {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueNames, A::Error> {
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    map.next_value::<serde::de::IgnoredAny>()?;
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!(
                            "tensor '{name}' stands twice"
                        )));
                    }
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}

/// `model.safetensors.index.json`: which tensor is in which file.
#[derive(Debug)]
pub struct ShardIndex {
    /// File name by tensor name.
    pub files: BTreeMap<String, String>,
    /// Bytes of all tensors together, where the index says so.
    pub total_size: Option<u64>,
}

impl ShardIndex {
    /// # Errors
    /// No JSON, no `weight_map` of names to file names, or a file name that leaves the directory.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let problem = |problem: String| FormatError::ShardIndex { problem };
        let json: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| problem(error.to_string()))?;
        let map = json
            .get("weight_map")
            .and_then(|map| map.as_object())
            .ok_or_else(|| {
                problem("expected an object 'weight_map' of tensor names to file names".into())
            })?;
        let mut files = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().ok_or_else(|| {
                problem(format!(
                    "'weight_map' gives {file} for tensor '{tensor}', expected a file name"
                ))
            })?;
            if file.is_empty() || file.contains(['/', '\\', '\0']) || file == ".." || file == "." {
                return Err(problem(format!(
                    "'weight_map' gives {file:?} for tensor '{tensor}', expected a file beside the index"
                )));
            }
            files.insert(tensor.clone(), file.to_owned());
        }
        if files.is_empty() {
            return Err(problem("'weight_map' is empty".into()));
        }
        let total_size = match json.pointer("/metadata/total_size") {
            None => None,
            Some(size) => Some(
                size.as_u64()
                    .or_else(|| size.as_f64().map(|size| size as u64))
                    .ok_or_else(|| {
                        problem(format!(
                            "'metadata.total_size' is {size}, expected a number of bytes"
                        ))
                    })?,
            ),
        };
        Ok(Self { files, total_size })
    }
}
