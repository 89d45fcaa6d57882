//! The rotary position embedding of config.json.

use serde_json::{Map, Value};

use super::file::ConfigFile;
use crate::blueprint::Graph;
use crate::model::ModelError;
use crate::model::json::{POSITIVE, is_positive};

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
    /// By another base (NTK-aware scaling, as HunYuan has it).
    Alpha {
        /// By how much the angle of the slowest pair shrinks.
        alpha: f64,
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
    /// The base that heads of `head_dim` dimensions turn by.
    pub fn base(&self, head_dim: usize) -> f64 {
        match self.scaling {
            RopeScaling::Alpha { alpha } => {
                let dimensions = head_dim as f64;
                self.theta * alpha.powf(dimensions / (dimensions - 2.0))
            }
            _ => self.theta,
        }
    }

    /// Whether `found` are the turns a token of each pair of dimensions, before or after they are stretched. Which
    /// waves Llama 3's scaling stretches by how much is not looked at.
    pub fn has_frequencies(&self, found: &[f32], head_dim: usize) -> bool {
        const CLOSE: f64 = 0.01; // bf16 has 0.4 %
        let (least, most) = match self.scaling {
            RopeScaling::None | RopeScaling::Alpha { .. } => (1.0, 1.0),
            RopeScaling::Linear { factor } => (factor, factor),
            RopeScaling::Llama3 { factor, .. } => (factor.min(1.0), factor.max(1.0)),
        };
        let all = |least: f64, most: f64| {
            let mut pairs = found.iter().enumerate();
            pairs.all(|(pair, &found)| {
                let plain = self.base(head_dim).powf(-2.0 * pair as f64 / head_dim as f64);
                let range = plain / most * (1.0 - CLOSE)..plain / least * (1.0 + CLOSE);
                range.contains(&found.into())
            })
        };
        found.len() == head_dim / 2 && (all(1.0, 1.0) || all(least, most))
    }
}

impl ConfigFile {
    /// transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 `rope_parameters` with both. It takes
    /// `rope_scaling` where there are both, and the theta of a section over that beside it (modeling_rope_utils.py,
    /// `convert_rope_params_to_dict`).
    pub(super) fn rope(&self, graph: &Graph, notes: &mut Vec<String>) -> Result<Rope, ModelError> {
        let named = |key| {
            let section = self.object(key)?.filter(|section| !section.is_empty());
            Ok::<_, ModelError>(section.map(|section| (key, section)))
        };
        let (old, new) = (named("rope_scaling")?, named("rope_parameters")?);
        let Some((name, section)) = old.or(new) else {
            let theta = self.theta(None, notes)?;
            let scaling = RopeScaling::None;
            return Ok(Rope { theta, scaling });
        };
        let rope = self.rope_of(graph, name, section, notes)?;
        if let (Some(_), Some((name, section))) = (old, new)
            && self.rope_of(graph, name, section, &mut vec![]).ok().as_ref() != Some(&rope)
        {
            notes.push(format!(
                "config.json has 'rope_scaling' and 'rope_parameters', which contradict each other: rope_scaling is \
                 taken ({rope}), as transformers does"
            ));
        }
        Ok(rope)
    }

    /// `part`: the theta of a section and its key.
    fn theta(&self, part: Option<(String, &Value)>, notes: &mut Vec<String>) -> Result<f64, ModelError> {
        const DEFAULT: f64 = 10000.0; // transformers' RotaryEmbeddingConfigMixin
        let beside = self.positive("rope_theta")?;
        let Some((key, value)) = part else {
            if beside.is_none() {
                notes.push(format!(
                    "config.json has no rope_theta: {DEFAULT}, transformers' default, is taken"
                ));
            }
            return Ok(beside.unwrap_or(DEFAULT));
        };
        let theta = value.as_f64().filter(|theta| is_positive(*theta));
        let theta = theta.ok_or_else(|| self.key_error(&key, Some(value), POSITIVE.into()))?;
        if let Some(beside) = beside.filter(|beside| *beside != theta) {
            notes.push(format!(
                "config.json: '{key}' is {theta}, 'rope_theta' {beside}: the first is taken, as transformers does"
            ));
        }
        Ok(theta)
    }

