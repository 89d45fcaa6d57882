//! Files that say the same thing differently: which of them transformers follows.

use super::*;

fn eos_2() -> SpecialIds {
    SpecialIds {
        eos: vec![2],
        ..SpecialIds::default()
    }
}

fn notes_with<'a>(tokenizer: &'a Tokenizer, text: &str) -> Vec<&'a String> {
    tokenizer.notes.iter().filter(|note| note.contains(text)).collect()
}

/// tokenization_utils_base.py: "If independent chat template file(s) exist, they take priority over template entries in
/// the tokenizer config"; chat_template.json is older than both.
#[test]
fn the_template_of_a_file_of_its_own_wins() {
    let template = |files: &TokenizerFiles| read_rows(files, 5).map(|tokenizer| tokenizer.chat_template);
    let mut all = config(&byte_level(), json!({"chat_template": "one"}));
    all.chat_template_json = content("chat_template.json", r#"{"chat_template": "three"}"#);
    assert_eq!(template(&all).unwrap().as_deref(), Some("one"));
    all.chat_template_jinja = content("chat_template.jinja", "two");
    assert_eq!(template(&all).unwrap().as_deref(), Some("two"));
    let tokenizer = read_rows(&all, 5).unwrap();
    let noted = notes_with(&tokenizer, "that of chat_template.jinja is taken");
    assert_eq!(noted.len(), 2, "{:?}", tokenizer.notes);
    all.chat_template_jinja = content("chat_template.jinja", "one\n");
    all.chat_template_json = None;
    assert_eq!(read_rows(&all, 5).unwrap().notes, [""; 0]);

    let long = "x".repeat((1 << 20) + 1);
    let long = config(&byte_level(), json!({"chat_template": long}));
    assert!(matches!(template(&long), Err(TokenizerError::TooLarge { .. })));
    all.chat_template_jinja = content("chat_template.jinja", [0xFF]);
    assert!(matches!(template(&all), Err(TokenizerError::Key { .. })));
}

#[test]
fn of_named_templates_the_default_is_taken() {
    let list = json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]);
    for named in [list, json!({"tool_use": "t", "default": "d"})] {
        let tokenizer = read_rows(&config(&byte_level(), json!({"chat_template": named})), 5).unwrap();
        assert_eq!(tokenizer.chat_template.as_deref(), Some("d"));
        assert_eq!(notes_with(&tokenizer, "template \"tool_use\" is left out").len(), 1);
    }
    for wrong in [json!(7), json!([{"name": "default"}]), json!({"default": 7})] {
        let files = config(&byte_level(), json!({"chat_template": wrong}));
        assert!(matches!(read_rows(&files, 5), Err(TokenizerError::Key { .. })));
    }
}

/// transformers reads each `additional_chat_templates/NAME.jinja` after chat_template.jinja, under its name.
#[test]
fn additional_templates_are_found_in_their_folder() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    write("tokenizer.json", &byte_level().to_string());
    write("chat_template.jinja", "file");
    write("additional_chat_templates/rag.jinja", "rag");
    write("additional_chat_templates/readme.txt", "");
    let read = || read_rows(&TokenizerFiles::open(folder.path()).unwrap(), 5).unwrap();
    assert_eq!(read().chat_template.as_deref(), Some("file"));
    assert_eq!(read().notes.len(), 1);
    assert_eq!(
        notes_with(&read(), "template \"rag\" of additional_chat_templates is left out").len(),
        1
    );
    write("additional_chat_templates/default.jinja", "folder");
    assert_eq!(read().chat_template.as_deref(), Some("folder"));
}

