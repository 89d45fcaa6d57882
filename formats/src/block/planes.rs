//! 256 two-bit numbers in 64 bytes, the arrangement that TQ2_0 and Q2_K share.
//!
//! Number k lies in half h = k/128 and plane p = k%128/32:
//! byte 32h + k%32, bits 2p..2p+1.

pub(super) const BYTES: usize = 64;
const HALF: usize = 128;
const PLANE: usize = 32;

/// `stored`: (256,) each 0..=3.
#[inline(always)]
pub(super) fn pack(stored: &[u8; 256]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    pack_into(stored, &mut bytes);
    bytes
}

/// The same in place. What is built beside its place is stored in halves, and read back whole only when they have
/// arrived.
#[inline(always)]
pub(super) fn pack_into(stored: &[u8; 256], bytes: &mut [u8; BYTES]) {
    let (halves, _) = stored.as_chunks::<HALF>();
    let (outs, _) = bytes.as_chunks_mut::<PLANE>();
    for (half, out) in halves.iter().zip(outs) {
        for (m, byte) in out.iter_mut().enumerate() {
            *byte = half[m] | half[PLANE + m] << 2 | half[2 * PLANE + m] << 4 | half[3 * PLANE + m] << 6;
        }
    }
}

/// `bytes`: ([`BYTES`],).  `out`: (256,) of `value(number)`, each number 0..=3.
#[inline]
pub(super) fn unpack<T>(bytes: &[u8], out: &mut [T; 256], value: impl Fn(u8) -> T) {
    let (halves, _) = bytes.as_chunks::<PLANE>();
    let (outs, _) = out.as_chunks_mut::<HALF>();
    for (half, out) in halves.iter().zip(outs) {
        let (planes, _) = out.as_chunks_mut::<PLANE>();
        for (p, plane) in planes.iter_mut().enumerate() {
            for (slot, byte) in plane.iter_mut().zip(half) {
                *slot = value(byte >> (2 * p) & 3);
            }
        }
    }
}
