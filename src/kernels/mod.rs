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
//! | `contract` | what every kernel computes, in which order; what all other files hang from |
//! | `kernel` | what an instruction set offers: a kernel, and perhaps a faster way for many tokens |
//! | `scalar` | the contract in plain Rust; every other kernel equals it bit for bit |
//! | `driver` | the loops of AVX2 and NEON |
//! | `x86`, `aarch64` | vectors, and the integer dots of one run; AVX-512 has loops of its own |
//! | `packed` | the packed layout |
//! | `repack`, `sources` | from the blocks of a file to the packed layout; the block types |
//! | `tiles` | the order of a product, and its threads |
//! | `activations`, `lines` | 8-bit activations, and those as tile registers take them |
//! | `floats` | F32, F16 and BF16 |
//! | `bf16` | tile registers for attention |
//! | `choice` | which activations a type is multiplied with |
//! | `minimums` | what minimums add, where activations have finer scales than the weights' f16 |
//! | `exact` | the product in f64, to measure against |
//! | `threads`, `memory`, `isa` | the pool, huge pages, what the CPU can do |
//! | `reading` | memory at its full speed, to measure against |
//!
//! docs/architecture.md has the words, docs/adding.md the steps to a new kernel.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod activations;
pub(crate) mod bf16;
mod choice;
mod contract;
#[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
mod driver;
pub mod exact;
mod floats;
mod isa;
mod kernel;
mod lines;
pub(crate) mod memory;
mod minimums;
mod packed;
mod reading;
mod repack;
mod scalar;
mod sources;
#[cfg(test)]
mod tests;
mod threads;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use activations::Activations;
pub use choice::ActivationScales;
pub use contract::Grouping;
pub(crate) use isa::Bf16Tiles;
pub use isa::Isa;
pub(crate) use reading::read;
pub use threads::Threads;

use contract::{MR, Panel, Tile};
use floats::{FloatType, Floats};
use formats::block::BlockType;
use kernel::{Backend, Gemm, Kernel};
use minimums::add_minimums;
use packed::{KPanel, Packed};
use schemars::JsonSchema;
use serde::Serialize;
use sources::PackError;
use std::ops::Range;
use tiles::{Out, for_tiles};

/// One panel, and as many row groups as have 32 KiB of results.
const ONE_PANEL: Tile = Tile {
    groups: 32,
    least: 1,
    panels: 1,
};

/// How to multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The instructions to use.
    pub isa: Isa,
    /// How activations are rounded to 8 bits.
    pub activations: ActivationScales,
    /// Whether those of F16 and BF16 weights are rounded to the type of the weights, as llama.cpp does (ggml-cpu.c,
    /// `vec_dot_type`).
    pub halves: bool,
}

impl Default for Options {
    /// The best instructions, and llama.cpp's arithmetic but for F16 and BF16, where rounding saves nothing.
    fn default() -> Options {
        Options {
            isa: Isa::best(),
            activations: ActivationScales::LlamaCpp,
            halves: false,
        }
    }
}

impl Options {
    /// The activations that a matrix of this type and so many columns multiplies.
    pub(crate) fn grouping(&self, ty: BlockType, columns: usize) -> Grouping {
        match ty {
            BlockType::F16 if self.halves => Grouping::F16,
            BlockType::BF16 if self.halves => Grouping::Bf16,
            _ => self.activations.grouping(ty, columns),
        }
    }
}

/// A kernel and its layout: `avx512vnni 2-bit x16, scale per 128, activations per 32`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema)]
pub struct KernelName {
    /// The instruction set.
    pub isa: &'static str,
    /// What the weights are packed as: `2-bit`, `4-bit`, `8-bit`, `F16`.
    pub weights: String,
    /// Rows that are interleaved.
    pub rows: usize,
    /// None of floats.
    pub weights_per_scale: Option<usize>,
    /// None where they are not rounded to 8 bits.
    pub activations_per_scale: Option<usize>,
}

