//! What a checkpoint holds, and what `pack` would make of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

use formats::block::BlockType;
use serde_json::json;

use super::super::text::shown;
use super::super::{activations, lossy, pack, print, print_json, render};
use super::InspectArgs;
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
    linears: String,
    types: Vec<BlockType>,
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
            metadata: vec![],
            hash: false,
            split_max_size: None,
            level: Level::widest(),
        };
        let summary = Plan::new(&checkpoint, &options)?
            .run(vec![], None, &|_| ControlFlow::Continue(()))?
            .summary;
        let linears: Vec<_> = summary
            .linears
            .iter()
            .map(|(ty, count)| format!("{count} x {ty}"))
            .collect();
        Ok(Self {
            linears: linears.join(", "),
            types: summary.linears.keys().copied().collect(),
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

    fn json(&self, path: &Path) -> serde_json::Value {
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                json!({"name": name, "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "bytes": tensor.bytes.len()})
            })
            .collect();
        let result = |result: Option<Result<serde_json::Value, String>>| match result {
            None => serde_json::Value::Null,
            Some(Ok(value)) => value,
            Some(Err(problem)) => json!({"problem": problem}),
        };
        let config = self.config.as_ref().map(|config| match config {
            Ok(config) => Ok(json!({
                "architecture": config.architecture.short_name(), "layers": config.dims.layers,
                "hidden_size": config.dims.hidden, "intermediate_size": config.dims.intermediate,
                "heads": config.dims.heads, "kv_heads": config.dims.kv_heads, "head_dim": config.dims.head_dim,
                "vocab_size": config.dims.vocab, "context_length": config.context_length,
                "tied_head": config.tied_head,
            })),
            Err(problem) => Err(problem.clone()),
        });
        let weights = self.weights.as_ref().map(|weights| match weights {
            Ok(word) => Ok((*word).into()),
            Err(problem) => Err(problem.clone()),
        });
        let training = self.training.as_ref().map(|training| match training {
            Ok(trained) => {
                let mut json = trained.scheme.training().json();
                json["known_by"] = trained.evidence.into();
                Ok(json)
            }
            Err(problem) => Err(problem.clone()),
        });
        let pack = self.plan.as_ref().map(|plan| match plan {
            Ok(preview) => Ok(json!({
                "linears": preview.linears, "activations": activations::json_of(&preview.types), "bytes": preview.bytes, "nmse": preview.nmse,
                "dead_share": preview.dead_share, "largest_bias": preview.largest_bias, "notes": preview.notes,
            })),
            Err(problem) => Err(problem.clone()),
        });
        json!({
            "path": lossy(path), "kind": "checkpoint", "bytes": self.tensors.bytes(), "config": result(config),
            "weights": result(weights), "training": result(training), "pack": result(pack), "tensors": tensors,
        })
    }
}

impl PackPreview {
    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![(self.zeros, render::percent(self.dead_share))];
        facts.extend(self.largest_bias.map(|bias| ("largest bias", render::small(bias))));
        facts.push((
            "pack makes",
            format!(
                "{}, {}, weight NMSE {}",
                self.linears,
                render::bytes(self.bytes),
                render::small(self.nmse)
            ),
        ));
        facts.push(("activations", activations::line(&self.types)));
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
