//! Matrix products: packed ternary weights, and the dense types of embeddings and heads, times activations.
//!
//! ```no_run
//! # use tqconv::kernels::{Activations, KernelError, Matrix, Options, Threads};
//! # use formats::block::BlockType;
//! # fn f(bytes: &[u8], x: &[f32]) -> Result<(), KernelError> {
//! let threads = Threads::new(2);
//! let options = Options::default();
//! let matrix = Matrix::new(BlockType::TQ2_0, 8192, 2048, bytes, &options)?;    // packs
//! let mut activations = Activations::new(options.isa);
//! let mut y = vec![0.0; 8192];
//! activations.quantize(x, 2048, matrix.grouping(), &threads);                  // once for q, k and v
//! matrix.multiply(&activations, &mut y, &threads);
//! # Ok(()) }
//! ```
//!
//! | file | what lives there |
//! |---|---|
//! | `kernel` | the contract: what every kernel computes, in which order |
//! | `scalar` | the contract in plain Rust; every other kernel equals it bit for bit |
//! | `x86`, `aarch64` | the contract with vector instructions |
//! | `layout` | the packed layout, and packing |
//! | `activations` | 8-bit activations |
//! | `floats` | F32, F16 and BF16 |
//! | `exact` | the product in f64, to measure against |
//! | `threads`, `memory`, `isa` | the pool, huge pages, what the CPU can do |

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activations;
pub mod exact;
mod floats;
mod isa;
mod kernel;
mod layout;
pub(crate) mod memory;
mod scalar;
#[cfg(test)]
mod tests;
mod threads;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::{Activations, Grouping};
pub use isa::Isa;
pub use threads::Threads;

use floats::{FloatType, Floats};
use formats::block::BlockType;
use kernel::{Kernel, Many, ROWS, Tile};
use layout::{PackError, Packed};
use std::ops::Range;

/// One panel, and as many row groups as have 32 KiB of results.
const ONE_PANEL: Tile = Tile {
    groups: 32,
    least: 1,
    panels: 1,
};
/// Pieces of work for each thread: enough that a delayed thread holds up little.
const CHUNKS_PER_THREAD: usize = 4;

/// How to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The instructions to use.
    pub isa: Isa,
    /// What Q2_0 and Q4_0 matrices do with activations.
    pub precision: Precision,
}

impl Default for Options {
    /// The best instructions, and llama.cpp's arithmetic.
    fn default() -> Options {
        Options {
            isa: Isa::best(),
            precision: Precision::Exact,
        }
    }
}

/// How activations of Q2_0 and Q4_0 matrices are quantized. The other types have one way only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As llama.cpp does: a scale per 32 activations.
    Exact,
    /// A scale per 64 to 256 activations, as llama.cpp does for the types with blocks of 256: less work for the same codes.
    Fast,
}

/// The types of which a matrix can be made, found by making an empty one.
fn multiplied() -> String {
    let options = Options {
        isa: Isa::Scalar,
        ..Options::default()
    };
    let can = |ty: &&BlockType| Matrix::new(**ty, 0, 0, &[], &options).is_ok();
    let names: Vec<_> = BlockType::ALL.iter().filter(can).map(|ty| ty.name()).collect();
    names.join(", ")
}

