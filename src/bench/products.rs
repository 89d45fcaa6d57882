//! How fast the products are, ours and ggml's, beside what memory and the dot instruction do, measured in turns.
//!
//! Machines are shared and clocks change, so all four take turns, and what is quoted are ratios of medians over many
//! turns. One of ours takes a millisecond or two, so that what the others left in caches hardly counts:
//! ```text
//! repeat:  the dot instruction alone;  some of our products;  as many of ggml's;  now and then: memory alone
//! ```
//! Both sides quantize their activations inside the measured time, on as many threads, with weights in huge pages.
//! Threads, and the units of dot instructions, are awake when our turn begins, and rest while it is not their turn.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aligned_vec::avec;
use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use super::memory::Memory;
use super::sample;
use crate::kernels::memory::LineVec;
use crate::kernels::{Activations, KernelError, KernelName, Matrix, Options, Threads};
use crate::witness::{self, Weights, Witness};

/// Weights in rotation in a cold case: more than a last-level cache keeps.
const COLD_BYTES: usize = 96 << 20;
/// How long one turn of ours is at least, as far as products are alike.
const TURN: f64 = 1.5e-3;
/// Products until one is as fast as in a turn.
const TRIALS: usize = 3;
/// The shortest time of a product that a clock can tell.
const SHORTEST: f64 = 1e-6;
/// Multiplications of one measurement of the dot instruction.
const DOT_MACS: usize = 1 << 24;
/// How long the dot instruction runs before it is measured: threads wake up, and after a pause of a millisecond the tiles of
/// AMX take 0.3 ms to reach their full rate.
const WAKING: Duration = Duration::from_micros(300);
/// Bytes of one measurement of the read speed, and turns between two.
const READ_BYTES: usize = 64 << 20;
const READ_EVERY: usize = 16;
/// Turns that are not counted: caches, clocks and page tables settle.
const WARM_UP: usize = 1;
/// Fewest turns that are counted.
const MIN_TURNS: usize = 5;
/// Share of the dot instruction's best rate below which something else disturbs a turn.
const UNDISTURBED: f64 = 0.9;

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

/// Why nothing was measured: a [`KernelError`] or a [`WitnessError`](crate::witness::WitnessError).
pub type BenchError = Box<dyn std::error::Error + Send + Sync>;

/// Median and spread of the seconds that one product took.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct Seconds {
    /// Tenth percentile.
    pub p10: f64,
    /// Median.
    pub median: f64,
    /// Ninetieth percentile.
    pub p90: f64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, JsonSchema)]
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
    /// Our kernel and layout, in words.
    pub kernel: String,
    /// The same in parts.
    pub layout: KernelName,
    /// Turns counted.
    pub turns: usize,
    /// Turns before or after which the dot instruction ran below 90 % of its best rate; absent where that is not known.
    #[serde(rename = "disturbed_turns")]
    pub disturbed: Option<usize>,
    /// Our product.
    #[serde(rename = "ours_seconds")]
    pub ours: Seconds,
    /// ggml's product; absent without llama.cpp.
    #[serde(rename = "ggml_seconds")]
    pub ggml: Option<Seconds>,
    /// ggml's median over ours.
    pub ratio: Option<f64>,
    /// Bytes of packed weights that our product reads.
    #[serde(rename = "packed_bytes")]
    pub bytes: usize,
    /// Our weights read, GB/s.
    #[serde(rename = "read_gb_per_second")]
    pub read: f64,
    /// Memory read speed of the machine with as many threads, GB/s.
    #[serde(rename = "machine_read_gb_per_second")]
    pub machine_read: f64,
    /// Our multiplications, GMAC/s.
    #[serde(rename = "gmac_per_second")]
    pub macs: f64,
    /// What the dot instruction alone reaches with its operands in the first-level cache, GMAC/s; absent where nothing
    /// was written to measure it.
    #[serde(rename = "machine_gmac_per_second")]
    pub machine_macs: Option<f64>,
}

/// Measure one case, and ggml's products where there is a witness.
///
/// # Errors
/// A matrix that our kernels cannot take, a lack of memory, or a witness that fails.
pub fn measure(case: &Case, mut witness: Option<&mut Witness>) -> Result<Outcome, BenchError> {
    let weights = sample::weights(case.ty, case.rows, case.columns)?;
    let mut ours = Ours::new(case, &weights)?;
    if let Some(witness) = &mut witness {
        let Case { ty, rows, columns, .. } = *case;
        let weights = Weights::Bytes(&weights);
        let matrix = witness::Matrix {
            ty,
            rows,
            columns,
            weights,
        };
        witness.prepare_products(&matrix, &ours.x, (ours.batches, ours.distinct), case.threads)?;
    }
    let times = take_turns(case, &mut ours, witness)?;
    Ok(outcome(case, &ours.matrices[0], times))
}

/// Our side: what it multiplies, and how much of it in one turn.
struct Ours {
    /// `batches` times `distinct` copies of one matrix.
    matrices: Vec<Matrix>,
    /// Products of one turn.
    batch: usize,
    /// Turns until the same copies come again.
    batches: usize,
    /// Copies that one turn reads.
    distinct: usize,
    /// (tokens, columns)
    x: LineVec<f32>,
    activations: Activations,
    /// (tokens, rows)
    y: LineVec<f32>,
    threads: Threads,
}

