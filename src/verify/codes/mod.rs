//! Level 2, the linears: every code, every scale and every bias of the file against the checkpoint.
//!
//! A stored scale that stands for one trained scale has to be its nearest f16. One that stands for several has to be the
//! least-squares fit (each active weight counting by the square of the preceding norm's weight), to half a step of f16; how
//! far it is from the trained scales is the NMSE of the matrix, and has a limit of its own.

mod biases;
mod diagnosis;
mod fit;
mod histogram;
mod linear;
mod row;
mod scales;

use std::ops::AddAssign;

use formats::gguf::{File, Value};

use super::report::{Check, CheckId, Histogram, Limit, LinearFacts, Tally, Unit};
use super::{Progress, VerifyError};
use crate::blueprint::Linear;
use crate::metrics;
use crate::model::Checkpoint;
use histogram::Octaves;
use linear::Compared;

/// What was found of the linears of a file.
pub(super) struct Linears {
    pub checks: Vec<Check>,
    pub facts: Vec<LinearFacts>,
    pub scales: Histogram,
    pub biases: Histogram,
}

/// Compare all linears with the checkpoint. `max_nmse`: what storing the worst of them may have added.
pub(super) fn check(
    file: &File,
    checkpoint: &Checkpoint,
    max_nmse: f64,
    progress: &Progress,
) -> Result<Linears, VerifyError> {
    let mut all = All::default();
    let ternary = |linear: &Linear| checkpoint.is_ternary(*linear);
    let linears: Vec<_> = checkpoint.config.linears().filter(ternary).collect();
    for (done, linear) in linears.iter().enumerate() {
        let share = done as f64 / linears.len() as f64;
        progress(&format!("codes: {}", linear.gguf_name()), Some(share));
        all.add(linear::compare(file, checkpoint, *linear)?);
    }
    Ok(Linears {
        checks: all.checks(file, max_nmse),
        scales: all.octaves.histogram(),
        biases: histogram::around_zero(&all.biases),
        facts: all.facts,
    })
}

/// Where things differ: of a row the first place of each kind, of a linear the first few.
#[derive(Default)]
struct Places {
    codes: Vec<String>,
    scales: Vec<String>,
    merged: Vec<String>,
    biases: Vec<String>,
}

impl AddAssign for Places {
    fn add_assign(&mut self, other: Self) {
        self.codes.extend(other.codes);
        self.scales.extend(other.scales);
        self.merged.extend(other.merged);
        self.biases.extend(other.biases);
    }
}

/// The linears compared so far.
#[derive(Default)]
struct All {
    facts: Vec<LinearFacts>,
    places: Places,
    /// Every bias that the checkpoint gives.
    biases: Vec<f32>,
    octaves: Octaves,
}

const FORMULA: &str = "the formula of training, exactly";
const NEAREST: &str = "the trained scale to nearest in f16";
const LEAST_SQUARES: &str = "the least-squares fit, to half a step of f16";
const BIAS: &str = "lambda * w over the dead zone, where training has one, and the layer's own, in F32 bit for bit";

impl All {
    fn add(&mut self, linear: Compared) {
        self.facts.push(linear.facts);
        self.places += linear.places;
        self.biases.extend(linear.biases);
        self.octaves += linear.octaves;
    }

    fn checks(&mut self, file: &File, max_nmse: f64) -> Vec<Check> {
        let sum: Tally = self.facts.iter().map(|facts| facts.tally).sum();
        let places = std::mem::take(&mut self.places);
        let ours = file.get("tqconv.version").is_some();
        let differ = |id, wrong, of, things, origin, places| {
            Check::none_differ(id, wrong, of, things, origin).with_details(places)
        };
        let mut checks = vec![differ(
            CheckId::Codes,
            sum.codes_wrong,
            sum.weights,
            "codes",
            FORMULA,
            places.codes,
        )];
        if sum.scales > 0 || sum.merged == 0 {
            let (wrong, of) = (sum.scales_wrong, sum.scales);
            checks.push(differ(CheckId::Scales, wrong, of, "scales", NEAREST, places.scales));
        }
        if ours && sum.merged > 0 {
            let (wrong, of) = (sum.merged_wrong, sum.merged);
            let id = CheckId::MergedScales;
            checks.push(differ(id, wrong, of, "scales", LEAST_SQUARES, places.merged));
        }
        checks.push(worst_nmse(&self.facts, max_nmse));
        if let Some(Value::F64(recorded)) = file.get("tqconv.weight_nmse") {
            checks.push(recorded_nmse(*recorded, sum.loss.value()));
        }
        let (wrong, of) = (sum.biases_wrong, sum.rows);
        checks.push(differ(CheckId::Biases, wrong, of, "biases", BIAS, places.biases));
        checks
    }
}

fn worst_nmse(facts: &[LinearFacts], max_nmse: f64) -> Check {
    const ORIGIN: &str = "--max-nmse, for the worst linear";
    let worst = metrics::worst(facts.iter().map(|facts| (facts, facts.tally.loss.value())));
    let found = worst.as_ref().map_or(0.0, |(_, nmse)| *nmse);
    let check = Check::new(
        CheckId::WeightNmse,
        found,
        Unit::Ratio,
        Limit { at_most: max_nmse },
        ORIGIN,
    );
    match worst {
        Some((worst, nmse)) if nmse != 0.0 => check.named(format!("weight NMSE ({})", worst.name)),
        _ => check,
    }
}

/// The file says what it lost. The sums are taken in another order, so only rounding may make them differ.
fn recorded_nmse(recorded: f64, found: f64) -> Check {
    let distance = if recorded == found {
        0.0
    } else {
        (found - recorded).abs() / recorded.abs()
    };
    let check = Check::new(
        CheckId::RecordedNmse,
        distance,
        Unit::Ratio,
        Limit { at_most: 1e-9 },
        "key tqconv.weight_nmse; f64 sums in another order",
    );
    if check.pass {
        return check;
    }
    check.with_details(vec![format!("the file records {recorded:e}, it holds {found:e}")])
}
