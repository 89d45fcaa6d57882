//! The files of a checkpoint: found, mapped, and held against what config.json promises.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use formats::FormatError;
use formats::safetensors::{
    Dtype, Entry, ShardIndex, Tensor, looks_like, parse_start, start_length,
};

use super::ModelError;
use super::config::{Config, ConfigFile, LambdaSource, Training, TrainingOverrides};
use super::names::{EMBEDDING, FINAL_NORM, HEAD, Linear, attention_norm, feed_forward_norm};
use crate::mapped::Mapped;
use crate::output::folder_of;
use crate::tequila::Granularity;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Where the parts of a checkpoint are.
#[derive(Clone, Debug)]
pub struct Source {
    /// One safetensors file, or the index of several.
    pub weights: PathBuf,
    /// config.json
    pub config: PathBuf,
    /// The folder of the tokenizer's files, or one file of them.
    pub tokenizer: PathBuf,
}

impl Source {
    /// Find the parts from what a person names: a folder, a safetensors file or an index; `config` and `tokenizer`
    /// say where those are if not beside the weights.
    ///
    /// # Errors
    /// Nothing there, or no weights or no config.json in the folder.
    pub fn find(
        input: &Path,
        config: Option<&Path>,
        tokenizer: Option<&Path>,
    ) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(input).map_err(|source| ModelError::io(input, source))?;
        let (folder, weights) = if metadata.is_dir() {
            (input, weights_in(input)?)
        } else {
            check_regular(input)?;
            check_not_gguf(input)?;
            (folder_of(input), input.to_owned())
        };
        let config = match config {
            Some(config) => config.to_owned(),
            None => config_in(folder)?,
        };
        let tokenizer = tokenizer.unwrap_or(folder).to_owned();
        Ok(Self {
            weights,
            config,
            tokenizer,
        })
    }

    /// The name a person would call the model by: that of its folder.
    pub fn name(&self) -> Option<String> {
        let folder = self.weights.canonicalize().ok()?;
        Some(folder.parent()?.file_name()?.to_str()?.to_owned())
    }
}

/// Kinds of files that a checkpoint consists of.
const PARTS: [&str; 5] = ["json", "safetensors", "model", "jinja", "txt"];

/// The files of a folder that can be a part of a checkpoint, whether they are read or not.
fn parts_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_part = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| PARTS.contains(&extension))
    };
    entries.map(|entry| entry.path()).filter(is_part).collect()
}

/// Asked before a file is opened: opening a pipe would wait for its writer.
pub(super) fn check_regular(path: &Path) -> Result<(), ModelError> {
    let metadata = std::fs::metadata(path).map_err(|source| ModelError::io(path, source))?;
    if metadata.is_file() {
        return Ok(());
    }
    let source = io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    Err(ModelError::io(path, source))
}

/// Said before anything else is missed beside it.
fn check_not_gguf(path: &Path) -> Result<(), ModelError> {
    let mut magic = [0; 4];
    let file = Mapped::open(path).map_err(|source| ModelError::io(path, source))?;
    if file.read_at(0, &mut magic).is_ok() && magic == *b"GGUF" {
        let found = "a GGUF file (packed already: use it as it is)";
        return Err(ModelError::format(
            path,
            FormatError::NotSafetensors { found },
        ));
    }
    Ok(())
}

fn config_in(folder: &Path) -> Result<PathBuf, ModelError> {
    let config = folder.join("config.json");
    if config.exists() {
        return Ok(config);
    }
    Err(ModelError::MissingFile {
        path: folder.into(),
        missing: "config.json".into(),
        remedy: "it says how the model is shaped and trained: name it with --config FILE",
    })
}

fn weights_in(folder: &Path) -> Result<PathBuf, ModelError> {
    let found = [SINGLE, INDEX]
        .map(|name| folder.join(name))
        .into_iter()
        .find(|path| path.is_file());
    found.ok_or_else(|| ModelError::MissingFile {
        path: folder.into(),
        missing: format!("{SINGLE} or {INDEX}"),
        remedy: "name a folder with a checkpoint in the safetensors format, or the file itself",
    })
}

