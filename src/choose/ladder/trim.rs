//! A file smaller than a rung. The ladder ranks steps by what a linear costs alone: one that costs far more in the whole
//! comes late, behind steps that were of no use.

use super::{Found, Ladder, cost};

/// Whole files that are measured at most.
const MOST_MEASURED: usize = 8;

/// A linear in its next smaller type.
#[derive(Clone, Copy, PartialEq)]
struct Down {
    linear: usize,
    to: usize,
    /// Bytes saved.
    saves: u64,
    /// KLD more, as the linear alone and the whole file so far let expect.
    adds: f64,
}

impl Down {
    /// Bytes saved for a nat more.
    fn slope(&self) -> f64 {
        self.saves as f64 / self.adds
    }
}

impl Ladder<'_> {
    /// `found`, a file within the budget, with smaller types as long as it stays within: at once all that are expected to
    /// fit, half as many where they did not. `measure` is that of [`lowest`](Self::lowest).
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn trim<E>(
        &self,
        mut found: Found,
        budget: f64,
        mut measure: impl FnMut(&[usize]) -> Result<Vec<f64>, E>,
    ) -> Result<Found, E> {
        let (mut refused, mut at_once) = (vec![], usize::MAX);
        for _ in 0..MOST_MEASURED {
            let mut downs = self.downs(&found, budget, &refused);
            downs.truncate(at_once);
            if downs.is_empty() || found.uses_all(budget) {
                break;
            }
            let mut taken = found.taken.clone();
            for down in &downs {
                taken[down.linear] = down.to;
            }
            let kld = measure(&taken)?;
            let measured = found.measured + 1;
            let smaller = Found { taken, kld, measured };
            if smaller.is_within(budget) {
                (found, at_once) = (smaller, at_once.saturating_mul(2));
                continue;
            }
            found.measured = measured;
            match downs[..] {
                [down] => refused.push((down.linear, down.to)),
                _ => at_once = downs.len() / 2,
            }
        }
        Ok(found)
    }

    /// What may be smaller, together within the budget by what is expected; first what saves most bytes for a nat.
    fn downs(&self, found: &Found, budget: f64, refused: &[(usize, usize)]) -> Vec<Down> {
        let (worst, sum) = (found.worst(), self.sum(&found.taken));
        let ratio = if sum > 0.0 { worst / sum } else { 1.0 };
        let downs = found.taken.iter().enumerate();
        let mut downs: Vec<_> = downs.filter_map(|(linear, &at)| self.down(linear, at, ratio)).collect();
        downs.retain(|down| !refused.contains(&(down.linear, down.to)));
        downs.sort_by(|a, b| b.slope().total_cmp(&a.slope()));
        let mut left = budget - worst;
        downs.retain(|down| {
            let fits = down.adds <= left;
            left -= if fits { down.adds } else { 0.0 };
            fits
        });
        downs
    }

    fn down(&self, linear: usize, at: usize, ratio: f64) -> Option<Down> {
        let tried = &self.tried[linear];
        let smaller = (0..tried.len()).filter(|&to| tried[to].bytes < tried[at].bytes);
        let to = smaller.max_by_key(|&to| tried[to].bytes)?;
        let adds = ratio * (cost(&tried[to]) - cost(&tried[at]));
        Some(Down {
            linear,
            to,
            saves: tried[at].bytes - tried[to].bytes,
            adds: adds.max(0.0),
        })
    }
}
