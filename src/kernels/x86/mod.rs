//! Kernels for x86-64. A kernel value is made only after the CPU was asked for every feature that it uses.

#![allow(
    clippy::needless_range_loop,
    reason = "an index names the same lane, token or step in several arrays of registers"
)]

mod amx;
mod avx2;
mod avx512;
mod floats512;
mod lut;
mod one_token;
mod quantize;
mod zmm;

pub use amx::Bf16Tiles;
pub(super) use amx::{TILES_FROM, avx512_amx};
#[cfg(test)]
pub(super) use avx2::avx_vnni_as_evex;
pub(super) use avx2::{avx_vnni, avx2};
pub(super) use avx512::avx512_vnni;
pub(super) use lut::load_lut;

use super::memory;
use std::arch::x86_64::{__cpuid, _MM_HINT_T0, _mm_prefetch};

/// Whether this is a Zen 4, as far as it has AVX-512: AMD's family 25.
pub(super) fn is_zen_4() -> bool {
    let vendor = __cpuid(0);
    let version = __cpuid(1).eax;
    let family = (version >> 8 & 15) + (version >> 20 & 255);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    name.as_flattened() == b"AuthenticAMD" && family == 25
}

/// Bytes to fetch ahead of the codes in use.
const AHEAD: usize = 512;
/// The same for one token.
const FAR_AHEAD: usize = 4096;

/// Fetch the codes that follow in [`AHEAD`] bytes.
#[inline(always)]
fn fetch(codes: &[u8]) {
    fetch_ahead(codes, AHEAD);
}

/// The same in [`FAR_AHEAD`] bytes.
#[inline(always)]
pub(super) fn fetch_far(codes: &[u8]) {
    fetch_ahead(codes, FAR_AHEAD);
}

/// Fetch as many bytes as `codes` has, `ahead` bytes behind its start.
#[inline(always)]
fn fetch_ahead(codes: &[u8], ahead: usize) {
    for line in (0..codes.len()).step_by(64) {
        let ahead = codes.as_ptr().wrapping_add(ahead + line);
        // SAFETY: every CPU of this architecture has the instruction; it reads nothing and may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) };
    }
}

/// Fetch `codes` as far as the second-level cache.
#[inline(always)]
fn fetch_to_l2(codes: &[u8]) {
    for line in codes.chunks(64) {
        memory::fetch(line.as_ptr());
    }
}
