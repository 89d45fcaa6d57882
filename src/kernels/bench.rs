//! How fast the products are, ours and a peer's (ggml's), beside what memory and the dot instruction do, measured in turns.
//!
//! Machines are shared and clocks change, so all four take turns of about a millisecond, and what is quoted are ratios
//! of medians over many turns:
//! ```text
//! repeat:  the dot instruction alone;  some of our products;  as many of ggml's;  now and then: memory alone
//! ```
//! Both sides quantize their activations inside the measured time, on as many threads, with weights in huge pages.
//! Threads are awake when their turn begins, and rest while it is not their turn.

use super::memory::Region;
use super::{Activations, KernelError, Matrix, Options, Threads};
use formats::block::{BlockType, q2_0, q2_k, q4_0, tq1_0, tq2_0};
use half::f16;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Weights in rotation in a cold case: more than a last-level cache keeps.
const COLD_BYTES: usize = 96 << 20;
/// Multiplications of one turn, about.
const TURN_MACS: usize = 1 << 26;
/// Bytes of one measurement of the read speed, and turns between two.
const READ_BYTES: usize = 64 << 20;
const READ_EVERY: usize = 16;
/// Turns that are not counted: caches, clocks and page tables settle.
const WARM_UP: usize = 1;
/// Fewest turns that are counted.
const MIN_TURNS: usize = 5;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Type of the weights in the file.
    pub ty: BlockType,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Tokens in one product; 1 is decode.
    pub tokens: usize,
    /// Threads for both sides.
    pub threads: usize,
    /// One matrix again and again, from the cache; else many in rotation, from memory.
    pub hot: bool,
    /// How our side multiplies.
    pub options: Options,
    /// How long to measure.
    pub time: Duration,
}

/// Who multiplies the same weights and activations: ggml.
pub trait Peer {
    /// Make `graphs` times `batch` products with `x` (tokens, columns), each with its own copy of the weights.
    ///
    /// # Errors
    /// The peer cannot.
    fn prepare(&mut self, case: &Case, weights: &[u8], copies: (usize, usize), x: &[f32]) -> Result<(), BenchError>;

    /// Compute the products of one graph so often; the seconds that it took, threads being awake. They rest afterwards.
    ///
    /// # Errors
    /// The peer cannot.
    fn time(&mut self, graph: usize, repeats: usize) -> Result<f64, BenchError>;
}

/// Why nothing was measured: a [`KernelError`], or the peer's.
pub type BenchError = Box<dyn std::error::Error + Send + Sync>;

/// Median and spread of the seconds that one product took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Seconds {
    /// Tenth percentile.
    pub p10: f64,
    /// Median.
    pub median: f64,
    /// Ninetieth percentile.
    pub p90: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Block type, as in the file.
    #[serde(rename = "type")]
    pub ty: String,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// Tokens in one product.
    pub tokens: usize,
    /// Threads on both sides.
    pub threads: usize,
    /// Weights from the cache, not from memory.
    pub hot: bool,
    /// Our kernel and layout.
    pub kernel: String,
    /// Turns counted.
    pub turns: usize,
    /// Our product.
    pub ours: Seconds,
    /// ggml's product; absent without llama.cpp.
    pub ggml: Option<Seconds>,
    /// ggml's median over ours.
    pub ratio: Option<f64>,
    /// Bytes of packed weights that our product reads.
    pub bytes: usize,
    /// Our weights read, GB/s.
    pub read: f64,
    /// Memory read speed of the machine with as many threads, GB/s.
    pub machine_read: f64,
    /// Our multiplications, GMAC/s.
    pub macs: f64,
    /// What the dot instruction alone reaches, GMAC/s; absent where the kernel has none.
    pub machine_macs: Option<f64>,
}

/// Measure one case.
///
/// # Errors
/// A matrix that our kernels cannot take, or a peer that fails.
pub fn measure(case: &Case, mut peer: Option<&mut dyn Peer>) -> Result<Outcome, BenchError> {
    let Case {
        ty,
        rows,
        columns,
        tokens,
        ..
    } = *case;
    let threads = Threads::new(case.threads);
    let weights = sample_weights(ty, rows, columns)?;
    let first = Matrix::new(ty, rows, columns, &weights, &case.options)?;
    let batch = (TURN_MACS / (rows * columns * tokens).max(1)).max(1);
    let batches = if case.hot {
        1
    } else {
        COLD_BYTES.div_ceil(first.packed_bytes().max(1) * batch)
    };
    let distinct = if case.hot { 1 } else { batch };
    let mut matrices = vec![first];
    while matrices.len() < batches * distinct {
        matrices.push(Matrix::new(ty, rows, columns, &weights, &case.options)?);
    }
    let x = sample_activations(tokens * columns);
    let mut activations = Activations::new(case.options.isa);
    let mut y = vec![0.0; tokens * rows];
    let mut ours = |turn: usize| {
        for i in 0..batch {
            let matrix = &matrices[turn % batches * distinct + i % distinct];
            activations.quantize(&x, columns, matrix.grouping(), &threads);
            matrix.multiply(&activations, &mut y, &threads);
        }
    };
    if let Some(peer) = &mut peer {
        peer.prepare(case, &weights, (batches, distinct), &x)?;
    }

    let memory = touched(READ_BYTES).map_err(|source| KernelError::Memory {
        ty,
        rows,
        columns,
        source,
    })?;
    let kernel = matrices[0].backend.gemv;
    let mut times = Times::default();
    let (start, mut turn) = (Instant::now(), 0);
    while turn < WARM_UP + MIN_TURNS || start.elapsed() < case.time {
        if turn == WARM_UP {
            times = Times::default();
        }
        if turn.is_multiple_of(READ_EVERY) || turn == WARM_UP {
            times
                .read
                .push(READ_BYTES as f64 / seconds(|| read_all(&memory, &threads)));
        }
        times.macs.extend(dot_rate(kernel, &threads));
        times.ours.push(seconds(|| ours(turn)) / batch as f64);
        if let Some(peer) = &mut peer {
            let time = peer.time(turn % batches, batch / distinct)?;
            times.ggml.push(time / batch as f64);
        }
        turn += 1;
    }
    let turns = times.ours.len();
    let (ours, ggml) = (
        percentiles(times.ours).expect("there are turns"),
        percentiles(times.ggml),
    );
    let bytes = matrices[0].packed_bytes();
    Ok(Outcome {
        ty: ty.to_string(),
        rows,
        columns,
        tokens,
        threads: case.threads,
        hot: case.hot,
        kernel: matrices[0].kernel_name(),
        turns,
        ours,
        ggml,
        ratio: ggml.map(|ggml| ggml.median / ours.median),
        bytes,
        read: bytes as f64 / ours.median / 1e9,
        machine_read: percentiles(times.read).expect("there are turns").median / 1e9,
        macs: (rows * columns * tokens) as f64 / ours.median / 1e9,
        machine_macs: percentiles(times.macs).map(|macs| macs.median / 1e9),
    })
}

