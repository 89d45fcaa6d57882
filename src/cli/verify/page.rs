//! The page of `tqconv verify --report`: one file that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::super::render;
use super::super::text::shown;
use super::charts::charts;
use super::text::{found, limit, link_end};
use crate::cli::evidence::{FileDigest, Machine};
use crate::engine::threads_text;
use crate::metrics;
use crate::verify::{Check, CheckId, LevelReport, Report, Status, TextFacts, Verdict};

const STYLE: &str = include_str!("page.css");

/// What the page says beside the report.
pub struct Evidence<'a> {
    /// When it was verified.
    pub date: String,
    pub command: String,
    pub machine: Machine,
    /// The files that were verified.
    pub subjects: &'a [FileDigest],
    /// Those that they were compared with.
    pub against: &'a [FileDigest],
}

/// The page as HTML.
pub fn page(report: &Report, evidence: &Evidence) -> String {
    let tone = match report.verdict {
        Verdict::Agrees => "good",
        Verdict::Sound | Verdict::NothingChecked => "idle",
        Verdict::Disagrees => "bad",
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "tqconv verify: " (shown(&report.file)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    header {
                        (badge(report.verdict, tone))
                        div {
                            h1 class=(tone) { (verdict(report)) }
                            p { (shown(&subject(report))) }
                        }
                    }
                    (faults(report))
                    section class="tiles" { (tiles(report)) }
                    section class="charts" { (charts(report)) }
                    @if let Some(text) = &report.text { (links(text)) }
                    section { @for report in &report.levels { (level(report)) } }
                    section class="charts" { (facts(report, evidence)) (gloss()) }
                    footer { (shown(&footer(report))) }
                }
            }
        }
    };
    page.into_string()
}

/// A tick, a cross or a bar in a circle.
fn badge(verdict: Verdict, tone: &str) -> Markup {
    let path = match verdict {
        Verdict::Agrees | Verdict::Sound => "M18 33l10 10 18-21",
        Verdict::Disagrees => "M22 22l20 20M42 22L22 42",
        Verdict::NothingChecked => "M20 32h24",
    };
    html! {
        svg viewBox="0 0 64 64" aria-hidden="true" {
            circle cx="32" cy="32" r="30" fill={ "var(--" (tone) "-soft)" } {}
            path d=(path) fill="none" stroke={ "var(--" (tone) ")" } stroke-width="5" stroke-linecap="round"
                stroke-linejoin="round" {}
        }
    }
}

fn verdict(report: &Report) -> String {
    let checks: usize = report.levels.iter().map(|level| level.checks.len()).sum();
    let failed = report.failures().count();
    match report.verdict {
        Verdict::Agrees => format!("It agrees: all {checks} checks passed"),
        Verdict::Sound => format!("Sound, but not proven: all {checks} checks passed"),
        Verdict::Disagrees => format!("{failed} of {checks} checks failed"),
        Verdict::NothingChecked => "Nothing was checked".into(),
    }
}

fn subject(report: &Report) -> String {
    let file = &report.file;
    let name = report.model.as_ref().and_then(|model| model.name.as_deref());
    let name = name.map_or(String::new(), |name| format!("{name} \u{b7} "));
    match report.compared_with() {
        Some(against) => format!("{name}{file} compared with {against}"),
        None => format!("{name}{file}, not compared with a checkpoint"),
    }
}

fn faults(report: &Report) -> Markup {
    html! {
        @for (level, check) in report.failures() {
            div class="card fault" {
                h2 class="bad" { "Level " (level.number()) ": " (shown(&check.name)) }
                p { "found " (found(check)) ", limit " (limit(check)) }
                ul { @for detail in &check.details { li { (shown(detail)) } } }
            }
        }
    }
}

