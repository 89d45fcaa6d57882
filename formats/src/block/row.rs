//! Whole rows of any type: the lengths are checked here, once, and then a codec runs block by block.

use super::{
    BlockError, BlockType, NotTernary, Verb, float, pq2_0, ptq1_0, q2_0, q2_k, q4_0, q4_k, q6_k, q8_0, tq1_0, tq2_0,
};
use half::{bf16, f16};

impl BlockType {
    /// Whether [`unpack_ternary_row`](Self::unpack_ternary_row) reads this type.
    pub const fn is_ternary_container(self) -> bool {
        self.scale_run().is_some()
    }

    /// The weights of a row in f32, with the arithmetic of ggml's `dequantize_row_*`.
    /// `row`: (`row_bytes(columns)`,).  `out`: (columns,).
    pub fn dequantize_row(self, row: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
        self.check_row(row.len(), out.len())?;
        match self {
            Self::F32 => float::read_f32(row, out),
            Self::F16 => float::read_f16(row, out),
            Self::BF16 => float::read_bf16(row, out),
            Self::Q4_0 => read_blocks(row, out, |b, out| q4_0::view(b).dequantize(out)),
            Self::Q8_0 => read_blocks(row, out, |b, out| q8_0::view(b).dequantize(out)),
            Self::Q2_K => read_blocks(row, out, |b, out| q2_k::view(b).dequantize(out)),
            Self::Q4_K => read_blocks(row, out, q4_k::dequantize),
            Self::Q6_K => read_blocks(row, out, q6_k::dequantize),
            Self::TQ1_0 => read_blocks(row, out, |b, out| tq1_0::view(b).dequantize(out)),
            Self::TQ2_0 => read_blocks(row, out, |b, out| tq2_0::view(b).dequantize(out)),
            Self::Q2_0 => read_blocks(row, out, |b, out| q2_0::view(b).dequantize(out)),
            Self::PQ2_0 => read_blocks(row, out, |b, out| pq2_0::view(b).dequantize(out)),
            Self::PTQ1_0 => read_blocks(row, out, |b, out| ptq1_0::view(b).dequantize(out)),
            _ => {
                return Err(BlockError::Unsupported {
                    ty: self,
                    verb: Verb::Dequantized,
                });
            }
        }
        Ok(())
    }

    /// The row that ggml's `quantize_row_*_ref` makes of `x`; floats are rounded to nearest even.
    /// `x`: (columns,).  `row`: (`row_bytes(columns)`,) out.
    ///
    /// A weight that is not finite, or above 65504 in magnitude (for BF16: 3.39e38), is an error.
    #[inline(always)]
    pub fn quantize_row(self, x: &[f32], row: &mut [u8]) -> Result<(), BlockError> {
        self.check_row(row.len(), x.len())?;
        let limit = match self {
            Self::F32 => f32::MAX,
            Self::BF16 => bf16::MAX.to_f32(),
            _ => f16::MAX.to_f32(),
        };
        let fits = |x: &f32| x.abs() <= limit; // false for NaN
        let all_fit = x.iter().fold(true, |all, x| all & fits(x)); // no early exit: it vectorises
        if !all_fit && let Some(weight) = x.iter().position(|x| !fits(x)) {
            return Err(BlockError::OutOfRange {
                ty: self,
                weight,
                value: x[weight],
                limit,
            });
        }
        // No function that is given the codec: a call through one is not inlined.
        macro_rules! write_blocks {
            ($codec:ident) => {
                for (x, block) in x.as_chunks().0.iter().zip(row.as_chunks_mut().0) {
                    *block = $codec::quantize(x);
                }
            };
        }
        match self {
            Self::F32 => float::write_f32(x, row),
            Self::F16 => float::write_f16(x, row),
            Self::BF16 => float::write_bf16(x, row),
            Self::Q8_0 => write_blocks!(q8_0),
            Self::Q4_K => write_blocks!(q4_k),
            Self::Q6_K => write_blocks!(q6_k),
            _ => {
                return Err(BlockError::Unsupported {
                    ty: self,
                    verb: Verb::Quantized,
                });
            }
        }
        Ok(())
    }

