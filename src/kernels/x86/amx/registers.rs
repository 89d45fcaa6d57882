//! The tile registers: eight, of 16 rows of 64 bytes. Compilers do not know them yet, so they are in assembly, and what
//! is in them stays there from one block of it to the next.
//!
//! ```text
//! tmm0  first panel x first row group     tmm1  first panel x second row group        sums, i32: a row is a token
//! tmm2  second panel x first row group    tmm3  second panel x second row group
//! tmm4, tmm5  activations of the panels: a row is 64 columns of a token
//! tmm6, tmm7  codes of the row groups: a row is 4 columns of 16 rows
//! ```
//! Products of bf16 have sums of f32 in tmm0 to tmm3 and factors in tmm4 and tmm6.

use crate::kernels::bf16::{Pairs, Sums};
use crate::kernels::contract::{Line, NR};
use crate::system;
use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// What a register holds.
pub(super) type Block = [Line; NR];

/// The proof that the CPU has AMX-TILE and AMX-INT8 and that the system lets this process use them.
#[derive(Clone, Copy)]
pub(super) struct Amx(());

/// The proof, where there is one. The system is asked once, since it gives every thread room for the registers then.
pub(super) fn amx() -> Option<Amx> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = || is_x86_feature_detected!("xsave") && has_tiles() && system::permit_tiles();
    FOUND.get_or_init(found).then_some(Amx(()))
}

/// The proof that the CPU has AMX-BF16, too.
#[derive(Clone, Copy)]
pub(super) struct Bf16(());

/// The proofs, where they are. The CPU is asked once, which takes long in a virtual machine.
pub(super) fn amx_bf16() -> Option<(Amx, Bf16)> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = || __cpuid_count(7, 0).edx >> 22 & 1 == 1;
    Some((amx()?, FOUND.get_or_init(found).then_some(Bf16(()))?))
}

/// Whether the CPU has AMX-TILE and AMX-INT8, and the system keeps the registers of threads that do not run.
fn has_tiles() -> bool {
    let features = __cpuid_count(7, 0).edx >> 24;
    // SAFETY: the caller found that the instruction is there.
    let kept = unsafe { _xgetbv(0) } >> 17;
    features & kept as u32 & 3 == 3
}

/// The registers of this thread, all of full size, until this is dropped: left as they are, they would make every change
/// of threads carry 8 KiB.
pub(super) struct Registers(PhantomData<*mut ()>);

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

macro_rules! zero {
    ($register:tt) => {
        // SAFETY: a value of `Registers` is there while they are configured; changed is the register alone.
        unsafe { asm!(concat!("tilezero ", $register), out($register) _, options(nomem, nostack, preserves_flags)) }
    };
}

macro_rules! load {
    ($register:tt, $block:expr) => {
        // SAFETY: a value of `Registers` is there while they are configured; read are the 16 lines of a block.
        unsafe {
            asm!(
                concat!("tileloadd ", $register, ", [{} + {}]"),
                in(reg) start($block),
                in(reg) size_of::<Line>(),
                out($register) _,
                options(readonly, nostack, preserves_flags)
            )
        }
    };
}

/// Add the products of `$a` and `$b`, by this instruction, to `$sums`.
macro_rules! dot {
    ($sums:tt, $a:tt, $b:tt) => {
        dot!("tdpbssd", $sums, $a, $b)
    };
    ($instruction:tt, $sums:tt, $a:tt, $b:tt) => {
        // SAFETY: a value of `Registers` is there while they are configured; changed is the register alone.
        unsafe {
            asm!(
                concat!($instruction, " ", $sums, ", ", $a, ", ", $b),
                out($sums) _,
                options(nomem, nostack, preserves_flags)
            )
        }
    };
}

macro_rules! store {
    ($register:tt, $block:expr) => {
        // SAFETY: a value of `Registers` is there while they are configured; written are the 16 lines of a block.
        unsafe {
            asm!(
                concat!("tilestored [{} + {}], ", $register),
                in(reg) start_mut($block),
                in(reg) size_of::<Line>(),
                options(nostack, preserves_flags)
            )
        }
    };
}

/// Where the 16 lines of a block begin.
#[inline(always)]
fn start<T>(block: &[T; NR]) -> *const T {
    const { assert!(size_of::<T>() == size_of::<Line>()) };
    block.as_ptr()
}

/// The same, to be written.
#[inline(always)]
fn start_mut<T>(block: &mut [T; NR]) -> *mut T {
    const { assert!(size_of::<T>() == size_of::<Line>()) };
    block.as_mut_ptr()
}

/// Tile instructions of 64 columns of a run: four that load, four that multiply.
pub(super) const PARTS: usize = 8;

