//! Parse, run, exit code.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use tqconv::cli::{Cli, exit_code, message, run};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be listening, or the disk behind stderr be full.
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}
