//! config.json: the shape of the model, and how its weights were trained to be ternary.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use formats::safetensors::Dtype;
use serde_json::Value;

use super::ModelError;
use super::checkpoint::check_regular;
use super::tokenizer::SpecialIds;
use crate::tequila::Granularity;

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
}

/// Rotary position embedding: angle(position, i) = position * theta^(-2i / head_dim) / factor_i.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base.
    pub theta: f64,
    /// How the angles are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// How the angles of the rotary embedding are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long waves by `factor`, short ones not, those between smoothly (Llama 3.1).
    Llama3 {
        /// The factor of long waves.
        factor: f64,
        /// Waves longer than the original context / this are long.
        low_freq_factor: f64,
        /// Waves shorter than the original context / this are short.
        high_freq_factor: f64,
        /// The context before stretching, in tokens.
        original_context: f64,
    },
}

impl Rope {
    /// The factor by which each pair of dimensions turns slower, for Llama 3's scaling: (head_dim / 2,).
    /// Written to GGUF as `rope_freqs.weight`; formula of transformers' `_compute_llama3_parameters`.
    pub fn llama3_factors(&self, head_dim: usize) -> Option<Vec<f32>> {
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } = self.scaling
        else {
            return None;
        };
        let factor_of = |i: usize| {
            let wavelength =
                2.0 * std::f64::consts::PI * self.theta.powf(2.0 * i as f64 / head_dim as f64);
            if wavelength < original_context / high_freq_factor {
                1.0
            } else if wavelength > original_context / low_freq_factor {
                factor
            } else {
                let smooth = (original_context / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Some((0..head_dim / 2).map(|i| factor_of(i) as f32).collect())
    }
}

/// How the latent weights become ternary.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Over how many weights a scale is taken.
    pub granularity: Granularity,
    /// The factor of the dead zone.
    pub lambda: LambdaSource,
}

/// Where the factor of the dead zone comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LambdaSource {
    /// `eps`, before it is rounded to the checkpoint's dtype (ultraquantv2).
    Fixed(f64),
    /// The tensor `Lambada` beside each weight (ultraquantv3).
    Learned,
}

impl LambdaSource {
    /// The name of the method in config.json.
    pub fn method(self) -> &'static str {
        match self {
            LambdaSource::Fixed(_) => "ultraquantv2",
            LambdaSource::Learned => "ultraquantv3",
        }
    }

    /// The fixed factor as training used it: rounded to the dtype of the weights.
    pub fn fixed(self, dtype: Dtype) -> Option<f32> {
        match self {
            LambdaSource::Fixed(lambda) => Some(dtype.round(lambda)),
            LambdaSource::Learned => None,
        }
    }
}

/// What the command line says of the training, over what config.json says.
#[derive(Clone, Debug, Default)]
pub struct TrainingOverrides {
    /// `quant_method`
    pub method: Option<String>,
    /// `granularity`
    pub granularity: Option<String>,
    /// `group_size`
    pub group_size: Option<usize>,
    /// `eps`
    pub lambda: Option<f64>,
}

/// The largest config.json that is read, in bytes; usual ones have a few KB.
const MAX_FILE: u64 = 16 << 20;
/// The most columns of a matrix: a thread holds a row. 20 times the widest in use.
const MAX_WIDTH: usize = 1 << 20;
/// The most layers: LLAMA_MAX_LAYERS.
const MAX_LAYERS: usize = 512;
/// The most tokens: each takes memory whether the tokenizer has it or not. 16 times the largest vocabulary in use.
const MAX_TOKENS: usize = 1 << 22;

/// config.json, read key by key so that every complaint names its key.
pub struct ConfigFile {
    path: PathBuf,
    json: Value,
}

