//! config.json: the shape of the model.

mod file;
mod rope;
#[cfg(test)]
pub(super) mod tests;

use formats::safetensors::Dtype;
use serde_json::Value;

use super::ModelError;
use super::json::is_positive;
use super::tokenizer::SpecialIds;
use crate::blueprint::{
    Architecture, Dims, Graph, Linear, OwnBias, Part, RELU_SQUARED, SILU, SlidingWindow, Slot, Variant,
};

pub use file::ConfigFile;
use rope::SHARE;
pub use rope::{Rope, RopeScaling};

/// The shape of a model.
#[derive(Clone, Debug)]
pub struct Config {
    pub architecture: &'static Architecture,
    pub dims: Dims,
    /// The longest context in tokens.
    pub context_length: usize,
    /// The epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    pub rope: Rope,
    /// What the forward pass computes otherwise than a Llama's.
    pub variant: Variant,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// The linears that have biases of their own, beside the offline ones.
    pub own_biases: Vec<Part>,
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

impl Config {
    /// Whether a linear has a bias of its own, beside the offline one.
    pub fn has_own_bias(&self, part: Part) -> bool {
        self.own_biases.contains(&part)
    }

    /// All linears, layer by layer.
    pub fn linears(&self) -> impl Iterator<Item = Linear> + use<> {
        Linear::all(&self.dims)
    }

    /// The tensors that a file of the model has, in its order, and what a checkpoint calls them: `None` for the rotary
    /// factors, which follow from config.json. Biases and learned lambdas stand beside their linear.
    pub fn slots(&self) -> Vec<(Slot, Option<String>)> {
        let mut slots = self.architecture.graph.slots(&self.dims);
        slots.retain(|slot| match slot {
            Slot::Head => !self.tied_head,
            Slot::RopeFactors => matches!(self.rope.scaling, RopeScaling::Llama3 { .. }),
            _ => true,
        });
        let name = |slot| (slot, self.architecture.checkpoint_name(slot));
        slots.into_iter().map(name).collect()
    }
}

impl ConfigFile {
    /// The shape of the model.
    ///
    /// # Errors
    /// An architecture that cannot be expressed, a missing key, a value that cannot be.
    pub fn config(&self) -> Result<Config, ModelError> {
        let architecture = self.architecture()?;
        let dims = self.dims()?;
        self.check_activation(architecture)?;
        self.check_rotary_share(SHARE, self.value(SHARE))?;
        let mut notes = vec![];
        let config = Config {
            architecture,
            dims,
            context_length: self.required_count("max_position_embeddings")?,
            rms_norm_eps: self
                .positive("rms_norm_eps")?
                .ok_or_else(|| self.wrong("rms_norm_eps", None, "a number"))? as f32,
            rope: self.rope(architecture.graph, &mut notes)?,
            variant: self.variant(architecture.graph, &dims)?,
            tied_head: self.flag("tie_word_embeddings")?.unwrap_or(false),
            own_biases: self.own_biases(architecture)?,
            sliding_window: self.sliding_window(architecture.sliding_window)?,
            special_ids: SpecialIds {
                bos: self.ids("bos_token_id", &mut notes)?.first().copied(),
                eos: self.ids("eos_token_id", &mut notes)?,
                pad: self.ids("pad_token_id", &mut notes)?.first().copied(),
            },
            dtype: self.dtype(),
            notes,
        };
        self.check_places(&config)?;
        Ok(config)
    }

    /// Whether the graph has a place for all tensors of a file.
    fn check_places(&self, config: &Config) -> Result<(), ModelError> {
        let graph = config.architecture.graph;
        if matches!(config.rope.scaling, RopeScaling::Llama3 { .. }) && !graph.rope_factors {
            let expected = format!(
                "\"default\" or \"linear\": llama.cpp's `{}` has no place for factors",
                graph.name
            );
            return Err(self.key_error("rope_scaling", self.value("rope_scaling"), expected));
        }
        if !config.tied_head && !graph.own_head {
            const KEY: &str = "tie_word_embeddings";
            let expected = format!("true: llama.cpp's `{}` has no place for a head", graph.name);
            return Err(self.key_error(KEY, self.value(KEY), expected));
        }
        let dims = &config.dims;
        if !is_positive(config.rope.base(dims.head_dim)) {
            const KEY: &str = "rope_scaling";
            let expected = "an alpha that leaves the base of the rotation finite".into();
            return Err(self.key_error(KEY, self.value(KEY), expected));
        }
        if graph.square && dims.q_width() != dims.hidden {
            let expected = format!(
                "hidden_size ({}) over the {} heads: llama.cpp's `{}` has no place for another",
                dims.hidden, dims.heads, graph.name
            );
            return Err(self.key_error("head_dim", self.value("head_dim"), expected));
        }
        Ok(())
    }

