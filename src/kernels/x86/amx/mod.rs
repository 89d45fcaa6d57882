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
//! 3. Codes, sums and the results of two row groups, 28 KiB for 128 tokens, stay in the first-level cache, through which
//!    the activations stream.
//!
//! The sums are the contract's: exact in i32, since 15 * 127 * 256 < 2^19.

mod codes;
mod operands;
mod registers;
mod results;

use self::operands::Operands;
use self::registers::{Amx, Registers, amx};
use self::results::{ACTIVATION_INSIDE, NESTED, Results, SINGLE};
use super::avx512::avx512_vnni;
use crate::kernels::contract::{Grouping, Line, MR, NR, Panel, Runs, SPAN, Tile};
use crate::kernels::kernel::{Gemm, Kernel, LoadGemm};
use crate::kernels::packed::{KPanel, Packed};
use std::ops::Range;

/// Columns of a block.
const COLUMNS: usize = 64;
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
type Product = unsafe fn(Amx, &KPanel<'_>, Range<usize>, &[Panel<'_>], &mut [[f32; MR]]);

/// Tiles for a matrix whose stored codes are 0, 1 and 2 alone, in runs of 64 columns or more: shorter ones would leave
/// half of each tile empty.
fn load(weights: &Packed, grouping: Grouping) -> Option<Box<dyn Gemm>> {
    let (format, amx) = (&weights.format, detect()?);
    let runs = Runs::new(weights.columns, format.group, grouping.group());
    let product = match runs.columns {
        _ if !format.ternary => return None,
        _ if format.in_spans(grouping.group()) => product::<4, SINGLE>,
        _ if format.multiplied => return None,
        256 => product::<4, SINGLE>,
        128 => product_of::<2>(runs),
        64 => product_of::<1>(runs),
        _ => return None,
    };
    Some(Box::new(Tiles { product, amx }))
}

fn product_of<const K: usize>(runs: Runs) -> Product {
    match runs.activation_inside {
        _ if runs.inner == 1 => product::<K, SINGLE>,
        false => product::<K, NESTED>,
        true => product::<K, ACTIVATION_INSIDE>,
    }
}

impl Gemm for Tiles {
    /// A tile of 16 tokens, whole or not, takes the time in which the kernel multiplies about 4.
    fn least_tokens(&self, _rows: usize) -> Option<usize> {
        Some(NR)
    }

    fn width(&self) -> usize {
        NR
    }

    fn reads_lines(&self) -> bool {
        true
    }

    /// The activations of 128 tokens and a K-panel, 512 KiB, and the codes of 32 row groups stay in the second-level
    /// cache.
    fn tile(&self) -> Tile {
        Tile {
            groups: 32,
            least: 2,
            panels: 8,
        }
    }

    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut [[f32; MR]]) {
        // SAFETY: a value of this type is made only where `detect` found the instructions.
        unsafe { (self.product)(self.amx, weights, groups, panels, out) }
    }
}

/// A [`Product`] for runs of `K` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c,gfni")]
fn product<const K: usize, const KIND: usize>(
    amx: Amx,
    weights: &KPanel<'_>,
    groups: Range<usize>,
    panels: &[Panel<'_>],
    out: &mut [[f32; MR]],
) {
    let Some(panel) = panels.first() else {
        return;
    };
    let registers = Registers::configure(amx);
    let in_spans = weights.in_spans(panel);
    let runs = match in_spans {
        true => Runs::new(weights.columns().len(), SPAN, SPAN),
        false => weights.runs(panel),
    };
    let mut results = Results::new(out, in_spans);
    let of = Operands {
        weights,
        groups,
        panels,
        runs,
    };
    let mut codes = [[[Line::ZERO; NR]; 2]; BLOCKS];
    let mut sums = [[Line::ZERO; NR]; 4];
    let mut before = None;
    let mut unpacked = 0;
    for step in 0..of.steps() {
        let (weights, next) = (of.weights(step).expect("one of the steps"), of.weights(step + 1));
        for index in unpacked..weights.blocks() {
            for part in 0..4 {
                weights.packed[part / 2].unpack_half(index, part % 2, &mut codes[index][part / 2]);
            }
        }
        unpacked = weights.blocks();
        of.fetch_after(step);
        for two in 0..panels.len().div_ceil(2) {
            let next = next.as_ref().filter(|_| 2 * two + 2 >= panels.len());
            let ready = next.map_or(0, |next| next.blocks());
            for (run, codes) in (0..weights.blocks() / K).zip(codes.as_chunks_mut::<K>().0) {
                let (first, second) = of.lines(&weights, two, run);
                registers.multiply(first, second, codes, |part, codes| {
                    if let Some(before) = &before {
                        // SAFETY: the caller has AVX-512 F.
                        unsafe { results.add::<K, KIND>(before, &sums, part) };
                    }
                    let (index, group) = (run * K + part / 4, part / 2 % 2);
                    if let Some(next) = next.filter(|_| index < ready) {
                        next.packed[group].unpack_half(index, part % 2, &mut codes[part / 4][group]);
                    }
                });
                registers.store(&mut sums);
                before = Some(of.factors::<K>(&weights, two, run));
            }
        }
    }
    if let Some(before) = before {
        for part in 0..4 * K {
            // SAFETY: the caller has AVX-512 F.
            unsafe { results.add::<K, KIND>(&before, &sums, part) };
        }
    }
}
