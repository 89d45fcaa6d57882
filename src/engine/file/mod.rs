//! A GGUF file as both the native engine and llama.cpp get it: its hyper-parameters read (`keys`), and its tensors
//! compared with them (`tensors`): [`Hyper::read`]. What llama.cpp meets with an abort of the whole process (a bias
//! that is not F32, a duplicated token) is an error here, and so is whatever either engine would silently leave out.

mod keys;
mod tensors;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use formats::gguf::{File, TensorInfo, Value};

use self::keys::Keys;
use super::EngineError;
use super::hyper::Hyper;
use crate::blueprint::Slot;
use crate::witness::pieces;

impl Hyper {
    /// Read the hyper-parameters of `file` and compare every tensor with them.
    ///
    /// # Errors
    /// Those of [`Hyper::of`]; a tensor that is not aligned in memory.
    pub fn read(file: &File) -> Result<Self, EngineError> {
        let factors = file.tensor(&Slot::RopeFactors.gguf_name()).map(|(_, bytes)| bytes);
        let hyper = Self::of(file.metadata(), file.tensors(), factors)?;
        check_places(file)?;
        Ok(hyper)
    }

    /// The same of a file with these keys and tensors. `factors`: the bytes of the rotary factors, where it has them.
    ///
    /// # Errors
    /// A type that llama.cpp does not have; an architecture that we do not run; a key that is absent, of the wrong type
    /// or out of range; a scaling of positions other than linear; a tensor that is absent, unknown, of the wrong shape,
    /// or a norm or bias that is not F32; a duplicated token.
    pub fn of(
        metadata: &[(String, Value)],
        tensors: &[TensorInfo],
        factors: Option<&[u8]>,
    ) -> Result<Self, EngineError> {
        tensors::check_types(tensors)?;
        let keys = Keys::new(metadata, tensors)?;
        let mut hyper = keys.hyper()?;
        tensors::check(tensors, keys.graph, &hyper.dims)?;
        check_vocabulary(metadata, hyper.dims.vocab)?;
        hyper.rope.factors = factors.map(|bytes| {
            let numbers = bytes.as_chunks().0.iter();
            numbers.map(|&number| f32::from_le_bytes(number).into()).collect()
        });
        Ok(hyper)
    }
}

/// llama.cpp maps the file, and aborts on a tensor that is not aligned in memory (TENSOR_ALIGNMENT, ggml-impl.h).
fn check_places(file: &File) -> Result<(), EngineError> {
    const ALIGNMENT: u64 = 32;
    let places = pieces(file);
    let mut tensors = file.tensors().iter().zip(places);
    match tensors.find(|(_, piece)| !piece.start.is_multiple_of(ALIGNMENT)) {
        Some((info, piece)) => Err(EngineError::Key {
            key: "general.alignment".into(),
            found: format!(
                "{}, which puts tensor '{}' at byte {}",
                file.alignment(),
                info.name,
                piece.start
            ),
            expected: format!("tensors at multiples of {ALIGNMENT}"),
        }),
        None => Ok(()),
    }
}

/// As many tokens as the embedding has rows, each once (llama.cpp aborts on a duplicated token: llama-vocab.cpp:2578).
fn check_vocabulary(metadata: &[(String, Value)], vocab: usize) -> Result<(), EngineError> {
    const KEY: &str = "tokenizer.ggml.tokens";
    let Some(tokens) = keys::value(metadata, KEY).and_then(Value::as_strings) else {
        return Ok(());
    };
    let refuse = |found: String, expected: String| {
        let key = KEY.into();
        Err(EngineError::Key { key, found, expected })
    };
    if tokens.len() != vocab {
        return refuse(
            format!("a list of {}", tokens.len()),
            format!("{vocab} tokens, one for each row of {}", Slot::Embedding.gguf_name()),
        );
    }
    // llama.cpp reads C strings.
    if let Some(token) = tokens.iter().find(|token| token.contains('\0')) {
        return refuse(format!("a list that has {token:?}"), "tokens without NUL".into());
    }
    let mut seen = HashSet::new();
    match tokens.iter().find(|token| !seen.insert(token.as_str())) {
        Some(token) => refuse(format!("a list that has {token:?} twice"), "every token once".into()),
        None => Ok(()),
    }
}