    fn architecture(&self) -> Result<&'static Architecture, ModelError> {
        let names = match self.value("architectures") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => vec![],
        };
        let [name] = names[..] else {
            return Err(self.key_error(
                "architectures",
                self.value("architectures"),
                "a list of one name".into(),
            ));
        };
        let Some(architecture) = Architecture::find(name) else {
            let why = Architecture::refused(name);
            let why = why.unwrap_or("its forward pass has not been shown to equal llama.cpp's `llama`");
            let supported: Vec<_> = Architecture::supported().collect();
            return Err(self.architecture_error(name, format!("{why}; supported: {}", supported.join(", "))));
        };
        Ok(architecture)
    }

    fn architecture_error(&self, name: &str, why: String) -> ModelError {
        ModelError::Architecture {
            path: self.path.clone(),
            found: name.into(),
            why,
        }
    }

    fn dims(&self) -> Result<Dims, ModelError> {
        let hidden = self.limited("hidden_size", MAX_WIDTH, "")?;
        let heads = self.required_count("num_attention_heads")?;
        let kv_heads = self.count("num_key_value_heads")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads ({heads})");
            return Err(self.key_error("num_key_value_heads", self.value("num_key_value_heads"), expected));
        }
        Ok(Dims {
            hidden,
            heads,
            kv_heads,
            head_dim: self.head_dim(hidden, heads)?,
            intermediate: self.limited("intermediate_size", MAX_WIDTH, "")?,
            layers: self.limited("num_hidden_layers", MAX_LAYERS, ", which is what llama.cpp loads")?,
            vocab: self.limited("vocab_size", MAX_TOKENS, "")?,
        })
    }

    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, ModelError> {
        let head_dim = match self.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let expected = format!("a divisor of hidden_size ({hidden}), as head_dim is missing");
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
        Ok(head_dim)
    }

    fn own_biases(&self, architecture: &Architecture) -> Result<Vec<Part>, ModelError> {
        let mut biased = vec![];
        for part in Part::ALL {
            let has_bias = match architecture.own_bias(part) {
                OwnBias::Never => false,
                OwnBias::Always => true,
                OwnBias::Key(key) => self.flag(key)?.unwrap_or(false),
            };
            biased.extend(has_bias.then_some(part));
        }
        Ok(biased)
    }

    fn check_activation(&self, architecture: &Architecture) -> Result<(), ModelError> {
        const KEY: &str = "hidden_act";
        match self.text(KEY)?.unwrap_or(architecture.activation) {
            SILU | "swish" => Ok(()),
            RELU_SQUARED => {
                let why = format!(
                    "its activation is {RELU_SQUARED} (hidden_act), and llama.cpp's `{}` computes {SILU} whatever a file \
                     says: it would load and talk nonsense; take a model that was trained with {SILU}",
                    architecture.graph.name
                );
                Err(self.architecture_error(architecture.names[0], why))
            }
            _ => Err(self.key_error(KEY, self.value(KEY), format!("{SILU:?}"))),
        }
    }

    /// MiniCPM's scales, as its own code computes them (modeling_minicpm.py).
    fn variant(&self, graph: &Graph, dims: &Dims) -> Result<Variant, ModelError> {
        if !graph.scales {
            return Ok(graph.variant);
        }
        let scale = |key| {
            let scale = self.positive(key)?;
            scale.ok_or_else(|| self.wrong(key, None, "a positive number"))
        };
        Ok(Variant {
            embedding_scale: scale("scale_emb")?,
            residual_scale: scale("scale_depth")? / (dims.layers as f64).sqrt(),
            logit_scale: scale("dim_model_base")? / dims.hidden as f64,
            ..graph.variant
        })
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
    fn sliding_window(&self, window: SlidingWindow) -> Result<Option<usize>, ModelError> {
        const WINDOW: usize = 4096;
        let slides = match window {
            SlidingWindow::Never => false,
            SlidingWindow::EveryLayer => true,
            SlidingWindow::SomeLayers => {
                self.flag("use_sliding_window")?.unwrap_or(false) && self.has_sliding_layer()?
            }
        };
        match self.0.value.get("sliding_window") {
            _ if !slides => Ok(None),
            None => Ok(Some(WINDOW)),
            Some(_) => Ok(self.count("sliding_window")?),
        }
    }

    /// Whether some layer sees less than the whole context.
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
