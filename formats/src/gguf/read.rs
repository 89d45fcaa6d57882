//! Reading: one gate, after which every tensor's bytes are known to be in the file.

use std::collections::{HashMap, HashSet};

use super::id42::Id42;
use super::{ALIGNMENT, MAX_NAME, TensorInfo, Value, padded};
use crate::FormatError;
use crate::block::{BlockType, removed_name};
use crate::bytes::Cursor;
use crate::error::{DAMAGED, describe_start};

/// A GGUF file over its bytes (a memory map, as a rule).
pub struct File<'a> {
    pub(super) version: u32,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) keys: HashMap<String, usize>,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) names: HashMap<String, usize>,
    pub(super) data: Vec<&'a [u8]>,
    pub(super) alignment: u64,
    pub(super) data_start: u64,
    pub(super) id42: Id42,
}

impl<'a> File<'a> {
    /// Read and check everything but the weights themselves: accepted is what llama.cpp accepts
    /// (gguf.cpp `gguf_init_from_reader`, and the loader's check that all data is in the file), and what PrismML's fork
    /// accepts: types of its own, and its blocks under the id of Q2_0 ([`legacy_q2_0`](Self::legacy_q2_0)).
    ///
    /// # Errors
    /// Any [`FormatError`] about GGUF.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let cursor = &mut Cursor::new(bytes);
        let version = read_version(bytes, cursor)?;
        let tensor_count = read_count(cursor, "the number of tensors", MIN_TENSOR_BYTES)?;
        let key_count = read_count(cursor, "the number of keys", MIN_KEY_BYTES)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for index in 0..key_count {
            let key = cursor.string(&format!("the name of key {index}"))?;
            if key.is_empty() {
                return Err(FormatError::Name {
                    what: "key",
                    name: key,
                    problem: "is empty",
                });
            }
            let value = Value::read(&key, cursor)?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(FormatError::Duplicate { what: "key", name: key });
            }
            metadata.push((key, value));
        }
        let alignment = alignment(keys.get("general.alignment").map(|&at| &metadata[at].1))?;

        let mut infos = Vec::new();
        let mut seen = HashSet::new();
        for index in 0..tensor_count {
            let info = read_tensor_info(cursor, index)?;
            if !seen.insert(info.0.name.clone()) {
                return Err(FormatError::Duplicate {
                    what: "tensor",
                    name: info.0.name,
                });
            }
            infos.push(info);
        }
        let data_start = match infos.len() {
            0 => cursor.position() as u64,
            _ => padded(cursor.position() as u64, alignment).expect("a position in memory, padded, fits u64"),
        };
        let id42 = Id42::of(&infos, alignment, (bytes.len() as u64).saturating_sub(data_start));
        if id42 == Id42::PQ2_0 {
            infos.iter_mut().for_each(|(info, _)| info.read_as_prism());
        }
        let data = locate(&infos, bytes, data_start, alignment)?;
        let tensors: Vec<_> = infos.into_iter().map(|(info, _)| info).collect();
        let names = tensors
            .iter()
            .enumerate()
            .map(|(index, info)| (info.name.clone(), index))
            .collect();
        Ok(Self {
            version,
            metadata,
            keys,
            tensors,
            names,
            data,
            alignment,
            data_start,
            id42,
        })
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether tensors of type id 42, which is llama.cpp's Q2_0, are read as PQ2_0, because their offsets are those of its
    /// blocks: PrismML's first builds wrote such files. llama.cpp does not load them.
    pub fn legacy_q2_0(&self) -> bool {
        self.id42 == Id42::PQ2_0
    }

    /// Keys and values in file order.
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).map(|&index| &self.metadata[index].1)
    }

    /// The tensors in file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`, with its bytes.
    pub fn tensor(&self, name: &str) -> Option<(&TensorInfo, &'a [u8])> {
        self.names
            .get(name)
            .map(|&index| (&self.tensors[index], self.data[index]))
    }

    /// Alignment of the tensor data in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Where the tensor data starts, bytes from the start of the file; within it.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }
}

/// A key is at least: name length, one byte of name, type, one byte of value.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;
/// A tensor info is at least: name length, dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

fn read_version(bytes: &[u8], cursor: &mut Cursor) -> Result<u32, FormatError> {
    if !bytes.starts_with(b"GGUF") {
        return Err(FormatError::Magic {
            found: describe_start(bytes),
        });
    }
    cursor.take(4, "the magic")?;
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        found => {
            let remedy = match found {
                0 => DAMAGED,
                1 => "version 1 was given up in 2023, convert the model again",
                _ if found.trailing_zeros() >= 16 => "the file is big-endian, convert it to little-endian",
                _ => "it is newer than this program, or damaged",
            };
            Err(FormatError::Version { found, remedy })
        }
    }
}

/// A count of things of at least `min_bytes` each: no more of them than the file has room for.
fn read_count(cursor: &mut Cursor, what: &str, min_bytes: u64) -> Result<u64, FormatError> {
    let found = cursor.u64(what)?;
    let max = cursor.remaining() as u64 / min_bytes;
    if found > max {
        Err(FormatError::Limit {
            what: what.into(),
            found,
            max,
        })
    } else {
        Ok(found)
    }
}

