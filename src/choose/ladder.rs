//! Which files to consider: every linear in its smallest type, then step by step a larger type for the linear where a byte
//! saves most KLD. And which of these files is the smallest within a budget.

mod trim;

use super::Tried;

/// Whole files that are measured at most.
const MOST_MEASURED: usize = 10;
/// A file that leaves no more of the budget than this is small enough.
const SLACK: f64 = 0.02;

/// The files from the smallest to the best; one is a rung.
pub struct Ladder<'t> {
    /// Of each linear, smallest first.
    tried: &'t [Vec<Tried>],
    /// The first type of each linear.
    first: Vec<usize>,
    /// (linear, type) that each rung but the first adds.
    steps: Vec<(usize, usize)>,
    /// What the linears of each rung cost alone, added up.
    sums: Vec<f64>,
}

/// A file within the budget, or else the best.
#[derive(Debug, PartialEq)]
pub struct Found {
    /// Which of its types each linear takes.
    pub taken: Vec<usize>,
    /// Its KLD on each backend, up to one where it is over the budget.
    pub kld: Vec<f64>,
    /// How many files were measured.
    pub measured: usize,
}

impl Found {
    /// Its KLD on the worst backend; NaN where it is NaN on any.
    pub fn worst(&self) -> f64 {
        let worse = |a: f64, b: f64| if a.is_nan() || a > b { a } else { b };
        self.kld.iter().copied().fold(0.0, worse)
    }

    /// Whether its KLD is no more than `budget`: NaN is none that is.
    pub fn is_within(&self, budget: f64) -> bool {
        self.worst() <= budget
    }

    fn uses_all(&self, budget: f64) -> bool {
        self.worst() >= (1.0 - SLACK) * budget
    }
}

fn cost(tried: &Tried) -> f64 {
    tried.kld.unwrap_or(0.0)
}

impl<'t> Ladder<'t> {
    /// `tried`: the types of each linear, at least one.
    pub fn new(tried: &'t [Vec<Tried>]) -> Self {
        let smallest = |tried: &Vec<Tried>| (0..tried.len()).min_by_key(|&index| tried[index].bytes);
        let first: Vec<_> = tried.iter().map(|tried| smallest(tried).unwrap_or(0)).collect();
        let mut steps = vec![];
        for (linear, (tried, &first)) in tried.iter().zip(&first).enumerate() {
            let mut at = first;
            while let Some((next, saved)) = steepest(tried, at) {
                steps.push((saved, (linear, next)));
                at = next;
            }
        }
        // The steps of one linear become ever less steep, so that they stay in their order.
        steps.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        let steps: Vec<_> = steps.into_iter().map(|(_, step)| step).collect();
        let mut ladder = Self {
            tried,
            first,
            steps,
            sums: vec![],
        };
        let rungs = 0..=ladder.steps.len();
        ladder.sums = rungs.map(|rung| ladder.sum(&ladder.taken(rung))).collect();
        ladder
    }

    /// What the linears cost alone, added up.
    pub fn sum(&self, taken: &[usize]) -> f64 {
        let taken = taken.iter().zip(self.tried);
        taken.map(|(&taken, tried)| cost(&tried[taken])).sum()
    }

    /// Which of its types each linear takes.
    fn taken(&self, rung: usize) -> Vec<usize> {
        let mut taken = self.first.clone();
        for &(linear, ty) in &self.steps[..rung] {
            taken[linear] = ty;
        }
        taken
    }

    /// The lowest rung whose file is within the budget, as far as a bounded number of measurements tells; the best file
    /// where none is. `measure`: the KLD of the file where each linear takes such a type, on each backend up to one where it
    /// is over the budget.
    ///
    /// The first guess takes the sum of the parts for the whole, each further one what the whole was in relation to the
    /// sum the last time; where guesses come close from one side only, the middle is tried in between.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn lowest<E>(&self, budget: f64, mut measure: impl FnMut(&[usize]) -> Result<Vec<f64>, E>) -> Result<Found, E> {
        let best = self.steps.len();
        let (mut least, mut lowest, mut ratio) = (0usize, None::<(usize, Found)>, 1.0);
        for measured in 1..=MOST_MEASURED {
            let most = lowest.as_ref().map_or(best, |(rung, _)| rung - 1);
            let guess = self.sums.iter().position(|sum| ratio * sum <= budget);
            let rung = match lowest {
                // The last measurement but the best one is the last chance to find any.
                None if measured == MOST_MEASURED => best,
                Some(_) if measured % 2 == 0 => least.midpoint(most),
                _ => guess.unwrap_or(best).clamp(least, most),
            };
            let taken = self.taken(rung);
            let kld = measure(&taken)?;
            let file = Found { taken, kld, measured };
            if self.sums[rung] > 0.0 {
                ratio = file.worst() / self.sums[rung];
            }
            let uses_all = file.uses_all(budget);
            if file.is_within(budget) || rung == best {
                lowest = Some((rung, file));
            } else {
                least = rung + 1;
            }
            if let Some((lowest, found)) = &mut lowest {
                found.measured = measured;
                if least >= *lowest || (*lowest == rung && uses_all) {
                    break;
                }
            }
        }
        let (_, found) = lowest.expect("the best file is measured at last");
        Ok(found)
    }
}

/// The type that saves most KLD for a byte more than `at` has, and how much; of equal ones the largest.
fn steepest(tried: &[Tried], at: usize) -> Option<(usize, f64)> {
    let saved = |to: &Tried| (cost(&tried[at]) - cost(to)) / (to.bytes as f64 - tried[at].bytes as f64);
    let larger = (0..tried.len()).filter(|&to| tried[to].bytes > tried[at].bytes);
    let steps = larger.map(|to| (to, saved(&tried[to])));
    let steepest =
        steps.max_by(|(a, left), (b, right)| left.total_cmp(right).then(tried[*a].bytes.cmp(&tried[*b].bytes)));
    steepest.filter(|(_, saved)| *saved > 0.0)
}

#[cfg(test)]
mod tests;
