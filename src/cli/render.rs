//! How numbers, tables and progress look: every number with its unit.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use console::{Alignment, Term, measure_text_width, pad_str};
use formats::block::BlockType;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text::shown;
use crate::model::Scheme;

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

/// How many things are of each type: `26 x Q2_K, 2 x Q4_0`.
pub fn counts(counts: &BTreeMap<BlockType, usize>) -> String {
    let counts: Vec<_> = counts.iter().map(|(ty, count)| format!("{count} x {ty}")).collect();
    counts.join(", ")
}

/// An error or another small number: `5.2e-5`, or `0` where there is none.
pub fn small(value: f64) -> String {
    if value == 0.0 {
        "0".into()
    } else {
        format!("{value:.1e}")
    }
}

/// Something a second: `9.3`, `18 896`.
pub fn rate(value: f64) -> String {
    if value < 1000.0 {
        format!("{value:.1}")
    } else {
        count(value.round() as u64)
    }
}

/// A share as a percentage: `31.5 %`.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// What the weights with code 0 are called: where they go on working as a bias, a dead zone.
pub fn zeros(scheme: &Scheme) -> &'static str {
    match scheme.training().has_biases() {
        true => "dead zone",
        false => "zeros",
    }
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

/// What is being done, on stderr, where that is a terminal and progress is wanted.
pub fn spinner(wanted: bool) -> ProgressBar {
    if !wanted || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    const TICK: Duration = Duration::from_millis(100);
    let style = ProgressStyle::with_template(DOING);
    let bar = ProgressBar::new_spinner().with_style(style.expect("the template is sound"));
    // Where no thread can be started it does without.
    if std::thread::Builder::new().spawn(|| ()).is_ok() {
        bar.enable_steady_tick(TICK);
    }
    bar
}

/// Show on a [`spinner`] what is being done, and where `share` (0 to 1) of it is known to be behind, that and how long the
/// rest will take.
pub fn show(spinner: &ProgressBar, doing: &str, share: Option<f64>) {
    const STEPS: u64 = 1000;
    spinner.set_message(shown(doing));
    match share {
        Some(share) => {
            if spinner.length().is_none() {
                let style = "{elapsed:>4} {spinner} {msg}: {percent} %, {eta} left";
                spinner.set_style(ProgressStyle::with_template(style).expect("the template is sound"));
                spinner.set_length(STEPS);
                spinner.reset_eta();
            }
            spinner.set_position((share * STEPS as f64) as u64);
        }
        None if spinner.length().is_some() => {
            spinner.unset_length();
            spinner.set_style(ProgressStyle::with_template(DOING).expect("the template is sound"));
        }
        None => {}
    }
}

const DOING: &str = "{elapsed:>4} {spinner} {msg}";

/// `name  value` lines, names padded to one width. Names and values are shown on one line each, whatever they hold.
pub fn facts(lines: &[(&str, String)]) -> String {
    let lines: Vec<_> = lines.iter().map(|(name, value)| (shown(name), shown(value))).collect();
    let width = lines
        .iter()
        .map(|(name, _)| measure_text_width(name))
        .max()
        .unwrap_or(0);
    lines
        .iter()
        .map(|(name, value)| {
            let name = pad_str(name, width, Alignment::Left, None);
            format!("  {name}  {value}\n")
        })
        .collect()
}

/// A table with a head line; columns whose head starts with `>` are set to the right. On a terminal that is too narrow
/// for it, the last cell of each line stands below the others. Cells are shown on one line each, whatever they hold.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    marked_table(head, rows, |_, cell| cell.into())
}

/// [`table`] whose first column is painted: `paint` is given the row and the cell.
pub fn marked_table(head: &[&str], rows: Vec<Vec<String>>, paint: impl Fn(usize, &str) -> String) -> String {
    let terminal = Term::stdout();
    let room = terminal.is_term().then(|| usize::from(terminal.size().1));
    table_within(room.unwrap_or(usize::MAX), head, rows, paint)
}

/// [`marked_table`] for a terminal of `room` columns.
fn table_within(
    room: usize,
    head: &[&str],
    mut rows: Vec<Vec<String>>,
    paint: impl Fn(usize, &str) -> String,
) -> String {
    rows.insert(
        0,
        head.iter()
            .map(|name| name.trim_start_matches('>').to_owned())
            .collect(),
    );
    rows.iter_mut().flatten().for_each(|cell| *cell = shown(cell));
    let width = |column: usize| {
        rows.iter()
            .map(|row| measure_text_width(&row[column]))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let whole = widths.iter().sum::<usize>() + GAP.len() * (head.len() - 1);
    let beside = if whole > room { head.len() - 1 } else { head.len() };
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        let cells = row
            .iter()
            .zip(&widths)
            .zip(head)
            .take(beside)
            .map(|((cell, width), head)| {
                let alignment = if head.starts_with('>') {
                    Alignment::Right
                } else {
                    Alignment::Left
                };
                pad_str(cell, *width, alignment, None).into_owned()
            });
        let mut cells: Vec<_> = cells.collect();
        if number > 0 {
            cells[0] = paint(number - 1, &cells[0]);
        }
        text += cells.join(GAP).trim_end();
        text.push('\n');
        for below in row.iter().skip(beside).filter(|cell| !cell.is_empty()) {
            text += &format!("{BELOW}{below}\n");
        }
    }
    text
}

const GAP: &str = "  ";
const BELOW: &str = "        ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_whatever_is_painted_and_fit_their_terminal() {
        let rows = || vec![vec!["ok".into(), "7 B".into(), "first\nsecond\u{1b}[1m".into()]];
        let paint = |row: usize, cell: &str| format!("\u{1b}[3{}m{cell}\u{1b}[0m", row + 2);
        let wide = table_within(80, &["", ">size", "from"], rows(), paint);
        assert_eq!(
            wide,
            "    size  from\n\u{1b}[32mok\u{1b}[0m   7 B  first\\nsecond\\u{1b}[1m\n"
        );
        let narrow = table_within(20, &["", ">size", "from"], rows(), paint);
        let below = "        ";
        let expected = [
            "    size\n",
            below,
            "from\n\u{1b}[32mok\u{1b}[0m   7 B\n",
            below,
            "first\\nsecond\\u{1b}[1m\n",
        ];
        assert_eq!(narrow, expected.concat());
    }

    #[test]
    fn numbers_have_units() {
        assert_eq!(
            [999, 1_000, 1_700_000, 2_500_000_000].map(bytes),
            ["999 B", "1.0 kB", "1.7 MB", "2.50 GB"]
        );
        assert_eq!([0, 999, 1000, 3145728].map(count), ["0", "999", "1 000", "3 145 728"]);
        assert_eq!([0.0, 5.23e-5].map(small), ["0", "5.2e-5"]);
        assert_eq!(percent(0.31459), "31.5 %");
        assert_eq!([9.26, 18895.7].map(rate), ["9.3", "18 896"]);
    }
}
