//! What the numbers of a matrix are, told from their bits: latent weights, which training rounds in every forward pass,
//! or weights that are rounded already.

use std::io;
use std::ops::Range;

use formats::safetensors::Dtype;
use half::{bf16, f16};

use super::tensors::Stored;

/// What a matrix holds. A run is that many neighbours within a row, or of the flattened matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weights {
    /// Ordinary numbers.
    Latent,
    /// Too few numbers that are not zero to tell.
    Unknown,
    /// -s, 0 and +s.
    Ternary {
        /// The most weights over which every s holds.
        run: usize,
        /// The share of the weights that are not zero, 0 to 1.
        share: f64,
    },
    /// -s and +s.
    Binary {
        /// The most weights over which every s holds.
        run: usize,
    },
    /// -3s, -s, +s and +3s.
    FourLevel {
        /// The most weights over which every s holds.
        run: usize,
    },
    /// Close to -s, 0 and +s, but not equal.
    NearlyTernary {
        /// Whether no weight is close to zero without being zero.
        zeros: bool,
        /// Row of the first weight that breaks the pattern.
        row: usize,
        /// Its column.
        column: usize,
    },
}

/// The lengths of runs that are looked for; each divides the one before.
const RUNS: [usize; 5] = [256, 128, 64, 32, SHORTEST];
const SHORTEST: usize = 16;
/// Numbers that are read at once; a multiple of every run.
const PIECE: usize = 1 << 16;
/// Of the runs that are not all zero, the share that must hold two weights or more to compare.
const TELLING: f64 = 0.9;
/// How many weights at least must have repeated a magnitude of their run: a matrix of fewer tells nothing.
const REPEATS: usize = 16;

/// What `stored`, a matrix of floats, holds. A latent matrix is told by its first runs; where they follow a pattern, up
/// to 4 million weights are looked at.
///
/// # Errors
/// The numbers cannot be read.
pub fn look(stored: Stored) -> io::Result<Weights> {
    let columns = stored.shape.last().copied().unwrap_or(1).max(1);
    let (found, first_break) = scan(stored, columns)?;
    if found != Weights::Latent {
        return Ok(found);
    }
    // Groups of the flattened matrix cross rows that are not a multiple of them.
    if !columns.is_multiple_of(RUNS[0]) {
        let (found, _) = scan(stored, stored.len())?;
        if found != Weights::Latent {
            return Ok(found);
        }
    }
    let (row, column) = (first_break / columns, first_break % columns);
    Ok(match nearly_ternary(stored, columns)? {
        Some(zeros) => Weights::NearlyTernary { zeros, row, column },
        None => Weights::Latent,
    })
}

/// The magnitudes of the numbers from `first` on, as bits that order as the magnitudes do.
fn read_magnitudes(stored: Stored, first: usize, bytes: &mut Vec<u8>, out: &mut [u32]) -> io::Result<()> {
    bytes.resize(out.len() * stored.number_bytes(), 0);
    stored.read(first, bytes)?;
    match stored.dtype {
        Dtype::F32 => {
            for (out, &number) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = u32::from_le_bytes(number) & 0x7fff_ffff;
            }
        }
        _ => {
            for (out, &number) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = u32::from(u16::from_le_bytes(number) & 0x7fff);
            }
        }
    }
    Ok(())
}

/// The number whose bits, without the sign, are `magnitude`.
fn number(magnitude: u32, dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_bits(magnitude as u16).to_f32(),
        Dtype::BF16 => bf16::from_bits(magnitude as u16).to_f32(),
        _ => f32::from_bits(magnitude),
    }
}

/// The magnitudes of a run that are not zero, as far as there are two.
#[derive(Clone, Copy, Default)]
struct Levels {
    small: u32,
    large: u32,
    more: bool,
    zeros: usize,
    others: usize,
}

impl Levels {
    fn of(magnitudes: &[u32]) -> Self {
        if let Some(levels) = magnitudes.first_chunk().and_then(Self::of_one) {
            return levels;
        }
        let mut levels = Self::default();
        for &magnitude in magnitudes {
            match magnitude {
                0 => levels.zeros += 1,
                magnitude => {
                    levels.others += 1;
                    levels.add(magnitude);
                }
            }
        }
        levels
    }

    /// The same where there is one magnitude beside 0, as in almost all runs of a ternary matrix: without a branch.
    fn of_one(magnitudes: &[u32; SHORTEST]) -> Option<Self> {
        let most = magnitudes.iter().fold(0, |most, &magnitude| most.max(magnitude as i32)) as u32;
        let count = |wanted| magnitudes.iter().map(|&found| u32::from(found == wanted)).sum::<u32>() as usize;
        let (zeros, others) = (count(0), count(most));
        (most > 0 && zeros + others == SHORTEST).then_some(Self {
            small: most,
            large: most,
            more: false,
            zeros,
            others,
        })
    }