/// A matrix that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No kernel reads the type.
    #[error("no kernel multiplies {ty}; there are kernels for {}", multiplied())]
    Unsupported {
        /// The type.
        ty: BlockType,
    },
    /// The rows are no whole number of blocks.
    #[error("rows of {columns} columns are no whole number of {ty} blocks of {}", .ty.weights())]
    PartialBlock {
        /// The type.
        ty: BlockType,
        /// Columns of the matrix.
        columns: usize,
    },
    /// The bytes do not fit the shape.
    #[error("a {ty} matrix of {rows} rows and {columns} columns has {found} bytes, expected {expected}")]
    Length {
        /// The type.
        ty: BlockType,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// Bytes given.
        found: usize,
        /// Bytes that belong to the shape.
        expected: usize,
    },
    /// The CPU lacks the instructions asked for.
    #[error("this CPU has no {isa}; it has {}", names(&Isa::available()))]
    Isa {
        /// The instructions asked for.
        isa: Isa,
    },
    /// The system gave no memory.
    #[error("no memory for a {ty} matrix of {rows} rows and {columns} columns: {source}")]
    Memory {
        /// The type.
        ty: BlockType,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        columns: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

/// A weight matrix, ready to multiply.
pub struct Matrix {
    ty: BlockType,
    isa: Isa,
    kernel: &'static dyn Kernel,
    grouping: Grouping,
    weights: Weights,
}

enum Weights {
    Packed(Packed),
    Floats(Floats),
}

impl Matrix {
    /// Pack `rows` rows of `columns` weights from `bytes`, as they are in a GGUF file. Uses all rayon threads.
    pub fn new(
        ty: BlockType,
        rows: usize,
        columns: usize,
        bytes: &[u8],
        options: &Options,
    ) -> Result<Matrix, KernelError> {
        let isa = options.isa;
        let kernel = isa.kernel().ok_or(KernelError::Isa { isa })?;
        let row_bytes = ty.row_bytes(columns).ok_or(KernelError::PartialBlock { ty, columns })?;
        let expected = row_bytes.saturating_mul(rows);
        if bytes.len() != expected {
            return Err(KernelError::Length {
                ty,
                rows,
                columns,
                found: bytes.len(),
                expected,
            });
        }
        let weights = match FloatType::of(ty) {
            Some(ty) => Floats::pack(ty, rows, columns, bytes)
                .map(Weights::Floats)
                .map_err(PackError::Memory),
            None => layout::pack(ty, rows, columns, bytes).map(Weights::Packed),
        };
        let weights = weights.map_err(|error| match error {
            PackError::Unsupported => KernelError::Unsupported { ty },
            PackError::Memory(source) => KernelError::Memory {
                ty,
                rows,
                columns,
                source,
            },
        })?;
        Ok(Matrix {
            ty,
            isa,
            kernel,
            grouping: grouping(ty, columns, options.precision),
            weights,
        })
    }

    /// Type that the matrix was made from.
    pub fn block_type(&self) -> BlockType {
        self.ty
    }

    /// Number of rows: outputs.
    pub fn rows(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.rows(),
            Weights::Floats(weights) => weights.rows,
        }
    }

    /// Number of columns: inputs.
    pub fn columns(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.columns(),
            Weights::Floats(weights) => weights.columns,
        }
    }

    /// Bytes that one product reads.
    pub fn packed_bytes(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.bytes(),
            Weights::Floats(weights) => weights.region.len(),
        }
    }

    /// The instructions in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The activations that this matrix multiplies.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }

    /// Run the kernel's dot instruction on registers, `repeats` times; returns the multiplications of one repeat, None
    /// where nothing was written to measure it.
    pub fn dots(&self, repeats: usize) -> Option<usize> {
        self.kernel.dots(repeats)
    }

    /// Kernel and layout, for reports: `avx512vnni 2-bit x16, scale per 128, activations per 32`.
    pub fn kernel_name(&self) -> String {
        let isa = self.kernel.name();
        match &self.weights {
            Weights::Packed(w) => {
                let (bits, group, activations) = (w.bits(), w.group(), self.grouping.group());
                format!("{isa} {bits}-bit x{ROWS}, scale per {group}, activations per {activations}")
            }
            Weights::Floats(w) => format!("{isa} {:?} x{ROWS}", w.ty),
        }
    }

    /// `y[t * rows + r] = sum_c W[r][c] * x[t * columns + c]`; everything in `y` is overwritten.
    ///
    /// # Panics
    /// Where the activations are not grouped as [`Matrix::grouping`] says, or a length does not fit.
    pub fn multiply(&self, x: &Activations, y: &mut [f32], threads: &Threads) {
        assert_eq!(x.grouping(), self.grouping, "grouping of the activations");
        assert_eq!(x.columns(), self.columns(), "columns of the activations");
        assert_eq!(y.len(), x.tokens() * self.rows(), "length of the product");
        match &self.weights {
            Weights::Floats(weights) => self.multiply_floats(weights, x, y, threads),
            Weights::Packed(weights) => self.multiply_packed(weights, x, y, threads),
        }
    }

    /// Columns of an inner run.
    fn run(&self, weights: &Packed) -> usize {
        weights.group().min(self.grouping.group())
    }

    /// The kernel's way for so many tokens.
    fn many(&self, weights: &Packed, tokens: usize, threads: usize) -> Option<&dyn Many> {
        let (rows, run) = (weights.rows() / threads, self.run(weights));
        match weights.ternary() {
            true => self.kernel.many(rows, run, tokens),
            false => None,
        }
    }

    fn multiply_packed(&self, weights: &Packed, x: &Activations, y: &mut [f32], threads: &Threads) {
        let (rows, run) = (weights.rows(), self.run(weights));
        if let Some(many) = self.many(weights, x.tokens(), threads.count()) {
            return for_tiles(rows, x, y, threads, many.tile(), |groups, panels, out| {
                for strip in weights.strips() {
                    let panel = |index| x.panel(index, strip.columns(), run);
                    let panels: Vec<_> = panels.clone().map(panel).collect();
                    many.multiply(&strip, groups.clone(), &panels, out);
                }
            });
        }
        // The products stay in the cache from strip to strip. The activations of a strip are in the first-level cache
        // while its weights stream by, once for each panel.
        for_tiles(rows, x, y, threads, ONE_PANEL, |groups, panels, out| {
            for strip in weights.strips() {
                let panel = x.panel(panels.start, strip.columns(), run);
                self.kernel.multiply(&strip, groups.clone(), &panel, out);
            }
        });
    }

    fn multiply_floats(&self, weights: &Floats, x: &Activations, y: &mut [f32], threads: &Threads) {
        for_tiles(weights.rows, x, y, threads, ONE_PANEL, |groups, panels, out| {
            let panel = x.float_panel(panels.start);
            self.kernel.multiply_floats(weights, groups, &panel, out);
        });
    }
}

