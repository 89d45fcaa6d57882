//! Tests of what config.json is read as.

use super::*;
use crate::model::{BitNet, Clipped, Granularity, Lambda, Scheme, Sherry, Tequila, TrainingOverrides, Twn};

fn file(json: Value) -> ConfigFile {
    let bytes = json.to_string().into_bytes();
    ConfigFile::parse("config.json".as_ref(), &bytes).unwrap()
}

fn llama() -> Value {
    serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 100,
        "rms_norm_eps": 1e-5, "w_bits": 0, "quant_method": "ultraquantv2", "granularity": "per_group",
        "group_size": 128, "eps": 0.001
    })
}

fn with(key: &str, value: Value) -> ConfigFile {
    let mut json = llama();
    json[key] = value;
    file(json)
}

#[test]
fn both_forms_of_rope_settings_are_read() {
    let scaling = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    let mut old = llama();
    old["rope_theta"] = 500000.0.into();
    old["rope_scaling"] = scaling.clone();
    let mut new = scaling;
    new["rope_theta"] = 500000.0.into();
    let rope = file(old).config().unwrap().rope;
    assert_eq!(rope, with("rope_parameters", new).config().unwrap().rope);
    assert_eq!(rope.theta, 500000.0);
}

#[test]
fn what_nothing_says_of_is_refused_naming_the_methods() {
    let mut json = llama();
    for key in ["quant_method", "granularity", "group_size", "eps", "w_bits"] {
        json.as_object_mut().unwrap().remove(key);
    }
    let plain = file(json);
    let error = plain.training(&TrainingOverrides::default()).unwrap_err().to_string();
    assert!(
        error.contains("nothing says that it was trained to be ternary"),
        "{error}"
    );
    assert!(
        error.contains("--trained-as NAME: ultraquantv2, ultraquantv3, absmean, sherry, "),
        "{error}"
    );
    let mut given = TrainingOverrides {
        method: Some("ultraquantv2".into()),
        ..TrainingOverrides::default()
    };
    let error = plain.training(&given).unwrap_err().to_string();
    assert!(error.contains("missing: granularity, group_size, eps; "), "{error}");
    given.granularity = Some("per_group".into());
    (given.group_size, given.lambda) = (Some(64), Some(0.5));
    let trained = plain.training(&given).unwrap();
    let scheme = Scheme::Tequila(Tequila {
        granularity: Granularity::Group(64),
        lambda: Lambda::Fixed(0.5),
    });
    assert_eq!((trained.scheme, trained.evidence), (scheme, "--trained-as"));
    given.method = Some("bitnet".into());
    assert_eq!(plain.training(&given).unwrap().scheme, Scheme::BitNet(BitNet));
}

#[test]
fn the_method_is_known_by_what_its_code_writes() {
    let online = serde_json::json!({
        "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"
    });
    let absmean = Lambda::None;
    let granularity = Granularity::Group(128);
    let cases = [
        (
            serde_json::json!({"quant_method": "sherry"}),
            Scheme::Sherry(Sherry { granularity }),
            "'quant_method'",
        ),
        (
            serde_json::json!({"quant_method": "twn"}),
            Scheme::Twn(Twn { granularity }),
            "'quant_method'",
        ),
        (
            serde_json::json!({"quant_method": "lsq"}),
            Scheme::Clipped(Clipped::Lsq),
            "'quant_method'",
        ),
        (
            serde_json::json!({"quant_method": "absmean"}),
            Scheme::Tequila(Tequila {
                granularity,
                lambda: absmean,
            }),
            "'quant_method'",
        ),
        (
            serde_json::json!({"quant_method": null}),
            Scheme::Clipped(Clipped::Seq),
            "'w_bits' and no 'quant_method'",
        ),
        (
            serde_json::json!({"quant_method": null, "quantization_config": online}),
            Scheme::BitNet(BitNet),
            "'quantization_config'",
        ),
        (
            serde_json::json!({"quant_method": null, "architectures": ["BitnetForCausalLM"], "weight_bits": 1}),
            Scheme::BitNet(BitNet),
            "architecture BitnetForCausalLM",
        ),
    ];
    for (keys, scheme, evidence) in cases {
        let mut json = llama();
        json.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let trained = file(json).training(&TrainingOverrides::default()).unwrap();
        assert_eq!(trained.scheme, scheme);
        assert!(trained.evidence.starts_with(evidence), "{}", trained.evidence);
    }
}

