//! Why no types were chosen.

use std::io;
use std::path::PathBuf;

use crate::engine::EngineError;
use crate::engine::text::TextError;
use crate::kernels::KernelError;
use crate::pack::PackError;

/// Why no types were chosen by their KLD.
#[derive(Debug, thiserror::Error)]
pub enum ChooseError {
    /// The weights cannot be read or encoded; or it was interrupted.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// Our engine does not run the model.
    #[error("--max-kld measures with our own engine: {0}")]
    Engine(#[source] EngineError),
    /// The text cannot become tokens.
    #[error("--max-kld measures on a text: {0}")]
    Text(#[from] TextError),
    /// The file of the text cannot be read.
    #[error("{}: {source}; check the name that you gave with --text", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// The file is no text.
    #[error("{}: byte {at} is not UTF-8; give a text with --text", path.display())]
    NotUtf8 { path: PathBuf, at: usize },
    /// Too few tokens.
    #[error(
        "the text has {found} tokens for this model, --max-kld needs {least} at least; give a longer one with --text"
    )]
    TooShort { found: usize, least: usize },
    /// The system has too little memory.
    #[error(
        "--max-kld needs about {needed:.1} GB of memory for this model, {available:.1} GB are free; free memory, or leave \
         --max-kld out"
    )]
    Memory {
        /// 10^9 bytes.
        needed: f64,
        /// 10^9 bytes.
        available: f64,
    },
    /// Nothing is within the budget.
    #[error(
        "no types have a mean KLD of --max-kld {max_kld:e} or less: the best have {best:.2e} nats a token, on {tokens} \
         tokens of {text}; allow that much, or leave out --type and --tensor-type"
    )]
    Budget {
        max_kld: f64,
        best: f64,
        tokens: usize,
        text: String,
    },
}

impl From<EngineError> for ChooseError {
    /// What kept a plan's weights from being read is told as the packer tells it.
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Weights(cause) => match cause.downcast() {
                Ok(error) => ChooseError::Pack(*error),
                Err(cause) => ChooseError::Engine(EngineError::Weights(cause)),
            },
            error => ChooseError::Engine(error),
        }
    }
}

impl ChooseError {
    /// A matrix that the kernels refuse.
    pub(super) fn kernel(name: &str, source: KernelError) -> Self {
        ChooseError::Engine(EngineError::Kernel {
            name: name.into(),
            source,
        })
    }
}
