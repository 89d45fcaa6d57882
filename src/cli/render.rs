//! How numbers, tables and progress look: every number with its unit.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Bytes with a decimal unit: `1.7 MB` (1 MB = 1e6 B).
pub fn bytes(n: u64) -> String {
    let value = n as f64;
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", value / 1e6),
        _ => format!("{:.2} GB", value / 1e9),
    }
}

/// A count with thin groups: `3 145 728`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<_> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(" ")
}

/// An error or another small number: `5.2e-5`, or `0` where there is none.
pub fn small(value: f64) -> String {
    if value == 0.0 {
        "0".into()
    } else {
        format!("{value:.1e}")
    }
}

/// A share as a percentage: `31.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Seconds: `0.18 s`, `75 s`.
pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 {
        format!("{seconds:.2} s")
    } else {
        format!("{seconds:.0} s")
    }
}

/// A bar over `total` bytes on stderr, where that is a terminal and progress is wanted.
pub fn progress_bar(what: &'static str, total: u64, wanted: bool) -> ProgressBar {
    const PER_SECOND: u8 = 10;
    let target = if wanted {
        ProgressDrawTarget::stderr_with_hz(PER_SECOND)
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(
        "{prefix:>8} {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
    )
    .expect("the template is sound");
    ProgressBar::with_draw_target(Some(total), target)
        .with_style(style)
        .with_prefix(what)
}

/// `name  value` lines, names padded to one width.
pub fn facts(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| format!("  {name:width$}  {value}\n"))
        .collect()
}

/// A table with a head line; columns whose head starts with `>` are set to the right.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    use comfy_table::{CellAlignment, Table, presets};
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().map(|name| name.trim_start_matches('>')));
    for (index, name) in head.iter().enumerate() {
        let alignment = if name.starts_with('>') {
            CellAlignment::Right
        } else {
            CellAlignment::Left
        };
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(alignment);
        }
    }
    table.add_rows(rows);
    let lines: Vec<_> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        assert_eq!(
            [999, 1_000, 1_700_000, 2_500_000_000].map(bytes),
            ["999 B", "1.0 kB", "1.7 MB", "2.50 GB"]
        );
        assert_eq!(
            [0, 999, 1000, 3145728].map(count),
            ["0", "999", "1 000", "3 145 728"]
        );
        assert_eq!([0.0, 5.23e-5].map(small), ["0", "5.2e-5"]);
        assert_eq!(percent(0.31459), "31.5 %");
    }
}
