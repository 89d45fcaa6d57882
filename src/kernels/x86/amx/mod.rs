//! AMX for many tokens and ternary codes: a tile instruction adds 16 x 16 products of 64 columns to as many sums.
//!
//! ```text
//! for each two row groups, for each span of 256 columns:
//!     codes = signed bytes, times their multipliers where there are some                        8 KiB
//!     for each two panels, for each run in the span:
//!         sums = activations x codes: 32 tokens x 32 rows                                       4 KiB
//!         the f32 operations of the contract with those sums                                    while the next are made
//! ```
//! 1. Codes are signed, so no sum of activations is needed. Where multipliers are applied to integers, they are in the
//!    codes, -15 to 15, and a span is one run.
//! 2. Nothing waits for a tile instruction, which takes 16 cycles: beside it the sums before are made to results, and
//!    beside the last of a span, the codes of the next one are unpacked in the place of those just read.
//! 3. Codes, sums and the results of two row groups, 20 KiB for 64 tokens, stay in the first-level cache, through which
//!    the activations stream. A result goes to its place when all spans are done.
//!
//! The sums are the contract's: exact in i32, since 15 * 127 * 256 < 2^19.

mod bf16;
mod codes;
mod operands;
mod registers;
mod results;

pub use self::bf16::Bf16Tiles;

use self::codes::PackedBlocks;
use self::operands::Operands;
use self::registers::{Amx, Beside, Block, PARTS, Registers, amx};
use self::results::{ACTIVATION_INSIDE, Aligned, Factors, NESTED, Partials, Results, SINGLE};
use super::avx512::avx512_vnni;
use crate::kernels::contract::{Grouping, Line, MR, NR, Panel, Runs, SPAN, Tile};
use crate::kernels::kernel::{Gemm, Kernel, LoadGemm};
use crate::kernels::packed::{KPanel, Packed};
use crate::kernels::tiles::{Out, Squares};
use std::ops::Range;

/// From how many tokens tiles are faster than the kernel. (16, whether they are there or not, take the time of 3.)
pub(in crate::kernels) const TILES_FROM: usize = 4;
/// Columns of a block.
const COLUMNS: usize = 64;
/// Most panels of a product.
const PANELS: usize = 4;
/// Blocks of a span.
const BLOCKS: usize = SPAN / COLUMNS;

/// The AVX-512 kernel with tiles for many tokens, where the CPU and the system have all that.
pub(in crate::kernels) fn avx512_amx() -> Option<(&'static dyn Kernel, LoadGemm)> {
    detect()?;
    Some((avx512_vnni()?, load))
}

/// The proof that the CPU has AMX-INT8, AVX-512 F, BW and VL, F16C and GFNI, and that the system permits tiles.
fn detect() -> Option<Amx> {
    avx512_vnni()
        .filter(|_| is_x86_feature_detected!("gfni"))
        .and_then(|_| amx())
}

/// Many tokens with tiles, for one matrix.
struct Tiles {
    product: Product,
    amx: Amx,
}

/// Some row groups of a K-panel times some panels.
type Product = unsafe fn(Amx, &KPanel<'_>, Range<usize>, &[Panel<'_>], Squares<'_>);

/// Tiles for a matrix whose stored codes are 0, 1 and 2 alone, in runs of 64 columns or more: shorter ones would leave
/// half of each tile empty.
fn load(weights: &Packed, grouping: Grouping) -> Option<Box<dyn Gemm>> {
    let (format, amx) = (&weights.format, detect()?);
    let runs = Runs::new(weights.columns, format.group, grouping.group());
    let product = match runs.columns {
        _ if !format.ternary => return None,
        _ if format.in_spans(grouping.group()) => product::<4, SINGLE, true>,
        _ if format.multiplied => return None,
        256 => product::<4, SINGLE, false>,
        128 => product_of::<2>(runs),
        64 => product_of::<1>(runs),
        _ => return None,
    };
    Some(Box::new(Tiles { product, amx }))
}

fn product_of<const K: usize>(runs: Runs) -> Product {
    match runs.activation_inside {
        _ if runs.inner == 1 => product::<K, SINGLE, false>,
        false => product::<K, NESTED, false>,
        true => product::<K, ACTIVATION_INSIDE, false>,
    }
}

impl Gemm for Tiles {
    fn least_tokens(&self, _rows: usize) -> Option<usize> {
        Some(TILES_FROM)
    }

    fn width(&self) -> usize {
        NR
    }

    fn reads_lines(&self) -> bool {
        true
    }

    /// The activations of 64 tokens and a K-panel, 256 KiB, and the codes of 32 row groups, 512 KiB, stay in the
    /// second-level cache.
    fn tile(&self) -> Tile {
        Tile {
            groups: 32,
            least: 2,
            panels: PANELS,
        }
    }

    fn dots(&self, repeats: usize) -> Option<usize> {
        dots(self.amx, repeats);
        Some(4 * NR * MR * SPAN)
    }

    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut Out<'_>) {
        // SAFETY: a value of this type is made only where `detect` found the instructions.
        unsafe { (self.product)(self.amx, weights, groups, panels, out.in_place(panels.len())) }
    }
}

