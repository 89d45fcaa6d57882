//! One body of code, compiled for several levels of a processor's instructions and chosen at run time: plain loops, and
//! passes over [`Lanes`], which are given the vectors of the level.
//!
//! Rust neither reorders floating-point sums nor contracts products into them, so that every level computes the same
//! bits; what differs is how many numbers an instruction takes. (`mul_add` is exact everywhere, and slow where the
//! processor has no instruction for it.) On aarch64 NEON is part of the baseline.

#[cfg(target_arch = "x86_64")]
use super::{Avx2, Avx512};
use super::{Lanes, Plain};

/// Work that gains from wider vectors.
pub trait Work {
    /// What it gives.
    type Output;

    /// Do it. To be `#[inline(always)]`, and to call only what is: what is not inlined is compiled for the baseline.
    /// `lanes` is not to be used in a closure, which is never sure to be inlined.
    fn run(self, lanes: impl Lanes) -> Self::Output;
}

/// Instructions that this processor has: a value exists only where they were detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Level {
    /// What the program was compiled for.
    pub const BASELINE: Self = Self(Kind::Baseline);

    /// All levels of this processor, widest first.
    pub fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let wider = {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
                && is_x86_feature_detected!("popcnt");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            [avx512.then_some(Self(Kind::Avx512)), avx2.then_some(Self(Kind::Avx2))]
        };
        #[cfg(not(target_arch = "x86_64"))]
        let wider: [Option<Self>; 0] = [];
        wider.into_iter().flatten().chain([Self::BASELINE]).collect()
    }

    /// The widest level of this processor.
    pub fn widest() -> Self {
        Self::available()[0]
    }

    /// For reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            Kind::Baseline => "baseline",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
        }
    }

    /// Do `work` with the instructions of this level.
    #[inline]
    pub fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Kind::Baseline => work.run(Plain),
            // SAFETY: `available` makes this value only where the processor has these instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { avx2(work) },
            // SAFETY: `available` makes this value only where the processor has these instructions.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { avx512(work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,popcnt")]
fn avx2<W: Work>(work: W) -> W::Output {
    // SAFETY: these are the features that this function is called with.
    work.run(unsafe { Avx2::new() })
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,popcnt")]
fn avx512<W: Work>(work: W) -> W::Output {
    // SAFETY: these are the features that this function is called with.
    work.run(unsafe { Avx512::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Work for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self, _: impl Lanes) -> f32 {
            self.0.iter().sum()
        }
    }

    #[test]
    fn every_level_computes_the_same_bits() {
        let numbers: Vec<f32> = (1..1000).map(|i| 1.0 / i as f32).collect();
        let in_order = numbers.iter().fold(0.0, |sum, x| sum + x);
        for level in Level::available() {
            assert_eq!(level.run(Sum(&numbers)), in_order, "{}", level.name());
        }
    }

    /// Beside an f32 and a half of its last place, 2^-80 decides: who rounds to 64 bits in between does not see it.
    #[test]
    fn a_fused_product_is_rounded_once() {
        let [x, tiny] = std::hint::black_box([1.0 + 1.0 / 4096.0, 2f32.powi(-80)]);
        let above = 1.0 + 1.0 / 2048.0 + f32::EPSILON;
        assert_eq!(x.mul_add(x, tiny).to_bits(), above.to_bits());
        assert_eq!(x.mul_add(x, -tiny).to_bits(), (above - f32::EPSILON).to_bits());
    }
}
