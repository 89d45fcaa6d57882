//! The passes that the engines are compared with.

use std::ops::Range;

use super::super::VerifyError;
use super::super::references::{Rounded, Stored, Turned};
use super::found::{Found, Part};
use super::work::Work;
use crate::engine::oracle::{Oracle, Precision, Sequence, Weights};
use crate::engine::text::Window;
use crate::engine::{Engine, EngineError};
use crate::metrics::Predictions;

/// Tokens whose logits are held at a time.
const PART: usize = 128;

/// The reference passes, in the order of the chain.
pub struct Passes<'a> {
    checkpoint: Option<FromCheckpoint<'a>>,
    /// The file, which rounds as our engine does.
    file: Oracle<'a, Stored<'a>>,
    /// The same that rounds them as llama.cpp does, where that is another way and llama.cpp is there.
    as_llama_cpp: Option<Oracle<'a, Stored<'a>>>,
}

/// Those that need the checkpoint.
struct FromCheckpoint<'a> {
    oracle: Oracle<'a, dyn Weights + 'a>,
    turned: Oracle<'a, Turned<'a>>,
}

/// What the passes make of some windows before the head, one after another: (tokens, hidden) each.
struct States {
    /// Empty without a checkpoint.
    oracle: Vec<f64>,
    /// Of the first half of the windows.
    turned: Vec<f64>,
    file: Vec<f64>,
    /// The same rounded, in each way.
    rounded: Vec<Vec<f64>>,
}

impl<'a> Passes<'a> {
    /// `stored` rounds as our engine does; `as_llama_cpp` as llama.cpp, where that is another way. `turned`: of
    /// the checkpoint, where there is one of the file's shape.
    pub fn new(stored: &'a Stored<'a>, as_llama_cpp: Option<&'a Stored<'a>>, turned: Option<&'a Turned<'a>>) -> Self {
        let single = |weights| Oracle {
            weights,
            precision: Precision::Single,
        };
        Self {
            checkpoint: turned.map(|turned| FromCheckpoint {
                oracle: Oracle {
                    weights: turned.latent,
                    precision: Precision::Double,
                },
                turned: Oracle {
                    weights: turned,
                    precision: Precision::Single,
                },
            }),
            file: single(stored),
            as_llama_cpp: as_llama_cpp.map(single),
        }
    }

    /// The ways in which numbers are rounded, that of our engine first.
    pub fn rounded(&self) -> Vec<Rounded> {
        let files = [Some(&self.file), self.as_llama_cpp.as_ref()];
        files.into_iter().flatten().map(|file| file.weights.rounded()).collect()
    }

    /// How long all of them take, in passes in f32.
    pub fn cost(&self) -> f64 {
        let of_checkpoint = self.checkpoint.as_ref().map_or(0.0, |checkpoint| {
            cost(checkpoint.oracle.precision) + 0.5 * cost(checkpoint.turned.precision)
        });
        let rounded = self.rounded().len() as f64;
        (1.0 + rounded) * cost(self.file.precision) + of_checkpoint
    }

    /// Run everything on some windows.
    pub fn run(
        &self,
        batch: &[Window],
        engines: &mut Vec<Box<dyn Engine + '_>>,
        work: &Work,
        found: &mut Found,
    ) -> Result<(), VerifyError> {
        let states = self.states(batch, work)?;
        let (hidden, vocab) = (work.hyper.dims.hidden, work.hyper.dims.vocab);
        let mut first = 0;
        for window in batch {
            let logits = logits_of_all(engines, window, work, found)?;
            for (index, next) in window.next.chunks(PART).enumerate() {
                let start = index * PART;
                let part = (first + start) * hidden..(first + start + next.len()) * hidden;
                let logits = logits
                    .iter()
                    .map(|logits| &logits[start * vocab..][..next.len() * vocab]);
                self.compare(
                    &states,
                    part,
                    next,
                    logits.map(|logits| Predictions::new(logits, vocab)),
                    found,
                )?;
                work.advance("comparing", next.len() as f64 * work.head * work.passes);
            }
            first += window.tokens.len();
        }
        Ok(())
    }

