//! Kernels for x86-64. A kernel value is made only here, after the CPU was asked for every feature it uses.

mod avx512;

use super::kernel::Kernel;

/// The AVX2 kernel, where the CPU has AVX2, FMA and F16C.
pub(super) fn avx2() -> Option<&'static dyn Kernel> {
    None
}

/// The AVX2 kernel with `vpdpbusd`, where the CPU has AVX-VNNI too.
pub(super) fn avx_vnni() -> Option<&'static dyn Kernel> {
    None
}

/// The AVX-512 kernel, where the CPU has F, BW, VL and VNNI.
pub(super) fn avx512_vnni() -> Option<&'static dyn Kernel> {
    avx512::Avx512Vnni::detect().map(|kernel| kernel as &dyn Kernel)
}
