//! The loops over runs and columns, once for the instruction sets whose row group is several vectors. Each brings the
//! steps of its vectors and the integer dots of one run. (The scalar kernel has loops of its own, because these are
//! compared with it; so has AVX-512, where they were measured to be faster.)

use super::contract::{FloatPanel, MR, Panel, Runs, STEP};
use super::floats::bytes_of;
use super::packed::{KPanel, RowGroup};

/// The vectors of an instruction set: a lane is a row, and a row group has several parts. A value is the proof that the
/// CPU has the instructions.
pub(super) trait Vector: Copy {
    /// f32 of a part of the rows.
    type Floats: Copy;
    /// i32 of as many.
    type Ints: Copy;
    /// Whether codes of 8 bits lose their offset of 128 in [`Vector::dots`].
    const SIGNED_BYTES: bool;

    /// The same number in each lane.
    fn splat(self, x: f32) -> Self::Floats;
    /// The same number in each lane.
    fn splat_int(self, x: i32) -> Self::Ints;
    /// Part `part` of the results of a token.
    fn load(self, floats: &[f32; MR], part: usize) -> Self::Floats;
    /// Put that back.
    fn store(self, floats: &mut [f32; MR], part: usize, x: Self::Floats);
    /// Part `part` of 16 f16.
    fn halves(self, f16s: &[u8; 2 * MR], part: usize) -> Self::Floats;
    /// Part `part` of 16 signed bytes.
    fn bytes(self, bytes: &[u8; MR], part: usize) -> Self::Ints;
    /// Part `part` of the 16 weights of a column. `TYPE`: see [`bytes_of`].
    fn widen<const TYPE: usize>(self, weights: &[u8], part: usize) -> Self::Floats;
    /// Rounded to the nearest f32.
    fn to_floats(self, x: Self::Ints) -> Self::Floats;
    /// a - b
    fn sub(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// x << places
    fn shift_left(self, x: Self::Ints, places: u32) -> Self::Ints;
    /// a + b
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// a * b + c, rounded once.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// c - a * b, rounded once.
    fn fnma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;

    /// The sums of stored code * activation over one run, for `H` parts of the rows and `C` tokens.
    fn dots<const BITS: usize, const H: usize, const C: usize>(self, run: Run<'_>) -> [[Self::Ints; C]; H];

    /// Add multiplier * the sums of stored code * activation over one run to `totals`.
    fn add_multiplied<const BITS: usize, const H: usize, const C: usize>(
        self,
        run: Run<'_>,
        multipliers: &[u8; MR],
        totals: &mut [[Self::Ints; C]; H],
    );

    /// Sums of multiplier * sum of activations over some runs. `sums`: (runs, width).
    fn offsets<const H: usize, const C: usize>(
        self,
        multipliers: &[[u8; MR]],
        sums: &[i32],
        width: usize,
        at: At,
    ) -> [[Self::Ints; C]; H];
}

/// Steps that a [`Vector`] does with an instruction or two, as `name(arguments) -> type = expression`.
macro_rules! steps {
    ($($name:ident$(<$($generic:ident),*>)?($($argument:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => {$(
        #[inline(always)]
        fn $name$(<$(const $generic: usize),*>)?(self, $($argument: $ty),*) $(-> $out)? {
            // SAFETY: a value of this type is the proof of its instructions.
            unsafe { $body }
        }
    )*};
}
pub(super) use steps;

/// What is multiplied: a row group and a panel. To be copied before the loops: behind a reference it would be read
/// again for each run.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub group: RowGroup<'a>,
    /// Whether multipliers are applied to integers.
    pub in_spans: bool,
    /// As [`super::packed::Format::shift`].
    pub shift: Option<u32>,
    pub runs: Runs,
    pub panel: Panel<'a>,
}

/// Where the results begin that one call makes.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// The first part of the rows.
    pub part: usize,
    /// The first token.
    pub token: usize,
}

/// One run of a row group and a panel.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    /// Steps, `32 * BITS` bytes each.
    pub codes: &'a [u8],
    /// Four for each step: `dwords[q * width + token]`.
    pub dwords: &'a [i32],
    pub width: usize,
    pub at: At,
}

impl<'a> Operands<'a> {
    /// Row group `group` of `weights`, and `panel`.
    pub fn new(weights: &KPanel<'a>, group: usize, panel: &Panel<'a>) -> Operands<'a> {
        Operands {
            group: weights.row_group(group),
            in_spans: weights.in_spans(panel),
            shift: weights.format.shift,
            runs: weights.runs(panel),
            panel: *panel,
        }
    }

    #[inline(always)]
    fn run<const BITS: usize>(&self, run: usize, at: At) -> Run<'a> {
        let (codes, width) = (self.runs.columns / STEP * 32 * BITS, self.panel.width);
        let dwords = self.runs.columns / 4 * width;
        Run {
            codes: &self.group.codes[run * codes..][..codes],
            dwords: &self.panel.dwords[run * dwords..][..dwords],
            width,
            at,
        }
    }
}

/// Add the product of `H` parts of the rows and `C` tokens, those at `at`, to `out`, the results of all tokens.
#[inline(always)]
pub(super) fn product<V: Vector, const BITS: usize, const H: usize, const C: usize>(
    v: V,
    of: &Operands<'_>,
    at: At,
    out: &mut [[f32; MR]],
) {
    if of.in_spans {
        return multiplied::<V, BITS, H, C>(v, of, at, out);
    }
    let Operands {
        group,
        shift,
        runs,
        panel,
        ..
    } = *of;
    let unit = match BITS {
        8 if V::SIGNED_BYTES => 0,
        _ => 1 << shift.unwrap_or(0), // as `Format::offset_shift`
    };
    let out = &mut out[at.token..][..C];
    // The scales of a run: the weights' or the activations'.
    let scales = |of_tokens: bool, run: usize| match of_tokens {
        true => Scales::Tokens(&panel.scales[run * panel.width + at.token..][..C]),
        false => Scales::Rows(group.factors(run)),
    };
    let mut results = [[v.splat(0.0); C]; H];
    for (h, results) in results.iter_mut().enumerate() {
        for (out, result) in out.iter().zip(results) {
            *result = v.load(out, at.part + h);
        }
    }
    for outer in 0..runs.outer {
        let mut partials = [[v.splat(0.0); C]; H];
        for run in outer * runs.inner..(outer + 1) * runs.inner {
            let sums = v.dots::<BITS, H, C>(of.run::<BITS>(run, at));
            let offsets = &panel.sums[run * panel.width + at.token..][..C];
            let mut dots = partials;
            for h in 0..H {
                for c in 0..C {
                    let offset = v.splat_int(offsets[c] * unit);
                    dots[h][c] = v.to_floats(v.sub(sums[h][c], offset));
                }
            }
            add_scaled(v, dots, scales(runs.activation_inside, run), at.part, &mut partials);
        }
        add_scaled(
            v,
            partials,
            scales(!runs.activation_inside, outer),
            at.part,
            &mut results,
        );
    }
    for (h, results) in results.into_iter().enumerate() {
        for (out, result) in out.iter_mut().zip(results) {
            v.store(out, at.part + h, result);
        }
    }
}

/// The scales of a run.
enum Scales<'a> {
    /// 16 f16, and their multipliers.
    Rows((&'a [u8; 2 * MR], Option<&'a [u8; MR]>)),
    /// One for each token.
    Tokens(&'a [f32]),
}

/// `sums + x * scales`
#[inline(always)]
fn add_scaled<V: Vector, const H: usize, const C: usize>(
    v: V,
    x: [[V::Floats; C]; H],
    scales: Scales<'_>,
    part: usize,
    sums: &mut [[V::Floats; C]; H],
) {
    for h in 0..H {
        match scales {
            Scales::Rows((f16s, multipliers)) => {
                let mut scale = v.halves(f16s, part + h);
                if let Some(multipliers) = multipliers {
                    scale = v.mul(scale, v.to_floats(v.bytes(multipliers, part + h)));
                }
                for c in 0..C {
                    sums[h][c] = v.fma(x[h][c], scale, sums[h][c]);
                }
            }
            Scales::Tokens(scales) => {
                for c in 0..C {
                    sums[h][c] = v.fma(x[h][c], v.splat(scales[c]), sums[h][c]);
                }
            }
        }
    }
}

/// As [`product`], where multipliers are applied to integers.
#[inline(always)]
fn multiplied<V: Vector, const BITS: usize, const H: usize, const C: usize>(
    v: V,
    of: &Operands<'_>,
    at: At,
    out: &mut [[f32; MR]],
) {
    let Operands {
        group,
        shift,
        runs,
        panel,
        ..
    } = *of;
    let width = panel.width;
    let out = &mut out[at.token..][..C];
    for span in 0..runs.outer {
        let span_runs = span * runs.inner..(span + 1) * runs.inner;
        let mut totals = [[v.splat_int(0); C]; H];
        for run in span_runs.clone() {
            v.add_multiplied::<BITS, H, C>(of.run::<BITS>(run, at), &group.multipliers[run], &mut totals);
        }
        let multipliers = &group.offset_multipliers()[span_runs.clone()];
        let sums = &panel.sums[span_runs.start * width..span_runs.end * width];
        let offsets = v.offsets::<H, C>(multipliers, sums, width, at);
        let scales = &panel.scales[span * width + at.token..][..C];
        for h in 0..H {
            let scale = v.halves(&group.scales[span], at.part + h);
            for c in 0..C {
                let (total, offset) = (totals[h][c], offsets[h][c]);
                let partial = if let Some(shift) = shift {
                    let total = v.sub(total, v.shift_left(offset, shift));
                    v.mul(v.to_floats(total), scale)
                } else {
                    let minimum = v.halves(&group.minimums[span], at.part + h);
                    let partial = v.mul(v.to_floats(total), scale);
                    v.fnma(minimum, v.to_floats(offset), partial)
                };
                let result = v.load(&out[c], at.part + h);
                let result = v.fma(partial, v.splat(scales[c]), result);
                v.store(&mut out[c], at.part + h, result);
            }
        }
    }
}

/// The product of all `H` parts of a row group of floats and `C` tokens from `first` on. `TYPE`: see [`bytes_of`].
#[inline(always)]
pub(super) fn floats<V: Vector, const TYPE: usize, const H: usize, const C: usize>(
    v: V,
    weights: &[u8],
    panel: &FloatPanel<'_>,
    first: usize,
    out: &mut [[f32; MR]],
) {
    let mut chains = [[[v.splat(0.0); C]; H]; 2];
    let bytes = MR * bytes_of(TYPE);
    for (x, weights) in panel.x.chunks(2 * panel.width).zip(weights.chunks(2 * bytes)) {
        let x = x.chunks_exact(panel.width);
        for ((x, weights), chain) in x.zip(weights.chunks_exact(bytes)).zip(&mut chains) {
            let x = &x[first..][..C];
            for (h, chain) in chain.iter_mut().enumerate() {
                let weights = v.widen::<TYPE>(weights, h);
                for (chain, &x) in chain.iter_mut().zip(x) {
                    *chain = v.fma(weights, v.splat(x), *chain);
                }
            }
        }
    }
    let [even, odd] = chains;
    for (h, (even, odd)) in even.into_iter().zip(odd).enumerate() {
        for ((even, odd), out) in even.into_iter().zip(odd).zip(&mut out[first..][..C]) {
            v.store(out, h, v.add(even, odd));
        }
    }
}
