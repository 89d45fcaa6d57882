//! Matrices made here, and the golden ones of the families where the larger data is.

use std::path::{Path, PathBuf};

use fastrand::Rng;
use half::{bf16, f16};

use super::*;
use crate::model::Tensors;

/// Above 0, up to 1.
fn uniform(random: &mut Rng) -> f32 {
    1.0 - random.f32()
}

fn normal(random: &mut Rng) -> f32 {
    let radius = (-2.0 * uniform(random).ln()).sqrt();
    radius * (std::f32::consts::TAU * uniform(random)).cos()
}

fn encode(dtype: Dtype, number: f32) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f32(number).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(number).to_le_bytes().to_vec(),
        _ => number.to_le_bytes().to_vec(),
    }
}

/// What `look` says of the matrix of these numbers.
fn look_at(dtype: Dtype, [rows, columns]: [usize; 2], numbers: &[f32]) -> Weights {
    assert_eq!(numbers.len(), rows * columns);
    let data: Vec<u8> = numbers.iter().flat_map(|&number| encode(dtype, number)).collect();
    let header = serde_json::json!({"w": {"dtype": dtype.to_string(), "shape": [rows, columns], "data_offsets": [0, data.len()]}});
    let header = header.to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    std::fs::write(&path, bytes).unwrap();
    look(Tensors::open(&path).unwrap().stored("w").unwrap()).unwrap()
}

const DTYPES: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// Made ternary by Tequila's formula, in groups of the flattened matrix.
fn ternary(random: &mut Rng, length: usize, group: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> = (0..length).map(|_| 0.03 * normal(random)).collect();
    for group in numbers.chunks_mut(group) {
        let scale = group.iter().map(|w| w.abs()).sum::<f32>() / group.len() as f32;
        for w in group {
            *w = if w.abs() >= scale / 2.0 {
                scale.copysign(*w)
            } else {
                0.0
            };
        }
    }
    numbers
}

#[test]
fn ternary_weights_are_told_with_the_run_of_their_scales() {
    let mut random = Rng::with_seed(1);
    for dtype in DTYPES {
        for (rows, columns, group, expected) in [
            (32, 512, 128, 128),
            (32, 512, 64, 64),
            (32, 512, 32, 32),
            (32, 512, 16, 16),
            (32, 512, 512, 256),       // one a row
            (32, 512, 32 * 512, 256),  // one a matrix
            (1024, 32, 32 * 1024, 32), // rows shorter than a run
            (64, 192, 128, 64),        // groups that cross rows
            (64, 100, 128, 128),       // at columns that no run starts at
            (2, 200_064, 128, 128),    // rows longer than what is read at once
        ] {
            let numbers = ternary(&mut random, rows * columns, group);
            match look_at(dtype, [rows, columns], &numbers) {
                Weights::Ternary { run, share } => {
                    assert_eq!(run, expected, "{dtype} {rows} x {columns}, group {group}");
                    // Of a normal distribution, 69 % of the weights lie beyond half the mean magnitude.
                    assert!((share - 0.69).abs() < 0.03, "{share}");
                }
                found => panic!("{dtype} {rows} x {columns}, group {group}: {found:?}"),
            }
        }
    }
}

#[test]
fn zeros_of_both_signs_and_groups_of_zeros_are_ternary() {
    let mut numbers = ternary(&mut Rng::with_seed(2), 16 * 256, 128);
    numbers[..128].fill(0.0);
    for (index, w) in numbers.iter_mut().enumerate().filter(|(_, w)| **w == 0.0) {
        *w = if index % 2 == 0 { 0.0 } else { -0.0 };
    }
    let found = look_at(Dtype::F16, [16, 256], &numbers);
    assert!(matches!(found, Weights::Ternary { run: 128, .. }), "{found:?}");
}

#[test]
fn two_and_four_levels_are_told_from_three() {
    let mut random = Rng::with_seed(3);
    for dtype in DTYPES {
        // Of each row, as SEQ and ParetoQ leave them: the outer level is rounded by itself.
        let mut four: Vec<f32> = vec![];
        for _ in 0..32 {
            let step = 0.01 * (1.0 + uniform(&mut random));
            four.extend((0..256).map(|_| step * ((4.0 * uniform(&mut random)).floor() - 1.5)));
        }
        assert_eq!(look_at(dtype, [32, 256], &four), Weights::FourLevel { run: 256 });
        let signs: Vec<f32> = four.iter().map(|w| 0.02f32.copysign(*w)).collect();
        assert_eq!(look_at(dtype, [32, 256], &signs), Weights::Binary { run: 256 });
    }
}

#[test]
fn ternary_weights_that_were_rounded_again_are_named() {
    let (mut random, mut numbers) = (Rng::with_seed(4), ternary(&mut Rng::with_seed(4), 64 * 256, 128));
    // w + (q - w), each step in bf16: as a straight-through estimator computes it.
    let round = |x: f32| bf16::from_f32(x).to_f32();
    for q in &mut numbers {
        let (w, exact) = (round(0.03 * normal(&mut random)), round(*q));
        *q = round(w + round(exact - w));
    }
    let found = look_at(Dtype::BF16, [64, 256], &numbers);
    assert!(matches!(found, Weights::NearlyTernary { .. }), "{found:?}");
}

