//! Sherry, of AngelSlim: of every four neighbours the three with the largest magnitudes are kept.

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Contradiction, Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;

pub(super) const METHOD: &str = "sherry";

/// Of how many neighbours one becomes 0.
pub const QUAD: usize = 4;

/// How the latent weights become ternary.
#[derive(Clone, Debug, PartialEq)]
pub struct Sherry {
    /// Over how many weights a scale is taken.
    pub granularity: Granularity,
}

/// # Errors
/// Keys that are missing, or another sparsity than 3 of 4.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let granularity = settings.required_granularity(METHOD)?;
    for (key, count) in [("N", 3), ("M", QUAD)] {
        if let Some(found) = settings.file.count(key)?.filter(|found| *found != count) {
            let expected = format!("{count}: Sherry is packed where 3 of 4 weights are kept");
            return Err(settings.wrong(key, found.to_string(), &expected));
        }
    }
    Ok(Scheme::Sherry(Sherry { granularity }))
}

impl Training for Sherry {
    fn text(&self) -> String {
        format!("{METHOD}, {}, 3 of 4", self.granularity)
    }

    fn facts(&self) -> TrainingFacts {
        self.granularity.facts(METHOD)
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        self.granularity.keys(METHOD)
    }

    /// A quad is four neighbours of one row, and of one group.
    fn check(&self, name: &str, shape: (usize, usize), _dtype: Dtype) -> Result<(), Contradiction> {
        self.granularity.check(name, shape)?;
        let quad = QUAD.to_string();
        match self.granularity {
            Granularity::Group(size) if !size.is_multiple_of(QUAD) => Err(Contradiction {
                key: "group_size",
                found: size.to_string(),
                expected: format!("a multiple of {quad}: one of {quad} neighbours becomes 0"),
            }),
            _ if !shape.1.is_multiple_of(QUAD) => Err(Contradiction {
                key: "M",
                found: quad,
                expected: format!("a divisor of the {} columns of {name}", shape.1),
            }),
            _ => Ok(()),
        }
    }
}
