//! Keys or values of a head in a block, read as f32, whatever they are kept in.

use formats::block::q8_0;

use crate::kernels::bf16;
use crate::kernels::memory::fetch;
use crate::simd::{LANES, Lanes};

use super::cells::{BLOCK, CHUNK, CacheType, Order, Vector};

/// Keys or values of a head in a block, as they are kept.
#[derive(Clone, Copy)]
pub struct Kept<'c> {
    pub ty: CacheType,
    pub order: Order,
    pub head_dim: usize,
    pub cells: &'c [Vector],
    /// Those of the next block begin so many bytes behind; 0 if there is none.
    pub next: usize,
}

impl<'c> Kept<'c> {
    /// Vectors of a tile: of 16 positions of keys, or 16 dimensions of values.
    pub fn tile(&self) -> usize {
        match self.order {
            Order::Keys => self.ty.dimensions(self.head_dim),
            Order::Values => BLOCK,
        }
    }

    /// Numbers of bf16.
    pub fn pairs(&self) -> &'c [bf16::Pairs] {
        bytemuck::cast_slice(self.cells)
    }

    /// All of them: in `room`, where they are not kept in f32.
    #[inline(always)]
    pub fn in_floats<'r>(&self, lanes: impl Lanes, room: &'r mut [Vector]) -> &'r [Vector]
    where
        'c: 'r,
    {
        if self.ty == CacheType::F32 {
            return self.cells;
        }
        self.read(Fill { lanes, to: room });
        room
    }

    /// Do `task` with them while those of the next block are fetched.
    #[inline(always)]
    pub fn stream(&self, task: impl Task) {
        self.read(Fetching { task, ahead: self.next });
    }

    #[inline(always)]
    fn read(&self, task: impl Task) {
        match self.ty {
            CacheType::F32 => task.run(self.cells),
            CacheType::F16 => task.run(Halves(bytemuck::cast_slice(self.cells))),
            CacheType::Bf16 => task.run(Pairs(bytemuck::cast_slice(self.cells))),
            CacheType::Q8_0 => {
                let (codes, scales) = self.cells.split_at(self.order.vectors(self.head_dim) / 4);
                let (codes, scales) = (bytemuck::cast_slice(codes), bytemuck::cast_slice(scales));
                match self.order {
                    Order::Keys => task.run(KeyCodes { codes, scales }),
                    Order::Values => task.run(ValueCodes { codes, scales }),
                }
            }
        }
    }
}

/// Vectors of 16 numbers, behind each other in an [`Order`].
pub trait Numbers: Copy {
    /// Some of them.
    type Run<L: Lanes>: Run<L>;

    /// `count` of them, up to 16. `first`: a multiple of 16 behind the first of a tile.
    fn run<L: Lanes>(self, lanes: L, first: usize, count: usize) -> Self::Run<L>;
}

/// Up to 16 vectors.
pub trait Run<L: Lanes>: Copy {
    /// Vector `i` of them.
    fn vector(&self, lanes: L, i: usize) -> L::Numbers;

    /// Where it is kept.
    fn place(&self, i: usize) -> *const u8;
}

/// What is done with numbers.
pub trait Task {
    /// Do it.
    fn run(self, numbers: impl Numbers);
}

/// Writes them to `to`, of as many vectors.
struct Fill<'t, L> {
    lanes: L,
    to: &'t mut [Vector],
}

impl<L: Lanes> Task for Fill<'_, L> {
    #[inline(always)]
    fn run(self, numbers: impl Numbers) {
        for (i, to) in self.to.chunks_mut(LANES).enumerate() {
            let run = numbers.run(self.lanes, i * LANES, to.len());
            for (i, to) in to.iter_mut().enumerate() {
                *to = self.lanes.store(run.vector(self.lanes, i));
            }
        }
    }
}

impl<'c> Numbers for &'c [Vector] {
    type Run<L: Lanes> = &'c [Vector];

    #[inline(always)]
    fn run<L: Lanes>(self, _: L, first: usize, count: usize) -> Self::Run<L> {
        &self[first..][..count]
    }
}

impl<L: Lanes> Run<L> for &[Vector] {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        lanes.load(&self[i])
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        (&raw const self[i]).cast()
    }
}

/// Of half precision.
#[derive(Clone, Copy)]
struct Halves<'c>(&'c [[u16; LANES]]);

impl<'c> Numbers for Halves<'c> {
    type Run<L: Lanes> = Halves<'c>;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L, first: usize, count: usize) -> Self::Run<L> {
        Halves(&self.0[first..][..count])
    }
}

impl<L: Lanes> Run<L> for Halves<'_> {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        lanes.halves(&self.0[i])
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        (&raw const self.0[i]).cast()
    }
}

