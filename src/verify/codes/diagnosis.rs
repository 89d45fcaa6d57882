//! Where the rows of a badly wrong tensor come from.

use super::super::latent::{Latent, LatentRow, row_order};
use super::row::Stored;
use crate::blueprint::Linear;
use crate::model::Checkpoint;

/// What a tensor holds in place of `linear`, where that can be told: its rows in the checkpoint's order, or another linear.
pub(super) fn diagnose(checkpoint: &Checkpoint, linear: Linear, stored: &Stored) -> Option<String> {
    let (config, name) = (&checkpoint.config, &stored.info.name);
    let plain: Vec<usize> = (0..stored.latent.rows).collect();
    if row_order(linear, config) != plain && holds(stored, stored.latent, &plain)? {
        return Some(format!(
            "tensor '{name}' holds its rows in the checkpoint's order: they are not permuted for llama.cpp"
        ));
    }
    let shape = linear.shape(&config.dims);
    for other in config
        .linears()
        .filter(|other| *other != linear && other.shape(&config.dims) == shape && checkpoint.is_ternary(*other))
    {
        let latent = Latent::new(checkpoint, other).ok()?;
        if holds(stored, &latent, &row_order(other, config))? {
            return Some(format!("tensor '{name}' holds {}", other.checkpoint_name()));
        }
    }
    None
}

/// Whether the codes of a sample of rows are those of `latent` in this order.
fn holds(stored: &Stored, latent: &Latent, order: &[usize]) -> Option<bool> {
    const SAMPLES: usize = 16;
    let step = latent.rows.div_ceil(SAMPLES);
    let run = stored.info.ty.scale_run()?;
    let mut expected = LatentRow::default();
    let mut codes = vec![0; latent.columns];
    let mut scales = vec![0.0; latent.columns / run];
    for row in (step / 2..latent.rows).step_by(step) {
        let bytes = stored.row(row);
        stored.info.ty.unpack_ternary_row(bytes, &mut codes, &mut scales).ok()?;
        latent.read(order[row], &mut expected).ok()?;
        if codes != expected.codes {
            return Some(false);
        }
    }
    Some(true)
}
