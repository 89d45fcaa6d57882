//! NMSE, KLD, top-1 agreement, perplexity, medians.
