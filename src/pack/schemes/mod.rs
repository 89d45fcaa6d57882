//! The training schemes, one file each: how a linear of a checkpoint becomes ternary rows. `verify::schemes` restates
//! each of them plainly, and shares nothing with these.

mod bitnet;
mod clipped;
#[cfg(test)]
mod made_up;
mod sherry;
mod tequila;
mod twn;

use super::PackError;
use super::source::TernaryRows;
use crate::blueprint::Linear;
use crate::model::{Checkpoint, Scheme};
use crate::simd::Level;

/// The rows of `linear` as the checkpoint's scheme has them. Reads weights only where a scale takes all of them.
///
/// # Errors
/// A file that cannot be read; a number that is not finite.
pub fn rows<'a>(
    checkpoint: &'a Checkpoint,
    linear: Linear,
    level: Level,
) -> Result<Box<dyn TernaryRows + 'a>, PackError> {
    match &checkpoint.scheme {
        Scheme::Tequila(scheme) => tequila::rows(scheme, checkpoint, linear, level),
        Scheme::Sherry(scheme) => sherry::rows(scheme, checkpoint, linear, level),
        Scheme::Twn(scheme) => twn::rows(scheme, checkpoint, linear),
        Scheme::Clipped(scheme) => clipped::rows(*scheme, checkpoint, linear),
        Scheme::BitNet(_) => bitnet::rows(checkpoint, linear),
        #[cfg(test)]
        Scheme::MadeUp(scheme) => made_up::rows(scheme, checkpoint, linear, level),
    }
}