impl std::fmt::Display for KernelName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} x{}", self.isa, self.weights, self.rows)?;
        if let Some(weights) = self.weights_per_scale {
            write!(f, ", scale per {weights}")?;
        }
        if let Some(activations) = self.activations_per_scale {
            write!(f, ", activations per {activations}")?;
        }
        Ok(())
    }
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
    /// The rows are not a whole number of blocks.
    #[error("rows of {columns} columns are not a whole number of {ty} blocks of {}", .ty.weights())]
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
    /// The CPU lacks the instructions asked for, or the system withholds them.
    #[error("no {isa} here: the CPU lacks it, or the system does not permit it; there are {}", names(&Isa::available()))]
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
    backend: Backend,
    grouping: Grouping,
    weights: Weights,
    /// The backend's way for many tokens, ready for these weights.
    gemm: Option<Box<dyn Gemm>>,
}

enum Weights {
    Packed(Packed),
    Floats(Floats),
}

impl Matrix {
    /// Pack `rows` rows of `columns` weights from `bytes`, as they are in a GGUF file. Uses all rayon threads.
    ///
    /// # Errors
    /// The CPU lacks the instructions, no kernel reads the type, `bytes` does not fit the shape, or there is no memory.
    pub fn new(
        ty: BlockType,
        rows: usize,
        columns: usize,
        bytes: &[u8],
        options: &Options,
    ) -> Result<Matrix, KernelError> {
        let isa = options.isa;
        let backend = isa.backend().ok_or(KernelError::Isa { isa })?;
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
            None => sources::pack(ty, rows, columns, bytes).map(Weights::Packed),
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
        let mut matrix = Matrix {
            ty,
            isa,
            backend,
            grouping: options.grouping(ty, columns),
            weights,
            gemm: None,
        };
        matrix.use_backend(backend);
        Ok(matrix)
    }

    fn use_backend(&mut self, backend: Backend) {
        self.backend = backend;
        self.gemm = match (&self.weights, backend.gemm) {
            (Weights::Packed(weights), Some(load)) => load(weights, self.grouping),
            _ => None,
        };
    }

    /// Type that the matrix was made from.
    pub fn block_type(&self) -> BlockType {
        self.ty
    }