/// `y` (tokens, rows), made a tile at a time: `product(groups, panels, out)` is to add the product of these row
/// groups with these panels to `out`, which is 0 before, as [`Many::multiply`] has it.
fn for_tiles(
    rows: usize,
    x: &Activations,
    y: &mut [f32],
    threads: &Threads,
    tile: Tile,
    product: impl Fn(Range<usize>, Range<usize>, &mut [[f32; ROWS]]) + Sync,
) {
    let y = Output::new(y, rows);
    let panels: Vec<_> = x.panels().collect();
    for_chunks(rows.div_ceil(ROWS), tile.least, threads, |chunk| {
        let mut out = Vec::new();
        for groups in pieces(chunk, tile.groups) {
            for here in pieces(0..panels.len(), tile.panels) {
                let width: usize = panels[here.clone()].iter().map(|(_, width)| width).sum();
                out.clear();
                out.resize(groups.len() * width, [0.0; ROWS]);
                product(groups.clone(), here.clone(), &mut out);
                let mut rest = &out[..];
                for (tokens, width) in &panels[here] {
                    let (out, others) = rest.split_at(groups.len() * width);
                    rest = others;
                    // SAFETY: the rows of these groups belong to this chunk alone.
                    unsafe { y.write(groups.clone(), tokens.clone(), out.chunks_exact(*width)) };
                }
            }
        }
    });
}

/// The activations that llama.cpp's CPU backend uses with a type (ggml-cpu.c:216-394), or larger groups of them.
fn grouping(ty: BlockType, columns: usize, precision: Precision) -> Grouping {
    match ty {
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => Grouping::Float,
        BlockType::Q2_0 | BlockType::Q4_0 if precision == Precision::Fast => {
            let group = [256, 128, 64].into_iter().find(|&group| columns.is_multiple_of(group));
            group.map_or(Grouping::Q8_0, Grouping::K)
        }
        BlockType::Q2_0 | BlockType::Q4_0 | BlockType::Q8_0 => Grouping::Q8_0,
        _ => Grouping::K(256),
    }
}

/// `task` for every chunk of 0..count, on all threads, as many chunks on each; no chunk is shorter than `least` where
/// that leaves one for each thread.
fn for_chunks(count: usize, least: usize, threads: &Threads, task: impl Fn(Range<usize>) + Sync) {
    let chunks = match threads.count() {
        1 => 1,
        threads => (count / least / threads).clamp(1, CHUNKS_PER_THREAD) * threads,
    };
    let chunks = chunks.min(count);
    threads.run(chunks, |i| task(piece(0..count, i, chunks)));
}

/// `range` in as few pieces of up to `most` as there can be, all about as long.
fn pieces(range: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = range.len().div_ceil(most);
    (0..count).map(move |i| piece(range.clone(), i, count))
}

/// Piece `i` of `count`.
fn piece(range: Range<usize>, i: usize, count: usize) -> Range<usize> {
    let at = |i: usize| range.start + range.len() * i / count;
    at(i)..at(i + 1)
}

/// The product (tokens, rows), written by several threads at once.
struct Output<'a> {
    start: *mut f32,
    length: usize,
    rows: usize,
    owner: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the only access is `write`, whose caller promises that no two write the same rows.
unsafe impl Sync for Output<'_> {}

impl<'a> Output<'a> {
    fn new(y: &'a mut [f32], rows: usize) -> Output<'a> {
        Output {
            start: y.as_mut_ptr(),
            length: y.len(),
            rows,
            owner: std::marker::PhantomData,
        }
    }

    /// Write some row groups of some tokens. `results` has those of a group's tokens, then perhaps some that do not
    /// count.
    ///
    /// # Safety
    /// No two calls may run at the same time for the same row group.
    unsafe fn write<'r>(
        &self,
        groups: Range<usize>,
        tokens: Range<usize>,
        results: impl Iterator<Item = &'r [[f32; ROWS]]>,
    ) {
        for (group, results) in groups.zip(results) {
            let first = group * ROWS;
            let count = ROWS.min(self.rows - first);
            for (token, result) in tokens.clone().zip(results) {
                let at = token * self.rows + first;
                assert!(at + count <= self.length);
                // SAFETY: inside the slice that this was made from, and by the caller's promise not shared.
                let y = unsafe { std::slice::from_raw_parts_mut(self.start.add(at), count) };
                match y.first_chunk_mut() {
                    Some(y) => *y = *result,
                    None => y.copy_from_slice(&result[..count]),
                }
            }
        }
    }
}
