//! BitNet's codes as they are published: four of them in a byte, and one scale a matrix (transformers,
//! integrations/bitnet.py).

use super::{Training, TrainingFacts};
use crate::model::ModelError;
use crate::model::config::ConfigFile;
use formats::gguf::Value;
use formats::safetensors::Dtype;
use half::f16;

/// The last name of the tensor of the scale.
pub const WEIGHT_SCALE: &str = "weight_scale";

/// Codes in a byte: those of as many rows, a quarter of the matrix apart.
const CODES_A_BYTE: usize = 4;

/// Codes in U8 and a scale beside them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packed {
    pub direction: Direction,
}

/// What `weight_scale` does; `linear_class` of config.json decides it, and nothing in the tensors shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// BitLinear: a weight is a code over the scale.
    Divides,
    /// AutoBitLinear: a weight is a code times the scale, and so is the layer's own bias.
    Multiplies,
}

impl ConfigFile {
    /// What `quantization_config` says of packed codes.
    ///
    /// # Errors
    /// A class of linears, or a mode, that is unknown or has no packed codes; norms that no graph has.
    pub(in crate::model) fn packed(&self) -> Result<Packed, ModelError> {
        let value = |key: &str| {
            self.bitnet()
                .and_then(|section| section.get(key))
                .filter(|value| !value.is_null())
        };
        let wrong = |key: &str, expected: &str| {
            let (key, value) = (format!("quantization_config.{key}"), value(key));
            Err(self.key_error(&key, value, expected.into()))
        };
        let text = |key: &str| value(key).map(|value| value.as_str().unwrap_or_default());
        if value("use_rms_norm").is_some_and(|norm| *norm != false) {
            return wrong(
                "use_rms_norm",
                "false: no graph of llama.cpp has a norm before every linear",
            );
        }
        let direction = match text("linear_class") {
            None | Some("bitlinear") => Direction::Divides,
            Some("autobitlinear") => Direction::Multiplies,
            Some(_) => return wrong("linear_class", "\"bitlinear\" or \"autobitlinear\""),
        };
        match (direction, text("quantization_mode")) {
            (_, None | Some("offline")) | (Direction::Divides, Some("online")) => Ok(Packed { direction }),
            _ => wrong("quantization_mode", "\"offline\", as the weights are packed"),
        }
    }
}

impl Packed {
    fn linear_class(self) -> &'static str {
        match self.direction {
            Direction::Divides => "bitlinear",
            Direction::Multiplies => "autobitlinear",
        }
    }

    /// The scale of the weights where `weight_scale` is `stored`.
    fn scale(self, stored: f32) -> f32 {
        match self.direction {
            Direction::Divides => 1.0 / stored,
            Direction::Multiplies => stored,
        }
    }

    /// What is odd about the values of `weight_scale`, and what f16 makes of the scales.
    pub(in crate::model) fn scale_notes(self, stored: &[f32]) -> Vec<String> {
        let mut notes = vec![];
        let is_odd = |stored: &&f32| self.contradicts(**stored);
        if let Some(odd) = stored.iter().find(is_odd) {
            let (does, other) = match self.direction {
                Direction::Divides => ("divides", "multiplies: \"autobitlinear\""),
                Direction::Multiplies => ("multiplies", "divides: \"bitlinear\""),
            };
            notes.push(format!(
                "quantization_config says \"{}\", so that weight_scale {does}, but it is {odd} in a linear, which suggests \
                 that it {other}; where the text is nonsense, fix 'quantization_config.linear_class'",
                self.linear_class()
            ));
        }
        let loss = |&stored: &f32| {
            let scale = self.scale(stored);
            f64::from(f16::from_f32(scale).to_f32() / scale - 1.0).abs()
        };
        let worst = stored.iter().map(loss).fold(0.0, f64::max);
        if worst > 0.0 {
            let scale = match self.direction {
                Direction::Divides => "1 / weight_scale",
                Direction::Multiplies => "weight_scale",
            };
            notes.push(format!(
                "the scales are {scale}, which the f16 of blocks holds to {worst:.1e} or better; F32 holds them (--type f32)"
            ));
        }
        notes
    }

    /// A hint, and no rule: the mean magnitude of latent weights is 0.01 to 0.1 in models of Llama's kind, so that its
    /// inverse is 10 to 100, and is 1.2 to 1.6 in BitNet b1.58 2B4T.
    fn contradicts(self, stored: f32) -> bool {
        const LEAST_INVERSE: f32 = 2.0;
        const MOST_DIRECT: f32 = 8.0;
        match self.direction {
            Direction::Divides => stored < LEAST_INVERSE,
            Direction::Multiplies => stored > MOST_DIRECT,
        }
    }
}

impl Training for Packed {
    fn text(&self) -> String {
        let does = match self.direction {
            Direction::Divides => "divided by",
            Direction::Multiplies => "times",
        };
        format!(
            "BitNet, packed: codes in U8, {does} weight_scale (linear_class {})",
            self.linear_class()
        )
    }

    fn facts(&self) -> TrainingFacts {
        TrainingFacts {
            quant_method: "bitnet",
            linear_class: Some(self.linear_class()),
            ..TrainingFacts::default()
        }
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        let text = |text: &str| Value::String(text.into());
        vec![
            ("quant_method", text("bitnet")),
            ("linear_class", text(self.linear_class())),
        ]
    }

    fn tensors(&self, _rows: usize, _columns: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
        vec![(WEIGHT_SCALE, vec![vec![1], vec![]])]
    }

    /// `modules_to_not_convert` are ordinary matrices.
    fn is_ternary(&self, _name: &str, dtype: Dtype) -> bool {
        dtype == Dtype::U8
    }

    fn is_stored(&self) -> bool {
        true
    }

    fn weight_shape(&self, rows: usize, columns: usize, _dtype: Dtype) -> Vec<usize> {
        vec![rows.div_ceil(CODES_A_BYTE), columns]
    }
}
