use std::convert::Infallible;

use super::*;

/// Types of one linear: (bytes, KLD).
fn tried(types: &[(u64, f64)]) -> Vec<Tried> {
    let ty = [BlockType::Q2_K, BlockType::Q4_0, BlockType::Q8_0, BlockType::F16];
    let tried = types.iter().zip(ty).map(|(&(bytes, kld), ty)| Tried {
        ty,
        bytes,
        kld: (ty != BlockType::F16).then_some(kld),
    });
    tried.collect()
}

fn linears() -> Vec<Vec<Tried>> {
    vec![
        tried(&[(10, 8.0), (20, 4.0), (40, 3.0), (80, 0.0)]),
        tried(&[(10, 0.5), (20, 0.4), (40, 0.4), (80, 0.0)]),
        // The middle type is left out: the large one saves more for a byte.
        tried(&[(100, 90.0), (200, 89.0), (400, 0.0)]),
    ]
}

/// Every step saves less for a byte than the one before it, and none is worse than another way of so many bytes.
#[test]
fn steps_save_most_first() {
    use BlockType::{F16, Q2_K, Q4_0, Q8_0};
    let linears = linears();
    let ladder = Ladder::new(&linears);
    let types: Vec<_> = (0..=ladder.steps.len()).map(|rung| ladder.types(rung)).collect();
    let expected = [
        [Q2_K, Q2_K, Q2_K],
        [Q4_0, Q2_K, Q2_K], // 0.4 a byte
        [Q4_0, Q2_K, Q8_0], // 0.3
        [F16, Q2_K, Q8_0],  // 4 of 60 bytes, more than 1 of 20 and then 3 of 40
        [F16, Q4_0, Q8_0],  // 0.01
        [F16, F16, Q8_0],   // 0.4 of 60 bytes
    ];
    assert_eq!(types, expected);
    let sums: Vec<_> = (0..6).map(|rung| ladder.sum(rung)).collect();
    for (found, expected) in sums.iter().zip([98.5, 94.5, 4.5, 0.5, 0.4, 0.0]) {
        assert!((found - expected).abs() < 1e-12, "{sums:?}");
    }
}

fn lowest(budget: f64, whole: impl Fn(f64) -> f64) -> Found {
    let linears = linears();
    let ladder = Ladder::new(&linears);
    let measure = |rung| Ok::<_, Infallible>(vec![0.0, whole(ladder.sum(rung))]);
    ladder.lowest(budget, measure).unwrap()
}

/// Whatever the whole is in relation to the sum of the parts.
#[test]
fn the_lowest_file_within_the_budget_is_found() {
    let sums = [98.5, 94.5, 4.5, 0.5, 0.4, 0.0];
    for whole in [
        |sum: f64| sum,
        |sum: f64| 3.0 * sum,
        |sum: f64| 0.1 * sum,
        |sum: f64| sum.sqrt(),
    ] {
        for budget in [1000.0, 95.0, 50.0, 4.0, 0.45, 0.01] {
            let expected = sums.iter().position(|&sum| whole(sum) <= budget + 1e-9).unwrap();
            let found = lowest(budget, whole);
            assert_eq!(found.rung, expected, "{budget}");
            assert!(found.worst() <= budget);
            assert!(found.measured <= MOST_MEASURED);
        }
    }
}

#[test]
fn where_nothing_is_within_the_budget_the_best_is_told() {
    let found = lowest(1.0, |sum| sum + 2.0);
    assert_eq!((found.rung, found.worst()), (5, 2.0));
    let single = [tried(&[(10, 3.0)])];
    let ladder = Ladder::new(&single);
    let found = ladder.lowest(1.0, |_| Ok::<_, Infallible>(vec![5.0])).unwrap();
    assert_eq!((found.rung, found.worst(), found.measured), (0, 5.0, 1));
}

#[test]
fn what_is_no_number_is_not_within_a_budget() {
    let found = lowest(1.0, |_| f64::NAN);
    assert!(found.worst().is_nan() && !found.is_within(1.0));
}

/// A long ladder: a bounded number of measurements, and what they find is within the budget.
#[test]
fn a_bounded_number_of_files_is_measured() {
    let linears: Vec<_> = (1..300)
        .map(|i| tried(&[(10, f64::from(i)), (20, f64::from(i) / 5.0), (40, f64::from(i) / 5.0)]))
        .collect();
    let ladder = Ladder::new(&linears);
    for (slope, budget) in [(0.3, 9000.0), (2.0, 20_000.0), (1.0, 30_000.0)] {
        // Not in proportion to the sum.
        let whole = |rung| slope * ladder.sum(rung) + 500.0;
        let found = ladder
            .lowest(budget, |rung| Ok::<_, Infallible>(vec![whole(rung)]))
            .unwrap();
        assert!(found.worst() <= budget && found.worst() > 0.95 * budget, "{found:?}");
    }
}
