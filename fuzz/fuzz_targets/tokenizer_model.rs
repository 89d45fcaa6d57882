//! tokenizer.model: a SentencePiece vocabulary.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tqconv::model::tokenizer::{Content, SpecialIds, TokenizerFiles, read};

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let files = TokenizerFiles {
        tokenizer_model: Some(Content {
            name: "tokenizer.model".into(),
            bytes: data.to_vec(),
        }),
        ..TokenizerFiles::default()
    };
    if let Ok(tokenizer) = read(&files, 300, &SpecialIds::default(), None) {
        assert_eq!(tokenizer.tokens.len(), 300);
        assert!(tokenizer.tokens.iter().all(|token| !token.score.is_nan()));
    }
});
