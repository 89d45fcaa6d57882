//! The smallest vocabularies that show each rule, and each fault.

use formats::gguf::{Array, File, Layout, Value};

use super::{Text, TextError};

fn strings(texts: &[&str]) -> Value {
    Value::Array(Array::String(texts.iter().map(|&text| text.to_owned()).collect()))
}

/// `é` is the bytes C3 A9, in GPT-2's alphabet `Ã` and `©`.
fn byte_level() -> Vec<(String, Value)> {
    let texts = ["a", "b", "ab", "Ã", "©", "Ġ", "<|im_end|>", "<x>", "[PAD8]", "<b>"];
    keys(&[
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("gpt-2".into())),
        ("tokens", strings(&texts)),
        (
            "token_type",
            Value::Array(Array::I32(vec![1, 1, 1, 1, 1, 1, 3, 4, 5, 3])),
        ),
        ("merges", strings(&["a b"])),
        ("bos_token_id", Value::U32(9)),
        ("eos_token_id", Value::U32(9)),
    ])
}

/// 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3..259 bytes, then the pieces with these scores.
fn pieces(pieces: &[(&str, f32)]) -> Vec<(String, Value)> {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    texts.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![6; texts.len()];
    types[..3].copy_from_slice(&[2, 3, 3]);
    let mut scores = vec![0.0; texts.len()];
    for &(text, score) in pieces {
        texts.push(text.into());
        types.push(1);
        scores.push(score);
    }
    keys(&[
        ("model", Value::String("llama".into())),
        ("tokens", Value::Array(Array::String(texts))),
        ("token_type", Value::Array(Array::I32(types))),
        ("scores", Value::Array(Array::F32(scores))),
    ])
}

fn keys(entries: &[(&str, Value)]) -> Vec<(String, Value)> {
    entries
        .iter()
        .map(|(key, value)| (format!("tokenizer.ggml.{key}"), value.clone()))
        .collect()
}

fn read(keys: &[(String, Value)]) -> Result<Text, TextError> {
    let layout = Layout::new(keys, &[]).unwrap();
    Text::from_gguf(&File::parse(&layout.header).unwrap())
}

/// The fault of `keys` with `key` set to `value`, or taken out.
fn fault(mut keys: Vec<(String, Value)>, key: &str, value: Option<Value>) -> String {
    let key = format!("tokenizer.ggml.{key}");
    keys.retain(|(found, _)| *found != key);
    keys.extend(value.map(|value| (key, value)));
    read(&keys).err().expect("a fault").to_string()
}

#[test]
fn joins_the_highest_score_then_the_leftmost() {
    // "▁" is spelled in bytes, as no piece has it.
    let space = [0xE2, 0x96, 0x81].map(|byte: u32| byte + 3);
    let encode = |text: &Text, plain| text.encode(plain, false)[3..].to_vec();
    let text = read(&pieces(&[
        ("a", -9.0),
        ("b", -9.0),
        ("ab", -2.0),
        ("ba", -1.0),
        ("aa", -3.0),
    ]))
    .unwrap();
    assert_eq!(text.encode("aba", false)[..3], space);
    assert_eq!(encode(&text, "aba"), [259, 262]);
    assert_eq!(encode(&text, "aaa"), [263, 259]);
    assert_eq!(encode(&text, "c"), [u32::from(b'c') + 3]);
    assert_eq!(text.encode("", false), [0; 0]);
    assert_eq!(text.encode("", true), [1]);
    let text = read(&pieces(&[("▁", -1.0), ("a", -9.0)])).unwrap();
    assert_eq!(text.decode(&text.encode(" a é", false)), " a é");
}

#[test]
fn a_space_goes_before_text_that_follows_a_special_token() {
    let text = read(&pieces(&[("▁", -1.0), ("a", -9.0), ("▁a", -2.0)])).unwrap();
    assert_eq!(text.encode_with_specials("</s>a</s> a", false), [2, 261, 2, 259, 261]);
    assert!(!text.encode("</s>", false).contains(&2));
    assert_eq!(text.decode(&[1, 261, 2]), "a");
}

