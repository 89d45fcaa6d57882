//! The report as text.

use clap::builder::styling::{AnsiColor, Style};

use super::super::bench::speed_text;
use super::super::render;
use super::super::text::shown;
use crate::metrics::mean;
use crate::verify::{Check, LevelReport, Report, Status, Unit, Verdict};

/// The report for a terminal.
pub struct Text {
    pub colour: bool,
}

impl Text {
    pub fn report(&self, report: &Report) -> String {
        let mut text = self.verdict(report);
        for level in &report.levels {
            text += &self.level(level);
        }
        text += &facts(report);
        for note in &report.notes {
            text += &format!("note: {}\n", shown(note));
        }
        text
    }

    fn verdict(&self, report: &Report) -> String {
        let checks = report.levels.iter().map(|level| level.checks.len()).sum::<usize>();
        let failed: Vec<_> = report.failures().collect();
        let file = shown(&report.file);
        let against = report.compared_with().map(shown);
        if report.verdict == Verdict::Disagrees {
            let head = match &against {
                Some(against) => format!("{file} disagrees with {against}"),
                None => format!("{file} is not sound"),
            };
            let mut text = format!(
                "{}: {} of {checks} checks failed\n",
                self.paint(&head, RED),
                failed.len()
            );
            for (level, check) in failed {
                text += &format!("  level {}, {}\n", level.number(), shown(&check.name));
                for detail in &check.details {
                    text += &format!("    {}\n", shown(detail));
                }
            }
            return text;
        }
        if report.verdict == Verdict::NothingChecked {
            return format!("{file}: {}\n", self.paint("nothing was checked", YELLOW));
        }
        let head = match &against {
            Some(against) => self.paint(&format!("{file} agrees with {against}"), GREEN),
            None => self.paint(
                &format!("{file} is sound, but was not compared with a checkpoint"),
                YELLOW,
            ),
        };
        let levels: Vec<_> = report
            .levels
            .iter()
            .filter(|report| report.status == Status::Passed)
            .map(|report| report.level.number().to_string())
            .collect();
        format!(
            "{head}: all {checks} checks passed ({} {})\n",
            if levels.len() == 1 { "level" } else { "levels" },
            levels.join(", ")
        )
    }

    fn level(&self, report: &LevelReport) -> String {
        let status = match report.status {
            Status::Passed => self.paint("passed", GREEN),
            Status::Failed => self.paint("failed", RED),
            Status::NotChecked => self.paint("not checked", YELLOW),
            Status::Measured => "measured".into(),
        };
        let mut text = format!("\nlevel {} {}: {status}\n", report.level.number(), report.level.name());
        let rows: Vec<_> = report.checks.iter().map(row).collect();
        if !rows.is_empty() {
            let head = ["", "check", ">found", ">limit", "from"];
            text += &render::marked_table(&head, rows, |row, mark| {
                self.paint(mark, if report.checks[row].pass { GREEN } else { RED })
            });
        }
        for not in &report.not_checked {
            text += &format!(
                "  {}: {}: {}\n",
                self.paint("not checked", YELLOW),
                shown(&not.what),
                shown(&not.why)
            );
        }
        text
    }

    fn paint(&self, text: &str, style: Style) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.into()
        }
    }
}

fn row(check: &Check) -> Vec<String> {
    vec![
        if check.pass { "  ok" } else { "FAIL" }.into(),
        check.name.clone(),
        found(check),
        limit(check),
        check.origin.into(),
    ]
}

const RED: Style = AnsiColor::Red.on_default().bold();
const GREEN: Style = AnsiColor::Green.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();

/// What was found, with its unit: `0 wrong of 3 145 728 codes`, `1.7e-4 nats/token`.
pub fn found(check: &Check) -> String {
    match check.of {
        Some(of) => format!(
            "{} wrong of {} {}",
            render::count(check.found as u64),
            render::count(of),
            check.unit.name()
        ),
        None => quantity(check.found, check.unit),
    }
}

/// The limit, with the unit of what was found: `<= 5.0e-4 nats`; `0` where things are counted.
pub fn limit(check: &Check) -> String {
    match check.unit {
        Unit::Things(_) => "0".into(),
        unit => format!("<= {}", quantity(check.limit.at_most, unit)),
    }
}

fn quantity(value: f64, unit: Unit) -> String {
    let number = match value.abs() {
        0.01..1000.0 => format!("{value:.2}"),
        _ => render::small(value),
    };
    format!("{number} {}", unit.name()).trim_end().to_owned()
}

/// Figures that are no checks: perplexities, speeds.
fn facts(report: &Report) -> String {
    let mut text = String::new();
    if let Some(build) = &report.llama_cpp {
        text += &format!("asked as a witness: {}\n", shown(&build.to_string()));
    }
    if let Some(facts) = &report.text {
        text += &format!(
            "\nover {} predictions of {}, windows of {} tokens\n",
            render::count(facts.tokens as u64),
            shown(&facts.source),
            facts.window
        );
        let engines = std::iter::once(&facts.reference).chain(&facts.tested);
        let rows = engines.map(|engine| {
            let from = |value: Option<String>| value.unwrap_or_default();
            vec![
                format!("  {}", engine.name),
                format!("{:.4}", engine.perplexity),
                from((!engine.kld.is_empty()).then(|| quantity(mean(&engine.kld), Unit::NatsPerToken))),
                from(engine.top1.map(render::percent)),
            ]
        });
        let kld = format!(">mean KLD from {}", facts.reference.name.short);
        text += &render::table(&["", ">perplexity", &kld, ">top-1"], rows.collect());
        text += &format!(
            "rounded activations cost this model {}\n",
            quantity(facts.rounding, Unit::NatsPerToken)
        );
    }
    if let Some(speed) = &report.speed {
        text += &speed_text(speed);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_units() {
        assert_eq!(quantity(1.7e-4, Unit::NatsPerToken), "1.7e-4 nats/token");
        assert_eq!(quantity(0.25, Unit::Ratio), "0.25");
    }
}
