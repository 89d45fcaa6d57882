//! BitNet b1.58 (arXiv 2402.17764), as transformers rounds latent weights in every forward pass.

use formats::gguf::Value;
use formats::safetensors::Dtype;
use serde_json::{Value as Json, json};

use super::{Granularity, Scheme, Settings, Training};
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
    const FORM: [(&str, &[&str], &str); 3] = [
        (
            "use_rms_norm",
            &["false"],
            "false: no graph of llama.cpp has a norm in front of every linear",
        ),
        ("linear_class", &["\"autobitlinear\""], LATENT),
        ("quantization_mode", &["\"online\""], LATENT),
    ];
    const LATENT: &str = "that of latent weights, \"autobitlinear\" and \"online\"; where they are latent all the same, \
                          say so with --trained-as bitnet";
    let Some(section) = settings.file.bitnet() else {
        return Ok(Scheme::BitNet(BitNet));
    };
    for (key, allowed, expected) in FORM {
        let found = section.get(key).filter(|value| !value.is_null());
        let is_norm = key == "use_rms_norm";
        let holds = match found {
            None => is_norm,
            Some(found) => allowed.contains(&&*found.to_string()),
        };
        if !holds && (is_norm || settings.given.method.is_none()) {
            let key = format!("quantization_config.{key}");
            return Err(settings.file.key_error(&key, found, expected.into()));
        }
    }
    check_converted(settings, section.get("modules_to_not_convert"))?;
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

    fn json(&self) -> serde_json::Value {
        json!({ "quant_method": METHOD, "granularity": Granularity::Tensor.to_string() })
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        Granularity::Tensor.keys(METHOD)
    }
}
