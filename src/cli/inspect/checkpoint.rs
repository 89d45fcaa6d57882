//! What a checkpoint holds, and what `pack` would make of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use formats::block::BlockType;

use super::super::json::print_json;
use super::super::text::shown;
use super::super::{activations, lossy, pack, print, render};
use super::InspectArgs;
use super::json::{
    CheckpointReport, ConfigReport, Found as Told, InspectReport, PreviewReport, TensorReport, TrainedReport,
};
use crate::model::{
    Checkpoint, Config, ConfigFile, ModelError, Source, Tensors, Trained, TrainingOverrides, recognise,
};
use crate::pack::{Embedding, Options, Plan, Rule, Target};
use crate::simd::Level;

/// Show it.
pub fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let source = match Source::find(&args.path, None, None) {
        // Weights without a config.json can still be listed.
        Err(ModelError::MissingFile { missing, .. }) if missing == "config.json" && args.path.is_file() => {
            let found = Found {
                tensors: Tensors::open(&args.path)?,
                config: None,
                weights: None,
                training: None,
                plan: None,
            };
            return found.show(args);
        }
        source => source?,
    };
    let file = ConfigFile::read(&source.config)?;
    let config = file.config();
    let tensors = Tensors::open(&source.weights)?;
    let found = recognise(&tensors, &file, &TrainingOverrides::default());
    let weights = match &found {
        Ok(None) => Ok("latent"),
        Ok(Some(_)) => Ok("ternary"),
        Err(problem) => Err(problem.to_string()),
    };
    let training = match found {
        Ok(Some(scheme)) => Ok(scheme),
        // Weights that are of another family say why it is so.
        _ => file.training(&TrainingOverrides::default()),
    };
    let plan = match (&weights, &training, &config) {
        (Ok(_), Ok(_), Ok(_)) => Some(PackPreview::new(source).map_err(|error| format!("{error:#}"))),
        _ => None,
    };
    let text = |error: ModelError| error.to_string();
    Found {
        tensors,
        config: Some(config.map_err(text)),
        weights: Some(weights),
        training: Some(training.map_err(text)),
        plan,
    }
    .show(args)
}

/// What was found of a checkpoint; each part that could not be had, with the reason.
struct Found {
    tensors: Tensors,
    config: Option<Result<Config, String>>,
    /// What they are, in a word.
    weights: Option<Result<&'static str, String>>,
    training: Option<Result<Trained, String>>,
    plan: Option<Result<PackPreview, String>>,
}

/// What `pack` would make of a checkpoint.
struct PackPreview {
    linears: BTreeMap<BlockType, usize>,
    bytes: u64,
    nmse: f64,
    /// What zeros are called.
    zeros: &'static str,
    dead_share: f64,
    /// Where the file has biases.
    largest_bias: Option<f64>,
    notes: Vec<String>,
}

impl PackPreview {
    fn new(source: Source) -> anyhow::Result<Self> {
        let checkpoint = Checkpoint::open(source, &TrainingOverrides::default())?;
        let options = Options {
            rule: Rule {
                target: Target::Any,
                max_nmse: pack::MAX_NMSE,
                measured: false,
                ty: None,
                tensor_types: vec![],
            },
            embedding: Embedding::Keep,
            drop_biases: false,
            name: None,
            organization: None,
            card: Default::default(),
            metadata: vec![],
            hash: false,
            split_max_size: None,
            level: Level::widest(),
        };
        let summary = Plan::new(&checkpoint, &options)?
            .run(vec![], None, &|_| ControlFlow::Continue(()))?
            .summary;
        Ok(Self {
            linears: summary.linears.clone(),
            bytes: summary.bytes,
            nmse: summary.loss.nmse(),
            zeros: render::zeros(&checkpoint.scheme),
            dead_share: summary.dead_share(),
            largest_bias: checkpoint
                .config
                .linears()
                .any(|linear| checkpoint.has_bias(linear))
                .then_some(summary.largest_bias),
            notes: checkpoint.notes(),
        })
    }
}

impl Found {
    fn show(&self, args: &InspectArgs) -> anyhow::Result<ExitCode> {
        if args.json {
            print_json(&self.json(&args.path))
        } else {
            print(&self.text(args))
        }
    }

    fn dtypes(&self) -> BTreeMap<String, (usize, u64)> {
        let mut dtypes = BTreeMap::<_, (usize, u64)>::new();
        for (_, tensor) in self.tensors.iter() {
            let (tensors, bytes) = dtypes.entry(tensor.dtype.to_string()).or_default();
            *tensors += 1;
            *bytes += tensor.bytes.len() as u64;
        }
        dtypes
    }

