//! Speed: single products, and whole models, ours and llama.cpp's in turns of one run, beside what memory can give.
//!
//! | file | what lives there |
//! |---|---|
//! | `products` | matrix products, ours and ggml's |
//! | `race` | prefill and decode of a whole model by both engines |
//! | `line` | fixed costs, told from the bytes read |
//! | `memory` | the speed at which the machine reads |
//! | `sample` | weights and activations to multiply |

mod line;
mod memory;
mod products;
mod race;
mod sample;

pub use line::{Line, TokenCost};
pub use products::{BenchError, Case, Outcome, Seconds, measure};
pub use race::{EngineSpeed, LoadFacts, Progress, Rate, SpeedFacts, Workload, race};
