//! Activations: `--activations`, how our engine rounds them, and what a block type brings on other engines.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use formats::block::BlockType;
use schemars::JsonSchema;
use serde::Serialize;

use super::render;
use crate::engine::backends::Backend;
use crate::kernels::ActivationScales;

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ActivationsArgs {
    /// How many activations share a scale when our engine rounds them to 8 bits
    ///
    /// Finer scales cost nothing while decoding, and up to a third of the speed of a prompt: docs/benchmarks.md.
    #[arg(long, value_name = "SCALES", default_value = ActivationScales::LlamaCpp.name(), value_parser = parser())]
    pub activations: ActivationScales,
}

fn parser() -> impl TypedValueParser<Value = ActivationScales> {
    let values = ActivationScales::ALL.map(|scales| PossibleValue::new(scales.name()).help(help(scales)));
    PossibleValuesParser::new(values).map(|name| {
        let named = ActivationScales::ALL.into_iter().find(|scales| scales.name() == name);
        named.expect("one of the possible values")
    })
}

fn help(scales: ActivationScales) -> &'static str {
    match scales {
        ActivationScales::LlamaCpp => "As many as in llama.cpp: 256 with TQ1_0, TQ2_0 and the K types, 32 with others",
        ActivationScales::Per64 => "At most 64",
        ActivationScales::Per32 => "At most 32: closest to the checkpoint",
        ActivationScales::Fast => "Up to 256 with Q2_0 and Q4_0, too: least work",
    }
}

impl ActivationsArgs {
    /// # Errors
    /// Something else was asked for than what llama.cpp does.
    pub fn of_llama_cpp(self) -> anyhow::Result<()> {
        match self.activations {
            ActivationScales::LlamaCpp => Ok(()),
            other => bail!(
                "--activations {other} is for our engine, and llama.cpp rounds activations in its own way: \
                 leave it out, or pass --engine native"
            ),
        }
    }
}

/// How many activations share a scale on each backend of llama.cpp, for those of `types` that make it round them to 8
/// bits anywhere; empty where there are none.
pub(super) fn table(types: &[BlockType]) -> String {
    let rows: Vec<_> = types.iter().copied().filter(rounds).map(row).collect();
    if rows.is_empty() {
        return String::new();
    }
    let head = ["8-bit activations to a scale", "CPU", "CUDA", "Metal"];
    format!("\n{}", render::table(&head, rows))
}

/// Whether any backend rounds activations to 8 bits for this type.
fn rounds(ty: &BlockType) -> bool {
    Backend::Cpu.rounded(*ty).is_some()
}

fn row(ty: BlockType) -> Vec<String> {
    let backends = Backend::ALL.map(|backend| words(ty, backend));
    std::iter::once(ty.to_string()).chain(backends).collect()
}

/// `256`, `32; for more than 8 tokens 64`, `not rounded`, `256 (left to the CPU)`.
fn words(ty: BlockType, backend: Backend) -> String {
    match backend.rounded(ty).map(|rounded| (rounded.few, rounded.many)) {
        Some((Some(few), Some(many))) if few != many => format!("{few}; for more than 8 tokens {many}"),
        Some((Some(few), _)) => few.to_string(),
        Some((None, _)) => "not rounded".into(),
        None => format!("{} (left to the CPU)", words(ty, Backend::Cpu)),
    }
}

/// One line: `Q2_K 256, Q4_0 32 to a scale on CPUs; Q2_K 32, Q4_0 32 on CUDA`.
pub(super) fn line(types: &[BlockType]) -> String {
    let on = |backend: Backend| {
        let rounded = types.iter().filter_map(|&ty| Some((ty, backend.rounded(ty)?.few?)));
        let parts: Vec<_> = rounded.map(|(ty, few)| format!("{ty} {few}")).collect();
        parts.join(", ")
    };
    match (on(Backend::Cpu), on(Backend::Cuda)) {
        (cpu, _) if cpu.is_empty() => cpu,
        (cpu, cuda) if cuda.is_empty() => format!("{cpu} to a scale on CPUs"),
        (cpu, cuda) => format!("{cpu} to a scale on CPUs; {cuda} on CUDA"),
    }
}

/// How llama.cpp rounds activations for a type: by backend, in lower case. null in the place of a backend: it leaves the
/// type to the CPU.
pub(super) type ActivationsReport = BTreeMap<String, Option<RoundedReport>>;

/// How many activations share a scale. null in the place of a number: they are not rounded to 8 bits.
#[derive(Serialize, JsonSchema)]
pub(super) struct RoundedReport {
    few_tokens: Option<usize>,
    /// Of more than 8.
    many_tokens: Option<usize>,
}

/// The same for `--json`; `None` for a type that rounds nowhere.
pub(super) fn report(ty: BlockType) -> Option<ActivationsReport> {
    let backends = Backend::ALL.map(|backend| {
        let rounded = backend.rounded(ty).map(|rounded| RoundedReport {
            few_tokens: rounded.few,
            many_tokens: rounded.many,
        });
        (backend.name().to_lowercase(), rounded)
    });
    rounds(&ty).then(|| backends.into_iter().collect())
}

/// The same of several types, by their names.
pub(super) fn reports(types: impl IntoIterator<Item = BlockType>) -> BTreeMap<&'static str, Option<ActivationsReport>> {
    types.into_iter().map(|ty| (ty.name(), report(ty))).collect()
}