#[test]
fn ternary_weights_with_something_added_are_named() {
    let mut random = Rng::with_seed(5);
    let mut numbers = ternary(&mut random, 64 * 256, 128);
    let exact = numbers.clone();
    numbers.iter_mut().for_each(|w| *w += 0.0005 * normal(&mut random));
    let found = look_at(Dtype::BF16, [64, 256], &numbers);
    assert!(
        matches!(found, Weights::NearlyTernary { zeros: false, .. }),
        "{found:?}"
    );
    // One weight of all is another.
    let mut numbers = exact;
    let place = 5 * 256 + 77;
    numbers[place] = 0.5;
    let found = look_at(Dtype::BF16, [64, 256], &numbers);
    let Weights::NearlyTernary { row: 5, column, .. } = found else {
        panic!("{found:?}");
    };
    assert!((64..=78).contains(&column), "{column}"); // where its run of 16 has a second magnitude
}

#[test]
fn latent_weights_are_latent() {
    let mut random = Rng::with_seed(6);
    let mut make = |shape: &str, index: usize| match shape {
        "normal" => 0.02 * normal(&mut random),
        "uniform" => 0.05 * (uniform(&mut random) - 0.5),
        "heavy tails" => 0.01 * normal(&mut random) / uniform(&mut random),
        "laplace" => 0.01 * uniform(&mut random).ln().copysign(normal(&mut random)),
        "two peaks" => 0.02f32.copysign(normal(&mut random)) + 0.004 * normal(&mut random),
        "three peaks" => 0.02 * [-1.0, 0.0, 1.0][index % 3] + 0.004 * normal(&mut random),
        "sparse" if uniform(&mut random) > 0.05 => 0.0,
        "very sparse" if uniform(&mut random) > 0.002 => 0.0,
        "half zeros" if index.is_multiple_of(2) => 0.0,
        // Far below the smallest normal number of f16.
        "tiny" => 3e-8 * normal(&mut random),
        "large" => 300.0 * normal(&mut random),
        _ => normal(&mut random),
    };
    for shape in [
        "normal",
        "uniform",
        "heavy tails",
        "laplace",
        "two peaks",
        "three peaks",
        "sparse",
        "very sparse",
        "half zeros",
        "tiny",
        "large",
    ] {
        for (rows, columns) in [(64, 256), (64, 100), (7, 32), (256, 16), (2, 4), (1, 1), (300, 1)] {
            let numbers: Vec<f32> = (0..rows * columns).map(|index| make(shape, index)).collect();
            for dtype in DTYPES {
                let found = look_at(dtype, [rows, columns], &numbers);
                let fine = matches!(found, Weights::Latent | Weights::Unknown);
                assert!(fine, "{shape} {dtype} {rows} x {columns}: {found:?}");
            }
        }
    }
    for dtype in DTYPES {
        assert_eq!(look_at(dtype, [64, 256], &[0.0; 64 * 256]), Weights::Unknown);
    }
}

fn data() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    std::env::var_os("TQCONV_DATA").map_or(beside, PathBuf::from)
}

/// The runs of the linears of a checkpoint, in the order of their names.
fn runs(folder: &Path) -> Option<Vec<Weights>> {
    if !folder.exists() {
        println!("skipped: {} is absent", folder.display());
        return None;
    }
    let tensors = Tensors::open(&folder.join("model.safetensors")).unwrap();
    let linears = tensors.names().filter(|name| name.ends_with("_proj.weight"));
    Some(
        linears
            .map(|name| look(tensors.stored(name).unwrap()).unwrap())
            .collect(),
    )
}

#[test]
fn checkpoints_of_other_makers_are_told_as_their_readme_says() {
    let run = |weights: &Weights| match weights {
        Weights::Ternary { run, .. } => *run,
        other => panic!("{other:?}"),
    };
    if let Some(found) = runs(&data().join("families/ternary-float")) {
        // down, gate, up, k, o, q, v.
        let expected = [256, 256, 64, 256, 128, 128, 256];
        assert_eq!(found.iter().map(run).collect::<Vec<_>>(), expected);
    }
    if let Some(found) = runs(&data().join("families/bonsai")) {
        assert_eq!(found.iter().map(run).collect::<Vec<_>>(), [128; 7]);
    }
    for name in [
        "kjv-tequila",
        "smol8-tequila",
        "stories260K/hf",
        "families/sherry",
        "families/bitnet-online",
    ] {
        if let Some(found) = runs(&data().join(name)) {
            assert!(
                found.iter().all(|weights| *weights == Weights::Latent),
                "{name}: {found:?}"
            );
        }
    }
}
