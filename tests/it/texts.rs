//! Hard texts: what the packed keys make of them, beside tokenizer.json run by its own library, and beside llama.cpp.

use std::path::Path;

use formats::gguf::{File, Value};
use serde_json::{Value as Json, json};
use tqconv::engine::text::{HARD, Own, Text};
use tqconv::model::tokenizer::{self, Content, SpecialIds, Tokenizer, TokenizerFiles};

use crate::data;
use crate::pack::Bench;
#[cfg(feature = "llama")]
use crate::tokenizer::load;
use crate::tokenizer::{gguf, json_files};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// GPT-2's character of each byte.
fn alphabet(byte: u8) -> char {
    let is_plain = |byte: &u8| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    match is_plain(&byte) {
        true => byte.into(),
        false => {
            let before = (0..byte).filter(|byte| !is_plain(byte)).count() as u32;
            char::from_u32(0x100 + before).unwrap()
        }
    }
}

/// A byte-level tokenizer.json: two special tokens, all bytes, and each of `words` with all its beginnings.
fn byte_level(split: &str, words: &[&str]) -> Json {
    let mut texts: Vec<String> = ["<|begin|>", "<|end|>"].map(String::from).into();
    texts.extend((0..=255).map(|byte| alphabet(byte).to_string()));
    let mut merges = vec![];
    for word in words {
        let mut letters = word.bytes().map(|byte| alphabet(byte).to_string());
        let mut left = letters.next().unwrap();
        for right in letters {
            let joined = format!("{left}{right}");
            if !texts.contains(&joined) {
                texts.push(joined.clone());
                merges.push(json!([left, right]));
            }
            left = joined;
        }
    }
    let special = |id: usize| {
        json!({"id": id, "content": texts[id], "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false})
    };
    let vocab: serde_json::Map<_, _> = texts.iter().cloned().zip((0..).map(|id| json!(id))).collect();
    json!({
        "version": "1.0", "added_tokens": [special(0), special(1)], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
        ]},
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": true, "vocab": vocab, "merges": merges}
    })
}

/// Names of the texts that differ.
struct Differing {
    /// The library on tokenizer.json, and the packed keys.
    own: Vec<&'static str>,
    /// The library on tokenizer.json, and llama.cpp as it is known here.
    known: Vec<&'static str>,
    /// llama.cpp as it is known here, and llama.cpp.
    llama_cpp: Vec<&'static str>,
}

fn read(files: &TokenizerFiles, rows: usize, eos: u32, pre: Option<&str>) -> Tokenizer {
    let ids = SpecialIds {
        bos: Some(1),
        eos: vec![eos],
        pad: None,
    };
    tokenizer::read(files, rows, &ids, pre).unwrap()
}

fn rows(json: &Json) -> usize {
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let ids = added.map(|token| &token["id"]).chain(vocab.values());
    ids.map(|id| id.as_u64().unwrap() as usize + 1).max().unwrap()
}

/// The hard texts by the keys of `tokenizer`, which was read from this tokenizer.json.
fn differing(json: &[u8], tokenizer: &Tokenizer) -> Differing {
    let bytes = gguf(tokenizer);
    let file = File::parse(&bytes).unwrap();
    let mut text = Text::from_gguf(&file).unwrap();
    let own = Own::from_json(json, []).unwrap();
    let of = |text: &Text| {
        let differs =
            |hard: &&&(&'static str, &str)| own.encode(hard.1).unwrap() != text.encode_with_specials(hard.1, false);
        HARD.iter().filter(|hard| differs(&hard)).map(|hard| hard.0).collect()
    };
    let ours = of(&text);
    text.split_as_llama_cpp().unwrap();
    Differing {
        own: ours,
        known: of(&text),
        llama_cpp: beside_llama_cpp(&bytes, &file, &text),
    }
}

#[cfg(feature = "llama")]
fn beside_llama_cpp(bytes: &[u8], file: &File, text: &Text) -> Vec<&'static str> {
    let llama = load(bytes, file);
    let differs = |hard: &str| {
        text.encode_with_specials(hard, false) != llama.tokenize(hard, false, true).unwrap()
            || text.encode(hard, false) != llama.tokenize(hard, false, false).unwrap()
    };
    HARD.iter().filter(|hard| differs(hard.1)).map(|hard| hard.0).collect()
}

#[cfg(not(feature = "llama"))]
fn beside_llama_cpp(_: &[u8], _: &File, _: &Text) -> Vec<&'static str> {
    println!("not compared with llama.cpp: built without the feature");
    vec![]
}

fn all_agree(json: &Json, pre: Option<&str>) {
    let tokenizer = read(&json_files(json), rows(json), 1, pre);
    let found = differing(json.to_string().as_bytes(), &tokenizer);
    assert_eq!((found.own, found.known, found.llama_cpp), (vec![], vec![], vec![]));
}

