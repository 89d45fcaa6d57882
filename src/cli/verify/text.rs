//! The report as text: what is wrong, a line for each level, the verdict last.

use clap::builder::styling::{AnsiColor, Style};

use super::super::bench::speed_text;
use super::super::render;
use super::super::text::shown;
use crate::engine::cache_text;
use crate::metrics::mean;
use crate::verify::{Check, LevelReport, LinkCause, LinkFacts, Report, Status, TextFacts, Unit, Verdict};

/// The report for a terminal.
pub struct Text {
    pub colour: bool,
    /// Whether every check is shown, and not only what failed.
    pub verbose: bool,
}

impl Text {
    pub fn report(&self, report: &Report) -> String {
        let mut text = self.mismatch(report);
        for level in &report.levels {
            // Of another model all numbers differ, which says nothing.
            text += &self.level(level, report.mismatches.is_empty());
        }
        text += &self.figures(report);
        for note in &report.notes {
            text += &format!("note: {}\n", shown(note));
        }
        text + &self.verdict(report)
    }

    /// That the file was packed from something else; empty where it was not.
    fn mismatch(&self, report: &Report) -> String {
        let different = report.mismatches.iter().map(ToString::to_string);
        let different: Vec<_> = different.map(|different| shown(&different)).collect();
        let Some(against) = report.against.as_deref().filter(|_| !different.is_empty()) else {
            return String::new();
        };
        let head = self.paint(&format!("{} is another model", shown(against)), RED);
        format!("{head}: {}\n", different.join("; "))
    }

    /// One line: what came of it.
    pub fn verdict(&self, report: &Report) -> String {
        let checks = report.levels.iter().map(|level| level.checks.len()).sum::<usize>();
        let file = shown(&report.file);
        let against = report.compared_with().map(shown);
        let (head, style) = match (report.verdict, against) {
            (Verdict::Agrees, Some(against)) => (format!("{file} agrees with {against}"), GREEN),
            (Verdict::Agrees | Verdict::Sound, _) => (
                format!("{file} is sound, but was not compared with a checkpoint"),
                YELLOW,
            ),
            (Verdict::Disagrees, Some(against)) => (format!("{file} disagrees with {against}"), RED),
            (Verdict::Disagrees, None) => (format!("{file} is not sound"), RED),
            (Verdict::NothingChecked, _) => (format!("{file}: nothing was checked"), YELLOW),
        };
        let counts = match (report.verdict, report.failures().count()) {
            (Verdict::NothingChecked, _) => String::new(),
            (_, 0) => format!(": all {checks} checks passed"),
            (_, failed) => format!(": {failed} of {checks} checks failed"),
        };
        let not_checked = match report.levels.iter().map(|level| level.not_checked.len()).sum::<usize>() {
            0 => String::new(),
            _ if report.verdict == Verdict::NothingChecked => String::new(),
            count => format!(", {count} not checked"),
        };
        format!("{}{counts}{not_checked}\n", self.paint(&head, style))
    }

    /// `details`: whether it is told where things differ.
    fn level(&self, report: &LevelReport, details: bool) -> String {
        let mut text = format!(
            "level {} {}: {}\n",
            report.level.number(),
            report.level.name(),
            self.counts(report)
        );
        if self.verbose && !report.checks.is_empty() {
            let head = ["", "check", ">found", ">limit", "from"];
            let rows = report.checks.iter().map(row).collect();
            text += &render::marked_table(&head, rows, |row, mark| {
                self.paint(mark, if report.checks[row].pass { GREEN } else { RED })
            });
        }
        for check in report
            .checks
            .iter()
            .filter(|check| !check.pass && (details || self.verbose))
        {
            text += &self.failure(check);
        }
        for not in &report.not_checked {
            let mark = self.paint("not checked", YELLOW);
            text += &format!("  {mark}: {}: {}\n", shown(&not.what), shown(&not.why));
        }
        text
    }

    /// `15 ok, 1 failed, 2 not checked`
    fn counts(&self, report: &LevelReport) -> String {
        if report.status == Status::Measured {
            return "measured".into();
        }
        let passed = report.checks.iter().filter(|check| check.pass).count();
        let counts = [
            (passed, "ok", GREEN),
            (report.checks.len() - passed, "failed", RED),
            (report.not_checked.len(), "not checked", YELLOW),
        ];
        let counts = counts.into_iter().filter(|(count, ..)| *count > 0);
        let counts: Vec<_> = counts
            .map(|(count, what, style)| self.paint(&format!("{count} {what}"), style))
            .collect();
        counts.join(", ")
    }

    fn failure(&self, check: &Check) -> String {
        let mut text = format!(
            "  {} {}: {}, limit {}\n",
            self.paint("FAIL", RED),
            shown(&check.name),
            found(check),
            limit(check)
        );
        for detail in &check.details {
            text += &format!("    {}\n", shown(detail));
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

    /// Figures that are no checks: perplexities, speeds.
    fn figures(&self, report: &Report) -> String {
        let mut text = String::new();
        if let Some(facts) = &report.text {
            text += &links(facts, self.verbose);
        }
        if let Some(speed) = &report.speed {
            text += &speed_text(speed, self.verbose);
        }
        if let Some(build) = &report.llama_cpp {
            text += &format!("witness: {}\n", shown(&build.to_string()));
        }
        text
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

/// Where the predictions of each engine part from the checkpoint's, link by link.
/// `verbose`: with the full names of the engines.
fn links(facts: &TextFacts, verbose: bool) -> String {
    let mut text = format!(
        "over {} predictions of {}, windows of {} tokens; KLD in nats/token\n",
        render::count(facts.tokens as u64),
        shown(&facts.source),
        facts.window
    );
    let reference = facts.reference.name.short;
    let total = |name: &str| facts.tested.iter().find(|engine| engine.name.short == name);
    let first = [String::new(), reference.into(), perplexity(facts.reference.perplexity)];
    let rows = facts.links.iter().map(|link| {
        let total = total(link.to).map(|engine| render::small(mean(&engine.kld)));
        vec![
            format!("  {}", link.link.name()),
            link_end(link),
            perplexity(link.perplexity),
            render::small(link.mean_kld),
            render::percent(link.top1),
            total.unwrap_or_default(),
        ]
    });
    let first = first
        .into_iter()
        .chain([String::new(), String::new(), String::new()])
        .collect();
    let from = format!(">KLD from {reference}");
    let head = ["  link", "to", ">perplexity", ">mean KLD", ">top-1", &from];
    text += &render::table(&head, std::iter::once(first).chain(rows).collect());
    for engine in facts
        .tested
        .iter()
        .filter(|engine| verbose && engine.name.short != "file")
    {
        text += &format!("  {}\n", engine.name);
    }
    text
}

fn perplexity(perplexity: f64) -> String {
    format!("{perplexity:.4}")
}

/// What a link leads to: `file`, `rounded per-32`, `rounded llama.cpp, Q8_0 cache`, `native`.
pub fn link_end(link: &LinkFacts) -> String {
    let rounded = (link.activations, link.cache_type_k, link.cache_type_v);
    match (link.link, rounded) {
        (LinkCause::Activations, (Some(way), Some("f32"), Some("f32"))) => format!("{} {way}", link.to),
        (LinkCause::Activations, (Some(way), Some(keys), Some(values))) => {
            format!("{} {way}, {}", link.to, cache_text(keys, values))
        }
        _ => link.to.into(),
    }
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
