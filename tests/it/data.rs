//! Where test data is: fixtures are in the repository; the larger data is beside it, or where `TQCONV_DATA` says.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use formats::safetensors::{self, Entry, Tensor};

/// `name` among the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// `name` in the folder of larger data; where it is absent, says that the test is skipped.
pub fn find(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TQCONV_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data"),
        PathBuf::from,
    );
    let path = folder.join(name);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: {} is absent", path.display());
    None
}

/// Whether llama.cpp multiplies with AMX here. Its products of rows of 32 columns, which only the smallest fixtures have, are
/// NaN then (ggml 0.26.0; Q4_0 of 32 x 32).
pub fn llama_cpp_has_amx() -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu.contains("amx_tile") && cpu.contains("amx_int8")
}

/// All `.safetensors` files in a folder whose name starts with `prefix`.
pub struct Tensors(Vec<(Vec<u8>, Vec<Entry>)>);

impl Tensors {
    pub fn read(folder: &Path, prefix: &str) -> Self {
        let wanted = |name: &str| name.starts_with(prefix) && name.ends_with(".safetensors");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|entry| wanted(entry.file_name().to_str().unwrap()));
        let read = |path| {
            let bytes = std::fs::read(path).unwrap();
            let entries = safetensors::parse(&bytes).unwrap();
            (bytes, entries)
        };
        Tensors(files.map(|entry| read(entry.path())).collect())
    }

    pub fn by_name(&self) -> HashMap<&str, Tensor<'_>> {
        let pairs = self
            .0
            .iter()
            .flat_map(|(bytes, entries)| entries.iter().map(move |entry| (bytes, entry)));
        pairs
            .map(|(bytes, entry)| (entry.name.as_str(), entry.view(bytes)))
            .collect()
    }
}

/// All numbers of a float tensor.
pub fn floats(tensor: &Tensor) -> Vec<f32> {
    let mut numbers = vec![0.0; tensor.len()];
    tensor.read_f32(0, &mut numbers);
    numbers
}

/// All numbers of an F64 tensor, as f32.
pub fn doubles(tensor: &Tensor) -> Vec<f32> {
    tensor
        .bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f64::from_le_bytes(bytes) as f32)
        .collect()
}

/// All numbers of an I32 tensor that are token ids.
pub fn tokens(tensor: &Tensor) -> Vec<u32> {
    tensor
        .bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| u32::from_le_bytes(bytes))
        .collect()
}

/// All numbers of an F64 tensor.
pub fn exact_doubles(tensor: &Tensor) -> Vec<f64> {
    tensor
        .bytes
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f64::from_le_bytes(bytes))
        .collect()
}

/// Copy the files of a folder into a new one.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