/// Of bf16, two vectors in one.
#[derive(Clone, Copy)]
struct Pairs<'c>(&'c [[u32; LANES]]);

/// One of each pair: the higher half of what is shifted.
#[derive(Clone, Copy)]
struct Shifted<'c> {
    pairs: &'c [[u32; LANES]],
    shift: u32,
}

impl<'c> Numbers for Pairs<'c> {
    type Run<L: Lanes> = Shifted<'c>;

    #[inline(always)]
    fn run<L: Lanes>(self, _: L, first: usize, count: usize) -> Self::Run<L> {
        let (chunk, half) = (first / CHUNK, first % CHUNK / (CHUNK / 2));
        Shifted {
            pairs: &self.0[chunk * (CHUNK / 2)..][..count],
            shift: 16 - 16 * half as u32,
        }
    }
}

impl<L: Lanes> Run<L> for Shifted<'_> {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        let half = |pair: u32| f32::from_bits(pair << self.shift & 0xffff_0000);
        lanes.load(&self.pairs[i].map(half))
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        (&raw const self.pairs[i]).cast()
    }
}

/// Keys of Q8_0: a vector of scales for 32 vectors of codes.
#[derive(Clone, Copy)]
struct KeyCodes<'c> {
    codes: &'c [[i8; LANES]],
    scales: &'c [[u16; LANES]],
}

/// Codes, and a scale for each of their lanes.
#[derive(Clone, Copy)]
struct Scaled<'c, N> {
    codes: &'c [[i8; LANES]],
    scales: N,
}

impl<'c> Numbers for KeyCodes<'c> {
    type Run<L: Lanes> = Scaled<'c, L::Numbers>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L, first: usize, count: usize) -> Self::Run<L> {
        Scaled {
            scales: lanes.halves(&self.scales[first / q8_0::WEIGHTS]),
            codes: &self.codes[first..][..count],
        }
    }
}

impl<L: Lanes> Run<L> for Scaled<'_, L::Numbers> {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        lanes.mul(lanes.bytes(&self.codes[i]), self.scales)
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        (&raw const self.codes[i]).cast()
    }
}

/// Values of Q8_0: a vector of scales for 16 vectors of codes of two tiles each.
#[derive(Clone, Copy)]
struct ValueCodes<'c> {
    codes: &'c [[i8; LANES]],
    scales: &'c [[u16; LANES]],
}

/// Codes, and a scale for each of their vectors.
#[derive(Clone, Copy)]
struct ScaledEach<'c> {
    codes: &'c [[i8; LANES]],
    scales: Vector,
}

impl<'c> Numbers for ValueCodes<'c> {
    type Run<L: Lanes> = ScaledEach<'c>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L, first: usize, count: usize) -> Self::Run<L> {
        const TILES: usize = q8_0::WEIGHTS / LANES;
        let groups = self.scales.len() / (BLOCK / LANES);
        let (tile, positions) = (first / BLOCK, first % BLOCK / LANES);
        ScaledEach {
            scales: lanes.store(lanes.halves(&self.scales[positions * groups + tile / TILES])),
            codes: &self.codes[first..][..count],
        }
    }
}

impl<L: Lanes> Run<L> for ScaledEach<'_> {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        lanes.mul(lanes.bytes(&self.codes[i]), lanes.splat(self.scales[i]))
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        (&raw const self.codes[i]).cast()
    }
}

/// Does `task` while what lies `ahead` bytes behind each vector is fetched.
struct Fetching<T> {
    task: T,
    ahead: usize,
}

impl<T: Task> Task for Fetching<T> {
    #[inline(always)]
    fn run(self, numbers: impl Numbers) {
        let ahead = self.ahead;
        self.task.run(Ahead { numbers, ahead });
    }
}

/// Numbers, or some of them, for which others are fetched.
#[derive(Clone, Copy)]
struct Ahead<N> {
    numbers: N,
    ahead: usize,
}

impl<N: Numbers> Numbers for Ahead<N> {
    type Run<L: Lanes> = Ahead<N::Run<L>>;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L, first: usize, count: usize) -> Self::Run<L> {
        Ahead {
            numbers: self.numbers.run(lanes, first, count),
            ahead: self.ahead,
        }
    }
}

impl<L: Lanes, R: Run<L>> Run<L> for Ahead<R> {
    #[inline(always)]
    fn vector(&self, lanes: L, i: usize) -> L::Numbers {
        fetch(self.numbers.place(i).wrapping_add(self.ahead));
        self.numbers.vector(lanes, i)
    }

    #[inline(always)]
    fn place(&self, i: usize) -> *const u8 {
        self.numbers.place(i)
    }
}
