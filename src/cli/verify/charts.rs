//! The charts of the page, as SVG.

use maud::{Markup, html};

use super::super::render;
use super::super::text::shown;
use crate::bench::{EngineSpeed, Rate, SpeedFacts};
use crate::engine::threads_text;
use crate::metrics;
use crate::verify::{CheckId, EngineFacts, Histogram, LinearFacts, Report, TextFacts};

/// Charts are drawn this wide; the page scales them.
const WIDTH: f64 = 440.0;
/// The classes of lines and bars, one for each engine.
const COLOURS: [&str; 3] = ["one", "two", "three"];

/// A chart of all that was measured.
pub fn charts(report: &Report) -> Markup {
    let linears = &report.linears;
    let limit = |id| Some(report.check(id)?.limit.at_most);
    html! {
        @if !linears.is_empty() {
            (LOSS.draw(loss_note(linears), linears, limit(CheckId::WeightNmse)))
            (DEAD_ZONE.draw("Share of weights whose code is 0.", linears, Some(1.0)))
        }
        @if let Some(scales) = &report.scales {
            (histogram("Trained scales", "Groups by scale, logarithmic; in the unit of the weights.", "groups", scales))
        }
        @if let Some(biases) = &report.biases {
            (histogram("Biases", "Rows by bias, in the unit of what the linear puts out.", "rows", biases))
        }
        @if let Some(text) = &report.text { (kld_chart(text)) }
        @if linears.iter().any(|linear| linear.dots.is_some()) {
            (PRODUCTS.draw("NMSE against f64; what 8-bit activations cost.", linears, limit(CheckId::OurProduct)))
        }
        @if let Some(speed) = &report.speed { (speed_chart(speed)) }
    }
}

fn card(title: &str, note: &str, wide: bool, body: &Markup) -> Markup {
    html! {
        div.card.wide[wide] { h2 { (title) } p { (shown(note)) } (body) }
    }
}

fn svg(title: &str, width: f64, height: f64, body: &Markup) -> Markup {
    html! {
        svg class="chart" viewBox={ "0 0 " (whole(width)) " " (whole(height)) } role="img" aria-label=(title) { (body) }
    }
}

/// One line of a legend.
fn key(colour: &str, text: &str) -> Markup {
    html! { span { i class=(colour) {} (text) } }
}

fn whole(x: f64) -> String {
    format!("{x:.0}")
}

fn tenths(x: f64) -> String {
    format!("{x:.1}")
}

/// One cell for each linear, layers to the right, darker where the value is nearer to its limit.
struct Heatmap {
    title: &'static str,
    value: fn(&LinearFacts) -> Option<f64>,
    right: fn(&LinearFacts) -> bool,
    show: fn(f64) -> String,
}

const LOSS: Heatmap = Heatmap {
    title: "What storing lost",
    value: |linear| Some(linear.tally.loss.value()),
    right: |linear| linear.tally.is_right(),
    show: render::small,
};
const DEAD_ZONE: Heatmap = Heatmap {
    title: "Dead zone",
    value: |linear| Some(linear.tally.dead_share()),
    right: |_| true,
    show: render::percent,
};
const PRODUCTS: Heatmap = Heatmap {
    title: "Products of our kernels",
    value: |linear| Some(linear.dots?.kernel),
    right: |_| true,
    show: render::small,
};

fn loss_note(linears: &[LinearFacts]) -> &'static str {
    if !linears.iter().all(|linear| linear.tally.is_right()) {
        "NMSE against the trained weights; red: a code, scale or bias is wrong."
    } else if linears.iter().all(|linear| linear.tally.loss.error == 0.0) {
        "Every weight is stored exactly."
    } else {
        "NMSE against the trained weights."
    }
}

impl Heatmap {
    /// Where the cells begin: the names of the rows are to the left.
    const LEFT: f64 = 92.0;
    const ROW: f64 = 26.0;
    /// Cells at least this wide have room for their value.
    const READABLE: f64 = 46.0;