/// The header of a safetensors file or a whole index, read and not mapped: a file that shrinks is an error.
fn read_start(path: &Path, file: &Mapped) -> Result<Vec<u8>, ModelError> {
    let read = |length: usize| {
        let mut start = vec![0; length.min(file.len())];
        match file.read_at(0, &mut start) {
            Ok(()) => Ok(start),
            Err(source) => Err(ModelError::io(path, source)),
        }
    };
    let first = read(8)?;
    match first.first_chunk() {
        // An index has no length in front.
        Some(first) if first.trim_ascii_start().starts_with(b"{") => {
            read(start_length([u8::MAX; 8]) as usize)
        }
        Some(first) => read(start_length(*first) as usize),
        None => Ok(first),
    }
}

struct Shard {
    path: PathBuf,
    bytes: Mapped,
}

/// A tensor in its file, to be read a piece at a time: what is read so takes no memory beyond the piece, and a file
/// that shrinks is an error.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Slowest dimension first: a matrix is `[rows, columns]`.
    pub shape: &'a [usize],
    /// The file.
    pub path: &'a Path,
    file: &'a Mapped,
    start: usize,
}

impl Stored<'_> {
    /// Bytes of one number.
    pub fn number_bytes(self) -> usize {
        self.dtype.bytes().expect("the checkpoint holds floats")
    }

    /// How many numbers.
    pub fn len(self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no numbers.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The bytes of the numbers from `first` on, as many as `out` takes.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn read(self, first: usize, out: &mut [u8]) -> std::io::Result<()> {
        let start = self.start + first * self.number_bytes();
        self.file.read_at(start as u64, out)
    }
}

/// All tensors of a checkpoint, mapped.
pub struct Tensors {
    path: PathBuf,
    shards: Vec<Shard>,
    entries: BTreeMap<String, (usize, Entry)>,
    notes: Vec<String>,
}

impl Tensors {
    /// Map one safetensors file, or all shards of an index.
    ///
    /// # Errors
    /// A file that is missing or not sound, or an index that does not agree with its shards.
    pub fn open(weights: &Path) -> Result<Self, ModelError> {
        let mut tensors = Self {
            path: weights.into(),
            shards: vec![],
            entries: BTreeMap::new(),
            notes: vec![],
        };
        let bytes = Mapped::open(weights).map_err(|source| ModelError::io(weights, source))?;
        let start = read_start(weights, &bytes)?;
        let is_index = start.trim_ascii_start().first() == Some(&b'{') && !looks_like(&start);
        if !is_index {
            tensors.add(weights.into(), bytes, &start)?;
            return Ok(tensors);
        }
        let index =
            ShardIndex::parse(&start).map_err(|source| ModelError::format(weights, source))?;
        let folder = folder_of(weights);
        for file in index.files.values().collect::<BTreeSet<_>>() {
            let path = folder.join(file);
            if !path.exists() {
                return Err(ModelError::MissingFile {
                    path: weights.into(),
                    missing: file.clone(),
                    remedy: "the index lists it: fetch the missing shard",
                });
            }
            let bytes = Mapped::open(&path).map_err(|source| ModelError::io(&path, source))?;
            let start = read_start(&path, &bytes)?;
            tensors.add(path, bytes, &start)?;
        }
        tensors.check_index(&index)?;
        tensors.note_total_size(&index);
        Ok(tensors)
    }

