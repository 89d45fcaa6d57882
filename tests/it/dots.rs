//! Our products against ggml's own `mul_mat` on the same bytes and the same activations.
//!
//! Both quantize the activations alike and their integer dots are exact, so only the order of the f32 sums differs.

use fastrand::Rng;
use formats::block::BlockType;
use tqconv::kernels::{ActivationScales, Activations, Isa, Matrix, Options, Threads};
use tqconv::witness::{self, Weights, Witness};

/// (type, where its blocks have f16 scales)
const TYPES: [(BlockType, &[usize]); 8] = [
    (BlockType::TQ2_0, &[64]),
    (BlockType::TQ1_0, &[52]),
    (BlockType::Q2_0, &[0]),
    (BlockType::Q4_0, &[0]),
    (BlockType::Q8_0, &[0]),
    (BlockType::Q2_K, &[80, 82]),
    (BlockType::Q4_K, &[0, 2]),
    (BlockType::Q6_K, &[208]),
];

/// Roughly normal, variance 1.
fn normal(random: &mut Rng) -> f32 {
    (0..12).map(|_| random.f32()).sum::<f32>() - 6.0
}

/// Blocks of random codes and positive scales.
fn random_blocks(random: &mut Rng, ty: BlockType, scales: &[usize], weights: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..weights / ty.weights() * ty.bytes())
        .map(|_| random.u8(..))
        .collect();
    for block in bytes.chunks_exact_mut(ty.bytes()) {
        for &at in scales {
            let scale = half::f16::from_f32(0.01 + 0.001 * normal(random).abs());
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        match ty {
            // ggml's types hold what the formats say, and no digit or code beyond it.
            BlockType::TQ2_0 | BlockType::Q2_0 => {
                let codes = if ty == BlockType::TQ2_0 { 0..64 } else { 2..18 };
                for byte in &mut block[codes] {
                    *byte &= !((*byte & 0xAA) >> 1); // no code 3
                }
            }
            BlockType::TQ1_0 => {
                for (i, byte) in block[..52].iter_mut().enumerate() {
                    let value = if i < 48 {
                        u32::from(*byte) % 243
                    } else {
                        u32::from(*byte) % 81 * 3
                    };
                    *byte = (value * 256).div_ceil(243) as u8;
                }
            }
            _ => {}
        }
    }
    bytes
}

/// The largest difference, relative to the largest product.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let largest = theirs.iter().fold(0.0f32, |largest, y| largest.max(y.abs()));
    ours.iter()
        .zip(theirs)
        .fold(0.0f32, |worst, (a, b)| worst.max((a - b).abs()))
        / largest
}

fn ours(matrix: &Matrix, x: &[f32], threads: &Threads) -> Vec<f32> {
    let mut activations = Activations::new(matrix.isa());
    activations.quantize(x, matrix.columns(), matrix.grouping(), threads);
    let mut y = vec![f32::NAN; activations.tokens() * matrix.rows()];
    matrix.multiply(&activations, &mut y, threads);
    y
}

fn theirs(witness: &mut Witness, ty: BlockType, (rows, columns): (usize, usize), bytes: &[u8], x: &[f32]) -> Vec<f32> {
    let weights = Weights::Bytes(bytes);
    let matrix = witness::Matrix {
        ty,
        rows,
        columns,
        weights,
    };
    witness.multiply(matrix, x, 1).unwrap()
}

#[test]
fn products_equal_ggml_s_to_f32_rounding() {
    let mut random = Rng::with_seed(1);
    let threads = Threads::new(2);
    let mut witness = Witness::start(&crate::witness::program()).unwrap();
    for (ty, scales) in TYPES {
        let (rows, columns) = (40, 2048);
        let bytes = random_blocks(&mut random, ty, scales, rows * columns);
        for tokens in [1, 7] {
            let x: Vec<f32> = (0..tokens * columns).map(|_| normal(&mut random)).collect();
            let theirs = theirs(&mut witness, ty, (rows, columns), &bytes, &x);
            for isa in Isa::available() {
                let options = Options {
                    isa,
                    activations: ActivationScales::LlamaCpp,
                    ..Options::default()
                };
                let matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                let found = difference(&ours(&matrix, &x, &threads), &theirs);
                println!("{ty} {tokens} tokens {isa}: {found:.1e}");
                assert!(found < 2e-6, "{ty} {tokens} tokens {isa}: {found}");
            }
        }
    }
}

/// One activation that is off by one code moves the product by far more than the limit above: the test can fail.
#[test]
fn another_quantization_is_told_apart() {
    let mut random = Rng::with_seed(2);
    let threads = Threads::new(1);
    let (rows, columns) = (16, 2048);
    let bytes = random_blocks(&mut random, BlockType::Q2_0, &[0], rows * columns);
    let x: Vec<f32> = (0..columns).map(|_| normal(&mut random)).collect();
    let mut witness = Witness::start(&crate::witness::program()).unwrap();
    let theirs = theirs(&mut witness, BlockType::Q2_0, (rows, columns), &bytes, &x);
    let options = Options {
        activations: ActivationScales::Fast,
        ..Options::default()
    };
    let matrix = Matrix::new(BlockType::Q2_0, rows, columns, &bytes, &options).unwrap();
    let found = difference(&ours(&matrix, &x, &threads), &theirs);
    assert!(found > 1e-4, "{found}");
}
