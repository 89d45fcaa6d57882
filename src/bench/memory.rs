//! How fast the machine reads memory.

use std::hint::black_box;
use std::time::Instant;

use crate::kernels::Threads;

/// Words that a thread takes at a time: 4 MiB.
const PIECE: usize = 1 << 19;

/// Bytes a second at which all threads together read `memory` once.
pub fn read_rate(memory: &[u64], threads: &Threads) -> f64 {
    let start = Instant::now();
    threads.run(memory.len().div_ceil(PIECE), |i| {
        let end = memory.len().min((i + 1) * PIECE);
        black_box(memory[i * PIECE..end].iter().fold(0, |all, word| all ^ word));
    });
    size_of_val(memory) as f64 / start.elapsed().as_secs_f64()
}
