//! Where the parts of a checkpoint are.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::ModelError;
use super::card::Card;
use crate::files::folder_of;
use crate::mapped::Mapped;

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
    pub fn find(input: &Path, config: Option<&Path>, tokenizer: Option<&Path>) -> Result<Self, ModelError> {
        let metadata = std::fs::metadata(input).map_err(|source| ModelError::io(input, source))?;
        let (folder, weights) = if metadata.is_dir() {
            (input, weights_in(input)?)
        } else {
            check_opens(input)?;
            (folder_of(input), input.to_owned())
        };
        let config = match config {
            Some(config) => config.to_owned(),
            None => config_in(folder, input)?,
        };
        let tokenizer = tokenizer.unwrap_or(folder).to_owned();
        Ok(Self {
            weights,
            config,
            tokenizer,
        })
    }

    /// The name a person would call the model by: that of its repository in Hugging Face's cache, or of its folder.
    pub fn name(&self) -> Option<String> {
        let folder = self.folder()?;
        match repository(&folder) {
            Some((_, name)) => Some(name),
            None => Some(folder.file_name()?.to_str()?.to_owned()),
        }
    }

    /// The owner of its repository in Hugging Face's cache.
    pub fn organization(&self) -> Option<String> {
        repository(&self.folder()?)?.0
    }

    /// `OWNER/NAME` of its repository in Hugging Face's cache.
    pub fn repository(&self) -> Option<String> {
        let (owner, name) = repository(&self.folder()?)?;
        Some(format!("{}/{name}", owner?))
    }

    /// What its own card says.
    ///
    /// # Errors
    /// A card that cannot be read, for a note: nothing of the model depends on it.
    pub fn card(&self) -> Result<Card, String> {
        Card::read(folder_of(&self.weights))
    }

    /// The folder of the weights. They themselves can be links to somewhere else, as in Hugging Face's cache.
    fn folder(&self) -> Option<PathBuf> {
        folder_of(&self.weights).canonicalize().ok()
    }
}

/// Owner and name of the repository that `folder` is a snapshot of: `models--OWNER--NAME/snapshots/REVISION`.
fn repository(folder: &Path) -> Option<(Option<String>, String)> {
    let repository = folder.parent()?.parent()?.file_name()?.to_str()?;
    let is_snapshot = folder.parent()?.ends_with("snapshots");
    let name = repository.strip_prefix("models--").filter(|_| is_snapshot)?;
    Some(match name.split_once("--") {
        Some((owner, name)) => (Some(owner.into()), name.into()),
        None => (None, name.into()),
    })
}

/// Kinds of files that a checkpoint consists of.
const PARTS: [&str; 5] = ["json", "safetensors", "model", "jinja", "txt"];

/// The files of a folder that can be a part of a checkpoint, whether they are read or not.
pub(super) fn parts_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let is_part = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        extension.is_some_and(|extension| PARTS.contains(&extension))
    };
    entries.map(|entry| entry.path()).filter(is_part).collect()
}

/// Said before anything else is missed beside it.
fn check_opens(path: &Path) -> Result<(), ModelError> {
    match Mapped::open(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(ModelError::io(path, source)),
    }
}

/// `input`: what the user named, the folder or a file in it.
fn config_in(folder: &Path, input: &Path) -> Result<PathBuf, ModelError> {
    let config = folder.join("config.json");
    if config.exists() {
        return Ok(config);
    }
    Err(ModelError::MissingFile {
        path: input.into(),
        missing: "config.json".into(),
        remedy: "it says how the model is shaped and trained: name it with --config FILE".into(),
    })
}

fn weights_in(folder: &Path) -> Result<PathBuf, ModelError> {
    weights_of(folder).ok_or_else(|| ModelError::MissingFile {
        path: folder.into(),
        missing: format!("{SINGLE} or {INDEX}"),
        remedy: remedy_without_weights(folder),
    })
}

fn weights_of(folder: &Path) -> Option<PathBuf> {
    let names = [SINGLE, INDEX].map(|name| folder.join(name));
    names.into_iter().find(|path| path.is_file())
}

fn remedy_without_weights(folder: &Path) -> Cow<'static, str> {
    if folder.join("adapter_config.json").exists() {
        return "it holds an adapter alone (peft): merge it into its model with merge_and_unload(), and save that"
            .into();
    }
    match checkpoint_below(folder) {
        Some(found) => format!("name the checkpoint below it: {}", found.display()).into(),
        None => "name a folder with a checkpoint in the safetensors format, or the file itself".into(),
    }
}

/// The newest checkpoint in a folder of `folder`, or of its `snapshots`, as Hugging Face's cache has them.
fn checkpoint_below(folder: &Path) -> Option<PathBuf> {
    let folders = [folder.to_owned(), folder.join("snapshots")];
    let entries = folders.iter().filter_map(|folder| folder.read_dir().ok()).flatten();
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let found = paths.filter(|path| weights_of(path).is_some());
    found.max_by_key(|path| path.metadata().and_then(|metadata| metadata.modified()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_config_is_told_of_the_name_the_user_wrote() {
        // Tests run in the folder of the crate.
        let error = Source::find(Path::new("Cargo.toml"), None, None).err();
        let error = error.expect("a crate has no config.json").to_string();
        assert!(error.starts_with("Cargo.toml: no config.json"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_snapshot_is_called_as_its_repository() {
        let folder = tempfile::tempdir().unwrap();
        let make = |repository: &str| {
            let repository = folder.path().join(repository);
            let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/0123abcd"));
            std::fs::create_dir_all(&blobs).unwrap();
            std::fs::create_dir_all(&snapshot).unwrap();
            for file in [SINGLE, "config.json"] {
                std::fs::write(blobs.join(file), "{}").unwrap();
                std::os::unix::fs::symlink(blobs.join(file), snapshot.join(file)).unwrap();
            }
            snapshot
        };
        let named = |path: &Path| {
            let source = Source::find(path, None, None).unwrap();
            (source.organization(), source.name().unwrap())
        };
        let snapshot = make("models--an-org--A-Model--v2");
        let expected = (Some("an-org".into()), "A-Model--v2".into());
        assert_eq!(named(&snapshot), expected);
        assert_eq!(named(&snapshot.join(SINGLE)), expected);
        assert_eq!(named(&make("models--gpt2")), (None, "gpt2".into()));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&snapshot, &link).unwrap();
        assert_eq!(named(&link), expected);

        // The repository itself is no checkpoint, and says where one is.
        for path in ["models--an-org--A-Model--v2", "models--an-org--A-Model--v2/snapshots"] {
            let error = Source::find(&folder.path().join(path), None, None)
                .unwrap_err()
                .to_string();
            assert!(error.contains(&snapshot.display().to_string()), "{error}");
        }
    }
}
