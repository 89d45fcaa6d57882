//! A model in several files, as llama.cpp's gguf-split makes them (src/llama-model-loader.cpp): the first has the keys of the
//! model, each has some of the tensors and says which part of how many it is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::id42::Id42;
use super::{File, Value};
use crate::FormatError;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// How many files the model is in, as `file` has it.
pub fn split_count(file: &File) -> usize {
    match file.get(COUNT) {
        Some(Value::U16(count)) => usize::from(*count).max(1),
        _ => 1,
    }
}

/// The path of part `number`, from 1, of `count`: `PREFIX-00001-of-00003.gguf` (`llama_split_path`).
pub fn part_path(prefix: &Path, number: usize, count: usize) -> PathBuf {
    let mut path = OsString::from(prefix);
    path.push(format!("-{number:05}-of-{count:05}.gguf"));
    path.into()
}

/// Prefix, number and count of a path that [`part_path`] could have given.
pub fn part_of(path: &Path) -> Option<(PathBuf, usize, usize)> {
    let name = path.file_name()?.to_str()?;
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    let prefix = path.with_file_name(prefix);
    (1 <= number && number <= count && part_path(&prefix, number, count) == path).then_some((prefix, number, count))
}

impl<'a> File<'a> {
    /// One model of all its parts, in their order: the keys of the first without those of the split, and the tensors of
    /// all. A single file that is no part stays what it is.
    ///
    /// # Errors
    /// The parts are not those of one model.
    pub fn join(mut parts: Vec<Self>) -> Result<Self, FormatError> {
        let count = parts.len();
        if count == 1 {
            return Ok(parts.remove(0));
        }
        for (index, part) in parts.iter().enumerate() {
            part.check_key(index, NUMBER, &Value::U16(index as u16))?;
            part.check_key(index, COUNT, &Value::U16(count as u16))?;
        }
        let tensors: usize = parts.iter().map(|part| part.tensors.len()).sum();
        for (index, part) in parts.iter().enumerate() {
            part.check_key(index, TENSORS, &Value::I32(tensors as i32))?;
        }
        agree_on_id42(&mut parts)?;
        let mut model = parts.remove(0);
        for part in parts {
            for (info, data) in part.tensors.into_iter().zip(part.data) {
                if model.names.insert(info.name.clone(), model.tensors.len()).is_some() {
                    let name = info.name;
                    return Err(FormatError::Duplicate { what: "tensor", name });
                }
                model.tensors.push(info);
                model.data.push(data);
            }
        }
        model.metadata.retain(|(key, _)| !key.starts_with("split."));
        let keys = model.metadata.iter().enumerate();
        model.keys = keys.map(|(index, (key, _))| (key.clone(), index)).collect();
        Ok(model)
    }

    fn check_key(&self, index: usize, key: &str, expected: &Value) -> Result<(), FormatError> {
        if self.get(key) == Some(expected) {
            return Ok(());
        }
        let found = self.get(key).map_or("absent".into(), Value::brief);
        Err(FormatError::Split {
            part: index + 1,
            problem: format!("key '{key}' is {found}, expected {}", expected.brief()),
        })
    }
}

/// A part whose offsets do not tell which blocks id 42 has follows the others.
fn agree_on_id42(parts: &mut [File]) -> Result<(), FormatError> {
    if parts.iter().all(|part| part.id42 != Id42::PQ2_0) {
        return Ok(());
    }
    if let Some(index) = parts.iter().position(|part| part.id42 == Id42::Q2_0) {
        return Err(FormatError::Split {
            part: index + 1,
            problem:
                "its tensors of type id 42 are Q2_0 (64 weights in 18 bytes), those of another part PQ2_0 (128 in 34)"
                    .into(),
        });
    }
    for part in parts.iter_mut().filter(|part| part.id42 == Id42::Either) {
        part.id42 = Id42::PQ2_0;
        for (info, data) in part.tensors.iter_mut().zip(&mut part.data) {
            info.read_as_prism();
            let bytes = info.bytes().expect("its offsets fit these blocks");
            *data = &data[..bytes as usize];
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::BlockType;
    use crate::gguf::{Layout, TensorInfo};

    fn part(number: u16, count: u16, tensors: i32, name: &str) -> Vec<u8> {
        let keys = [
            ("general.architecture".into(), Value::String("llama".into())),
            (NUMBER.into(), Value::U16(number)),
            (COUNT.into(), Value::U16(count)),
            (TENSORS.into(), Value::I32(tensors)),
        ];
        let info = TensorInfo {
            name: name.into(),
            ty: BlockType::F32,
            shape: vec![1],
        };
        let mut bytes = Layout::new(&keys, &[info]).unwrap().header;
        bytes.extend([number as u8 + 1; 4]);
        bytes
    }

    fn join(parts: &[Vec<u8>]) -> Result<File<'_>, FormatError> {
        File::join(parts.iter().map(|bytes| File::parse(bytes).unwrap()).collect())
    }

    #[test]
    fn parts_become_one_model() {
        let parts = [part(0, 2, 2, "a"), part(1, 2, 2, "b")];
        let model = join(&parts).unwrap();
        assert_eq!(model.metadata().len(), 1);
        assert_eq!(model.get("general.architecture").and_then(Value::as_str), Some("llama"));
        assert_eq!(model.tensor("a").unwrap().1, [1; 4]);
        assert_eq!(model.tensor("b").unwrap().1, [2; 4]);
    }

    #[test]
    fn parts_of_two_models_are_refused() {
        let first = part(0, 2, 2, "a");
        for (second, says) in [
            (part(0, 2, 2, "b"), "part 2 of the model: key 'split.no' is 0"),
            (part(1, 3, 2, "b"), "key 'split.count' is 3"),
            (part(1, 2, 3, "b"), "key 'split.tensors.count' is 3"),
            (part(1, 2, 2, "a"), "tensor 'a'"),
        ] {
            let error = join(&[first.clone(), second]).err().unwrap().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_part_is_known_by_its_name() {
        let found = part_of(Path::new("a/m-1-00002-of-00003.gguf"));
        assert_eq!(found, Some(("a/m-1".into(), 2, 3)));
        for other in [
            "m.gguf",
            "m-1-of-3.gguf",
            "m-00004-of-00003.gguf",
            "m-00000-of-00003.gguf",
            "m-00001-of-00003",
        ] {
            assert_eq!(part_of(Path::new(other)), None, "{other}");
        }
    }
}
