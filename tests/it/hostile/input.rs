//! Inputs to break: the smallest checkpoint as parts that a case changes, and a GGUF file as keys and tensors.

use std::path::{Path, PathBuf};

use formats::gguf::{File, Layout, TensorInfo, Value};
use serde_json::{Value as Json, json};

use crate::data;

/// One tensor of a safetensors file, as its header has it.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// Overwrite the bf16 number at `index`.
    pub fn set(&mut self, index: usize, number: f32) {
        let number = half::bf16::from_f32(number).to_le_bytes();
        self.bytes[2 * index..][..2].copy_from_slice(&number);
    }

    /// The bf16 numbers.
    pub fn floats(&self) -> Vec<f32> {
        let numbers = self.bytes.as_chunks().0.iter();
        numbers
            .map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())
            .collect()
    }

    /// The same tensor in another shape, bytes cut or filled.
    pub fn reshape(&mut self, shape: &[usize]) {
        self.shape = shape.to_vec();
        self.bytes.resize(2 * shape.iter().product::<usize>(), 0);
    }
}

/// The checkpoint `fixtures/tiny` in parts. What is changed here and is written is the input of a case.
pub struct Checkpoint {
    pub config: Json,
    pub tokenizer: Json,
    pub tensors: Vec<Tensor>,
    /// Fields of the header beside the tensors.
    pub metadata: Json,
    /// Files over what the parts give, whole; `None`: the file is left out.
    pub files: Vec<(&'static str, Option<Vec<u8>>)>,
    /// How many of the tensors go into the first of two shards; `None`: one file.
    pub split: Option<usize>,
    /// The index of the shards, over the right one.
    pub index: Box<dyn Fn(&mut Json)>,
    /// What `pack` is told beside input and output.
    pub arguments: Vec<String>,
}

pub const FIRST: &str = "model-00001-of-00002.safetensors";
pub const SECOND: &str = "model-00002-of-00002.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
pub const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
pub const NORM: &str = "model.norm.weight";
pub const EMBEDDING: &str = "model.embed_tokens.weight";

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Checkpoint {
    pub fn sound() -> Self {
        Self::of("tiny")
    }

    /// A fixture in one file.
    pub fn of(fixture: &str) -> Self {
        let folder = data::fixture(fixture);
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let tensors = formats::safetensors::parse(&bytes).unwrap();
        let tensor = |entry: &formats::safetensors::Entry| Tensor {
            name: entry.name.clone(),
            dtype: entry.dtype.to_string(),
            shape: entry.shape.clone(),
            bytes: bytes[entry.range.clone()].to_vec(),
        };
        Self {
            config: read_json(&folder.join("config.json")),
            tokenizer: read_json(&folder.join("tokenizer.json")),
            tensors: tensors.iter().map(tensor).collect(),
            metadata: Json::Null,
            files: vec![],
            split: None,
            index: Box::new(|_| ()),
            arguments: vec![],
        }
    }

    pub fn tensor(&mut self, name: &str) -> &mut Tensor {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn add(&mut self, name: &str, shape: &[usize]) -> &mut Tensor {
        self.tensors.push(Tensor {
            name: name.into(),
            dtype: "BF16".into(),
            shape: vec![],
            bytes: vec![],
        });
        let tensor = self.tensors.last_mut().unwrap();
        tensor.reshape(shape);
        tensor
    }

    pub fn file(&mut self, name: &'static str, bytes: impl Into<Vec<u8>>) {
        self.files.push((name, Some(bytes.into())));
    }

    pub fn weights(&mut self, bytes: impl Into<Vec<u8>>) {
        self.file("model.safetensors", bytes);
    }

    pub fn arguments(&mut self, arguments: &str) {
        self.arguments = arguments.split_whitespace().map(String::from).collect();
    }

    /// The bytes of the one safetensors file.
    pub fn safetensors(&self) -> Vec<u8> {
        safetensors(&self.tensors, &self.metadata)
    }

    /// Write everything into `folder`.
    pub fn write(&self, folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes).unwrap();
        write("config.json", self.config.to_string().as_bytes());
        write("tokenizer.json", self.tokenizer.to_string().as_bytes());
        match self.split {
            None => write("model.safetensors", &self.safetensors()),
            Some(first) => {
                let (first, second) = self.tensors.split_at(first);
                write(FIRST, &safetensors(first, &Json::Null));
                write(SECOND, &safetensors(second, &Json::Null));
                let mut map = serde_json::Map::new();
                for (tensors, file) in [(first, FIRST), (second, SECOND)] {
                    map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), file.into())));
                }
                let mut index = json!({"weight_map": map});
                (self.index)(&mut index);
                write(INDEX, index.to_string().as_bytes());
            }
        }
        for (name, bytes) in &self.files {
            match bytes {
                Some(bytes) => write(name, bytes),
                None => std::fs::remove_file(folder.join(name)).unwrap(),
            }
        }
    }
}

fn safetensors(tensors: &[Tensor], more: &Json) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = vec![];
    for tensor in tensors {
        let start = data.len();
        data.extend(&tensor.bytes);
        let offsets = [start, data.len()];
        header.insert(
            tensor.name.clone(),
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}),
        );
    }
    header.extend(more.as_object().cloned().unwrap_or_default());
    with_header(&Json::Object(header).to_string(), &data)
}

/// A safetensors file of this header, as it stands.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A file of `size` bytes that takes no room on the disk: `start`, then zeros.
pub fn sparse(path: PathBuf, start: &[u8], size: u64) {
    std::fs::write(&path, start).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

/// A GGUF file in parts.
pub struct Gguf {
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<(TensorInfo, Vec<u8>)>,
}

impl Gguf {
    /// What `pack` made of `fixtures/tiny`.
    pub fn sound() -> Self {
        Self::of(&std::fs::read(data::fixture("broken/sound.gguf")).unwrap())
    }

    /// The parts of a file.
    pub fn of(bytes: &[u8]) -> Self {
        let file = File::parse(bytes).unwrap();
        let tensors = file.tensors().iter().map(|info| {
            let (_, bytes) = file.tensor(&info.name).unwrap();
            (info.clone(), bytes.to_vec())
        });
        Self {
            keys: file.metadata().to_vec(),
            tensors: tensors.collect(),
        }
    }

    pub fn set(&mut self, key: &str, value: Value) {
        match self.keys.iter_mut().find(|(name, _)| name == key) {
            Some(found) => found.1 = value,
            None => self.keys.push((key.into(), value)),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.keys.retain(|(name, _)| name != key);
    }

    pub fn tensor(&mut self, name: &str) -> &mut (TensorInfo, Vec<u8>) {
        let found = self.tensors.iter_mut().find(|(info, _)| info.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn bytes(&self) -> Vec<u8> {
        let infos: Vec<_> = self.tensors.iter().map(|(info, _)| info.clone()).collect();
        let layout = Layout::new(&self.keys, &infos).unwrap();
        let mut bytes = layout.header.clone();
        bytes.resize(layout.size as usize, 0);
        for ((info, data), &offset) in self.tensors.iter().zip(&layout.offsets) {
            let end = data.len().min(info.bytes().unwrap() as usize);
            bytes[offset as usize..][..end].copy_from_slice(&data[..end]);
        }
        bytes
    }
}
