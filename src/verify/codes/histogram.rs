//! How scales and biases are distributed.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use super::super::report::Histogram;

/// Counts of positive numbers in small parts of an octave, by the number of the part.
#[derive(Default)]
pub(super) struct Octaves(BTreeMap<i32, u64>);

impl Octaves {
    const PER_OCTAVE: f64 = 24.0;

    pub fn count(&mut self, value: f32) {
        if value > 0.0 {
            let bin = (f64::from(value).log2() * Self::PER_OCTAVE).floor() as i32;
            *self.0.entry(bin).or_default() += 1;
        }
    }

    pub fn histogram(&self) -> Histogram {
        let first = self.0.first_key_value().map_or(0, |(bin, _)| *bin);
        let last = self.0.last_key_value().map_or(0, |(bin, _)| *bin);
        let edge = |bin: i32| (f64::from(bin) / Self::PER_OCTAVE).exp2();
        Histogram {
            logarithmic: true,
            from: edge(first),
            to: edge(last + 1),
            counts: (first..=last)
                .map(|bin| self.0.get(&bin).copied().unwrap_or(0))
                .collect(),
        }
    }
}

impl AddAssign for Octaves {
    fn add_assign(&mut self, other: Self) {
        for (bin, count) in other.0 {
            *self.0.entry(bin).or_default() += count;
        }
    }
}

/// Counts in equal bins around 0.
pub(super) fn around_zero(values: &[f32]) -> Histogram {
    const BINS: usize = 61;
    let largest = values.iter().fold(0f64, |max, &v| max.max(f64::from(v).abs()));
    let mut counts = vec![0; BINS];
    for &value in values {
        let place = if largest > 0.0 { f64::from(value) / largest } else { 0.0 };
        let bin = ((place + 1.0) / 2.0 * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    Histogram {
        logarithmic: false,
        from: -largest,
        to: largest,
        counts,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_hold_every_value() {
        let found = around_zero(&[-1.0, 0.0, 0.25, 1.0]);
        assert_eq!(found.counts.iter().sum::<u64>(), 4);
        assert_eq!((found.counts[0], found.counts[30], found.counts[60]), (1, 1, 1));
        let mut octaves = Octaves::default();
        [0.5, 0.5, 1.99].into_iter().for_each(|scale| octaves.count(scale));
        let found = octaves.histogram();
        assert_eq!((found.from, found.to), (0.5, 2.0));
        assert_eq!((found.counts[0], found.counts.len()), (2, 48));
        assert_eq!(found.counts.iter().sum::<u64>(), 3);
    }
}
