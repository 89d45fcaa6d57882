//! What llama.cpp makes of tokens by their texts: some become control tokens, and some of those end a generation,
//! whatever the file says of them (llama-vocab.cpp:2720-3066).

use std::collections::{HashMap, HashSet};

use formats::gguf::tokenizer::{END_TEXTS, FILL_MARKS, SHOWN_TEXTS};

use super::{CONTROL, Keys, NORMAL, TextError, USER_DEFINED};

/// Corrects the types of the tokens as llama.cpp does, and returns those that end a generation. `eos`: the end that the
/// file names, or llama.cpp's own choice where it names none.
pub(super) fn by_text(
    keys: &Keys,
    ids: &HashMap<String, u32>,
    types: &mut [i32],
    eos: u32,
) -> Result<HashSet<u32>, TextError> {
    let rows = types.len();
    let id = |text: &str| ids.get(text).copied();
    let mut ends = HashSet::new();
    for mark in FILL_MARKS {
        let mut token = None;
        for key in mark.keys {
            token = keys.id_if_in_range(key, rows)?.or(token);
        }
        if token.is_none() {
            // Where there are several, llama.cpp takes any of them.
            token = mark.texts.iter().filter_map(|text| id(text)).min();
            token.into_iter().for_each(|id| types[id as usize] = CONTROL);
        }
        ends.extend(token.filter(|_| mark.ends));
    }
    for id in END_TEXTS.iter().filter_map(|text| id(text)) {
        types[id as usize] = CONTROL;
        ends.insert(id);
    }
    for id in SHOWN_TEXTS.iter().filter_map(|text| id(text)) {
        types[id as usize] = USER_DEFINED;
    }
    ends.insert(eos);
    for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(keys.id(key, rows)?);
    }
    let end = |text: &str| id(text).filter(|id| ends.contains(id));
    // Where a turn has parts, `<|end|>` ends a part.
    let call = end("<|call|>").or(end("<|calls|>"));
    let turn = end("<|return|>").or(end("<|flush|>"));
    let part = end("<|end|>").filter(|_| call.is_some() && turn.is_some());
    let marker = end("<|tool_response>").or(end("<|plamo:eos|>"));
    let text = end("</s>").filter(|_| marker.is_some());
    for (id, kind) in [(part, USER_DEFINED), (text, NORMAL)] {
        if let Some(id) = id {
            types[id as usize] = kind;
            ends.remove(&id);
        }
    }
    Ok(ends)
}
