//! Ways of their own for many tokens: those of this CPU's backends, and one that shows what such a way has to bring.

use super::blocks::{Random, blocks_with_runs, ternary_blocks};
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Enough rows and tokens for the backends that have a way of their own for many.
#[test]
fn every_kernel_equals_scalar_for_many_rows_and_tokens() {
    let mut backends = backends();
    backends.retain(|backend| backend.gemm.is_some());
    if backends.is_empty() {
        return println!("skipped: no backend of this CPU has a way of its own for many tokens");
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
        let columns = if case % 9 == 0 { KC + 256 } else { 512 };
        let mut bytes = ternary_blocks(&mut random, ty, rows * columns, run);
        let mut x = random.floats(tokens * columns);
        match case % 6 {
            0 => x.fill(127.0),
            3 => x.fill(-127.0),
            _ => {}
        }
        for activations in choices(ty, columns) {
            let options = options(Isa::Scalar, activations);
            let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
            let scalar = bits(&product(&matrix, &x, &threads[0]));
            for &backend in &backends {
                matrix.use_backend(backend);
                let threads = &threads[case % 2];
                let found = bits(&product(&matrix, &x, threads));
                // Which matrices are for tiles is a test of theirs.
                let chosen = matrix.gemm(tokens, threads.count()).is_some() || backend.name == "amx";
                assert!(chosen && found == scalar, "case {case} {activations}");
            }
        }
        // One code that is not ternary, and the whole matrix is not.
        if let BlockType::TQ2_0 | BlockType::Q2_0 = ty {
            let last = bytes.len() - if ty == BlockType::TQ2_0 { 3 } else { 1 };
            bytes[last] |= 3;
            let options = options(Isa::Scalar, ActivationScales::LlamaCpp);
            let mut matrix = Matrix::new(ty, rows, columns, &bytes, &options).unwrap();
            for &backend in backends.iter().filter(|backend| backend.name == "avx512lookup") {
                matrix.use_backend(backend);
                assert!(matrix.gemm(tokens, 1).is_none());
            }
        }
    }
}

/// A way for many tokens that gets its weights ready when the matrix is made: each code in a byte of its own, less the
/// offset.
struct Bytes {
    /// Of each K-panel: (row groups, columns, 16).
    codes: Vec<Vec<i8>>,
}

/// Products that were made in this way.
static PRODUCTS: AtomicUsize = AtomicUsize::new(0);

/// Only for scales without multipliers.
fn load_bytes(weights: &Packed, _: Grouping) -> Option<Box<dyn Gemm>> {
    let shift = weights.format.shift.filter(|_| !weights.format.multiplied)?;
    let codes = |k_panel: KPanel<'_>| {
        let groups = (0..weights.format.row_groups()).map(|group| k_panel.row_group(group));
        groups
            .flat_map(|group| {
                let column =
                    move |column| (0..MR).map(move |row| (group.code(row, column) as i16 - (1 << shift)) as i8);
                (0..k_panel.columns().len()).flat_map(column)
            })
            .collect()
    };
    let codes = weights.k_panels().map(codes).collect();
    Some(Box::new(Bytes { codes }))
}

impl Gemm for Bytes {
    fn least_tokens(&self, _rows: usize) -> Option<usize> {
        Some(8)
    }

    fn width(&self) -> usize {
        4
    }

    fn tile(&self) -> Tile {
        Tile {
            groups: 2,
            least: 1,
            panels: 3,
        }
    }

    fn multiply(&self, weights: &KPanel<'_>, groups: Range<usize>, panels: &[Panel<'_>], out: &mut Out<'_>) {
        PRODUCTS.fetch_add(1, Ordering::Relaxed);
        let columns = weights.columns();
        let codes = &self.codes[columns.start / KC];
        let mut out = out.results(0..panels.len()).iter_mut();
        for panel in panels {
            let runs = weights.runs(panel);
            for group in groups.clone() {
                let codes = &codes[group * columns.len() * MR..][..columns.len() * MR];
                let scales = weights.row_group(group);
                for (token, out) in out.by_ref().take(panel.width).enumerate() {
                    let activation = |run: usize| panel.scales[run * panel.width + token];
                    for (row, out) in out.iter_mut().enumerate() {
                        let scale = |of_token: bool, run: usize| match of_token {
                            true => activation(run),
                            false => scales.scale(row, run),
                        };
                        for outer in 0..runs.outer {
                            let mut partial = 0.0f32;
                            for run in outer * runs.inner..(outer + 1) * runs.inner {
                                let product = |column: usize| {
                                    let dword = panel.dwords[column / 4 * panel.width + token].to_ne_bytes();
                                    i32::from(codes[column * MR + row]) * i32::from(dword[column % 4] as i8)
                                };
                                let dot: i32 = (run * runs.columns..(run + 1) * runs.columns).map(product).sum();
                                partial = (dot as f32).mul_add(scale(runs.activation_inside, run), partial);
                            }
                            *out = partial.mul_add(scale(!runs.activation_inside, outer), *out);
                        }
                    }
                }
            }
        }
        assert!(out.next().is_none(), "a result for each row and token");
    }
}

/// A backend is a kernel and a function that gets a matrix ready for many tokens; the matrix chooses by their number.
#[test]
fn a_way_for_many_tokens_may_prepare_weights_and_says_when_it_pays() {
    let mut random = Random(8);
    let backend = Backend {
        name: "bytes",
        gemm: Some(load_bytes),
        ..scalar()
    };
    let (rows, columns) = (83, KC + 256);
    let threads: Vec<Threads> = (1..=2).map(Threads::new).collect();
    for ty in [BlockType::TQ2_0, BlockType::Q2_0, BlockType::Q4_0, BlockType::Q8_0] {
        let bytes = blocks_with_runs(&mut random, ty, rows * columns, 64);
        let mut matrix = Matrix::new(
            ty,
            rows,
            columns,
            &bytes,
            &options(Isa::Scalar, ActivationScales::LlamaCpp),
        )
        .unwrap();
        for (tokens, chosen) in [(1, false), (7, false), (8, true), (16, true), (33, true)] {
            let x = random.floats(tokens * columns);
            matrix.use_backend(scalar());
            let expected = bits(&product(&matrix, &x, &threads[0]));
            matrix.use_backend(backend);
            let before = PRODUCTS.load(Ordering::Relaxed);
            let found = bits(&product(&matrix, &x, &threads[tokens % 2]));
            assert!(found == expected, "{ty} {tokens} tokens");
            assert_eq!(
                PRODUCTS.load(Ordering::Relaxed) > before,
                chosen,
                "{ty} {tokens} tokens"
            );
        }
    }
    // A matrix that it cannot multiply is left to the kernel.
    let bytes = blocks_with_runs(&mut random, BlockType::Q6_K, rows * columns, 16);
    let mut matrix = Matrix::new(BlockType::Q6_K, rows, columns, &bytes, &Options::default()).unwrap();
    matrix.use_backend(backend);
    assert!(matrix.gemm(64, 1).is_none());
}
