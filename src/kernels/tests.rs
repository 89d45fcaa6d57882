//! One suite for every kernel: its bits are the scalar kernel's bits, and the scalar kernel is near the f64 product.

use super::kernel::{Kernel, MAX_WIDTH, ROWS, STEP};
use super::layout::STRIP;
use super::scalar::Scalar;
use super::*;

/// A seeded source of test values (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Roughly normal, variance 1.
    fn float(&mut self) -> f32 {
        let uniform = |random: &mut Random| random.next() as u32 as f32 / u32::MAX as f32;
        (0..12).map(|_| uniform(self)).sum::<f32>() - 6.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

const TYPES: [BlockType; 11] = [
    BlockType::TQ2_0,
    BlockType::TQ1_0,
    BlockType::Q2_0,
    BlockType::Q2_K,
    BlockType::Q4_0,
    BlockType::Q4_K,
    BlockType::Q6_K,
    BlockType::Q8_0,
    BlockType::F32,
    BlockType::F16,
    BlockType::BF16,
];

/// Bytes in which every bit is random, except that every f16 is a small finite number.
fn random_blocks(random: &mut Random, ty: BlockType, weights: usize) -> Vec<u8> {
    let scales: &[usize] = match ty {
        BlockType::TQ2_0 => &[64],
        BlockType::TQ1_0 => &[52],
        BlockType::Q2_K => &[80, 82],
        BlockType::Q4_K => &[0, 2],
        BlockType::Q6_K => &[208],
        _ => &[0],
    };
    let mut bytes: Vec<u8> = (0..weights / ty.weights() * ty.bytes())
        .map(|_| random.next() as u8)
        .collect();
    for block in bytes.chunks_exact_mut(ty.bytes()) {
        match ty {
            BlockType::F32 => block.copy_from_slice(&random.float().to_le_bytes()),
            BlockType::BF16 => block.copy_from_slice(&half::bf16::from_f32(random.float()).to_le_bytes()),
            _ => {
                for &at in scales {
                    let scale = half::f16::from_f32(0.01 * random.float());
                    block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
            }
        }
        if ty == BlockType::TQ1_0 {
            // Only what five (or four) base-3 digits can make: v -> ceil(v * 256 / 243).
            for (i, byte) in block[..52].iter_mut().enumerate() {
                let value = if i < 48 {
                    *byte as u32 % 243
                } else {
                    *byte as u32 % 81 * 3
                };
                *byte = (value * 256).div_ceil(243) as u8;
            }
        }
    }
    bytes
}

fn options(isa: Isa, precision: Precision) -> Options {
    Options { isa, precision }
}

/// The product with `y` full of garbage before.
fn product(matrix: &Matrix, x: &[f32], threads: &Threads) -> Vec<f32> {
    let mut activations = Activations::new(matrix.isa());
    activations.quantize(x, matrix.columns(), matrix.grouping(), threads);
    let mut y = vec![f32::NAN; activations.tokens() * matrix.rows()];
    matrix.multiply(&activations, &mut y, threads);
    y
}

fn bits(y: &[f32]) -> Vec<u32> {
    y.iter().map(|y| y.to_bits()).collect()
}

/// NMSE of `y` against `exact`.
fn nmse(y: &[f32], exact: &[f64]) -> f64 {
    let error: f64 = y.iter().zip(exact).map(|(&y, e)| (f64::from(y) - e).powi(2)).sum();
    error / exact.iter().map(|e| e * e).sum::<f64>()
}

/// Every kernel that this CPU can run, scalar first.
fn kernels() -> Vec<&'static dyn Kernel> {
    let available = Isa::available().into_iter().filter_map(Isa::kernel);
    #[cfg(target_arch = "x86_64")]
    let available = available.chain(x86::avx_vnni_as_evex());
    available.collect()
}

#[test]
fn every_kernel_equals_scalar_at_every_edge() {
    let mut random = Random(1);
    let threads: Vec<Threads> = (1..=3).map(Threads::new).collect();
    println!("{:?}", kernels().iter().map(|kernel| kernel.name()).collect::<Vec<_>>());
    for ty in TYPES {
        for rows in [1, 15, 16, 17, 33] {
            for blocks in 1..=if rows == 17 { 6 } else { 5 } {
                let columns = match FloatType::of(ty) {
                    Some(_) => 21 * blocks,                          // ends inside a vector
                    None if blocks == 6 => 2 * STRIP + ty.weights(), // in strips
                    None => blocks * ty.weights(),
                };
                let bytes = random_blocks(&mut random, ty, rows * columns);
                for precision in [Precision::Exact, Precision::Fast] {
                    let options = options(Isa::Scalar, precision);
                    let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                    let all = [1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 33];
                    let some = [1, 16, 17];
                    for &tokens in if blocks < 6 { &all[..] } else { &some } {
                        let x = random.floats(tokens * columns);
                        matrix.kernel = &Scalar;
                        let scalar = bits(&product(&matrix, &x, &threads[0]));
                        for kernel in kernels() {
                            matrix.kernel = kernel;
                            let found = bits(&product(&matrix, &x, &threads[tokens % 3]));
                            assert!(
                                found == scalar,
                                "{ty} {rows}x{columns} {tokens} tokens {precision:?} {}",
                                kernel.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Random blocks whose factors are equal in every run of `run` columns; where there are minimums, they equal the scales.
fn blocks_with_runs(random: &mut Random, ty: BlockType, weights: usize, run: usize) -> Vec<u8> {
    let mut bytes = random_blocks(random, ty, weights);
    let scale_at = match ty {
        BlockType::TQ2_0 => 64,
        BlockType::TQ1_0 => 52,
        BlockType::Q2_K => 80,
        BlockType::Q6_K => 208,
        _ => 0,
    };
    let (mut scale, mut multiplier) = ([0; 2], 0);
    for (i, block) in bytes.chunks_exact_mut(ty.bytes()).enumerate() {
        if (i * ty.weights()).is_multiple_of(run) {
            scale.copy_from_slice(&block[scale_at..][..2]);
        }
        block[scale_at..][..2].copy_from_slice(&scale);
        for group in 0..16usize {
            if (group * 16).is_multiple_of(run) {
                multiplier = random.next() as u8;
            }
            match ty {
                BlockType::Q2_K => block[group] = multiplier % 16 * 0x11,
                BlockType::Q6_K => block[192 + group] = multiplier,
                // Powers of two, so that every scale is an f16.
                BlockType::Q4_K if group % 2 == 0 => {
                    let (j, multiplier) = (group / 2, 1 << (multiplier % 4));
                    match j {
                        0..4 => (block[4 + j], block[8 + j]) = (multiplier, multiplier),
                        _ => block[8 + j] = multiplier * 0x11,
                    }
                }
                _ => {}
            }
        }
        match ty {
            BlockType::Q2_K => block[82..84].copy_from_slice(&scale),
            BlockType::Q4_K => block[2..4].copy_from_slice(&scale),
            _ => {}
        }
    }
    bytes
}

#[test]
fn every_kernel_equals_scalar_whatever_the_group() {
    let mut random = Random(6);
    let (rows, columns, threads) = (17, 1024, Threads::new(1));
    let mut names = std::collections::BTreeSet::new();
    for ty in TYPES {
        if FloatType::of(ty).is_some() {
            continue;
        }
        for run in [16, 32, 64, 128, 256] {
            let bytes = blocks_with_runs(&mut random, ty, rows * columns, run);
            for precision in [Precision::Exact, Precision::Fast] {
                let options = options(Isa::Scalar, precision);
                let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                names.insert(matrix.kernel_name());
                for tokens in [1, 3, 7, 9, 16] {
                    let x = random.floats(tokens * columns);
                    matrix.kernel = &Scalar;
                    let scalar = bits(&product(&matrix, &x, &threads));
                    for kernel in kernels() {
                        matrix.kernel = kernel;
                        let found = bits(&product(&matrix, &x, &threads));
                        let kernel = kernel.name();
                        assert!(found == scalar, "{ty} {run} {tokens} {precision:?} {kernel}");
                    }
                }
            }
        }
    }
    // Codes of 2, 4, 6 and 8 bits in groups of 16 to 256.
    assert!(names.len() >= 16, "{names:?}");
}

/// The same with codes that mean -1, 0 and +1 alone.
fn ternary_blocks(random: &mut Random, ty: BlockType, weights: usize, run: usize) -> Vec<u8> {
    let mut bytes = blocks_with_runs(random, ty, weights, run);
    for block in bytes.chunks_exact_mut(ty.bytes()) {
        let codes = match ty {
            BlockType::TQ2_0 => 0..64,
            BlockType::Q2_0 | BlockType::Q4_0 => 2..18,
            BlockType::Q2_K => 16..80,
            _ => 0..0, // TQ1_0 has no others
        };
        for byte in &mut block[codes] {
            let code = |place: u32| ((u32::from(*byte) >> place & 3) % 3) << place;
            *byte = match ty {
                BlockType::Q4_0 => (code(0) | code(4)) as u8 + 0x77,
                _ => (code(0) | code(2) | code(4) | code(6)) as u8,
            };
        }
    }
    bytes
}

/// Whether the kernel has a way of its own for so many tokens.
fn many(matrix: &Matrix, tokens: usize, threads: &Threads) -> bool {
    match &matrix.weights {
        Weights::Packed(weights) => matrix.many(weights, tokens, threads.count()).is_some(),
        Weights::Floats(_) => false,
    }
}

/// Enough rows and tokens for the kernels that have a way of their own for many.
#[test]
fn every_kernel_equals_scalar_for_many_rows_and_tokens() {
    let with_many = |kernel: &&dyn Kernel| kernel.many(256, 256, 132).is_some();
    let kernels: Vec<_> = kernels().into_iter().filter(with_many).collect();
    if kernels.is_empty() {
        return println!("skipped: no kernel of this CPU has a way of its own for many tokens");
    }
    let mut random = Random(7);
    let threads: Vec<Threads> = (1..=2).map(Threads::new).collect();
    let types = [
        BlockType::TQ2_0,
        BlockType::TQ1_0,
        BlockType::Q2_0,
        BlockType::Q2_K,
        BlockType::Q4_0,
    ];
    for (case, ty) in types.into_iter().cycle().take(40).enumerate() {
        let run = [32, 64, 128, 256][case % 4];
        let rows = [512, 529, 776, 556][case / 3 % 4];
        let tokens = [60, 48, 132, 76][case / 7 % 4];
        let columns = if case % 9 == 0 { STRIP + 256 } else { 512 };
        let mut bytes = ternary_blocks(&mut random, ty, rows * columns, run);
        let mut x = random.floats(tokens * columns);
        match case % 6 {
            0 => x.fill(127.0),
            3 => x.fill(-127.0),
            _ => {}
        }
        for precision in [Precision::Exact, Precision::Fast] {
            let options = options(Isa::Scalar, precision);
            let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
            let scalar = bits(&product(&matrix, &x, &threads[0]));
            for &kernel in &kernels {
                matrix.kernel = kernel;
                let threads = &threads[case % 2];
                let found = bits(&product(&matrix, &x, threads));
                assert!(
                    many(&matrix, tokens, threads) && found == scalar,
                    "case {case} {precision:?}"
                );
            }
        }
        // One code that is not ternary, and the whole matrix is not.
        if let BlockType::TQ2_0 | BlockType::Q2_0 = ty {
            let last = bytes.len() - if ty == BlockType::TQ2_0 { 3 } else { 1 };
            bytes[last] |= 3;
            let options = options(Isa::Scalar, Precision::Exact);
            let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
            matrix.kernel = kernels[0];
            assert!(!many(&matrix, tokens, &threads[0]));
        }
    }
}

#[test]
fn packed_weights_are_those_of_the_file() {
    let mut random = Random(5);
    for ty in TYPES.into_iter().filter(|&ty| FloatType::of(ty).is_none()) {
        let (rows, columns) = (19, STRIP + 512);
        let bytes = random_blocks(&mut random, ty, rows * columns);
        let Ok(packed) = layout::pack(ty, rows, columns, &bytes) else {
            panic!("{ty}")
        };
        let mut weights = vec![0.0; columns];
        for (row, bytes) in bytes.chunks_exact(ty.row_bytes(columns).unwrap()).enumerate() {
            ty.dequantize_row(bytes, &mut weights).unwrap();
            let strips: Vec<_> = packed.strips().collect();
            for (column, weight) in weights.iter().enumerate() {
                let strip = &strips[column / STRIP];
                assert!(strip.columns().contains(&column));
                let (group, lane) = (strip.row_group(row / ROWS), row % ROWS);
                let column = column % STRIP;
                let run = column / packed.group();
                let code = i32::from(group.code(lane, column));
                let found = match (strip.shift(), group.minimum(lane, run)) {
                    (Some(shift), _) => group.scale(lane, run) * (code - (1 << shift)) as f32,
                    (None, minimum) => group.scale(lane, run) * code as f32 - minimum.unwrap(),
                };
                assert_eq!(found, *weight, "{ty} row {row} column {column}");
            }
        }
    }
}

#[test]
fn merged_scales_change_nothing_but_the_bytes_read() {
    let mut random = Random(2);
    let (rows, columns, threads) = (20, 1024, Threads::new(1));
    for (ty, group) in [(BlockType::Q2_0, 64), (BlockType::Q4_0, 32), (BlockType::Q8_0, 32)] {
        let separate = random_blocks(&mut random, ty, rows * columns);
        for merged in [64, 128, 256, 512, 1024] {
            let mut bytes = separate.clone();
            let blocks = bytes.chunks_exact_mut(ty.bytes()).collect::<Vec<_>>();
            let mut first = [0; 2];
            for (i, block) in blocks.into_iter().enumerate() {
                if (i * group).is_multiple_of(merged) {
                    first.copy_from_slice(&block[..2]);
                }
                block[..2].copy_from_slice(&first);
            }
            let x = random.floats(columns);
            let exact = exact::product(ty, rows, columns, &bytes, &x).unwrap();
            for isa in Isa::available() {
                let matrix = Matrix::new(ty, rows, columns, &bytes, &options(isa, Precision::Exact)).unwrap();
                let name = format!("scale per {}", merged.min(256));
                assert!(
                    matrix.kernel_name().contains(&name),
                    "{} {merged}",
                    matrix.kernel_name()
                );
                let found = nmse(&product(&matrix, &x, &threads), &exact);
                assert!(found < 3e-4, "{ty} {merged}: {found}");
            }
        }
    }
}

#[test]
fn products_are_near_the_f64_product() {
    let mut random = Random(3);
    let threads = Threads::new(1);
    for ty in TYPES {
        let (rows, columns, tokens) = (48, 1280, 6);
        let bytes = random_blocks(&mut random, ty, rows * columns);
        let x = random.floats(tokens * columns);
        let exact = exact::product(ty, rows, columns, &bytes, &x).unwrap();
        for precision in [Precision::Exact, Precision::Fast] {
            let matrix = Matrix::new(ty, rows, columns, &bytes, &options(Isa::Scalar, precision)).unwrap();
            // Activations of 8 bits on normal data: 2.7e-5 with a scale per 32, 4e-5 with one per 256.
            let limit = if matrix.grouping() == Grouping::Float {
                1e-12
            } else {
                8e-5
            };
            let found = nmse(&product(&matrix, &x, &threads), &exact);
            assert!(found < limit, "{ty} {precision:?}: {found}");
        }
    }
}

/// With scales of 1 the product is the integer dot itself, at the largest values that can meet.
#[test]
fn extreme_codes_and_activations_do_not_saturate() {
    for ty in [
        BlockType::TQ2_0,
        BlockType::Q2_0,
        BlockType::Q4_0,
        BlockType::Q6_K,
        BlockType::Q8_0,
    ] {
        for stored in [0x00, 0x7F, 0x80, 0xAA, 0xFF] {
            let (rows, columns) = (16, 512);
            let one = half::f16::ONE.to_le_bytes();
            let mut bytes = vec![stored; rows * ty.row_bytes(columns).unwrap()];
            for block in bytes.chunks_exact_mut(ty.bytes()) {
                let at = match ty {
                    BlockType::TQ2_0 => 64,
                    BlockType::Q6_K => 208,
                    _ => 0,
                };
                block[at..at + 2].copy_from_slice(&one);
            }
            for sign in [1.0, -1.0] {
                for tokens in [1, 4, 16] {
                    let x = vec![sign * 127.0; tokens * columns];
                    let exact = exact::product(ty, rows, columns, &bytes, &x).unwrap();
                    for isa in Isa::available() {
                        let options = options(isa, Precision::Exact);
                        let matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                        let found = product(&matrix, &x, &Threads::new(1));
                        // Q6_K's largest totals are rounded once, to f32.
                        let equal = found.iter().zip(&exact).all(|(&y, &e)| y == e as f32);
                        assert!(equal, "{ty} {stored:#x} {isa}: {} {}", found[0], exact[0]);
                    }
                }
            }
        }
    }
}

/// Codes, scales and sums of one token.
fn quantized(kernel: &dyn Kernel, x: &[f32], grouping: Grouping) -> (Vec<i8>, Vec<u32>, Vec<i32>) {
    let mut codes = vec![99; x.len()];
    let mut scales = vec![f32::NAN; x.len() / grouping.group()];
    let mut sums = vec![99; x.len() / STEP];
    kernel.quantize(x, grouping, &mut codes, &mut scales, &mut sums);
    (codes, bits(&scales), sums)
}

#[test]
fn every_kernel_quantizes_like_scalar() {
    let mut random = Random(4);
    let groupings = [Grouping::Q8_0, Grouping::K(64), Grouping::K(128), Grouping::K(256)];
    for isa in Isa::available() {
        let kernel = isa.kernel().unwrap();
        for grouping in groupings {
            for round in 0..200 {
                let mut x = random.floats(256 * (1 + round % 5));
                let (a, b) = (random.below(x.len()), random.below(x.len()));
                match round % 12 {
                    0 => x.fill(0.0),
                    1 => x.fill(-0.0),
                    2 => (x[a], x[b]) = (-9.0, 9.0), // equal magnitudes: the first decides the sign
                    3 => (x[a], x[b]) = (9.0, -9.0),
                    4 => x[a] = f32::NAN,
                    5 => x[a] = f32::INFINITY,
                    6 => x[a] = f32::NEG_INFINITY,
                    7 => x.iter_mut().for_each(|x| *x = (*x * 4.0).round() / 2.0), // ties
                    8 => x.iter_mut().for_each(|x| *x *= 1e-42),
                    9 => x.iter_mut().for_each(|x| *x *= 1e37),
                    _ => x.iter_mut().for_each(|x| *x *= 0.1),
                }
                let scalar = quantized(&Scalar, &x, grouping);
                assert!(quantized(kernel, &x, grouping) == scalar, "{isa} {grouping:?} {round}");
            }
        }
    }
}

#[test]
fn refusals_say_what_is_wrong() {
    let message = |ty, rows, columns, length: usize| {
        let bytes = vec![0; length];
        Matrix::new(ty, rows, columns, &bytes, &Options::default())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        message(BlockType::TQ2_0, 2, 100, 66),
        "rows of 100 columns are no whole number of TQ2_0 blocks of 256"
    );
    assert_eq!(
        message(BlockType::TQ2_0, 2, 256, 66),
        "a TQ2_0 matrix of 2 rows and 256 columns has 66 bytes, expected 132"
    );
    assert!(message(BlockType::Q5_K, 1, 256, 176).starts_with("no kernel multiplies Q5_K; "));
}

#[test]
fn an_empty_matrix_has_an_empty_product() {
    let threads = Threads::new(1);
    let matrix = Matrix::new(BlockType::TQ2_0, 0, 256, &[], &Options::default()).unwrap();
    assert!(product(&matrix, &vec![1.0; 256], &threads).is_empty());
    let matrix = Matrix::new(BlockType::F16, 0, 256, &[], &Options::default()).unwrap();
    assert!(product(&matrix, &vec![1.0; 256], &threads).is_empty());
    assert_eq!(MAX_WIDTH % 4, 0);
    assert_eq!(ROWS, STEP);
}