    fn rope_of(
        &self,
        graph: &Graph,
        name: &str,
        section: &Map<String, Value>,
        notes: &mut Vec<String>,
    ) -> Result<Rope, ModelError> {
        const ALWAYS: [&str; 4] = ["rope_theta", "rope_type", "type", SHARE];
        let key = |part: &str| format!("{name}.{part}");
        let part = |part: &str| section.get(part).filter(|value| !value.is_null());
        if let Some((nested, value)) = section.iter().find(|(_, value)| value.is_object()) {
            let expected = format!("one rotation for all layers; where they share it, set its keys in '{name}' itself");
            return Err(self.key_error(&key(nested), Some(value), expected));
        }
        self.check_rotary_share(&key(SHARE), part(SHARE))?;
        let (scaling, known) = self.scaling(graph, name, section)?;
        let is_known = |key: &&String| ALWAYS.contains(&key.as_str()) || known.contains(&key.as_str());
        for unread in section.keys().filter(|key| !is_known(key)) {
            notes.push(format!(
                "config.json: '{}' is not read, as in transformers: this kind of rotation has no such key",
                key(unread)
            ));
        }
        let theta = part("rope_theta").map(|theta| (key("rope_theta"), theta));
        let theta = self.theta(theta, notes)?;
        Ok(Rope { theta, scaling })
    }

    /// The scaling that a section asks for, and its keys.
    fn scaling(
        &self,
        graph: &Graph,
        name: &str,
        section: &Map<String, Value>,
    ) -> Result<(RopeScaling, &'static [&'static str]), ModelError> {
        const LINEAR: [&str; 1] = ["factor"];
        const LLAMA3: [&str; 4] = [
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ];
        let key = |part: &str| format!("{name}.{part}");
        let part = |part: &str| section.get(part).filter(|value| !value.is_null());
        let number = |name: &str| {
            let found = part(name).and_then(Value::as_f64).filter(|n| is_positive(*n));
            found.ok_or_else(|| self.key_error(&key(name), part(name), POSITIVE.into()))
        };
        let (kind, old_kind) = (part("rope_type"), part("type"));
        if let (Some(kind), Some(old_kind)) = (kind, old_kind)
            && kind != old_kind
        {
            let expected = format!("{kind}, as {} is", key("rope_type"));
            return Err(self.key_error(&key("type"), Some(old_kind), expected));
        }
        let kind = kind.or(old_kind);
        match kind.map(|kind| kind.as_str().unwrap_or_default()) {
            None if name == "rope_parameters" => Ok((RopeScaling::None, &[])),
            Some("default") => Ok((RopeScaling::None, &[])),
            Some("linear") => {
                let factor = number("factor")?;
                Ok((RopeScaling::Linear { factor }, &LINEAR))
            }
            // Within the context transformers turns by alpha alone (modeling_hunyuan_v1_dense.py).
            Some("dynamic") if graph.rope_alpha => {
                let alpha = number("alpha")?;
                Ok((RopeScaling::Alpha { alpha }, &["alpha", "factor"]))
            }
            Some("llama3") => {
                let [factor, low_freq_factor, high_freq_factor, original_context] = LLAMA3.map(number);
                let (factor, low_freq_factor, high_freq_factor) = (factor?, low_freq_factor?, high_freq_factor?);
                let original_context = original_context?;
                if high_freq_factor <= low_freq_factor {
                    let expected = "more than low_freq_factor".into();
                    return Err(self.key_error(&key("high_freq_factor"), part("high_freq_factor"), expected));
                }
                let scaling = RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_context,
                };
                Ok((scaling, &LLAMA3))
            }
            _ => {
                let expected = "\"default\", \"linear\" or \"llama3\"".into();
                Err(self.key_error(&key("rope_type"), kind, expected))
            }
        }
    }
}

/// The share of a head that is turned.
pub(super) const SHARE: &str = "partial_rotary_factor";

impl std::fmt::Display for Rope {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "theta {}", self.theta)?;
        match self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => write!(f, ", linear by {factor}"),
            RopeScaling::Alpha { alpha } => write!(f, ", alpha {alpha}"),
            RopeScaling::Llama3 { factor, .. } => write!(f, ", llama3 by {factor}"),
        }
    }
}
