//! `--max-kld`: types that are chosen by their KLD, and what is told of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use formats::gguf::Value;
use schemars::JsonSchema;
use serde::Serialize;

use super::{Context, PackArgs, go_on, of_input};
use crate::choose::{self, Backend, ChooseError, Chosen, MOST_TOKENS, Request};
use crate::cli::{lossy, render, shell};
use crate::engine::text::TextOptions;
use crate::files;
use crate::kernels::Isa;
use crate::pack::{Embedding, Plan};

/// Choose the types of the plan, where --max-kld asks for it. `keys`: those of the tokenizer, for a checkpoint.
pub(super) fn types(
    args: &PackArgs,
    context: &Context,
    plan: &mut Plan,
    keys: &[(String, Value)],
    stop: &AtomicBool,
) -> anyhow::Result<Option<Chosen>> {
    let Some(max_kld) = args.max_kld else {
        return Ok(None);
    };
    let request = Request {
        max_kld,
        text: text(args)?,
        target: args.target.into(),
        isa: Isa::best(),
    };
    let bar = render::spinner(!context.quiet);
    let progress = |doing: &str, share| {
        render::show(&bar, &format!("measuring {doing}"), Some(share));
        go_on(stop)
    };
    let chosen = choose::choose(plan, keys, &request, &progress).map_err(|error| match error {
        ChooseError::Pack(error) => of_input(error, args),
        error => anyhow::Error::new(error).context(args.input.display().to_string()),
    })?;
    bar.finish_and_clear();
    Ok(Some(chosen))
}

/// The text that is measured on.
fn text(args: &PackArgs) -> Result<TextOptions, ChooseError> {
    let mut options = TextOptions {
        tokens: MOST_TOKENS,
        ..TextOptions::default()
    };
    if let Some(path) = &args.text {
        options.source = path.display().to_string();
        options.text = read(path)?;
    }
    Ok(options)
}

fn read(path: &Path) -> Result<String, ChooseError> {
    /// Bytes: a thousand times what is measured.
    const LIMIT: u64 = 16 << 20;
    let fail = |source| ChooseError::Read {
        path: path.into(),
        source,
    };
    let bytes = files::read(path, LIMIT).map_err(fail)?;
    let bytes = bytes.ok_or_else(|| fail(io::Error::other("has more than 16 MiB")))?;
    String::from_utf8(bytes).map_err(|error| ChooseError::NotUtf8 {
        path: path.into(),
        at: error.utf8_error().valid_up_to(),
    })
}

fn text_name(args: &PackArgs) -> String {
    args.text
        .as_ref()
        .map_or("the built-in text".into(), |path| lossy(path))
}

/// Lines of the summary.
pub(super) fn facts(args: &PackArgs, chosen: &Chosen) -> Vec<(&'static str, String)> {
    let on = chosen
        .kld
        .iter()
        .map(|(backend, kld)| format!("{} {}", render::small(*kld), backend.place()));
    let (kld, allowed) = (on.collect::<Vec<_>>().join(", "), args.max_kld.unwrap_or_default());
    let (tokens, text) = (render::count(chosen.tokens as u64), text_name(args));
    let files = if chosen.measured == 1 { "file" } else { "files" };
    let whole = format!("{} whole {files}", chosen.measured);
    let by = match chosen.tokens_of_parts {
        0 => format!("--type and --tensor-type alone; measured: {whole}"),
        tokens => {
            let sum = render::small(chosen.sum);
            format!("each linear on {tokens} tokens (KLD together {sum}), {whole}")
        }
    };
    vec![
        ("mean KLD", kld),
        (
            "allowed",
            format!("{allowed:e} nats a token, on {tokens} tokens of {text}"),
        ),
        ("chosen by", by),
    ]
}

/// What was tried for each linear, and what was taken.
pub(super) fn table(chosen: &Chosen) -> String {
    let rows = chosen.linears.iter().map(|linear| {
        let tried = linear.tried.iter().map(|tried| {
            let kld = tried.kld.map_or("not measured".into(), render::small);
            format!("{} {} ({kld})", tried.ty, render::bytes(tried.bytes))
        });
        vec![
            linear.name.clone(),
            linear.ty.to_string(),
            tried.collect::<Vec<_>>().join(", "),
            why(linear),
        ]
    });
    render::table(&["linear", "type", "tried (KLD alone)", "why"], rows.collect())
}

