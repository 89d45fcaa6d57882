//! Floats that are ternary already: rows are taken as they are.

use crate::blueprint::Linear;
use crate::model::{Checkpoint, Floats};
use crate::pack::rounded::Rounded;
use crate::pack::source::TernaryRows;
use crate::pack::ternary::Levels;
use crate::simd::Level;

/// The rows of `linear`, which is ternary.
pub fn rows<'a>(
    scheme: &Floats,
    checkpoint: &'a Checkpoint,
    linear: Linear,
    level: Level,
) -> Box<dyn TernaryRows + 'a> {
    let name = checkpoint.weight_name(linear);
    Box::new(Rounded {
        name: name.into(),
        blocks: checkpoint.weight(linear).blocks(),
        levels: Levels::Three,
        run: scheme.runs[name],
        level,
    })
}
