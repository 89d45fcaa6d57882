//! Kernels for AArch64.

use super::kernel::Kernel;

/// The NEON kernel, where the CPU has `sdot`.
pub(super) fn dotprod() -> Option<&'static dyn Kernel> {
    None
}

/// The NEON kernel with `smmla`, where the CPU has I8MM.
pub(super) fn i8mm() -> Option<&'static dyn Kernel> {
    None
}
