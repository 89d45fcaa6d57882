//! Hyper-parameters out of the metadata, with errors that name the key.

use formats::gguf::{TensorInfo, Value};

use crate::blueprint::{Dims, Graph, Slot};
use crate::engine::EngineError;
use crate::engine::hyper::{Hyper, Rope, Variant};

/// The most layers that llama.cpp takes (LLAMA_MAX_LAYERS, llama-hparams.h).
const MAX_LAYERS: usize = 512;

/// The metadata. Keys are named without the architecture that they begin with.
pub struct Keys<'a> {
    metadata: &'a [(String, Value)],
    tensors: &'a [TensorInfo],
    pub graph: &'static Graph,
}

impl<'a> Keys<'a> {
    /// # Errors
    /// An architecture that we do not run; one part of a model of several files.
    pub fn new(metadata: &'a [(String, Value)], tensors: &'a [TensorInfo]) -> Result<Self, EngineError> {
        const KEY: &str = "general.architecture";
        let named = value(metadata, KEY).and_then(Value::as_str);
        let graph = named.and_then(Graph::find).ok_or_else(|| {
            let names: Vec<_> = Graph::supported().map(|name| format!("\"{name}\"")).collect();
            refuse(metadata, KEY, &names.join(" or "))
        })?;
        let count = value(metadata, "split.count");
        if let Some(count) = count.filter(|&count| *count != Value::U16(1)) {
            let count = count.brief();
            return Err(EngineError::Split { count });
        }
        Ok(Keys {
            metadata,
            tensors,
            graph,
        })
    }

    /// All but the factors of the rotation that are in a tensor.
    pub fn hyper(&self) -> Result<Hyper, EngineError> {
        self.check_experts()?;
        let dims = self.dims()?;
        Ok(Hyper {
            dims,
            context: self.positive("context_length")?,
            norm_epsilon: self.number("attention.layer_norm_rms_epsilon", None)?.into(),
            rope: self.rope(dims.head_dim)?,
            variant: self.variant()?,
        })
    }

