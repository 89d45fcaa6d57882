//! Parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use tqconv::cli::{Cli, message, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", message(&error));
            ExitCode::from(2)
        }
    }
}