    fn add(&mut self, magnitude: u32) {
        if self.small == 0 {
            (self.small, self.large) = (magnitude, magnitude);
        } else if magnitude == self.small || magnitude == self.large {
        } else if self.small == self.large {
            self.small = self.small.min(magnitude);
            self.large = self.large.max(magnitude);
        } else {
            self.more = true;
        }
    }

    fn and(mut self, other: Self) -> Self {
        if other.small > 0 {
            self.add(other.small);
            self.add(other.large);
        }
        self.more |= other.more;
        self.zeros += other.zeros;
        self.others += other.others;
        self
    }

    fn is_one(&self) -> bool {
        self.small == self.large && !self.more
    }

    /// The smallest number of a dtype stands for all that were rounded to it: that it is repeated tells nothing.
    fn tells_nothing(&self) -> bool {
        self.large <= 1
    }

    /// At most two magnitudes, the one three times the other.
    fn is_one_and_three(&self, dtype: Dtype) -> bool {
        let (small, large) = (number(self.small, dtype), number(self.large, dtype));
        self.is_one() || (!self.more && is_three_times(large, small))
    }
}

/// Whether two magnitudes are the outer and the inner one of four levels, each of which may have been rounded by itself.
pub fn is_three_times(large: f32, small: f32) -> bool {
    const ROUNDED: f32 = 0.02;
    (large / small - 3.0).abs() < ROUNDED
}

/// What is known of the runs of one length.
#[derive(Clone, Copy, Default)]
struct Runs {
    one: Pattern,
    four: Pattern,
}

/// How the runs of one length follow a pattern.
#[derive(Clone, Copy, Default)]
struct Pattern {
    broken: bool,
    runs: usize,
    telling: usize,
    repeats: usize,
}

impl Pattern {
    fn add(&mut self, follows: bool, telling: bool, repeats: usize) {
        self.broken |= !follows;
        self.runs += 1;
        self.telling += usize::from(telling);
        self.repeats += if follows { repeats } else { 0 };
    }

    fn holds(&self) -> bool {
        !self.broken && self.repeats >= REPEATS && self.telling as f64 >= TELLING * self.runs as f64
    }
}

impl Runs {
    fn add(&mut self, levels: Levels, dtype: Dtype) {
        if levels.tells_nothing() {
            return;
        }
        let distinct = if levels.is_one() { 1 } else { 2 };
        let repeats = levels.others.saturating_sub(distinct);
        self.one.add(levels.is_one(), levels.others > 1, repeats);
        let four = levels.zeros == 0 && levels.is_one_and_three(dtype);
        self.four.add(four, distinct == 2, repeats);
    }

    fn is_broken(&self) -> bool {
        self.one.broken && self.four.broken
    }
}

/// Parts of `length` weights in rows of `width`, evenly spread where there are many: whole rows, or parts of one that
/// begin where a run does.
fn pieces(length: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    const MOST: usize = 64;
    let of_a_row = width.div_ceil(PIECE);
    let step = if of_a_row > 1 { PIECE } else { PIECE / width * width };
    let count = match of_a_row {
        1 => length.div_ceil(step),
        parts => length / width * parts,
    };
    let piece = move |index: usize| {
        let start = match of_a_row {
            1 => index * step,
            parts => index / parts * width + index % parts * step,
        };
        let end = if of_a_row > 1 {
            (start / width + 1) * width
        } else {
            length
        };
        start..end.min(start + step)
    };
    (0..count).step_by(count.div_ceil(MOST).max(1)).map(piece)
}

