//! Level 4: the engines on a text. A chain of passes, each compared with the one before it, so that every link has a limit
//! of its own, which follows from the model at hand:
//!
//! ```text
//! oracle   the checkpoint, by the formula, in f64
//!   |      what storing it lost; as far away: the checkpoint with what each row lost turned round by chance
//! file     the file's numbers, activations as they are
//!   |      what rounding activations costs; as far away: the same pass with activations rounded by the types' rules
//! engines  ours and llama.cpp
//! ```

use std::cell::Cell;
use std::path::Path;

use formats::gguf::File;

use super::distance::{Allowed, Distance};
use super::references::{Latent, Stored, Turned};
use super::report::{Check, EngineFacts, Level, Limit, NotChecked, TextFacts};
use super::windows::{Window, Windows};
use super::witness::{self, Witness};
use super::{Against, Options, Progress, VerifyError};
use crate::engine::hyper::Hyper;
use crate::engine::native::{self, Native};
use crate::engine::oracle::{Oracle, Precision, Sequence, Weights};
use crate::engine::{Engine, EngineError};
use crate::metrics::{self, Predictions};

pub(super) const NUMBER: u8 = 4;
pub(super) const NAME: &str = "logits";

/// Weights beyond which the level is left out unless asked for: on two cores a billion of them takes a minute.
const MOST_WEIGHTS: u64 = 10_000_000_000;
/// Tokens that go through the layers of a reference pass together.
const BATCH: usize = 512;
/// Tokens whose logits are held at a time.
const PART: usize = 128;
/// KLD and NMSE that f32 arithmetic may cost, where nothing else does: it costs 1e-12 where it was measured.
const SINGLE_PRECISION: f64 = 1e-8;
/// The same for an engine, with the functions that it computes in f32 or by tables.
const ENGINE: f64 = 1e-5;

/// Run the engines.
pub(super) fn check(
    path: &Path,
    file: &File,
    against: Option<&Against>,
    options: &Options,
    progress: &Progress,
) -> Result<(Level, Option<TextFacts>), VerifyError> {
    let none = |why: String| Ok((Level::not_checked(NUMBER, NAME, why), None));
    let text = match Windows::cut(file, &options.text) {
        Ok(windows) => windows,
        Err(why) => return none(why),
    };
    let weights: u64 = file.tensors().iter().map(|info| info.weights()).sum();
    if weights > MOST_WEIGHTS && !options.level_4_at_any_size {
        let billions = weights as f64 / 1e9;
        return none(format!(
            "{billions:.1} billion weights take long; ask for it with --levels 1-4"
        ));
    }
    let settings = native::Settings::new(text.window, options.threads);
    let (native, stored) = match (Native::load(file, settings), Stored::new(file)) {
        (Ok(native), Ok(stored)) => (native, stored),
        (Err(error), _) | (_, Err(error)) => return none(error.to_string()),
    };
    let mut not_checked = vec![];
    let latent = match against {
        None => Err(super::NO_CHECKPOINT.into()),
        Some(against) => latent(against, stored.hyper()),
    };
    let latent = latent
        .map_err(|why| not_checked.push(NotChecked::new("the oracle", why)))
        .ok();
    let (model, mut lost) = match Witness::load(path, file, options) {
        Ok(model) => (Some(model), None),
        Err(error) => (None, Some(error)),
    };
    let mut engines: Vec<Box<dyn Engine + '_>> = vec![Box::new(native)];
    match model.as_ref().map(|model| model.engine(&text, options.threads)) {
        Some(Ok(engine)) => engines.push(engine),
        Some(Err(error)) => lost = Some(error),
        None => {}
    }

    let turned = latent.as_ref().map(|latent| Turned {
        latent,
        stored: &stored,
        max_nmse: options.max_nmse,
    });
    let checkpoint = match (&latent, &turned) {
        (Some(latent), Some(turned)) => Some(FromCheckpoint {
            oracle: Oracle {
                weights: latent,
                precision: Precision::Double,
            },
            turned: Oracle {
                weights: turned,
                precision: Precision::Single,
            },
        }),
        _ => None,
    };
    let passes = Passes {
        checkpoint,
        file: Oracle {
            weights: &stored,
            precision: Precision::Single,
        },
    };
    let work = Work::new(progress, stored.hyper(), &text, &passes, engines.len());
    let mut found = Found::new(engines.len());
    for batch in text.batches(BATCH) {
        passes.run(batch, &mut engines, &work, &mut found)?;
    }
    lost = lost.or(found.lost.take());
    let mut checks = vec![];
    if lost.is_none()
        && let Some(model) = &model
    {
        match model.same_tokens(&text) {
            Ok(check) => checks.push(check),
            Err(error) => lost = Some(error),
        }
    }
    let names: Vec<_> = engines.iter().map(|engine| engine.name()).collect();
    checks.extend(found.checks(&names, options.max_kld));
    if let Some(error) = lost {
        witness::lost(error, &mut checks, &mut not_checked)?;
    }
    Ok((
        Level::new(NUMBER, NAME, checks, not_checked),
        Some(found.facts(names, &text, options)),
    ))
}

