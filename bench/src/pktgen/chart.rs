//! Charts as inline SVG: lines over numbers, bars over names. Colours are CSS variables of the page, so that a
//! chart is as readable in the dark as in the light.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Colours that the page defines.
pub const COLOURS: usize = 8;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// Points, by ascending x.
    pub points: Vec<(f64, f64)>,
}

/// A chart of lines.
#[derive(Clone, Debug)]
pub struct Lines<'a> {
    /// What x is, with its unit.
    pub x_label: &'a str,
    /// What y is, with its unit.
    pub y_label: &'a str,
    /// Whether x is spaced by its logarithm.
    pub log_x: bool,
    /// Whether y is spaced by its logarithm.
    pub log_y: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// Text as it stands in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number short enough for an axis: 1.5k, 20M.
pub fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e3 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{scaled:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    format!("{text}{unit}")
}

/// The same with two digits before the unit or behind the point: what has room above a bar.
fn shorter(value: f64) -> String {
    if value <= 0.0 {
        return short(value);
    }
    let step = 10f64.powf(value.log10().floor() - 1.0);
    short((value / step).round() * step)
}

/// An axis: values to places.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    from: f64,
    to: f64,
}

impl Axis {
    /// Covers the values; a linear axis begins at zero. `None` without a value.
    fn over(values: impl Iterator<Item = f64>, log: bool, from: f64, to: f64) -> Option<Axis> {
        let finite: Vec<f64> = values.filter(|v| v.is_finite() && (!log || *v > 0.0)).collect();
        let high = finite.iter().copied().reduce(f64::max)?;
        let low = finite.iter().copied().reduce(f64::min)?;
        let (low, high) = if log { (low, high.max(low * 1.01)) } else { (low.min(0.0), high.max(1e-9)) };
        Some(Axis { low, high: if log { high } else { high * 1.05 }, log, from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.max(self.low).ln() } else { v };
        let share = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low));
        self.from + share * (self.to - self.from)
    }

    /// Round values along the axis.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (first, last) = (self.low.log10().floor() as i32, self.high.log10().ceil() as i32);
            let all: Vec<f64> = (first..=last).map(|e| 10f64.powi(e)).collect();
            let inside: Vec<f64> = all.into_iter().filter(|t| *t >= self.low && *t <= self.high).collect();
            // Within less than two decades the ends say more.
            return if inside.len() >= 2 { inside } else { vec![self.low, self.high] };
        }
        let rough = (self.high - self.low) / 5.0;
        let unit = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * unit).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let mut tick = (self.low / step).ceil() * step;
        let mut ticks = Vec::new();
        while tick <= self.high && ticks.len() < 20 {
            ticks.push(tick);
            tick += step;
        }
        ticks
    }
}

impl Lines<'_> {
    /// The chart with its legend; nothing if there is no point.
    pub fn svg(&self) -> String {
        let xs = self.series.iter().flat_map(|series| series.points.iter().map(|point| point.0));
        let ys = self.series.iter().flat_map(|series| series.points.iter().map(|point| point.1));
        let (Some(x), Some(y)) = (
            Axis::over(xs, self.log_x, LEFT, WIDTH - RIGHT),
            Axis::over(ys, self.log_y, HEIGHT - BOTTOM, TOP),
        ) else {
            return String::new();
        };
        let mut svg = open(self.y_label);
        grid(&mut svg, &y);
        for tick in x.ticks() {
            let at = x.place(tick);
            text(&mut svg, at, HEIGHT - BOTTOM + 16.0, "middle", &short(tick));
        }
        text(&mut svg, (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 8.0, "middle", self.x_label);
        for (n, series) in self.series.iter().enumerate() {
            let colour = format!("var(--c{})", n % COLOURS);
            let places: Vec<(f64, f64)> =
                series.points.iter().map(|(px, py)| (x.place(*px), y.place(*py))).collect();
            let line: Vec<String> = places.iter().map(|(px, py)| format!("{px:.1},{py:.1}")).collect();
            // Writing to a String cannot fail, here and below.
            let _ = write!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                line.join(" ")
            );
            for ((px, py), (vx, vy)) in places.iter().zip(&series.points) {
                let title = format!("{}: {} at {}", escape(&series.name), short(*vy), short(*vx));
                let _ = write!(
                    svg,
                    "<circle cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"3.5\" fill=\"{colour}\"><title>{title}</title></circle>"
                );
            }
        }
        svg.push_str("</svg>");
        svg + &legend(self.series.iter().map(|series| series.name.as_str()))
    }
}

