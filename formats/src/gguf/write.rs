//! Writing: everything before the weights is decided at once; the caller puts the bytes where the layout says.

use std::collections::HashSet;

use super::value::encode_string;
use super::{ALIGNMENT, MAX_NAME, TensorInfo, Value, padded};
use crate::FormatError;

/// Where every byte of a GGUF file goes.
///
/// ```
/// use formats::{block::BlockType, gguf::{File, Layout, TensorInfo, Value}};
/// # use tqconv_formats as formats;
/// let norm = TensorInfo { name: "output_norm.weight".into(), ty: BlockType::F32, shape: vec![2] };
/// let layout = Layout::new(&[("general.architecture".into(), Value::String("llama".into()))], &[norm])?;
/// let mut bytes = layout.header.clone();
/// bytes.resize(layout.size as usize, 0);
/// bytes[layout.offsets[0] as usize..][..8].copy_from_slice(&[0, 0, 128, 63, 0, 0, 0, 64]);
/// assert_eq!(File::parse(&bytes)?.tensor("output_norm.weight").unwrap().1, [0, 0, 128, 63, 0, 0, 0, 64]);
/// # Ok::<(), formats::FormatError>(())
/// ```
#[derive(Debug, PartialEq)]
pub struct Layout {
    /// Everything before the tensor data, padded to the alignment: the start of the file.
    pub header: Vec<u8>,
    /// Where each tensor starts, bytes from the start of the file.
    pub offsets: Vec<u64>,
    /// Length of the file in bytes, the padding after the last tensor included.
    pub size: u64,
}

impl Layout {
    /// Lay out a version 3 file with the default alignment of 32 bytes: a larger one would be lost when
    /// Ollama copies the file, so `general.alignment` is not to be among the keys.
    ///
    /// # Errors
    /// Duplicate or overlong names, rows that do not fill whole blocks, sizes beyond 64 bits.
    pub fn new(metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<Self, FormatError> {
        check_names("key", metadata.iter().map(|(key, _)| key.as_str()), usize::MAX)?;
        check_names("tensor", tensors.iter().map(|info| info.name.as_str()), MAX_NAME)?;

        let mut header = b"GGUF".to_vec();
        header.extend(3u32.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            encode_string(key, &mut header);
            value.encode(&mut header);
        }
        let mut offsets = Vec::with_capacity(tensors.len());
        let mut end = 0;
        for info in tensors {
            encode_info(info, end, &mut header);
            offsets.push(end);
            end = padded_end(info, end)?;
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let data_start = header.len() as u64;
        offsets.iter_mut().for_each(|offset| *offset += data_start);
        Ok(Self {
            header,
            offsets,
            size: data_start + end,
        })
    }
}

fn check_names<'a>(what: &'static str, names: impl Iterator<Item = &'a str>, max: usize) -> Result<(), FormatError> {
    let mut seen = HashSet::new();
    for name in names {
        if name.is_empty() || name.len() > max {
            let problem = if name.is_empty() {
                "is empty"
            } else {
                "is longer than 63 bytes"
            };
            return Err(FormatError::Name {
                what,
                name: name.into(),
                problem,
            });
        }
        if !seen.insert(name) {
            return Err(FormatError::Duplicate {
                what,
                name: name.into(),
            });
        }
    }
    Ok(())
}

fn encode_info(info: &TensorInfo, offset: u64, out: &mut Vec<u8>) {
    encode_string(&info.name, out);
    out.extend((info.shape.len() as u32).to_le_bytes());
    info.shape.iter().for_each(|n| out.extend(n.to_le_bytes()));
    out.extend(info.ty.id().to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// Where the tensor that starts at `start` ends, padded.
fn padded_end(info: &TensorInfo, start: u64) -> Result<u64, FormatError> {
    let shape = || info.shape.iter().map(|&n| n as i64).collect();
    if !info.columns().is_multiple_of(info.ty.weights() as u64) {
        return Err(FormatError::PartialBlock {
            tensor: info.name.clone(),
            columns: info.columns(),
            block: info.ty,
        });
    }
    info.bytes()
        .and_then(|bytes| start.checked_add(bytes))
        .and_then(|end| padded(end, ALIGNMENT))
        .ok_or_else(|| FormatError::Shape {
            tensor: info.name.clone(),
            shape: shape(),
            problem: "its bytes do not fit 64 bits",
        })
}