/// generation/utils.py: `generate` stops at `generation_config.eos_token_id`, one id or a list.
#[test]
fn generation_config_names_the_ends() {
    let read_ends = |text: &str| {
        let mut files = files(&byte_level());
        files.generation_config = content("generation_config.json", text);
        read(
            &files,
            5,
            &SpecialIds {
                eos: vec![4, 3],
                ..SpecialIds::default()
            },
            None,
        )
    };
    let ends = |text: &str| read_ends(text).map(|t| (t.eos, t.more_ends)).unwrap();
    assert_eq!(ends(r#"{"eos_token_id": [4, 1]}"#), (4, vec![1]));
    assert_eq!(ends(r#"{"eos_token_id": 2}"#), (2, vec![]));
    assert_eq!(ends(r#"{"eos_token_id": [2, -1, 1, 1]}"#), (2, vec![1]));
    assert_eq!(ends(r#"{"eos_token_id": null}"#), (4, vec![3]));
    assert_eq!(ends(r#"{"temperature": 1.0}"#), (4, vec![3]));
    let full = read_ends(r#"{"eos_token_id": [4, 0, 1, 2]}"#).unwrap();
    assert_eq!(full.notes.len(), 1);
    assert!(full.notes[0].contains("generation_config.json: eos_token_id: a GGUF file has room for two"));
    for wrong in ["\"4\"", "1.5", "[4, null]", "4294967296"] {
        let error = read_ends(&format!("{{\"eos_token_id\": {wrong}}}")).unwrap_err();
        assert!(matches!(error, TokenizerError::Key { .. }), "{wrong}: {error}");
    }
    let error = read_ends(r#"{"eos_token_id": [4, 9]}"#).unwrap_err().to_string();
    assert!(
        error.starts_with("generation_config.json: eos_token_id is 9, the vocabulary has 5"),
        "{error}"
    );
}

/// The eos_token of the tokenizer stays the end of text, and llama.cpp ends there whatever generation_config.json says.
#[test]
fn an_end_that_generate_does_not_have_is_noted() {
    let mut files = config(&byte_level(), json!({"eos_token": "b"}));
    files.generation_config = content("generation_config.json", r#"{"eos_token_id": 4}"#);
    let tokenizer = read_rows(&files, 5).unwrap();
    assert_eq!((tokenizer.eos, tokenizer.more_ends.as_slice()), (1, [].as_slice()));
    assert_eq!(notes_with(&tokenizer, "leaves out the eos_token 1 (\"b\")").len(), 1);
}

#[test]
fn a_token_without_a_row_is_left_out_unless_it_is_used() {
    let pad = json!({"id": 5, "content": "[PAD]", "special": true});
    let mut json = byte_level();
    json["added_tokens"].as_array_mut().unwrap().push(pad);
    let by_tokenizer = files(&json);
    let mut by_added = files(&byte_level());
    by_added.added_tokens = content("added_tokens.json", r#"{"[PAD]": 5}"#);
    let decoder = json!({"5": {"content": "[PAD]", "special": true}});
    let by_config = config(
        &byte_level(),
        json!({"added_tokens_decoder": decoder, "chat_template": "<|im_end|>"}),
    );
    for files in [by_tokenizer, by_added, by_config] {
        let tokenizer = read_rows(&files, 5).unwrap();
        assert_eq!(tokenizer.tokens.len(), 5);
        assert_eq!(
            notes_with(&tokenizer, "\"[PAD]\" has id 5, and the embedding 5 rows").len(),
            1
        );
        assert_eq!(tokenizer.notes.len(), 1);
    }
    for uses in [json!({"eos_token": "[PAD]"}), json!({"chat_template": "{{ x }}[PAD]"})] {
        let error = read_rows(&config(&json, uses), 5).unwrap_err();
        assert!(matches!(error, TokenizerError::NoRow { id: 5, rows: 5, .. }), "{error}");
    }
    // A pad_token_id without a token.
    let ids = SpecialIds {
        pad: Some(5),
        eos: vec![4],
        ..SpecialIds::default()
    };
    let tokenizer = read(&files(&byte_level()), 5, &ids, None).unwrap();
    assert_eq!(tokenizer.pad, None);
    assert_eq!(
        notes_with(&tokenizer, "config.json: pad_token_id 5 has no row").len(),
        1
    );
}

/// transformers reads tokenizer.json where there is one.
#[test]
fn a_tokenizer_model_that_contradicts_is_passed_over() {
    let pieces = |scores: [f32; 5], swapped: bool| {
        let mut texts = ["▁", "a", "b", "▁a", "ab"];
        if swapped {
            texts.swap(0, 1);
        }
        let pieces: Vec<_> = texts
            .iter()
            .zip(scores)
            .map(|(text, score)| piece(text, score, 1))
            .collect();
        model(&pieces, 2)
    };
    let both = |model: Vec<u8>| {
        let mut files = model_files(model);
        files.tokenizer_json = content("tokenizer.json", with_fallback().to_string());
        read(&files, 264, &eos_2(), None).unwrap()
    };
    // The same pieces, joined in the order of the merges (a b, ▁ a): the scores are those of the model.
    let same = both(pieces([-5.0, -6.0, -7.0, -2.5, -1.5], false));
    assert_eq!((same.tokens[262].score, same.tokens[263].score), (-2.5, -1.5));
    assert_eq!(same.notes, [""; 0]);
    // Another order of joining, other pieces, a file that cannot be read: as tokenizer.json alone.
    let alone = read(&files(&with_fallback()), 264, &eos_2(), None).unwrap();
    for (model, says) in [
        (pieces([-5.0, -6.0, -7.0, -1.5, -2.5], false), "joined in another order"),
        (
            pieces([-5.0, -6.0, -7.0, -2.5, -1.5], true),
            "2 of 264 ids have other pieces there",
        ),
        (model(&[piece("a", 0.0, 1)], 1), "of type UNIGRAM"),
    ] {
        let found = both(model);
        assert_eq!(found.tokens, alone.tokens);
        assert_eq!(notes_with(&found, says).len(), 1, "{:?}", found.notes);
        assert_eq!(found.notes.len(), 1);
    }
    // A byte-level tokenizer.json has nothing to do with it.
    let mut files = model_files(pieces([0.0; 5], false));
    files.tokenizer_json = content("tokenizer.json", byte_level().to_string());
    assert!(matches!(read_rows(&files, 5).unwrap().model, Model::ByteLevel { .. }));
}

/// convert_slow_tokenizer.py: "Metaspace skips the dummy prefix when the text already starts with "▁", SentencePiece
/// doesn't", so transformers 5 doubles that one.
#[test]
fn a_metaspace_with_a_doubled_space_is_a_space_prefix() {
    let double = json!({"type": "Replace", "pattern": {"Regex": "\\A▁"}, "content": "▁▁"});
    let metaspace = |scheme: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}
        ]})
    };
    let with = |normalizers: &[&Json], scheme: &str| {
        let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut json = with_fallback();
        let steps: Vec<_> = [&space].iter().chain(normalizers).cloned().collect();
        json["normalizer"] = json!({"type": "Sequence", "normalizers": steps});
        json["pre_tokenizer"] = metaspace(scheme);
        read(&files(&json), 264, &eos_2(), None)
    };
    let tokenizer = with(&[&double], "always").unwrap();
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: true });
    assert_eq!(tokenizer.notes, [""; 0]);
    let tokenizer = with(&[], "always").unwrap();
    assert_eq!(tokenizer.model, Model::SentencePiece { space_prefix: true });
    assert_eq!(
        notes_with(&tokenizer, "begins with a space gets none in front").len(),
        1
    );
    // Doubled without one in front: llama.cpp has no place for it.
    let error = with(&[&double], "never").unwrap_err().to_string();
    assert!(
        error.contains(r#"normalizer {"type":"Replace","pattern":{"Regex":"\\A▁"}"#),
        "{error}"
    );
}

#[test]
fn a_step_that_is_refused_is_shown() {
    let lower = message(|json| json["normalizer"] = json!({"type": "Lowercase"}));
    assert!(
        lower.contains(r#"normalizer {"type":"Lowercase"} is not supported"#),
        "{lower}"
    );
    let punctuation = message(|json| {
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "ByteLevel", "add_prefix_space": false}
        ]});
    });
    assert!(
        punctuation.contains(r#"pre_tokenizer {"type":"Punctuation","behavior":"Contiguous"}"#),
        "{punctuation}"
    );
    let long =
        message(|json| json["normalizer"] = json!({"type": "Precompiled", "precompiled_charsmap": "A".repeat(300)}));
    assert!(long.contains("normalizer \"Precompiled\" is not supported"), "{long}");
}

/// llama.cpp finds marks by their texts, whatever the file says of them.
#[test]
fn what_llama_cpp_does_otherwise_is_noted() {
    let mut json = byte_level();
    json["model"]["vocab"]["<|im_end|>"] = json!(5);
    json["model"]["vocab"]["<fim_pad>"] = json!(6);
    json["model"]["dropout"] = json!(0.1);
    let tokenizer = read_rows(&config(&json, json!({"fix_mistral_regex": true})), 7).unwrap();
    assert_eq!(notes_with(&tokenizer, "model.dropout 0.1").len(), 1);
    assert_eq!(notes_with(&tokenizer, "fix_mistral_regex").len(), 1);
    let made = notes_with(
        &tokenizer,
        "control tokens of \"<|im_end|>\" (5), \"<fim_pad>\" (6), which are text",
    );
    assert_eq!(made.len(), 1, "{:?}", tokenizer.notes);
    // Named among the special tokens they are none to transformers, either.
    let special = json!({"pad_token": "<fim_pad>", "additional_special_tokens": ["<|im_end|>"]});
    let tokenizer = read_rows(&config(&json, special), 7).unwrap();
    assert_eq!(tokenizer.tokens[5].kind, TokenType::Control);
    assert_eq!(tokenizer.tokens[6].kind, TokenType::Control);
    assert_eq!(notes_with(&tokenizer, "control tokens of").len(), 0);
}
