//! A checkpoint's tokenizer, written into a GGUF file, splits text as the checkpoint's own does: for llama.cpp and for
//! our engine, on the texts that llama.cpp tests its tokenizers with.
//!
//! Witnesses: the published token ids (llama.cpp's, sentencepiece's), the `tokenizers` library on the checkpoint's
//! tokenizer.json, llama.cpp on our file.

use std::path::Path;

use formats::block::BlockType;
#[cfg(feature = "llama")]
use formats::gguf::tokenizer::PRE_TOKENIZERS;
use formats::gguf::{File, Layout, TensorInfo, Value};
use serde_json::json;
#[cfg(feature = "llama")]
use tqconv::engine::text::HARD;
use tqconv::engine::text::Text;
use tqconv::model::tokenizer::{self, Content, Model, SpecialIds, TokenType, Tokenizer, TokenizerFiles};

use crate::data;

/// The texts of llama.cpp's tokenizer tests.
fn texts() -> Option<Vec<String>> {
    let path = data::find("tokenizers/vectors/texts.inp")?;
    let all = std::fs::read_to_string(path).unwrap();
    let all = all.strip_suffix("\n__ggml_vocab_test__\n").unwrap_or(&all);
    let texts: Vec<_> = all.split("\n__ggml_vocab_test__\n").map(str::to_owned).collect();
    assert_eq!(texts.len(), 46);
    Some(texts)
}

/// Published token ids of the texts.
fn vectors(name: &str) -> Option<Vec<Vec<u32>>> {
    let path = data::find(&format!("tokenizers/vectors/{name}.out"))?;
    let ids = |line: &str| line.split_whitespace().map(|id| id.parse().unwrap()).collect();
    Some(std::fs::read_to_string(path).unwrap().lines().map(ids).collect())
}

/// The vocabulary file at `path`, with the ids that its config.json would name.
fn read(path: &Path, rows: usize, bos: u32, eos: u32) -> Tokenizer {
    let files = TokenizerFiles::open(path).unwrap();
    read_files(&files, rows, bos, eos)
}

fn read_files(files: &TokenizerFiles, rows: usize, bos: u32, eos: u32) -> Tokenizer {
    let ids = SpecialIds {
        bos: Some(bos),
        eos: vec![eos],
        pad: None,
    };
    tokenizer::read(files, rows, &ids, None).unwrap()
}

pub fn json_files(json: &serde_json::Value) -> TokenizerFiles {
    let bytes = serde_json::to_vec(json).unwrap();
    let content = Content {
        name: "tokenizer.json".into(),
        bytes,
    };
    TokenizerFiles {
        tokenizer_json: Some(content),
        ..TokenizerFiles::default()
    }
}

/// A Llama of one layer, all weights zero, that has this tokenizer.
pub fn gguf(tokenizer: &Tokenizer) -> Vec<u8> {
    const HIDDEN: u64 = 32;
    let number = |key: &str, value| (format!("llama.{key}"), Value::U32(value));
    let mut metadata = vec![
        ("general.architecture".into(), Value::String("llama".into())),
        number("context_length", 64),
        number("embedding_length", HIDDEN as u32),
        number("block_count", 1),
        number("feed_forward_length", HIDDEN as u32),
        number("attention.head_count", 1),
        ("llama.attention.layer_norm_rms_epsilon".into(), Value::F32(1e-5)),
    ];
    metadata.extend(tokenizer.metadata());
    let tensor = |name: &str, ty, shape: &[u64]| TensorInfo {
        name: name.into(),
        ty,
        shape: shape.into(),
    };
    let mut tensors = vec![
        tensor(
            "token_embd.weight",
            BlockType::F16,
            &[HIDDEN, tokenizer.tokens.len() as u64],
        ),
        tensor("output_norm.weight", BlockType::F32, &[HIDDEN]),
    ];
    for name in ["attn_norm", "ffn_norm"] {
        tensors.push(tensor(&format!("blk.0.{name}.weight"), BlockType::F32, &[HIDDEN]));
    }
    for name in [
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ] {
        tensors.push(tensor(
            &format!("blk.0.{name}.weight"),
            BlockType::F16,
            &[HIDDEN, HIDDEN],
        ));
    }
    let layout = Layout::new(&metadata, &tensors).unwrap();
    let mut bytes = layout.header;
    bytes.resize(layout.size as usize, 0);
    bytes
}

/// What our engine and llama.cpp make of each text, from a file with this tokenizer. They must agree, and what they make
/// must decode to the text.
fn encode(tokenizer: &Tokenizer, texts: &[String]) -> Vec<Vec<u32>> {
    let bytes = gguf(tokenizer);
    let file = File::parse(&bytes).unwrap();
    let text = Text::from_gguf(&file).unwrap();
    let ours: Vec<Vec<u32>> = texts.iter().map(|t| text.encode(t, false)).collect();
    for (ids, original) in ours.iter().zip(texts) {
        assert_eq!(text.decode(ids), *original);
    }
    compare_with_llama(&bytes, &file, &text, texts);
    ours
}

