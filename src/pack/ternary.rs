//! A row of ternary weights: what every source of rows gives, and all that the encoder takes.

/// The ternary form of one row: the weight of column c is `codes[c]` times the scale of the run that holds c.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TernaryRow {
    /// -1, 0 or 1. (columns,)
    pub codes: Vec<i8>,
    /// Where the runs of columns that share a scale end: the column after the last of each. They rise, and the last is
    /// the number of columns. (runs,)
    pub ends: Vec<usize>,
    /// The scale of each run, not negative. (runs,)
    pub scales: Vec<f32>,
}

impl TernaryRow {
    /// Where a scale is 0 so is every weight, whatever its code: let that be 0, too.
    #[inline(always)]
    pub fn clear_codes_without_scale(&mut self) {
        let mut start = 0;
        for (&end, &scale) in self.ends.iter().zip(&self.scales) {
            if scale == 0.0 {
                self.codes[start..end].fill(0);
            }
            start = end;
        }
    }
}
