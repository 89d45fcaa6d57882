//! The formula: one group of latent weights to scale, codes and offline bias.
