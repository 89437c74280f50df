//! `fairway-pktgen report`: figures of any number of runs as one HTML page without anything from elsewhere.

use crate::pktgen::chart::{Lines, Series, bars, escape, short};
use crate::pktgen::cli::CliError;
use crate::pktgen::device::DeviceError;
use crate::pktgen::targets::{Target, targets};
use fairway_tests::report::{Figure, Report};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Arguments of `report`.
#[derive(clap::Args)]
pub struct ReportArgs {
    /// Files of figures, such as target/reports/bench-pktgen.json
    #[arg(required = true)]
    pub figures: Vec<PathBuf>,
    /// Where the page goes
    #[arg(long)]
    pub html: PathBuf,
    /// Lines about the machine and the run, shown at the head
    #[arg(long)]
    pub note: Vec<String>,
}

/// A plot of all figures of one metric over one of their parameters.
struct Plot {
    title: &'static str,
    metric: &'static str,
    over: &'static str,
    x_label: &'static str,
    y_label: &'static str,
    log_x: bool,
    log_y: bool,
}

const PLOTS: [Plot; 7] = [
    Plot {
        title: "Throughput by frame size",
        metric: "throughput",
        over: "size_bytes",
        x_label: "frame size in bytes, with FCS",
        y_label: "packets per second",
        log_x: false,
        log_y: false,
    },
    Plot {
        title: "Latency percentiles",
        metric: "latency",
        over: "percentile",
        x_label: "percentile, in nines: 1 is 90 %, 2 is 99 %, 3 is 99.9 %, 4 the largest",
        y_label: "nanoseconds",
        log_x: false,
        log_y: true,
    },
    Plot {
        title: "Frame loss by load",
        metric: "frame_loss",
        over: "load",
        x_label: "load as a share of the ceiling",
        y_label: "share of packets lost",
        log_x: false,
        log_y: false,
    },
    Plot {
        title: "CPU time of the machine by frame size",
        metric: "machine_ns_per_packet",
        over: "size_bytes",
        x_label: "frame size in bytes, with FCS",
        y_label: "ns per packet",
        log_x: false,
        log_y: false,
    },
    Plot {
        title: "Nanoseconds per packet in the engine by flows",
        metric: "ns_per_packet_by_flows",
        over: "flows",
        x_label: "flows",
        y_label: "ns per packet",
        log_x: true,
        log_y: false,
    },
    Plot {
        title: "Scaling by cores: the engine without packet I/O",
        metric: "engine_rate_by_cores",
        over: "cores",
        x_label: "cores",
        y_label: "million packets per second",
        log_x: false,
        log_y: false,
    },
    Plot {
        title: "Cost by Services",
        metric: "ns_per_packet_by_services",
        over: "services",
        x_label: "Services",
        y_label: "ns per packet",
        log_x: true,
        log_y: false,
    },
];

const STYLE: &str = ":root{--bg:#fff;--fg:#1b1f24;--mute:#57606a;--grid:#d8dee4;--c0:#0b62d6;--c1:#c4420c;\
--c2:#1a7f37;--c3:#8250df;--c4:#9a6700;--c5:#bf3989;--c6:#0e7490;--c7:#57606a}\
@media(prefers-color-scheme:dark){:root{--bg:#0f1318;--fg:#e6edf3;--mute:#9198a1;--grid:#30363d;--c0:#58a6ff;\
--c1:#ff9a5c;--c2:#56d364;--c3:#bc8cff;--c4:#e3b341;--c5:#ff7bc0;--c6:#39c5cf;--c7:#9198a1}}\
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
padding:0 1rem}svg{width:100%;height:auto}svg text{fill:var(--mute);font-size:11px}h2{margin-top:2.2rem}\
.legend{margin:.2rem 0}.legend span{margin-right:1rem;white-space:nowrap}.legend i{display:inline-block;\
width:.8em;height:.8em;margin-right:.35em}table{border-collapse:collapse;width:100%;font-size:13px}\
th,td{border-bottom:1px solid var(--grid);padding:.2rem .5rem;text-align:left}td.n,th.n{text-align:right;\
font-variant-numeric:tabular-nums}.wide{overflow-x:auto}";

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(args: &ReportArgs) -> Result<(), CliError> {
    let mut figures = Vec::new();
    for file in &args.figures {
        let read = Report::at(file.clone()).read()?;
        if read.is_empty() {
            eprintln!("{} has no figures", file.display());
        }
        figures.extend(read);
    }
    let page = page(&figures, &args.note);
    std::fs::write(&args.html, page).map_err(DeviceError::io(format!("write {}", args.html.display())))?;
    println!("{} figures in {}", figures.len(), args.html.display());
    Ok(())
}