    fn dims(&self) -> Result<Dims, EngineError> {
        let hidden = self.positive("embedding_length")?;
        let heads = self.positive("attention.head_count")?;
        let kv_heads = self.kv_heads(heads)?;
        let head_dim = self.head_dim(hidden / heads)?;
        if self.graph.square && heads * head_dim != hidden {
            let expected = format!("{hidden} over the {heads} heads");
            return Err(self.refuse("attention.key_length", &expected));
        }
        let layers = self.positive("block_count")?;
        if layers > MAX_LAYERS {
            return Err(self.refuse("block_count", &format!("at most {MAX_LAYERS}")));
        }
        Ok(Dims {
            vocab: self.vocab()?,
            hidden,
            intermediate: self.positive("feed_forward_length")?,
            layers,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// llama.cpp aborts where the others are not 0 and the first is (llama-model.cpp).
    fn check_experts(&self) -> Result<(), EngineError> {
        for key in ["expert_count", "expert_used_count", "expert_group_count"] {
            if self.whole_or(key, 0)? != 0 {
                return Err(self.refuse(key, "0: a mixture of experts is not run"));
            }
        }
        Ok(())
    }

    fn kv_heads(&self, heads: usize) -> Result<usize, EngineError> {
        const KEY: &str = "attention.head_count_kv";
        let kv_heads = self.whole_or(KEY, heads)?;
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(self.refuse(KEY, &format!("a divisor of the {heads} heads")));
        }
        Ok(kv_heads)
    }

    fn head_dim(&self, default: usize) -> Result<usize, EngineError> {
        const KEY: &str = "attention.key_length";
        let head_dim = self.whole_or(KEY, default)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(self.refuse(KEY, "a positive even number"));
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if self.whole_or(key, head_dim)? != head_dim {
                return Err(self.refuse(key, &format!("{head_dim}, as long as a key")));
            }
        }
        Ok(head_dim)
    }

    fn vocab(&self) -> Result<usize, EngineError> {
        let name = Slot::Embedding.gguf_name();
        match self.tensors.iter().find(|info| info.name == name) {
            Some(info) if info.rows() > 0 => Ok(usize::try_from(info.rows()).unwrap_or(usize::MAX)),
            _ => Err(EngineError::MissingTensor { name }),
        }
    }

    fn rope(&self, head_dim: usize) -> Result<Rope, EngineError> {
        Ok(Rope {
            base: self.rope_base(head_dim)?.into(),
            divisor: self.rope_divisor()?.into(),
            factors: None,
            pairing: self.graph.pairing,
        })
    }

    /// In f32, as llama.cpp computes it (models/hunyuan-vl.cpp).
    fn rope_base(&self, head_dim: usize) -> Result<f32, EngineError> {
        const ALPHA: &str = "rope.scaling.alpha";
        const SECTIONS: &str = "rope.dimension_sections";
        let base = self.number("rope.freq_base", Some(10000.0))?;
        if !self.graph.rope_alpha {
            return Ok(base);
        }
        if self.get(SECTIONS).is_some() {
            return Err(self.refuse(SECTIONS, "none: positions of several dimensions are not run"));
        }
        let alpha = self.number(ALPHA, Some(0.0))?;
        if alpha == 0.0 {
            return Ok(base);
        }
        let stretched = base * alpha.powf(head_dim as f32 / (head_dim as f32 - 2.0));
        let finite = stretched.is_finite().then_some(stretched);
        finite.ok_or_else(|| self.refuse(ALPHA, "a number that leaves the base of the rotation finite"))
    }

    /// llama.cpp's defaults are those of one model, and its default for the logits is the inverse of what that needs
    /// (models/minicpm.cpp), so the keys must be there. It divides the logits by theirs (models/granite.cpp).
    fn variant(&self) -> Result<Variant, EngineError> {
        let variant = self.graph.variant;
        if !self.graph.scales {
            return Ok(variant);
        }
        let scale = |key: &str| match self.number(key, None)? {
            0.0 => Err(self.refuse(key, "a number above 0")),
            scale => Ok(f64::from(scale)),
        };
        Ok(Variant {
            embedding_scale: scale("embedding_scale")?,
            residual_scale: scale("residual_scale")?,
            logit_scale: 1.0 / scale("logit_scale")?,
            ..variant
        })
    }

    /// What positions are divided by. llama.cpp takes a factor without a type for linear scaling, and ignores it where
    /// the type is `none`.
    fn rope_divisor(&self) -> Result<f32, EngineError> {
        const TYPE: &str = "rope.scaling.type";
        const ATTENTION: &str = "rope.scaling.attn_factor";
        if self.number(ATTENTION, Some(1.0))? != 1.0 {
            return Err(self.refuse(ATTENTION, "1"));
        }
        match self.get(TYPE).map(Value::as_str) {
            Some(Some("none")) => Ok(1.0),
            None | Some(Some("linear")) => {
                let old = self.number("rope.scale_linear", Some(0.0))?;
                let factor = self.number("rope.scaling.factor", Some(old))?;
                Ok(if factor == 0.0 { 1.0 } else { factor })
            }
            _ => Err(self.refuse(
                TYPE,
                "\"none\" or \"linear\" (Llama 3's scaling stands in the tensor rope_freqs.weight)",
            )),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.graph.name)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        value(self.metadata, &self.full(key))
    }

    fn refuse(&self, key: &str, expected: &str) -> EngineError {
        refuse(self.metadata, &self.full(key), expected)
    }

    fn positive(&self, key: &str) -> Result<usize, EngineError> {
        match self.get(key).and_then(Value::as_u32) {
            Some(value) if value > 0 => Ok(value as usize),
            _ => Err(self.refuse(key, "a positive u32")),
        }
    }

    fn whole_or(&self, key: &str, default: usize) -> Result<usize, EngineError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_u32()
                .map(|value| value as usize)
                .ok_or_else(|| self.refuse(key, "a u32")),
        }
    }

    fn number(&self, key: &str, default: Option<f32>) -> Result<f32, EngineError> {
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (value, _) => match value.and_then(Value::as_f32) {
                Some(value) if value.is_finite() && value >= 0.0 => Ok(value),
                _ => Err(self.refuse(key, "an f32 of at least 0")),
            },
        }
    }
}

/// The value of `key` in full.
pub fn value<'a>(metadata: &'a [(String, Value)], key: &str) -> Option<&'a Value> {
    metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value)
}

/// `key` in full.
fn refuse(metadata: &[(String, Value)], key: &str, expected: &str) -> EngineError {
    let found = match value(metadata, key) {
        None => "absent".into(),
        Some(value) => value.brief(),
    };
    EngineError::Key {
        key: key.into(),
        found,
        expected: expected.into(),
    }
}
