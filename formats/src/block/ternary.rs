//! The one check that codes are -1, 0 or +1, written so that it vectorises; and the one that they are -3, -1, 1 or 3.

use super::{Found, NotTernary};

#[inline(always)]
fn all_ternary(codes: &[i8]) -> bool {
    let worst = codes
        .iter()
        .fold(0, |worst: u8, &code| worst.max(code.wrapping_add(1) as u8));
    worst <= 2
}

/// Guards `pack`: a wider code would spill into its neighbours.
#[inline(always)]
pub(super) fn assert_codes(codes: &[i8]) {
    assert!(all_ternary(codes), "a code is not -1, 0 or +1");
}

/// Guards `pack` where codes have four bits.
#[inline(always)]
pub(super) fn assert_four_bits(codes: &[i8]) {
    let worst = codes
        .iter()
        .fold(0, |worst: u8, &code| worst.max(code.wrapping_add(8) as u8));
    assert!(worst <= 15, "a code is not between -8 and 7");
}

/// Guards `pack` of four levels.
#[inline(always)]
pub(super) fn assert_four_levels(codes: &[i8]) {
    let fits = |code: i8| matches!(code, -3 | -1 | 1 | 3);
    assert!(
        codes.iter().fold(true, |all, &code| all & fits(code)),
        "a code is not -3, -1, 1 or 3"
    );
}

/// Guards `unpack`: the first code outside -1..=1 is an error. `zero` is the stored code of 0.
#[inline]
pub(super) fn check_codes(codes: &[i8], zero: i8) -> Result<(), NotTernary> {
    if all_ternary(codes) {
        return Ok(());
    }
    let bad = codes.iter().position(|code| !(-1..=1).contains(code));
    bad.map_or(Ok(()), |weight| {
        let zero = i16::from(zero);
        Err(NotTernary {
            weight,
            found: Found::Code {
                stored: i16::from(codes[weight]) + zero,
                zero,
            },
        })
    })
}

/// The index of the first code that is not -3, -1, 1 or 3.
#[inline]
pub(super) fn check_four_levels(codes: &[i8]) -> Result<(), usize> {
    let bad = codes.iter().position(|code| !matches!(code, -3 | -1 | 1 | 3));
    bad.map_or(Ok(()), Err)
}
