//! What products of bf16 numbers on tile registers compute, for attention.

/// 16 lines of 32 numbers, as bits, in pairs. A line of `a` is 32 numbers of a row. A line of `b` is a pair of rows, both
/// numbers of a column beside each other.
pub type Pairs = [[u16; 32]; 16];
/// 16 rows of 16 sums.
pub type Sums = [[f32; 16]; 16];

/// `sums = a b`, or `sums += a b`, of 16 rows.
///
/// Of each block of `a`, the products of the first of the pairs are added up from zero, in order and rounded once each,
/// those of the second, too, and the sum of both is added to `sums` (Intel's manual, TDPBF16PS). What is subnormal counts
/// as 0.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "read by x86-64's tiles"))]
pub struct Product<'p> {
    /// 32 rows of `b` a block.
    pub a: &'p [Pairs],
    /// (tiles, as many blocks as `a`).
    pub b: &'p [Pairs],
    /// (tiles,)
    pub sums: &'p mut [Sums],
    /// Whether what is in `sums` counts.
    pub add: bool,
}

impl<'p> Product<'p> {
    /// `sums = a b`
    pub fn new(a: &'p [Pairs], b: &'p [Pairs], sums: &'p mut [Sums]) -> Self {
        let add = false;
        Self { a, b, sums, add }
    }

    /// `sums += a b`
    pub fn adding(a: &'p [Pairs], b: &'p [Pairs], sums: &'p mut [Sums]) -> Self {
        let add = true;
        Self { a, b, sums, add }
    }
}

/// Tile registers, which this architecture does not have.
#[cfg(not(target_arch = "x86_64"))]
pub enum Bf16Tiles {}

#[cfg(not(target_arch = "x86_64"))]
impl Bf16Tiles {
    /// Never.
    pub fn multiply(&mut self, _: Product<'_>) {
        match *self {}
    }
}