    fn add(&mut self, path: PathBuf, bytes: Mapped, start: &[u8]) -> Result<(), ModelError> {
        let entries = parse_start(start, bytes.len() as u64)
            .map_err(|source| ModelError::format(&path, source))?;
        let shard = self.shards.len();
        for entry in entries {
            let name = entry.name.clone();
            if let Some((first, _)) = self.entries.insert(name.clone(), (shard, entry)) {
                let first = self.shards[first].path.clone();
                return Err(ModelError::TwoFiles {
                    first,
                    second: path,
                    tensor: name,
                });
            }
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    fn check_index(&self, index: &ShardIndex) -> Result<(), ModelError> {
        let problem = |problem| {
            Err(ModelError::Index {
                path: self.path.clone(),
                problem,
            })
        };
        for (name, file) in &index.files {
            match self.entries.get(name) {
                None => {
                    return problem(format!(
                        "says tensor '{name}' is in {file}, which does not hold it"
                    ));
                }
                Some((shard, _)) if !self.shards[*shard].path.ends_with(file) => {
                    let found = self.shards[*shard].path.display();
                    return problem(format!(
                        "says tensor '{name}' is in {file}, it is in {found}"
                    ));
                }
                Some(_) => {}
            }
        }
        match self
            .entries
            .iter()
            .find(|(name, _)| !index.files.contains_key(*name))
        {
            Some((name, (shard, _))) => {
                let found = self.shards[*shard].path.display();
                problem(format!(
                    "does not list tensor '{name}', which is in {found}"
                ))
            }
            None => Ok(()),
        }
    }

    /// Some writers count a tensor that two names share twice, so that a wrong sum is no fault.
    fn note_total_size(&mut self, index: &ShardIndex) {
        let found: u64 = self
            .entries
            .values()
            .map(|(_, entry)| entry.range.len() as u64)
            .sum();
        if let Some(total) = index.total_size.filter(|&total| total != found) {
            self.notes.push(format!(
                "{}: 'metadata.total_size' is {total}, the tensors have {found} bytes",
                self.path.display()
            ));
        }
    }

    /// The file, or the index of the files.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards
            .iter()
            .map(|shard| (shard.path.as_path(), &*shard.bytes))
    }

    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.bytes.len() as u64)
            .sum()
    }

    /// All tensors, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Tensor<'_>)> {
        self.entries
            .iter()
            .map(|(name, (shard, entry))| (name.as_str(), entry.view(&self.shards[*shard].bytes)))
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<Tensor<'_>> {
        let (shard, entry) = self.entries.get(name)?;
        Some(entry.view(&self.shards[*shard].bytes))
    }

    /// The tensor called `name`, to be read a piece at a time.
    pub fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let (shard, entry) = self.entries.get(name)?;
        let shard = &self.shards[*shard];
        Some(Stored {
            dtype: entry.dtype,
            shape: &entry.shape,
            path: &shard.path,
            file: &shard.bytes,
            start: entry.range.start,
        })
    }

    /// Bytes of one of the files, from `start` on.
    ///
    /// # Errors
    /// They cannot be read, or there is no such file.
    pub fn read_file(&self, path: &Path, start: u64, out: &mut [u8]) -> std::io::Result<()> {
        match self.shards.iter().find(|shard| shard.path == path) {
            Some(shard) => shard.bytes.read_at(start, out),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }

    /// The first file that was written to, or made longer or shorter, since it was opened.
    pub fn changed(&self) -> Option<&Path> {
        self.shards
            .iter()
            .find(|shard| !shard.bytes.is_unchanged().unwrap_or(false))
            .map(|shard| shard.path.as_path())
    }

    /// The file that holds the tensor called `name`.
    pub fn file_of(&self, name: &str) -> &Path {
        self.entries
            .get(name)
            .map_or(&self.path, |(shard, _)| &self.shards[*shard].path)
    }
}

/// A checkpoint in which everything that config.json promises was found.
pub struct Checkpoint {
    /// Where it is.
    pub source: Source,
    /// The shape of the model.
    pub config: Config,
    /// How its weights become ternary.
    pub training: Training,
    /// Its tensors.
    pub tensors: Tensors,
}

/// What a checkpoint holds of one linear.
#[derive(Clone, Copy)]
pub struct LatentLinear<'a> {
    /// Latent weights (rows, columns).
    pub weight: Tensor<'a>,
    /// Learned lambda (rows, columns) or (rows, 1).
    pub lambada: Option<Tensor<'a>>,
    /// The layer's own bias (rows,).
    pub bias: Option<Tensor<'a>>,
}

