//! A checkpoint's own tokenizer.json, run by the library that it was written for.

use tokenizers::AddedToken;

use super::TextError;

/// A tokenizer.json that can be run.
pub struct Own(tokenizers::Tokenizer);

impl Own {
    /// Loads a tokenizer.json. `special`: texts that the files beside it name as special tokens; transformers makes
    /// those special that are tokens.
    ///
    /// # Errors
    /// What the library does not understand.
    pub fn from_json(json: &[u8], special: impl IntoIterator<Item = String>) -> Result<Self, TextError> {
        let build = |source| TextError::Library { source };
        let mut library = tokenizers::Tokenizer::from_bytes(json).map_err(build)?;
        // Whatever the file says of them, the ids are to be those of the whole text and no more.
        library.with_padding(None);
        library.with_truncation(None).map_err(build)?;
        if let tokenizers::ModelWrapper::BPE(model) = library.get_model()
            && model.dropout.is_some()
        {
            let mut model = model.clone();
            model.dropout = None;
            library.with_model(model);
        }
        let known = special
            .into_iter()
            .filter(|text| library.token_to_id(text).is_some())
            .map(|text| AddedToken::from(text, true));
        let known: Vec<_> = known.collect();
        library.add_special_tokens(known).map_err(build)?;
        Ok(Self(library))
    }

    /// The tokens of a text, none put before or after it. Special tokens that are written out become those tokens.
    ///
    /// # Errors
    /// An expression that gives up on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.0.encode_fast(text, false);
        let encoding = encoding.map_err(|source| TextError::Library { source })?;
        Ok(encoding.get_ids().to_vec())
    }
}