const WORDS: [&str; 9] = [
    "the",
    " the",
    " world",
    "Hello",
    " नमस्ते",
    " दुनिया",
    "สวัสดี",
    "வணக்கம்",
    "မင်္ဂလာပါ",
];

#[test]
fn a_plain_vocabulary_agrees_on_all() {
    all_agree(&byte_level(LLAMA3, &["the", " the", " and", "Hello", " world"]), None);
}

/// llama.cpp's words for tekken's expression leave out `\p{M}` (llama-vocab.cpp:425-430): which texts that concerns is
/// known without llama.cpp, and llama.cpp confirms it.
#[test]
fn combining_marks_end_words_in_llama_cpp_s_tekken() {
    let json = byte_level(TEKKEN, &WORDS);
    let tokenizer = read(&json_files(&json), rows(&json), 1, None);
    let found = differing(json.to_string().as_bytes(), &tokenizer);
    assert_eq!(found.own, [""; 0]);
    assert_eq!(found.llama_cpp, [""; 0]);
    for name in ["Hindi", "Thai", "Tamil", "Burmese"] {
        assert!(found.known.contains(&name), "{name}: {:?}", found.known);
    }
    assert!(!found.known.contains(&"plain words"));
}

/// llama.cpp's `falcon` for the steps of Falcon's own tokenizer.json.
#[test]
fn falcon_agrees_where_it_is_named() {
    let mut json = byte_level("", &["the", " the", " and", "Hello", " world"]);
    json["model"]["ignore_merges"] = false.into();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        {"type": "Digits", "individual_digits": false},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": false}
    ]});
    all_agree(&json, Some("falcon"));
}

/// A SentencePiece-like vocabulary with spaces as transformers 5 writes them.
#[test]
fn spaces_of_transformers_5_agree() {
    let letters = "▁etaoinshrdlucmfwypvbgkjxqzTHELWO".chars().map(String::from);
    let specials = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let merged = ["▁t", "▁th", "▁the", "▁▁"].map(String::from);
    let texts = specials.chain(bytes).chain(letters).chain(merged);
    let vocab: serde_json::Map<_, _> = texts.zip((0..).map(|id| json!(id))).collect();
    let special = |id: usize, content: &str| {
        json!({"id": id, "content": content, "special": true,
        "normalized": false, "single_word": false, "lstrip": false, "rstrip": false})
    };
    let json = json!({
        "version": "1.0", "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            {"type": "Replace", "pattern": {"Regex": "\\A▁"}, "content": "▁▁"}
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false}
        ]},
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocab,
            "merges": [["▁", "t"], ["▁t", "h"], ["▁th", "e"], ["▁", "▁"]]}
    });
    all_agree(&json, None);
}

/// Bytes without a token are lost; what stands around them is joined by the library and not by llama.cpp.
#[test]
fn only_texts_that_the_vocabulary_can_spell_are_compared() {
    let mut json = byte_level(LLAMA3, &["the", " the"]);
    let lost = json["model"]["vocab"].as_object_mut().unwrap();
    let id = lost.remove("z").unwrap();
    lost.insert("(z)".into(), id);
    let tokenizer = read(&json_files(&json), rows(&json), 1, None);
    let text = Text::from_keys(&tokenizer.metadata()).unwrap();
    assert!(text.can_spell("the world"));
    assert!(!text.can_spell("the lazy dog"));
    let spelled = HARD.iter().filter(|(_, hard)| text.can_spell(hard)).count();
    assert!((20..HARD.len()).contains(&spelled), "{spelled}");
}

