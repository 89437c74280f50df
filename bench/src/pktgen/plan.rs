//! A scenario at a site: streams with addresses, and every flow by its number.

use crate::pktgen::paths::{PathName, Route, Site};
use crate::pktgen::scenario::{Order, Protocol, Scenario, Stream};

/// A scenario needs more flows than its addresses and ports can tell apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "streams[{stream}].flows is {flows}, but path {path} has {tuples} different addresses and ports; widen \
     source_ports, destination_ports or destinations, or raise tables.services for path clusterip"
)]
pub struct TooFewTuples {
    /// Number of the stream.
    pub stream: usize,
    /// Flows asked for.
    pub flows: u32,
    /// Its path.
    pub path: &'static str,
    /// Different 5-tuples that there are.
    pub tuples: u64,
}

/// A flow's addresses and ports, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// IPv4 source.
    pub src: u32,
    /// IPv4 destination.
    pub dst: u32,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// A stream with its addresses.
#[derive(Clone, Debug)]
pub struct PlannedStream {
    /// Which way.
    pub path: PathName,
    /// Its addresses.
    pub route: Route,
    /// Transport.
    pub protocol: Protocol,
    /// Which flow comes next.
    pub order: Order,
    /// Number of its first flow among all flows.
    pub first_flow: u32,
    /// How many flows.
    pub flows: u32,
    /// Its share is this less the stream's before it, of [`Plan::weights`].
    pub weight_end: u32,
}

impl PlannedStream {
    /// Addresses and ports of its flow number `n`, below [`PlannedStream::flows`]. Source ports change first, as
    /// a busy client's do; then destinations, destination ports and sources.
    #[inline]
    pub fn tuple(&self, n: u32) -> Tuple {
        let Route { sources, destinations, source_ports, destination_ports, .. } = &self.route;
        let (rest, sport) = (n / source_ports.count, n % source_ports.count);
        let (rest, dst) = (rest / destinations.count, rest % destinations.count);
        let (src, dport) = (rest / destination_ports.count, rest % destination_ports.count);
        Tuple {
            src: sources.nth(src),
            dst: destinations.nth(dst),
            sport: source_ports.nth(sport),
            dport: destination_ports.nth(dport),
        }
    }
}

impl PlannedStream {
    /// The number of a tuple: the inverse of [`PlannedStream::tuple`].
    pub fn number(&self, tuple: &Tuple) -> Option<u32> {
        let Route { sources, destinations, source_ports, destination_ports, .. } = &self.route;
        let place = |value: u32, first: u32, count: u32| value.checked_sub(first).filter(|n| *n < count);
        let src = place(tuple.src, sources.first, sources.count)?;
        let dst = place(tuple.dst, destinations.first, destinations.count)?;
        let sport = place(tuple.sport.into(), source_ports.first.into(), source_ports.count)?;
        let dport = place(tuple.dport.into(), destination_ports.first.into(), destination_ports.count)?;
        let number = u64::from(src) * u64::from(destination_ports.count) + u64::from(dport);
        let number = number * u64::from(destinations.count) + u64::from(dst);
        let number = number * u64::from(source_ports.count) + u64::from(sport);
        u32::try_from(number).ok().filter(|number| *number < self.flows)
    }
}

/// All streams of a scenario.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The streams.
    pub streams: Vec<PlannedStream>,
    /// Sum of their weights.
    pub weights: u32,
    /// Sum of their flows.
    pub flows: u32,
}

impl Plan {
    /// Gives a checked scenario's streams their addresses.
    ///
    /// # Errors
    /// [`TooFewTuples`] if a stream has more flows than addresses and ports.
    pub fn new(scenario: &Scenario, site: &Site) -> Result<Plan, TooFewTuples> {
        let mut plan = Plan { streams: Vec::new(), weights: 0, flows: 0 };
        for (number, stream) in scenario.streams.iter().enumerate() {
            let route = route_of(stream, site);
            let tuples = [route.sources.count, route.destinations.count, route.source_ports.count]
                .iter()
                .fold(u64::from(route.destination_ports.count), |all, n| all.saturating_mul(u64::from(*n)));
            if u64::from(stream.flows) > tuples {
                let (flows, path) = (stream.flows, stream.path.name());
                return Err(TooFewTuples { stream: number, flows, path, tuples });
            }
            plan.weights += stream.weight;
            plan.streams.push(PlannedStream {
                path: stream.path,
                route,
                protocol: stream.protocol,
                order: stream.order,
                first_flow: plan.flows,
                flows: stream.flows,
                weight_end: plan.weights,
            });
            plan.flows += stream.flows;
        }
        Ok(plan)
    }
}

fn route_of(stream: &Stream, site: &Site) -> Route {
    let default = stream.path.route(site);
    Route {
        sources: stream.sources.unwrap_or(default.sources),
        destinations: stream.destinations.unwrap_or(default.destinations),
        source_ports: stream.source_ports.unwrap_or(default.source_ports),
        destination_ports: stream.destination_ports.unwrap_or(default.destination_ports),
        ..default
    }
}