impl Checkpoint {
    /// Open a checkpoint and check that it holds what its config.json says, no less and no more.
    ///
    /// # Errors
    /// Any [`ModelError`].
    pub fn open(source: Source, overrides: &TrainingOverrides) -> Result<Self, ModelError> {
        let file = ConfigFile::read(&source.config)?;
        let training = file.training(overrides)?;
        let config = file.config()?;
        let tensors = Tensors::open(&source.weights)?;
        let checkpoint = Self {
            source,
            config,
            training,
            tensors,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Every file that is read of the checkpoint, and those beside them that belong to it.
    pub fn files(&self) -> Vec<PathBuf> {
        let source = &self.source;
        let mut files = vec![source.weights.clone(), source.config.clone()];
        files.push(source.tokenizer.clone());
        files.extend(self.tensors.files().map(|(path, _)| path.to_owned()));
        let tokenizer = match source.tokenizer.is_dir() {
            true => &source.tokenizer,
            false => folder_of(&source.tokenizer),
        };
        files.extend(parts_in(folder_of(&source.weights)));
        files.extend(parts_in(tokenizer));
        files
    }

    /// The tensors of one linear.
    pub fn linear(&self, linear: Linear) -> LatentLinear<'_> {
        let name = linear.checkpoint_name();
        let get = |suffix: &str| self.tensors.get(&format!("{name}.{suffix}"));
        LatentLinear {
            weight: get("weight").expect("check found every weight"),
            lambada: get("Lambada").filter(|_| self.training.lambda == LambdaSource::Learned),
            bias: get("bias").filter(|_| linear.has_bias(&self.config)),
        }
    }

    /// What the output will do otherwise than transformers; for the user to read.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.tensors.notes.clone();
        if self.training.lambda == LambdaSource::Fixed(0.0) {
            notes.push("eps is 0: every offline bias is 0".into());
        }
        if let Some(window) = self
            .config
            .sliding_window
            .filter(|window| *window < self.config.context_length)
        {
            notes.push(format!(
                "attention sees {window} tokens back, which llama.cpp's `llama` cannot limit: the context is set to \
                 {window} tokens, within which both are the same"
            ));
        }
        if self.config.tied_head && self.tensors.get(HEAD).is_some() {
            notes.push(format!(
                "config.json ties the head to the embedding: {HEAD} is left out"
            ));
        }
        notes
    }

