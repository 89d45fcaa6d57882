//! Which of llama.cpp's pre-tokenizers splits text as a tokenizer.json says.
//!
//! llama.cpp knows pre-tokenizers by name; each is a list of regular expressions, applied one after the other
//! (llama-vocab.cpp:284-577). tokenizer.json writes the expressions out. Names are found by comparing the lists,
//! so a vocabulary that nobody has seen before is recognised as long as it splits text in a known way.

use serde_json::Value;

use super::TokenizerError;
use super::files::kind_of;

/// One pre-tokenizer of llama.cpp.
struct Pre {
    name: &'static str,
    /// Whether a word that is a token is taken whole, without merging (llama-vocab.cpp:2198-2460).
    ignore_merges: bool,
    /// The expressions as tokenizer.json writes them.
    splits: &'static [&'static str],
}

/// GPT-2's expression, which a `ByteLevel` step with `use_regex` stands for.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Where several names mean the same to llama.cpp, the one used by the family that has it first.
const PRES: &[Pre] = &[
    Pre {
        name: "llama-bpe",
        ignore_merges: true,
        splits: &[LLAMA3],
    },
    Pre {
        name: "smaug-bpe",
        ignore_merges: false,
        splits: &[LLAMA3],
    },
    Pre {
        name: "qwen2",
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "qwen35",
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "gpt-2",
        ignore_merges: false,
        splits: &[GPT2],
    },
    Pre {
        name: "smollm",
        ignore_merges: false,
        splits: &[r"\p{N}", GPT2],
    },
    Pre {
        name: "tekken",
        ignore_merges: true,
        splits: &[concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
            r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
    },
    Pre {
        name: "gpt-4o",
        ignore_merges: false,
        splits: &[GPT4O],
    },
    Pre {
        name: "tiny_aya",
        ignore_merges: false,
        splits: &[r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O],
    },
    Pre {
        name: "deepseek-v3",
        ignore_merges: false,
        splits: &[
            r"\p{N}{1,3}",
            "[一-龥぀-ゟ゠-ヿ]+",
            concat!(
                r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
                r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
    },
    Pre {
        name: "deepseek-coder",
        ignore_merges: false,
        splits: &[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}",
        ],
    },
    Pre {
        name: "minicpm5",
        ignore_merges: true,
        splits: &[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "bailingmoe",
        ignore_merges: false,
        splits: &[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "seed-coder",
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "exaone-moe",
        ignore_merges: false,
        splits: &[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ],
    },
    Pre {
        name: "jais-2",
        ignore_merges: false,
        splits: &[concat!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|",
            r"\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
        )],
    },
];

/// Every name that llama.cpp accepts for a byte-level vocabulary (llama-vocab.cpp:2169-2460), in its order.
/// Those that need another vocabulary (`gemma4`, `mmbert`, `whitespace`, ...) are left out.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    "default", "minicpm5", "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano", "deepseek-llm", "deepseek-coder", "deepseek-v3", "spark2_5", "youtu", "falcon", "mpt", "starcoder",
    "gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "jina-v2-es", "jina-v2-de", "a.x-4.0", "mellum", "modern-bert",
    "jais-2", "jina-v1-en", "jina-v2-code", "roberta-bpe", "refact", "command-r", "qwen2", "deepseek-r1-qwen", "kormo",
    "f2llmv2", "qwen35", "stablelm2", "olmo", "dbrx", "smaug-bpe", "poro-chat", "chatglm-bpe", "glm4", "glm5", "viking",
    "jais", "tekken", "smollm", "codeshell", "bloom", "gpt3-finnish", "exaone", "exaone4", "exaone-moe", "chameleon",
    "minerva-7b", "megrez", "gpt-4o", "llama4", "kanana2", "talkie", "granite-embed-multi-97m", "tiny_aya", "cohere2moe",
    "superbpe", "trillion", "granite-docling", "bailingmoe", "bailingmoe2", "llada-moe", "seed-coder", "hunyuan",
    "hunyuan-dense", "hy_v4", "joyai-llm", "kimi-k2", "ufakzeka", "grok-2", "afmoe", "laguna", "minimax-m2", "solar-open",
    "mellum2",
];

/// `name`, when llama.cpp knows it.
pub(super) fn named(name: &str) -> Result<&str, TokenizerError> {
    if NAMES.contains(&name) {
        return Ok(name);
    }
    Err(TokenizerError::UnknownPreName {
        found: name.into(),
        known: NAMES.join(", "),
    })
}

/// llama.cpp's name for the `pre_tokenizer` of a tokenizer.json whose model says `ignore_merges`.
pub(super) fn recognise(
    file: &str,
    pre_tokenizer: &Value,
    ignore_merges: bool,
) -> Result<&'static str, TokenizerError> {
    let mut steps = Steps::default();
    let found = match steps.add(pre_tokenizer) {
        Ok(()) => {
            let known = PRES
                .iter()
                .find(|pre| pre.ignore_merges == ignore_merges && pre.splits == steps.splits);
            if let (Some(pre), true) = (known, steps.is_byte_level) {
                return Ok(pre.name);
            }
            format!("{:?} with ignore_merges {ignore_merges}", steps.splits)
        }
        Err(step) => step,
    };
    let known = PRES
        .iter()
        .map(|pre| pre.name)
        .collect::<Vec<_>>()
        .join(", ");
    Err(TokenizerError::UnknownPre {
        file: file.into(),
        found,
        known,
    })
}

/// A `pre_tokenizer` flattened into expressions that each isolate what they match.
#[derive(Default)]
struct Steps {
    splits: Vec<String>,
    is_byte_level: bool,
}

impl Steps {
    /// Adds a step, or says which one is not a split that llama.cpp could make.
    fn add(&mut self, step: &Value) -> Result<(), String> {
        let flag = |key: &str, absent: bool| step.get(key).map_or(Some(absent), Value::as_bool);
        match step.get("type").and_then(Value::as_str) {
            // What follows would split GPT-2's alphabet instead of the text.
            Some(_) if self.is_byte_level => return Err(format!("{step} after ByteLevel")),
            Some("Sequence") => {
                let steps = step
                    .get("pretokenizers")
                    .and_then(Value::as_array)
                    .ok_or_else(|| kind_of(step))?;
                // One level is all that the library writes; it also bounds the recursion.
                for step in steps {
                    if step.get("type").and_then(Value::as_str) == Some("Sequence") {
                        return Err("a Sequence inside a Sequence".into());
                    }
                    self.add(step)?;
                }
            }
            Some("Split") => {
                let expression = step.pointer("/pattern/Regex").and_then(Value::as_str);
                let isolates = match (
                    step.get("behavior").and_then(Value::as_str),
                    flag("invert", false),
                ) {
                    (Some("Isolated"), Some(false)) => true,
                    // Keeps the matches and drops the rest. The known expressions that come alone match everything.
                    (Some("Removed"), Some(true)) => self.splits.is_empty(),
                    _ => false,
                };
                match expression {
                    Some(expression) if isolates => self.splits.push(escape_newlines(expression)),
                    _ => return Err(step.to_string()),
                }
            }
            Some("Digits") => match flag("individual_digits", false) {
                Some(true) => self.splits.push(r"\p{N}".into()),
                Some(false) => self.splits.push(r"\p{N}+".into()),
                None => return Err(step.to_string()),
            },
            Some("ByteLevel") => {
                // llama.cpp puts no space before a byte-level text.
                match (flag("add_prefix_space", true), flag("use_regex", true)) {
                    (Some(false), Some(true)) => self.splits.push(GPT2.into()),
                    (Some(false), Some(false)) => {}
                    _ => return Err(step.to_string()),
                }
                self.is_byte_level = true;
            }
            _ => return Err(kind_of(step)),
        }
        Ok(())
    }
}

/// Line ends written as themselves mean the same as the escapes.
fn escape_newlines(expression: &str) -> String {
    expression.replace('\r', r"\r").replace('\n', r"\n")
}
