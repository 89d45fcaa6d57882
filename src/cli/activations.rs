//! `--activations`: how our engine rounds them.

use anyhow::bail;
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use crate::kernels::ActivationScales;

#[derive(Args, Clone, Copy, Debug)]
pub(super) struct ActivationsArgs {
    /// How many activations share a scale when our engine rounds them to 8 bits
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