#[test]
fn every_complaint_names_its_key() {
    let wrong = [
        ("hidden_size", serde_json::json!(-1)),
        ("num_hidden_layers", serde_json::json!(513)),
        ("num_key_value_heads", serde_json::json!(3)),
        ("head_dim", serde_json::json!(7)),
        ("rms_norm_eps", serde_json::json!("small")),
        ("hidden_act", serde_json::json!("gelu")),
        ("vocab_size", serde_json::json!(1e12)),
        ("partial_rotary_factor", serde_json::json!(0.5)),
        ("architectures", serde_json::json!([])),
        ("tie_word_embeddings", serde_json::json!("yes")),
        ("eos_token_id", serde_json::json!("</s>")),
    ];
    for (key, value) in wrong {
        let error = with(key, value).config().unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    for (key, value) in [
        ("group_size", serde_json::json!(0)),
        ("eps", serde_json::json!(-1.0)),
        ("w_bits", 2.into()),
    ] {
        let error = with(key, value)
            .training(&TrainingOverrides::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    let error = with("rope_scaling", serde_json::json!({"type": "yarn", "factor": 2.0}))
        .config()
        .unwrap_err();
    assert!(error.to_string().contains("rope_scaling.rope_type"), "{error}");
}

#[test]
fn what_a_graph_has_no_place_for_is_refused() {
    let scaling = serde_json::json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192
    });
    for (key, value, says) in [
        (
            "rope_scaling",
            scaling,
            "llama.cpp's `made-up` has no place for factors",
        ),
        (
            "tie_word_embeddings",
            false.into(),
            "llama.cpp's `made-up` has no place for a head",
        ),
    ] {
        let mut json = llama();
        json["architectures"] = serde_json::json!(["MadeUpForCausalLM"]);
        json["tie_word_embeddings"] = true.into();
        assert!(file(json.clone()).config().is_ok());
        json[key] = value;
        let error = file(json).config().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(says), "{error}");
    }
}

#[test]
fn what_no_graph_computes_is_refused_with_its_reason() {
    for (name, reason) in [
        ("Gemma2ForCausalLM", "its activation and its norms are others"),
        ("Qwen3MoeForCausalLM", "a mixture of experts"),
        ("OtherForCausalLM", "has not been shown to equal llama.cpp's `llama`"),
        // transformers' default for a BitNet whose config.json has no hidden_act.
        (
            "BitNetForCausalLM",
            "its activation is relu2 (hidden_act), and llama.cpp's `bitnet` computes silu",
        ),
    ] {
        let error = with("architectures", serde_json::json!([name])).config().unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
    }
}

fn of(architecture: &str, keys: Value) -> Value {
    let mut json = llama();
    json["architectures"] = serde_json::json!([architecture]);
    json["tie_word_embeddings"] = true.into();
    json.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json
}

#[test]
fn a_bitnet_has_heads_as_wide_as_the_model_and_a_tied_head() {
    let sound = of("BitnetForCausalLM", serde_json::json!({}));
    assert!(file(sound.clone()).config().is_ok());
    for (key, value) in [("head_dim", 8.into()), ("tie_word_embeddings", false.into())] {
        let mut json = sound.clone();
        json[key] = value;
        let error = file(json).config().unwrap_err().to_string();
        assert!(
            error.contains(key) && error.contains("llama.cpp's `bitnet` has no place"),
            "{error}"
        );
    }
}

#[test]
fn minicpm_s_scales_are_its_own_code_s() {
    let keys = serde_json::json!({"scale_emb": 12, "scale_depth": 1.5, "dim_model_base": 16, "num_hidden_layers": 9});
    let sound = of("MiniCPMForCausalLM", keys);
    let variant = file(sound.clone()).config().unwrap().variant;
    assert_eq!(
        (variant.embedding_scale, variant.residual_scale, variant.logit_scale),
        (12.0, 0.5, 0.25)
    );
    for key in ["scale_emb", "scale_depth", "dim_model_base"] {
        let mut json = sound.clone();
        json.as_object_mut().unwrap().remove(key);
        let error = file(json).config().unwrap_err().to_string();
        assert!(
            error.contains(&format!("key '{key}' is missing, expected a positive number")),
            "{error}"
        );
    }
}

#[test]
fn alpha_makes_another_base() {
    let rope = |alpha: f64| serde_json::json!({"rope_scaling": {"type": "dynamic", "alpha": alpha, "factor": 1.0}});
    let config = file(of("HunYuanDenseV1ForCausalLM", rope(16.0))).config().unwrap();
    // Heads of 16: 10000 * 16^(16 / 14).
    assert!(
        (config.rope.base(16) - 237_759.09).abs() < 0.01,
        "{}",
        config.rope.base(16)
    );
    for (architecture, alpha, key) in [
        ("HunYuanDenseV1ForCausalLM", -1.0, "rope_scaling.alpha"),
        ("HunYuanDenseV1ForCausalLM", 1e38, "rope_scaling"),
        ("LlamaForCausalLM", 16.0, "rope_scaling.rope_type"),
    ] {
        let error = file(of(architecture, rope(alpha))).config().unwrap_err().to_string();
        assert!(error.contains(&format!("key '{key}'")), "{error}");
    }
}
