//! The smallest files that show each rule, and each error.

use serde_json::{Value as Json, json};

use super::*;

mod files;

/// A byte-level vocabulary of four texts and an end.
fn byte_level() -> Json {
    json!({
        "added_tokens": [{"id": 4, "content": "<|endoftext|>", "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<|endoftext|>": 4},
            "merges": ["a b"]
        }
    })
}

/// The JSON of a vocabulary with byte fallback: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3..259 bytes, then pieces.
fn with_fallback() -> Json {
    let mut vocab = serde_json::Map::new();
    let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
    let pieces = ["▁", "a", "b", "▁a", "ab"].map(String::from);
    let texts = ["<unk>", "<s>", "</s>"]
        .map(String::from)
        .into_iter()
        .chain(bytes)
        .chain(pieces);
    vocab.extend(texts.zip(0..).map(|(text, id)| (text, json!(id))));
    json!({
        "added_tokens": [
            {"id": 0, "content": "<unk>", "special": true},
            {"id": 1, "content": "<s>", "special": true},
            {"id": 2, "content": "</s>", "special": true}
        ],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        ]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        ]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "vocab": vocab,
            "merges": [["a", "b"], ["▁", "a"]]
        }
    })
}

fn content(name: &str, bytes: impl Into<Vec<u8>>) -> Option<Content> {
    Some(Content {
        name: name.into(),
        bytes: bytes.into(),
    })
}

fn files(json: &Json) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer_json: content("tokenizer.json", json.to_string()),
        ..TokenizerFiles::default()
    }
}

fn config(json: &Json, config: Json) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer_config: content("tokenizer_config.json", config.to_string()),
        ..files(json)
    }
}

/// With `eos_token_id` 4.
fn read_rows(files: &TokenizerFiles, rows: usize) -> Result<Tokenizer, TokenizerError> {
    read(
        files,
        rows,
        &SpecialIds {
            eos: vec![4],
            ..SpecialIds::default()
        },
        None,
    )
}

fn error(json: &Json) -> TokenizerError {
    read_rows(&files(json), 300).unwrap_err()
}

/// The error of a changed byte-level file, as people read it.
fn message(change: impl FnOnce(&mut Json)) -> String {
    let mut json = byte_level();
    change(&mut json);
    error(&json).to_string()
}

fn value<'a>(metadata: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    metadata.iter().find(|(found, _)| found == key).map(|(_, value)| value)
}

#[test]
fn writes_what_llama_cpp_reads() {
    let metadata = read_rows(&files(&byte_level()), 6).unwrap().metadata();
    let strings = |texts: &[&str]| Value::Array(Array::String(texts.iter().map(|text| text.to_string()).collect()));
    let expected = [
        ("tokenizer.ggml.model", Value::String("gpt2".into())),
        ("tokenizer.ggml.pre", Value::String("gpt-2".into())),
        (
            "tokenizer.ggml.tokens",
            strings(&["a", "b", "ab", "Ġ", "<|endoftext|>", "[PAD5]"]),
        ),
        (
            "tokenizer.ggml.token_type",
            Value::Array(Array::I32(vec![1, 1, 1, 1, 3, 5])),
        ),
        ("tokenizer.ggml.merges", strings(&["a b"])),
        ("tokenizer.ggml.bos_token_id", Value::U32(4)),
        ("tokenizer.ggml.eos_token_id", Value::U32(4)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
    ];
    for (key, expected) in &expected {
        assert_eq!(value(&metadata, key), Some(expected), "{key}");
    }
    assert_eq!(metadata.len(), expected.len());
}

#[test]
fn holes_are_padded_with_texts_of_their_own() {
    let mut json = byte_level();
    json["model"]["vocab"]["[PAD6]"] = json!(7);
    let tokenizer = read_rows(&files(&json), 8).unwrap();
    let texts: Vec<_> = tokenizer.tokens[5..].iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts, ["[PAD5]", "[PAD6]_", "[PAD6]"]);
    assert_eq!(tokenizer.tokens[6].kind, TokenType::Unused);
}

#[test]
fn merges_may_be_pairs_with_spaces() {
    let mut json = byte_level();
    json["model"]["vocab"]["Ġa"] = json!(5);
    json["model"]["merges"] = json!([[" ", "a"], ["a", "b"]]);
    let Model::ByteLevel { merges, .. } = read_rows(&files(&json), 6).unwrap().model else {
        panic!()
    };
    assert_eq!(merges, ["Ġ a", "a b"]);
}

