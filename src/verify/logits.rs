//! Level 4: the engines on a text. The oracle computes the latent checkpoint by the formula, in f64; our engine and
//! llama.cpp run the file. Without a checkpoint the two are held against each other.

use std::path::Path;

use formats::gguf::File;

use super::latent::Dense;
use super::report::{Check, EngineFacts, Level, Limit, NotChecked, TextFacts};
use super::witness::Witness;
use super::{Against, Options, Progress, TextOptions, VerifyError};
use crate::engine::Engine;
use crate::engine::native::{self, Native};
use crate::engine::oracle::Oracle;
use crate::engine::text::Text;
use crate::metrics;

pub(super) const NUMBER: u8 = 4;
pub(super) const NAME: &str = "logits";

/// Dense weights in f32 beyond which the oracle is not run unless asked for by level: it takes minutes there.
const ORACLE_BYTES: u64 = 6_000_000_000;

/// What an engine may be off. 8-bit activations cost a trained model a mean KLD of 1.3e-4 nats a token and 1 % of the top-1
/// choices, and random ones up to 5e-4 and 4 %; a broken part costs a thousand times that. Lost weights cost 7 nats for each
/// unit of their NMSE (docs/verify.md).
struct Limits {
    kld: f64,
    top1: f64,
    nmse: f64,
    /// |ln perplexity / perplexity of the reference|
    perplexity: f64,
}

impl Limits {
    /// For a file whose weights have this NMSE, over so many predictions.
    fn new(weight_nmse: f64, layers: usize, tokens: usize, max_kld: Option<f64>) -> Self {
        let tokens = tokens as f64;
        let kld = max_kld.unwrap_or(2e-3 + 14.0 * weight_nmse);
        let part = (0.03 + 2.0 * weight_nmse.sqrt()).min(1.0);
        let chance = 3.0 * (part * (1.0 - part) / tokens).sqrt();
        Self {
            kld,
            top1: 1.0 - (part + chance).min(1.0),
            nmse: 5e-4 * (layers + 1) as f64 + 10.0 * weight_nmse,
            perplexity: kld + 3.0 * (2.0 * kld / tokens).sqrt(),
        }
    }
}

/// Run the engines. `weight_nmse`: what the weights of the file are known to have lost.
pub(super) fn check(
    path: &Path,
    file: &File,
    against: Option<&Against>,
    options: &Options,
    weight_nmse: f64,
    progress: &Progress,
) -> Result<(Level, Option<TextFacts>), VerifyError> {
    let mut not_checked = vec![];
    let text = match Windows::cut(file, &options.text) {
        Ok(windows) => windows,
        Err(why) => return Ok((Level::not_checked(NUMBER, NAME, why), None)),
    };
    let native = match Native::load(file, native::Settings::new(text.window, options.threads)) {
        Ok(native) => native,
        Err(error) => return Ok((Level::not_checked(NUMBER, NAME, error.to_string()), None)),
    };
    let layers = native.shape().layers;
    let mut reference: Option<Box<dyn Engine + '_>> = None;
    match against {
        None => not_checked.push(NotChecked::new("the oracle", super::NO_CHECKPOINT)),
        Some(against) => match oracle(against, &text, options) {
            Ok(oracle) => reference = Some(oracle),
            Err(why) => not_checked.push(NotChecked::new("the oracle", why)),
        },
    }
    let oracle = reference.is_some();
    let model = Witness::load(path, file);
    let mut tested: Vec<Box<dyn Engine + '_>> = vec![];
    match reference {
        Some(_) => tested.push(Box::new(native)),
        None => reference = Some(Box::new(native)),
    }
    match model
        .as_ref()
        .map(|model| model.engine(&text, options.threads))
    {
        Ok(Ok(engine)) => tested.push(engine),
        Ok(Err(error)) => not_checked.push(NotChecked::new("llama.cpp", error.to_string())),
        Err(why) => not_checked.push(NotChecked::new("llama.cpp", why.clone())),
    }
    let mut reference = reference.expect("one of the two was put there");
    if tested.is_empty() {
        return Ok((Level::new(NUMBER, NAME, vec![], not_checked), None));
    }

    let mut found: Vec<Found> = tested.iter().map(|_| Found::default()).collect();
    let mut surprisals = vec![];
    for (index, window) in text.windows.iter().enumerate() {
        progress(&format!(
            "logits: window {} of {}",
            index + 1,
            text.windows.len()
        ));
        let expected = reference.logits(&window.tokens)?;
        surprisals.extend(metrics::surprisals(&expected, &window.next, text.vocab));
        for (engine, found) in tested.iter_mut().zip(&mut found) {
            found.add(
                &expected,
                &engine.logits(&window.tokens)?,
                window,
                text.vocab,
            );
        }
    }
    let limits = Limits::new(weight_nmse, layers, text.predictions(), options.max_kld);
    let perplexity = metrics::perplexity(&surprisals);
    let mut checks: Vec<Check> = model.iter().map(|model| model.same_tokens(&text)).collect();
    for (engine, found) in tested.iter().zip(&found) {
        let name = short_name(engine.name());
        checks.extend(found.checks(&name, &limits, perplexity));
    }
    let facts = TextFacts {
        source: options.text.source.clone(),
        tokens: text.predictions(),
        window: text.window,
        reference: EngineFacts {
            name: reference.name(),
            perplexity,
            kld: vec![],
        },
        oracle,
        tested: tested
            .iter()
            .zip(found)
            .map(|(engine, found)| EngineFacts {
                name: engine.name(),
                perplexity: metrics::perplexity(&found.surprisals),
                kld: found.kld,
            })
            .collect(),
    };
    Ok((Level::new(NUMBER, NAME, checks, not_checked), Some(facts)))
}

