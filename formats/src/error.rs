//! What can be wrong with a file.

/// A file that does not hold what its format promises.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {}