#[test]
fn ignore_merges_decides_between_names() {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let name = |expression: &str, ignore_merges: Json| {
        let mut json = byte_level();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}
        ]});
        json["model"]["ignore_merges"] = ignore_merges;
        match read_rows(&files(&json), 5).unwrap().model {
            Model::ByteLevel { pre, .. } => pre,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(name(LLAMA3, json!(true)), "llama-bpe");
    assert_eq!(name(LLAMA3, json!(false)), "smaug-bpe");
    assert_eq!(name(&LLAMA3.replace("{1,3}", ""), json!(false)), "qwen2");
    // Line ends may stand for themselves.
    assert_eq!(name(&LLAMA3.replace(r"\r\n", "\r\n"), json!(true)), "llama-bpe");
}

#[test]
fn digits_before_gpt2_are_smollm() {
    let mut json = byte_level();
    json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": true},
        {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true}
    ]});
    let Model::ByteLevel { pre, .. } = read_rows(&files(&json), 5).unwrap().model else {
        panic!()
    };
    assert_eq!(pre, "smollm");
}

#[test]
fn an_unknown_pre_tokenizer_names_its_expression_and_the_remedy() {
    let text = message(|json| {
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "[xyz]+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}
        ]});
    });
    for part in ["tokenizer.json", "[xyz]+", "llama-bpe, ", "--tokenizer-pre NAME"] {
        assert!(text.contains(part), "{text}");
    }
    // A space in front, and steps after the byte alphabet, are not llama.cpp's way either.
    let prefixed = |json: &mut Json| json["pre_tokenizer"]["add_prefix_space"] = json!(true);
    assert!(message(prefixed).contains("\"add_prefix_space\":true"));
    let step = json!({"type": "ByteLevel", "add_prefix_space": false});
    let twice = json!({"type": "Sequence", "pretokenizers": [step, step]});
    assert!(message(|json| json["pre_tokenizer"] = twice).contains("after ByteLevel"));
}

#[test]
fn the_override_must_be_a_name_of_llama_cpp() {
    let mut json = byte_level();
    json["pre_tokenizer"]["add_prefix_space"] = json!(true);
    let ids = SpecialIds {
        eos: vec![4],
        ..SpecialIds::default()
    };
    let Model::ByteLevel { pre, .. } = read(&files(&json), 5, &ids, Some("falcon")).unwrap().model else {
        panic!()
    };
    assert_eq!(pre, "falcon");
    let error = read(&files(&json), 5, &ids, Some("lama-bpe")).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::UnknownPreName { found, known } if found == "lama-bpe" && known.contains("smaug-bpe"))
    );
    let error = read(&files(&with_fallback()), 300, &ids, Some("falcon")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("--tokenizer-pre with a SentencePiece vocabulary")
    );
}

#[test]
fn texts_and_ids_are_unique() {
    let text =
        r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}, "model": {"vocab": {"a": 0, "a": 1}}}"#;
    let repeated = TokenizerFiles {
        tokenizer_json: content("tokenizer.json", text),
        ..TokenizerFiles::default()
    };
    let error = read_rows(&repeated, 5).unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::DuplicateText {
                first: 0,
                second: 1,
                ..
            }
        ),
        "{error}"
    );
    let text = message(|json| json["model"]["vocab"]["c"] = json!(0));
    assert_eq!(
        text,
        "tokenizer.json: token 0 is \"a\" and \"c\"; ids must be unique, remove one"
    );
    let text = message(|json| json["added_tokens"][0]["id"] = json!(1));
    assert_eq!(
        text,
        "tokenizer.json: token 1 is \"b\" and \"<|endoftext|>\"; ids must be unique, remove one"
    );
}

#[test]
fn every_token_has_a_row() {
    let error = read_rows(&files(&byte_level()), 4).unwrap_err();
    assert!(matches!(error, TokenizerError::NoRow { id: 4, rows: 4, .. }), "{error}");
    let text = message(|json| json["model"]["vocab"]["c"] = json!(u64::MAX));
    assert!(text.contains("18446744073709551615"), "{text}");
    let text = message(|json| json["model"]["vocab"]["c"] = json!(-1));
    assert!(
        text.starts_with("tokenizer.json: invalid value: integer `-1`"),
        "{text}"
    );
}

