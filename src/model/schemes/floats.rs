//! Floats that are ternary already: -s, 0 and +s, each s over a run of weights. No rule makes them so, and config.json
//! need not say it: the data does. TriLM, Bonsai and BitCPM4 are published like this, AngelSlim bakes its methods so, and
//! onebitllms unpacks to it.

use std::collections::BTreeMap;

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Training, TrainingFacts};

/// What the data of the linears says. Their weights go by the names that their file has for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floats {
    /// Over how many neighbours, at least, every scale of a ternary linear holds.
    pub runs: BTreeMap<String, usize>,
    /// The method of config.json, where it has a dead zone and no linear has a bias.
    pub lost_dead_zone: Option<String>,
}

impl Floats {
    /// `64`, or `32 to 256`: the weights that share a scale, at least.
    fn least_runs(&self) -> String {
        let (least, most) = (self.runs.values().min(), self.runs.values().max());
        match (least, most) {
            (Some(least), Some(most)) if least < most => format!("{least} to {most}"),
            _ => least.map_or(String::new(), usize::to_string),
        }
    }
}

impl Training for Floats {
    fn text(&self) -> String {
        format!(
            "ternary already: {} linears hold only -s, 0 and +s, with one s for at least {} weights",
            self.runs.len(),
            self.least_runs()
        )
    }

    fn facts(&self) -> TrainingFacts {
        TrainingFacts {
            quant_method: "ternary floats",
            ternary_linears: Some(self.runs.len()),
            weights_a_scale: self.runs.values().min().copied(),
            ..TrainingFacts::default()
        }
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        vec![("quant_method", Value::String("ternary floats".into()))]
    }

    fn is_ternary(&self, name: &str, _dtype: Dtype) -> bool {
        self.runs.contains_key(name)
    }

    fn is_stored(&self) -> bool {
        true
    }

    /// What training learned, and baked into the weights.
    fn leaves_out(&self, name: &str) -> bool {
        name.ends_with("_proj.weight_clip_val") || name.contains("_proj.weight_quantizer.")
    }

    fn notes(&self) -> Vec<String> {
        let note = self.lost_dead_zone.as_ref().map(|method| {
            format!(
                "config.json says {method}, the weights are ternary already and have no biases beside them: the dead zone \
                 that training computed with is lost; where the latent checkpoint is to be had, pack that"
            )
        });
        note.into_iter().collect()
    }
}