/// A [`Product`] for runs of `K` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c,gfni")]
fn product<const K: usize, const KIND: usize, const MULTIPLIED: bool>(
    amx: Amx,
    weights: &KPanel<'_>,
    groups: Range<usize>,
    panels: &[Panel<'_>],
    squares: Squares<'_>,
) {
    let Some(panel) = panels.first() else {
        return;
    };
    let registers = Registers::configure(amx);
    let runs = match MULTIPLIED {
        true => Runs::new(weights.columns().len(), SPAN, SPAN),
        false => weights.runs(panel),
    };
    let of = Operands::new(weights, groups, panels, runs);
    let mut results = Results::new(squares, weights.columns().start > 0);
    let mut codes = [[[Line::ZERO; NR]; 2]; BLOCKS];
    let mut work = Work {
        sums: [[Line::ZERO; NR]; 4],
        partials: Aligned([[[0.0; MR]; NR]; 4]),
    };
    // A function of its own, which has the registers for itself. (Called by name, it would become a part of this one.)
    let multiply: MultiplyRun<K> = std::hint::black_box(multiply_run::<K, KIND, MULTIPLIED>);
    let mut before = Factors::none();
    let (mut step, mut unpacked) = (of.first_step(), false);
    while let Some(now) = step {
        let blocks = of.blocks(now);
        if !unpacked {
            for i in 0..blocks {
                for (group, packed) in of.packed::<K>(now, i / K).iter().enumerate() {
                    for step in 0..4 {
                        // SAFETY: this function has the instructions.
                        unsafe { packed.unpack_step::<MULTIPLIED>(i % K, step, &mut codes[i][group]) };
                    }
                }
            }
        }
        step = of.after(now);
        let next = step.filter(|&next| of.blocks(next) == blocks);
        unpacked = next.is_some();
        for (two, (panels_of_two, lines)) in of.panels(now).enumerate() {
            let next = next.filter(|_| 2 * two + 2 >= panels.len());
            for (i, codes) in codes.as_chunks_mut().0.iter_mut().enumerate().take(blocks / K) {
                let run = Run {
                    first: &lines[0].as_chunks().0[i],
                    second: lines.get(1).map(|lines| &lines.as_chunks().0[i]),
                    before: &before,
                    next: next.map(|next| of.packed(next, i)),
                };
                // SAFETY: this function has the instructions.
                unsafe { multiply(&registers, &run, codes, &mut work) };
                if before.finishes {
                    results.put(before.place);
                }
                // SAFETY: this function has the instructions.
                before = unsafe { of.factors::<K>(now, two, panels_of_two, i, &mut results) };
            }
        }
    }
    registers.store(&mut work.sums);
    for part in 0..PARTS * K {
        // SAFETY: this function has the instructions.
        unsafe { before.add::<K, KIND, MULTIPLIED>(&work.sums, &mut work.partials, part) };
    }
    if before.finishes {
        results.put(before.place);
    }
}

/// What is multiplied, and what is computed meanwhile.
struct Run<'a, const K: usize> {
    /// The activations of one panel, or two.
    first: &'a [Block; K],
    second: Option<&'a [Block; K]>,
    /// Of the run before.
    before: &'a Factors<'a>,
    /// Codes to unpack in the place of these.
    next: Option<[PackedBlocks<'a, K>; 2]>,
}

/// What goes from run to run.
struct Work {
    sums: [Block; 4],
    partials: Partials,
}

/// Multiplies a run.
type MultiplyRun<const K: usize> = unsafe fn(&Registers, &Run<'_, K>, &mut [[Block; 2]; K], &mut Work);

/// Runs of two panels and two row groups with nothing beside them, `repeats` times.
fn dots(amx: Amx, repeats: usize) {
    let registers = Registers::configure(amx);
    let line = std::hint::black_box(Line([0x01FF_0203; NR]));
    let (panel, mut codes) = ([[line; NR]; BLOCKS], [[[line; NR]; 2]; BLOCKS]);
    let mut sums = [[Line::ZERO; NR]; 4];
    for _ in 0..repeats {
        registers.multiply(&panel, Some(&panel), &mut codes, &mut sums, &mut ());
    }
    std::hint::black_box(sums);
}

/// Multiply a run; the sums of the one before go to `work`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c,gfni")]
fn multiply_run<const K: usize, const KIND: usize, const MULTIPLIED: bool>(
    registers: &Registers,
    run: &Run<'_, K>,
    codes: &mut [[Block; 2]; K],
    work: &mut Work,
) {
    let Work { sums, partials } = work;
    let mut beside = Around::<K, KIND, MULTIPLIED> {
        before: *run.before,
        next: run.next,
        partials,
    };
    registers.multiply(run.first, run.second, codes, sums, &mut beside);
}

/// What is computed beside a run: the results of the one before, and beside the last of a step the codes of the next.
struct Around<'w, 'a, const K: usize, const KIND: usize, const MULTIPLIED: bool> {
    before: Factors<'a>,
    next: Option<[PackedBlocks<'a, K>; 2]>,
    partials: &'w mut Partials,
}

impl<const K: usize, const KIND: usize, const MULTIPLIED: bool> Beside<K> for Around<'_, '_, K, KIND, MULTIPLIED> {
    #[inline(always)]
    fn part(&mut self, part: usize, codes: &mut [[Block; 2]; K], sums: &[Block; 4]) {
        // SAFETY: `multiply_run` has the instructions, and the results of `before` are there.
        unsafe {
            self.before.add::<K, KIND, MULTIPLIED>(sums, self.partials, part);
            if let Some(next) = &self.next {
                let (k, group) = (part / PARTS, part / 4 % 2);
                next[group].unpack_step::<MULTIPLIED>(k, part % 4, &mut codes[k][group]);
            }
        }
    }
}
