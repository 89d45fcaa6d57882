//! config.json: the shape of the model, and its training.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tqconv::model::{ConfigFile, TrainingOverrides};
use tqconv::pack::{model_metadata, rope_factors};

fuzz_target!(|data: &[u8]| {
    use tqconv_fuzz as _;
    let Ok(file) = ConfigFile::parse(Path::new("config.json"), data) else {
        return;
    };
    let _ = file.training(&TrainingOverrides::default());
    if let Ok(config) = file.config() {
        let dims = &config.dims;
        assert!(dims.layers <= 512 && dims.heads % dims.kv_heads == 0);
        assert!(config.rms_norm_eps > 0.0 && config.rms_norm_eps.is_finite());
        model_metadata(&config);
        if dims.head_dim <= 1 << 16 {
            rope_factors(&config.rope, dims.head_dim);
        }
    }
});
