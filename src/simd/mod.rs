//! Code that is written once and runs in the widest vectors of the processor, chosen at run time: [`Level`] runs
//! [`Work`], which gets the vectors of the level as [`Lanes`], 16 numbers at a time. [`Plain`] has them for any
//! processor. All levels give the same bits.
//!
//! Every f64 sum over a row of latent weights runs in 16 lanes: lane l adds up the numbers l, l + 16, l + 32, ..., then
//! the lanes are added by halves. The order is part of the definition, so that a result is the same to the bit with any
//! vectors.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod level;
mod plain;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
pub use level::{Level, Work};
pub use plain::Plain;

/// Lanes of every sum.
pub const LANES: usize = 16;

/// The bits of 1.0.
const ONE: i32 = 1f32.to_bits() as i32;

/// A row's codes, and what its dead zone is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Split {
    /// Sum of the weights with code 0.
    pub dead_sum: f64,
    /// How many codes are not 0.
    pub active: usize,
}

/// What a level does with 16 numbers, and the passes that are made of it.
pub trait Lanes: Copy {
    /// 16 f32.
    type Numbers: Copy;
    /// 16 f64.
    type Sums: Copy;
    /// A lane mask.
    type Mask: Copy;
    /// Vector registers of the level.
    const REGISTERS: usize;