    /// A row of a ternary container as codes and scales: weight i is
    /// `scales[i / scale_run] * codes[i]`. Scales are as stored, of either sign and finite or not.
    /// `row`: (`row_bytes(columns)`,).  `codes`: (columns,) out.  `scales`: (columns / scale_run,) out.
    ///
    /// An error where a stored weight has another form, with its index in the row; `codes` and
    /// `scales` are then unspecified.
    pub fn unpack_ternary_row(self, row: &[u8], codes: &mut [i8], scales: &mut [f32]) -> Result<(), BlockError> {
        let unsupported = BlockError::Unsupported {
            ty: self,
            verb: Verb::ReadAsTernary,
        };
        let scale_run = self.scale_run().ok_or(unsupported)?;
        self.check_row(row.len(), codes.len())?;
        self.check_length("scales", codes.len(), scales.len(), codes.len() / scale_run)?;
        let at = |start, error: NotTernary| NotTernary {
            weight: start + error.weight,
            ..error
        };
        macro_rules! one_scale {
            ($codec:ident) => {
                read_codes(row, codes, scales, at, |b, codes, [scale]| {
                    let block = $codec::view(b);
                    *scale = block.scale().to_f32();
                    block.unpack(codes)
                })
            };
        }
        match self {
            Self::TQ1_0 => one_scale!(tq1_0),
            Self::TQ2_0 => one_scale!(tq2_0),
            Self::Q2_0 => one_scale!(q2_0),
            Self::PQ2_0 => one_scale!(pq2_0),
            Self::PTQ1_0 => one_scale!(ptq1_0),
            Self::Q4_0 => one_scale!(q4_0),
            Self::Q8_0 => one_scale!(q8_0),
            Self::Q2_K => read_codes(row, codes, scales, at, |b, codes, scales| {
                let block = q2_k::view(b);
                let d = block.d().to_f32();
                *scales = block.multipliers()?.map(|m| d * f32::from(m));
                block.unpack(codes)
            }),
            _ => return Err(unsupported),
        }
        .map_err(|source| BlockError::NotTernary { ty: self, source })
    }

    /// A row of four levels, -3u, -u, u and 3u, as codes -3, -1, 1 and 3 and scales u: weight i is
    /// `scales[i / scale_run] * codes[i]`. Q4_0 holds them as stored codes 5, 7, 9 and 11, Q2_K as 0 to 3 where
    /// `3 * d * sc = 2 * dmin * m`. Slices as in [`unpack_ternary_row`](Self::unpack_ternary_row).
    ///
    /// An error where a weight has another form, with its index in the row; `codes` and `scales` are then unspecified.
    pub fn unpack_four_level_row(self, row: &[u8], codes: &mut [i8], scales: &mut [f32]) -> Result<(), BlockError> {
        let (Self::Q4_0 | Self::Q2_K, Some(scale_run)) = (self, self.scale_run()) else {
            return Err(BlockError::Unsupported {
                ty: self,
                verb: Verb::ReadAsFourLevels,
            });
        };
        self.check_row(row.len(), codes.len())?;
        self.check_length("scales", codes.len(), scales.len(), codes.len() / scale_run)?;
        let at = |start, weight| start + weight;
        match self {
            Self::Q4_0 => read_codes(row, codes, scales, at, |b, codes, [scale]| {
                let block = q4_0::view(b);
                *scale = block.scale().to_f32();
                block.unpack_four_levels(codes)
            }),
            _ => read_codes(row, codes, scales, at, |b, codes, scales| {
                q2_k::view(b).unpack_four_levels(codes, scales)
            }),
        }
        .map_err(|weight| BlockError::NotFourLevel { ty: self, weight })
    }

    /// The gate of every row function: `bytes` belongs to `columns`.
    fn check_row(self, bytes: usize, columns: usize) -> Result<(), BlockError> {
        match self.row_bytes(columns) {
            Some(expected) => self.check_length("bytes", columns, bytes, expected),
            None => Err(BlockError::PartialBlock { ty: self, columns }),
        }
    }

    fn check_length(self, unit: &'static str, columns: usize, found: usize, expected: usize) -> Result<(), BlockError> {
        if found == expected {
            return Ok(());
        }
        Err(BlockError::Length {
            ty: self,
            columns,
            unit,
            found,
            expected,
        })
    }
}

fn read_blocks<const BYTES: usize, const WEIGHTS: usize>(
    row: &[u8],
    out: &mut [f32],
    dequantize: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    for (block, out) in row.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        dequantize(block, out);
    }
}

/// Runs `unpack` on each block; its error is about a weight of the block, `at` makes it one about a weight of the row.
fn read_codes<const BYTES: usize, const WEIGHTS: usize, const SCALES: usize, E>(
    row: &[u8],
    codes: &mut [i8],
    scales: &mut [f32],
    at: impl Fn(usize, E) -> E,
    unpack: impl Fn(&[u8; BYTES], &mut [i8; WEIGHTS], &mut [f32; SCALES]) -> Result<(), E>,
) -> Result<(), E> {
    let blocks = row.as_chunks().0.iter();
    let codes = codes.as_chunks_mut().0.iter_mut();
    let scales = scales.as_chunks_mut().0.iter_mut();
    for (index, ((block, codes), scales)) in blocks.zip(codes).zip(scales).enumerate() {
        unpack(block, codes, scales).map_err(|error| at(index * WEIGHTS, error))?;
    }
    Ok(())
}