    fn check(&self) -> Result<(), ModelError> {
        let expected = self.expected();
        for (name, shapes) in &expected {
            self.check_tensor(name, shapes)?;
        }
        for linear in Linear::all(&self.config) {
            self.check_groups(linear)?;
            self.check_lambda(linear)?;
        }
        let tied_head = |name: &str| self.config.tied_head && name == HEAD;
        let surplus: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, _)| name)
            .filter(|name| {
                !expected.contains_key(*name)
                    && !tied_head(name)
                    && !name.ends_with("rotary_emb.inv_freq")
            })
            .map(String::from)
            .collect();
        if surplus.is_empty() {
            return Ok(());
        }
        Err(ModelError::SurplusTensors {
            path: self.tensors.path().into(),
            hint: surplus_hint(&surplus),
            tensors: surplus,
        })
    }

    /// Training reshapes a matrix into groups, which leaves no remainder.
    fn check_groups(&self, linear: Linear) -> Result<(), ModelError> {
        let (rows, columns) = linear.shape(&self.config);
        match self.training.granularity {
            Granularity::Group(size) if !(rows * columns).is_multiple_of(size) => Err(self
                .training_error(
                    "group_size",
                    size,
                    format!(
                        "a divisor of the {rows} x {columns} weights of {}",
                        linear.checkpoint_name()
                    ),
                )),
            _ => Ok(()),
        }
    }

    fn check_lambda(&self, linear: Linear) -> Result<(), ModelError> {
        let dtype = self.linear(linear).weight.dtype;
        match (self.training.lambda, self.training.lambda.fixed(dtype)) {
            (LambdaSource::Fixed(lambda), Some(rounded)) if !rounded.is_finite() => Err(self
                .training_error(
                    "eps",
                    format!("{lambda:e}"),
                    format!("a number that fits {dtype}"),
                )),
            _ => Ok(()),
        }
    }

    fn training_error(&self, key: &str, found: impl ToString, expected: String) -> ModelError {
        ModelError::Key {
            path: self.source.config.clone(),
            key: key.into(),
            found: found.to_string(),
            expected,
        }
    }

    /// Every tensor that must be there, with the shapes it may have.
    fn expected(&self) -> BTreeMap<String, Vec<Vec<usize>>> {
        let config = &self.config;
        let vector = || vec![vec![config.hidden_size]];
        let table = || vec![vec![config.vocab_size, config.hidden_size]];
        let mut expected =
            BTreeMap::from([(EMBEDDING.into(), table()), (FINAL_NORM.into(), vector())]);
        if !config.tied_head {
            expected.insert(HEAD.into(), table());
        }
        for layer in 0..config.layers {
            expected.insert(attention_norm(layer), vector());
            expected.insert(feed_forward_norm(layer), vector());
        }
        for linear in Linear::all(config) {
            let name = linear.checkpoint_name();
            let (rows, columns) = linear.shape(config);
            expected.insert(format!("{name}.weight"), vec![vec![rows, columns]]);
            if linear.has_bias(config) {
                expected.insert(format!("{name}.bias"), vec![vec![rows]]);
            }
            if self.training.lambda == LambdaSource::Learned {
                expected.insert(
                    format!("{name}.Lambada"),
                    vec![vec![rows, columns], vec![rows, 1]],
                );
            }
        }
        expected
    }

    fn check_tensor(&self, name: &str, shapes: &[Vec<usize>]) -> Result<(), ModelError> {
        let path = self.tensors.file_of(name).to_owned();
        let Some(tensor) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                path,
                tensor: name.into(),
                hint: missing_hint(name),
            });
        };
        if !shapes.iter().any(|shape| shape == tensor.shape) {
            let (found, expected) = (tensor.shape.to_vec(), shapes[0].clone());
            return Err(ModelError::Shape {
                path,
                tensor: name.into(),
                found,
                expected,
            });
        }
        if tensor.dtype.bytes().is_none() {
            let found = tensor.dtype.to_string();
            let expected = "F32, F16 or BF16; a checkpoint that is already quantized cannot be packed, take the one it was made from";
            return Err(ModelError::Dtype {
                path,
                tensor: name.into(),
                found,
                expected,
            });
        }
        Ok(())
    }
}

fn missing_hint(name: &str) -> &'static str {
    if name == HEAD {
        "where the head is the embedding, config.json must say \"tie_word_embeddings\": true"
    } else if name.ends_with(".Lambada") {
        "ultraquantv3 has a learned lambda for every weight, ultraquantv2 one number: --quant-method ultraquantv2"
    } else if name.ends_with(".bias") {
        "config.json promises it (attention_bias, mlp_bias): mend the key, or fetch the checkpoint again"
    } else {
        "config.json promises it: fetch the checkpoint again, or name its config.json with --config"
    }
}

fn surplus_hint(names: &[String]) -> &'static str {
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    if any(".Lambada") {
        "a learned lambda belongs to ultraquantv3: --quant-method ultraquantv3"
    } else if any("lora_") {
        "merge the LoRA adapter first"
    } else if any(".qweight") || any(".SCB") || any("weight_scale") {
        "the checkpoint is already quantized (GPTQ, AWQ, bitsandbytes, FP8 or packed BitNet): take the one it was made from"
    } else if any("weight_clip_val") {
        "a learned clipping range belongs to another training method (ParetoQ); supported: ultraquantv2, ultraquantv3"
    } else if any(".bias") {
        "config.json must say \"attention_bias\" or \"mlp_bias\": true where the layers have biases"
    } else {
        "name the config.json of this checkpoint with --config"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_the_folder_of_a_bare_file_name() {
        // Tests run in the folder of the crate.
        let error = Source::find(Path::new("Cargo.toml"), None, None).err();
        let error = error.expect("a crate has no config.json").to_string();
        assert!(error.starts_with(".: no config.json"), "{error}");
    }
}
