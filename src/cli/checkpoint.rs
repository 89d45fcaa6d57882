//! Arguments that say what a checkpoint does not say itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;

use super::shell;
use crate::model::tokenizer::{self, Tokenizer, TokenizerFiles};
use crate::model::{Checkpoint, ModelError, Source, TrainingOverrides};

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
    /// How it was trained; overrides config.json: ultraquantv2 or ultraquantv3
    #[arg(long, value_name = "METHOD", help_heading = "Checkpoint")]
    quant_method: Option<String>,
    /// What shares a scale; overrides config.json: per_group, per_channel or per_tensor
    #[arg(long, value_name = "WHAT", help_heading = "Checkpoint")]
    granularity: Option<String>,
    /// Weights a scale for per_group; overrides config.json
    #[arg(long, value_name = "N", help_heading = "Checkpoint")]
    group_size: Option<usize>,
    /// The factor of the dead zone, over `eps` of config.json
    #[arg(long, visible_alias = "eps", value_name = "X", help_heading = "Checkpoint")]
    lambda: Option<f64>,
}

impl CheckpointArgs {
    /// A GGUF file has nothing that these arguments could say.
    ///
    /// # Errors
    /// One of them was given.
    pub fn none_for_gguf(&self, path: &Path) -> anyhow::Result<()> {
        match self.words().first() {
            None => Ok(()),
            Some(option) => anyhow::bail!(
                "{}: is a GGUF file, which says by itself what {} says of a checkpoint; leave it out",
                path.display(),
                option.display()
            ),
        }
    }

    /// Open the checkpoint at `path`.
    pub fn open(&self, path: &Path) -> anyhow::Result<Checkpoint> {
        let source = Source::find(path, self.config.as_deref(), self.tokenizer.as_deref())?;
        let overrides = TrainingOverrides {
            method: self.quant_method.clone(),
            granularity: self.granularity.clone(),
            group_size: self.group_size,
            lambda: self.lambda,
        };
        Checkpoint::open(source, &overrides).map_err(|error| self.of_argument(error).into())
    }

    /// The error, about the argument where it was one of them that said so and not config.json.
    fn of_argument(&self, error: ModelError) -> ModelError {
        let given = [
            ("granularity", "--granularity", self.granularity.is_some()),
            ("group_size", "--group-size", self.group_size.is_some()),
            ("eps", "--lambda", self.lambda.is_some()),
            ("quant_method", "--quant-method", self.quant_method.is_some()),
        ];
        match error {
            ModelError::Key {
                path,
                key,
                found,
                expected,
            } => match given.iter().find(|(name, _, given)| *given && *name == key) {
                Some((_, flag, _)) => ModelError::Argument { flag, found, expected },
                None => ModelError::Key {
                    path,
                    key,
                    found,
                    expected,
                },
            },
            error => error,
        }
    }

    /// These arguments again, as words of a command.
    pub fn words(&self) -> Vec<OsString> {
        let number = |number: usize| OsString::from(number.to_string());
        let text = |text: &String| OsString::from(text);
        let given = [
            ("--config", self.config.clone().map(OsString::from)),
            ("--tokenizer", self.tokenizer.clone().map(OsString::from)),
            ("--tokenizer-pre", self.tokenizer_pre.as_ref().map(text)),
            ("--quant-method", self.quant_method.as_ref().map(text)),
            ("--granularity", self.granularity.as_ref().map(text)),
            ("--group-size", self.group_size.map(number)),
            ("--lambda", self.lambda.map(|lambda| lambda.to_string().into())),
        ];
        let words = |(flag, value): (&str, Option<OsString>)| Some(shell::option(flag, value?));
        given.into_iter().filter_map(words).flatten().collect()
    }

    /// Read the tokenizer of an opened checkpoint.
    pub fn read_tokenizer(&self, files: &TokenizerFiles, checkpoint: &Checkpoint) -> anyhow::Result<Tokenizer> {
        let config = &checkpoint.config;
        let pre = self.tokenizer_pre.as_deref();
        Ok(tokenizer::read(files, config.dims.vocab, &config.special_ids, pre)?)
    }
}
