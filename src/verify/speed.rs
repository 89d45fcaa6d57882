//! Level 5: both engines on the same file in the same run, against the clock and against what the memory can give.

use std::path::Path;

use formats::gguf::File;

use super::report::{Level, LevelReport};
use super::{Options, Progress, VerifyError, witness};
use crate::bench::{SpeedFacts, Workload, race};
use crate::engine::hyper::Hyper;

/// Level 5.
pub(super) fn check(
    path: &Path,
    file: &File,
    options: &Options,
    progress: &Progress,
) -> Result<(LevelReport, Option<SpeedFacts>), VerifyError> {
    if let Err(error) = Hyper::read(file) {
        return Ok((LevelReport::not_checked(Level::Speed, error.to_string()), None));
    }
    let progress = |what: &str, share| progress(&format!("speed: {what}"), share);
    let workload = Workload {
        activations: options.activations,
        cache: options.cache,
        ..Workload::new(options.threads)
    };
    let (facts, missing) = race(path, file, &options.witness, workload, &progress)?;
    let (mut checks, mut not_checked) = (vec![], vec![]);
    if let Some(error) = missing {
        witness::lost(error, &mut checks, &mut not_checked)?;
    }
    let level = if checks.is_empty() {
        LevelReport::measured(Level::Speed, not_checked)
    } else {
        LevelReport::new(Level::Speed, checks, not_checked)
    };
    Ok((level, Some(facts)))
}