fn oracle<'a>(
    against: &'a Against,
    text: &Windows,
    options: &Options,
) -> Result<Box<dyn Engine + 'a>, String> {
    let config = &against.checkpoint.config;
    if config.vocab_size != text.vocab {
        return Err(format!(
            "the checkpoint has {} tokens, the file {}",
            config.vocab_size, text.vocab
        ));
    }
    let weights: u64 = against
        .checkpoint
        .tensors
        .iter()
        .map(|(_, tensor)| tensor.len() as u64)
        .sum();
    let bytes = 4 * weights;
    if bytes > ORACLE_BYTES && !options.oracle_at_any_size {
        return Err(format!(
            "{:.1} GB of weights in f32 would take long; ask for it with --levels 4",
            bytes as f64 / 1e9
        ));
    }
    Ok(Box::new(Oracle(Dense::new(&against.checkpoint))))
}

/// `native` of `native (kernel, threads)`.
fn short_name(name: String) -> String {
    name.split(" (").next().unwrap_or_default().to_owned()
}

/// What one engine gave on the text.
#[derive(Default)]
struct Found {
    kld: Vec<f64>,
    surprisals: Vec<f64>,
    same_top: usize,
    error: f64,
    energy: f64,
}

impl Found {
    fn add(&mut self, expected: &[f32], found: &[f32], window: &Window, vocab: usize) {
        self.kld
            .extend(metrics::kld_per_token(expected, found, vocab));
        self.surprisals
            .extend(metrics::surprisals(found, &window.next, vocab));
        let share = metrics::top1_agreement(expected, found, vocab);
        self.same_top += (share * window.tokens.len() as f64).round() as usize;
        let energy: f64 = expected.iter().map(|&a| f64::from(a) * f64::from(a)).sum();
        self.energy += energy;
        self.error += metrics::nmse(expected, found) * energy;
    }

