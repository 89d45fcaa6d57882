//! What the passes and engines of level 4 predict along the text, and what follows from it.

use super::super::Options;
use super::super::distance::{Allowed, Distance};
use super::super::report::{Check, CheckId, EngineFacts, Limit, TextFacts, Unit};
use crate::engine::text::Windows;
use crate::engine::{EngineError, EngineName};
use crate::metrics::{self, Predictions};

/// KLD and NMSE that f32 arithmetic may cost, where nothing else does: it costs 1e-12 where it was measured.
const SINGLE_PRECISION: f64 = 1e-8;
/// The same for an engine, with the functions that it computes in f32 or by tables.
const ENGINE: f64 = 1e-5;

/// What the passes predict of some tokens.
pub struct Part<'a> {
    pub next: &'a [u32],
    pub oracle: Option<&'a Predictions<'a>>,
    pub file: &'a Predictions<'a>,
}

/// What was found along the text.
pub struct Found {
    oracle: Vec<f64>,
    /// Of the checkpoint with its losses turned round, from the oracle.
    pub turned: Distance,
    file: Run,
    /// Of the file with activations rounded, from the file.
    pub rounded: Distance,
    pub engines: Vec<Run>,
    /// Why the witness is no longer among the engines.
    pub lost: Option<EngineError>,
}

/// What one pass or engine gave.
#[derive(Default)]
pub struct Run {
    surprisals: Vec<f64>,
    from_oracle: Distance,
    from_file: Distance,
}

impl Found {
    pub fn new(engines: usize) -> Self {
        Self {
            oracle: vec![],
            turned: Distance::default(),
            file: Run::default(),
            rounded: Distance::default(),
            engines: (0..engines).map(|_| Run::default()).collect(),
            lost: None,
        }
    }

    pub fn add<'a>(&mut self, part: &Part, engines: impl Iterator<Item = Predictions<'a>>) {
        self.file.surprisals.extend(part.file.surprisals(part.next));
        if let Some(oracle) = part.oracle {
            self.oracle.extend(oracle.surprisals(part.next));
            self.file.from_oracle.add(oracle, part.file);
        }
        for (run, engine) in self.engines.iter_mut().zip(engines) {
            run.surprisals.extend(engine.surprisals(part.next));
            run.from_file.add(part.file, &engine);
            if let Some(oracle) = part.oracle {
                run.from_oracle.add(oracle, &engine);
            }
        }
    }

    fn has_oracle(&self) -> bool {
        !self.oracle.is_empty()
    }

    /// The distance of a run from the first pass of the chain.
    fn distance_of<'a>(&self, run: &'a Run) -> &'a Distance {
        match self.has_oracle() {
            true => &run.from_oracle,
            false => &run.from_file,
        }
    }

    pub fn checks(&self, engines: &[EngineName], max_kld: Option<f64>) -> Vec<Check> {
        let mut checks = vec![];
        if self.has_oracle() {
            let allowed = Allowed {
                example: &self.turned,
                floor: SINGLE_PRECISION,
                origins: [
                    "3 x what such losses cost this model in random directions, 3 sigma",
                    "25 x the worst token of the same",
                    "3 x that of the same, 3 sigma",
                ],
            };
            checks.extend(allowed.checks("file", "oracle", &self.file.from_oracle));
        }
        let allowed = Allowed {
            example: &self.rounded,
            floor: ENGINE,
            origins: [
                "3 x what rounding activations costs this model, 3 sigma",
                "25 x the worst token of the same",
                "3 x that of the same, 3 sigma",
            ],
        };
        for (name, run) in engines.iter().zip(&self.engines) {
            checks.extend(allowed.checks(name.short, "file", &run.from_file));
        }
        if let Some(at_most) = max_kld {
            let pairs = engines.iter().zip(&self.engines);
            checks.extend(pairs.map(|(name, run)| self.max_kld(name.short, run, at_most)));
        }
        checks
    }

    /// The limit that the user gives.
    fn max_kld(&self, engine: &'static str, run: &Run, at_most: f64) -> Check {
        let reference = if self.has_oracle() { "oracle" } else { "file" };
        let found = metrics::mean(&self.distance_of(run).kld);
        let check = Check::new(
            CheckId::MaxKld,
            found,
            Unit::NatsPerToken,
            Limit { at_most },
            "--max-kld",
        );
        check.of_engine(engine, format!("{engine}: mean KLD from {reference}"))
    }

    pub fn facts(self, engines: Vec<EngineName>, text: &Windows, options: &Options) -> TextFacts {
        let file = EngineName::of_precision("file", "exact activations");
        let oracle = self.has_oracle();
        let reference = match oracle {
            true => EngineFacts::reference(EngineName::of_precision("oracle", "f64"), &self.oracle),
            false => EngineFacts::reference(file.clone(), &self.file.surprisals),
        };
        let file = oracle.then_some((file, &self.file));
        let tested = file.into_iter().chain(engines.into_iter().zip(&self.engines));
        TextFacts {
            source: options.text.source.clone(),
            tokens: text.predictions(),
            window: text.window,
            reference,
            oracle,
            storing: oracle.then(|| metrics::mean(&self.turned.kld)),
            rounding: metrics::mean(&self.rounded.kld),
            tested: tested
                .map(|(name, run)| {
                    let distance = self.distance_of(run);
                    EngineFacts {
                        name,
                        perplexity: metrics::perplexity(&run.surprisals),
                        top1: Some(distance.top1()),
                        nmse: Some(distance.nmse()),
                        kld: distance.kld.clone(),
                    }
                })
                .collect(),
        }
    }
}
