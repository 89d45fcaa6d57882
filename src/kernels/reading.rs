//! Reading memory as fast as products of one token can, to measure them against.

#[cfg(target_arch = "x86_64")]
use super::x86::fetch_far;

const LINE: usize = 64;

/// The exclusive or of all whole cache lines of `memory`. Lines are fetched ahead where kernels fetch theirs.
pub fn read(memory: &[u8]) -> [u8; LINE] {
    let mut all = [0; LINE];
    for line in memory.as_chunks::<LINE>().0 {
        #[cfg(target_arch = "x86_64")]
        fetch_far(line);
        for (all, byte) in all.iter_mut().zip(line) {
            *all ^= byte;
        }
    }
    all
}
