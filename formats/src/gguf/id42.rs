//! Which blocks the tensors of type id 42 have. llama.cpp's Q2_0 has 64 weights in 18 bytes. PrismML's first builds, and
//! what was written for them, used the id for 128 weights in 34 bytes, which later became PQ2_0 under id 142. No key tells
//! the two apart; offsets do, because they are the running sum of the sizes.

use super::{TensorInfo, padded};
use crate::block::BlockType::{self, PQ2_0, Q2_0};

/// What offsets and length of a file say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Id42 {
    /// They fit both, or there is no such tensor.
    Either,
    /// llama.cpp's blocks, or neither.
    Q2_0,
    /// The fork's.
    PQ2_0,
}

impl Id42 {
    /// `infos`: tensors with their offsets, those of id 42 as Q2_0.  `length`: bytes of the file from where the data starts.
    pub(super) fn of(infos: &[(TensorInfo, u64)], alignment: u64, length: u64) -> Self {
        if infos.iter().all(|(info, _)| info.ty != Q2_0) {
            return Self::Either;
        }
        match (end(infos, alignment, Q2_0), end(infos, alignment, PQ2_0)) {
            (_, None) => Self::Q2_0,
            (None, Some(_)) => Self::PQ2_0,
            // One such tensor, the last, or small ones between whose ends there is no more than padding.
            (Some(q2_0), Some(pq2_0)) => {
                // With the padding after the last tensor or without: between them a file was cut.
                let is_end = |end: u64| length == end || padded(end, alignment) == Some(length);
                match (is_end(q2_0), is_end(pq2_0)) {
                    (true, false) => Self::Q2_0,
                    (false, true) => Self::PQ2_0,
                    _ => Self::Either,
                }
            }
        }
    }
}

