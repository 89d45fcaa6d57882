//! The command line: arguments, progress, tables, JSON, exit codes.

pub mod bench;
