//! The page of `tqconv verify --report`.
use crate::verify::Report;
pub(super) fn page(_report: &Report) -> anyhow::Result<String> {
    Ok(String::new())
}