fn alignment(value: Option<&Value>) -> Result<u64, FormatError> {
    match value {
        None => Ok(ALIGNMENT),
        Some(Value::U32(alignment)) if alignment.is_power_of_two() => Ok((*alignment).into()),
        Some(value) => Err(FormatError::Alignment { found: value.brief() }),
    }
}

/// A tensor's info and its offset from the start of the data.
fn read_tensor_info(cursor: &mut Cursor, index: u64) -> Result<(TensorInfo, u64), FormatError> {
    let what = format!("the info of tensor {index}");
    let name = cursor.string(&what)?;
    if name.len() > MAX_NAME {
        return Err(FormatError::Name {
            what: "tensor",
            name,
            problem: "is longer than 63 bytes",
        });
    }
    let dimensions = cursor.u32(&what)?;
    if dimensions > 4 {
        return Err(FormatError::Limit {
            what: format!("the number of dimensions of tensor '{name}'"),
            found: dimensions.into(),
            max: 4,
        });
    }
    let shape = (0..dimensions)
        .map(|_| cursor.i64(&what))
        .collect::<Result<Vec<_>, _>>()?;
    check_shape(&name, &shape)?;
    let ty = block_type(&name, cursor.u32(&what)?)?;
    let offset = cursor.u64(&what)?;
    let info = TensorInfo {
        name,
        ty,
        shape: shape.iter().map(|&n| n as u64).collect(),
    };
    if info.bytes().is_none() {
        return Err(match info.columns() % ty.weights() as u64 {
            0 => FormatError::Shape {
                tensor: info.name,
                shape,
                problem: "its bytes do not fit 64 bits",
            },
            _ => FormatError::PartialBlock {
                columns: info.columns(),
                tensor: info.name,
                block: ty,
            },
        });
    }
    Ok((info, offset))
}

fn check_shape(name: &str, shape: &[i64]) -> Result<(), FormatError> {
    let problem = if shape.iter().any(|&n| n < 0) {
        "a dimension is negative"
    } else if shape
        .iter()
        .try_fold(1i64, |product, &n| product.checked_mul(n))
        .is_none()
    {
        "the number of weights does not fit 63 bits"
    } else {
        return Ok(());
    };
    Err(FormatError::Shape {
        tensor: name.into(),
        shape: shape.to_vec(),
        problem,
    })
}

fn block_type(tensor: &str, id: u32) -> Result<BlockType, FormatError> {
    BlockType::from_id(id).ok_or_else(|| {
        let (meaning, remedy) = match (id, removed_name(id)) {
            (36, _) => (
                "I2_S of bitnet.cpp (or IQ4_NL_4_4, which ggml has removed): the order of its weights depends on the build \
                 that wrote it, and the file does not say which"
                    .into(),
                "pack the checkpoint that it was made of",
            ),
            (_, Some(name)) => (format!("{name}, which ggml has removed"), "convert the model again"),
            (_, None) => ("which no type of ggml has".into(), DAMAGED),
        };
        FormatError::TensorType {
            tensor: tensor.into(),
            id,
            meaning,
            remedy,
        }
    })
}

/// Each tensor's bytes. Offsets must be the running sum of the padded sizes (gguf.cpp).
fn locate<'a>(
    infos: &[(TensorInfo, u64)],
    bytes: &'a [u8],
    data_start: u64,
    alignment: u64,
) -> Result<Vec<&'a [u8]>, FormatError> {
    let mut expected = 0;
    let mut data = Vec::with_capacity(infos.len());
    for (index, (info, found)) in infos.iter().enumerate() {
        if *found != expected {
            let after_id42 = infos[..index].iter().any(|(info, _)| info.ty == BlockType::Q2_0);
            return Err(FormatError::Offset {
                tensor: info.name.clone(),
                found: *found,
                expected,
                remedy: if after_id42 {
                    "the blocks of type id 42 before it are neither Q2_0 (64 weights in 18 bytes) nor PQ2_0 (128 in 34): \
                     they are another fork's, or the file is damaged, convert the model again"
                } else {
                    DAMAGED
                },
            });
        }
        let size = info.bytes().expect("read_tensor_info checked the size");
        let overflow = || FormatError::Limit {
            what: format!("the end of tensor '{}'", info.name),
            found: u64::MAX,
            max: i64::MAX as u64,
        };
        let start = data_start.checked_add(expected).ok_or_else(overflow)?;
        let end = start.checked_add(size).ok_or_else(overflow)?;
        if end > bytes.len() as u64 {
            return Err(FormatError::Truncated {
                what: format!("tensor '{}'", info.name),
                at: start,
                need: size,
                end: bytes.len() as u64,
            });
        }
        data.push(&bytes[start as usize..end as usize]);
        expected = expected
            .checked_add(size)
            .and_then(|end| padded(end, alignment))
            .ok_or_else(overflow)?;
    }
    Ok(data)
}
