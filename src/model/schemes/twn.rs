//! Ternary weight networks (arXiv 1605.04711), as AngelSlim trains them.

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Contradiction, Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;

pub(super) const METHOD: &str = "twn";

/// How the latent weights become ternary.
#[derive(Clone, Debug, PartialEq)]
pub struct Twn {
    /// Over how many weights a scale is taken.
    pub granularity: Granularity,
}

/// # Errors
/// Keys that are missing.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let granularity = settings.required_granularity(METHOD)?;
    Ok(Scheme::Twn(Twn { granularity }))
}

impl Training for Twn {
    fn text(&self) -> String {
        format!("{METHOD}, {}", self.granularity)
    }

    fn facts(&self) -> TrainingFacts {
        self.granularity.facts(METHOD)
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        self.granularity.keys(METHOD)
    }

    fn check(&self, name: &str, shape: (usize, usize), _dtype: Dtype) -> Result<(), Contradiction> {
        self.granularity.check(name, shape)
    }
}