#[test]
fn merges_join_tokens_to_a_token() {
    for merges in [json!(["a c"]), json!([["a", "c"]])] {
        let error = error(&{
            let mut json = byte_level();
            json["model"]["merges"] = merges;
            json
        });
        assert!(
            matches!(&error, TokenizerError::MergeOfUnknown { index: 0, missing, .. } if missing == "c"),
            "{error}"
        );
    }
    let text = message(|json| json["model"]["merges"] = json!(["a b", "b a"]));
    assert!(
        text.contains("merge 1 (\"b\" + \"a\") needs the token \"ba\""),
        "{text}"
    );
    for merge in [
        json!("ab"),
        json!("a b c"),
        json!(["a"]),
        json!(["a", "b", "c"]),
        json!(["", "a"]),
        json!(7),
    ] {
        assert!(message(|json| json["model"]["merges"] = json!([merge])).contains("left right"));
    }
}

#[test]
fn other_models_are_refused_by_name() {
    let unigram = json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}});
    assert!(error(&unigram).to_string().contains("a model of type \"Unigram\""));
    let wordpiece = json!({"model": {"type": "WordPiece", "vocab": {"a": 0}}});
    assert!(error(&wordpiece).to_string().contains("a model of type \"WordPiece\""));
    let plain = message(|json| json["pre_tokenizer"] = json!({"type": "Whitespace"}));
    assert!(plain.contains("without byte_fallback"), "{plain}");
    let affixed = message(|json| json["model"]["continuing_subword_prefix"] = json!("##"));
    assert!(affixed.contains("model.continuing_subword_prefix \"##\""), "{affixed}");
    let lower = message(|json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(lower.contains("normalizer"), "{lower}");
    let mut composed = byte_level();
    composed["normalizer"] = json!({"type": "NFC"});
    assert_eq!(read_rows(&files(&composed), 5).unwrap().notes.len(), 1);
}

