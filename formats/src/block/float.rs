//! F32, F16 and BF16 rows: one little-endian number a weight, no blocks.
//! Source: ggml.c:469-493, ggml-impl.h:606-636.
//!
//! Rounding is to nearest, ties to even. A bf16 is the upper half of an f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Numbers converted at a time: the converter wants a slice of `f16`, a row may lie at any address.
const RUN: usize = 64;

/// f32 bytes to f32. `row`: (4 * columns,).  `out`: (columns,).
#[inline(always)]
pub fn read_f32(row: &[u8], out: &mut [f32]) {
    for (w, bytes) in out.iter_mut().zip(row.as_chunks().0) {
        *w = f32::from_le_bytes(*bytes);
    }
}

/// bf16 bytes to f32. `row`: (2 * columns,).  `out`: (columns,).
#[inline(always)]
pub fn read_bf16(row: &[u8], out: &mut [f32]) {
    for (w, bytes) in out.iter_mut().zip(row.as_chunks().0) {
        *w = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
}

/// f16 bytes to f32. `row`: (2 * columns,).  `out`: (columns,).
#[inline(always)]
pub fn read_f16(row: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.chunks_mut(RUN).zip(row.chunks(2 * RUN)) {
        let mut run = [f16::ZERO; RUN];
        for (half, bytes) in run.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        run[..out.len()].convert_to_f32_slice(out);
    }
}

/// f32 to f32 bytes. `x`: (columns,).  `row`: (4 * columns,) out.
#[inline(always)]
pub fn write_f32(x: &[f32], row: &mut [u8]) {
    for (x, bytes) in x.iter().zip(row.as_chunks_mut().0) {
        *bytes = x.to_le_bytes();
    }
}

/// f32 to bf16 bytes. `x`: (columns,).  `row`: (2 * columns,) out.
#[inline(always)]
pub fn write_bf16(x: &[f32], row: &mut [u8]) {
    for (x, bytes) in x.iter().zip(row.as_chunks_mut().0) {
        *bytes = bf16::from_f32(*x).to_le_bytes();
    }
}

/// f32 to f16 bytes. `x`: (columns,).  `row`: (2 * columns,) out.
#[inline(always)]
pub fn write_f16(x: &[f32], row: &mut [u8]) {
    for (x, bytes) in x.chunks(RUN).zip(row.chunks_mut(2 * RUN)) {
        let mut run = [f16::ZERO; RUN];
        run[..x.len()].convert_from_f32_slice(x);
        for (half, bytes) in run.iter().zip(bytes.as_chunks_mut().0) {
            *bytes = half.to_le_bytes();
        }
    }
}
