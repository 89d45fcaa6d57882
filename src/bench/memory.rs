//! How fast the machine reads memory.

use std::hint::black_box;
use std::io;
use std::time::Instant;

use crate::kernels::memory::Region;
use crate::kernels::{Threads, read};

/// Bytes that a thread takes at a time.
const PIECE: usize = 4 << 20;

/// Memory as weights lie in it: in huge pages where the system gives them, all of which exist.
pub struct Memory(Region);

impl Memory {
    pub fn new(bytes: usize) -> io::Result<Self> {
        let mut region = Region::zeroed(bytes)?;
        region.fill(1);
        Ok(Self(region))
    }

    /// Bytes a second at which all threads together read it once.
    pub fn read_rate(&self, threads: &Threads) -> f64 {
        let start = Instant::now();
        threads.run(self.0.len().div_ceil(PIECE), |i| {
            let end = self.0.len().min((i + 1) * PIECE);
            black_box(read(&self.0[i * PIECE..end]));
        });
        self.0.len() as f64 / start.elapsed().as_secs_f64()
    }
}