/// Which tokens end a generation, and which are control tokens, with llama.cpp as the witness: by their texts, and by
/// the keys (llama-vocab.cpp:2720-3066).
#[test]
fn generation_ends_where_llama_cpp_ends() {
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &[
                "<|fim_prefix|>",
                "<|fim_suffix|>",
                "<|fim_middle|>",
                "<|fim_pad|>",
                "<|repo_name|>",
                "<|file_sep|>",
                "<|im_start|>",
                "<|im_end|>",
            ],
            &["<|end|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|im_end|>"],
        ),
        (
            &["<PRE>", "<SUF>", "<MID>", "<PAD>", "<REPO>", "[PAD]x"],
            &["<|end|>", "<PAD>", "<REPO>"],
        ),
        (
            &["<|return|>", "<|call|>", "<|channel|>", "<|message|>", "<|start|>"],
            &["<|return|>", "<|call|>"],
        ),
        (&["<|calls|>", "<|flush|>"], &["<|calls|>", "<|flush|>"]),
        (&["</s>", "<eos>", "<turn|>"], &["<|end|>", "</s>", "<eos>", "<turn|>"]),
        (&["</s>", "<|tool_response>"], &["<|end|>", "<|tool_response>"]),
    ];
    for (marks, ends) in cases {
        // In the vocabulary and nowhere else: text, as far as tokenizer.json says.
        let mut json = byte_level(LLAMA3, &["the"]);
        let first = rows(&json);
        for (mark, id) in marks.iter().zip(first..) {
            json["model"]["vocab"][*mark] = json!(id);
        }
        let eos = if ends.contains(&"<|end|>") { 1 } else { first as u32 };
        let tokenizer = read(&json_files(&json), rows(&json), eos, None);
        let bytes = gguf(&tokenizer);
        let file = File::parse(&bytes).unwrap();
        let text = Text::from_gguf(&file).unwrap();
        let found: Vec<_> = (0..text.len() as u32)
            .filter(|&id| text.is_end(id))
            .map(|id| tokenizer.tokens[id as usize].text.as_str())
            .collect();
        let mut expected = ends.to_vec();
        expected.sort();
        let mut sorted = found.clone();
        sorted.sort();
        assert_eq!(sorted, expected);
        #[cfg(feature = "llama")]
        {
            let llama = load(&bytes, &file);
            for id in 0..text.len() as u32 {
                let token = &tokenizer.tokens[id as usize].text;
                assert_eq!(text.is_end(id), llama.is_end(id).unwrap(), "{token}");
            }
            for mark in marks {
                let prompt = format!("the {mark}x {mark}");
                for special in [false, true] {
                    let ours = match special {
                        true => text.encode_with_specials(&prompt, false),
                        false => text.encode(&prompt, false),
                    };
                    assert_eq!(ours, llama.tokenize(&prompt, false, special).unwrap(), "{prompt}");
                }
            }
        }
    }
}

/// Keys for the marks of code to be filled in count before their texts.
#[test]
fn keys_name_marks_that_end() {
    let mut json = byte_level(LLAMA3, &["the"]);
    let first = rows(&json);
    json["model"]["vocab"]["<|fim_pad|>"] = json!(first);
    let tokenizer = read(&json_files(&json), rows(&json), 1, None);
    let with = |key: &str, id: u32| {
        let mut keys = tokenizer.metadata();
        keys.push((key.into(), Value::U32(id)));
        let text = Text::from_keys(&keys).unwrap();
        [2, first as u32].map(|id| text.is_end(id))
    };
    assert_eq!(with("tokenizer.ggml.fim_sep_token_id", 2), [true, true]);
    assert_eq!(with("tokenizer.ggml.fim_pad_token_id", 2), [true, false]);
    assert_eq!(with("tokenizer.ggml.fim_pad_token_id", 99_999), [false, true]);
    assert_eq!(with("tokenizer.ggml.fim_pre_token_id", 2), [false, true]);
}

/// Real tokenizers: those of the test data, and each `*/models/tokenizer.json` or `*.json` in `TQCONV_TOKENIZERS`.
#[test]
fn real_tokenizers_agree() {
    let mut paths: Vec<_> = [
        "tokenizers/gpt2.json",
        "smol8-tequila/tokenizer.json",
        "kjv-tequila/tokenizer.json",
    ]
    .iter()
    .filter_map(|path| data::find(path))
    .collect();
    if let Some(folder) = std::env::var_os("TQCONV_TOKENIZERS") {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let inner = path.join("models/tokenizer.json");
            paths.extend([inner].into_iter().filter(|path| path.exists()));
        }
    }
    for path in paths {
        let bytes = std::fs::read(&path).unwrap();
        let json: Json = serde_json::from_slice(&bytes).unwrap();
        let files = TokenizerFiles {
            tokenizer_json: Some(Content {
                name: path.display().to_string(),
                bytes: bytes.clone(),
            }),
            ..TokenizerFiles::default()
        };
        let ids = SpecialIds {
            bos: Some(0),
            eos: vec![0],
            pad: None,
        };
        let tokenizer = match tokenizer::read(&files, rows(&json), &ids, None) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("{}: refused: {error}", path.display());
                continue;
            }
        };
        let found = differing(&bytes, &tokenizer);
        let of = HARD.len();
        println!(
            "{}: of {of}: tqconv {} as tokenizer.json {:?}, llama.cpp {} {:?}, llama.cpp as known {}",
            path.display(),
            of - found.own.len(),
            found.own,
            of - found.known.len(),
            found.known,
            of - found.llama_cpp.len()
        );
        assert_eq!(found.llama_cpp, [""; 0]);
        // What the notes say of it is all that the packed keys do otherwise.
        let said = |text: &str| tokenizer.notes.iter().any(|note| note.contains(text));
        let mut expected = vec![];
        if said("is brought to NFC first") {
            expected.extend(["combining accents", "Korean"]);
        }
        if said("makes control tokens of") {
            expected.push("control tokens");
        }
        let left = found.own.iter().filter(|name| !expected.contains(name));
        assert_eq!(left.count(), 0, "{:?}", found.own);
    }
}

