//! safetensors: a header of names, dtypes, shapes and byte ranges, then the bytes; and the index of a sharded set.
//! Every rule of the format is kept here, those that the `safetensors` crate lets pass too (names that are duplicated,
//! unknown fields, headers that start with a space, tensors without a number), so that each fault names its tensor.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use half::{bf16, f16};
use serde::Deserialize;
use serde::de::value::{Error as DtypeError, StrDeserializer};
use serde::de::{Error, MapAccess, Visitor};

use crate::FormatError;
use crate::error::{describe_start, known_start};

/// The longest header in bytes (the format's own limit).
const MAX_HEADER: u64 = 100_000_000;

/// Bytes of the length of the header, with which the file starts.
const LENGTH_FIELD: usize = 8;

/// The longest shard index in bytes; that of a model with 90 000 tensors has 9 MB.
const MAX_INDEX: u64 = 64 << 20;

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
    /// Bytes, in which some formats keep several codes.
    pub const U8: Self = Dtype::Other(safetensors::Dtype::U8);

    /// Bytes of one number, for the three float types.
    pub fn bytes(self) -> Option<usize> {
        match self {
            Dtype::F32 => Some(4),
            Dtype::F16 | Dtype::BF16 => Some(2),
            Dtype::Other(_) => None,
        }
    }

    /// `value` rounded once to this dtype (to nearest, ties to even), as f32.
    #[inline]
    pub fn round(self, value: f64) -> f32 {
        match self {
            Dtype::F16 => f16::from_f32(round_to_odd(value)).to_f32(),
            Dtype::BF16 => round_to_bf16(value),
            Dtype::F32 | Dtype::Other(_) => value as f32,
        }
    }

    /// [`round`](Self::round) of every value. `values`, `out`: (n,).
    #[inline]
    pub fn round_all(self, values: impl Iterator<Item = f64>, out: &mut [f32]) {
        let pairs = out.iter_mut().zip(values);
        match self {
            // The dtype is not asked for at every value: this is vector code.
            Dtype::BF16 => pairs.for_each(|(out, value)| *out = round_to_bf16(value)),
            _ => pairs.for_each(|(out, value)| *out = self.round(value)),
        }
    }
}

/// `value` rounded once to bf16, without a branch.
#[inline]
fn round_to_bf16(value: f64) -> f32 {
    const DROPPED: u32 = 16; // bits of significand that bf16 lacks
    let bits = round_to_odd(value).to_bits();
    let half_less = (1 << (DROPPED - 1)) - 1;
    let rounded = bits.wrapping_add(half_less + (bits >> DROPPED & 1)) >> DROPPED << DROPPED;
    if value.is_nan() {
        f32::NAN
    } else {
        f32::from_bits(rounded)
    }
}

/// `value` as f32, towards zero, with the last bit set where that is inexact: a second rounding to fewer bits then
/// gives what one rounding of `value` would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums").
#[inline]
fn round_to_odd(value: f64) -> f32 {
    // Without a branch: which values are exact is as good as random.
    let nearest = value as f32;
    let beyond = f64::from(nearest).abs() > value.abs();
    let inexact = f64::from(nearest) != value;
    let toward_zero = nearest.to_bits() - u32::from(beyond);
    f32::from_bits(toward_zero | u32::from(inexact))
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

/// The tensors of one file, in the order of their bytes.
///
/// # Errors
/// Truncation, a header that is too long, is not JSON, or breaks a rule (names that are duplicated, ranges that overlap,
/// leave holes or do not match shape and dtype); with what the file looks like when it is something else.
pub fn parse(bytes: &[u8]) -> Result<Vec<Entry>, FormatError> {
    parse_start(bytes, bytes.len() as u64)
}

/// How many bytes of the file's start [`parse_start`] needs, as the first 8 of them say.
pub fn start_length(first: [u8; LENGTH_FIELD]) -> u64 {
    LENGTH_FIELD as u64 + u64::from_le_bytes(first).min(MAX_HEADER)
}

/// As [`parse`], of a file of `length` bytes of which only the start is at hand.
///
/// # Errors
/// As [`parse`].
pub fn parse_start(bytes: &[u8], length: u64) -> Result<Vec<Entry>, FormatError> {
    // A length field can look like the start of another kind of file, but not before a header.
    if let Some(known) = known_start(bytes).filter(|_| bytes.get(8) != Some(&b'{')) {
        return Err(FormatError::NotSafetensors { found: known });
    }
    let (start, header_length) = header_range(bytes, length)?;
    let data = start + header_length;
    let mut header = read_header(&bytes[start..data])?;
    header.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut previous = "";
    for (name, info) in &header {
        check_name(name)?;
        let [from, to] = info.data_offsets;
        if from != end {
            let problem = if from < end { "overlaps" } else { "leaves a hole" };
            return Err(broken(format!(
                "tensor '{name}' starts at byte {from} of the data, which {problem}: expected {end}, where {} ends",
                if previous.is_empty() {
                    "the header".into()
                } else {
                    format!("tensor '{previous}'")
                }
            )));
        }
        let size = info.bytes(name)?;
        if to.checked_sub(from) != Some(size) {
            return Err(broken(format!(
                "tensor '{name}' has the bytes {from}..{to} of the data, expected {size} bytes for shape {:?} of {}",
                info.shape, info.dtype
            )));
        }
        (end, previous) = (to, name);
    }
    let found = length - data as u64;
    if end > found {
        return Err(FormatError::Truncated {
            what: format!("the data, up to the end of tensor '{previous}',"),
            at: data as u64,
            need: end,
            end: length,
        });
    }
    if end < found {
        return Err(broken(format!(
            "{} bytes follow the last tensor, expected none",
            found - end
        )));
    }
    header.into_iter().map(|(name, info)| info.entry(name, data)).collect()
}

fn broken(problem: String) -> FormatError {
    FormatError::Safetensors { problem }
}

/// Whether these bytes start like a safetensors file: used to tell what an argument is, not to accept it.
pub fn looks_like(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b'{') && header_range(bytes, bytes.len() as u64).is_ok()
}

