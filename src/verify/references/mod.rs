//! Where the reference passes of level 4 get their weights: [`Latent`] from the checkpoint, by the formula; [`Stored`] from
//! the file, as its types spell them out; [`Turned`] from both.

mod latent;
mod stored;
mod turned;

pub(super) use latent::Latent;
pub(super) use stored::{Rounded, Stored};
pub(super) use turned::Turned;
