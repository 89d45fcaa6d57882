//! What some values of the `tokenizer.*` keys mean to llama.cpp beyond what the file says.
//!
//! `tokenizer.ggml.pre` says how text is split before byte-level BPE. Each name stands for a list of regular expressions.
//! The first splits the text into what it matches and what lies between the matches; the next splits the parts again, and
//! so on (llama-vocab.cpp:284-577, names 2169-2460). The expressions are those of the tokenizer.json files that the names
//! were made for, in the dialect of Hugging Face's `tokenizers`; llama.cpp has some of them in other words.

/// Texts that make their tokens control tokens, and end a generation (llama-vocab.cpp:2905-2963).
#[rustfmt::skip]
pub const END_TEXTS: &[&str] = &[
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
];

/// A mark of code to be filled in. llama.cpp looks for each of them among the tokens where no key names it, and makes a
/// control token of the one that it finds.
#[derive(Debug)]
pub struct FillMark {
    /// The keys that name the token; the last one in the file counts.
    pub keys: &'static [&'static str],
    /// The texts that are looked for.
    pub texts: &'static [&'static str],
    /// Whether it ends a generation.
    pub ends: bool,
}

/// All marks of code to be filled in (llama-vocab.cpp:2636-2647, 2765-2878, 2908-2918).
#[rustfmt::skip]
pub const FILL_MARKS: &[FillMark] = &[
    FillMark {
        keys: &["tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id"],
        texts: &["<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>", "<|prefix|>"],
        ends: false,
    },
    FillMark {
        keys: &["tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id"],
        texts: &["<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>", "<|suffix|>"],
        ends: false,
    },
    FillMark {
        keys: &["tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id"],
        texts: &["<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>", "<|middle|>"],
        ends: false,
    },
    FillMark {
        keys: &["tokenizer.ggml.fim_pad_token_id"],
        texts: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        ends: true,
    },
    FillMark {
        keys: &["tokenizer.ggml.fim_rep_token_id"],
        texts: &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"],
        ends: true,
    },
    FillMark { keys: &["tokenizer.ggml.fim_sep_token_id"], texts: &["<|file_sep|>"], ends: true },
];

/// Texts that make user-defined tokens of theirs: they are recognised in any text, and shown (llama-vocab.cpp:2966-2974).
pub const SHOWN_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Whether llama.cpp makes a control token of a token with this text, whatever its type says.
pub fn is_made_control(text: &str) -> bool {
    END_TEXTS.contains(&text) || FILL_MARKS.iter().any(|mark| mark.texts.contains(&text))
}

/// One way of splitting text.
#[derive(Debug)]
pub struct PreTokenizer {
    /// The names that mean it, the most common first.
    pub names: &'static [&'static str],
    /// Whether a text gets a first token where `tokenizer.ggml.add_bos_token` is absent.
    pub add_bos: bool,
    /// Whether a part that is a token is taken whole, without merging.
    pub ignore_merges: bool,
    /// The expressions, in order.
    pub splits: &'static [&'static str],
    /// What llama.cpp splits by where its words for them mean something else; else empty.
    pub llama_cpp: &'static [&'static str],
}

/// The pre-tokenizer that `name` means, where its expressions are known here.
pub fn pre_tokenizer(name: &str) -> Option<&'static PreTokenizer> {
    PRE_TOKENIZERS.iter().find(|pre| pre.names.contains(&name))
}

/// Every name that llama.cpp accepts for a byte-level vocabulary.
pub fn pre_tokenizer_names() -> impl Iterator<Item = &'static str> {
    PRE_TOKENIZERS
        .iter()
        .flat_map(|pre| pre.names)
        .chain(OTHER_NAMES)
        .copied()
}

/// GPT-2's expression, which a `ByteLevel` step with `use_regex` stands for.
pub const GPT2_SPLIT: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Those whose expressions are certain.
pub const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        add_bos: true,
        ignore_merges: true,
        splits: &[LLAMA3],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["smaug-bpe", "dbrx", "chatglm-bpe"],
        add_bos: false,
        ignore_merges: false,
        splits: &[LLAMA3],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["glm4", "glm5"],
        add_bos: false,
        ignore_merges: true,
        splits: &[LLAMA3],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["qwen35"],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        add_bos: false,
        ignore_merges: false,
        splits: &[GPT2_SPLIT],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        add_bos: false,
        ignore_merges: false,
        splits: &[r"\p{N}", GPT2_SPLIT],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["tekken"],
        add_bos: true,
        ignore_merges: true,
        splits: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        llama_cpp: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        add_bos: false,
        ignore_merges: false,
        splits: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        llama_cpp: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
            r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        add_bos: false,
        ignore_merges: false,
        splits: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["minicpm5"],
        add_bos: false,
        ignore_merges: true,
        splits: &[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["seed-coder"],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["exaone-moe"],
        add_bos: false,
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
        llama_cpp: &[],
    },
    PreTokenizer {
        names: &["jais-2"],
        add_bos: false,
        ignore_merges: false,
        splits: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|",
            r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
        llama_cpp: &[],
    },
    // Falcon's tokenizer.json has steps after `ByteLevel`, which are not recognised.
    PreTokenizer {
        names: &["falcon"],
        add_bos: false,
        ignore_merges: false,
        splits: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2_SPLIT, "[0-9][0-9][0-9]"],
        llama_cpp: &[],
    },
];

/// Names whose expressions are not listed here.
#[rustfmt::skip]
const OTHER_NAMES: &[&str] = &[
    "default", "deepseek-llm", "spark2_5", "youtu", "jina-v1-en", "jina-v2-code", "roberta-bpe",
    "poro-chat", "viking", "bloom", "gpt3-finnish", "chameleon", "granite-embed-multi-97m", "superbpe",
    "tiny_aya", "cohere2moe", "kimi-k2", "ufakzeka", "afmoe", "laguna",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_name_means_one_thing() {
        let mut seen = HashSet::new();
        assert!(pre_tokenizer_names().all(|name| seen.insert(name)));
        assert_eq!(pre_tokenizer("llama3").map(|pre| pre.names[0]), Some("llama-bpe"));
        assert!(pre_tokenizer("default").is_none());
    }
}