/// fixtures/kjv with another tokenizer.json.
fn kjv_with(folder: &Path, change: impl FnOnce(&mut Json)) {
    for name in [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ] {
        std::fs::copy(data::fixture("kjv").join(name), folder.join(name)).unwrap();
    }
    let json = std::fs::read(data::fixture("kjv").join("tokenizer.json")).unwrap();
    let mut json: Json = serde_json::from_slice(&json).unwrap();
    change(&mut json);
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
}

/// Makes the last token of `json` out of these two.
fn join_last(json: &mut Json, left: &str, right: &str) {
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    let old = merges.pop().unwrap();
    merges.push(json!([left, right]));
    let text = |part: &Json| part.as_str().unwrap().to_owned();
    let old = text(&old[0]) + &text(&old[1]);
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let id = vocab.remove(&old).unwrap();
    vocab.insert(format!("{left}{right}"), id);
}

/// The report of `verify --levels 1,2` and its exit code.
fn verify(bench: &Bench, file: &Path, against: &Path) -> (Option<i32>, Json) {
    let (file, against) = (file.to_str().unwrap(), against.to_str().unwrap());
    let ran = bench.run(&["verify", file, "--against", against, "--levels", "1,2", "--json"]);
    (ran.status.code(), serde_json::from_slice(&ran.stdout).unwrap())
}

fn notes(report: &Json) -> String {
    let notes = report["notes"].as_array().unwrap().iter();
    notes.map(|note| note.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn pack_and_verify_name_the_texts_that_llama_cpp_splits_otherwise() {
    let (folder, bench) = (tempfile::tempdir().unwrap(), Bench::new());
    // The last byte of a letter of Hindi, and the first of the mark that follows: within a word for tekken's expression.
    kjv_with(folder.path(), |json| {
        json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = TEKKEN.into();
        join_last(json, "¨", "à");
    });
    let (_, packed) = bench.pack(folder.path(), "");
    let noted = format!("llama.cpp splits 1 of {} test texts otherwise: Hindi", HARD.len());
    assert!(notes(&packed).contains(&noted), "{}", notes(&packed));
    let (code, report) = verify(&bench, &bench.path("out.gguf"), folder.path());
    assert_eq!(code, Some(0));
    assert!(
        notes(&report).contains("test texts get other ids: Hindi"),
        "{}",
        notes(&report)
    );
}

/// A normalizer that llama.cpp does not have: a note, and the texts that it changes; all else is compared.
#[test]
fn texts_that_a_normalizer_changes_are_named() {
    let (folder, bench) = (tempfile::tempdir().unwrap(), Bench::new());
    kjv_with(folder.path(), |json| json["normalizer"] = json!({"type": "NFC"}));
    let (_, packed) = bench.pack(folder.path(), "");
    let noted = "llama.cpp and `tqconv run` split 2 of";
    assert!(notes(&packed).contains(noted), "{}", notes(&packed));
    assert!(
        notes(&packed).contains("otherwise: combining accents, Korean"),
        "{}",
        notes(&packed)
    );
    let (code, report) = verify(&bench, &bench.path("out.gguf"), folder.path());
    assert_eq!(code, Some(0));
    assert!(notes(&report).contains("text is brought to NFC first"));
    assert!(
        notes(&report).contains("no place for its normalizer: 2 of"),
        "{}",
        notes(&report)
    );
}

#[test]
fn a_wrong_way_of_splitting_is_caught() {
    let (folder, bench) = (tempfile::tempdir().unwrap(), Bench::new());
    kjv_with(folder.path(), |json| join_last(json, "1", "2"));
    let (_, packed) = bench.pack(folder.path(), "--tokenizer-pre qwen2");
    let notes = packed["notes"].to_string();
    assert!(notes.contains("digits"), "{notes}");
    let (code, report) = verify(&bench, &bench.path("out.gguf"), folder.path());
    assert_eq!(code, Some(1));
    let checks = report["levels"][1]["checks"].as_array().unwrap();
    let failed: Vec<_> = checks.iter().filter(|check| check["pass"] == false).collect();
    let names: Vec<_> = failed.iter().map(|check| check["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tokenizer keys", "texts split as tokenizer.json splits them"]);
    let details = failed[1]["details"].to_string();
    assert!(details.contains("digits: token "), "{details}");
}
