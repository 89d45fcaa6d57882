//! The page of `tqconv verify --report`: one file that needs nothing else, drawn by hand in SVG.

use std::fmt::Write;

use super::render;
use super::text::shown;
use super::verify::{found, limit, short};
use crate::bench::{EngineSpeed, Rate, SpeedFacts};
use crate::engine::threads_text;
use crate::metrics;
use crate::verify::{Check, EngineFacts, Histogram, Level, LinearFacts, Report, Status, TextFacts, Verdict};

const TEMPLATE: &str = include_str!("report.html");
const TICK: &str = "M18 33l10 10 18-21";

/// The page as HTML.
pub(super) fn page(report: &Report) -> String {
    let (tone, badge) = match report.verdict {
        Verdict::Agrees => ("good", TICK),
        Verdict::Sound => ("idle", TICK),
        Verdict::Disagrees => ("bad", "M22 22l20 20M42 22L22 42"),
        Verdict::NothingChecked => ("idle", "M20 32h24"),
    };
    let badge = format!(
        r#"<svg viewBox="0 0 64 64" aria-hidden="true"><circle cx="32" cy="32" r="30" fill="var(--{tone}-soft)"/><path d="{badge}" fill="none" stroke="var(--{tone})" stroke-width="5" stroke-linecap="round" stroke-linejoin="round"/></svg>"#
    );
    fill(TEMPLATE, |name| match name {
        "title" => escape(&format!("tqconv verify: {}", report.file)),
        "badge" => badge.clone(),
        "tone" => tone.into(),
        "verdict" => verdict(report),
        "subject" => subject(report),
        "faults" => faults(report),
        "tiles" => tiles(report),
        "charts" => charts(report),
        "levels" => report.levels.iter().map(level).collect(),
        "footer" => footer(report),
        other => unreachable!("the template has no '{other}'"),
    })
}

/// `template` with every `{{name}}` replaced; what is put in is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut page = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("the template closes what it opens");
        page += &value(name);
        page += rest;
    }
    page
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in shown(text).chars() {
        match c {
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '&' => escaped += "&amp;",
            '"' => escaped += "&quot;",
            c => escaped.push(c),
        }
    }
    escaped
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
    let file = escape(&report.file);
    let name = report.model.as_ref().and_then(|model| model.name.as_deref());
    let name = name.map_or(String::new(), |name| format!("{} &middot; ", escape(name)));
    match report.held_against() {
        Some(against) => format!("{name}{file} held against {}", escape(against)),
        None => format!("{name}{file}, not held against a checkpoint"),
    }
}

fn faults(report: &Report) -> String {
    report
        .failures()
        .map(|(level, check)| {
            let details: String =
                check.details.iter().map(|detail| format!("<li>{}</li>", escape(detail))).collect();
            format!(
                r#"<div class="card fault"><h2 class="bad">Level {level}: {}</h2><p>found {}, limit {}</p><ul>{details}</ul></div>"#,
                escape(&check.name),
                escape(&found(check)),
                escape(&limit(check)),
            )
        })
        .collect()
}

fn tiles(report: &Report) -> String {
    let mut tiles = String::new();
    let mut tile = |value: String, label: String| {
        let _ = write!(
            tiles,
            r#"<div class="card tile"><b>{}</b><p>{}</p></div>"#,
            escape(&value),
            escape(&label)
        );
    };
    if !report.linears.is_empty() {
        let sum = |count: fn(&LinearFacts) -> u64| report.linears.iter().map(count).sum::<u64>();
        let (weights, wrong) = (sum(|linear| linear.weights), sum(|linear| linear.codes_wrong));
        tile(
            many(weights),
            format!("ternary weights compared, {} differ", render::count(wrong)),
        );
        let (error, energy) = report.linears.iter().fold((0.0, 0.0), |(error, energy), linear| {
            (error + linear.error, energy + linear.energy)
        });
        let nmse = if error == 0.0 { 0.0 } else { error / energy };
        tile(render::small(nmse), "NMSE of the stored weights".into());
        let dead = sum(|linear| linear.dead) as f64 / weights as f64;
        tile(render::percent(dead), "of the weights in the dead zone".into());
    }
    if let Some(text) = &report.text {
        for engine in &text.tested {
            tile(
                render::small(metrics::mean(&engine.kld)),
                format!("nats/token, mean KLD of {}", short(&engine.name)),
            );
        }
    }
    if let Some(model) = &report.model {
        let types: Vec<_> = model
            .types
            .iter()
            .map(|ty| format!("{} {}", render::bytes(ty.bytes), ty.ty))
            .collect();
        tile(render::bytes(model.bytes), types.join(", "));
    }
    tiles
}

