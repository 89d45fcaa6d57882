//! The proof of a file: what it must hold is computed again from the checkpoint, and compared; then what it computes.
//! Nothing of the packer is used here. A difference is a result, not an error: it is in the [`Report`].
//!
//! | level | file | question |
//! |---|---|---|
//! | 1 layout | `layout`, `ollama` | does the file keep to the rules of what is to load it? |
//! | 2 codes | `codes`, `tables`, `keys`, `texts`, `latent`, `schemes`, `stated` | is every code, scale, bias, norm, table and key what the checkpoint gives? |
//! | | `converted` | or what the GGUF file gives that was packed? |
//! | 3 dots | `dots` | do our kernels and ggml's multiply these blocks right? |
//! | 4 logits | `logits`, `references`, `distance`, `witness` | do our engine and llama.cpp predict what the latent checkpoint predicts? |
//! | 5 speed | `speed` | how fast are both? |
//!
//! docs/verify.md tells where each limit comes from.

mod codes;
mod converted;
mod diff;
mod distance;
mod dots;
mod keys;
mod latent;
mod layout;
mod logits;
mod mismatch;
mod ollama;
mod references;
mod report;
mod schemes;
mod speed;
mod stated;
mod tables;
mod texts;
mod witness;

use std::path::{Path, PathBuf};

use formats::block::BlockError;
use formats::gguf::{File, TensorInfo, Value};

pub use diff::{Differences, KeyDifference, KeyValue, Side, Stored, TensorDifference, diff};
pub use mismatch::Mismatch;
pub use report::{
    Check, CheckId, DotFacts, EngineFacts, Histogram, Level, LevelReport, Limit, LinearFacts, LinkCause, LinkFacts,
    ModelFacts, NotChecked, Report, Status, Tally, TextFacts, TypeFacts, Unit, Verdict,
};

use crate::blueprint::{Graph, Linear};
use crate::engine::EngineError;
use crate::engine::native::CacheTypes;
use crate::engine::text::TextOptions;
use crate::kernels::ActivationScales;
use crate::mapped::{Model, OpenError};
use crate::model::tokenizer::TokenizerError;
use crate::model::{Checkpoint, ModelError};
use crate::witness::{Program, WitnessError};

/// Told what is being done, and where it is known, which share (0 to 1) of the work of its level is behind.
pub type Progress<'a> = dyn Fn(&str, Option<f64>) + 'a;

/// Why nothing could be compared with a checkpoint.
const NO_CHECKPOINT: &str = "nothing to compare the file with: name what it was packed from with --against";

/// What to verify, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which levels to run.
    pub levels: Vec<Level>,
    /// Check the layout by Ollama's rules, too.
    pub for_ollama: bool,
    /// The NMSE that storing a linear may have added.
    pub max_nmse: f64,
    /// Keys that were set by hand, and their values as text: in the place of what the checkpoint gives.
    pub metadata: Vec<(String, String)>,
    /// The mean KLD from the checkpoint that an engine may have, in nats a token, beside what follows from the model.
    pub max_kld: Option<f64>,
    /// How our engine rounds activations.
    pub activations: ActivationScales,
    /// What our engine keeps keys and values in.
    pub cache: CacheTypes,
    /// What the engines predict.
    pub text: TextOptions,
    /// Run level 4 however large the model is.
    pub level_4_at_any_size: bool,
    /// Threads of each engine.
    pub threads: usize,
    /// The program whose child is llama.cpp.
    pub witness: Program,
}

/// What to compare the file with: what it was packed from.
pub struct Against {
    pub origin: Origin,
    /// What to call it in the report.
    pub name: String,
}

/// What a file was packed from.
pub enum Origin {
    Checkpoint {
        checkpoint: Box<Checkpoint>,
        /// llama.cpp's name of its pre-tokenizer, where it had to be given.
        tokenizer_pre: Option<String>,
    },
    Gguf(Model),
}

impl Against {
    fn checkpoint(&self) -> Option<&Checkpoint> {
        match &self.origin {
            Origin::Checkpoint { checkpoint, .. } => Some(checkpoint),
            Origin::Gguf(_) => None,
        }
    }
}

/// The same, where a GGUF file has been read.
#[derive(Clone, Copy)]
enum Reference<'a> {
    Checkpoint {
        checkpoint: &'a Checkpoint,
        tokenizer_pre: Option<&'a str>,
    },
    Gguf {
        file: &'a File<'a>,
        path: &'a Path,
    },
}

