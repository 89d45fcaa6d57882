//! The steps in arrays.

use half::f16;

use super::{LANES, Lanes, ONE};

/// What `f32::mul_add` calls on a processor without the instruction. MinGW's own goes through the x87's registers and rounds
/// twice.
// SAFETY: the C library's function of that name, arguments and result, which is left out where the linker finds this one.
#[cfg(windows)]
#[unsafe(no_mangle)]
extern "C" fn fmaf(a: f32, b: f32, c: f32) -> f32 {
    libm::fmaf(a, b, c)
}

/// Arrays, for the instructions that the program was compiled for.
#[derive(Clone, Copy)]
pub struct Plain;

impl Lanes for Plain {
    type Numbers = [f32; LANES];
    type Sums = [f64; LANES];
    type Mask = [bool; LANES];
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn zero(self) -> [f64; LANES] {
        [0.0; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> [f32; LANES] {
        *x
    }

    #[inline(always)]
    fn halves(self, x: &[u16; LANES]) -> [f32; LANES] {
        x.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    fn bytes(self, x: &[i8; LANES]) -> [f32; LANES] {
        x.map(f32::from)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }

    #[inline(always)]
    fn store(self, x: [f32; LANES]) -> [f32; LANES] {
        x
    }

    #[inline(always)]
    fn fma(self, a: [f32; LANES], b: [f32; LANES], mut c: [f32; LANES]) -> [f32; LANES] {
        for (c, (a, b)) in c.iter_mut().zip(a.iter().zip(b)) {
            *c = a.mul_add(b, *c);
        }
        c
    }

    #[inline(always)]
    fn mul(self, mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a *= b;
        }
        a
    }

    #[inline(always)]
    fn plus(self, mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a += b;
        }
        a
    }

    #[inline(always)]
    fn minus(self, mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a -= b;
        }
        a
    }

    #[inline(always)]
    fn larger(self, mut a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        for (a, b) in a.iter_mut().zip(b) {
            *a = if *a > b { *a } else { b };
        }
        a
    }

    #[inline(always)]
    fn power_of_two(self, mut x: [f32; LANES]) -> [f32; LANES] {
        for x in &mut x {
            *x = f32::from_bits((x.to_bits() << 23).wrapping_add(ONE as u32));
        }
        x
    }

    #[inline(always)]
    fn to_bf16(self, mut x: [f32; LANES]) -> [f32; LANES] {
        for x in &mut x {
            *x = f32::from_bits(x.to_bits().wrapping_add(0x8000) & 0xffff_0000);
        }
        x
    }

    #[inline(always)]
    fn pairs(self, low: [f32; LANES], high: [f32; LANES]) -> [u16; 2 * LANES] {
        let mut out = [0; 2 * LANES];
        for (out, (low, high)) in out.as_chunks_mut().0.iter_mut().zip(low.into_iter().zip(high)) {
            *out = [low, high].map(|x| (x.to_bits() >> 16) as u16);
        }
        out
    }

    #[inline(always)]
    fn largest(self, x: [f32; LANES]) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn abs(self, x: [f32; LANES]) -> [f32; LANES] {
        x.map(f32::abs)
    }

    #[inline(always)]
    fn add(self, mut sums: [f64; LANES], x: [f32; LANES]) -> [f64; LANES] {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += f64::from(x);
        }
        sums
    }

    #[inline(always)]
    fn add_where(self, sums: [f64; LANES], mask: [bool; LANES], mut x: [f32; LANES]) -> [f64; LANES] {
        for (x, set) in x.iter_mut().zip(mask) {
            *x = if set { *x } else { 0.0 };
        }
        self.add(sums, x)
    }

    #[inline(always)]
    fn split(self, w: [f32; LANES], delta: [f32; LANES]) -> ([i8; LANES], [bool; LANES]) {
        let mut codes = [0; LANES];
        for (code, (w, delta)) in codes.iter_mut().zip(w.iter().zip(delta)) {
            *code = i8::from(*w >= delta) - i8::from(*w <= -delta);
        }
        (codes, codes.map(|code| code == 0))
    }

    #[inline(always)]
    fn active(self, codes: &[i8; LANES]) -> [bool; LANES] {
        codes.map(|code| code != 0)
    }

    #[inline(always)]
    fn count(self, mask: [bool; LANES]) -> u32 {
        mask.map(u32::from).iter().sum()
    }

    #[inline(always)]
    fn sums(self, sums: [f64; LANES]) -> [f64; LANES] {
        sums
    }

    #[inline(always)]
    fn first_least(self, numbers: &[f64; LANES]) -> usize {
        let mut first = LANES - 1;
        for lane in (0..LANES).rev() {
            first = if numbers[lane] <= numbers[first] { lane } else { first };
        }
        first
    }
}
