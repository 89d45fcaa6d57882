//! Kernels for x86-64. A kernel value is made only after the CPU was asked for every feature that it uses.

#![allow(
    clippy::needless_range_loop,
    reason = "an index names the same lane, token or step in several arrays of registers"
)]

mod avx2;
mod avx512;

use super::kernel::Kernel;

/// The AVX2 kernel, where the CPU has AVX2, FMA and F16C.
pub(super) fn avx2() -> Option<&'static dyn Kernel> {
    avx2::maddubs()
}

/// The AVX2 kernel with `vpdpbusd`, where the CPU has AVX-VNNI too.
pub(super) fn avx_vnni() -> Option<&'static dyn Kernel> {
    avx2::vnni()
}

/// The same body in AVX-512's encoding, to test it on CPUs without AVX-VNNI.
#[cfg(test)]
pub(super) fn avx_vnni_as_evex() -> Option<&'static dyn Kernel> {
    avx2::evex_vnni()
}

/// The AVX-512 kernel, where the CPU has F, BW, VL and VNNI.
pub(super) fn avx512_vnni() -> Option<&'static dyn Kernel> {
    avx512::Avx512Vnni::detect().map(|kernel| kernel as &dyn Kernel)
}
