//! One suite for every kernel: its bits are the scalar kernel's bits, and the scalar kernel is near the f64 product.

#[cfg(target_arch = "x86_64")]
mod amx;
mod blocks;
mod gemm;

use self::blocks::{Random, blocks_with_runs, random_blocks};
use super::contract::{MR, NR, STEP};
use super::packed::KC;
use super::scalar::Scalar;
use super::*;

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

fn options(isa: Isa, activations: ActivationScales) -> Options {
    Options {
        isa,
        activations,
        halves: false,
    }
}

/// The choices of scales that differ for a type and so many columns.
fn choices(ty: BlockType, columns: usize) -> Vec<ActivationScales> {
    let mut choices = ActivationScales::ALL.to_vec();
    let mut seen = std::collections::HashSet::new();
    choices.retain(|choice| seen.insert(choice.grouping(ty, columns)));
    choices
}

/// The product with `y` full of garbage before.
fn product(matrix: &Matrix, x: &[f32], threads: &Threads) -> Vec<f32> {
    let mut activations = Activations::of(matrix.backend);
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

/// Every backend that this CPU can run, scalar first.
fn backends() -> Vec<Backend> {
    let available = Isa::available().into_iter().filter_map(Isa::backend);
    #[cfg(target_arch = "x86_64")]
    let available = available.chain(x86::avx_vnni_as_evex().map(|(gemv, gemm)| Backend {
        name: "avxvnni as EVEX",
        gemv,
        gemm: Some(gemm),
        lines: None,
    }));
    available.collect()
}

fn scalar() -> Backend {
    Isa::Scalar.backend().expect("scalar is always there")
}

/// Rows of which one thread has six groups: enough for several to be multiplied with one token together, and a rest.
const MANY: usize = 83;

#[test]
fn every_kernel_equals_scalar_at_every_edge() {
    let mut random = Random(1);
    let threads: Vec<Threads> = (1..=3).map(Threads::new).collect();
    println!(
        "{:?}",
        backends().iter().map(|backend| backend.name).collect::<Vec<_>>()
    );
    for ty in TYPES {
        for rows in [1, 15, 16, 17, 33, MANY] {
            for blocks in 1..=if rows == 17 { 6 } else { 5 } {
                let columns = match FloatType::of(ty) {
                    Some(_) => 21 * blocks,                       // ends inside a vector
                    None if blocks == 6 => 2 * KC + ty.weights(), // in K-panels
                    None => blocks * ty.weights(),
                };
                let bytes = random_blocks(&mut random, ty, rows * columns);
                for activations in choices(ty, columns) {
                    let options = options(Isa::Scalar, activations);
                    let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                    let all = [1, 2, 3, 4, 5, 8, 9, 13, 16, 17, 33];
                    let some = [1, 16, 17];
                    let tokens = match (rows, blocks) {
                        (MANY, _) => &[1][..],
                        (_, 6) => &some,
                        _ => &all[..],
                    };
                    for &tokens in tokens {
                        let x = random.floats(tokens * columns);
                        matrix.use_backend(scalar());
                        let scalar = bits(&product(&matrix, &x, &threads[0]));
                        for backend in backends() {
                            matrix.use_backend(backend);
                            let threads = &threads[if rows == MANY { 0 } else { tokens % 3 }];
                            let found = bits(&product(&matrix, &x, threads));
                            assert!(
                                found == scalar,
                                "{ty} {rows}x{columns} {tokens} tokens {activations} {}",
                                backend.name
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn every_kernel_equals_scalar_whatever_the_group() {
    let mut random = Random(6);
    let (columns, threads) = (1024, Threads::new(1));
    let mut names = std::collections::BTreeSet::new();
    for ty in TYPES {
        if FloatType::of(ty).is_some() {
            continue;
        }
        let all = [1, 3, 7, 9, 16];
        let sizes = [(17, &all[..]), (MANY, &[1])];
        for (run, (rows, tokens)) in [16, 32, 64, 128, 256]
            .into_iter()
            .flat_map(|run| sizes.map(|size| (run, size)))
        {
            let bytes = blocks_with_runs(&mut random, ty, rows * columns, run);
            for activations in choices(ty, columns) {
                let options = options(Isa::Scalar, activations);
                let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                names.insert(matrix.kernel().to_string());
                for &tokens in tokens {
                    let x = random.floats(tokens * columns);
                    matrix.use_backend(scalar());
                    let scalar = bits(&product(&matrix, &x, &threads));
                    for backend in backends() {
                        matrix.use_backend(backend);
                        let found = bits(&product(&matrix, &x, &threads));
                        let kernel = backend.name;
                        assert!(found == scalar, "{ty} {run} {tokens} {activations} {kernel}");
                    }
                }
            }
        }
    }
    // Codes of 2, 4, 6 and 8 bits in groups of 16 to 256.
    assert!(names.len() >= 16, "{names:?}");
}

#[test]
fn packed_weights_are_those_of_the_file() {
    let mut random = Random(5);
    for ty in TYPES.into_iter().filter(|&ty| FloatType::of(ty).is_none()) {
        let (rows, columns) = (19, KC + 512);
        let bytes = random_blocks(&mut random, ty, rows * columns);
        let Ok(packed) = sources::pack(ty, rows, columns, &bytes) else {
            panic!("{ty}")
        };
        let mut weights = vec![0.0; columns];
        for (row, bytes) in bytes.chunks_exact(ty.row_bytes(columns).unwrap()).enumerate() {
            ty.dequantize_row(bytes, &mut weights).unwrap();
            let k_panels: Vec<_> = packed.k_panels().collect();
            for (column, weight) in weights.iter().enumerate() {
                let k_panel = &k_panels[column / KC];
                assert!(k_panel.columns().contains(&column));
                let (group, lane) = (k_panel.row_group(row / MR), row % MR);
                let column = column % KC;
                let run = column / packed.format.group;
                let code = i32::from(group.code(lane, column));
                let found = match packed.format.shift {
                    Some(shift) => group.scale(lane, run) * (code - (1 << shift)) as f32,
                    None => group.scale(lane, run) * code as f32 - group.minimum(lane, run),
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
                let matrix = Matrix::new(ty, rows, columns, &bytes, &options(isa, ActivationScales::LlamaCpp)).unwrap();
                let name = format!("scale per {}", merged.min(256));
                assert!(
                    matrix.kernel().to_string().contains(&name),
                    "{} {merged}",
                    matrix.kernel()
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
        for activations in choices(ty, columns) {
            let matrix = Matrix::new(ty, rows, columns, &bytes, &options(Isa::Scalar, activations)).unwrap();
            // Activations of 8 bits on normal data: 2.7e-5 with a scale per 32, 4e-5 with one per 256.
            let limit = if matrix.grouping() == Grouping::Float {
                1e-12
            } else {
                8e-5
            };
            let found = nmse(&product(&matrix, &x, &threads), &exact);
            assert!(found < limit, "{ty} {activations}: {found}");
        }
    }
}

/// Activations as they are multiplied, by the rules for one group of them.
fn rounded(x: &[f32], grouping: Grouping) -> Vec<f32> {
    let mut codes = vec![0; grouping.group()];
    let mut rounded = vec![];
    for x in x.chunks_exact(grouping.group()) {
        let scale = match grouping {
            Grouping::Float | Grouping::F16 | Grouping::Bf16 => unreachable!("of floats"),
            Grouping::Q8_0 => scalar::quantize_q8_0(x, &mut codes),
            Grouping::K(_) => scalar::quantize_k(x, &mut codes),
        };
        rounded.extend(codes.iter().map(|&code| f32::from(code) * scale));
    }
    rounded
}

/// Halves are multiplied as llama.cpp does where that is asked for: as if the activations had been halves.
#[test]
fn activations_of_halves_are_rounded_where_asked() {
    let mut random = Random(19);
    let (rows, columns, tokens, threads) = (20, 96, 5, Threads::new(2));
    let x = random.floats(tokens * columns);
    type Round = fn(f32) -> f32;
    let types: [(_, Round); 2] = [
        (BlockType::F16, |x| half::f16::from_f32(x).to_f32()),
        (BlockType::BF16, |x| half::bf16::from_f32(x).to_f32()),
    ];
    for (ty, round) in types {
        let rounded: Vec<_> = x.iter().copied().map(round).collect();
        let bytes = random_blocks(&mut random, ty, rows * columns);
        let matrix = |halves| {
            let options = Options {
                halves,
                ..options(Isa::Scalar, ActivationScales::LlamaCpp)
            };
            Matrix::new(ty, rows, columns, &bytes, &options).unwrap()
        };
        let expected = product(&matrix(false), &rounded, &threads);
        assert_eq!(product(&matrix(true), &x, &threads), expected, "{ty}");
        assert_ne!(product(&matrix(false), &x, &threads), expected, "{ty}");
    }
}

/// Whatever has scales, multipliers and minimums: with activations of any scales the product is that of the weights of
/// the file and the rounded activations.
#[test]
fn products_are_those_of_rounded_activations() {
    let mut random = Random(9);
    let threads = Threads::new(1);
    for ty in TYPES.into_iter().filter(|&ty| FloatType::of(ty).is_none()) {
        for run in [0, 16, 32, 64, 128, 256] {
            let (rows, columns, tokens) = (20, KC + 512, 5);
            let bytes = match run {
                0 => random_blocks(&mut random, ty, rows * columns),
                _ => blocks_with_runs(&mut random, ty, rows * columns, run),
            };
            let x = random.floats(tokens * columns);
            for activations in choices(ty, columns) {
                let matrix = Matrix::new(ty, rows, columns, &bytes, &options(Isa::Scalar, activations)).unwrap();
                let x_rounded = rounded(&x, matrix.grouping());
                let exact = exact::product(ty, rows, columns, &bytes, &x_rounded).unwrap();
                let found = nmse(&product(&matrix, &x, &threads), &exact);
                assert!(found < 1e-11, "{ty} {run} {activations}: {found}");
            }
        }
    }
}

#[test]
fn the_choice_of_scales_is_each_type_s() {
    use ActivationScales::*;
    for (ty, llama, per_64, per_32, fast) in [
        (BlockType::Q2_K, 256, 64, 32, 256),
        (BlockType::TQ2_0, 256, 64, 32, 256),
        (BlockType::Q6_K, 256, 64, 32, 256),
        (BlockType::Q2_0, 32, 32, 32, 256),
        (BlockType::Q8_0, 32, 32, 32, 32),
        (BlockType::F16, 1, 1, 1, 1),
    ] {
        for (choice, group) in [(LlamaCpp, llama), (Per64, per_64), (Per32, per_32), (Fast, fast)] {
            assert_eq!(choice.grouping(ty, 512).group(), group, "{ty} {choice}");
        }
    }
    assert_eq!(Fast.grouping(BlockType::Q4_0, 96).group(), 32);
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
                        let options = options(isa, ActivationScales::LlamaCpp);
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
    kernel.quantize(x, grouping, &mut codes, &mut scales);
    kernel.sums(&codes, &mut sums);
    (codes, bits(&scales), sums)
}

#[test]
fn every_kernel_quantizes_like_scalar() {
    let mut random = Random(4);
    let groupings = [Grouping::Q8_0, Grouping::K(64), Grouping::K(128), Grouping::K(256)];
    for isa in Isa::available() {
        let kernel = isa.backend().unwrap().gemv;
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
        "rows of 100 columns are not a whole number of TQ2_0 blocks of 256"
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
    assert_eq!(NR % 4, 0);
    assert_eq!(MR, STEP);
}