/// The page.
pub fn page(figures: &[Figure], notes: &[String]) -> String {
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>fairway-pktgen</title><style>{STYLE}</style><h1>fairway-pktgen</h1>"
    );
    for note in notes {
        // Writing to a String cannot fail, here and below.
        let _ = write!(html, "<p>{}</p>", escape(note));
    }
    verdicts(&mut html, figures);
    peers(&mut html, figures);
    for plot in &PLOTS {
        let chart = plot.chart(figures);
        if !chart.is_empty() {
            let _ = write!(html, "<h2>{}</h2>{chart}", plot.title);
        }
    }
    table(&mut html, figures);
    html + "</html>\n"
}

impl Plot {
    fn chart(&self, figures: &[Figure]) -> String {
        let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for figure in figures.iter().filter(|figure| figure.metric == self.metric) {
            let Some(x) = figure.params[self.over].as_f64() else { continue };
            // Latency of one size is enough for a plot; all are in the table.
            if self.metric == "latency" && figure.params["size_bytes"].as_f64() != smallest_size(figures) {
                continue;
            }
            let x = if self.over == "percentile" { nines(x) } else { x };
            series.entry(name(figure, self.over)).or_default().push((x, figure.value));
        }
        let series = series.into_iter().map(|(name, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { name, points }
        });
        let Plot { x_label, y_label, log_x, log_y, .. } = *self;
        Lines { x_label, y_label, log_x, log_y, series: series.collect() }.svg()
    }
}

/// How many nines a percentile has: what lies beyond 99 % would share one place on an even scale.
fn nines(percentile: f64) -> f64 {
    const LARGEST: f64 = 4.0;
    (-(1.0 - percentile / 100.0).log10()).min(LARGEST)
}

fn smallest_size(figures: &[Figure]) -> Option<f64> {
    let latencies = figures.iter().filter(|figure| figure.metric == "latency");
    latencies.filter_map(|figure| figure.params["size_bytes"].as_f64()).reduce(f64::min)
}

/// A figure's case with its parameters but one.
fn name(figure: &Figure, without: &str) -> String {
    let mut words = vec![figure.case.clone()];
    let empty = serde_json::Map::new();
    for (key, value) in figure.params.as_object().unwrap_or(&empty) {
        if key != without && key != "flows" {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push(if key == "device" { value } else { format!("{key} {value}") });
        }
    }
    words.join(", ")
}

/// What the figures are to show, and whether they do.
fn verdicts(html: &mut String, figures: &[Figure]) {
    let targets = targets(figures);
    if targets.is_empty() {
        return;
    }
    html.push_str("<h2>Targets</h2><table><tr><th>what<th class=\"n\">figure<th>target<th>verdict</tr>");
    for Target { what, value, target, met } in targets {
        let verdict = if met { "met" } else { "missed" };
        let _ = write!(
            html,
            "<tr><td>{}<td class=\"n\">{value:.2}<td>{}<td>{verdict}</tr>",
            escape(&what),
            escape(&target)
        );
    }
    html.push_str("</table>");
}