/// What the turns took: bytes/s, seconds, seconds, MAC/s.
#[derive(Default)]
struct Times {
    read: Vec<f64>,
    ours: Vec<f64>,
    ggml: Vec<f64>,
    macs: Vec<f64>,
}

fn seconds(task: impl FnOnce()) -> f64 {
    let start = Instant::now();
    task();
    start.elapsed().as_secs_f64()
}

fn percentiles(mut values: Vec<f64>) -> Option<Seconds> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    Some(Seconds {
        p10: at(0.1),
        median: at(0.5),
        p90: at(0.9),
    })
}

/// Memory of which every page exists.
fn touched(length: usize) -> std::io::Result<Region> {
    let mut region = Region::zeroed(length)?;
    region.fill(1);
    Ok(region)
}

/// Read every byte once, on all threads.
fn read_all(memory: &[u8], threads: &Threads) {
    const PIECE: usize = 4 << 20;
    threads.run(memory.len() / PIECE, |i| {
        let words: &[u64] = bytemuck::cast_slice(&memory[i * PIECE..][..PIECE]);
        std::hint::black_box(words.iter().fold(0, |all, word| all ^ word));
    });
}

/// MAC/s of the kernel's dot instruction on registers, all threads together.
fn dot_rate(kernel: &dyn super::kernel::Kernel, threads: &Threads) -> Option<f64> {
    const REPEATS: usize = 10_000;
    let macs = kernel.dots(1)?;
    let run = || {
        threads.run(threads.count(), |_| {
            std::hint::black_box(kernel.dots(REPEATS));
        });
    };
    run(); // wakes the threads
    let time = seconds(run);
    Some((macs * REPEATS * threads.count()) as f64 / time)
}

/// Normal-ish activations, the same on every run.
fn sample_activations(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count)
        .map(|_| uniform() + uniform() + uniform() + uniform())
        .collect()
}

/// A matrix as Tequila makes them: random codes, a positive scale for every 128 columns, or for every block where
/// those are longer (Q2_K keeps both scales of a block).
fn sample_weights(ty: BlockType, rows: usize, columns: usize) -> Result<Vec<u8>, KernelError> {
    let row_bytes = ty.row_bytes(columns).ok_or(KernelError::PartialBlock { ty, columns })?;
    let mut bytes = vec![0; rows * row_bytes];
    let mut state = 7u32;
    let mut below = |n: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % n
    };
    let group = ty.weights().max(128);
    let mut codes = vec![0; columns];
    for row in bytes.chunks_exact_mut(row_bytes) {
        let scales: Vec<f16> = (0..columns.div_ceil(group))
            .map(|_| f16::from_f32(0.01 + 1e-4 * below(100) as f32))
            .collect();
        codes.fill_with(|| below(3) as i8 - 1);
        let scale = |block: usize| scales[block * ty.weights() / group];
        match ty {
            BlockType::TQ2_0 => write_blocks(row, &codes, |codes, b| tq2_0::pack(codes, scale(b))),
            BlockType::TQ1_0 => write_blocks(row, &codes, |codes, b| tq1_0::pack(codes, scale(b))),
            BlockType::Q2_0 => write_blocks(row, &codes, |codes, b| q2_0::pack(codes, scale(b))),
            BlockType::Q4_0 => write_blocks(row, &codes, |codes, b| q4_0::pack(codes, scale(b))),
            BlockType::Q2_K => write_blocks(row, &codes, |codes, b| {
                let multipliers = std::array::from_fn(|i| if i < 8 { 13 } else { 15 });
                q2_k::pack(codes, scale(b), &multipliers)
            }),
            _ => {
                let weights: Vec<f32> = (0..columns)
                    .map(|i| f32::from(codes[i]) * scales[i / group].to_f32())
                    .collect();
                ty.quantize_row(&weights, row)
                    .map_err(|_| KernelError::Unsupported { ty })?;
            }
        }
    }
    Ok(bytes)
}

fn write_blocks<const WEIGHTS: usize, const BYTES: usize>(
    row: &mut [u8],
    codes: &[i8],
    pack: impl Fn(&[i8; WEIGHTS], usize) -> [u8; BYTES],
) {
    let blocks = row
        .as_chunks_mut::<BYTES>()
        .0
        .iter_mut()
        .zip(codes.as_chunks::<WEIGHTS>().0);
    for (i, (block, codes)) in blocks.enumerate() {
        *block = pack(codes, i);
    }
}
