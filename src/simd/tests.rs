//! Every level against plain loops, to the bit.

use super::*;

struct FirstLeast<'t>(&'t [f64; LANES]);

impl Work for FirstLeast<'_> {
    type Output = usize;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> usize {
        lanes.first_least(self.0)
    }
}

#[test]
fn of_equal_lanes_the_first_is_the_least() {
    for level in Level::available() {
        for (a, b) in (0..LANES).flat_map(|a| (0..LANES).map(move |b| (a, b))) {
            for least in [[-1.0, -1.0], [0.0, -0.0], [-1e-310, -1e-310], [f64::MIN; 2]] {
                let mut numbers = [1.0; LANES];
                (numbers[a], numbers[b]) = (least[0], least[1]);
                let found = level.run(FirstLeast(&numbers));
                assert_eq!(found, a.min(b), "{}: {least:?}", level.name());
            }
        }
        assert_eq!(level.run(FirstLeast(&[f64::NAN; LANES])), LANES - 1);
    }
}

/// Numbers of every kind whose sums depend on their order: like weights, denormal, both zeros, and `extreme`.
fn mixed(n: usize, seed: usize, extreme: &[f32]) -> Vec<f32> {
    let special = [0.0, -0.0, 1e-41, -1e-45, f32::MIN_POSITIVE, 0.5, -0.5];
    let kind = |i: usize| (i + seed) * 7919 % 1009;
    (0..n)
        .map(|i| match kind(i) {
            k if k < 50 => special[k % special.len()],
            k if k < 60 && !extreme.is_empty() => extreme[k % extreme.len()],
            k => (k as f32 - 500.0) * 10f32.powi(k as i32 % 9 - 6),
        })
        .collect()
}

/// All passes over a row, as bits.
struct Passes<'t> {
    w: &'t [f32],
    importance: &'t [f32],
    ends: &'t [usize],
    deltas: &'t [f32],
}

#[derive(Debug, PartialEq)]
struct Found {
    absolute_sum: u64,
    codes: Vec<i8>,
    dead_sum: u64,
    active_sum: u64,
    active: [usize; 3],
}

impl Work for Passes<'_> {
    type Output = Found;

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Found {
        // What was there before is not to show.
        let mut codes = vec![9; self.w.len()];
        let Split { dead_sum, active } = lanes.split_row(self.w, self.ends, self.deltas, &mut codes);
        let (active_sum, counted) = lanes.active_sum(&codes, self.importance);
        Found {
            absolute_sum: lanes.absolute_sum(self.w).to_bits(),
            dead_sum: dead_sum.to_bits(),
            active_sum: active_sum.to_bits(),
            active: [active, counted, lanes.active_count(&codes)],
            codes,
        }
    }
}

/// The same in plain loops.
fn plainly(passes: &Passes) -> Found {
    let Passes {
        w,
        importance,
        ends,
        deltas,
    } = *passes;
    let delta = |i: usize| deltas[ends.iter().position(|&end| i < end).unwrap()];
    let code = |(i, &w): (usize, &f32)| i8::from(w >= delta(i)) - i8::from(w <= -delta(i));
    let codes: Vec<i8> = w.iter().enumerate().map(code).collect();
    let chosen = |numbers: &[f32], is_chosen: fn(i8) -> bool| {
        let terms = numbers.iter().zip(&codes);
        sum(terms.map(|(&x, &code)| if is_chosen(code) { f64::from(x) } else { 0.0 })).to_bits()
    };
    Found {
        absolute_sum: sum(w.iter().map(|&w| f64::from(w).abs())).to_bits(),
        dead_sum: chosen(w, |code| code == 0),
        active_sum: chosen(importance, |code| code != 0),
        active: [codes.iter().filter(|&&code| code != 0).count(); 3],
        codes,
    }
}

/// Lane l gets the numbers l, l + 16, l + 32, ...; then the lanes are added by halves.
fn sum(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0.0; LANES];
    numbers.enumerate().for_each(|(i, number)| lanes[i % LANES] += number);
    for half in [8, 4, 2, 1] {
        (0..half).for_each(|l| lanes[l] += lanes[l + half]);
    }
    lanes[0]
}

#[test]
fn every_level_computes_the_bits_of_plain_loops() {
    let extremes = [&[][..], &[f32::INFINITY, f32::NEG_INFINITY], &[f32::MAX, f32::MIN]];
    let lengths = (1..=70).chain([127, 128, 129, 256, 1000, 2048]);
    for (n, run) in lengths.flat_map(|n| [1, 3, 16, 24, 64, 100, n].map(|run| (n, run))) {
        for extreme in extremes {
            let (w, importance) = (mixed(n, run, extreme), mixed(n, n, &[]));
            let ends: Vec<_> = (1..=n.div_ceil(run)).map(|k| (k * run).min(n)).collect();
            let delta = |k| [0.5, 1e-41, f32::INFINITY, 40.0, 1e-45][k % 5];
            let deltas: Vec<_> = (0..ends.len()).map(delta).collect();
            let passes = || Passes {
                w: &w,
                importance: &importance,
                ends: &ends,
                deltas: &deltas,
            };
            let expected = plainly(&passes());
            for level in Level::available() {
                let found = level.run(passes());
                assert_eq!(found, expected, "{}: {n} in runs of {run}", level.name());
            }
        }
    }
}

