//! What a product takes besides reading its weights.

use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use super::products::Outcome;

/// `seconds = fixed + bytes / (rate * 1e9)`
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Line {
    /// Seconds, however few the bytes.
    #[serde(rename = "fixed_seconds")]
    pub fixed: f64,
    /// GB of weights a second.
    #[serde(rename = "read_gb_per_second")]
    pub rate: f64,
}

impl Line {
    /// The line with the least squares through points (bytes, seconds); None where they do not show one: fewer than two
    /// sizes, or no more time for more bytes.
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let sum = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>();
        let count = points.len() as f64;
        let (bytes, seconds) = (sum(&|point| point.0) / count, sum(&|point| point.1) / count);
        let variance = sum(&|point| (point.0 - bytes).powi(2));
        let slope = sum(&|point| (point.0 - bytes) * (point.1 - seconds)) / variance;
        (slope > 0.0 && slope.is_finite()).then(|| Self {
            fixed: seconds - slope * bytes,
            rate: 1e-9 / slope,
        })
    }
}

/// The products of one type with one token, over all shapes that were measured.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TokenCost {
    /// Block type, as in the file.
    #[serde(rename = "type")]
    pub ty: String,
    /// Threads on both sides.
    pub threads: usize,
    /// Our products, by the bytes of packed weights.
    pub ours: Line,
    /// ggml's products, by the bytes in the file; absent without llama.cpp, and where times do not grow with bytes.
    pub ggml: Option<Line>,
}

impl TokenCost {
    /// Of each type and number of threads that was measured with several sizes, one token and weights from memory.
    pub fn of(outcomes: &[Outcome]) -> Vec<Self> {
        let one_token = || outcomes.iter().filter(|o| o.tokens == 1 && !o.hot);
        let mut cases: Vec<_> = one_token().map(|o| (&o.ty, o.threads)).collect();
        cases.sort();
        cases.dedup();
        let cost = |(ty, threads): (&String, usize)| {
            let of_case = || one_token().filter(|o| (&o.ty, o.threads) == (ty, threads));
            let ours: Vec<_> = of_case().map(|o| (o.bytes as f64, o.ours.median)).collect();
            let ggml = of_case().filter_map(|o| Some((stored_bytes(o)?, o.ggml?.median)));
            Some(Self {
                ty: ty.clone(),
                threads,
                ours: Line::through(&ours)?,
                ggml: Line::through(&ggml.collect::<Vec<_>>()),
            })
        };
        cases.into_iter().filter_map(cost).collect()
    }
}

/// Bytes of the weights in the file.
fn stored_bytes(outcome: &Outcome) -> Option<f64> {
    let row = BlockType::from_name(&outcome.ty)?.row_bytes(outcome.columns)?;
    Some((row * outcome.rows) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_through_points_by_hand() {
        // 2 s and 4 GB a second; the middle of the last two points is on it.
        let line = Line::through(&[(4e9, 3.0), (8e9, 3.5), (8e9, 4.5)]).unwrap();
        assert!(
            (line.fixed - 2.0).abs() < 1e-12 && (line.rate - 4.0).abs() < 1e-12,
            "{line:?}"
        );
        for none in [
            &[][..],
            &[(4.0, 3.0)],
            &[(4.0, 3.0), (4.0, 5.0)],
            &[(4.0, 3.0), (8.0, 2.0)],
        ] {
            assert_eq!(Line::through(none), None, "{none:?}");
        }
    }
}