/// The checkpoint, where it is of the file's shape.
fn latent<'a>(against: &'a Against, file: &Hyper) -> Result<Latent<'a>, String> {
    let latent = Latent::new(&against.checkpoint);
    let shape = |hyper: &Hyper| {
        [
            ("tokens", hyper.vocab),
            ("layers", hyper.layers),
            ("numbers in the residual stream", hyper.hidden),
            ("heads", hyper.heads),
            ("key-value heads", hyper.kv_heads),
            ("numbers in a head", hyper.head_dim),
            ("rows in ffn_up", hyper.ffn),
        ]
    };
    let pairs = shape(latent.hyper()).into_iter().zip(shape(file));
    match pairs.into_iter().find(|(ours, theirs)| ours != theirs) {
        Some(((what, checkpoint), (_, file))) => Err(format!(
            "the checkpoint has {checkpoint} {what}, the file {file}: name the checkpoint that it was packed from"
        )),
        None => Ok(latent),
    }
}

/// The passes that the engines are compared with.
struct Passes<'a> {
    checkpoint: Option<FromCheckpoint<'a>>,
    file: Oracle<'a, Stored<'a>>,
}

struct FromCheckpoint<'a> {
    oracle: Oracle<'a, Latent<'a>>,
    turned: Oracle<'a, Turned<'a>>,
}

impl Passes<'_> {
    /// Run everything on some windows.
    fn run(
        &self,
        batch: &[Window],
        engines: &mut Vec<Box<dyn Engine + '_>>,
        work: &Work,
        found: &mut Found,
    ) -> Result<(), VerifyError> {
        let sequence = |rounded| {
            batch.iter().map(move |window| Sequence {
                tokens: &window.tokens,
                rounded,
            })
        };
        let exact: Vec<_> = sequence(false).collect();
        let both: Vec<_> = sequence(false).chain(sequence(true)).collect();
        let file = states(&self.file, &both, "the file", work)?;
        let (file, rounded) = file.split_at(file.len() / 2);
        let (mut oracle, mut turned) = (vec![], vec![]);
        if let Some(checkpoint) = &self.checkpoint {
            oracle = states(&checkpoint.oracle, &exact, "the oracle", work)?;
            let some = &exact[..exact.len().div_ceil(2)]; // chance is the same everywhere
            turned = states(&checkpoint.turned, some, "what storing may cost", work)?;
        }

        let (hidden, vocab) = (work.hyper.hidden, work.hyper.vocab);
        let mut first = 0;
        for window in batch {
            let logits = logits_of_all(engines, window, work, found)?;
            for (index, next) in window.next.chunks(PART).enumerate() {
                let start = index * PART;
                let part = (first + start) * hidden..(first + start + next.len()) * hidden;
                let expected = match &self.checkpoint {
                    Some(checkpoint) => Some(checkpoint.oracle.logits_of(&oracle[part.clone()], &[])?),
                    None => None,
                };
                let expected = expected.as_deref();
                let oracle = expected.map(|logits| Predictions::new(logits, vocab));
                if let (Some(checkpoint), Some(oracle)) = (&self.checkpoint, &oracle)
                    && let Some(states) = turned.get(part.clone())
                {
                    let turned = checkpoint.turned.logits_of(states, &[])?;
                    found.turned.add(oracle, &Predictions::new(&turned, vocab));
                }
                let logits_of_both = self.file.logits_of(&file[part.clone()], &rounded[part])?;
                let (file, rounded) = logits_of_both.split_at(logits_of_both.len() / 2);
                let part = Part {
                    next,
                    oracle: oracle.as_ref(),
                    file: &Predictions::new(file, vocab),
                };
                let rounded = Predictions::new(rounded, vocab);
                found.rounded.add(part.file, &rounded);
                let engines = logits
                    .iter()
                    .map(|logits: &Vec<f32>| Predictions::new(&logits[start * vocab..][..next.len() * vocab], vocab));
                found.add(&part, engines);
                work.advance("comparing", next.len() as f64 * work.head * work.passes);
            }
            first += window.tokens.len();
        }
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
        work.advance(&short_name(&engine.name()), units);
    }
    Ok(logits)
}