impl Ours {
    fn new(case: &Case, weights: &[u8]) -> Result<Self, KernelError> {
        let Case {
            ty,
            rows,
            columns,
            tokens,
            ..
        } = *case;
        let matrix = || Matrix::new(ty, rows, columns, weights, &case.options);
        let mut ours = Self {
            matrices: vec![matrix()?],
            batch: 1,
            batches: 1,
            distinct: 1,
            x: LineVec::from_slice(0, &sample::activations(tokens * columns)),
            activations: Activations::new(case.options.isa),
            y: avec!([64]| 0.0; tokens * rows),
            threads: Threads::new(case.threads),
        };
        let of_one = (0..TRIALS).map(|_| seconds(|| ours.multiply(0))).fold(TURN, f64::min);
        ours.batch = (TURN / of_one.max(SHORTEST)).ceil() as usize;
        if !case.hot {
            ours.distinct = ours.batch;
            ours.batches = COLD_BYTES.div_ceil(ours.matrices[0].packed_bytes().max(1) * ours.batch);
        }
        while ours.matrices.len() < ours.batches * ours.distinct {
            ours.matrices.push(matrix()?);
        }
        Ok(ours)
    }

    /// The products of one turn.
    fn multiply(&mut self, turn: usize) {
        for i in 0..self.batch {
            let matrix = &self.matrices[turn % self.batches * self.distinct + i % self.distinct];
            let (columns, grouping) = (matrix.columns(), matrix.grouping());
            self.activations.quantize(&self.x, columns, grouping, &self.threads);
            matrix.multiply(&self.activations, &mut self.y, &self.threads);
        }
    }

    /// MAC/s of the kernel's dot instruction alone, all threads together.
    fn dot_rate(&self) -> Option<f64> {
        let (matrix, threads) = (&self.matrices[0], &self.threads);
        let tokens = self.x.len() / matrix.columns();
        let dots = |repeats: usize| matrix.dots(tokens, threads.count(), repeats);
        let macs = dots(1)?;
        let repeats = DOT_MACS / macs;
        let run = || {
            threads.run(threads.count(), |_| {
                black_box(dots(repeats));
            });
        };
        let start = Instant::now();
        while start.elapsed() < WAKING {
            run();
        }
        Some((macs * repeats * threads.count()) as f64 / seconds(run))
    }
}

/// What the turns took, one number each.
#[derive(Default)]
struct Times {
    /// Bytes a second that memory gave.
    read: Vec<f64>,
    /// Seconds of one of our products.
    ours: Vec<f64>,
    /// Seconds of one of ggml's.
    ggml: Vec<f64>,
    /// Multiplications a second of the dot instruction.
    macs: Vec<f64>,
}

fn take_turns(case: &Case, ours: &mut Ours, mut witness: Option<&mut Witness>) -> Result<Times, BenchError> {
    let Case { ty, rows, columns, .. } = *case;
    let memory = Memory::new(READ_BYTES).map_err(|source| KernelError::Memory {
        ty,
        rows,
        columns,
        source,
    })?;
    let mut times = Times::default();
    let (start, mut turn) = (Instant::now(), 0);
    while turn < WARM_UP + MIN_TURNS || start.elapsed() < case.time {
        if turn == WARM_UP {
            times = Times::default();
        }
        if turn.is_multiple_of(READ_EVERY) || turn == WARM_UP {
            times.read.push(memory.read_rate(&ours.threads));
        }
        times.macs.extend(ours.dot_rate());
        times.ours.push(seconds(|| ours.multiply(turn)) / ours.batch as f64);
        if let Some(witness) = &mut witness {
            let time = witness.time_products(turn % ours.batches, ours.batch / ours.distinct)?;
            times.ggml.push(time / ours.batch as f64);
        }
        turn += 1;
    }
    Ok(times)
}

fn outcome(case: &Case, matrix: &Matrix, times: Times) -> Outcome {
    let Case {
        ty,
        rows,
        columns,
        tokens,
        ..
    } = *case;
    let turns = times.ours.len();
    let disturbed = disturbed(&times.macs);
    let ours = percentiles(times.ours).expect("there are turns");
    let ggml = percentiles(times.ggml);
    let bytes = matrix.packed_bytes();
    Outcome {
        ty: ty.to_string(),
        rows,
        columns,
        tokens,
        threads: case.threads,
        hot: case.hot,
        kernel: matrix.kernel().to_string(),
        layout: matrix.kernel(),
        turns,
        disturbed,
        ours,
        ggml,
        ratio: ggml.map(|ggml| ggml.median / ours.median),
        bytes,
        read: bytes as f64 / ours.median / 1e9,
        machine_read: percentiles(times.read).expect("there are turns").median / 1e9,
        macs: (rows * columns * tokens) as f64 / ours.median / 1e9,
        machine_macs: percentiles(times.macs).map(|macs| macs.median / 1e9),
    }
}

/// Turns before or after which the dot instruction was slow. `rates`: before each turn.
fn disturbed(rates: &[f64]) -> Option<usize> {
    let best = percentiles(rates.to_vec())?.p90;
    let slow = |&rate: &f64| rate < UNDISTURBED * best;
    let turns = (0..rates.len()).filter(|&turn| rates[turn..].iter().take(2).any(slow));
    Some(turns.count())
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

#[cfg(test)]
mod tests {
    use super::disturbed;

    #[test]
    fn a_slow_instruction_disturbs_the_turns_around_it() {
        assert_eq!(disturbed(&[]), None);
        assert_eq!(disturbed(&[10.0; 9]), Some(0));
        // Before turns 3 and 9, so turns 2 and 8 as well; 9.1 is within 90 %.
        assert_eq!(
            disturbed(&[10.0, 10.0, 9.1, 8.9, 10.0, 10.0, 10.0, 10.0, 10.0, 1.0]),
            Some(4)
        );
    }
}