    fn checks(&self, name: &str, limits: &Limits, perplexity: f64) -> Vec<Check> {
        const KLD: &str = "4 x what 8-bit activations cost random models, and the weight NMSE";
        const TOP1: &str =
            "3 x what 8-bit activations cost, the weight NMSE, 3 sigma of the sample";
        const NMSE: &str = "ggml's own limit for a product, for each layer; the weight NMSE";
        const PERPLEXITY: &str = "what the KLD limit allows, 3 sigma of the sample";
        let at_most = Limit::AtMost;
        let same = self.same_top as f64 / self.kld.len() as f64;
        let ours = metrics::perplexity(&self.surprisals);
        let worst = metrics::worst(self.kld.iter().copied().enumerate());
        let (worst_at, worst) = worst.unwrap_or((0, f64::NAN));
        let mut mean = Check::new(
            format!("{name}: mean KLD"),
            metrics::mean(&self.kld),
            "nats/token",
            at_most(limits.kld),
            KLD,
        );
        if !mean.pass {
            mean = mean.with_details(vec![format!(
                "the worst token is number {worst_at}: {worst:.1e} nats"
            )]);
        }
        vec![
            mean,
            Check::new(
                format!("{name}: worst KLD"),
                worst,
                "nats",
                at_most(WORST * limits.kld),
                SINGLE,
            ),
            Check::new(
                format!("{name}: top-1"),
                same,
                "share",
                Limit::AtLeast(limits.top1),
                TOP1,
            ),
            Check::new(
                format!("{name}: logit NMSE"),
                self.error / self.energy,
                "",
                at_most(limits.nmse),
                NMSE,
            ),
            Check::new(
                format!("{name}: perplexity, off by"),
                (ours / perplexity).ln().abs(),
                "",
                at_most(limits.perplexity),
                PERPLEXITY,
            ),
        ]
    }
}

/// How much more than the mean a single token may be off.
const WORST: f64 = 200.0;
const SINGLE: &str = "200 x the limit of the mean: a single broken position";

/// A text as windows of tokens, each to be run from an empty context.
pub(super) struct Windows {
    windows: Vec<Window>,
    /// Tokens of the longest one.
    pub(super) window: usize,
    vocab: usize,
    /// What the file's tokenizer is to be compared on.
    #[cfg_attr(not(feature = "llama"), allow(dead_code))]
    pub(super) samples: Samples,
}

/// Our tokenizer of the file, and the text.
#[cfg_attr(not(feature = "llama"), allow(dead_code))]
pub(super) struct Samples {
    pub(super) tokenizer: Text,
    pub(super) text: String,
}

struct Window {
    tokens: Vec<u32>,
    /// The token that follows each.
    next: Vec<u32>,
}

impl Windows {
    fn cut(file: &File, options: &TextOptions) -> Result<Self, String> {
        let mut text = Text::from_gguf(file).map_err(|error| error.to_string())?;
        let tokens = text.encode(&options.text, false);
        let first = text.encode("", true).first().copied();
        let first = first.filter(|&token| token == text.bos()); // where every text begins with it
        let context = file
            .get("llama.context_length")
            .and_then(formats::gguf::Value::as_u32);
        let window = options
            .window
            .min(context.map_or(usize::MAX, |n| n as usize));
        let lead = usize::from(first.is_some());
        let step = window.saturating_sub(lead).max(1);
        let count = options.tokens.min(tokens.len().saturating_sub(1));
        if count == 0 {
            return Err("the text is too short: two tokens at least are needed".into());
        }
        let windows: Vec<_> = (0..count)
            .step_by(step)
            .map(|start| {
                let end = (start + step).min(count);
                let lead = first.into_iter();
                Window {
                    tokens: lead
                        .clone()
                        .chain(tokens[start..end].iter().copied())
                        .collect(),
                    next: lead
                        .map(|_| tokens[start])
                        .chain(tokens[start + 1..=end].iter().copied())
                        .collect(),
                }
            })
            .collect();
        // Compared with llama.cpp, text is split as llama.cpp is known to split it.
        text.split_as_llama_cpp()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            window: windows[0].tokens.len(),
            windows,
            vocab: text.len(),
            samples: Samples {
                tokenizer: text,
                text: options.text.clone(),
            },
        })
    }

    fn predictions(&self) -> usize {
        self.windows.iter().map(|window| window.tokens.len()).sum()
    }
}
