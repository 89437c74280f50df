//! The table of ticks.

use crate::plan::{Address, Backends, Client, Outcome, Way};
use fairway_tests::pod::witness::Transport;
use std::collections::BTreeMap;
use std::fmt;

/// One line: type and address, policy, family, protocol, and whether the port exists.
type Line = (String, bool, bool, Transport, bool);

/// What was found right and wrong.
#[derive(Default)]
pub(crate) struct Table {
    cells: BTreeMap<Line, BTreeMap<(Backends, Client), bool>>,
    wrong: Vec<String>,
}

impl Table {
    pub(crate) fn enter(&mut self, way: &Way, client: Client, wanted: &Outcome, got: &Outcome) {
        let kind = match way.address {
            Address::Cluster => "cluster address",
            Address::NodePort => "node port",
            Address::LoadBalancer => "balancer's address",
            Address::External => "external address",
        };
        let kind = format!("{:?}, {kind}", way.service.kind);
        let line = (kind, way.service.is_local, way.is_v4, way.transport, way.is_unknown_port);
        self.cells.entry(line).or_default().insert((way.service.backends, client), wanted == got);
        if wanted != got {
            let what = format!("{} at {:?} from {client:?}", way.service.name(), way.question());
            self.wrong.push(format!("{what}:\n  wanted {wanted:?}\n  got    {got:?}"));
        }
    }

    pub(crate) fn wrong(&self) -> &[String] {
        &self.wrong
    }

    pub(crate) fn ways(&self) -> usize {
        self.cells.values().map(BTreeMap::len).sum()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "columns: backends on the same node | another | both | none; from pod, host, outside, same subnet"
        )?;
        for ((kind, is_local, is_v4, transport, is_unknown_port), cells) in &self.cells {
            let policy = if *is_local { "Local" } else { "Cluster" };
            let family = if *is_v4 { "IPv4" } else { "IPv6" };
            let protocol = format!("{transport:?}").to_uppercase();
            let port = if *is_unknown_port { ", no such port" } else { "" };
            write!(f, "{:<44} {policy:<7} {family} {protocol:<4}", format!("{kind}{port}"))?;
            for backends in Backends::ALL {
                let tick = |client: Client| match cells.get(&(backends, client)) {
                    Some(true) => '✓',
                    Some(false) => '✗',
                    None => '·',
                };
                write!(f, " | {}", Client::ALL.map(tick).iter().collect::<String>())?;
            }
            writeln!(f)?;
        }
        write!(f, "{} ways, {} wrong", self.ways(), self.wrong.len())
    }
}
