//! Weights and activations to multiply, the same on every run.

use fastrand::Rng;
use formats::block::{BlockType, q2_0, q2_k, q4_0, tq1_0, tq2_0};
use half::f16;

use crate::kernels::KernelError;

/// So many activations, about normal.
pub fn activations(count: usize) -> Vec<f32> {
    let mut random = Rng::with_seed(1);
    let mut uniform = || random.f32() - 0.5;
    (0..count)
        .map(|_| uniform() + uniform() + uniform() + uniform())
        .collect()
}

/// A matrix as Tequila makes them: random codes, a positive scale for every 128 columns, or for every block where
/// those are longer (Q2_K keeps both scales of a block).
///
/// # Errors
/// A type that nothing writes; columns that are not a whole number of blocks.
pub fn weights(ty: BlockType, rows: usize, columns: usize) -> Result<Vec<u8>, KernelError> {
    let row_bytes = ty.row_bytes(columns).ok_or(KernelError::PartialBlock { ty, columns })?;
    let mut bytes = vec![0; rows * row_bytes];
    let mut random = Rng::with_seed(7);
    let group = ty.weights().max(128);
    let mut codes = vec![0; columns];
    for row in bytes.chunks_exact_mut(row_bytes) {
        let scales: Vec<f16> = (0..columns.div_ceil(group))
            .map(|_| f16::from_f32(0.01 + 1e-4 * random.u32(..100) as f32))
            .collect();
        codes.fill_with(|| random.i8(-1..=1));
        let scale = |block: usize| scales[block * ty.weights() / group];
        match ty {
            BlockType::TQ2_0 => write_blocks(row, &codes, |codes, b| tq2_0::pack(codes, scale(b))),
            BlockType::TQ1_0 => write_blocks(row, &codes, |codes, b| tq1_0::pack(codes, scale(b))),
            BlockType::Q2_0 => write_blocks(row, &codes, |codes, b| q2_0::pack(codes, scale(b))),
            BlockType::Q4_0 => write_blocks(row, &codes, |codes, b| q4_0::pack(codes, scale(b))),
            BlockType::Q2_K => write_blocks(row, &codes, |codes, b| {
                let multipliers = std::array::from_fn(|i| if i < 8 { 13 } else { 15 });
                q2_k::pack(codes, scale(b), &multipliers)
            }),
            _ => {
                let weights: Vec<f32> = (0..columns)
                    .map(|i| f32::from(codes[i]) * scales[i / group].to_f32())
                    .collect();
                ty.quantize_row(&weights, row)
                    .map_err(|_| KernelError::Unsupported { ty })?;
            }
        }
    }
    Ok(bytes)
}

fn write_blocks<const WEIGHTS: usize, const BYTES: usize>(
    row: &mut [u8],
    codes: &[i8],
    pack: impl Fn(&[i8; WEIGHTS], usize) -> [u8; BYTES],
) {
    let blocks = row.as_chunks_mut::<BYTES>().0.iter_mut();
    for (i, (block, codes)) in blocks.zip(codes.as_chunks::<WEIGHTS>().0).enumerate() {
        *block = pack(codes, i);
    }
}