#[test]
fn marks_are_cut_out_the_longest_first() {
    let text = read(&byte_level()).unwrap();
    assert_eq!(text.encode("ab<x>b", false), [2, 7, 1]);
    assert_eq!(text.encode_with_specials("<|im_end|>a<x>", false), [6, 0, 7]);
    assert_eq!(text.decode(&[2, 6, 7, 8, 5, 0]), "ab<x> a");
}

#[test]
fn a_stream_never_breaks_a_character() {
    let text = read(&byte_level()).unwrap();
    let mut decoder = text.decoder();
    let pushed = [0, 3, 4, 3, 0].map(|id| decoder.push(id));
    assert_eq!(pushed, ["a", "", "é", "", "\u{FFFD}a"]);
    assert_eq!(decoder.push(3), "");
    assert_eq!(decoder.push(99), "");
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(text.decode(&[4, 0, 3]), "\u{FFFD}a\u{FFFD}");
}

#[test]
fn ends_are_found_by_key_and_by_text() {
    let text = read(&byte_level()).unwrap();
    let ends: Vec<_> = (0..text.len() as u32).filter(|&id| text.is_end(id)).collect();
    assert_eq!(ends, [6, 9]);
}

#[test]
fn faults_name_their_key() {
    let numbers = |count| Some(Value::Array(Array::F32(vec![0.0; count])));
    let some = |text: &str| Some(Value::String(text.into()));
    let spm = || pieces(&[("a", -1.0)]);
    for (found, expected) in [
        (
            fault(byte_level(), "tokens", None),
            "key 'tokenizer.ggml.tokens' is missing",
        ),
        (
            fault(byte_level(), "tokens", some("a")),
            "found string, expected array of string",
        ),
        (
            fault(byte_level(), "model", some("t5")),
            "found 't5', supported are 'gpt2' and 'llama'",
        ),
        (
            fault(byte_level(), "pre", some("default")),
            "how 'default' splits text is not known here",
        ),
        (fault(byte_level(), "pre", None), "key 'tokenizer.ggml.pre' is missing"),
        (
            fault(byte_level(), "merges", Some(strings(&["a b", "ab"]))),
            "value 1, 'ab', is not two tokens",
        ),
        (
            fault(byte_level(), "merges", Some(strings(&["b a"]))),
            "value 0, 'b a', is not two tokens",
        ),
        (
            fault(byte_level(), "eos_token_id", Some(Value::U32(10))),
            "found token 10, the vocabulary has 10",
        ),
        (
            fault(byte_level(), "eos_token_id", Some(Value::I32(1))),
            "found i32, expected u32",
        ),
        (
            fault(byte_level(), "token_type", Some(Value::Array(Array::I32(vec![1])))),
            "found 1 values for 10 tokens",
        ),
        (
            fault(byte_level(), "tokens", Some(strings(&["a"; 10]))),
            "tokens 0 and 1 are both 'a'",
        ),
        (fault(spm(), "scores", numbers(3)), "found 3 values for 260 tokens"),
        (
            fault(spm(), "scores", Some(Value::Array(Array::F32(vec![f32::NAN; 260])))),
            "value 0 is not a number",
        ),
        (
            fault(spm(), "tokens", Some(strings(&[]))),
            "found 260 values for 0 tokens",
        ),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    let mut without_byte = spm();
    let Some((_, Value::Array(Array::String(texts)))) =
        without_byte.iter_mut().find(|(key, _)| key.ends_with("tokens"))
    else {
        panic!("no tokens")
    };
    texts[13] = "x".into();
    assert!(
        read(&without_byte)
            .err()
            .unwrap()
            .to_string()
            .contains("the token '<0x0A>' is missing")
    );
}