    /// `limit`: of the values; their largest where there is none.
    fn draw(&self, note: &str, linears: &[LinearFacts], limit: Option<f64>) -> Markup {
        let layers = linears.iter().map(|linear| linear.layer + 1).max().unwrap_or(1);
        let mut parts: Vec<&str> = vec![];
        for linear in linears {
            if !parts.contains(&linear.part.as_str()) {
                parts.push(&linear.part);
            }
        }
        let values = linears.iter().filter_map(self.value);
        let (least, most) = values.fold((f64::INFINITY, 0f64), |(least, most), v| (least.min(v), most.max(v)));
        let width = (WIDTH - Self::LEFT) / layers as f64;
        let row_of = |linear: &LinearFacts| parts.iter().position(|part| *part == linear.part).unwrap_or(0);
        let height = parts.len() as f64 * Self::ROW + 20.0;
        let y = (height - 4.0).to_string();
        let body = html! {
            @for (row, part) in parts.iter().enumerate() {
                text x="0" y=((row as f64 * Self::ROW + 17.0).to_string()) { (shown(part)) }
            }
            @for (linear, value) in linears.iter().filter_map(|linear| Some((linear, (self.value)(linear)?))) {
                (self.cell(linear, value, row_of(linear), width, limit.unwrap_or(most)))
            }
            text x=(whole(Self::LEFT)) y=(y) { "layer 0" }
            text x=(whole(WIDTH - 2.0)) y=(y) text-anchor="end" { "layer " (layers - 1) }
            @if width < Self::READABLE {
                text class="value" x=(whole(Self::LEFT + (WIDTH - Self::LEFT) / 2.0)) y=(y) text-anchor="middle" {
                    ((self.show)(least)) " to " ((self.show)(most))
                }
            }
        };
        let (least, most) = ((self.show)(least), (self.show)(most));
        let label = format!("{}: {} linears, from {least} to {most}", self.title, linears.len());
        card(self.title, note, false, &svg(&label, WIDTH, height, &body))
    }

    fn cell(&self, linear: &LinearFacts, value: f64, row: usize, width: f64, limit: f64) -> Markup {
        let share = if limit > 0.0 {
            (value / limit).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let (x, y) = (Self::LEFT + linear.layer as f64 * width, row as f64 * Self::ROW);
        let shown_value = (self.show)(value);
        html! {
            g {
                title { (shown(&linear.name)) ": " (shown_value) }
                rect class=(if (self.right)(linear) { "one" } else { "wrong" }) x=(tenths(x)) y=(tenths(y))
                    width=(tenths((width - 2.0).max(1.0))) height=(tenths(Self::ROW - 2.0)) rx="3"
                    fill-opacity=(format!("{:.2}", 0.10 + 0.55 * share)) {}
                @if width >= Self::READABLE {
                    text class="value" x=(tenths(x + (width - 2.0) / 2.0)) y=(tenths(y + 16.5)) text-anchor="middle" {
                        (shown_value)
                    }
                }
            }
        }
    }
}

/// Bars, with a line at the height of the highest that says how many of `what` it holds.
fn histogram(title: &str, note: &str, what: &str, histogram: &Histogram) -> Markup {
    const TOP: f64 = 18.0;
    const HEIGHT: f64 = 140.0;
    const BOTTOM: f64 = TOP + HEIGHT;
    let most = histogram.counts.iter().copied().max().unwrap_or(1).max(1);
    let width = WIDTH / histogram.counts.len() as f64;
    let middle = match histogram.logarithmic {
        true => render::small(histogram.edge(histogram.counts.len() / 2)),
        false => "0".into(),
    };
    let y = whole(BOTTOM + 16.0);
    let bars = histogram.counts.iter().enumerate().filter(|(_, count)| **count > 0);
    let body = html! {
        @for (i, &count) in bars {
            @let height = (HEIGHT * count as f64 / most as f64).max(1.0);
            rect class="one" x=(tenths(i as f64 * width)) y=(tenths(BOTTOM - height))
                width=(tenths((width - 1.0).max(0.8))) height=(tenths(height)) rx="1.5" fill-opacity="0.75" {
                title {
                    (render::small(histogram.edge(i))) " to " (render::small(histogram.edge(i + 1))) ": "
                    (render::count(count))
                }
            }
        }
        text x="0" y="12" { (render::count(most)) " " (what) }
        @for line in [TOP, BOTTOM] {
            line class="axis" x1="0" x2=(whole(WIDTH)) y1=(whole(line)) y2=(whole(line)) {}
        }
        text x="0" y=(y) { (render::small(histogram.from)) }
        text x=(whole(WIDTH / 2.0)) y=(y) text-anchor="middle" { (middle) }
        text x=(whole(WIDTH)) y=(y) text-anchor="end" { (render::small(histogram.to)) }
    };
    let (from, to) = (render::small(histogram.from), render::small(histogram.to));
    let label = format!(
        "{title}: from {from} to {to}, at most {} {what} in a bin",
        render::count(most)
    );
    card(title, note, false, &svg(&label, WIDTH, BOTTOM + 22.0, &body))
}

/// KLD of each engine along the text, on a logarithmic axis.
fn kld_chart(text: &TextFacts) -> Markup {
    const TITLE: &str = "KLD along the text";
    let reference = text.reference.name.short;
    let points = match bucket(text.tokens) {
        1 => String::new(),
        tokens => format!("; each point is the mean of {tokens}"),
    };
    let note = format!(
        "KLD of the predictions from those of {reference}, over {} tokens of {}{points}.",
        render::count(text.tokens as u64),
        text.source
    );
    let line = |engine: &EngineFacts| {
        let mean = render::small(metrics::mean(&engine.kld));
        format!(
            "{}: mean {mean}, perplexity {:.3}",
            engine.name.short, engine.perplexity
        )
    };
    let body = html! {
        div class="roomy" { (kld_lines(TITLE, text, 920.0)) }
        div class="narrow" { (kld_lines(TITLE, text, 340.0)) }
        div class="legend" {
            @for (engine, colour) in text.tested.iter().zip(COLOURS) { (key(colour, &line(engine))) }
            span { (reference) ": perplexity " (format!("{:.3}", text.reference.perplexity)) }
        }
    };
    card(TITLE, &note, true, &body)
}

/// A plane of tokens and the logarithm of their KLD, between two powers of ten.
struct Plane {
    width: f64,
    bottom: f64,
    top: f64,
}

impl Plane {
    const HEIGHT: f64 = 190.0;
    const LEFT: f64 = 44.0;
    const TOP: f64 = 22.0;
    /// Nothing is drawn below this KLD.
    const FLOOR: f64 = 1e-8;