    /// Number of rows: outputs.
    pub fn rows(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.format.rows,
            Weights::Floats(weights) => weights.rows,
        }
    }

    /// Number of columns: inputs.
    pub fn columns(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.columns,
            Weights::Floats(weights) => weights.columns,
        }
    }

    /// Bytes that one product reads.
    pub fn packed_bytes(&self) -> usize {
        match &self.weights {
            Weights::Packed(weights) => weights.region.len(),
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

    /// Run the dot instruction for so many tokens on operands in the first-level cache, `repeats` times; returns the
    /// multiplications of one repeat, None where nothing was written to measure it.
    pub fn dots(&self, tokens: usize, threads: usize, repeats: usize) -> Option<usize> {
        let own = self.gemm(tokens, threads).and_then(|gemm| gemm.dots(repeats));
        own.or_else(|| self.backend.gemv.dots(repeats))
    }

    /// Kernel and layout, for reports.
    pub fn kernel(&self) -> KernelName {
        let isa = self.backend.name;
        match &self.weights {
            Weights::Packed(w) => KernelName {
                isa,
                weights: format!("{}-bit", w.format.bits),
                rows: MR,
                weights_per_scale: Some(w.format.group),
                activations_per_scale: Some(self.grouping.group()),
            },
            Weights::Floats(w) => KernelName {
                isa,
                weights: format!("{:?}", w.ty),
                rows: MR,
                weights_per_scale: None,
                activations_per_scale: None,
            },
        }
    }

    /// `y[t * rows + r] = sum_c W[r][c] * x[t * columns + c]`; everything in `y` is overwritten.
    ///
    /// # Panics
    /// Where the activations are grouped neither as [`Matrix::grouping`] says nor as its [`Grouping::exact`], or a length
    /// does not fit.
    pub fn multiply(&self, x: &Activations, y: &mut [f32], threads: &Threads) {
        let fits = x.grouping() == self.grouping || x.grouping() == self.grouping.exact();
        assert!(
            fits,
            "activations grouped as {:?}, not {:?}",
            x.grouping(),
            self.grouping
        );
        assert_eq!(x.columns(), self.columns(), "columns of the activations");
        assert_eq!(y.len(), x.tokens() * self.rows(), "length of the product");
        match &self.weights {
            Weights::Floats(weights) => self.multiply_floats(weights, x, y, threads),
            Weights::Packed(weights) => self.multiply_packed(weights, x, y, threads),
        }
    }

    /// Columns of an inner run.
    fn run_columns(&self, weights: &Packed) -> usize {
        weights.format.group.min(self.grouping.group())
    }

    /// The way for so many tokens, where there is one that is faster than the kernel.
    fn gemm(&self, tokens: usize, threads: usize) -> Option<&dyn Gemm> {
        let gemm = self.gemm.as_deref()?;
        let least = gemm.least_tokens(self.rows() / threads)?;
        (tokens >= least).then_some(gemm)
    }

    fn multiply_packed(&self, weights: &Packed, x: &Activations, y: &mut [f32], threads: &Threads) {
        let (rows, run, gemv) = (weights.format.rows, self.run_columns(weights), self.backend.gemv);
        let minimums = weights.format.shift.is_none() && !weights.format.in_spans(self.grouping.group());
        let can_read = |gemm: &&dyn Gemm| x.has_lines() || !gemm.reads_lines();
        let gemm = self.gemm(x.tokens(), threads.count()).filter(can_read);
        if let Some(gemm) = gemm.filter(|gemm| gemm.reads_lines()) {
            return for_tiles(rows, x.line_panels(), y, threads, gemm.tile(), |groups, panels, out| {
                for k_panel in weights.k_panels() {
                    let panel = |index| x.line_panel(index, k_panel.columns());
                    let panels: Vec<_> = panels.clone().map(panel).collect();
                    gemm.multiply(&k_panel, groups.clone(), &panels, out);
                }
            });
        }
        x.interleave(threads);
        if let Some(gemm) = gemm {
            return for_tiles(rows, x.panels(), y, threads, gemm.tile(), |groups, panels, out| {
                for k_panel in weights.k_panels() {
                    let panel = |index| x.panel(index, k_panel.columns(), run);
                    let panels: Vec<_> = panels.clone().map(panel).collect();
                    multiply_panels(gemm, gemv, &k_panel, groups.clone(), &panels, out);
                }
            });
        }
        // The products stay in the cache from K-panel to K-panel. The activations of a K-panel are in the first-level
        // cache while its weights stream by, once for each panel.
        for_tiles(rows, x.panels(), y, threads, ONE_PANEL, |groups, panels, out| {
            for k_panel in weights.k_panels() {
                let panel = x.panel(panels.start, k_panel.columns(), run);
                let out = out.results(0..1);
                gemv.multiply(&k_panel, groups.clone(), &panel, out);
                if minimums {
                    add_minimums(&k_panel, groups.clone(), &panel, out);
                }
            }
        });
    }

    fn multiply_floats(&self, weights: &Floats, x: &Activations, y: &mut [f32], threads: &Threads) {
        for_tiles(
            weights.rows,
            x.panels(),
            y,
            threads,
            ONE_PANEL,
            |groups, panels, out| {
                let panel = x.float_panel(panels.start);
                let gemv = self.backend.gemv;
                gemv.multiply_floats(weights, groups, &panel, out.results(0..1));
            },
        );
    }
}

/// The product of some row groups of a K-panel with some panels by `gemm`, but for those too narrow for it, which
/// `gemv` multiplies: only the last panel of all can be.
fn multiply_panels(
    gemm: &dyn Gemm,
    gemv: &dyn Kernel,
    k_panel: &KPanel<'_>,
    groups: Range<usize>,
    panels: &[Panel<'_>],
    out: &mut Out<'_>,
) {
    let wide = |panel: &&Panel| panel.width.is_multiple_of(gemm.width());
    let wide = panels.iter().take_while(wide).count();
    gemm.multiply(k_panel, groups.clone(), &panels[..wide], out);
    if let [panel] = &panels[wide..] {
        gemv.multiply(k_panel, groups, panel, out.results(wide..wide + 1));
    }
}