/// Look for runs of the rows of `width` weights; also where the first of the shortest runs breaks, as an index.
fn scan(stored: Stored, width: usize) -> io::Result<(Weights, usize)> {
    let length = stored.len();
    let (mut bytes, mut magnitudes, mut shortest) = (vec![], vec![], vec![]);
    let mut runs = [Runs::default(); RUNS.len()];
    let (mut zeros, mut read, mut first_break) = (0, 0, None);
    for Range { start, end } in pieces(length, width) {
        read += end - start;
        magnitudes.resize(end - start, 0);
        read_magnitudes(stored, start, &mut bytes, &mut magnitudes)?;
        for (row, magnitudes) in magnitudes.chunks(width).enumerate() {
            shortest.clear();
            shortest.extend(magnitudes.chunks(SHORTEST).map(Levels::of));
            for (found, length) in runs.iter_mut().zip(RUNS) {
                if found.is_broken() {
                    continue;
                }
                for run in shortest.chunks(length / SHORTEST) {
                    let levels = run.iter().copied().fold(Levels::default(), Levels::and);
                    found.add(levels, stored.dtype);
                }
            }
            zeros += shortest.iter().map(|levels| levels.zeros).sum::<usize>();
            if first_break.is_none() {
                first_break = break_in(magnitudes, &shortest).map(|column| start + row * width + column);
            }
            if runs.iter().all(Runs::is_broken) {
                return Ok((Weights::Latent, first_break.unwrap_or(0)));
            }
        }
    }
    let first_break = first_break.unwrap_or(0);
    let longest = |pattern: fn(&Runs) -> &Pattern| {
        let found = runs.iter().position(|runs| pattern(runs).holds());
        found.map(|index| RUNS[index].min(width))
    };
    let share = 1.0 - zeros as f64 / read as f64;
    const NO_ZEROS: f64 = 0.99; // a weight that is zero has no sign
    let found = match (longest(|runs| &runs.one), longest(|runs| &runs.four)) {
        (Some(run), _) if share > NO_ZEROS => Weights::Binary { run },
        (Some(run), _) => Weights::Ternary { run, share },
        (None, Some(run)) => Weights::FourLevel { run },
        (None, None) => Weights::Unknown,
    };
    Ok((found, first_break))
}

/// The first weight that has another magnitude than those before it in its run.
fn break_in(magnitudes: &[u32], shortest: &[Levels]) -> Option<usize> {
    let run = shortest.iter().position(|levels| !levels.is_one())?;
    let first = run * SHORTEST;
    let mut before = 0;
    let weights = magnitudes[first..].iter().take(SHORTEST);
    let at = weights.enumerate().find_map(|(at, &magnitude)| {
        let breaks = before != 0 && magnitude != 0 && magnitude != before;
        before = before.max(magnitude);
        breaks.then_some(at)
    });
    at.map(|at| first + at)
}

/// Whether runs of a sample of rows lie close to 0 and to one magnitude; then, whether those close to 0 are 0.
///
/// In a run of 32 latent weights about one in four does. Where a ternary matrix was rounded once more, or a small
/// change was added to it, all do.
fn nearly_ternary(stored: Stored, columns: usize) -> io::Result<Option<bool>> {
    const RUN: usize = 32;
    const ROWS: usize = 64;
    const RUNS_OF_A_ROW: usize = 8;
    const NEAR_RUNS: f64 = 0.75;
    const FEWEST: usize = 8;
    const COARSE: u32 = 16; // numbers below are multiples of the smallest one, which all lie close together
    let rows = stored.len() / columns;
    let (mut bytes, mut magnitudes) = (vec![], vec![0; columns.min(PIECE)]);
    let (mut runs, mut near, mut zeros) = (0, 0, true);
    for row in (0..rows).step_by(rows.div_ceil(ROWS).max(1)) {
        read_magnitudes(stored, row * columns, &mut bytes, &mut magnitudes)?;
        let some = magnitudes.chunks(RUN).filter(|run| run.iter().any(|&w| w >= COARSE));
        for run in some.take(RUNS_OF_A_ROW) {
            let run: Vec<f32> = run.iter().map(|&bits| number(bits, stored.dtype)).collect();
            runs += 1;
            if let Some(all_zero) = near_run(&run) {
                near += 1;
                zeros &= all_zero;
            }
        }
    }
    let is_near = runs >= FEWEST && near as f64 >= NEAR_RUNS * runs as f64;
    Ok(is_near.then_some(zeros))
}

/// Whether nine in ten of the magnitudes that are not 0 lie close to 0 or to one other; then, whether none is close to 0.
fn near_run(run: &[f32]) -> Option<bool> {
    const CLOSE: f32 = 1.0 / 8.0;
    const ALMOST_ALL: f64 = 0.9;
    const LARGE: usize = 4; // fewer lie close together by chance
    let most = run.iter().copied().fold(0.0, f32::max);
    let mut large: Vec<f32> = run.iter().copied().filter(|&w| w > most / 2.0).collect();
    large.sort_by(f32::total_cmp);
    let scale = large.get(large.len() / 2).copied().filter(|s| *s > 0.0)?;
    let others = run.iter().filter(|&&w| w != 0.0).count();
    let small = run.iter().filter(|&&w| w != 0.0 && w < CLOSE * scale);
    let large = run.iter().filter(|&&w| (w / scale - 1.0).abs() < CLOSE);
    let (small, large) = (small.count(), large.count());
    let is_near = large >= LARGE && (small + large) as f64 >= ALMOST_ALL * others as f64;
    is_near.then_some(small == 0)
}

#[cfg(test)]
mod tests;