#[test]
fn damaged_json_is_an_error() {
    let whole = byte_level().to_string();
    for end in 0..whole.len() {
        let cut = TokenizerFiles {
            tokenizer_json: content("tokenizer.json", &whole[..whole.floor_char_boundary(end)]),
            ..TokenizerFiles::default()
        };
        assert!(matches!(read_rows(&cut, 5), Err(TokenizerError::Json { .. })), "{end}");
    }
    let deep = TokenizerFiles {
        tokenizer_json: content("tokenizer.json", "[".repeat(200_000)),
        ..TokenizerFiles::default()
    };
    assert!(matches!(read_rows(&deep, 5), Err(TokenizerError::Json { .. })));
    let deep = format!(r#"{{"pre_tokenizer": {}"#, "{\"pretokenizers\": [".repeat(100_000));
    let deep = TokenizerFiles {
        tokenizer_json: content("tokenizer.json", deep),
        ..TokenizerFiles::default()
    };
    assert!(matches!(read_rows(&deep, 5), Err(TokenizerError::Json { .. })));
    assert!(message(|json| json["model"]["vocab"] = json!({})).contains("model.vocab: found no token"));
    let error = read_rows(&config(&byte_level(), json!([])), 5).unwrap_err();
    assert!(matches!(error, TokenizerError::Key { .. }), "{error}");
    assert!(matches!(
        read_rows(&TokenizerFiles::default(), 5),
        Err(TokenizerError::Missing { .. })
    ));
}

#[test]
fn added_tokens_come_from_three_files() {
    let mut all = config(
        &byte_level(),
        json!({"added_tokens_decoder": {
            "5": {"content": "<|turn|>", "special": false}, "6": {"content": "<tool>", "special": true}
        }}),
    );
    all.added_tokens = content("added_tokens.json", r#"{"<think>": 7}"#);
    let tokenizer = read_rows(&all, 8).unwrap();
    let added: Vec<_> = tokenizer.tokens[5..]
        .iter()
        .map(|token| (token.text.as_str(), token.kind))
        .collect();
    assert_eq!(
        added,
        [
            ("<|turn|>", TokenType::Control),
            ("<tool>", TokenType::Control),
            ("<think>", TokenType::UserDefined)
        ]
    );
    let wrong = config(
        &byte_level(),
        json!({"added_tokens_decoder": {"five": {"content": "x"}}}),
    );
    assert!(
        read_rows(&wrong, 8)
            .unwrap_err()
            .to_string()
            .contains("added_tokens_decoder.five")
    );
    all.added_tokens = content("added_tokens.json", r#"{"<think>": "7"}"#);
    assert!(
        read_rows(&all, 8)
            .unwrap_err()
            .to_string()
            .contains("found \"7\", expected a token id")
    );
}

#[test]
fn special_tokens_are_looked_up_by_name_then_by_id() {
    let named = config(
        &byte_level(),
        json!({
            "bos_token": "a", "eos_token": {"content": "b"}, "pad_token": "nowhere",
            "add_bos_token": true, "add_eos_token": true
        }),
    );
    let tokenizer = read_rows(&named, 5).unwrap();
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.pad), (0, 1, None));
    assert!(tokenizer.add_bos && tokenizer.add_eos);
    assert_eq!(tokenizer.tokens[0].kind, TokenType::Control);
    assert_eq!(tokenizer.tokens[2].kind, TokenType::Normal);
    assert!(tokenizer.notes[0].contains("pad_token \"nowhere\" is no token"));

    let ids = SpecialIds {
        bos: Some(0),
        eos: vec![2, 3],
        pad: Some(1),
    };
    let tokenizer = read(&files(&byte_level()), 5, &ids, None).unwrap();
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.pad), (0, 2, Some(1)));

    let unknown = config(&byte_level(), json!({"eos_token": "</s>"}));
    assert!(matches!(
        read_rows(&unknown, 5),
        Err(TokenizerError::UnknownSpecial { .. })
    ));
    let wrong = config(&byte_level(), json!({"eos_token": 4}));
    assert!(matches!(read_rows(&wrong, 5), Err(TokenizerError::Key { .. })));
    let wrong = config(&byte_level(), json!({"add_bos_token": "yes"}));
    assert!(matches!(read_rows(&wrong, 5), Err(TokenizerError::Key { .. })));
    let ids = SpecialIds {
        eos: vec![5],
        ..SpecialIds::default()
    };
    let error = read(&files(&byte_level()), 5, &ids, None).unwrap_err();
    assert!(
        matches!(
            error,
            TokenizerError::SpecialOutOfRange {
                key: "eos_token_id",
                id: 5,
                rows: 5,
                ..
            }
        ),
        "{error}"
    );
    let error = read(&files(&byte_level()), 5, &SpecialIds::default(), None).unwrap_err();
    assert!(
        matches!(error, TokenizerError::NoSpecial { key: "eos_token", .. }),
        "{error}"
    );
    let error = read_rows(&config(&byte_level(), json!({"add_bos_token": true})), 5).unwrap_err();
    assert!(
        matches!(error, TokenizerError::NoSpecial { key: "bos_token", .. }),
        "{error}"
    );
}

#[test]
fn ends_that_no_text_tells_get_keys() {
    let ids = |eos: &[u32]| SpecialIds {
        eos: eos.to_vec(),
        ..SpecialIds::default()
    };
    let tokenizer = read(&files(&byte_level()), 5, &ids(&[0, 4, 1, 2]), None).unwrap();
    assert_eq!((tokenizer.eos, tokenizer.more_ends.as_slice()), (0, [1, 2].as_slice()));
    let metadata = tokenizer.metadata();
    assert_eq!(value(&metadata, "tokenizer.ggml.eot_token_id"), Some(&Value::U32(1)));
    assert_eq!(value(&metadata, "tokenizer.ggml.eom_token_id"), Some(&Value::U32(2)));
    let tokenizer = read(&files(&byte_level()), 5, &ids(&[0, 1, 2, 3]), None).unwrap();
    assert!(
        tokenizer.notes[0].contains("left out are 3 (\"Ġ\")"),
        "{:?}",
        tokenizer.notes
    );
    assert!(matches!(
        read(&files(&byte_level()), 5, &ids(&[0, 9]), None),
        Err(TokenizerError::SpecialOutOfRange { .. })
    ));
}

#[test]
fn merges_become_scores() {
    let tokenizer = read(
        &files(&with_fallback()),
        270,
        &SpecialIds {
            eos: vec![2],
            ..SpecialIds::default()
        },
        None,
    )
    .unwrap();
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: true });
    let piece = |text: &str| tokenizer.tokens.iter().find(|token| token.text == text).unwrap();
    assert_eq!(piece("ab").score, 0.0);
    assert_eq!(piece("▁a").score, -1.0);
    assert_eq!(piece("a").score, -2.0);
    assert_eq!(piece("<0x0A>").kind, TokenType::Byte);
    assert_eq!(piece("<unk>").kind, TokenType::Unknown);
    assert_eq!(piece("</s>").kind, TokenType::Control);
    assert_eq!((tokenizer.bos, tokenizer.unk, tokenizer.add_bos), (1, Some(0), true));
    let metadata = tokenizer.metadata();
    assert_eq!(
        value(&metadata, "tokenizer.ggml.model"),
        Some(&Value::String("llama".into()))
    );
    assert_eq!(
        value(&metadata, "tokenizer.ggml.add_space_prefix"),
        Some(&Value::Bool(true))
    );
}

