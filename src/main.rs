//! Parse, run, exit code.

fn main() -> std::process::ExitCode {
    tqconv::cli::main()
}