    fn text(&self, args: &InspectArgs) -> String {
        let (files, tensors) = (self.tensors.files().count(), self.tensors.iter().count());
        let mut text = format!(
            "{}: safetensors, {files} file{}, {tensors} tensors, {}\n\n",
            shown(&lossy(&args.path)),
            if files == 1 { "" } else { "s" },
            render::bytes(self.tensors.bytes())
        );
        let mut facts: Vec<_> = self
            .dtypes()
            .into_iter()
            .map(|(dtype, (tensors, bytes))| ("dtype", format!("{dtype}: {tensors} tensors, {}", render::bytes(bytes))))
            .collect();
        match &self.config {
            None => facts.push(("model", "no config.json beside it".into())),
            Some(Err(problem)) => facts.push(("model", problem.clone())),
            Some(Ok(config)) => facts.extend(config_facts(config)),
        }
        if let Some(Err(problem)) = &self.weights {
            facts.push(("weights", problem.clone()));
        }
        match &self.training {
            None => {}
            Some(Err(_)) if matches!(self.weights, Some(Err(_))) => {}
            Some(Err(problem)) => facts.push(("training", problem.clone())),
            Some(Ok(trained)) => {
                facts.push(("training", trained.scheme.training().text()));
                facts.push(("known by", trained.evidence.into()));
            }
        }
        match &self.plan {
            None => {}
            Some(Err(problem)) => facts.push(("pack", problem.clone())),
            Some(Ok(preview)) => facts.extend(preview.facts()),
        }
        text += &render::facts(&facts);
        if let Some(Ok(preview)) = &self.plan {
            for note in &preview.notes {
                text += &format!("note: {note}\n");
            }
        }
        if args.all {
            let rows = self.tensors.iter().map(|(name, tensor)| {
                let shape: Vec<_> = tensor.shape.iter().map(usize::to_string).collect();
                vec![
                    name.into(),
                    tensor.dtype.to_string(),
                    shape.join(" x "),
                    render::bytes(tensor.bytes.len() as u64),
                ]
            });
            text += "\n";
            text += &render::table(&["tensor", "dtype", ">rows x columns", ">size"], rows.collect());
        }
        text
    }

    fn json(&self, path: &Path) -> InspectReport {
        let tensors = self.tensors.iter().map(|(name, tensor)| TensorReport {
            name: name.into(),
            ty: tensor.dtype.to_string(),
            shape: tensor.shape.iter().map(|&n| n as u64).collect(),
            bytes: Some(tensor.bytes.len() as u64),
        });
        let training = |trained: &Trained| TrainedReport {
            training: trained.scheme.training().facts(),
            known_by: trained.evidence,
        };
        InspectReport::Checkpoint(Box::new(CheckpointReport {
            path: lossy(path),
            bytes: self.tensors.bytes(),
            config: told(&self.config, |config| config.into()),
            weights: told(&self.weights, |word| *word),
            training: told(&self.training, training),
            pack: told(&self.plan, PackPreview::json),
            tensors: tensors.collect(),
        }))
    }
}

/// What was found, in the form that is printed.
fn told<T, R>(found: &Option<Result<T, String>>, report: impl FnOnce(&T) -> R) -> Option<Told<R>> {
    found.as_ref().map(|found| Told::new(found.as_ref().map(report)))
}

impl From<&Config> for ConfigReport {
    fn from(config: &Config) -> Self {
        let dims = &config.dims;
        Self {
            architecture: config.architecture.short_name().into(),
            layers: dims.layers,
            hidden_size: dims.hidden,
            intermediate_size: dims.intermediate,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            head_dim: dims.head_dim,
            vocab_size: dims.vocab,
            context_length: config.context_length,
            tied_head: config.tied_head,
        }
    }
}

impl PackPreview {
    fn json(&self) -> PreviewReport {
        PreviewReport {
            linears: self.linears.iter().map(|(ty, count)| (ty.name(), *count)).collect(),
            activations: activations::reports(self.linears.keys().copied()),
            bytes: self.bytes,
            nmse: self.nmse,
            dead_share: self.dead_share,
            largest_bias: self.largest_bias,
            notes: self.notes.clone(),
        }
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![(self.zeros, render::percent(self.dead_share))];
        facts.extend(self.largest_bias.map(|bias| ("largest bias", render::small(bias))));
        facts.push((
            "pack makes",
            format!(
                "{}, {}, weight NMSE {}",
                render::counts(&self.linears),
                render::bytes(self.bytes),
                render::small(self.nmse)
            ),
        ));
        facts.push((
            "activations",
            activations::line(&self.linears.keys().copied().collect::<Vec<_>>()),
        ));
        facts.retain(|(_, text)| !text.is_empty());
        facts
    }
}

fn config_facts(config: &Config) -> Vec<(&'static str, String)> {
    let dims = &config.dims;
    vec![
        (
            "model",
            format!(
                "{}, {} layers, hidden {}, feed-forward {}, {} heads / {} kv of {}",
                config.architecture.short_name(),
                dims.layers,
                dims.hidden,
                dims.intermediate,
                dims.heads,
                dims.kv_heads,
                dims.head_dim
            ),
        ),
        (
            "tokens",
            format!(
                "vocabulary {}, context {}, head {}",
                dims.vocab,
                config.context_length,
                if config.tied_head {
                    "tied to the embedding"
                } else {
                    "of its own"
                }
            ),
        ),
    ]
}
