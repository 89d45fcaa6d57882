//! config.json: the shape of the model.

mod json;
mod rope;
#[cfg(test)]
pub(super) mod tests;

use formats::safetensors::Dtype;
use serde_json::Value;

use super::ModelError;
use super::tokenizer::SpecialIds;

pub use json::ConfigFile;
use rope::SHARE;
pub use rope::{Rope, RopeScaling};

/// The architectures whose forward pass llama.cpp's `llama`, the one that applies all seven biases, computes exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// `LlamaForCausalLM`
    Llama,
    /// `MistralForCausalLM`
    Mistral,
    /// `Qwen2ForCausalLM`, as `llama` with biases on q, k and v
    Qwen2,
}

/// The shape of a model.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which forward pass.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// The longest context in tokens.
    pub context_length: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Whether q, k, v and o have biases of their own; o's never in Qwen2.
    pub attention_bias: bool,
    /// Whether gate, up and down have biases of their own.
    pub mlp_bias: bool,
    /// Attention sees this many tokens back; `None`: all.
    pub sliding_window: Option<usize>,
    /// The ids of special tokens that config.json names.
    pub special_ids: SpecialIds,
    /// What training and transformers compute in, where config.json names it.
    pub dtype: Option<Dtype>,
    /// What was read otherwise than it stands there, for the user to read.
    pub notes: Vec<String>,
}
/// The most columns of a matrix: a thread holds a row. 20 times the widest in use.
const MAX_WIDTH: usize = 1 << 20;
/// The most layers: LLAMA_MAX_LAYERS.
const MAX_LAYERS: usize = 512;
/// The most tokens: each takes memory whether the tokenizer has it or not. 16 times the largest vocabulary in use.
const MAX_TOKENS: usize = 1 << 22;