/// A chart of bars: one group per name, one bar per series in it.
pub fn bars(y_label: &str, groups: &[String], series: &[(String, Vec<Option<f64>>)]) -> String {
    let values = series.iter().flat_map(|(_, values)| values.iter().flatten().copied());
    let Some(y) = Axis::over(values, false, HEIGHT - BOTTOM, TOP) else { return String::new() };
    let mut svg = open(y_label);
    grid(&mut svg, &y);
    let group_width = (WIDTH - LEFT - RIGHT) / groups.len().max(1) as f64;
    let bar_width = group_width * 0.8 / series.len().max(1) as f64;
    for (g, group) in groups.iter().enumerate() {
        let left = LEFT + group_width * (g as f64 + 0.1);
        text(&mut svg, left + group_width * 0.4, HEIGHT - BOTTOM + 16.0, "middle", group);
        for (n, (name, values)) in series.iter().enumerate() {
            let Some(value) = values.get(g).copied().flatten() else { continue };
            let (top, x) = (y.place(value), left + bar_width * n as f64);
            let _ = write!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"var(--c{})\">\
                 <title>{}: {}</title></rect>",
                bar_width * 0.92,
                HEIGHT - BOTTOM - top,
                n % COLOURS,
                escape(name),
                short(value)
            );
            text(&mut svg, x + bar_width * 0.46, top - 3.0, "middle", &shorter(value));
        }
    }
    svg.push_str("</svg>");
    svg + &legend(series.iter().map(|(name, _)| name.as_str()))
}

fn open(y_label: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{0}\"><text x=\"14\" y=\"{1}\" \
         transform=\"rotate(-90 14 {1})\" text-anchor=\"middle\">{0}</text>",
        escape(y_label),
        (TOP + HEIGHT - BOTTOM) / 2.0
    )
}

fn grid(svg: &mut String, y: &Axis) {
    for tick in y.ticks() {
        let at = y.place(tick);
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"var(--grid)\"/>",
            WIDTH - RIGHT
        );
        text(svg, LEFT - 6.0, at + 4.0, "end", &short(tick));
    }
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, words: &str) {
    let words = escape(words);
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

fn legend<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut html = String::from("<p class=\"legend\">");
    for (n, name) in names.enumerate() {
        let colour = n % COLOURS;
        let _ = write!(html, "<span><i style=\"background:var(--c{colour})\"></i>{}</span> ", escape(name));
    }
    html + "</p>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn higher_values_stand_higher_and_names_are_escaped() {
        let series = vec![Series { name: "<a>".to_owned(), points: vec![(1.0, 10.0), (1000.0, 20.0)] }];
        let lines = Lines { x_label: "x", y_label: "y & z", log_x: true, log_y: false, series };
        let svg = lines.svg();
        assert!(svg.contains("y &amp; z") && svg.contains("&lt;a&gt;") && !svg.contains("<a>"));
        let points = svg.split("points=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a line");
        let ys: Vec<f64> =
            points.split(' ').map(|p| p.split_once(',').expect("x,y").1.parse().expect("y")).collect();
        assert!(ys[1] < ys[0] && ys[1] >= TOP, "{points}");
        assert!(points.starts_with(&format!("{LEFT:.1},")), "{points}");
    }

    #[test]
    fn no_points_make_no_chart_and_ticks_are_round() {
        let empty = Lines { x_label: "", y_label: "", log_x: false, log_y: true, series: Vec::new() };
        assert_eq!(empty.svg(), "");
        assert_eq!(bars("y", &[], &[]), "");
        let axis = Axis::over([0.0, 47.0].into_iter(), false, 0.0, 1.0).expect("values");
        assert_eq!(axis.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!([shorter(487_630.0), shorter(5.26), shorter(0.0)], ["490k", "5.3", "0"]);
        assert_eq!((short(1_500_000.0), short(64.0), short(0.5)), ("1.5M".into(), "64".into(), "0.5".into()));
    }
}