/// The comparison with peers, as bars: paths in groups.
fn peers(html: &mut String, figures: &[Figure]) {
    let charts = [
        ("peer_throughput", "Throughput beside peers", "packets per second"),
        ("peer_machine_ns_per_packet", "CPU time of the whole machine beside peers", "ns per packet"),
        (
            "peer_packets_per_cpu_second",
            "Packets per second of the whole machine's CPU time beside peers",
            "packets",
        ),
        ("peer_latency_p50", "Median latency at half the throughput beside peers", "nanoseconds"),
    ];
    for (metric, title, y_label) in charts {
        let text = |figure: &Figure, key: &str| figure.params[key].as_str().unwrap_or("?").to_owned();
        let (mut paths, mut devices) = (Vec::new(), Vec::new());
        let chosen: Vec<&Figure> = figures.iter().filter(|figure| figure.metric == metric).collect();
        for figure in &chosen {
            let (path, device) = (text(figure, "path"), text(figure, "device"));
            if !paths.contains(&path) {
                paths.push(path);
            }
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        let value = |path: &String, device: &String| {
            let found = chosen.iter().find(|f| text(f, "path") == *path && text(f, "device") == *device);
            found.map(|figure| figure.value)
        };
        let series: Vec<(String, Vec<Option<f64>>)> = devices
            .iter()
            .map(|device| (device.clone(), paths.iter().map(|path| value(path, device)).collect()))
            .collect();
        let chart = bars(y_label, &paths, &series);
        if !chart.is_empty() {
            let _ = write!(html, "<h2>{title}</h2>{chart}");
        }
    }
}

fn table(html: &mut String, figures: &[Figure]) {
    html.push_str("<h2>All figures</h2><div class=\"wide\"><table><tr><th>case<th>parameters<th>metric<th class=\"n\">value<th>unit</tr>");
    for figure in figures {
        let params = match &figure.params {
            Value::Object(map) => map.iter().map(|(k, v)| format!("{k} {v}")).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        };
        let _ = write!(
            html,
            "<tr><td>{}<td>{}<td>{}<td class=\"n\">{}<td>{}</tr>",
            escape(&figure.case),
            escape(&params),
            escape(&figure.metric),
            short(figure.value),
            escape(&figure.unit)
        );
    }
    html.push_str("</table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentiles_are_spread_by_their_nines() {
        let places = [50.0, 90.0, 99.0, 99.9, 100.0].map(|percentile| (nines(percentile) * 10.0).round());
        assert_eq!(places, [3.0, 10.0, 20.0, 30.0, 40.0]);
    }

    #[test]
    fn a_page_has_a_plot_for_each_metric_that_was_measured_and_asks_nobody_for_anything() {
        let figure =
            |metric: &str, params: Value, value: f64| Figure::new("case<1>", params, metric, value, "1");
        let figures = [
            figure("throughput", json!({"device": "fairway", "size_bytes": 64}), 2e6),
            figure("throughput", json!({"device": "fairway", "size_bytes": 512}), 1e6),
            figure("latency", json!({"device": "fairway", "size_bytes": 64, "percentile": 99.0}), 9e3),
            figure("peer_throughput", json!({"device": "kernel", "path": "vxlan"}), 5e5),
            figure("peer_latency_p50", json!({"device": "fairway", "path": "vxlan", "services": 100}), 10.0),
            figure("peer_latency_p999", json!({"device": "fairway", "path": "vxlan", "services": 100}), 60.0),
        ];
        let page = page(&figures, &["a & b".to_owned()]);
        for part in
            ["Throughput by frame size", "Latency percentiles", "beside peers", "a &amp; b", "case&lt;1&gt;"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert_eq!(page.matches("<svg").count(), 4);
        assert!(page.contains("6.00<td>&lt; 5.00<td>missed"), "{page}");
        assert!(!page.contains("Cost by Services"), "nothing was measured for it");
        for outside in ["http", "src=", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme:dark"));
    }
}