impl<'a> Reference<'a> {
    /// `file`: what `against` holds, where that is a GGUF file.
    fn new(against: &'a Against, file: Option<&'a File<'a>>) -> Option<Self> {
        match (&against.origin, file) {
            (
                Origin::Checkpoint {
                    checkpoint,
                    tokenizer_pre,
                },
                _,
            ) => Some(Self::Checkpoint {
                checkpoint,
                tokenizer_pre: tokenizer_pre.as_deref(),
            }),
            (Origin::Gguf(model), Some(file)) => Some(Self::Gguf {
                file,
                path: &model.parts()[0].path,
            }),
            (Origin::Gguf(_), None) => None,
        }
    }
}

/// What kept the verification from being done. That the file is wrong is never here.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The file cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file is something else than GGUF.
    #[error("{}: {source}", path.display())]
    NotGguf {
        path: PathBuf,
        source: formats::FormatError,
    },
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The checkpoint's tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The checkpoint's tokenizer.json.
    #[error("{file}: {source}; copy the file again")]
    TokenizerJson { file: String, source: serde_json::Error },
    /// A number of the checkpoint that is NaN or infinite.
    #[error(
        "{}: tensor '{tensor}' is not finite at row {row}, column {column}: nothing can be compared with it, take an earlier checkpoint",
        path.display()
    )]
    NotFinite {
        path: PathBuf,
        tensor: String,
        row: usize,
        column: usize,
    },
    /// An engine that gave up on a file that it had accepted.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// llama.cpp could not be asked, for want of something here.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// A tensor whose blocks cannot be read.
    #[error(transparent)]
    Block(#[from] BlockError),
}

impl VerifyError {
    fn not_finite(checkpoint: &Checkpoint, linear: Linear, part: &str, index: usize, columns: usize) -> Self {
        let tensor = format!("{}.{part}", linear.checkpoint_name());
        let stored = checkpoint.tensors.stored(&tensor);
        VerifyError::NotFinite {
            path: stored.expect("it was read").path.into(),
            tensor,
            row: index / columns,
            column: index % columns,
        }
    }
}

/// Verify the file at `path`.
///
/// # Errors
/// What kept it from being done: the file cannot be opened or is no GGUF at all, or the checkpoint cannot be used.
pub fn verify(
    path: &Path,
    against: Option<&Against>,
    options: &Options,
    progress: &Progress,
) -> Result<Report, VerifyError> {
    let model = Model::open(path)?;
    let source = match against.map(|against| &against.origin) {
        Some(Origin::Gguf(model)) => Some(model.parse()?),
        _ => None,
    };
    let mut report = Report {
        file: path.display().to_string(),
        against: against.map(|against| against.name.clone()),
        verdict: Verdict::NothingChecked,
        llama_cpp: None,
        mismatches: vec![],
        levels: vec![],
        model: None,
        linears: vec![],
        scales: None,
        biases: None,
        text: None,
        speed: None,
        notes: against.and_then(Against::checkpoint).map_or(vec![], Checkpoint::notes),
    };
    match model.parse() {
        Ok(file) => {
            let run = Run {
                path,
                model: &model,
                file: &file,
                reference: against.and_then(|against| Reference::new(against, source.as_ref())),
                options,
                progress,
            };
            run.all(&mut report)?;
        }
        Err(OpenError::Format {
            path,
            source: source @ formats::FormatError::Magic { .. },
        }) => return Err(VerifyError::NotGguf { path, source }),
        Err(error) => {
            report.levels.push(layout::unreadable(&error));
            let others = Level::ALL.into_iter().filter(|level| *level != Level::Layout);
            for level in others.filter(|level| options.levels.contains(level)) {
                report
                    .levels
                    .push(LevelReport::not_checked(level, "the file cannot be read"));
            }
        }
    }
    report.verdict = report.judge();
    report.llama_cpp = options.witness.build().cloned();
    Ok(report)
}

/// One verification of a file that can be read.
struct Run<'a> {
    path: &'a Path,
    model: &'a Model,
    file: &'a File<'a>,
    reference: Option<Reference<'a>>,
    options: &'a Options,
    progress: &'a Progress<'a>,
}