/// Where the header is in a file of `file_length` bytes: its start and length.
fn header_range(bytes: &[u8], file_length: u64) -> Result<(usize, usize), FormatError> {
    let Some(field) = bytes.first_chunk::<LENGTH_FIELD>() else {
        return Err(broken(format!(
            "{} bytes are too short for a header ({})",
            bytes.len(),
            describe_start(bytes)
        )));
    };
    let length = u64::from_le_bytes(*field);
    if length > MAX_HEADER {
        return Err(broken(format!(
            "the header would be {length} bytes long, at most {MAX_HEADER} are allowed; the file starts with {}",
            describe_start(bytes)
        )));
    }
    let there = (bytes.len() as u64).min(file_length) - LENGTH_FIELD as u64;
    if length > there {
        return Err(FormatError::Truncated {
            what: "the safetensors header".into(),
            at: LENGTH_FIELD as u64,
            need: length,
            end: file_length,
        });
    }
    Ok((LENGTH_FIELD, length as usize))
}

/// What the header says of each tensor, in its own order.
fn read_header(header: &[u8]) -> Result<Vec<(String, Info)>, FormatError> {
    if header.first() != Some(&b'{') {
        return Err(broken(format!(
            "the header starts with {}, expected '{{'",
            describe_start(header)
        )));
    }
    let Header(tensors) = serde_json::from_slice(header).map_err(|error| broken(format!("header: {error}")))?;
    if tensors.is_empty() {
        return Err(broken("it holds no tensor".into()));
    }
    Ok(tensors)
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

/// A value of the header: all that the format allows there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

impl Info {
    fn dtype(&self, name: &str) -> Result<safetensors::Dtype, FormatError> {
        let text = StrDeserializer::<DtypeError>::new(&self.dtype);
        safetensors::Dtype::deserialize(text).map_err(|_| {
            broken(format!(
                "tensor '{name}' has dtype {:?}, which the format does not have",
                self.dtype
            ))
        })
    }

    /// Bytes that dtype and shape ask for.
    fn bytes(&self, name: &str) -> Result<u64, FormatError> {
        let problem = |problem| broken(format!("tensor '{name}' has shape {:?}: {problem}", self.shape));
        if self.shape.contains(&0) {
            return Err(problem("a dimension is zero"));
        }
        let bits = self.dtype(name)?.bitsize() as u64;
        let bits = self
            .shape
            .iter()
            .try_fold(bits, |bits, &n| bits.checked_mul(n))
            .ok_or_else(|| problem("its bytes do not fit 64 bits"))?;
        if bits.is_multiple_of(8) {
            Ok(bits / 8)
        } else {
            Err(problem("its numbers fill no whole bytes"))
        }
    }

    /// `data`: where the data starts in the file.
    fn entry(self, name: String, data: usize) -> Result<Entry, FormatError> {
        let dtype = match self.dtype(&name)? {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => Dtype::Other(other),
        };
        let [from, to] = self.data_offsets.map(|offset| data + offset as usize);
        Ok(Entry {
            name,
            dtype,
            shape: self.shape.iter().map(|&n| n as usize).collect(),
            range: from..to,
        })
    }
}

/// The tensors of a header, each name once.
struct Header(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut tensors = Vec::new();
                let mut seen = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    let fault = |error| A::Error::custom(format_args!("'{name}': {error}"));
                    if name == "__metadata__" {
                        map.next_value::<BTreeMap<String, String>>().map_err(fault)?;
                    } else {
                        let info = map.next_value().map_err(fault)?;
                        tensors.push((name.clone(), info));
                    }
                    if let Some(name) = seen.replace(name) {
                        return Err(A::Error::custom(format_args!("'{name}' is duplicated")));
                    }
                }
                Ok(Header(tensors))
            }
        }
        deserializer.deserialize_map(Tensors)
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

