//! `fairway-pktgen targets`: what the figures of one run are to show, and whether they do. A target that was not measured
//! is said to be so, never passed.

use crate::pktgen::cli::CliError;
use fairway_tests::report::{Figure, Report};
use std::path::PathBuf;

/// Arguments of `targets`.
#[derive(clap::Args)]
pub struct TargetsArgs {
    /// File of figures, such as target/reports/bench-pktgen.json
    pub figures: PathBuf,
}

/// One target.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What is compared.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// What it is to be.
    pub target: String,
    /// Whether it is.
    pub met: bool,
}

/// Services in the comparison with the kernel.
const SERVICES: u64 = 1000;
/// Share of the floor's rate.
const OF_FLOOR: f64 = 1.0;
/// Times the kernel's packets per CPU-second.
const OF_KERNEL: f64 = 1.5;
/// Times the median that the 99.9th percentile may be.
const OF_MEDIAN: f64 = 5.0;
const FULL: &str = "service-vxlan";

/// Runs the command.
///
/// # Errors
/// If the file cannot be read.
pub fn run(args: &TargetsArgs) -> Result<(), CliError> {
    let figures = Report::at(args.figures.clone()).read()?;
    println!("{:72} {:>8}  {:12} verdict", "what is to be shown, by medians of one run", "figure", "target");
    for target in targets(&figures) {
        let Target { what, value, target, met } = target;
        let verdict = if met { "met" } else { "MISSED" };
        println!("{what:72} {value:>8.2}  {target:12} {verdict}");
    }
    for what in missing(&figures) {
        println!("{what:72} {:>8}  {:12} not measured", "–", "");
    }
    Ok(())
}

fn peer(figures: &[Figure], metric: &str, device: &str, path: &str, services: Option<u64>) -> Option<f64> {
    let found = figures.iter().find(|figure| {
        figure.metric == metric
            && figure.params["device"] == device
            && figure.params["path"] == path
            && services.is_none_or(|services| figure.params["services"] == services)
    });
    found.map(|figure| figure.value).filter(|value| *value > 0.0)
}

fn of_floor(figures: &[Figure]) -> Option<f64> {
    let ours = peer(figures, "peer_throughput", "fairway", FULL, None)?;
    Some(ours / peer(figures, "peer_throughput", "testpmd", "same-node", None)?)
}

fn of_kernel(figures: &[Figure]) -> Option<f64> {
    let per_cpu_second = |device| peer(figures, "peer_packets_per_cpu_second", device, FULL, Some(SERVICES));
    Some(per_cpu_second("fairway")? / per_cpu_second("kernel")?)
}

/// The targets that these figures speak of.
pub fn targets(figures: &[Figure]) -> Vec<Target> {
    let mut targets = Vec::new();
    let mut at_least = |what: &str, value: Option<f64>, least: f64| {
        if let Some(value) = value {
            let (what, target) = (what.to_owned(), format!(">= {least:.2}"));
            targets.push(Target { what, value, target, met: value >= least });
        }
    };
    at_least("AF_XDP, Service NAT and VXLAN: rate of testpmd's io mode", of_floor(figures), OF_FLOOR);
    at_least(
        "the same: packets per CPU-second of the kernel's, 1,000 Services",
        of_kernel(figures),
        OF_KERNEL,
    );
    let mut paths: Vec<(&str, u64)> = figures
        .iter()
        .filter(|figure| figure.metric == "peer_latency_p999" && figure.params["device"] == "fairway")
        .filter_map(|figure| Some((figure.params["path"].as_str()?, figure.params["services"].as_u64()?)))
        .collect();
    paths.dedup();
    for (path, services) in paths {
        let at = |metric| peer(figures, metric, "fairway", path, Some(services));
        if let (Some(p999), Some(p50)) = (at("peer_latency_p999"), at("peer_latency_p50")) {
            targets.push(Target {
                what: format!("p99.9 by the median at half the rate, {path}, {services} Services"),
                value: p999 / p50,
                target: format!("< {OF_MEDIAN:.2}"),
                met: p999 / p50 < OF_MEDIAN,
            });
        }
    }
    targets
}

/// The targets that they say nothing of.
fn missing(figures: &[Figure]) -> Vec<&'static str> {
    let all = [
        ("the rate of testpmd's io mode (is it installed?)", of_floor(figures).is_none()),
        ("the kernel's packets per CPU-second at 1,000 Services", of_kernel(figures).is_none()),
        ("latency at half the rate", !targets(figures).iter().any(|target| target.what.starts_with("p99.9"))),
    ];
    all.into_iter().filter(|(_, missing)| *missing).map(|(what, _)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn figure(metric: &str, device: &str, path: &str, services: u64, value: f64) -> Figure {
        let params = json!({ "device": device, "path": path, "services": services });
        Figure::new("peers", params, metric, value, "1")
    }

    #[test]
    fn targets_are_met_missed_or_not_measured_as_the_figures_say() {
        let mut figures = vec![
            figure("peer_throughput", "fairway", FULL, 100, 1.1e6),
            figure("peer_throughput", "fairway", FULL, 1000, 1.0e6),
            figure("peer_throughput", "testpmd", "same-node", 100, 1.0e6),
            figure("peer_packets_per_cpu_second", "fairway", FULL, 100, 9e6),
            figure("peer_packets_per_cpu_second", "fairway", FULL, 1000, 7e5),
            figure("peer_latency_p50", "fairway", FULL, 1000, 10.0),
            figure("peer_latency_p999", "fairway", FULL, 1000, 51.0),
        ];
        let verdicts = |figures: &[Figure]| -> Vec<(f64, bool)> {
            targets(figures)
                .iter()
                .map(|target| ((target.value * 100.0).round() / 100.0, target.met))
                .collect()
        };
        // Without the kernel at 1,000 Services nothing is said of it; other numbers of Services do not stand in.
        assert_eq!(verdicts(&figures), [(1.1, true), (5.1, false)]);
        assert_eq!(missing(&figures), ["the kernel's packets per CPU-second at 1,000 Services"]);
        figures.push(figure("peer_packets_per_cpu_second", "kernel", FULL, 1000, 5e5));
        assert_eq!(verdicts(&figures), [(1.1, true), (1.4, false), (5.1, false)]);
        assert!(missing(&figures).is_empty());
        // A search that found nothing is no figure.
        figures[2].value = 0.0;
        assert_eq!(verdicts(&figures), [(1.4, false), (5.1, false)]);
        assert_eq!(missing(&[]).len(), 3);
    }
}
