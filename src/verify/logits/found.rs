//! What the passes and engines of level 4 predict along the text, and what follows from it.

use super::super::Options;
use super::super::distance::{Allowed, Distance};
use super::super::references::Rounded;
use super::super::report::{Check, CheckId, EngineFacts, Limit, LinkCause, LinkFacts, TextFacts, Unit};
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
    /// The file, rounded in each way.
    pub rounded: &'a [Predictions<'a>],
}

/// What was found along the text.
pub struct Found {
    oracle: Vec<f64>,
    /// Of the checkpoint with its losses turned round, from the oracle.
    pub turned: Distance,
    /// The file, from the oracle.
    file: Link,
    /// The file rounded in each way, from the file.
    rounded: Vec<(Rounded, Link)>,
    pub engines: Vec<Run>,
    /// Why the witness is no longer among the engines.
    pub lost: Option<EngineError>,
}

/// What one pass or engine gave, from what comes before it in the chain.
#[derive(Default)]
struct Link {
    surprisals: Vec<f64>,
    distance: Distance,
}

impl Link {
    fn add(&mut self, from: Option<&Predictions>, to: &Predictions, next: &[u32]) {
        self.surprisals.extend(to.surprisals(next));
        if let Some(from) = from {
            self.distance.add(from, to);
        }
    }

    fn facts(&self, link: LinkCause, to: &'static str, rounded: Option<Rounded>) -> LinkFacts {
        LinkFacts {
            link,
            to,
            activations: rounded.map(|rounded| rounded.activations.name()),
            cache_type_k: rounded.map(|rounded| rounded.cache.keys.name()),
            cache_type_v: rounded.map(|rounded| rounded.cache.values.name()),
            perplexity: metrics::perplexity(&self.surprisals),
            mean_kld: metrics::mean(&self.distance.kld),
            top1: self.distance.top1(),
        }
    }
}

/// What one engine gave.
pub struct Run {
    /// Which of the ways to round is its own.
    rounding: usize,
    /// From the file rounded in that way.
    from_rounded: Link,
    from_file: Distance,
    from_oracle: Distance,
}

impl Found {
    /// `rounded`: the ways to round, that of the first engine first and those of the others last.
    pub fn new(rounded: Vec<Rounded>, engines: usize) -> Self {
        let last = rounded.len() - 1;
        let run = |index: usize| Run {
            rounding: index.min(last),
            from_rounded: Link::default(),
            from_file: Distance::default(),
            from_oracle: Distance::default(),
        };
        Self {
            oracle: vec![],
            turned: Distance::default(),
            file: Link::default(),
            rounded: rounded.into_iter().map(|way| (way, Link::default())).collect(),
            engines: (0..engines).map(run).collect(),
            lost: None,
        }
    }

    pub fn add<'a>(&mut self, part: &Part, engines: impl Iterator<Item = Predictions<'a>>) {
        self.oracle
            .extend(part.oracle.iter().flat_map(|oracle| oracle.surprisals(part.next)));
        self.file.add(part.oracle, part.file, part.next);
        for ((_, link), rounded) in self.rounded.iter_mut().zip(part.rounded) {
            link.add(Some(part.file), rounded, part.next);
        }
        for (run, engine) in self.engines.iter_mut().zip(engines) {
            run.from_rounded.add(part.rounded.get(run.rounding), &engine, part.next);
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
            checks.extend(allowed.checks("file", "oracle", &self.file.distance));
        }
        for (name, run) in engines.iter().zip(&self.engines) {
            let allowed = Allowed {
                example: &self.rounded[run.rounding].1.distance,
                floor: ENGINE,
                origins: [
                    "3 x what rounding activations costs this model, 3 sigma",
                    "25 x the worst token of the same",
                    "3 x that of the same, 3 sigma",
                ],
            };
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
        let links = self.links(&engines);
        let reference = match oracle {
            true => EngineFacts::reference(EngineName::of_precision("oracle", "f64"), &self.oracle),
            false => EngineFacts::reference(file.clone(), &self.file.surprisals),
        };
        let file = oracle.then(|| tested(file, &self.file, &self.file.distance));
        let engines = engines.into_iter().zip(&self.engines);
        let engines = engines.map(|(name, run)| tested(name, &run.from_rounded, self.distance_of(run)));
        TextFacts {
            source: options.text.source.clone(),
            tokens: text.predictions(),
            window: text.window,
            reference,
            oracle,
            storing: oracle.then(|| metrics::mean(&self.turned.kld)),
            links,
            tested: file.into_iter().chain(engines).collect(),
        }
    }

    /// The links of the chain, in its order; that of the weights only where there is an oracle.
    fn links(&self, engines: &[EngineName]) -> Vec<LinkFacts> {
        let weights = self
            .has_oracle()
            .then(|| self.file.facts(LinkCause::Weights, "file", None));
        let rounded = self.rounded.iter();
        let activations = rounded.map(|(way, link)| link.facts(LinkCause::Activations, "rounded", Some(*way)));
        let engines = engines.iter().zip(&self.engines).map(|(name, run)| {
            let way = self.rounded[run.rounding].0;
            run.from_rounded.facts(LinkCause::Engine, name.short, Some(way))
        });
        weights.into_iter().chain(activations).chain(engines).collect()
    }
}

fn tested(name: EngineName, link: &Link, distance: &Distance) -> EngineFacts {
    EngineFacts {
        name,
        perplexity: metrics::perplexity(&link.surprisals),
        top1: Some(distance.top1()),
        nmse: Some(distance.nmse()),
        kld: distance.kld.clone(),
    }
}