    fn states(&self, batch: &[Window], work: &Work) -> Result<States, EngineError> {
        let sequences = |rounded| {
            batch.iter().map(move |window| Sequence {
                tokens: &window.tokens,
                rounded,
            })
        };
        let exact: Vec<_> = sequences(false).collect();
        let both: Vec<_> = sequences(false).chain(sequences(true)).collect();
        let mut file = states(&self.file, &both, "the file", work)?;
        let mut rounded = vec![file.split_off(file.len() / 2)];
        if let Some(file) = &self.as_llama_cpp {
            rounded.push(states(
                file,
                &both[batch.len()..],
                "the file as llama.cpp rounds",
                work,
            )?);
        }
        let (mut oracle, mut turned) = (vec![], vec![]);
        if let Some(checkpoint) = &self.checkpoint {
            oracle = states(&checkpoint.oracle, &exact, "the oracle", work)?;
            let some = &exact[..exact.len().div_ceil(2)]; // chance is the same everywhere
            turned = states(&checkpoint.turned, some, "what storing may cost", work)?;
        }
        Ok(States {
            oracle,
            turned,
            file,
            rounded,
        })
    }

    /// Compare the predictions of some tokens, whose states are at `part`, and which `next` follow.
    fn compare<'b>(
        &self,
        states: &States,
        part: Range<usize>,
        next: &[u32],
        engines: impl Iterator<Item = Predictions<'b>>,
        found: &mut Found,
    ) -> Result<(), EngineError> {
        let vocab = self.file.weights.hyper().dims.vocab;
        let expected = match &self.checkpoint {
            Some(checkpoint) => Some(checkpoint.oracle.logits_of(&states.oracle[part.clone()], &[])?),
            None => None,
        };
        let oracle = expected.as_deref().map(|logits| Predictions::new(logits, vocab));
        if let (Some(checkpoint), Some(oracle)) = (&self.checkpoint, &oracle)
            && let Some(states) = states.turned.get(part.clone())
        {
            let turned = checkpoint.turned.logits_of(states, &[])?;
            found.turned.add(oracle, &Predictions::new(&turned, vocab));
        }
        let of_both = self
            .file
            .logits_of(&states.file[part.clone()], &states.rounded[0][part.clone()])?;
        let (file, rounded) = of_both.split_at(of_both.len() / 2);
        let as_llama_cpp = match &self.as_llama_cpp {
            Some(file) => file.logits_of(&[], &states.rounded[1][part])?,
            None => vec![],
        };
        let rounded = [rounded, &as_llama_cpp].into_iter().filter(|logits| !logits.is_empty());
        let part = Part {
            next,
            oracle: oracle.as_ref(),
            file: &Predictions::new(file, vocab),
            rounded: &rounded
                .map(|logits| Predictions::new(logits, vocab))
                .collect::<Vec<_>>(),
        };
        found.add(&part, engines);
        Ok(())
    }
}

/// Logits of each engine. A witness that fails is taken out, with what was found of it, and why is kept.
fn logits_of_all(
    engines: &mut Vec<Box<dyn Engine + '_>>,
    window: &Window,
    work: &Work,
    found: &mut Found,
) -> Result<Vec<Vec<f32>>, VerifyError> {
    let mut logits = vec![];
    while let Some(engine) = engines.get_mut(logits.len()) {
        match engine.logits(&window.tokens) {
            Ok(of_engine) => logits.push(of_engine),
            Err(error @ EngineError::Witness(_)) => {
                engines.remove(logits.len());
                found.engines.remove(logits.len());
                found.lost = Some(error);
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let units = window.tokens.len() as f64 * work.model() * Work::ENGINE;
        work.advance(engine.name().short, units);
    }
    Ok(logits)
}

fn states<W: Weights + ?Sized>(
    pass: &Oracle<W>,
    sequences: &[Sequence],
    name: &str,
    work: &Work,
) -> Result<Vec<f64>, EngineError> {
    let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    let units = tokens as f64 * cost(pass.precision);
    let layers = work.hyper.dims.layers;
    work.advance(&format!("{name}, layer 1 of {layers}"), 0.0);
    pass.states(sequences, &|layer| {
        let next = (layer + 2).min(layers);
        work.advance(&format!("{name}, layer {next} of {layers}"), units);
    })
}

/// How long a product takes, in those of f32.
fn cost(precision: Precision) -> f64 {
    match precision {
        Precision::Single => 1.0,
        Precision::Double => 2.0,
    }
}
