//! Tiles against the scalar kernel: where tokens, rows and columns do not fill them, and with all scales that they take.

use super::blocks::{Random, ternary_blocks};
use super::*;

const TYPES: [BlockType; 5] = [
    BlockType::TQ2_0,
    BlockType::TQ1_0,
    BlockType::Q2_0,
    BlockType::Q2_K,
    BlockType::Q4_0,
];

/// Whether a product of so many tokens is to be made with tiles.
fn is_for_tiles(matrix: &Matrix, tokens: usize) -> bool {
    let Weights::Packed(weights) = &matrix.weights else {
        return false;
    };
    let activations = matrix.grouping.group();
    let run = match weights.format.multiplied {
        true => activations / 256 * 256,
        false => weights.format.group.min(activations),
    };
    weights.format.ternary && tokens >= 4 && run >= 64
}

#[test]
fn tiles_equal_scalar_around_every_edge() {
    let Some(amx) = Isa::Amx.backend() else {
        return println!("skipped: this CPU has no AMX, or the system does not permit it");
    };
    let mut random = Random(11);
    let threads: Vec<Threads> = (1..=2).map(Threads::new).collect();
    let all_tokens = [
        1, 3, 4, 8, 13, 15, 16, 17, 28, 31, 32, 33, 48, 49, 63, 64, 65, 96, 128, 129,
    ];
    let all_rows = [1, 15, 16, 17, 31, 32, 33, 48, 49, 64, 80, 97];
    let (mut products, mut with_tiles, mut kinds) = (0, 0, std::collections::BTreeSet::new());
    for (ty, run) in TYPES
        .into_iter()
        .flat_map(|ty| [16, 32, 64, 128, 256].map(|run| (ty, run)))
    {
        for (case, blocks) in [1, 2, 3, 5, 4, 8].into_iter().enumerate() {
            let columns = match case {
                4 if run == 128 => KC + 256,
                _ => blocks * ty.weights().max(64),
            };
            for (turn, &tokens) in all_tokens.iter().enumerate().filter(|(turn, _)| turn % 3 == case % 3) {
                let rows = all_rows[(turn * 5 + case * 7 + run / 16) % all_rows.len()];
                let bytes = ternary_blocks(&mut random, ty, rows * columns, run);
                let mut x = random.floats(tokens * columns);
                match turn % 5 {
                    0 => x.fill(127.0),
                    1 => x.fill(-127.0),
                    _ => {}
                }
                for activations in choices(ty, columns) {
                    let options = options(Isa::Scalar, activations);
                    let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
                    let scalar = bits(&product(&matrix, &x, &threads[0]));
                    matrix.use_backend(amx);
                    let at = format!("{ty} {rows}x{columns} {tokens} tokens {}", matrix.kernel());
                    assert_eq!(matrix.gemm(tokens, 1).is_some(), is_for_tiles(&matrix, tokens), "{at}");
                    if is_for_tiles(&matrix, tokens) {
                        let mut activations = Activations::of(amx);
                        activations.quantize(&x, columns, matrix.grouping(), &threads[0]);
                        assert!(activations.has_lines(), "{at}");
                    }
                    for threads in &threads {
                        assert!(
                            bits(&product(&matrix, &x, threads)) == scalar,
                            "{at} {} threads",
                            threads.count()
                        );
                        products += 1;
                        with_tiles += usize::from(is_for_tiles(&matrix, tokens));
                    }
                    if is_for_tiles(&matrix, tokens) {
                        kinds.insert(matrix.kernel().to_string());
                    }
                }
            }
        }
    }
    println!("{products} products, {with_tiles} with tiles, of {kinds:#?}");
}

/// One code that is not ternary, and the whole matrix is left to the kernel.
#[test]
fn other_codes_are_not_for_tiles() {
    let Some(amx) = Isa::Amx.backend() else {
        return println!("skipped: this CPU has no AMX, or the system does not permit it");
    };
    let (rows, columns, tokens) = (33, 512, 32);
    let mut bytes = ternary_blocks(&mut Random(12), BlockType::TQ2_0, rows * columns, 256);
    let x = Random(13).floats(tokens * columns);
    for (code, tiles) in [(0, true), (3, false)] {
        let last = bytes.len() - 3;
        bytes[last] |= code;
        let options = options(Isa::Scalar, ActivationScales::LlamaCpp);
        let mut matrix = Matrix::new(BlockType::TQ2_0, rows, columns, &bytes, &options).unwrap();
        let scalar = bits(&product(&matrix, &x, &Threads::new(1)));
        matrix.use_backend(amx);
        assert_eq!(matrix.gemm(tokens, 1).is_some(), tiles);
        assert!(bits(&product(&matrix, &x, &Threads::new(1))) == scalar);
    }
}

/// Products of bf16, and their order: what attention in vectors relies on.
#[test]
fn bf16_tiles_add_up_as_documented() {
    use crate::kernels::bf16::{Pairs, Product, Sums};
    let Some(mut tiles) = Isa::Amx.bf16_tiles() else {
        return println!("skipped: this CPU has no AMX-BF16, or the system does not permit it");
    };
    let mut random = Random(5);
    // Numbers of very different sizes, so that every other order gives other bits; none whose products are subnormal.
    let mut numbers = |blocks: usize| -> Vec<Pairs> {
        let mut number = || {
            let x = random.floats(2);
            (x[0] * 2f32.powi((x[1] * 24.0) as i32)).to_bits() >> 16
        };
        (0..blocks)
            .map(|_| std::array::from_fn(|_| std::array::from_fn(|_| number() as u16)))
            .collect()
    };
    let wide = |x: u16| f32::from_bits(u32::from(x) << 16);
    for (blocks, count) in [(1, 1), (2, 4), (3, 6), (4, 9)] {
        let (a, b) = (numbers(blocks), numbers(blocks * count));
        let before: Vec<Sums> = vec![std::array::from_fn(|i| [i as f32 - 0.3; 16]); count];
        for add in [false, true] {
            let mut found = before.clone();
            let sums = &mut found[..];
            tiles.multiply(match add {
                true => Product::adding(&a, &b, sums),
                false => Product::new(&a, &b, sums),
            });
            for (tile, row, column) in (0..count).flat_map(|t| (0..256).map(move |i| (t, i / 16, i % 16))) {
                let mut sum = if add { before[tile][row][column] } else { 0.0 };
                for (a, b) in a.iter().zip(&b[tile * blocks..]) {
                    let [mut first, mut second] = [0f32; 2];
                    for pair in 0..16 {
                        first = wide(a[row][2 * pair]).mul_add(wide(b[pair][2 * column]), first);
                        second = wide(a[row][2 * pair + 1]).mul_add(wide(b[pair][2 * column + 1]), second);
                    }
                    sum += first + second;
                }
                let found = found[tile][row][column];
                assert_eq!(
                    found.to_bits(),
                    sum.to_bits(),
                    "{blocks} {count} {tile} {row} {column} {add}"
                );
            }
        }
    }
}
