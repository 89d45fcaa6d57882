//! A row of ternary weights, or of four levels: what every source of rows gives, and all that the encoder takes.

use formats::block::BlockType;

/// What the codes of a matrix are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Levels {
    /// -1, 0 and 1: ternary.
    #[default]
    Three,
    /// -3, -1, 1 and 3, as SEQ trains them.
    Four,
}

impl Levels {
    /// Whether blocks of `ty` hold such codes.
    pub fn fit(self, ty: BlockType) -> bool {
        use BlockType::{BF16, F16, F32, Q2_K, Q4_0, Q8_0};
        self == Self::Three || matches!(ty, Q2_K | Q4_0 | Q8_0 | F16 | BF16 | F32)
    }
}

/// The codes and scales of one row: the weight of column c is `codes[c]` times the scale of the run that holds c.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TernaryRow {
    /// Of which `levels` says what they are. (columns,)
    pub codes: Vec<i8>,
    /// What the codes are.
    pub levels: Levels,
    /// Where the runs of columns that share a scale end: the column after the last of each. They rise, and the last is
    /// the number of columns. (runs,)
    pub ends: Vec<usize>,
    /// The scale of each run, not negative. (runs,)
    pub scales: Vec<f32>,
    /// Sum of the squared differences between the weights and codes times scales: 0 but where four levels were rounded
    /// each by itself.
    pub error: f64,
}