fn states<W: Weights>(
    pass: &Oracle<W>,
    sequences: &[Sequence],
    name: &str,
    work: &Work,
) -> Result<Vec<f64>, EngineError> {
    let tokens: usize = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
    let units = tokens as f64 * cost(pass.precision);
    let layers = work.hyper.layers;
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

/// How much there is to do, in tokens through one layer in f32.
struct Work<'a> {
    progress: &'a Progress<'a>,
    hyper: &'a Hyper,
    /// Layers that the head is worth.
    head: f64,
    /// Passes in f32 that all reference passes are worth.
    passes: f64,
    total: f64,
    done: Cell<f64>,
}

impl<'a> Work<'a> {
    /// What an engine takes, in passes in f32.
    const ENGINE: f64 = 0.5;

    fn new(progress: &'a Progress<'a>, hyper: &'a Hyper, text: &Windows, passes: &Passes, engines: usize) -> Self {
        let of_checkpoint = passes.checkpoint.as_ref().map_or(0.0, |checkpoint| {
            cost(checkpoint.oracle.precision) + 0.5 * cost(checkpoint.turned.precision)
        });
        let passes = 2.0 * cost(passes.file.precision) + of_checkpoint;
        let kinds = 2 * (hyper.q_width() + hyper.kv_width()) + 3 * hyper.ffn;
        let head = hyper.vocab as f64 / kinds as f64; // columns or rows beside the residual stream
        let mut work = Self {
            progress,
            hyper,
            head,
            passes,
            total: 0.0,
            done: Cell::new(0.0),
        };
        work.total = text.predictions() as f64 * work.model() * (passes + Self::ENGINE * engines as f64);
        work
    }

    /// Layers that the model is worth.
    fn model(&self) -> f64 {
        self.hyper.layers as f64 + self.head
    }

    /// `units` more are done; from here on it is `doing`.
    fn advance(&self, doing: &str, units: f64) {
        self.done.set(self.done.get() + units);
        (self.progress)(&format!("logits: {doing}"), Some(self.done.get() / self.total));
    }
}

/// What the passes predict of some tokens.
struct Part<'a> {
    next: &'a [u32],
    oracle: Option<&'a Predictions<'a>>,
    file: &'a Predictions<'a>,
}

/// What was found along the text.
struct Found {
    oracle: Vec<f64>,
    /// Of the checkpoint with its losses turned round, from the oracle.
    turned: Distance,
    file: Run,
    /// Of the file with activations rounded, from the file.
    rounded: Distance,
    engines: Vec<Run>,
    /// Why the witness is no longer among the engines.
    lost: Option<EngineError>,
}

/// What one pass or engine gave.
#[derive(Default)]
struct Run {
    surprisals: Vec<f64>,
    from_oracle: Distance,
    from_file: Distance,
}

impl Found {
    fn new(engines: usize) -> Self {
        Self {
            oracle: vec![],
            turned: Distance::default(),
            file: Run::default(),
            rounded: Distance::default(),
            engines: (0..engines).map(|_| Run::default()).collect(),
            lost: None,
        }
    }

    fn add<'a>(&mut self, part: &Part, engines: impl Iterator<Item = Predictions<'a>>) {
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

    fn checks(&self, engines: &[String], max_kld: Option<f64>) -> Vec<Check> {
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
            checks.extend(allowed.checks("file against oracle", &self.file.from_oracle));
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
            let name = format!("{} against file", short_name(name));
            checks.extend(allowed.checks(&name, &run.from_file));
        }
        if let Some(limit) = max_kld {
            let reference = if self.has_oracle() { "oracle" } else { "file" };
            for (name, run) in engines.iter().zip(&self.engines) {
                checks.push(Check::new(
                    format!("{}: mean KLD from {reference}", short_name(name)),
                    metrics::mean(&self.distance_of(run).kld),
                    "nats/token",
                    Limit::AtMost(limit),
                    "--max-kld",
                ));
            }
        }
        checks
    }

    fn facts(self, engines: Vec<String>, text: &Windows, options: &Options) -> TextFacts {
        const FILE: &str = "file (exact activations)";
        let oracle = self.has_oracle();
        let reference = match oracle {
            true => EngineFacts::reference("oracle (f64)", &self.oracle),
            false => EngineFacts::reference(FILE, &self.file.surprisals),
        };
        let file = oracle.then_some((FILE.to_owned(), &self.file));
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

/// `native` of `native (kernel, threads)`.
fn short_name(name: &str) -> String {
    name.split(" (").next().unwrap_or_default().to_owned()
}