/// The figures that matter most, each with what it says and how much is allowed.
fn tiles(report: &Report) -> Markup {
    let allowed = |check: Option<&Check>| check.map_or(String::new(), |check| format!("; limit {}", limit(check)));
    let mut tiles = vec![];
    if !report.linears.is_empty() {
        let total = report.total();
        let differ = render::count(total.codes_wrong);
        tiles.push((
            many(total.weights),
            format!("ternary weights compared, {differ} differ; limit 0"),
        ));
        let worst = allowed(report.check(CheckId::WeightNmse));
        let of_worst = if worst.is_empty() { "" } else { " of the worst linear" };
        tiles.push((
            render::small(total.loss.value()),
            format!("NMSE of the stored weights{worst}{of_worst}"),
        ));
        let dead = render::percent(total.dead_share());
        tiles.push((dead, "of the weights in the dead zone".into()));
    }
    for engine in report.text.iter().flat_map(|text| &text.tested) {
        let short = engine.name.short;
        let mut checks = report.levels.iter().flat_map(|level| &level.checks);
        let check = checks.find(|check| check.id == CheckId::MeanKld && check.engine == Some(short));
        let label = format!("nats/token, mean KLD of {short}{}", allowed(check));
        tiles.push((render::small(metrics::mean(&engine.kld)), label));
    }
    if let Some(model) = &report.model {
        let types = model
            .types
            .iter()
            .map(|ty| format!("{} {}", render::bytes(ty.bytes), ty.ty));
        tiles.push((render::bytes(model.bytes), types.collect::<Vec<_>>().join(", ")));
    }
    html! {
        @for (value, label) in tiles {
            div class="card tile" { b { (value) } p { (label) } }
        }
    }
}