impl Run<'_> {
    fn all(&self, report: &mut Report) -> Result<(), VerifyError> {
        let wanted = |level| self.options.levels.contains(&level);
        report.model = Some(model_facts(self.file, self.model.bytes()));
        report.mismatches = self
            .reference
            .map_or(vec![], |reference| mismatch::of(self.file, reference));
        if wanted(Level::Layout) {
            (self.progress)("layout", None);
            let is_ours = self.is_of_ours();
            report
                .levels
                .push(layout::check(self.model, self.file, is_ours, self.options)?);
        }
        if wanted(Level::Codes) {
            self.codes(report)?;
        }
        if wanted(Level::Dots) {
            let (level, dots) = dots::check(self.model, self.file, self.options, self.progress)?;
            report.levels.push(level);
            for linear in &mut report.linears {
                let found = dots.iter().find(|dot| dot.name == linear.name);
                linear.dots = found.map(|dot| dot.facts);
            }
        }
        if wanted(Level::Logits) {
            let (level, text) = logits::check(self.path, self.file, self.reference, self.options, self.progress)?;
            report.levels.push(level);
            report.text = text;
        }
        if wanted(Level::Speed) {
            let (level, speed) = speed::check(self.path, self.file, self.options, self.progress)?;
            report.levels.push(level);
            report.speed = speed;
        }
        Ok(())
    }

    /// Whether the architecture is one of ours, or has to be: nothing says that another is meant.
    fn is_of_ours(&self) -> bool {
        let architecture = |file: &File| {
            file.get("general.architecture")
                .and_then(Value::as_str)
                .map(String::from)
        };
        let known = |name: &str| Graph::find(name).is_some();
        match self.reference {
            Some(Reference::Gguf { file, .. }) => {
                let (ours, theirs) = (architecture(self.file), architecture(file));
                ours != theirs || ours.is_none_or(|name| known(&name))
            }
            _ => true,
        }
    }

    /// Run level 2, and keep what it measured.
    fn codes(&self, report: &mut Report) -> Result<(), VerifyError> {
        match self.reference {
            None => {
                let level = LevelReport::not_checked(Level::Codes, NO_CHECKPOINT);
                report.levels.push(level);
            }
            Some(Reference::Gguf { file, .. }) => {
                let found = converted::check(self.file, file, self.options, self.progress);
                report.levels.push(LevelReport::new(Level::Codes, found.checks, vec![]));
                report.linears = found.facts;
            }
            Some(Reference::Checkpoint {
                checkpoint,
                tokenizer_pre,
            }) => self.codes_of(checkpoint, tokenizer_pre, report)?,
        }
        Ok(())
    }

    fn codes_of(&self, checkpoint: &Checkpoint, pre: Option<&str>, report: &mut Report) -> Result<(), VerifyError> {
        let found = codes::check(self.file, checkpoint, self.options.max_nmse, self.progress)?;
        let mut checks = found.checks;
        let mut not_checked = vec![];
        (self.progress)("codes: tables and keys", None);
        let config = stated::config(checkpoint);
        checks.extend(tables::check(self.file, checkpoint, &config, self.options.max_nmse));
        let by_hand = &self.options.metadata;
        checks.push(keys::config(self.file, &config, by_hand));
        checks.extend(keys::by_hand(self.file, by_hand));
        checks.extend(keys::tokenizer(
            self.file,
            checkpoint,
            pre,
            by_hand,
            &mut not_checked,
            &mut report.notes,
        )?);
        report.levels.push(LevelReport::new(Level::Codes, checks, not_checked));
        let ties: u64 = found.facts.iter().map(|facts| facts.tally.ties).sum();
        if ties > 0 {
            report.notes.push(format!(
                "{ties} zeros were chosen among weights of equal magnitude: of those the last becomes 0, as on CUDA"
            ));
        }
        report.linears = found.facts;
        report.scales = Some(found.scales);
        report.biases = Some(found.biases);
        Ok(())
    }
}

fn model_facts(file: &File, bytes: u64) -> ModelFacts {
    let mut types = std::collections::BTreeMap::new();
    for info in file.tensors() {
        let (tensors, bytes) = types.entry(info.ty).or_insert((0, 0));
        *tensors += 1;
        *bytes += info.bytes().unwrap_or(0);
    }
    ModelFacts {
        name: file.get("general.name").and_then(Value::as_str).map(String::from),
        bytes,
        tensors: file.tensors().len(),
        keys: file.metadata().len(),
        parameters: file.tensors().iter().map(TensorInfo::weights).sum(),
        types: types
            .into_iter()
            .map(|(ty, (tensors, bytes))| TypeFacts {
                ty: ty.name(),
                tensors,
                bytes,
            })
            .collect(),
    }
}
