//! tokenizer.json and its neighbours: what is read is written, and read again from the GGUF keys by the engine's reader.
#![no_main]

use formats::gguf::{File, Layout};
use libfuzzer_sys::fuzz_target;
use tqconv::engine::text::Text;
use tqconv::model::tokenizer::{Content, SpecialIds, TokenizerFiles, read};

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    // A zero byte, which no JSON text holds, parts tokenizer.json from tokenizer_config.json and added_tokens.json.
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let mut content = |name: &str| {
        let bytes = parts.next()?.to_vec();
        Some(Content {
            name: name.into(),
            bytes,
        })
    };
    let files = TokenizerFiles {
        tokenizer_json: content("tokenizer.json"),
        tokenizer_config: content("tokenizer_config.json"),
        added_tokens: content("added_tokens.json"),
        ..TokenizerFiles::default()
    };
    let ids = SpecialIds {
        bos: Some(0),
        eos: vec![1],
        pad: None,
    };
    let Ok(tokenizer) = read(&files, 300, &ids, None) else {
        return;
    };
    assert_eq!(tokenizer.tokens.len(), 300);
    let layout = Layout::new(&tokenizer.metadata(), &[]).expect("keys that stand once");
    let file = File::parse(&layout.header).expect("what was written can be read");
    if let Ok(text) = Text::from_gguf(&file) {
        text.decode(&text.encode("abcd <|end|>\u{e9}", true));
    }
});