impl ConfigFile {
    /// The shape of the model.
    ///
    /// # Errors
    /// An architecture that cannot be expressed, a missing key, a value that cannot be.
    pub fn config(&self) -> Result<Config, ModelError> {
        let architecture = self.architecture()?;
        let hidden_size = self.limited("hidden_size", MAX_WIDTH, "")?;
        let heads = self.required_count("num_attention_heads")?;
        let kv_heads = self.count("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads ({heads})");
            return Err(self.key_error("num_key_value_heads", self.value("num_key_value_heads"), expected));
        }
        let head_dim = match self.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let expected = format!("a divisor of hidden_size ({hidden_size}), as head_dim is missing");
                return Err(self.key_error("num_attention_heads", self.value("num_attention_heads"), expected));
            }
        };
        if head_dim % 2 != 0 {
            return Err(self.key_error("head_dim", self.value("head_dim"), "an even number".into()));
        }
        if heads.saturating_mul(head_dim) > MAX_WIDTH {
            let expected = format!(
                "at most {}: the {heads} heads together have at most {MAX_WIDTH} columns",
                MAX_WIDTH / heads
            );
            return Err(self.key_error("head_dim", self.value("head_dim"), expected));
        }
        self.check_activation()?;
        self.check_rotary_share(SHARE, self.value(SHARE))?;
        let mut notes = vec![];
        Ok(Config {
            architecture,
            hidden_size,
            intermediate_size: self.limited("intermediate_size", MAX_WIDTH, "")?,
            layers: self.limited("num_hidden_layers", MAX_LAYERS, ", which is what llama.cpp loads")?,
            heads,
            kv_heads,
            head_dim,
            context_length: self.required_count("max_position_embeddings")?,
            vocab_size: self.limited("vocab_size", MAX_TOKENS, "")?,
            rms_norm_eps: self
                .positive("rms_norm_eps")?
                .ok_or_else(|| self.missing("rms_norm_eps", "a number"))? as f32,
            rope: self.rope(&mut notes)?,
            tied_head: self.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: match architecture {
                Architecture::Qwen2 => true,
                _ => self.flag("attention_bias")?.unwrap_or(false),
            },
            mlp_bias: self.flag("mlp_bias")?.unwrap_or(false),
            sliding_window: self.sliding_window(architecture)?,
            special_ids: SpecialIds {
                bos: self.ids("bos_token_id", &mut notes)?.first().copied(),
                eos: self.ids("eos_token_id", &mut notes)?,
                pad: self.ids("pad_token_id", &mut notes)?.first().copied(),
            },
            dtype: self.dtype(),
            notes,
        })
    }
    fn architecture(&self) -> Result<Architecture, ModelError> {
        let names = match self.value("architectures") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let [found] = names[..] else {
            return Err(self.key_error(
                "architectures",
                self.value("architectures"),
                "a list of one name".into(),
            ));
        };
        let why = match found {
            // The name that the first conversions of Llama wrote.
            "LlamaForCausalLM" | "LLaMAForCausalLM" => return Ok(Architecture::Llama),
            "MistralForCausalLM" => return Ok(Architecture::Mistral),
            "Qwen2ForCausalLM" => return Ok(Architecture::Qwen2),
            _ if found.starts_with("Qwen3") || found.starts_with("HunYuanDense") => {
                "its norms of q and k have no place in llama.cpp's `llama`, and its own architecture there would lose \
                 the offline biases of o_proj, gate_proj, up_proj and down_proj"
            }
            _ if found.starts_with("BitNet") || found.starts_with("Bitnet") || found.starts_with("Gemma") => {
                "llama.cpp has no place for the offline biases of its linears"
            }
            _ => "its forward pass has not been shown to equal llama.cpp's `llama`",
        };
        let why = format!("{why}; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM");
        Err(ModelError::Architecture {
            path: self.path.clone(),
            found: found.into(),
            why,
        })
    }

    fn check_activation(&self) -> Result<(), ModelError> {
        match self.text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => Ok(()),
            Some(_) => Err(self.key_error("hidden_act", self.value("hidden_act"), "\"silu\"".into())),
        }
    }

    /// `key`: that of `share`.
    fn check_rotary_share(&self, key: &str, share: Option<&Value>) -> Result<(), ModelError> {
        match share {
            None => Ok(()),
            Some(share) if share.as_f64() == Some(1.0) => Ok(()),
            share => {
                let expected = "1: llama.cpp's `llama` turns whole heads".into();
                Err(self.key_error(key, share, expected))
            }
        }
    }

    /// Tokens that attention sees back, as transformers reads it (configuration_mistral.py, configuration_qwen2.py):
    /// a key that is missing has its default, one that is null means all.
    fn sliding_window(&self, architecture: Architecture) -> Result<Option<usize>, ModelError> {
        const WINDOW: usize = 4096;
        let slides = match architecture {
            Architecture::Llama => false,
            Architecture::Mistral => true,
            Architecture::Qwen2 => self.flag("use_sliding_window")?.unwrap_or(false) && self.has_sliding_layer()?,
        };
        match self.json.get("sliding_window") {
            _ if !slides => Ok(None),
            None => Ok(Some(WINDOW)),
            Some(_) => self.count("sliding_window"),
        }
    }

    /// Whether a layer of Qwen2 sees less than the whole context.
    fn has_sliding_layer(&self) -> Result<bool, ModelError> {
        const FULL_LAYERS: u64 = 28;
        if let Some(kinds) = self.value("layer_types") {
            let kinds = kinds.as_array().filter(|kinds| kinds.iter().all(Value::is_string));
            let kinds = kinds
                .ok_or_else(|| self.key_error("layer_types", self.value("layer_types"), "a list of names".into()))?;
            return Ok(kinds.contains(&"sliding_attention".into()));
        }
        let full = match self.value("max_window_layers") {
            None => FULL_LAYERS,
            Some(value) => value
                .as_u64()
                .ok_or_else(|| self.key_error("max_window_layers", Some(value), "a number of layers".into()))?,
        };
        Ok(full < self.required_count("num_hidden_layers")? as u64)
    }

    /// The dtype that training and transformers compute in: `dtype` of transformers 5, over `torch_dtype` of 4.
    fn dtype(&self) -> Option<Dtype> {
        let name = self.value("dtype").or_else(|| self.value("torch_dtype"))?;
        match name.as_str()?.trim_start_matches("torch.") {
            "bfloat16" => Some(Dtype::BF16),
            "float16" => Some(Dtype::F16),
            "float32" => Some(Dtype::F32),
            _ => None,
        }
    }
}
