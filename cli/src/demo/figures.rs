//! The demo's closing tables: packets and bytes, drops by reason, and what each stage cost, per node, from
//! the counters that the engines keep in shared memory.

use fairway_tables::DropReason;
use fairway_tables::stats::{Counter, Stage, StatsReader, StatsSnapshot};
use fairway_tests::node::Node;
use fairway_tests::report::Figure;
use fairway_tests::{Error, Result};
use serde_json::json;
use std::fmt::Write as _;

const LABEL_COLUMNS: usize = 24;
const VALUE_COLUMNS: usize = 24;

/// The counters of every node at one moment.
pub(super) struct Figures {
    nodes: Vec<(String, StatsSnapshot)>,
}

/// Reads one node's counters.
pub(super) fn snapshot(node: &Node) -> Result<StatsSnapshot> {
    let reader = StatsReader::open(node.run_dir())
        .map_err(|e| Error::Answer { what: format!("counters of {}", node.name()), reason: e.to_string() })?;
    Ok(reader.snapshot())
}

impl Figures {
    /// Reads the counters of all nodes.
    pub(super) fn read(nodes: &[Node]) -> Result<Figures> {
        let read = |node: &Node| Ok((node.name().to_owned(), snapshot(node)?));
        Ok(Figures { nodes: nodes.iter().map(read).collect::<Result<_>>()? })
    }

    /// Counters that were read already, by node.
    pub(super) fn of(nodes: Vec<(String, StatsSnapshot)>) -> Figures {
        Figures { nodes }
    }

    /// The same figures for the report.
    pub(super) fn for_report(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for (node, snapshot) in &self.nodes {
            let params = json!({"node": node});
            let mut push = |metric: &str, value: u64, unit: &str| {
                figures.push(Figure::new("counters", params.clone(), metric, value as f64, unit));
            };
            for counter in [Counter::RxPackets, Counter::TxPackets, Counter::HostPackets] {
                push(counter.label(), snapshot.counter(counter), "packets");
            }
            push("drops", snapshot.all_drops(), "packets");
            for stage in Stage::ALL {
                let summary = snapshot.stage(*stage);
                push(&format!("{}_p50", stage.label()), summary.p50_ns, "ns");
                push(&format!("{}_p99", stage.label()), summary.p99_ns, "ns");
            }
        }
        figures
    }

    /// The tables as text.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let names: Vec<String> = self.nodes.iter().map(|(name, _)| name.clone()).collect();
        row(&mut text, "", &names);
        for counter in Counter::ALL {
            let shown = !matches!(counter, Counter::Loops | Counter::BusyLoops | Counter::Sleeps);
            self.counts(&mut text, counter.label(), shown, |s| s.counter(*counter));
        }
        text.push('\n');
        row(&mut text, "dropped, by reason", &names);
        for reason in DropReason::ALL {
            self.counts(&mut text, reason.label(), true, |s| s.drops(*reason));
        }
        let total = self.nodes.iter().map(|(_, s)| s.all_drops().to_string());
        row(&mut text, "all", &total.collect::<Vec<_>>());
        text.push('\n');
        row(&mut text, "cost, median / 99 %", &names);
        for stage in Stage::ALL {
            let unit = match stage {
                Stage::Burst | Stage::Loop | Stage::SlowPath => "each",
                Stage::Parse | Stage::FlowLookup | Stage::Rewrite => "per packet",
            };
            let cost = |(_, s): &(String, StatsSnapshot)| {
                let summary = s.stage(*stage);
                if summary.count == 0 {
                    return "-".to_owned();
                }
                format!("{} / {} ns", summary.p50_ns, summary.p99_ns)
            };
            let costs: Vec<String> = self.nodes.iter().map(cost).collect();
            row(&mut text, &format!("{}, {unit}", stage.label()), &costs);
        }
        text.trim_end().to_owned()
    }

    /// A row of counts, left out where every node counts none.
    fn counts(&self, text: &mut String, label: &str, shown: bool, of: impl Fn(&StatsSnapshot) -> u64) {
        let values: Vec<u64> = self.nodes.iter().map(|(_, snapshot)| of(snapshot)).collect();
        if shown && values.iter().any(|v| *v > 0) {
            row(text, label, &values.iter().map(u64::to_string).collect::<Vec<_>>());
        }
    }
}

fn row(text: &mut String, label: &str, values: &[String]) {
    let mut line = format!("  {label:LABEL_COLUMNS$}");
    for value in values {
        // Writing to a String cannot fail.
        let _ = write!(line, "{value:>VALUE_COLUMNS$}");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}
