//! Methods that learn a clipping range for each row, of which the scale is made: LSQ (arXiv 1902.08153), and SEQ, which
//! ParetoQ (arXiv 2502.02631) trains its models of 1.58 bits with.

use formats::gguf::Value;
use formats::safetensors::Dtype;

use super::{Granularity, Scheme, Settings, Training, TrainingFacts};
use crate::model::ModelError;

pub(super) const LSQ: &str = "lsq";
pub(super) const SEQ: &str = "seq";

/// The last name of the tensor of clipping ranges: (rows, 1).
pub const CLIP: &str = "weight_clip_val";

pub(super) const MISSING_CLIP: &str = "lsq and seq (ParetoQ) learn one number a row; where the model was trained \
                                       otherwise, say so with --trained-as NAME";
pub(super) const SURPLUS_CLIP: &str = "a learned clipping range belongs to lsq or seq (ParetoQ): --trained-as seq";

/// How the latent weights become ternary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clipped {
    /// Codes are the weights by the range, rounded; the range is the scale.
    Lsq,
    /// Levels are -2/3, 0 and 2/3 of the range.
    Seq,
}

/// # Errors
/// More bits than ternary training has.
pub(super) fn read(settings: &Settings) -> Result<Scheme, ModelError> {
    let (scheme, method) = match settings.method.as_str() {
        LSQ => (Clipped::Lsq, LSQ),
        _ => (Clipped::Seq, SEQ),
    };
    settings.check_bits(method)?;
    Ok(Scheme::Clipped(scheme))
}

impl Clipped {
    fn method(self) -> &'static str {
        match self {
            Clipped::Lsq => LSQ,
            Clipped::Seq => SEQ,
        }
    }
}

impl Training for Clipped {
    fn text(&self) -> String {
        let of = match self {
            Clipped::Lsq => "",
            Clipped::Seq => " (ParetoQ)",
        };
        format!("{}{of}, {}, learned scales", self.method(), Granularity::Channel)
    }

    fn facts(&self) -> TrainingFacts {
        Granularity::Channel.facts(self.method())
    }

    fn keys(&self, _dtype: Dtype) -> Vec<(&'static str, Value)> {
        Granularity::Channel.keys(self.method())
    }

    fn tensors(&self, rows: usize, _columns: usize) -> Vec<(&'static str, Vec<Vec<usize>>)> {
        vec![(CLIP, vec![vec![rows, 1]])]
    }
}