/// The index as it is written.
#[derive(Deserialize)]
struct RawIndex {
    #[serde(default)]
    metadata: Option<RawMetadata>,
    weight_map: Files,
}

#[derive(Deserialize)]
struct RawMetadata {
    total_size: Option<serde_json::Number>,
}

/// File name by tensor name, each tensor once.
struct Files(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Files, A::Error> {
                let mut files = BTreeMap::new();
                while let Some(tensor) = map.next_key::<String>()? {
                    let fault =
                        |error: A::Error| A::Error::custom(format_args!("'weight_map', tensor '{tensor}': {error}"));
                    let file: String = map.next_value().map_err(fault)?;
                    if file.is_empty()
                        || file.contains(['/', '\\'])
                        || file.contains(char::is_control)
                        || matches!(file.as_str(), "." | "..")
                    {
                        return Err(fault(A::Error::custom(format_args!(
                            "{file:?} is no name of a file beside the index"
                        ))));
                    }
                    if files.contains_key(&tensor) {
                        return Err(fault(A::Error::custom("it is duplicated")));
                    }
                    files.insert(tensor, file);
                }
                Ok(Files(files))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

impl ShardIndex {
    /// # Errors
    /// Longer than an index can be, no JSON, no `weight_map` of names to file names, a file name that leaves the
    /// directory, or a `total_size` that is not a number of bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() as u64 > MAX_INDEX {
            return Err(FormatError::Limit {
                what: "the length of the shard index in bytes".into(),
                found: bytes.len() as u64,
                max: MAX_INDEX,
            });
        }
        let problem = |problem: String| FormatError::ShardIndex { problem };
        let RawIndex {
            metadata,
            weight_map: Files(files),
        } = serde_json::from_slice(bytes).map_err(|error| problem(error.to_string()))?;
        if files.is_empty() {
            return Err(problem("'weight_map' is empty".into()));
        }
        // Some writers give a whole number as a float.
        let whole = |size: &serde_json::Number| {
            let float = size
                .as_f64()
                .filter(|size| size.fract() == 0.0 && (0.0..1e18).contains(size));
            size.as_u64().or(float.map(|size| size as u64))
        };
        let total_size = match metadata.and_then(|metadata| metadata.total_size) {
            None => None,
            Some(size) => Some(
                whole(&size)
                    .ok_or_else(|| problem(format!("'metadata.total_size' is {size}, expected a number of bytes")))?,
            ),
        };
        Ok(Self { files, total_size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_once() {
        for (dtype, step) in [(Dtype::BF16, 2f64.powi(-7)), (Dtype::F16, 2f64.powi(-10))] {
            // Beside the middle between two numbers by less than f32 can tell.
            let little = 2f64.powi(-50);
            for (value, expected) in [
                (1.0 + step / 2.0, 1.0),
                (1.0 + step / 2.0 + little, 1.0 + step),
                (1.0 + step * 1.5 - little, 1.0 + step),
                (1.0 + step * 1.5, 1.0 + step * 2.0),
                (0.0, 0.0),
                (1e300, f64::INFINITY),
                (f64::INFINITY, f64::INFINITY),
            ] {
                assert_eq!(f64::from(dtype.round(value)), expected, "{dtype} {value:e}");
                assert_eq!(f64::from(dtype.round(-value)), -expected, "{dtype} {value:e}");
            }
            assert!(dtype.round(f64::NAN).is_nan());
        }
    }
}