/// Halves and bytes as numbers, and their products.
struct Converted<'t>(&'t [u16; LANES], &'t [i8; LANES]);

impl Work for Converted<'_> {
    type Output = [[f32; LANES]; 3];

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> [[f32; LANES]; 3] {
        let (halves, bytes) = (lanes.halves(self.0), lanes.bytes(self.1));
        [halves, bytes, lanes.mul(halves, bytes)].map(|x| lanes.store(x))
    }
}

/// By IEEE 754: 1 bit of sign, 5 of exponent, 10 of fraction.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f32.powi(-24),
        31 => f32::INFINITY,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 0 { magnitude } else { -magnitude }
}

#[test]
fn every_level_converts_halves_and_bytes() {
    let is_nan = |bits: u16| bits >> 10 & 31 == 31 && bits & 1023 != 0;
    for first in (0..=u16::MAX).step_by(LANES) {
        let halves: [u16; LANES] = std::array::from_fn(|lane| first + lane as u16);
        if halves.iter().all(|&bits| is_nan(bits)) {
            continue;
        }
        let halves = halves.map(|bits| if is_nan(bits) { 0 } else { bits });
        let bytes: [i8; LANES] = std::array::from_fn(|lane| (first / 16 % 16 * 16 + lane as u16) as i8);
        let plain = [halves.map(half), bytes.map(f32::from)];
        let products = std::array::from_fn(|lane| plain[0][lane] * plain[1][lane]);
        let expected = [plain[0], plain[1], products].map(|x| x.map(f32::to_bits));
        for level in Level::available() {
            let found = level.run(Converted(&halves, &bytes)).map(|x| x.map(f32::to_bits));
            assert_eq!(found[..2], expected[..2], "{} {first}", level.name());
            if halves.iter().all(|&bits| half(bits).is_finite()) {
                assert_eq!(found[2], expected[2], "{} {first}", level.name()); // infinity times 0 is a NaN of any sign
            }
        }
    }
}

/// What two times 16 numbers are added up, compared and rounded to, and the bits of the rounded ones.
struct Compared<'t>(&'t [f32; LANES], &'t [f32; LANES]);

impl Work for Compared<'_> {
    type Output = ([[f32; LANES]; 5], f32, [u16; 2 * LANES]);

    #[inline(always)]
    fn run(self, lanes: impl Lanes) -> Self::Output {
        let (a, b) = (lanes.load(self.0), lanes.load(self.1));
        let rounded = [lanes.to_bf16(a), lanes.to_bf16(b)];
        let all = [
            lanes.plus(a, b),
            lanes.minus(a, b),
            lanes.larger(a, b),
            rounded[0],
            rounded[1],
        ];
        (
            all.map(|x| lanes.store(x)),
            lanes.largest(a),
            lanes.pairs(rounded[0], rounded[1]),
        )
    }
}

#[test]
fn every_level_compares_and_rounds() {
    let [a, b] = [3, 4].map(|seed| mixed(1600, seed, &[f32::INFINITY, f32::MAX, f32::MIN]));
    // The bf16 below in magnitude, and the next one where that is not farther away.
    let nearest = |x: f32| {
        let below = f32::from_bits(x.to_bits() & 0xffff_0000);
        let above = f32::from_bits((x.to_bits() & 0xffff_0000).wrapping_add(0x1_0000));
        let wide = |x: f32| f64::from(x).clamp(-(2f64.powi(128)), 2f64.powi(128));
        let [below_by, above_by] = [below, above].map(|to| (wide(x) - wide(to)).abs());
        if x == below || below_by < above_by {
            below
        } else {
            above
        }
    };
    for (a, b) in a.as_chunks().0.iter().zip(b.as_chunks().0) {
        let of = |of: &dyn Fn(f32, f32) -> f32| std::array::from_fn(|lane| of(a[lane], b[lane]).to_bits());
        let expected: [[u32; LANES]; 5] = [
            of(&|a, b| a + b),
            of(&|a, b| a - b),
            of(&|a, b| if a > b { a } else { b }),
            of(&|a, _| nearest(a)),
            of(&|_, b| nearest(b)),
        ];
        let largest = a.iter().copied().fold(f32::MIN, f32::max);
        for level in Level::available() {
            let (found, found_largest, pairs) = level.run(Compared(a, b));
            let is_nan = |bits: u32| f32::from_bits(bits).is_nan();
            for (found, expected) in found.map(|x| x.map(f32::to_bits)).iter().zip(&expected) {
                let same = |(x, y): (&u32, &u32)| x == y || is_nan(*x) && is_nan(*y);
                assert!(found.iter().zip(expected).all(same), "{}: {a:?} {b:?}", level.name());
            }
            assert_eq!(found_largest, largest, "{}", level.name());
            for (lane, pair) in pairs.as_chunks::<2>().0.iter().enumerate() {
                assert_eq!(pair.map(|x| u32::from(x) << 16), [expected[3][lane], expected[4][lane]]);
            }
        }
    }
}