#[cfg(feature = "llama")]
pub fn load(bytes: &[u8], file: &File) -> tqconv::engine::llamacpp::Model {
    let mut path = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut path, bytes).unwrap();
    tqconv::engine::llamacpp::Model::load(&crate::witness::program(), path.path(), file).unwrap()
}

#[cfg(feature = "llama")]
fn compare_with_llama(bytes: &[u8], file: &File, text: &Text, texts: &[String]) {
    let llama = load(bytes, file);
    for original in texts {
        let ids = text.encode(original, false);
        assert_eq!(ids, llama.tokenize(original, false, false).unwrap(), "{original:?}");
        assert_eq!(
            text.encode(original, true),
            llama.tokenize(original, true, false).unwrap(),
            "{original:?}"
        );
        let bytes = llama.detokenize(&ids).unwrap();
        let mut decoder = text.decoder();
        let streamed: String = ids.iter().map(|&id| decoder.push(id)).collect();
        assert_eq!(streamed + &decoder.finish(), String::from_utf8(bytes).unwrap());
    }
    // Special tokens written out in the text, between and beside words.
    let specials: Vec<&str> = ["<s>", "</s>", "<unk>", "<|end_of_text|>", "<|eot_id|>", "<|endoftext|>"].into();
    for special in specials {
        let prompt = format!("{special}Hello {special} world {special}{special}\n");
        assert_eq!(
            text.encode_with_specials(&prompt, true),
            llama.tokenize(&prompt, true, true).unwrap(),
            "{prompt:?}"
        );
        assert_eq!(
            text.encode(&prompt, true),
            llama.tokenize(&prompt, true, false).unwrap(),
            "{prompt:?}"
        );
    }
    for id in 0..text.len() as u32 {
        assert_eq!(text.is_end(id), llama.is_end(id).unwrap(), "token {id}");
    }
}

#[cfg(not(feature = "llama"))]
fn compare_with_llama(_: &[u8], _: &File, _: &Text, _: &[String]) {
    println!("not compared with llama.cpp: built without the feature");
}

/// The ids of the `tokenizers` library, which reads tokenizer.json itself.
fn library_ids(json: &[u8], texts: &[String]) -> Vec<Vec<u32>> {
    let library = tokenizers::Tokenizer::from_bytes(json).unwrap();
    texts
        .iter()
        .map(|text| library.encode(text.as_str(), false).unwrap().get_ids().to_vec())
        .collect()
}

#[test]
fn gpt2_splits_as_published() {
    let (Some(texts), Some(path)) = (texts(), data::find("tokenizers/gpt2.json")) else {
        return;
    };
    let tokenizer = read(&path, 50257, 50256, 50256);
    assert!(matches!(&tokenizer.model, Model::ByteLevel { pre, .. } if pre == "gpt-2"));
    assert_eq!(encode(&tokenizer, &texts), vectors("gpt-2").unwrap());
    assert_eq!(
        library_ids(&std::fs::read(path).unwrap(), &texts),
        vectors("gpt-2").unwrap()
    );
}