/// A count as wide as a tile at most: `3 145 728`, `973.1 M`.
fn many(n: u64) -> String {
    match n {
        0..10_000_000 => render::count(n),
        10_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

/// Charts are drawn this wide; the page scales them.
const WIDTH: f64 = 440.0;

fn charts(report: &Report) -> String {
    let mut charts = String::new();
    let linears = &report.linears;
    if report.model.is_none() {
        return charts; // the file cannot be read, which the page says already
    }
    if linears.is_empty() {
        charts += &empty("Codes, scales and biases", report, 2, true);
    } else {
        let note = if !linears.iter().all(LinearFacts::is_right) {
            "NMSE against the trained weights; red: a code, scale or bias is wrong."
        } else if linears.iter().all(|linear| linear.error == 0.0) {
            "Every weight is stored exactly."
        } else {
            "NMSE against the trained weights."
        };
        charts += &heatmap(
            "What storing lost",
            note,
            linears,
            |linear| Some(linear.nmse()),
            LinearFacts::is_right,
            render::small,
        );
        charts += &heatmap(
            "Dead zone",
            "Share of weights whose code is 0; they live on in the biases.",
            linears,
            |linear| Some(linear.dead_share()),
            |_| true,
            render::percent,
        );
    }
    if let Some(scales) = &report.scales {
        charts += &histogram(
            "Trained scales",
            "Groups by scale, logarithmic; in the unit of the weights.",
            "groups",
            scales,
        );
    }
    if let Some(biases) = &report.biases {
        let note = "Rows by bias, in the unit of what the linear puts out.";
        charts += &histogram("Biases", note, "rows", biases);
    }
    match &report.text {
        Some(text) => charts += &kld_chart(text),
        None => charts += &empty("KLD along the text", report, 4, true),
    }
    let products = linears.iter().any(|linear| linear.dots.is_some());
    if products {
        charts += &heatmap(
            "Products of our kernels",
            "NMSE against f64; what 8-bit activations cost.",
            linears,
            |linear| Some(linear.dots?.kernel),
            |_| true,
            render::small,
        );
    }
    match &report.speed {
        Some(speed) => charts += &speed_chart(speed),
        None => charts += &empty("Speed", report, 5, !products),
    }
    charts
}

/// In the place of a chart: why there is none.
fn empty(title: &str, report: &Report, number: u8, wide: bool) -> String {
    let level = report.levels.iter().find(|level| level.number == number);
    let why = level.and_then(|level| level.not_checked.first());
    let why = match (why, number) {
        (Some(missing), _) => format!("Not checked: {}.", missing.why),
        (None, 5) => "Not measured: ask for it with --speed.".into(),
        (None, _) => format!("Level {number} was not asked for."),
    };
    card(title, &escape(&why), wide, "")
}

fn card(title: &str, note: &str, wide: bool, body: &str) -> String {
    let wide = if wide { " wide" } else { "" };
    format!(r#"<div class="card{wide}"><h2>{title}</h2><p>{note}</p>{body}</div>"#)
}

fn svg(title: &str, width: f64, height: f64, body: &str) -> String {
    format!(r#"<svg class="chart" viewBox="0 0 {width:.0} {height:.0}" role="img" aria-label="{title}">{body}</svg>"#)
}

/// One cell for each linear, layers to the right, darker where the value is larger.
fn heatmap(
    title: &str,
    note: &str,
    linears: &[LinearFacts],
    value: impl Fn(&LinearFacts) -> Option<f64>,
    right: impl Fn(&LinearFacts) -> bool,
    show: impl Fn(f64) -> String,
) -> String {
    const LABEL: f64 = 92.0;
    const ROW: f64 = 26.0;
    /// Cells at least this wide have room for their value.
    const READABLE: f64 = 46.0;
    let layers = linears.iter().map(|linear| linear.layer + 1).max().unwrap_or(1);
    let mut parts: Vec<&str> = vec![];
    for linear in linears {
        if !parts.contains(&linear.part.as_str()) {
            parts.push(&linear.part);
        }
    }
    let values = || linears.iter().filter_map(&value);
    let (least, most) = values().fold((f64::INFINITY, 0f64), |(least, most), v| (least.min(v), most.max(v)));
    let width = (WIDTH - LABEL) / layers as f64;
    let mut body = String::new();
    for (row, part) in parts.iter().enumerate() {
        let y = row as f64 * ROW + 17.0;
        let _ = write!(body, r#"<text x="0" y="{y}">{}</text>"#, escape(part));
    }
    for linear in linears {
        let Some(v) = value(linear) else { continue };
        let row = parts.iter().position(|part| *part == linear.part).unwrap_or(0);
        let (x, y) = (LABEL + linear.layer as f64 * width, row as f64 * ROW);
        let share = if most > least {
            (v - least) / (most - least)
        } else {
            0.0
        };
        let _ = write!(
            body,
            r#"<g><title>{}: {}</title><rect class="{}" x="{x:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" rx="3" fill-opacity="{:.2}"/>"#,
            escape(&linear.name),
            show(v),
            if right(linear) { "one" } else { "wrong" },
            (width - 2.0).max(1.0),
            ROW - 2.0,
            0.10 + 0.55 * share
        );
        if width >= READABLE {
            let (x, y) = (x + (width - 2.0) / 2.0, y + 16.5);
            let _ = write!(
                body,
                r#"<text class="value" x="{x:.1}" y="{y:.1}" text-anchor="middle">{}</text>"#,
                show(v)
            );
        }
        body += "</g>";
    }
    let height = parts.len() as f64 * ROW + 20.0;
    let y = height - 4.0;
    let _ = write!(
        body,
        r#"<text x="{LABEL}" y="{y}">layer 0</text><text x="{}" y="{y}" text-anchor="end">layer {}</text>"#,
        WIDTH - 2.0,
        layers - 1
    );
    if width < READABLE {
        let middle = LABEL + (WIDTH - LABEL) / 2.0;
        let _ = write!(
            body,
            r#"<text class="value" x="{middle}" y="{y}" text-anchor="middle">{} to {}</text>"#,
            show(least),
            show(most)
        );
    }
    card(title, note, false, &svg(title, WIDTH, height, &body))
}

/// Bars, with a line at the height of the highest that says how many of `what` it holds.
fn histogram(title: &str, note: &str, what: &str, histogram: &Histogram) -> String {
    const TOP: f64 = 18.0;
    const HEIGHT: f64 = 140.0;
    const BOTTOM: f64 = TOP + HEIGHT;
    let most = histogram.counts.iter().copied().max().unwrap_or(1).max(1) as f64;
    let width = WIDTH / histogram.counts.len() as f64;
    let edge = |i: usize| {
        let share = i as f64 / histogram.counts.len() as f64;
        if histogram.logarithmic {
            histogram.from * (histogram.to / histogram.from).powf(share)
        } else {
            histogram.from + (histogram.to - histogram.from) * share
        }
    };
    let mut body = String::new();
    for (i, &count) in histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (HEIGHT * count as f64 / most).max(1.0);
        let _ = write!(
            body,
            r#"<rect class="one" x="{:.1}" y="{:.1}" width="{:.1}" height="{height:.1}" rx="1.5" fill-opacity="0.75"><title>{} to {}: {}</title></rect>"#,
            i as f64 * width,
            BOTTOM - height,
            (width - 1.0).max(0.8),
            render::small(edge(i)),
            render::small(edge(i + 1)),
            render::count(count)
        );
    }
    let middle = edge(histogram.counts.len() / 2);
    let middle = if histogram.logarithmic {
        render::small(middle)
    } else {
        "0".into()
    };
    let y = BOTTOM + 16.0;
    let _ = write!(
        body,
        r#"<text x="0" y="12">{}</text>"#,
        escape(&format!("{} {what}", render::count(most as u64)))
    );
    for line in [TOP, BOTTOM] {
        let _ = write!(
            body,
            r#"<line class="axis" x1="0" x2="{WIDTH}" y1="{line}" y2="{line}"/>"#
        );
    }
    let _ = write!(
        body,
        r#"<text x="0" y="{y}">{}</text><text x="{}" y="{y}" text-anchor="middle">{middle}</text><text x="{WIDTH}" y="{y}" text-anchor="end">{}</text>"#,
        render::small(histogram.from),
        WIDTH / 2.0,
        render::small(histogram.to)
    );
    card(title, note, false, &svg(title, WIDTH, BOTTOM + 22.0, &body))
}

const COLOURS: [&str; 3] = ["one", "two", "three"];

/// KLD of each engine along the text, on a logarithmic axis.
fn kld_chart(text: &TextFacts) -> String {
    const WIDE: f64 = 920.0;
    const HEIGHT: f64 = 190.0;
    const LEFT: f64 = 44.0;
    const TOP: f64 = 22.0;
    const FLOOR: f64 = 1e-8;
    let lines: Vec<_> = text.tested.iter().map(|engine| buckets(engine, FLOOR)).collect();
    let all = || lines.iter().flatten().copied();
    let top = all().fold(FLOOR, f64::max).log10().ceil();
    let bottom = all().fold(1.0, f64::min).log10().floor().min(top - 1.0);
    let y = |kld: f64| TOP + HEIGHT * (top - kld.log10()) / (top - bottom);
    let mut body = r#"<text x="0" y="10">nats/token</text>"#.to_owned();
    for exponent in bottom as i32..=top as i32 {
        let at = y(10f64.powi(exponent));
        let _ = write!(
            body,
            r#"<line class="axis" x1="{LEFT}" x2="{WIDE}" y1="{at:.1}" y2="{at:.1}"/><text x="{}" y="{:.1}" text-anchor="end">1e{exponent}</text>"#,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (line, colour) in lines.iter().zip(COLOURS) {
        let step = (WIDE - LEFT) / (line.len().max(2) - 1) as f64;
        let point = |(i, kld): (usize, &f64)| format!("{:.1},{:.1}", LEFT + i as f64 * step, y(*kld));
        let points: Vec<_> = line.iter().enumerate().map(point).collect();
        let _ = write!(body, r#"<path class="{colour}" d="M{}"/>"#, points.join("L"));
    }
    let _ = write!(
        body,
        r#"<text x="{LEFT}" y="{0}">token 0</text><text x="{WIDE}" y="{0}" text-anchor="end">token {1}</text>"#,
        TOP + HEIGHT + 20.0,
        text.tokens
    );
    let reference = short(&text.reference.name);
    let points = match bucket(text.tokens) {
        1 => String::new(),
        tokens => format!("; each point is the mean of {tokens}"),
    };
    let note = format!(
        "KLD of the predictions from those of {reference}, over {} tokens of {}{points}.",
        render::count(text.tokens as u64),
        escape(&text.source)
    );
    let mut legend = String::new();
    for (engine, colour) in text.tested.iter().zip(COLOURS) {
        let _ = write!(
            legend,
            r#"<span><i class="{colour}"></i>{}: mean {}, perplexity {:.3}</span>"#,
            escape(short(&engine.name)),
            render::small(metrics::mean(&engine.kld)),
            engine.perplexity
        );
    }
    let _ = write!(
        legend,
        r#"<span>{reference}: perplexity {:.3}</span>"#,
        text.reference.perplexity
    );
    let chart = svg("KLD along the text", WIDE, TOP + HEIGHT + 28.0, &body);
    card(
        "KLD along the text",
        &note,
        true,
        &format!(r#"<div class="scroll">{chart}</div><div class="legend">{legend}</div>"#),
    )
}

/// How many tokens share a point, so that there are few enough points to be told apart.
fn bucket(tokens: usize) -> usize {
    const POINTS: usize = 256;
    tokens.div_ceil(POINTS).max(1)
}

/// Means of neighbouring tokens, none below `floor`.
fn buckets(engine: &EngineFacts, floor: f64) -> Vec<f64> {
    engine
        .kld
        .chunks(bucket(engine.kld.len()))
        .map(|part| metrics::mean(part).max(floor))
        .collect()
}

/// Two groups of bars: prefill and decode.
fn speed_chart(speed: &SpeedFacts) -> String {
    const BAR: f64 = 22.0;
    const LABEL: f64 = 84.0;
    const VALUE: f64 = 110.0;
    let mut body = String::new();
    let mut y = 0.0;
    let medians = |rate: fn(&EngineSpeed) -> Rate| {
        let rates = speed.engines.iter().map(rate);
        rates.map(|rate| rate.median).collect::<Vec<_>>()
    };
    let groups = [
        (
            format!("prefill of {} tokens", speed.prefill_tokens),
            medians(|engine| engine.prefill),
        ),
        (
            format!("decode of {} tokens", speed.decode_tokens),
            medians(|engine| engine.decode),
        ),
    ];
    for (title, rates) in groups {
        let most = rates.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        y += 16.0;
        let _ = write!(body, r#"<text class="value" x="0" y="{y}">{title}</text>"#);
        y += 8.0;
        for ((engine, rate), colour) in speed.engines.iter().zip(rates).zip(COLOURS) {
            let width = (WIDTH - LABEL - VALUE) * rate / most;
            let _ = write!(
                body,
                r#"<text x="0" y="{0:.1}">{1}</text><rect class="{colour}" x="{LABEL}" y="{y:.1}" width="{width:.1}" height="{2}" rx="3" fill-opacity="0.85"/><text class="value" x="{3:.1}" y="{0:.1}">{4} tok/s</text>"#,
                y + 15.5,
                escape(short(&engine.name)),
                BAR - 3.0,
                LABEL + width + 8.0,
                render::rate(rate),
            );
            y += BAR;
        }
        y += 8.0;
    }
    let note = format!(
        "Medians of {} runs with {}; memory reads {:.1} GB/s.",
        speed.runs,
        threads_text(speed.threads),
        speed.bandwidth
    );
    let mut legend = String::new();
    for (engine, colour) in speed.engines.iter().zip(COLOURS) {
        let _ = write!(
            legend,
            r#"<span><i class="{colour}"></i>{}: {:.2} GB/s of weights, {} of memory</span>"#,
            escape(short(&engine.name)),
            engine.read_rate,
            render::percent(engine.read_rate / speed.bandwidth)
        );
    }
    let chart = svg("Speed", WIDTH, y, &body);
    card(
        "Speed",
        &note,
        false,
        &format!(r#"{chart}<div class="legend">{legend}</div>"#),
    )
}

fn level(level: &Level) -> String {
    let (tone, status) = match level.status {
        Status::Passed => ("good", "passed"),
        Status::Failed => ("bad", "failed"),
        Status::NotChecked => ("idle", "not checked"),
        Status::Measured => ("", "measured"),
    };
    let rows: String = level.checks.iter().map(row).collect();
    let table = if rows.is_empty() {
        String::new()
    } else {
        format!(
            r#"<div class="rows"><table><tr><th></th><th>check</th><th class="number">found</th><th class="number">limit</th><th>where the limit is from</th></tr>{rows}</table></div>"#
        )
    };
    let missing: String = level
        .not_checked
        .iter()
        .map(|not| {
            format!(
                r#"<p class="missing"><span class="idle">not checked:</span> {}: {}</p>"#,
                escape(&not.what),
                escape(&not.why)
            )
        })
        .collect();
    let open = match level.status {
        Status::Failed | Status::NotChecked => " open",
        Status::Passed | Status::Measured => "",
    };
    let failed = level.checks.iter().filter(|check| !check.pass).count();
    let counts = match (failed, level.checks.len()) {
        (_, 0) => String::new(),
        (0, checks) => format!(": {checks} checks"),
        (failed, checks) => format!(": {failed} of {checks} checks"),
    };
    format!(
        r#"<details class="card"{open}><summary>Level {}: {} <span class="{tone}">{status}{counts}</span></summary>{table}{missing}</details>"#,
        level.number, level.name
    )
}

fn row(check: &Check) -> String {
    let (tone, mark) = if check.pass {
        ("good", "&#10003;")
    } else {
        ("bad", "&#10007;")
    };
    format!(
        r#"<tr><td class="{tone}">{mark}</td><td>{}</td><td class="number">{}</td><td class="number">{}</td><td>{}</td></tr>"#,
        escape(&check.name),
        escape(&found(check)),
        escape(&limit(check)),
        escape(check.origin)
    )
}

fn footer(report: &Report) -> String {
    let mut lines = vec![format!("tqconv {}", env!("CARGO_PKG_VERSION"))];
    if let Some(text) = &report.text {
        lines.extend(text.tested.iter().map(|engine| engine.name.clone()));
    }
    lines.extend(report.notes.iter().cloned());
    let lines: Vec<_> = lines.iter().map(|line| escape(line)).collect();
    lines.join(" &middot; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_not_filled_again() {
        let page = fill("a {{x}} c {{y}}", |name| match name {
            "x" => "{{y}}".into(),
            _ => "z".into(),
        });
        assert_eq!(page, "a {{y}} c z");
    }

    #[test]
    fn counts_fit_their_tile() {
        let counts = [3_145_728, 973_078_528, 6_979_321_856];
        assert_eq!(counts.map(many), ["3 145 728", "973.1 M", "6.98 G"]);
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(
            escape("<a b=\"c\">&\u{202e}"),
            "&lt;a b=&quot;c&quot;&gt;&amp;\\u{202e}"
        );
    }

    #[test]
    fn many_tokens_become_few_points() {
        let engine = EngineFacts {
            name: "x".into(),
            perplexity: 1.0,
            top1: None,
            nmse: None,
            kld: vec![2.0; 1000],
        };
        let points = buckets(&engine, 1e-8);
        assert_eq!(bucket(1000), 4);
        assert!(points.len() == 250 && points.iter().all(|&point| point == 2.0));
        let engine = EngineFacts {
            kld: vec![0.0, 1.0],
            ..engine
        };
        assert_eq!(buckets(&engine, 1e-8), [1e-8, 1.0]);
    }
}