/// Where the last tensor ends, from the start of the data, with `ty` for id 42; `None` where the offsets are others.
fn end(infos: &[(TensorInfo, u64)], alignment: u64, ty: BlockType) -> Option<u64> {
    infos.iter().try_fold(0u64, |end, (info, offset)| {
        let bytes = info.bytes_as(if info.ty == Q2_0 { ty } else { info.ty })?;
        let start = padded(end, alignment).filter(|start| start == offset)?;
        start.checked_add(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{File, Layout, Value};
    use super::*;
    use crate::FormatError;

    /// Type, columns and rows; Q2_0 stands for id 42.
    type Tensor = (BlockType, u64, u64);
    const TELLS: [Tensor; 2] = [(Q2_0, 1024, 3), (BlockType::F32, 8, 1)];

    /// A file in which id 42 has the blocks of `ty`, without the padding after the last tensor. Tensor k is called `prefix`
    /// and k, and each of its bytes is k + 1.
    fn file_of(ty: BlockType, prefix: &str, keys: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
        let info = |(k, &(found, columns, rows)): (usize, &Tensor)| TensorInfo {
            name: format!("{prefix}{k}"),
            ty: if found == Q2_0 { ty } else { found },
            shape: vec![columns, rows],
        };
        let infos: Vec<_> = tensors.iter().enumerate().map(info).collect();
        let layout = Layout::new(keys, &infos).unwrap();
        let mut bytes = layout.header;
        for (k, (info, offset)) in infos.iter().zip(layout.offsets).enumerate() {
            bytes.resize(offset as usize, 0);
            bytes.resize(bytes.len() + info.bytes().unwrap() as usize, k as u8 + 1);
        }
        // The id comes after the name, the number of dimensions, and two of them.
        for info in infos.iter().filter(|info| info.ty == PQ2_0) {
            let name = info.name.as_bytes();
            let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8 + 8;
            assert_eq!(bytes[at..at + 4], 142u32.to_le_bytes());
            bytes[at..at + 4].copy_from_slice(&42u32.to_le_bytes());
        }
        bytes
    }

    fn file(ty: BlockType, tensors: &[Tensor]) -> Vec<u8> {
        file_of(ty, "tensor ", &[], tensors)
    }

    fn types(file: &File) -> Vec<BlockType> {
        file.tensors().iter().map(|info| info.ty).collect()
    }

    #[test]
    fn offsets_tell_the_blocks() {
        let tensors = [(Q2_0, 1024, 3), (BlockType::F32, 8, 1), (Q2_0, 1024, 2)];
        for ty in [Q2_0, PQ2_0] {
            let bytes = file(ty, &tensors);
            let file = File::parse(&bytes).unwrap();
            assert_eq!(types(&file), [ty, BlockType::F32, ty]);
            assert_eq!(file.legacy_q2_0(), ty == PQ2_0);
            for (k, info) in (1..).zip(file.tensors()) {
                let (_, data) = file.tensor(&info.name).unwrap();
                assert_eq!(Some(data.len() as u64), info.bytes());
                assert!(data.iter().all(|&byte| byte == k), "{}", info.name);
            }
        }
    }

    /// Offsets fit both where the only such tensor is the last.
    #[test]
    fn the_length_tells_what_offsets_do_not() {
        let tensors = [(BlockType::F32, 8, 1), (Q2_0, 1024, 3)];
        for ty in [Q2_0, PQ2_0] {
            let bytes = file(ty, &tensors);
            let mut padded = bytes.clone();
            padded.resize(bytes.len().next_multiple_of(32), 0);
            for bytes in [bytes, padded] {
                assert_eq!(types(&File::parse(&bytes).unwrap())[1], ty);
            }
        }
        // Cut off within the last tensor: no end that either has.
        let whole = file(Q2_0, &tensors);
        let error = File::parse(&whole[..whole.len() - 1]).err().unwrap();
        assert!(matches!(error, FormatError::Truncated { .. }), "{error}");
    }

    #[test]
    fn where_both_fit_llama_cpp_s_reading_wins() {
        // 36 or 34 bytes, padded to 64.
        let bytes = file(Q2_0, &[(Q2_0, 128, 1), (BlockType::F32, 8, 1)]);
        let found = File::parse(&bytes).unwrap();
        assert_eq!((found.tensors()[0].ty, found.legacy_q2_0()), (Q2_0, false));
    }

    #[test]
    fn rows_of_64_weights_are_llama_cpp_s() {
        let bytes = file(Q2_0, &[(Q2_0, 64, 1), (BlockType::F32, 8, 1)]);
        assert_eq!(types(&File::parse(&bytes).unwrap())[0], Q2_0);
    }

    #[test]
    fn offsets_that_fit_neither_are_told() {
        let mut bytes = file(PQ2_0, &TELLS);
        let offset = (34 * 8 * 3u64).next_multiple_of(32).to_le_bytes();
        let at = bytes.windows(8).position(|window| window == offset).unwrap();
        bytes[at..at + 8].copy_from_slice(&640u64.to_le_bytes());
        let error = File::parse(&bytes).err().unwrap().to_string();
        for says in [
            "tensor 'tensor 1' is at offset 640, expected 864",
            "neither Q2_0 (64 weights in 18 bytes) nor PQ2_0 (128 in 34)",
        ] {
            assert!(error.contains(says), "{error}");
        }
    }

    /// A part, from 0, of two.
    fn part(number: u16, ty: BlockType, tensors: &[Tensor]) -> Vec<u8> {
        let keys = [
            ("split.no".into(), Value::U16(number)),
            ("split.count".into(), Value::U16(2)),
            ("split.tensors.count".into(), Value::I32(3)),
        ];
        file_of(ty, &format!("part {number} "), &keys, tensors)
    }

    fn join(parts: &[Vec<u8>]) -> Result<File<'_>, FormatError> {
        File::join(parts.iter().map(|bytes| File::parse(bytes).unwrap()).collect())
    }

    #[test]
    fn a_part_that_tells_nothing_is_read_as_the_others() {
        let small = |number, ty| {
            let mut bytes = part(number, ty, &[(Q2_0, 128, 1)]); // 36 or 34 bytes, padded to 64
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            assert!(!File::parse(&bytes).unwrap().legacy_q2_0());
            bytes
        };
        for ty in [Q2_0, PQ2_0] {
            let before = [small(0, ty), part(1, ty, &TELLS)];
            let after = [part(0, ty, &TELLS), small(1, ty)];
            for parts in [before, after] {
                let model = join(&parts).unwrap();
                assert_eq!(model.legacy_q2_0(), ty == PQ2_0);
                for info in model.tensors() {
                    let (_, data) = model.tensor(&info.name).unwrap();
                    assert!(info.ty == ty || info.ty == BlockType::F32);
                    assert_eq!(Some(data.len() as u64), info.bytes());
                }
            }
        }
    }

    #[test]
    fn parts_that_contradict_each_other_are_refused() {
        let parts = [part(0, PQ2_0, &TELLS), part(1, Q2_0, &[(Q2_0, 1024, 3)])];
        let error = join(&parts).err().unwrap().to_string();
        assert!(
            error.contains("part 2 of the model: its tensors of type id 42 are Q2_0"),
            "{error}"
        );
    }
}