/// Every name of a pre-tokenizer means to llama.cpp what is known of it here.
#[cfg(feature = "llama")]
#[test]
fn every_pre_tokenizer_splits_as_llama_cpp_does() {
    let (Some(texts), Some(path)) = (texts(), data::find("tokenizers/gpt2.json")) else {
        return;
    };
    let mut tokenizer = read(&path, 50257, 50256, 50256);
    let mut different = vec![];
    for name in PRE_TOKENIZERS.iter().flat_map(|pre| pre.names) {
        let Model::ByteLevel { pre, .. } = &mut tokenizer.model else {
            panic!("GPT-2 is byte-level")
        };
        *pre = (*name).into();
        let bytes = gguf(&tokenizer);
        let file = File::parse(&bytes).unwrap();
        let mut text = Text::from_gguf(&file).unwrap();
        text.split_as_llama_cpp().unwrap();
        let llama = load(&bytes, &file);
        let hard = HARD.iter().map(|(_, hard)| *hard);
        for original in texts.iter().map(String::as_str).chain(hard) {
            let ids = text.encode(original, false);
            if ids != llama.tokenize(original, false, false).unwrap() {
                different.push(format!("{name}: {original:?}"));
            }
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// Needs a Llama-3 tokenizer.json, named by `TQCONV_LLAMA3_TOKENIZER`.
#[test]
fn llama3_splits_as_published() {
    let Some(path) = std::env::var_os("TQCONV_LLAMA3_TOKENIZER") else {
        println!("skipped: TQCONV_LLAMA3_TOKENIZER names no tokenizer.json");
        return;
    };
    let Some(texts) = texts() else { return };
    let tokenizer = read(path.as_ref(), 128_256, 128_000, 128_001);
    assert!(matches!(&tokenizer.model, Model::ByteLevel { pre, .. } if pre == "llama-bpe"));
    assert_eq!(encode(&tokenizer, &texts), vectors("llama-bpe").unwrap());
    assert_eq!(
        library_ids(&std::fs::read(path).unwrap(), &texts),
        vectors("llama-bpe").unwrap()
    );
}

/// A vocabulary that no table of hashes knows.
#[test]
fn a_retrained_vocabulary_splits_as_the_library_does() {
    let Some(mut texts) = texts() else { return };
    let Some(path) = data::find("kjv-tequila") else {
        return;
    };
    texts.push(std::fs::read_to_string(path.join("valid.txt")).unwrap());
    // Two rows more than tokens, and an end of text that its own text does not tell.
    let ids = SpecialIds {
        bos: Some(0),
        eos: vec![1, 300],
        pad: None,
    };
    let files = TokenizerFiles::open(&path).unwrap();
    let tokenizer = tokenizer::read(&files, 2050, &ids, None).unwrap();
    assert!(matches!(&tokenizer.model, Model::ByteLevel { pre, .. } if pre == "llama-bpe"));
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.add_bos), (0, 1, false));
    assert_eq!(tokenizer.more_ends, [300]);
    assert_eq!(tokenizer.tokens[2049].text, "[PAD2049]");
    let json = std::fs::read(path.join("tokenizer.json")).unwrap();
    assert_eq!(encode(&tokenizer, &texts), library_ids(&json, &texts));
}

#[test]
fn mistral_splits_as_published() {
    let (Some(texts), Some(path)) = (texts(), data::find("tokenizers/mistral-v1.model")) else {
        return;
    };
    let tokenizer = read(&path, 32000, 1, 2);
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: true });
    assert_eq!(tokenizer.notes, [""; 0]);
    assert_eq!(encode(&tokenizer, &texts), vectors("mistral-v1").unwrap());
}

/// The same vocabulary as a tokenizer.json, which has merges where the model has scores.
#[test]
fn merges_split_as_the_scores_they_come_from() {
    let (Some(texts), Some(path)) = (texts(), data::find("tokenizers/mistral-v1.model")) else {
        return;
    };
    let json = merges_of(&read(&path, 32000, 1, 2));
    let tokenizer = read_files(&json_files(&json), 32000, 1, 2);
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: true });
    assert_eq!(tokenizer.notes, [""; 0]);
    assert_eq!(encode(&tokenizer, &texts), vectors("mistral-v1").unwrap());
    assert_eq!(
        library_ids(&serde_json::to_vec(&json).unwrap(), &texts),
        vectors("mistral-v1").unwrap()
    );
}

/// A SentencePiece vocabulary as transformers converts it: all pairs of pieces that join to a piece, the highest score
/// first, then the shortest left part.
fn merges_of(tokenizer: &Tokenizer) -> serde_json::Value {
    let tokens = &tokenizer.tokens;
    let ids: std::collections::HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .map(|(id, token)| (token.text.as_str(), id))
        .collect();
    let mut pairs = Vec::new();
    for token in tokens.iter().filter(|token| token.kind == TokenType::Normal) {
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            if ids.contains_key(left) && ids.contains_key(right) {
                pairs.push((token.score, left, right));
            }
        }
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.chars().count().cmp(&b.1.chars().count())));
    let added = tokens
        .iter()
        .zip(0..)
        .filter(|(token, _)| matches!(token.kind, TokenType::Control | TokenType::Unknown));
    json!({
        "added_tokens": added
            .map(|(token, id)| json!({
                "id": id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true
            }))
            .collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": tokens.iter().zip(0..).map(|(token, id)| (token.text.clone(), json!(id))).collect::<serde_json::Map<_, _>>(),
            "merges": pairs.iter().map(|(_, left, right)| json!([left, right])).collect::<Vec<_>>(),
        }
    })
}

/// `stories260K.f32.gguf` is what llama.cpp's own converter wrote.
#[test]
fn a_real_checkpoint_gets_the_keys_of_the_converter() {
    let (Some(folder), Some(path)) = (
        data::find("stories260K/hf"),
        data::find("stories260K/stories260K.f32.gguf"),
    ) else {
        return;
    };
    let tokenizer = read(&folder, 512, 1, 2);
    let theirs = std::fs::read(path).unwrap();
    let theirs = File::parse(&theirs).unwrap();
    let mut compared = 0;
    for (key, value) in tokenizer.metadata() {
        let Some(expected) = theirs.get(&key) else {
            println!("only in ours: {key}");
            continue;
        };
        assert_eq!(value, *expected, "{key}");
        compared += 1;
    }
    assert!(compared >= 9, "{compared} keys compared");
    if let Some(texts) = texts() {
        encode(&tokenizer, &texts);
    }
}