/// What is computed beside tile instructions, a part of it after each: two of them in a row hold each other up in the slow
/// state of a core (docs/benchmarks.md, "Many tokens on AMX").
pub(super) trait Beside<const K: usize> {
    /// Part `part` of PARTS * K. Of `codes[k]` the first was read before part PARTS * k, the second before part
    /// PARTS * k + 3; of `sums`, which are those before, the first was written before part 0, the second before part 2, and
    /// so on.
    fn part(&mut self, part: usize, codes: &mut [[Block; 2]; K], sums: &[Block; 4]);
}

/// Nothing.
impl<const K: usize> Beside<K> for () {
    #[inline(always)]
    fn part(&mut self, _part: usize, _codes: &mut [[Block; 2]; K], _sums: &[Block; 4]) {}
}

impl Registers {
    pub fn configure(_: Amx) -> Registers {
        // SAFETY: `Amx` is the proof that the instruction is there; read is `SHAPES`.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, preserves_flags, readonly)) };
        Registers(PhantomData)
    }

    /// Multiply one or two panels with two row groups, over 64 * K columns. The products are in the registers afterwards,
    /// and go to `sums` with the next call, each just before its register is wanted: nothing waits for them.
    #[inline(always)]
    pub fn multiply<const K: usize>(
        &self,
        first: &[Block; K],
        second: Option<&[Block; K]>,
        codes: &mut [[Block; 2]; K],
        sums: &mut [Block; 4],
        beside: &mut impl Beside<K>,
    ) {
        macro_rules! columns {
            ($k:literal) => {
                if $k < K {
                    macro_rules! begin {
                        ($tile:literal, $register:tt) => {
                            if $k == 0 {
                                store!($register, &mut sums[$tile]);
                                zero!($register);
                            }
                        };
                    }
                    macro_rules! part {
                        ($part:literal) => {
                            beside.part(PARTS * $k + $part, codes, sums)
                        };
                    }
                    begin!(0, "tmm0");
                    load!("tmm6", &codes[$k][0]);
                    part!(0);
                    load!("tmm4", &first[$k]);
                    part!(1);
                    begin!(1, "tmm1");
                    dot!("tmm0", "tmm4", "tmm6");
                    part!(2);
                    load!("tmm7", &codes[$k][1]);
                    part!(3);
                    begin!(2, "tmm2");
                    dot!("tmm1", "tmm4", "tmm7");
                    part!(4);
                    if let Some(second) = second {
                        load!("tmm5", &second[$k]);
                    }
                    part!(5);
                    begin!(3, "tmm3");
                    if second.is_some() {
                        dot!("tmm2", "tmm5", "tmm6");
                    }
                    part!(6);
                    if second.is_some() {
                        dot!("tmm3", "tmm5", "tmm7");
                    }
                    part!(7);
                }
            };
        }
        columns!(0);
        columns!(1);
        columns!(2);
        columns!(3);
    }

    /// [`super::Bf16Tiles::multiply`] for up to four tiles of sums.
    #[inline(always)]
    pub fn multiply_bf16(&self, _: Bf16, a: &[Pairs], b: &[Pairs], sums: &mut [Sums], add: bool) {
        macro_rules! each {
            ($do:ident) => {
                $do!(0, "tmm0");
                $do!(1, "tmm1");
                $do!(2, "tmm2");
                $do!(3, "tmm3");
            };
        }
        macro_rules! begin {
            ($tile:literal, $register:tt) => {
                match sums.get($tile) {
                    Some(sums) if add => load!($register, sums),
                    _ => zero!($register),
                }
            };
        }
        macro_rules! end {
            ($tile:literal, $register:tt) => {
                if let Some(sums) = sums.get_mut($tile) {
                    store!($register, sums);
                }
            };
        }
        each!(begin);
        for (block, of_a) in a.iter().enumerate() {
            macro_rules! add {
                ($tile:literal, $register:tt) => {
                    if $tile < sums.len() {
                        load!("tmm6", &b[$tile * a.len() + block]);
                        dot!("tdpbf16ps", $register, "tmm4", "tmm6");
                    }
                };
            }
            load!("tmm4", of_a);
            each!(add);
        }
        each!(end);
    }

    /// What [`Registers::multiply`] computed last: the sums of a panel with both row groups, then those of the next.
    #[inline(always)]
    pub fn store(&self, sums: &mut [Block; 4]) {
        store!("tmm0", &mut sums[0]);
        store!("tmm1", &mut sums[1]);
        store!("tmm2", &mut sums[2]);
        store!("tmm3", &mut sums[3]);
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: a value of this type is made only where the instruction is there.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }
}
