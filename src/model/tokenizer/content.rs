//! A file of a tokenizer, read once and bounded.

use std::io::ErrorKind;
use std::path::Path;

use super::TokenizerError;
use crate::files;

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
    let name = path.display().to_string();
    match files::read(path, FILE_LIMIT) {
        Ok(Some(bytes)) => Ok(Some(Content { name, bytes })),
        Ok(None) => Err(TokenizerError::TooLarge {
            file: name,
            what: "the file",
            found: FILE_LIMIT + 1,
            limit: FILE_LIMIT,
        }),
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Ok(None),
            ErrorKind::InvalidInput => Err(TokenizerError::NotAFile { path: path.into() }),
            _ => Err(TokenizerError::Io {
                path: path.into(),
                source: error,
            }),
        },
    }
}
