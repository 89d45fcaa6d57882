//! `tqconv inspect`: what a checkpoint or a GGUF file holds.
use clap::Args;
use std::process::ExitCode;
/// Show what a checkpoint or a GGUF file holds
#[derive(Args)]
pub struct InspectArgs {}
pub(super) fn run(_args: &InspectArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