    /// With room for all `points`.
    fn around(points: impl Iterator<Item = f64> + Clone, width: f64) -> Self {
        let top = points.clone().fold(Self::FLOOR, f64::max).log10().ceil();
        let bottom = points.fold(1.0, f64::min).log10().floor().min(top - 1.0);
        Self { width, bottom, top }
    }

    fn y(&self, kld: f64) -> f64 {
        Self::TOP + Self::HEIGHT * (self.top - kld.log10()) / (self.top - self.bottom)
    }

    /// A path through points that are evenly spaced.
    fn path(&self, points: &[f64]) -> String {
        let step = (self.width - Self::LEFT) / (points.len().max(2) - 1) as f64;
        let point = |(i, kld): (usize, &f64)| format!("{:.1},{:.1}", Self::LEFT + i as f64 * step, self.y(*kld));
        let points: Vec<_> = points.iter().enumerate().map(point).collect();
        format!("M{}", points.join("L"))
    }
}

/// The chart itself, so wide.
fn kld_lines(title: &str, text: &TextFacts, width: f64) -> Markup {
    let lines: Vec<_> = text.tested.iter().map(|engine| buckets(engine, Plane::FLOOR)).collect();
    let plane = Plane::around(lines.iter().flatten().copied(), width);
    let (left, right) = (whole(Plane::LEFT), whole(width));
    let below = whole(Plane::TOP + Plane::HEIGHT + 20.0);
    let body = html! {
        text x="0" y="10" { "nats/token" }
        @for exponent in plane.bottom as i32..=plane.top as i32 {
            @let y = plane.y(10f64.powi(exponent));
            line class="axis" x1=(left) x2=(right) y1=(tenths(y)) y2=(tenths(y)) {}
            text x=(whole(Plane::LEFT - 6.0)) y=(tenths(y + 4.0)) text-anchor="end" { "1e" (exponent) }
        }
        @for (line, colour) in lines.iter().zip(COLOURS) {
            path class=(colour) d=(plane.path(line)) {}
        }
        text x=(left) y=(below) { "token 0" }
        text x=(right) y=(below) text-anchor="end" { "token " (text.tokens) }
    };
    let means = text.tested.iter().map(|engine| {
        let mean = render::small(metrics::mean(&engine.kld));
        format!("{} {mean} nats a token", engine.name.short)
    });
    let label = format!("{title}: means {}", means.collect::<Vec<_>>().join(", "));
    svg(&label, width, Plane::TOP + Plane::HEIGHT + 28.0, &body)
}

/// How many tokens share a point, so that there are few enough points to be told apart.
fn bucket(tokens: usize) -> usize {
    const POINTS: usize = 256;
    tokens.div_ceil(POINTS).max(1)
}

/// Means of neighbouring tokens, none below `floor`.
fn buckets(engine: &EngineFacts, floor: f64) -> Vec<f64> {
    let parts = engine.kld.chunks(bucket(engine.kld.len()));
    parts.map(|part| metrics::mean(part).max(floor)).collect()
}

/// Two groups of bars: prefill and decode.
fn speed_chart(speed: &SpeedFacts) -> Markup {
    const TITLE: &str = "Speed";
    /// Of a group: its title and the gap to the next.
    const FRAME: f64 = 32.0;
    let groups = [
        Bars {
            title: format!("prefill of {} tokens", speed.prefill_tokens),
            rate: |engine| engine.prefill,
        },
        Bars {
            title: format!("decode of {} tokens", speed.decode_tokens),
            rate: |engine| engine.decode,
        },
    ];
    let group = FRAME + Bars::HEIGHT * speed.engines.len() as f64;
    let note = format!(
        "Medians of {} runs with {}; memory reads {:.1} GB/s.",
        speed.runs,
        threads_text(speed.threads),
        speed.bandwidth
    );
    let line = |engine: &EngineSpeed| {
        let share = render::percent(engine.read_rate / speed.bandwidth);
        format!(
            "{}: {:.2} GB/s of weights and cache, {share} of memory",
            engine.name.short, engine.read_rate
        )
    };
    let bars = html! {
        @for (i, bars) in groups.iter().enumerate() { (bars.draw(&speed.engines, i as f64 * group)) }
    };
    let body = html! {
        (svg(TITLE, WIDTH, groups.len() as f64 * group, &bars))
        div class="legend" {
            @for (engine, colour) in speed.engines.iter().zip(COLOURS) { (key(colour, &line(engine))) }
        }
    };
    card(TITLE, &note, false, &body)
}

/// One bar for each engine.
struct Bars {
    title: String,
    rate: fn(&EngineSpeed) -> Rate,
}

impl Bars {
    const HEIGHT: f64 = 22.0;
    /// Left of the bars, where the engines' names are.
    const LABEL: f64 = 84.0;
    /// Right of them, for the figures.
    const VALUE: f64 = 110.0;

    /// From `top` downwards.
    fn draw(&self, engines: &[EngineSpeed], top: f64) -> Markup {
        let rates: Vec<_> = engines.iter().map(|engine| (self.rate)(engine).median).collect();
        let most = rates.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        html! {
            text class="value" x="0" y=(whole(top + 16.0)) { (self.title) }
            @for (i, ((engine, &rate), colour)) in engines.iter().zip(&rates).zip(COLOURS).enumerate() {
                @let y = top + 24.0 + i as f64 * Self::HEIGHT;
                @let width = (WIDTH - Self::LABEL - Self::VALUE) * rate / most;
                text x="0" y=(tenths(y + 15.5)) { (engine.name.short) }
                rect class=(colour) x=(whole(Self::LABEL)) y=(tenths(y)) width=(tenths(width))
                    height=(whole(Self::HEIGHT - 3.0)) rx="3" fill-opacity="0.85" {}
                text class="value" x=(tenths(Self::LABEL + width + 8.0)) y=(tenths(y + 15.5)) {
                    (render::rate(rate)) " tok/s"
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineName;

    #[test]
    fn many_tokens_become_few_points() {
        let engine = EngineFacts {
            name: EngineName::of_precision("x", ""),
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
