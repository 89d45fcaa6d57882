//! A file of a tokenizer, read once and bounded.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::TokenizerError;

/// The largest file that is read, in bytes; Gemma's tokenizer.json, among the largest in use, has 33 MB.
const FILE_LIMIT: u64 = 256 << 20;

/// A file's content and the name that messages use for it.
#[derive(Debug, Clone)]
pub struct Content {
    /// Shown in messages.
    pub name: String,
    /// All of it.
    pub bytes: Vec<u8>,
}

impl Content {
    /// The file as JSON of type `T`.
    pub(super) fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, TokenizerError> {
        serde_json::from_slice(&self.bytes).map_err(|source| TokenizerError::Json {
            file: self.name.clone(),
            source,
        })
    }
}

/// The file's content, or `None` when there is no such file.
pub(super) fn read_content(path: &Path) -> Result<Option<Content>, TokenizerError> {
    let io = |source| TokenizerError::Io {
        path: path.to_owned(),
        source,
    };
    // Asked before opening: opening a pipe would wait for its writer.
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    if !metadata.is_file() {
        return Err(TokenizerError::NotAFile { path: path.to_owned() });
    }
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(io)?
        .take(FILE_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    let found = bytes.len() as u64;
    if found > FILE_LIMIT {
        return Err(TokenizerError::TooLarge {
            file: name,
            what: "the file",
            found,
            limit: FILE_LIMIT,
        });
    }
    Ok(Some(Content { name, bytes }))
}
