//! BitNet b1.58 (arXiv 2402.17764), as transformers rounds latent weights in every forward pass.

use formats::gguf::Value;
use formats::safetensors::Dtype;
use serde_json::Value as Json;

use super::{Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;
use crate::model::config::ConfigFile;

pub(super) const METHOD: &str = "bitnet";

/// How the latent weights become ternary: by one scale a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitNet;

/// What says that a checkpoint was trained so, where its config.json does.
pub(super) fn evidence(file: &ConfigFile) -> Option<&'static str> {
    if file.bitnet().is_some() {
        return Some("'quantization_config' of config.json");
    }
    let names = file.value("architectures")?.as_array()?;
    let is_reproduced = names.contains(&"BitnetForCausalLM".into()) && file.value("weight_bits") == Some(&1.into());
    is_reproduced.then_some("architecture BitnetForCausalLM with 'weight_bits' 1 in config.json")
}

/// # Errors
/// A form of BitNet whose weights are not latent, or that no graph computes.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    const ONLINE: [(&str, &str); 2] = [("linear_class", "autobitlinear"), ("quantization_mode", "online")];
    let Some(section) = settings.file.bitnet() else {
        return Ok(Scheme::BitNet(BitNet));
    };
    let part = |key: &str| section.get(key).filter(|value| !value.is_null());
    let wrong = |key: &str, expected: String| {
        let name = format!("quantization_config.{key}");
        Err(settings.file.key_error(&name, part(key), expected))
    };
    if part("use_rms_norm").is_some_and(|norm| *norm != false) {
        let expected = "false: no graph of llama.cpp has a norm before every linear";
        return wrong("use_rms_norm", expected.into());
    }
    for (key, latent) in ONLINE {
        if part(key).is_none_or(|found| found != latent) && settings.given.method.is_none() {
            let expected =
                format!("{latent:?}, as of latent weights; where they are, say so with --trained-as {METHOD}");
            return wrong(key, expected);
        }
    }
    check_converted(settings, part("modules_to_not_convert"))?;
    Ok(Scheme::BitNet(BitNet))
}

/// The head stays as it is in any case.
fn check_converted(settings: &Settings, modules: Option<&Json>) -> Result<(), ModelError> {
    let modules = modules.and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    match modules.iter().all(|module| *module == "lm_head") {
        true => Ok(()),
        false => {
            let key = "quantization_config.modules_to_not_convert";
            let expected = "null or [\"lm_head\"]: linears that are not ternary are not packed".into();
            Err(settings.file.key_error(key, Some(&modules.into()), expected))
        }
    }
}

impl Training for BitNet {
    fn text(&self) -> String {
        format!("{METHOD}, {}", Granularity::Tensor)
    }

    fn facts(&self) -> TrainingFacts {
        Granularity::Tensor.facts(METHOD)
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        Granularity::Tensor.keys(METHOD)
    }
}