    /// No sums yet.
    fn zero(self) -> Self::Sums;
    /// These numbers.
    fn load(self, x: &[f32; LANES]) -> Self::Numbers;
    /// These numbers in half precision, as bits. No NaN that signals is among them.
    fn halves(self, x: &[u16; LANES]) -> Self::Numbers;
    /// These whole numbers.
    fn bytes(self, x: &[i8; LANES]) -> Self::Numbers;
    /// The same number in each lane.
    fn splat(self, x: f32) -> Self::Numbers;
    /// The numbers, one by one.
    fn store(self, x: Self::Numbers) -> [f32; LANES];
    /// a * b + c, rounded once.
    fn fma(self, a: Self::Numbers, b: Self::Numbers, c: Self::Numbers) -> Self::Numbers;
    /// a * b
    fn mul(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// a + b
    fn plus(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// a - b
    fn minus(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// The larger of both, lane by lane; of `b` where one is NaN.
    fn larger(self, a: Self::Numbers, b: Self::Numbers) -> Self::Numbers;
    /// `2^n` of `n + 1.5 * 2^23`, where `n` is whole and from -126 to 127: its lowest bits are `n`.
    fn power_of_two(self, shifted: Self::Numbers) -> Self::Numbers;
    /// The nearest numbers of bfloat16, the larger one of two in magnitude. No NaN is to have all bits set.
    fn to_bf16(self, x: Self::Numbers) -> Self::Numbers;
    /// Two times 16 numbers of bfloat16 as bits, first one of `low`, then one of `high`.
    fn pairs(self, low: Self::Numbers, high: Self::Numbers) -> [u16; 2 * LANES];
    /// The largest of the numbers, none of which is to be NaN.
    fn largest(self, x: Self::Numbers) -> f32;
    /// |x|
    fn abs(self, x: Self::Numbers) -> Self::Numbers;
    /// sums + x
    fn add(self, sums: Self::Sums, x: Self::Numbers) -> Self::Sums;
    /// sums + x where the mask is set.
    fn add_where(self, sums: Self::Sums, mask: Self::Mask, x: Self::Numbers) -> Self::Sums;
    /// (w >= delta) - (w <= -delta), and where that is 0.
    fn split(self, w: Self::Numbers, delta: Self::Numbers) -> ([i8; LANES], Self::Mask);
    /// Where codes are not 0.
    fn active(self, codes: &[i8; LANES]) -> Self::Mask;
    /// In how many lanes the mask is set.
    fn count(self, mask: Self::Mask) -> u32;
    /// The sums, one by one.
    fn sums(self, sums: Self::Sums) -> [f64; LANES];
    /// The first lane of the least number. None of them is to be NaN: the last lane is given then.
    fn first_least(self, numbers: &[f64; LANES]) -> usize;

    /// Sum of |w|.
    #[inline(always)]
    fn absolute_sum(self, w: &[f32]) -> f64 {
        let mut sums = self.zero();
        let (whole, rest) = w.as_chunks();
        for w in whole {
            sums = self.add(sums, self.abs(self.load(w)));
        }
        if !rest.is_empty() {
            sums = self.add(sums, self.abs(self.load(&padded(rest))));
        }
        fold(self.sums(sums))
    }

    /// Sum of `importance` over the weights whose code is not 0, and how many they are. `codes`, `importance`: (n,).
    #[inline(always)]
    fn active_sum(self, codes: &[i8], importance: &[f32]) -> (f64, usize) {
        let (mut sums, mut count) = (self.zero(), 0);
        let (whole, rest) = codes.as_chunks();
        let (whole_importance, rest_importance) = importance.as_chunks();
        for (codes, importance) in whole.iter().zip(whole_importance) {
            let active = self.active(codes);
            sums = self.add_where(sums, active, self.load(importance));
            count += self.count(active) as usize;
        }
        if !rest.is_empty() {
            let active = self.active(&padded(rest));
            sums = self.add_where(sums, active, self.load(&padded(rest_importance)));
            count += self.count(active) as usize;
        }
        (fold(self.sums(sums)), count)
    }

    /// How many codes are not 0.
    #[inline(always)]
    fn active_count(self, codes: &[i8]) -> usize {
        let mut count = 0;
        let (whole, rest) = codes.as_chunks();
        for codes in whole {
            count += self.count(self.active(codes)) as usize;
        }
        count + self.count(self.active(&padded(rest))) as usize
    }

    /// The codes of a row. `w`, `codes`: (columns,).
    ///
    /// `ends`, `deltas`: of each run of columns that shares a delta, the column after the last, and that; a weight of
    /// this magnitude and above is active. The runs cover all columns in their order.
    #[inline(always)]
    fn split_row(self, w: &[f32], ends: &[usize], deltas: &[f32], codes: &mut [i8]) -> Split {
        let mut found = Found {
            sums: self.zero(),
            dead: 0,
        };
        if ends.iter().all(|end| end.is_multiple_of(LANES)) {
            let mut start = 0;
            for (&end, &delta) in ends.iter().zip(deltas) {
                let delta = self.splat(delta);
                let codes = codes[start..end].as_chunks_mut().0;
                for (w, codes) in w[start..end].as_chunks().0.iter().zip(codes) {
                    *codes = self.split_next(self.load(w), delta, &mut found);
                }
                start = end;
            }
        } else {
            let mut thresholds = Thresholds {
                ends,
                deltas,
                run: 0,
                at: 0,
            };
            for (w, codes) in w.chunks(LANES).zip(codes.chunks_mut(LANES)) {
                let delta = thresholds.next(self);
                let split = self.split_next(self.load(&padded(w)), delta, &mut found);
                codes.copy_from_slice(&split[..w.len()]);
            }
        }
        Split {
            dead_sum: fold(self.sums(found.sums)),
            // What the last vector was padded with is dead.
            active: w.len().next_multiple_of(LANES) - found.dead,
        }
    }

    /// The codes of the next 16 weights, and what is dead among them.
    #[inline(always)]
    fn split_next(self, w: Self::Numbers, delta: Self::Numbers, found: &mut Found<Self::Sums>) -> [i8; LANES] {
        let (codes, dead) = self.split(w, delta);
        found.sums = self.add_where(found.sums, dead, w);
        found.dead += self.count(dead) as usize;
        codes
    }
}

/// What a row's dead zone is so far.
pub struct Found<S> {
    /// Sums of the dead weights, in lanes.
    sums: S,
    /// How many they are.
    dead: usize,
}

/// The threshold of each column.
struct Thresholds<'a> {
    ends: &'a [usize],
    deltas: &'a [f32],
    /// A run that starts no later than column `at`.
    run: usize,
    at: usize,
}

impl Thresholds<'_> {
    /// Those of the next lanes.
    #[inline(always)]
    fn next<L: Lanes>(&mut self, lanes: L) -> L::Numbers {
        while self.ends[self.run] <= self.at {
            self.run += 1;
        }
        let thresholds = if self.at + LANES <= self.ends[self.run] {
            lanes.splat(self.deltas[self.run])
        } else {
            lanes.load(&self.mixed())
        };
        self.at += LANES;
        thresholds
    }

    /// One by one. What the last lanes are padded with gets that of the last run.
    #[inline(never)]
    fn mixed(&self) -> [f32; LANES] {
        std::array::from_fn(|lane| {
            let run = self.ends.partition_point(|&end| end <= self.at + lane);
            self.deltas[run.min(self.deltas.len() - 1)]
        })
    }
}

/// `rest`, and zeros.
#[inline(always)]
fn padded<T: Copy + Default>(rest: &[T]) -> [T; LANES] {
    let mut whole = [T::default(); LANES];
    whole[..rest.len()].copy_from_slice(rest);
    whole
}

/// The lanes added by halves: l and l + 8, then l and l + 4, and so on.
#[inline(always)]
pub fn fold(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests;
