//! llama.cpp on the file and on the one that it was packed from, where our engine does not know the architecture.

use std::path::Path;

use formats::gguf::File;

use super::super::distance::Distance;
use super::super::report::{Check, CheckId, Level, LevelReport, Limit, NotChecked, Unit};
use super::super::witness::{self, Witness};
use super::super::{Options, Progress, VerifyError};
use super::windows;
use crate::engine::EngineError;
use crate::engine::text::Windows;
use crate::metrics::{self, Predictions};

/// The mean KLD, in nats a token, that the files may have from each other. Each rounds activations by the rules of its
/// types, which cost models up to 0.5 where it was measured (docs/verify.md), and no pass of ours tells what it costs this
/// one: a limit for gross faults.
const MOST_KLD: f64 = 0.5;

/// Run llama.cpp on `file` and `source`. `why`: what our engine lacks.
pub fn check(
    file: (&Path, &File),
    source: (&Path, &File),
    why: String,
    options: &Options,
    progress: &Progress,
) -> Result<LevelReport, VerifyError> {
    let (mut checks, mut not_checked) = (vec![], vec![NotChecked::new("our engine", why)]);
    match windows(file.1, options) {
        Err(why) => not_checked.push(NotChecked::new("the logits of both files", why)),
        Ok(text) => match distance(file, source, &text, options, progress) {
            Ok(found) => checks.push(limit(&found, options)),
            Err(error) => witness::lost(error, &mut checks, &mut not_checked)?,
        },
    }
    Ok(LevelReport::new(Level::Logits, checks, not_checked))
}

fn limit(found: &Distance, options: &Options) -> Check {
    let (at_most, origin) = match options.max_kld {
        Some(at_most) => (at_most, "--max-kld"),
        None => (MOST_KLD, "gross faults; --max-kld sets a closer one"),
    };
    let kld = metrics::mean(&found.kld);
    let check = Check::new(CheckId::MeanKld, kld, Unit::NatsPerToken, Limit { at_most }, origin);
    check.of_engine("llama.cpp", "llama.cpp on both files: mean KLD".into())
}

fn distance(
    file: (&Path, &File),
    source: (&Path, &File),
    text: &Windows,
    options: &Options,
    progress: &Progress,
) -> Result<Distance, EngineError> {
    let (ours, theirs) = (load(file, options)?, load(source, options)?);
    let mut ours = ours.engine(text, options.threads)?;
    let mut theirs = theirs.engine(text, options.threads)?;
    let mut found = Distance::default();
    for (index, window) in text.windows.iter().enumerate() {
        let share = index as f64 / text.windows.len() as f64;
        progress("llama.cpp on both files", Some(share));
        let (expected, logits) = (theirs.logits(&window.tokens)?, ours.logits(&window.tokens)?);
        let vocab = expected.len() / window.tokens.len();
        found.add(&Predictions::new(&expected, vocab), &Predictions::new(&logits, vocab));
    }
    Ok(found)
}

fn load((path, file): (&Path, &File), options: &Options) -> Result<Witness, EngineError> {
    Witness::load_any(path, file, options)
}
