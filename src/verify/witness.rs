//! llama.cpp as a witness of level 4: its logits, and the tokens that it splits texts into. And what it means for any
//! level when it refuses, crashes or is not there.

use std::path::Path;

use formats::gguf::File;

use super::report::{Check, CheckId, NotChecked};
use super::{Options, VerifyError};
use crate::engine::llamacpp::{Model, Settings};
use crate::engine::text::{HARD, Windows};
use crate::engine::{Engine, EngineError};
use crate::witness::WitnessError;

/// What a witness's failure means: a check `id` that fails where it is a finding, nothing to check with where no witness
/// is built in, and else an error: something was lacking here, which says nothing of the file.
pub(super) fn failed(
    id: CheckId,
    error: WitnessError,
    checks: &mut Vec<Check>,
    not_checked: &mut Vec<NotChecked>,
) -> Result<(), VerifyError> {
    const ORIGIN: &str = "llama.cpp has to survive what it is to run";
    match error {
        WitnessError::NotBuiltIn => not_checked.push(NotChecked::new(id.name(), error.to_string())),
        error if error.is_finding() => {
            let check = Check::none_differ(id, 1, 1, "runs of llama.cpp", ORIGIN);
            checks.push(check.with_details(vec![error.to_string()]));
        }
        error => return Err(error.into()),
    }
    Ok(())
}

/// The same for an engine: what is no failure of llama.cpp's keeps it from being checked.
pub(super) fn lost(
    error: EngineError,
    checks: &mut Vec<Check>,
    not_checked: &mut Vec<NotChecked>,
) -> Result<(), VerifyError> {
    const ID: CheckId = CheckId::LlamaCppRuns;
    match error {
        EngineError::Witness(error) => failed(ID, error, checks, not_checked),
        error => {
            not_checked.push(NotChecked::new(ID.name(), error.to_string()));
            Ok(())
        }
    }
}

/// llama.cpp with the model of the file.
pub(super) struct Witness(Model);

impl Witness {
    pub(super) fn load(path: &Path, file: &File, options: &Options) -> Result<Self, EngineError> {
        Model::load(&options.witness, path, file).map(Self)
    }

    /// Of a file of any architecture.
    pub(super) fn load_any(path: &Path, file: &File, options: &Options) -> Result<Self, EngineError> {
        Model::load_any(&options.witness, path, file).map(Self)
    }

    pub(super) fn engine(&self, text: &Windows, threads: usize) -> Result<Box<dyn Engine + '_>, EngineError> {
        let settings = Settings {
            context: text.window,
            threads,
            exact_cache: true,
        };
        Ok(Box::new(self.0.session(settings)?))
    }

    /// Whether llama.cpp splits texts into the tokens that we split them into, as far as the vocabulary can spell them.
    pub(super) fn same_tokens(&self, text: &Windows) -> Result<Check, EngineError> {
        const ORIGIN: &str = "our tokenizer and llama.cpp's on the same keys";
        let texts = HARD.iter().map(|(_, hard)| *hard);
        let texts = texts.chain([text.samples.text.as_str()]);
        let (mut problems, mut count) = (vec![], 0);
        for sample in texts.filter(|sample| text.samples.tokenizer.can_spell(sample)) {
            count += 1;
            let ours = text.samples.tokenizer.encode(sample, false);
            let theirs = self.0.tokenize(sample, false, false)?;
            let at = (0..ours.len().max(theirs.len())).find(|&i| ours.get(i) != theirs.get(i));
            if let Some(at) = at {
                let start: String = sample.chars().take(24).collect();
                problems.push(format!(
                    "token {at} of {start:?}: {:?} to us, {:?} to llama.cpp",
                    ours.get(at),
                    theirs.get(at)
                ));
            }
        }
        Ok(Check::no_problems(
            CheckId::TextsAlike,
            problems,
            count,
            "texts",
            ORIGIN,
        ))
    }
}