impl ConfigFile {
    /// # Errors
    /// The file cannot be read, is larger than a config.json can be, or is no JSON object.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        check_regular(path)?;
        let io = |source| ModelError::io(path, source);
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
            .map_err(io)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(ModelError::TooLarge {
                path: path.into(),
                kind: "config.json",
                limit: MAX_FILE,
            });
        }
        Self::parse(path, &bytes)
    }

    /// The content of the file at `path`, which is named in errors.
    ///
    /// # Errors
    /// No JSON object.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let json: Value = serde_json::from_slice(bytes).map_err(|source| ModelError::Json {
            path: path.into(),
            source,
        })?;
        let file = Self {
            path: path.into(),
            json,
        };
        if !file.json.is_object() {
            return Err(file.key_error("(top level)", Some(&file.json), "an object".into()));
        }
        Ok(file)
    }

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
            return Err(self.key_error(
                "num_key_value_heads",
                self.value("num_key_value_heads"),
                expected,
            ));
        }
        let head_dim = match self.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden_size % heads == 0 => hidden_size / heads,
            None => {
                let expected =
                    format!("a divisor of hidden_size ({hidden_size}), as head_dim is missing");
                return Err(self.key_error(
                    "num_attention_heads",
                    self.value("num_attention_heads"),
                    expected,
                ));
            }
        };
        if head_dim % 2 != 0 {
            return Err(self.key_error(
                "head_dim",
                self.value("head_dim"),
                "an even number".into(),
            ));
        }
        if heads.saturating_mul(head_dim) > MAX_WIDTH {
            let expected = format!(
                "at most {}: the {heads} heads together have at most {MAX_WIDTH} columns",
                MAX_WIDTH / heads
            );
            return Err(self.key_error("head_dim", self.value("head_dim"), expected));
        }
        self.check_activation()?;
        self.check_rotary_share()?;
        Ok(Config {
            architecture,
            hidden_size,
            intermediate_size: self.limited("intermediate_size", MAX_WIDTH, "")?,
            layers: self.limited(
                "num_hidden_layers",
                MAX_LAYERS,
                ", which is what llama.cpp loads",
            )?,
            heads,
            kv_heads,
            head_dim,
            context_length: self.required_count("max_position_embeddings")?,
            vocab_size: self.limited("vocab_size", MAX_TOKENS, "")?,
            rms_norm_eps: self
                .positive("rms_norm_eps")?
                .ok_or_else(|| self.missing("rms_norm_eps", "a number"))?
                as f32,
            rope: self.rope()?,
            tied_head: self.flag("tie_word_embeddings")?.unwrap_or(false),
            attention_bias: match architecture {
                Architecture::Qwen2 => true,
                _ => self.flag("attention_bias")?.unwrap_or(false),
            },
            mlp_bias: self.flag("mlp_bias")?.unwrap_or(false),
            sliding_window: self.sliding_window(architecture)?,
            special_ids: SpecialIds {
                bos: self.ids("bos_token_id")?.first().copied(),
                eos: self.ids("eos_token_id")?,
                pad: self.ids("pad_token_id")?.first().copied(),
            },
        })
    }

    /// How the weights become ternary: config.json, with what the command line says over it.
    ///
    /// # Errors
    /// No sign of Tequila, a method that cannot be folded, a value that cannot be.
    pub fn training(&self, overrides: &TrainingOverrides) -> Result<Training, ModelError> {
        let method = self.setting("quant_method", overrides.method.as_deref())?;
        let granularity = self.setting("granularity", overrides.granularity.as_deref())?;
        let group_size = match overrides.group_size {
            Some(size) => Some(size),
            None => self.count("group_size")?,
        };
        let lambda = match overrides.lambda {
            Some(lambda) => Some(lambda),
            None => self.number("eps")?,
        };
        let mut missing = Vec::new();
        let learned = method.as_deref() == Some("ultraquantv3");
        let grouped = !matches!(granularity.as_deref(), Some("per_channel" | "per_tensor"));
        missing.extend(method.is_none().then_some("quant_method"));
        missing.extend(granularity.is_none().then_some("granularity"));
        missing.extend((grouped && group_size.is_none()).then_some("group_size"));
        missing.extend((!learned && lambda.is_none()).then_some("eps"));
        let (Some(method), Some(granularity), true) = (method, granularity, missing.is_empty())
        else {
            return Err(ModelError::NotTequila {
                path: self.path.clone(),
                missing,
            });
        };
        self.check_bits()?;
        Ok(Training {
            granularity: self.granularity(&granularity, group_size)?,
            lambda: self.lambda(&method, lambda)?,
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
            "LlamaForCausalLM" => return Ok(Architecture::Llama),
            "MistralForCausalLM" => return Ok(Architecture::Mistral),
            "Qwen2ForCausalLM" => return Ok(Architecture::Qwen2),
            _ if found.starts_with("Qwen3") || found.starts_with("HunYuanDense") => {
                "its norms of q and k have no place in llama.cpp's `llama`, and its own architecture there would lose \
                 the offline biases of o_proj, gate_proj, up_proj and down_proj"
            }
            _ if found.starts_with("BitNet") || found.starts_with("Gemma") => {
                "llama.cpp has no place for the offline biases of its linears"
            }
            _ => "its forward pass has not been shown to equal llama.cpp's `llama`",
        };
        let why =
            format!("{why}; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM");
        Err(ModelError::Architecture {
            path: self.path.clone(),
            found: found.into(),
            why,
        })
    }

    fn check_activation(&self) -> Result<(), ModelError> {
        match self.text("hidden_act")?.as_deref() {
            None | Some("silu" | "swish") => Ok(()),
            Some(_) => {
                Err(self.key_error("hidden_act", self.value("hidden_act"), "\"silu\"".into()))
            }
        }
    }

    fn check_rotary_share(&self) -> Result<(), ModelError> {
        match self.number("partial_rotary_factor")? {
            Some(share) if share != 1.0 => {
                let expected = "1: llama.cpp's `llama` turns whole heads".into();
                Err(self.key_error(
                    "partial_rotary_factor",
                    self.value("partial_rotary_factor"),
                    expected,
                ))
            }
            _ => Ok(()),
        }
    }

    fn sliding_window(&self, architecture: Architecture) -> Result<Option<usize>, ModelError> {
        let used = match architecture {
            Architecture::Llama => false,
            Architecture::Mistral => true,
            Architecture::Qwen2 => self.flag("use_sliding_window")?.unwrap_or(false),
        };
        if used {
            self.count("sliding_window")
        } else {
            Ok(None)
        }
    }

    /// transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters` with both.
    fn rope(&self) -> Result<Rope, ModelError> {
        let (section, scaling) = match (
            self.object("rope_parameters")?,
            self.object("rope_scaling")?,
        ) {
            (Some(parameters), _) => ("rope_parameters", Some(parameters)),
            (None, scaling) => ("rope_scaling", scaling),
        };
        let part = |name: &str| {
            scaling
                .and_then(|scaling| scaling.get(name))
                .filter(|value| !value.is_null())
        };
        let number = |name: &str| {
            let key = format!("{section}.{name}");
            let found = part(name).and_then(Value::as_f64);
            found
                .filter(|n| is_positive(*n))
                .ok_or_else(|| self.key_error(&key, part(name), POSITIVE.into()))
        };
        const DEFAULT_THETA: f64 = 10000.0; // transformers' LlamaConfig
        let theta = match part("rope_theta") {
            Some(_) => number("rope_theta")?,
            None => self.positive("rope_theta")?.unwrap_or(DEFAULT_THETA),
        };
        let kind = part("rope_type").or_else(|| part("type"));
        let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
            None if scaling.is_none() || section == "rope_parameters" => RopeScaling::None,
            Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: number("factor")?,
            },
            Some("llama3") => RopeScaling::Llama3 {
                factor: number("factor")?,
                low_freq_factor: number("low_freq_factor")?,
                high_freq_factor: number("high_freq_factor")?,
                original_context: number("original_max_position_embeddings")?,
            },
            _ => {
                let key = format!("{section}.rope_type");
                return Err(self.key_error(
                    &key,
                    kind,
                    "\"default\", \"linear\" or \"llama3\"".into(),
                ));
            }
        };
        if let RopeScaling::Llama3 {
            low_freq_factor,
            high_freq_factor,
            ..
        } = scaling
            && high_freq_factor <= low_freq_factor
        {
            let key = format!("{section}.high_freq_factor");
            return Err(self.key_error(
                &key,
                part("high_freq_factor"),
                "more than low_freq_factor".into(),
            ));
        }
        Ok(Rope { theta, scaling })
    }

    fn check_bits(&self) -> Result<(), ModelError> {
        match self.value("w_bits") {
            None => Ok(()),
            Some(bits) if bits.as_f64() == Some(0.0) => Ok(()),
            bits => Err(self.key_error(
                "w_bits",
                bits,
                "0, which is what ternary training sets".into(),
            )),
        }
    }

    fn granularity(
        &self,
        name: &str,
        group_size: Option<usize>,
    ) -> Result<Granularity, ModelError> {
        match (name, group_size) {
            ("per_channel", _) => Ok(Granularity::Channel),
            ("per_tensor", _) => Ok(Granularity::Tensor),
            ("per_group", Some(size)) if size > 0 => Ok(Granularity::Group(size)),
            ("per_group", size) => Err(ModelError::Key {
                path: self.path.clone(),
                key: "group_size".into(),
                found: size.map_or("missing".into(), |size| size.to_string()),
                expected: "a positive number of weights".into(),
            }),
            (found, _) => Err(ModelError::Key {
                path: self.path.clone(),
                key: "granularity".into(),
                found: format!("{found:?}"),
                expected: "per_group, per_channel or per_tensor".into(),
            }),
        }
    }

    fn lambda(&self, method: &str, lambda: Option<f64>) -> Result<LambdaSource, ModelError> {
        let why = match (method, lambda) {
            ("ultraquantv3", _) => return Ok(LambdaSource::Learned),
            ("ultraquantv2", Some(lambda)) if lambda.is_finite() && lambda >= 0.0 => {
                return Ok(LambdaSource::Fixed(lambda));
            }
            ("ultraquantv2", lambda) => {
                return Err(ModelError::Key {
                    path: self.path.clone(),
                    key: "eps".into(),
                    found: lambda.map_or("missing".into(), |lambda| lambda.to_string()),
                    expected: "a finite number that is not negative (the lambda of the dead zone)"
                        .into(),
                });
            }
            ("ultraquant", _) => {
                "it multiplies the dead zone by the sign of each activation, which no constant bias can stand for; \
                 train with ultraquantv2 or ultraquantv3"
            }
            ("ultraquantv4", _) => {
                "its forward pass is not a matrix and a constant; supported: ultraquantv2, ultraquantv3"
            }
            _ => "unknown; supported: ultraquantv2, ultraquantv3",
        };
        Err(ModelError::Method {
            path: self.path.clone(),
            found: method.into(),
            why,
        })
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    fn key_error(&self, key: &str, found: Option<&Value>, expected: String) -> ModelError {
        let found = found.map_or("missing".into(), |value| {
            const SHOWN: usize = 80;
            let text = value.to_string();
            if text.len() > SHOWN {
                format!("{}...", text.chars().take(SHOWN).collect::<String>())
            } else {
                text
            }
        });
        ModelError::Key {
            path: self.path.clone(),
            key: key.into(),
            found,
            expected,
        }
    }

    fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.key_error(key, None, expected.into())
    }

    /// A whole number from 1 to 2^31 - 1, which is what a GGUF key and a tensor's shape can hold.
    fn count(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(count @ 1..=0x7fff_ffff) => Ok(Some(count as usize)),
            _ => Err(self.key_error(
                key,
                Some(value),
                "a whole number from 1 to 2147483647".into(),
            )),
        }
    }

    fn required_count(&self, key: &str) -> Result<usize, ModelError> {
        self.count(key)?
            .ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// A whole number that takes memory, or time, beyond what its tensors do.
    fn limited(&self, key: &str, max: usize, why: &str) -> Result<usize, ModelError> {
        match self.required_count(key)? {
            count if count <= max => Ok(count),
            _ => Err(self.key_error(key, self.value(key), format!("at most {max}{why}"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let number = value.as_f64().filter(|number| number.is_finite());
        number
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "a finite number".into()))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.number(key)? {
            Some(number) if !is_positive(number) => {
                Err(self.key_error(key, self.value(key), POSITIVE.into()))
            }
            number => Ok(number),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        let text = value.as_str().map(String::from);
        text.map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "a string".into()))
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "true or false".into()))
    }

    fn object(&self, key: &str) -> Result<Option<&serde_json::Map<String, Value>>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(None);
        };
        value
            .as_object()
            .map(Some)
            .ok_or_else(|| self.key_error(key, Some(value), "an object".into()))
    }

    /// A token id or a list of them.
    fn ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        let Some(value) = self.value(key) else {
            return Ok(vec![]);
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            value => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.key_error(key, Some(value), "a token id or a list of them".into()))
    }

    fn setting(&self, key: &str, over: Option<&str>) -> Result<Option<String>, ModelError> {
        match over {
            Some(text) => Ok(Some(text.into())),
            None => self.text(key),
        }
    }
}

