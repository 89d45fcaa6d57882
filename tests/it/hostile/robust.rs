//! Any prefix of a sound settings file, and any flipped bit in it, is an error or is read: nothing panics. The same for
//! safetensors and GGUF files is in formats/tests/robust.rs; fuzz/ is the long form.

use std::path::Path;

use tqconv::model::tokenizer::{Content, SpecialIds, TokenizerFiles, read};
use tqconv::model::{ConfigFile, TrainingOverrides};

/// Read every prefix and every file with one bit flipped; how many were accepted.
fn accepted(sound: &[u8], read: impl Fn(&[u8]) -> bool) -> usize {
    assert!(read(sound));
    let prefixes = (0..sound.trim_ascii_end().len()).filter(|&end| read(&sound[..end]));
    let prefixes = prefixes.count();
    assert_eq!(prefixes, 0, "a prefix is no file");
    let mut bytes = sound.to_vec();
    let mut flipped = |bit: &usize| {
        bytes[bit / 8] ^= 1 << (bit % 8);
        let accepted = read(&bytes);
        bytes[bit / 8] ^= 1 << (bit % 8);
        accepted
    };
    (0..8 * sound.len()).filter(|bit| flipped(bit)).count()
}

fn bytes(path: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn config_json_cut_and_flipped() {
    let read = |bytes: &[u8]| {
        let Ok(file) = ConfigFile::parse(Path::new("config.json"), bytes) else {
            return false;
        };
        file.config().is_ok() && file.training(&TrainingOverrides::default()).is_ok()
    };
    println!("{} accepted", accepted(&bytes("fixtures/tiny/config.json"), read));
}

#[test]
fn tokenizers_cut_and_flipped() {
    let content = |bytes: &[u8]| {
        let (name, bytes) = ("tokenizer".into(), bytes.into());
        Some(Content { name, bytes })
    };
    let ids = SpecialIds {
        bos: Some(0),
        eos: vec![1],
        pad: None,
    };
    let read_json = |bytes: &[u8]| {
        let files = TokenizerFiles {
            tokenizer_json: content(bytes),
            ..TokenizerFiles::default()
        };
        read(&files, 16, &ids, None).is_ok()
    };
    println!(
        "{} accepted",
        accepted(&bytes("fixtures/tiny/tokenizer.json"), read_json)
    );
    let read_model = |bytes: &[u8]| {
        let files = TokenizerFiles {
            tokenizer_model: content(bytes),
            ..TokenizerFiles::default()
        };
        read(&files, 300, &ids, None).is_ok()
    };
    println!(
        "{} accepted",
        accepted(&bytes("fuzz/seeds/tokenizer_model/bpe"), read_model)
    );
}
