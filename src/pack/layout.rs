//! Which file a tensor goes to, and where in it: one file, or several as llama.cpp's gguf-split makes them.

use std::ops::Range;
use std::path::{Path, PathBuf};

use formats::gguf::{ALIGNMENT, Layout as FileLayout, TensorInfo, Value, part_path};

use super::PackError;
use super::metadata::Keys;

/// Where everything goes.
pub struct Layout {
    /// The start, offsets and size of each file.
    pub files: Vec<FileLayout>,
    /// The tensors of each file.
    runs: Vec<Range<usize>>,
}

impl Layout {
    /// Lay out `tensors` in their order, in files of at most `max` bytes; a tensor that is larger gets a file of its own.
    ///
    /// Where there are several, the first holds the keys of the model, and each the three keys of a split
    /// (src/llama-model-loader.cpp, `LLM_KV_SPLIT_*`).
    ///
    /// # Errors
    /// More files than a split can count, or names and sizes that GGUF does not allow.
    pub fn new(keys: &Keys, tensors: &[TensorInfo], max: Option<u64>) -> Result<Self, PackError> {
        let runs = runs(keys, tensors, max)?;
        let count = u16::try_from(runs.len()).map_err(|_| PackError::Split {
            max: max.unwrap_or_default(),
            files: runs.len(),
        })?;
        let file = |(number, run): (u16, &Range<usize>)| {
            let tensors_of_file = &tensors[run.clone()];
            if count == 1 {
                return FileLayout::new(keys, tensors_of_file);
            }
            let mut own = if number == 0 { keys.clone() } else { vec![] };
            own.extend(split_keys(number, count, tensors.len()));
            FileLayout::new(&own, tensors_of_file)
        };
        let files = (0..).zip(&runs).map(file).collect::<Result<_, _>>()?;
        Ok(Self { files, runs })
    }

    /// The file of a tensor, and where it starts there.
    pub fn place(&self, tensor: usize) -> (usize, u64) {
        let file = self.runs.partition_point(|run| run.end <= tensor);
        let offset = self.files[file].offsets[tensor - self.runs[file].start];
        (file, offset)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// The keys that make a file part of a split.
fn split_keys(number: u16, count: u16, tensors: usize) -> Keys {
    vec![
        ("split.no".into(), Value::U16(number)),
        ("split.count".into(), Value::U16(count)),
        ("split.tensors.count".into(), Value::I32(tensors as i32)),
    ]
}

/// The tensors of each file: as many as fit.
fn runs(keys: &Keys, tensors: &[TensorInfo], max: Option<u64>) -> Result<Vec<Range<usize>>, PackError> {
    let Some(max) = max else {
        return Ok(std::iter::once(0..tensors.len()).collect());
    };
    let header = |keys: &Keys| FileLayout::new(keys, &[]).map(|layout| layout.size);
    let split = split_keys(0, u16::MAX, tensors.len());
    let first = keys.iter().chain(&split).cloned().collect();
    let (first, other) = (header(&first)?, header(&split)?);
    let (mut runs, mut start, mut size) = (vec![], 0, first);
    for (index, info) in tensors.iter().enumerate() {
        let more = info_bytes(info) + info.bytes().unwrap_or(0).next_multiple_of(ALIGNMENT);
        if index > start && size + more + ALIGNMENT > max {
            runs.push(start..index);
            (start, size) = (index, other);
        }
        size += more;
    }
    runs.push(start..tensors.len());
    Ok(runs)
}

/// Bytes of a tensor's name, shape, type and offset in the header.
fn info_bytes(info: &TensorInfo) -> u64 {
    (8 + info.name.len() + 4 + 8 * info.shape.len() + 4 + 8) as u64
}

/// The names of `count` files that are one output: `output` itself, or `NAME-00001-of-00003.gguf` and so on, as
/// `llama_split_path` (src/llama.cpp) has it.
pub fn paths(output: &Path, count: usize) -> Vec<PathBuf> {
    if count == 1 {
        return vec![output.to_owned()];
    }
    let prefix = match output.extension() {
        Some(extension) if extension == "gguf" => output.with_extension(""),
        _ => output.to_owned(),
    };
    (1..=count).map(|number| part_path(&prefix, number, count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::block::BlockType;
    use formats::gguf::File;

    fn tensors() -> Vec<TensorInfo> {
        (0..10)
            .map(|index| TensorInfo {
                name: format!("tensor{index}"),
                ty: BlockType::F32,
                shape: vec![100, 1 + index % 3],
            })
            .collect()
    }

    fn keys() -> Keys {
        vec![("general.architecture".into(), Value::String("llama".into()))]
    }

    #[test]
    fn no_file_is_larger_than_asked_for_and_each_can_be_read() {
        for max in [1500, 2000, 3000] {
            let layout = Layout::new(&keys(), &tensors(), Some(max)).unwrap();
            assert!(layout.files.len() > 1);
            let mut names = vec![];
            for (number, file) in layout.files.iter().enumerate() {
                assert!(file.size <= max, "{number}: {}", file.size);
                let mut bytes = file.header.clone();
                bytes.resize(file.size as usize, 0);
                let file = File::parse(&bytes).unwrap();
                names.extend(file.tensors().iter().map(|info| info.name.clone()));
                assert_eq!(file.metadata().len(), if number == 0 { 4 } else { 3 });
            }
            assert_eq!(
                names,
                tensors().iter().map(|info| info.name.clone()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn a_tensor_is_never_cut() {
        let layout = Layout::new(&keys(), &tensors(), Some(1)).unwrap();
        assert_eq!(layout.files.len(), tensors().len());
        assert_eq!(layout.place(9).0, 9);
        assert_eq!(layout.place(9).1, layout.files[9].header.len() as u64);
    }

    #[test]
    fn one_file_has_no_keys_of_a_split() {
        let whole = Layout::new(&keys(), &tensors(), None).unwrap();
        let large = Layout::new(&keys(), &tensors(), Some(1 << 30)).unwrap();
        assert_eq!(whole.files, large.files);
    }

    #[test]
    fn files_are_named_as_llama_cpp_looks_for_them() {
        assert_eq!(paths(Path::new("a/m.gguf"), 1), [Path::new("a/m.gguf")]);
        assert_eq!(
            paths(Path::new("a/m.gguf"), 2),
            [
                Path::new("a/m-00001-of-00002.gguf"),
                Path::new("a/m-00002-of-00002.gguf")
            ]
        );
    }
}