const POSITIVE: &str = "a positive number that an f32 can hold";

/// Positive and finite as an f32, which is what a GGUF file holds.
fn is_positive(number: f64) -> bool {
    let stored = number as f32;
    stored > 0.0 && stored.is_finite()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A model of one layer, for tests.
    pub(crate) fn small_config() -> Config {
        Config {
            architecture: Architecture::Llama,
            hidden_size: 64,
            intermediate_size: 128,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 32,
            context_length: 128,
            vocab_size: 32,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 10000.0,
                scaling: RopeScaling::None,
            },
            tied_head: true,
            attention_bias: false,
            mlp_bias: false,
            sliding_window: None,
            special_ids: SpecialIds::default(),
        }
    }

    fn file(json: Value) -> ConfigFile {
        ConfigFile {
            path: "config.json".into(),
            json,
        }
    }

    fn llama() -> Value {
        serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 100,
            "rms_norm_eps": 1e-5, "w_bits": 0, "quant_method": "ultraquantv2", "granularity": "per_group",
            "group_size": 128, "eps": 0.001
        })
    }

    fn with(key: &str, value: Value) -> ConfigFile {
        let mut json = llama();
        json[key] = value;
        file(json)
    }

    #[test]
    fn both_forms_of_rope_settings_are_read() {
        let scaling = serde_json::json!({
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192
        });
        let mut old = llama();
        old["rope_theta"] = 500000.0.into();
        old["rope_scaling"] = scaling.clone();
        let mut new = scaling;
        new["rope_theta"] = 500000.0.into();
        let rope = file(old).config().unwrap().rope;
        assert_eq!(rope, with("rope_parameters", new).config().unwrap().rope);
        assert_eq!(rope.theta, 500000.0);
        // The values that transformers' `_compute_llama3_parameters` gives for Llama-3.2-1B (head_dim 64): the first
        // pairs turn as before, the last 32 times slower.
        let factors = rope.llama3_factors(64).unwrap();
        assert_eq!((factors[0], factors[31]), (1.0, 32.0));
        assert!(factors.is_sorted());
    }

    #[test]
    fn what_is_no_tequila_checkpoint_is_named_as_such() {
        let mut json = llama();
        for key in ["quant_method", "granularity", "group_size", "eps"] {
            json.as_object_mut().unwrap().remove(key);
        }
        let plain = file(json);
        let error = plain
            .training(&TrainingOverrides::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("not a Tequila checkpoint"), "{error}");
        let given = TrainingOverrides {
            method: Some("ultraquantv2".into()),
            granularity: Some("per_group".into()),
            group_size: Some(64),
            lambda: Some(0.5),
        };
        let training = plain.training(&given).unwrap();
        assert_eq!(
            training,
            Training {
                granularity: Granularity::Group(64),
                lambda: LambdaSource::Fixed(0.5)
            }
        );
    }

    #[test]
    fn what_cannot_be_folded_is_refused_with_its_reason() {
        for (method, reason) in [
            ("ultraquant", "sign of each activation"),
            ("ultraquantv4", "constant"),
            ("x", "unknown"),
        ] {
            let error = with("quant_method", method.into())
                .training(&TrainingOverrides::default())
                .unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }

    #[test]
    fn every_complaint_names_its_key() {
        let wrong = [
            ("hidden_size", serde_json::json!(-1)),
            ("num_hidden_layers", serde_json::json!(513)),
            ("num_key_value_heads", serde_json::json!(3)),
            ("head_dim", serde_json::json!(7)),
            ("rms_norm_eps", serde_json::json!("small")),
            ("hidden_act", serde_json::json!("gelu")),
            ("vocab_size", serde_json::json!(1e12)),
            ("partial_rotary_factor", serde_json::json!(0.5)),
            ("architectures", serde_json::json!([])),
            ("tie_word_embeddings", serde_json::json!("yes")),
            ("eos_token_id", serde_json::json!("</s>")),
        ];
        for (key, value) in wrong {
            let error = with(key, value).config().unwrap_err().to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
        for (key, value) in [
            ("group_size", serde_json::json!(0)),
            ("eps", serde_json::json!(-1.0)),
            ("w_bits", 2.into()),
        ] {
            let error = with(key, value)
                .training(&TrainingOverrides::default())
                .unwrap_err()
                .to_string();
            assert!(error.contains(key), "{key}: {error}");
        }
        let error = with(
            "rope_scaling",
            serde_json::json!({"type": "yarn", "factor": 2.0}),
        )
        .config()
        .unwrap_err();
        assert!(
            error.to_string().contains("rope_scaling.rope_type"),
            "{error}"
        );
        let error = with("architectures", serde_json::json!(["Qwen3ForCausalLM"]))
            .config()
            .unwrap_err();
        assert!(error.to_string().contains("o_proj"), "{error}");
    }
}
