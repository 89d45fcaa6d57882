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
//!
//! Where the file was packed from a GGUF file, that one's numbers are the oracle's. Of an architecture that our engine does
//! not know, llama.cpp runs both files, and the one is compared with the other.

mod both;
mod found;
mod passes;
mod work;

use std::path::Path;

use formats::gguf::File;

use super::references::{Latent, Rounded, Stored, Turned};
use super::report::{Level, LevelReport, NotChecked, TextFacts};
use super::witness::{self, Witness};
use super::{Options, Progress, Reference, VerifyError};
use crate::engine::Engine;
use crate::engine::hyper::Hyper;
use crate::engine::native::{self, Native};
use crate::engine::oracle::Weights;
use crate::engine::text::Windows;
use found::Found;
use passes::Passes;
use work::Work;

/// Weights beyond which the level is left out unless asked for: on two cores a billion of them takes a minute.
const MOST_WEIGHTS: u64 = 10_000_000_000;
/// Tokens that go through the layers of a reference pass together.
const BATCH: usize = 512;

/// Run the engines.
pub(super) fn check(
    path: &Path,
    file: &File,
    against: Option<Reference>,
    options: &Options,
    progress: &Progress,
) -> Result<(LevelReport, Option<TextFacts>), VerifyError> {
    match (Inputs::of(file, options), against) {
        (Ok(inputs), _) => run(inputs, path, file, against, options, progress),
        (Err(why), Some(Reference::Gguf { file: source, path: of })) => {
            let level = both::check((path, file), (of, source), why, options, progress)?;
            Ok((level, None))
        }
        (Err(why), _) => Ok((LevelReport::not_checked(Level::Logits, why), None)),
    }
}

/// The text for a file; or why its tokenizer cannot be run.
fn windows(file: &File, options: &Options) -> Result<Windows, String> {
    let context = Hyper::read(file).map_or(usize::MAX, |hyper| hyper.context);
    Windows::cut(file.metadata(), context, &options.text).map_err(|error| error.to_string())
}

/// What can be had of the file alone.
struct Inputs<'a> {
    text: Windows,
    native: Native<'a>,
    stored: Stored<'a>,
}

impl<'a> Inputs<'a> {
    /// Or why the level cannot be run.
    fn of(file: &'a File, options: &Options) -> Result<Self, String> {
        let text = windows(file, options)?;
        let weights: u64 = file.tensors().iter().map(|info| info.weights()).sum();
        if weights > MOST_WEIGHTS && !options.level_4_at_any_size {
            let billions = weights as f64 / 1e9;
            return Err(format!(
                "{billions:.1} billion weights take long; ask for it with --levels 1-4"
            ));
        }
        let settings = native::Settings::new(text.window, options.threads)
            .with_activations(options.activations)
            .with_cache(options.cache);
        Ok(Self {
            native: Native::load(file, settings).map_err(|error| error.to_string())?,
            stored: stored(file, rounded(options))?,
            text,
        })
    }
}

/// How our engine rounds numbers.
fn rounded(options: &Options) -> Rounded {
    Rounded {
        activations: options.activations,
        cache: options.cache,
    }
}

/// The file's numbers, rounded in this way where they are.
fn stored<'a>(file: &'a File, rounded: Rounded) -> Result<Stored<'a>, String> {
    let stored = Stored::new(file).map_err(|error| error.to_string())?;
    Ok(stored.with_rounding(rounded))
}

fn run(
    inputs: Inputs,
    path: &Path,
    file: &File,
    against: Option<Reference>,
    options: &Options,
    progress: &Progress,
) -> Result<(LevelReport, Option<TextFacts>), VerifyError> {
    let Inputs { text, native, stored } = inputs;
    let mut not_checked = vec![];
    let latent = match against {
        None => Err(super::NO_CHECKPOINT.into()),
        Some(against) => reference(against, stored.hyper()),
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

    let as_llama_cpp = match engines.len() > 1 && rounded(options) != Rounded::AS_LLAMA_CPP {
        true => Some(Stored::new(file)?),
        false => None,
    };
    let turned = latent.as_deref().map(|latent| Turned {
        latent,
        stored: &stored,
        max_nmse: options.max_nmse,
    });
    let passes = Passes::new(&stored, as_llama_cpp.as_ref(), turned.as_ref());
    let work = Work::new(progress, stored.hyper(), &text, passes.cost(), engines.len());
    let mut found = Found::new(passes.rounded(), engines.len());
    for batch in text.batches(BATCH) {
        passes.run(batch, &mut engines, &work, &mut found)?;
    }
    lost = lost.or(found.lost.take());
    let mut checks = vec![];
    if let (None, Some(model)) = (&lost, &model) {
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
    let level = LevelReport::new(Level::Logits, checks, not_checked);
    Ok((level, Some(found.facts(names, &text, options))))
}

/// What the file was packed from, where it is of the file's shape.
fn reference<'a>(against: Reference<'a>, file: &Hyper) -> Result<Box<dyn Weights + 'a>, String> {
    let reference: Box<dyn Weights> = match against {
        Reference::Checkpoint { checkpoint, .. } => Box::new(Latent::new(checkpoint)),
        Reference::Gguf { file, .. } => Box::new(Stored::new(file).map_err(|error| error.to_string())?),
    };
    let shape = |hyper: &Hyper| {
        [
            ("tokens", hyper.dims.vocab),
            ("layers", hyper.dims.layers),
            ("numbers in the residual stream", hyper.dims.hidden),
            ("heads", hyper.dims.heads),
            ("key-value heads", hyper.dims.kv_heads),
            ("numbers in a head", hyper.dims.head_dim),
            ("rows in ffn_up", hyper.dims.intermediate),
        ]
    };
    let pairs = shape(reference.hyper()).into_iter().zip(shape(file));
    match pairs.into_iter().find(|(ours, theirs)| ours != theirs) {
        Some(((what, reference), (_, file))) => {
            let whose = match against {
                Reference::Checkpoint { .. } => "checkpoint",
                Reference::Gguf { .. } => "other file",
            };
            Err(format!(
                "the {whose} has {reference} {what}, the file {file}: name the {whose} that it was packed from"
            ))
        }
        None => Ok(reference),
    }
}
