use std::convert::Infallible;

use formats::block::BlockType;

use super::super::types;
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

/// What each rung of `linears` takes.
const TAKEN: [[usize; 3]; 6] = [[0, 0, 0], [1, 0, 0], [1, 0, 2], [3, 0, 2], [3, 1, 2], [3, 3, 2]];

/// Every step saves less for a byte than the one before it, and none is worse than another way of so many bytes.
#[test]
fn steps_save_most_first() {
    use BlockType::{F16, Q2_K, Q4_0, Q8_0};
    let linears = linears();
    let ladder = Ladder::new(&linears);
    let rungs = 0..=ladder.steps.len();
    let types: Vec<_> = rungs.map(|rung| types(&linears, &ladder.taken(rung))).collect();
    let expected = [
        [Q2_K, Q2_K, Q2_K],
        [Q4_0, Q2_K, Q2_K], // 0.4 a byte
        [Q4_0, Q2_K, Q8_0], // 0.3
        [F16, Q2_K, Q8_0],  // 4 of 60 bytes, more than 1 of 20 and then 3 of 40
        [F16, Q4_0, Q8_0],  // 0.01
        [F16, F16, Q8_0],   // 0.4 of 60 bytes
    ];
    assert_eq!(types, expected);
    let sums = &ladder.sums;
    for (found, expected) in sums.iter().zip([98.5, 94.5, 4.5, 0.5, 0.4, 0.0]) {
        assert!((found - expected).abs() < 1e-12, "{sums:?}");
    }
}

fn lowest(budget: f64, whole: impl Fn(f64) -> f64) -> Found {
    let linears = linears();
    let ladder = Ladder::new(&linears);
    let measure = |taken: &[usize]| Ok::<_, Infallible>(vec![0.0, whole(ladder.sum(taken))]);
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
            assert_eq!(found.taken, TAKEN[expected], "{budget}");
            assert!(found.worst() <= budget);
            assert!(found.measured <= MOST_MEASURED);
        }
    }
}

#[test]
fn where_nothing_is_within_the_budget_the_best_is_told() {
    let found = lowest(1.0, |sum| sum + 2.0);
    assert_eq!((&found.taken[..], found.worst()), (&TAKEN[5][..], 2.0));
    let single = [tried(&[(10, 3.0)])];
    let ladder = Ladder::new(&single);
    let found = ladder.lowest(1.0, |_| Ok::<_, Infallible>(vec![5.0])).unwrap();
    assert_eq!((&found.taken[..], found.worst(), found.measured), (&[0][..], 5.0, 1));
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
        let whole = |taken: &[usize]| slope * ladder.sum(taken) + 500.0;
        let found = ladder
            .lowest(budget, |taken| Ok::<_, Infallible>(vec![whole(taken)]))
            .unwrap();
        assert!(found.worst() <= budget && found.worst() > 0.95 * budget, "{found:?}");
    }
}

/// A linear that costs much in the whole and little alone: its step comes last, and what was taken before it was of no use.
#[test]
fn what_was_of_no_use_is_taken_back() {
    let linears: Vec<_> = (1..=8)
        .map(|i| tried(&[(10, f64::from(i)), (20, 0.1 * f64::from(i)), (40, 0.0)]))
        .collect();
    let ladder = Ladder::new(&linears);
    let whole = |taken: &[usize]| ladder.sum(taken) + if taken[0] == 0 { 100.0 } else { 0.0 };
    let measure = |taken: &[usize]| Ok::<_, Infallible>(vec![whole(taken)]);
    for (budget, expected) in [(36.0, [1, 0, 0, 0, 0, 0, 0, 0]), (20.0, [1, 0, 0, 0, 0, 0, 1, 1])] {
        let found = ladder.lowest(budget, measure).unwrap();
        let before = found.measured;
        assert!(
            found.taken.iter().all(|&taken| taken > 0),
            "the ladder alone finds a large file"
        );
        let found = ladder.trim(found, budget, measure).unwrap();
        let bytes = |taken: &[usize]| -> u64 { linears.iter().zip(taken).map(|(t, &at)| t[at].bytes).sum() };
        assert!(found.is_within(budget) && found.measured <= before + 10);
        assert!(bytes(&found.taken) <= bytes(&expected) + 10, "{:?}", found.taken);
    }
}