/// Why a linear has its type.
fn why(linear: &choose::Linear) -> String {
    let kld = |tried: &choose::Tried| tried.kld.unwrap_or(0.0);
    let smallest = &linear.tried[0];
    match linear.tried.iter().find(|tried| tried.ty == linear.ty) {
        _ if linear.tried.len() == 1 => "no choice".into(),
        Some(taken) if taken.ty != smallest.ty => format!(
            "saves {} for {} more",
            render::small(kld(smallest) - kld(taken)),
            render::bytes(taken.bytes - smallest.bytes)
        ),
        _ => "smallest".into(),
    }
}

/// The choice, as JSON.
#[derive(Serialize, JsonSchema)]
pub(super) struct ChosenReport {
    /// As `--max-kld` has it.
    allowed_nats: Option<f64>,
    /// Of the whole file, by what computes.
    kld_nats: BTreeMap<&'static str, f64>,
    text: String,
    tokens: usize,
    /// Tokens that each linear was measured on alone.
    tokens_of_parts: usize,
    /// The KLD of all linears alone, together.
    sum_of_parts_nats: f64,
    whole_files_measured: usize,
    linears: Vec<LinearReport>,
}

/// A linear, and why it has its type.
#[derive(Serialize, JsonSchema)]
struct LinearReport {
    name: String,
    #[serde(rename = "type")]
    ty: &'static str,
    why: String,
    tried: Vec<TriedReport>,
}

/// A type that was measured.
#[derive(Serialize, JsonSchema)]
struct TriedReport {
    #[serde(rename = "type")]
    ty: &'static str,
    bytes: u64,
    kld_nats: Option<f64>,
}

impl ChosenReport {
    pub fn new(args: &PackArgs, chosen: &Chosen) -> Self {
        let kld = chosen.kld.iter().map(|(backend, kld)| (backend.key(), *kld));
        Self {
            allowed_nats: args.max_kld,
            kld_nats: kld.collect(),
            text: text_name(args),
            tokens: chosen.tokens,
            tokens_of_parts: chosen.tokens_of_parts,
            sum_of_parts_nats: chosen.sum,
            whole_files_measured: chosen.measured,
            linears: chosen.linears.iter().map(LinearReport::new).collect(),
        }
    }
}

impl LinearReport {
    fn new(linear: &choose::Linear) -> Self {
        let tried = linear.tried.iter().map(|tried| TriedReport {
            ty: tried.ty.name(),
            bytes: tried.bytes,
            kld_nats: tried.kld,
        });
        Self {
            name: linear.name.clone(),
            ty: linear.ty.name(),
            why: why(linear),
            tried: tried.collect(),
        }
    }
}

/// What `verify` is to be told: the text, and what its engines, ours and llama.cpp on the CPU, may be away from the
/// checkpoint.
pub(super) fn words(args: &PackArgs, chosen: &Chosen) -> Vec<OsString> {
    /// What llama.cpp may differ from our engine, and the checkpoint's own pass from that of the reference.
    const MARGIN: f64 = 1.25;
    let mut words = vec![];
    words.extend(args.text.iter().flat_map(|path| shell::option("--text", path)));
    words.extend(shell::option("--tokens", MOST_TOKENS.to_string()));
    let default = [Backend::Cpu, Backend::NATIVE];
    let engines = chosen.kld.iter().filter(|(backend, _)| default.contains(backend));
    let worst = engines.map(|(_, kld)| *kld).reduce(f64::max);
    // What is lost beside the linears is in the checkpoint, and was not in the reference.
    let alike = args.embedding == Embedding::Keep && !args.drop_biases;
    // Nothing is lost where all is F32, and what engines then differ by is above any multiple of 0.
    if let Some(kld) = worst.filter(|kld| alike && *kld > 0.0) {
        words.extend(shell::option("--max-kld", format!("{:e}", rounded_up(MARGIN * kld))));
    }
    words
}

/// The next larger number of two digits.
pub(super) fn rounded_up(number: f64) -> f64 {
    let power = 10f64.powi(number.log10().floor() as i32 - 1);
    let digits = (number / power).ceil();
    format!("{digits}e{}", power.log10().round()).parse().unwrap_or(number)
}