#[test]
fn spaces_and_missing_merges_of_pieces() {
    let ids = SpecialIds {
        eos: vec![2],
        ..SpecialIds::default()
    };
    let mut json = with_fallback();
    json["normalizer"] = Json::Null;
    json["pre_tokenizer"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": true});
    json["model"]["vocab"]["ba"] = json!(264);
    json["model"]["vocab"]["aba"] = json!(265);
    json["model"]["merges"] = json!(["a b", "b a", "ab a"]);
    let tokenizer = read(&files(&json), 270, &ids, None).unwrap();
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: false });
    assert!(
        tokenizer.notes[0].contains("1 of 3 merged pieces"),
        "{:?}",
        tokenizer.notes
    );

    json["model"]["vocab"]["a▁b"] = json!(266);
    assert!(matches!(
        read(&files(&json), 270, &ids, None),
        Err(TokenizerError::Unsupported { .. })
    ));
    json["pre_tokenizer"]["split"] = json!(false);
    assert!(read(&files(&json), 270, &ids, None).is_ok());
    json["pre_tokenizer"] = json!({"type": "Whitespace"});
    assert!(matches!(
        read(&files(&json), 270, &ids, None),
        Err(TokenizerError::Unsupported { .. })
    ));
    let mut json = with_fallback();
    json["normalizer"]["normalizers"][0] = json!({"type": "Lowercase"});
    assert!(matches!(
        read(&files(&json), 270, &ids, None),
        Err(TokenizerError::Unsupported { .. })
    ));
    let mut json = with_fallback();
    json["model"]["vocab"].as_object_mut().unwrap().remove("<0x0A>");
    let error = read(&files(&json), 270, &ids, None).unwrap_err();
    assert!(
        matches!(&error, TokenizerError::NoByteToken { missing, .. } if missing == "<0x0A>"),
        "{error}"
    );
}

/// A protobuf field with bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2, bytes.len() as u8];
    field.extend(bytes);
    field
}

fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut piece = field(1, text.as_bytes());
    piece.push(2 << 3 | 5);
    piece.extend(score.to_le_bytes());
    piece.extend([3 << 3, kind]);
    field(1, &piece)
}

/// `<unk>`, `<s>`, `</s>`, the bytes, and `more`; then a trainer of this type and an identity normalizer.
fn model(more: &[Vec<u8>], model_type: u8) -> Vec<u8> {
    let mut bytes = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3)].concat();
    bytes.extend((0..=255).flat_map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, 6)));
    bytes.extend(more.concat());
    bytes.extend(field(2, &[3 << 3, model_type]));
    bytes.extend(field(3, &[3 << 3, 1, 4 << 3, 0]));
    bytes
}

fn model_files(bytes: impl Into<Vec<u8>>) -> TokenizerFiles {
    TokenizerFiles {
        tokenizer_model: content("tokenizer.model", bytes),
        ..TokenizerFiles::default()
    }
}

fn read_model(files: &TokenizerFiles) -> Result<Tokenizer, TokenizerError> {
    read(files, 300, &SpecialIds::default(), None)
}

