//! config.json: the shape of the model, and its training.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tqconv::model::{ConfigFile, TrainingOverrides, model_metadata};

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let Ok(file) = ConfigFile::parse(Path::new("config.json"), data) else {
        return;
    };
    let _ = file.training(&TrainingOverrides::default());
    if let Ok(config) = file.config() {
        assert!(config.layers <= 512 && config.heads % config.kv_heads == 0);
        assert!(config.rms_norm_eps > 0.0 && config.rms_norm_eps.is_finite());
        model_metadata(&config);
        if config.head_dim <= 1 << 16 {
            config.rope.llama3_factors(config.head_dim);
        }
    }
});
