//! The index of a sharded checkpoint.
#![no_main]

use formats::safetensors::ShardIndex;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    if let Ok(index) = ShardIndex::parse(data) {
        assert!(!index.files.is_empty());
        assert!(index.files.values().all(|file| !file.contains('/') && file != ".."));
    }
});