#[test]
fn a_model_has_scores_types_and_ids() {
    let more = [piece("▁a", -1.5, 1), piece("▁▁", 0.0, 4), piece("x", -2.0, 5)];
    let mut files = model_files(model(&more, 2));
    files.tokenizer_config = content(
        "tokenizer_config.json",
        r#"{"added_tokens_decoder": {"0": {"content": "<unk>", "special": true}, "261": {"content": "▁y"}}}"#,
    );
    files.added_tokens = content("added_tokens.json", r#"{"<pad>": 262}"#);
    let tokenizer = read_model(&files).unwrap();
    assert_eq!(
        (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad),
        (1, 2, Some(0), None)
    );
    assert_eq!((tokenizer.add_bos, tokenizer.add_eos), (true, false));
    let token = |id: usize| {
        (
            tokenizer.tokens[id].text.as_str(),
            tokenizer.tokens[id].score,
            tokenizer.tokens[id].kind,
        )
    };
    assert_eq!(token(0), ("<unk>", 0.0, TokenType::Unknown));
    assert_eq!(token(259), ("▁a", -1.5, TokenType::Normal));
    assert_eq!(token(260), ("  ", 0.0, TokenType::UserDefined));
    // Another file may rename a piece.
    assert_eq!(token(261), (" y", -1000.0, TokenType::UserDefined));
    assert_eq!(token(262), ("<pad>", -1000.0, TokenType::UserDefined));
    assert_eq!(token(263), ("[PAD263]", -10000.0, TokenType::Unused));
    let metadata = tokenizer.metadata();
    assert!(
        matches!(value(&metadata, "tokenizer.ggml.scores"), Some(Value::Array(Array::F32(scores))) if scores.len() == 300)
    );
}

#[test]
fn other_sentencepiece_models_are_refused() {
    let message = |bytes: Vec<u8>| read_model(&model_files(bytes)).unwrap_err().to_string();
    assert!(message(model(&[], 1)).contains("of type UNIGRAM"));
    assert!(message(b"IQ== 0\nIg== 1\n".to_vec()).contains("a tiktoken vocabulary"));
    let suffix = [model(&[], 2), field(2, &[3 << 3, 2, 0xC0, 1, 1])].concat();
    assert!(message(suffix).contains("treat_whitespace_as_suffix"));
    let folded = [
        model(&[], 2),
        field(3, &[field(1, b"nmt_nfkc_cf"), field(2, b"map")].concat()),
    ]
    .concat();
    assert!(message(folded).contains("nmt_nfkc_cf"));
    let cleaned = [
        model(&[], 2),
        field(3, &[field(1, b"nmt_nfkc"), field(2, b"map")].concat()),
    ]
    .concat();
    assert_eq!(read_model(&model_files(cleaned)).unwrap().notes.len(), 2);
    assert!(message(model(&[piece("a", f32::NAN, 1)], 2)).contains("score is not a number"));
    assert!(message(model(&[piece("a", 0.0, 7)], 2)).contains("type that is not 1 to 6"));
    assert!(message(model(&[piece("a", 0.0, 1), piece("a", 0.0, 1)], 2)).contains("token 259 and to token 260"));
    assert!(message(model(&[field(1, &field(1, &[0xFF]))], 2)).contains("not UTF-8"));
}

#[test]
fn damaged_models_are_errors() {
    let whole = model(&[], 2);
    for end in 0..whole.len() {
        assert!(read_model(&model_files(&whole[..end])).is_err(), "{end}");
    }
    let error = |bytes: &[u8]| read_model(&model_files(bytes)).unwrap_err().to_string();
    assert_eq!(
        error(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F]),
        "tokenizer.model: byte 6: a field goes past the end of its message; expected a SentencePiece model, copy the file again"
    );
    assert!(error(&[0xFF; 11]).contains("byte 0: a varint does not fit 64 bits"));
    assert!(error(&[0x0F]).contains("byte 0: a field has an unknown wire type"));
    assert!(error(b"").contains("no piece found"));
    assert!(error(b"<html>").contains("tokenizer.model: byte "));
}

#[test]
fn files_are_found_in_a_folder_or_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = TokenizerFiles::open(folder.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::Missing { .. }), "{error}");
    std::fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), r#"{"eos_token": "ab"}"#).unwrap();
    assert_eq!(
        read_rows(&TokenizerFiles::open(folder.path()).unwrap(), 5).unwrap().eos,
        2
    );
    let other = folder.path().join("other.bin");
    std::fs::write(&other, model(&[], 2)).unwrap();
    let files = TokenizerFiles::open(&other).unwrap();
    assert!(files.tokenizer_model.is_some() && files.tokenizer_json.is_none() && files.tokenizer_config.is_some());

    let absent = TokenizerFiles::open(&folder.path().join("absent")).unwrap_err();
    assert!(matches!(absent, TokenizerError::Io { .. }), "{absent}");
    std::fs::create_dir(folder.path().join("tokenizer.model")).unwrap();
    let error = TokenizerFiles::open(folder.path()).unwrap_err();
    assert!(matches!(error, TokenizerError::NotAFile { .. }), "{error}");
}