/// A count as wide as a tile at most: `3 145 728`, `973.1 M`.
fn many(n: u64) -> String {
    match n {
        0..10_000_000 => render::count(n),
        10_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

fn level(report: &LevelReport) -> Markup {
    let (tone, status) = match report.status {
        Status::Passed => ("good", "passed"),
        Status::Failed => ("bad", "failed"),
        Status::NotChecked => ("idle", "not checked"),
        Status::Measured => ("", "measured"),
    };
    let failed = report.checks.iter().filter(|check| !check.pass).count();
    let counts = match (failed, report.checks.len()) {
        (_, 0) => String::new(),
        (0, checks) => format!(": {checks} checks"),
        (failed, checks) => format!(": {failed} of {checks} checks"),
    };
    html! {
        details class="card" open[matches!(report.status, Status::Failed | Status::NotChecked)] {
            summary {
                "Level " (report.level.number()) ": " (report.level.name()) " "
                span class=(tone) { (status) (counts) }
            }
            @if !report.checks.is_empty() {
                div class="rows" { (table(&report.checks)) }
            }
            @for not in &report.not_checked {
                p class="missing" {
                    span class="idle" { "not checked:" } " " (shown(&not.what)) ": " (shown(&not.why))
                }
            }
        }
    }
}

fn table(checks: &[Check]) -> Markup {
    html! {
        table {
            tr {
                th scope="col" { span class="unseen" { "result" } }
                th scope="col" { "check" }
                th scope="col" class="number" { "found" }
                th scope="col" class="number" { "limit" }
                th scope="col" { "where the limit is from" }
            }
            @for check in checks {
                tr {
                    @if check.pass { (mark("good", "\u{2713}", "passed")) } @else { (mark("bad", "\u{2717}", "failed")) }
                    td { (shown(&check.name)) }
                    td class="number" { (found(check)) }
                    td class="number" { (limit(check)) }
                    td { (check.origin) }
                }
            }
        }
    }
}

/// A sign to look at, and a word to be read aloud.
fn mark(tone: &str, sign: &str, word: &str) -> Markup {
    html! { td class=(tone) { span aria-hidden="true" { (sign) } span class="unseen" { (word) } } }
}

/// What was verified, when, where and how.
fn facts(report: &Report, evidence: &Evidence) -> Markup {
    let digests = |files: &[FileDigest]| {
        html! {
            @for file in files { dd { (shown(&file.name)) " " code { (file.sha256) } } }
        }
    };
    html! {
        div class="card wide" {
            h2 { "Evidence" }
            dl {
                dt { "file, sha256" } (digests(evidence.subjects))
                @if !evidence.against.is_empty() { dt { "compared with, sha256" } (digests(evidence.against)) }
                dt { "date" } dd { (evidence.date) }
                dt { "command" } dd { code { (shown(&evidence.command)) } }
                dt { "machine" }
                dd { (shown(&evidence.machine.cpu)) ", " (evidence.machine.instructions) ", "
                    (threads_text(evidence.machine.threads)) }
                @for engine in report.text.iter().flat_map(|text| &text.tested) {
                    dt { "engine" } dd { (shown(&engine.name.to_string())) }
                }
            }
        }
    }
}

/// Where the predictions part from the reference's.
fn links(text: &TextFacts) -> Markup {
    let perplexity = |perplexity: f64| format!("{perplexity:.4}");
    html! {
        section class="charts" {
            div class="card wide" {
                h2 { "What each link costs" }
                div class="rows" {
                    table {
                        tr {
                            th scope="col" { "link" }
                            th scope="col" { "to" }
                            th scope="col" class="number" { "perplexity" }
                            th scope="col" class="number" { "mean KLD, nats/token" }
                            th scope="col" class="number" { "top-1" }
                        }
                        tr {
                            td {}
                            td { (text.reference.name.short) }
                            td class="number" { (perplexity(text.reference.perplexity)) }
                            td {}
                            td {}
                        }
                        @for link in &text.links {
                            tr {
                                td { (link.link.name()) }
                                td { (link_end(link)) }
                                td class="number" { (perplexity(link.perplexity)) }
                                td class="number" { (render::small(link.mean_kld)) }
                                td class="number" { (render::percent(link.top1)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The words that a reader may not know.
fn gloss() -> Markup {
    const WORDS: [(&str, &str); 5] = [
        (
            "NMSE",
            "normalized mean squared error: squared differences over the squares of the reference; 0 is exact",
        ),
        (
            "KLD",
            "Kullback-Leibler divergence: how far predicted probabilities are from the reference's, in nats a token; 0 is equal",
        ),
        (
            "oracle",
            "a plain forward pass in f64 on the checkpoint, which the others are compared with",
        ),
        ("native", "tqconv's own engine, on packed weights"),
        ("dead zone", "the weights that training made 0"),
    ];
    html! {
        div class="card wide" {
            h2 { "Words" }
            dl { @for (word, meaning) in WORDS { dt { (word) } dd { (meaning) } } }
        }
    }
}

fn footer(report: &Report) -> String {
    let mut parts = vec![format!("tqconv {}", env!("CARGO_PKG_VERSION"))];
    parts.extend(report.llama_cpp.iter().map(ToString::to_string));
    parts.extend(report.notes.iter().cloned());
    parts.join(" \u{b7} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_fit_their_tile() {
        let counts = [3_145_728, 973_078_528, 6_979_321_856];
        assert_eq!(counts.map(many), ["3 145 728", "973.1 M", "6.98 G"]);
    }

    #[test]
    fn text_cannot_become_markup() {
        let report = Report {
            file: "<a b=\"c\">&\u{202e}".into(),
            against: None,
            verdict: Verdict::NothingChecked,
            llama_cpp: None,
            mismatches: vec![],
            levels: vec![],
            model: None,
            linears: vec![],
            scales: None,
            biases: None,
            text: None,
            speed: None,
            notes: vec!["<script>".into()],
        };
        let evidence = Evidence {
            date: String::new(),
            command: "<b>".into(),
            machine: Machine::this(),
            subjects: &[],
            against: &[],
        };
        let page = page(&report, &evidence);
        assert!(page.contains("&lt;a b=&quot;c&quot;&gt;&amp;\\u{202e}, not compared"));
        assert!(!page.contains("<script") && !page.contains("<b>") && !page.contains("<a "));
    }
}
