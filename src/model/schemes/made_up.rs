//! A scheme made up for tests (docs/adding.md): the scale is the root of the mean square of a group, `threshold` says
//! from which share of it a weight is active, and zeros are zeros.

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;

pub(super) const METHOD: &str = "made-up";

#[derive(Clone, Debug, PartialEq)]
pub struct MadeUp {
    /// Weights a scale.
    pub group_size: usize,
    /// Of the scale.
    pub threshold: f64,
}

pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let threshold = settings.file.number("threshold")?;
    let Some((group_size, threshold)) = settings.group_size()?.zip(threshold) else {
        return Err(settings.wrong("threshold", "missing".into(), "a number, and a group_size"));
    };
    Ok(Scheme::MadeUp(MadeUp { group_size, threshold }))
}

impl Training for MadeUp {
    fn text(&self) -> String {
        format!("{METHOD}, groups of {}, threshold {}", self.group_size, self.threshold)
    }

    fn facts(&self) -> TrainingFacts {
        Granularity::Group(self.group_size).facts(METHOD)
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        vec![
            ("quant_method", Value::String(METHOD.into())),
            ("group_size", Value::U64(self.group_size as u64)),
            ("threshold", Value::F64(self.threshold)),
        ]
    }
}
