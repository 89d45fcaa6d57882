//! Arguments that say what a checkpoint does not say itself.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::model::tokenizer::{self, Tokenizer, TokenizerFiles};
use crate::model::{Checkpoint, Source, TrainingOverrides};

/// How the checkpoint is to be read; the same for every command that reads one.
#[derive(Args, Clone, Default)]
pub struct CheckpointArgs {
    /// config.json, if it is not beside the weights
    #[arg(long, value_name = "FILE", help_heading = "Checkpoint")]
    config: Option<PathBuf>,
    /// tokenizer.json, tokenizer.model or their folder, if not beside the weights
    #[arg(long, value_name = "PATH", help_heading = "Checkpoint")]
    tokenizer: Option<PathBuf>,
    /// llama.cpp's name of the pre-tokenizer, if it is not recognised
    #[arg(long, value_name = "NAME", help_heading = "Checkpoint")]
    pub tokenizer_pre: Option<String>,
    /// How it was trained, over config.json: ultraquantv2 or ultraquantv3
    #[arg(long, value_name = "METHOD", help_heading = "Checkpoint")]
    quant_method: Option<String>,
    /// What shares a scale, over config.json: per_group, per_channel or per_tensor
    #[arg(long, value_name = "WHAT", help_heading = "Checkpoint")]
    granularity: Option<String>,
    /// Weights a scale for per_group, over config.json
    #[arg(long, value_name = "N", help_heading = "Checkpoint")]
    group_size: Option<usize>,
    /// The factor of the dead zone, over `eps` of config.json
    #[arg(
        long,
        visible_alias = "eps",
        value_name = "X",
        help_heading = "Checkpoint"
    )]
    lambda: Option<f64>,
}

impl CheckpointArgs {
    /// Open the checkpoint at `path`.
    pub fn open(&self, path: &Path) -> anyhow::Result<Checkpoint> {
        let source = Source::find(path, self.config.as_deref(), self.tokenizer.as_deref())?;
        let overrides = TrainingOverrides {
            method: self.quant_method.clone(),
            granularity: self.granularity.clone(),
            group_size: self.group_size,
            lambda: self.lambda,
        };
        Ok(Checkpoint::open(source, &overrides)?)
    }

    /// Read the tokenizer of an opened checkpoint.
    pub fn read_tokenizer(
        &self,
        files: &TokenizerFiles,
        checkpoint: &Checkpoint,
    ) -> anyhow::Result<Tokenizer> {
        let config = &checkpoint.config;
        let pre = self.tokenizer_pre.as_deref();
        Ok(tokenizer::read(
            files,
            config.vocab_size,
            &config.special_ids,
            pre,
        )?)
    }
}
