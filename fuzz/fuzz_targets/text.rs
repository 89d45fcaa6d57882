//! The tokenizer of a GGUF file: whatever its keys say, text is encoded and decoded, or there is an error.
#![no_main]

use formats::gguf::File;
use libfuzzer_sys::fuzz_target;
use tqconv::engine::text::Text;

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let Ok(file) = File::parse(data) else { return };
    if let Ok(text) = Text::from_gguf(&file) {
        text.decode(&text.encode_with_specials("abcd <|end|>\u{e9}", true));
    }
});
