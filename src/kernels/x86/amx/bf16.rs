//! Products of bf16 numbers on tile registers.

use super::registers::{Bf16, Registers, amx_bf16};
use crate::kernels::bf16::Product;

/// Tiles of sums in registers together.
const TILES: usize = 4;

/// The tile registers of this thread, until this is dropped.
pub struct Bf16Tiles {
    registers: Registers,
    bf16: Bf16,
}

impl Bf16Tiles {
    /// Where the CPU has AMX-BF16 and the system permits it.
    pub fn configure() -> Option<Self> {
        let (amx, bf16) = amx_bf16()?;
        let registers = Registers::configure(amx);
        Some(Self { registers, bf16 })
    }

    /// Make this product.
    ///
    /// # Panics
    /// Its lengths do not fit.
    #[inline(always)]
    pub fn multiply(&mut self, Product { a, b, sums, add }: Product<'_>) {
        assert_eq!(b.len(), a.len() * sums.len());
        for (sums, b) in sums.chunks_mut(TILES).zip(b.chunks(TILES * a.len())) {
            self.registers.multiply_bf16(self.bf16, a, b, sums, add);
        }
    }
}
