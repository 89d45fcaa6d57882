//! Any prefix of a sound file, and any flipped bit in it, is an error or is read: nothing panics.

use std::path::Path;

use proptest::prelude::*;
use tqconv_formats::gguf::File;
use tqconv_formats::safetensors::{ShardIndex, parse};

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

const INDEX: &str = "corners/lambada-biases-shards/model.safetensors.index.json";

/// All views of what was read.
fn read_gguf(bytes: &[u8]) -> bool {
    let Ok(file) = File::parse(bytes) else {
        return false;
    };
    let views = file.tensors().iter().filter_map(|info| file.tensor(&info.name));
    views.count() == file.tensors().len()
}

fn read_safetensors(bytes: &[u8]) -> bool {
    let Ok(entries) = parse(bytes) else {
        return false;
    };
    entries.iter().map(|entry| entry.view(bytes).bytes.len()).sum::<usize>() <= bytes.len()
}

#[test]
fn a_prefix_is_never_a_file() {
    let gguf = fixture("broken/sound.gguf");
    let data_end = gguf.len() - 32; // the padding after the last tensor may be missing
    assert!((0..data_end).all(|length| !read_gguf(&gguf[..length])));
    assert!(read_gguf(&gguf));
    let tensors = fixture("tiny/model.safetensors");
    assert!((0..tensors.len()).all(|length| parse(&tensors[..length]).is_err()));
    assert!(read_safetensors(&tensors));
    let index = fixture(INDEX);
    let text = index.trim_ascii_end();
    assert!((0..text.len()).all(|length| ShardIndex::parse(&text[..length]).is_err()));
    assert!(ShardIndex::parse(&index).is_ok());
}

#[test]
fn every_bit_of_the_headers_may_be_flipped() {
    let gguf = fixture("broken/sound.gguf");
    let header = File::parse(&gguf).unwrap().data_start() as usize;
    let tensors = fixture("tiny/model.safetensors");
    let tensor_header = 8 + u64::from_le_bytes(*tensors.first_chunk().unwrap()) as usize;
    for (sound, header, read) in [
        (gguf, header, read_gguf as fn(&[u8]) -> bool),
        (tensors, tensor_header, read_safetensors),
    ] {
        let mut bytes = sound;
        for bit in 0..8 * header {
            bytes[bit / 8] ^= 1 << (bit % 8);
            read(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(read(&bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn several_changes_at_once(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        length in any::<prop::sample::Index>(),
    ) {
        for (name, read) in [
            ("broken/sound.gguf", read_gguf as fn(&[u8]) -> bool),
            ("tiny/model.safetensors", read_safetensors),
            (INDEX, |bytes| ShardIndex::parse(bytes).is_ok()),
        ] {
            let mut bytes = fixture(name);
            bytes.truncate(bytes.len() / 2 + length.index(bytes.len() / 2) + 1);
            for (at, byte) in &edits {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            read(&bytes);
        }
    }

    #[test]
    fn bytes_that_mean_nothing(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_gguf(&bytes);
        read_safetensors(&bytes);
        let _ = ShardIndex::parse(&bytes);
    }
}
