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

/// A flow's addresses (of IPv6, the last 32 bits; the stream has the rest) and ports, in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source.
    pub src: u32,
    /// Destination.
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
    /// Addresses and ports of its flow number `n`, below [`PlannedStream::flows`]. Destinations and their ports change
    /// first, so that few flows meet all Services too; then source ports and sources. Each destination's flows begin at another
    /// source port: with the same one, connections to two Services with one backend would look alike behind them.
    #[inline]
    pub fn tuple(&self, n: u32) -> Tuple {
        let Route { sources, destinations, source_ports, destination_ports, .. } = &self.route;
        let (rest, dst) = (n / destinations.count, n % destinations.count);
        let (rest, dport) = (rest / destination_ports.count, rest % destination_ports.count);
        let (src, sport) = (rest / source_ports.count, rest % source_ports.count);
        let sport = (sport + self.first_source_port(dst, dport)) % source_ports.count;
        Tuple {
            src: sources.nth(src),
            dst: destinations.nth(dst),
            sport: source_ports.nth(sport),
            dport: destination_ports.nth(dport),
        }
    }
}

impl PlannedStream {
    /// By how much the source ports of one destination's flows are shifted.
    #[inline]
    fn first_source_port(&self, dst: u32, dport: u32) -> u32 {
        let Route { destinations, source_ports, destination_ports, .. } = &self.route;
        let target = u64::from(dport) * u64::from(destinations.count) + u64::from(dst);
        let targets = u64::from(destination_ports.count) * u64::from(destinations.count);
        let step = (u64::from(source_ports.count) / targets.max(1)).max(1);
        (target * step % u64::from(source_ports.count)) as u32
    }

    /// The number of a tuple: the inverse of [`PlannedStream::tuple`].
    pub fn number(&self, tuple: &Tuple) -> Option<u32> {
        let Route { sources, destinations, source_ports, destination_ports, .. } = &self.route;
        let place = |value: u32, first: u32, count: u32| value.checked_sub(first).filter(|n| *n < count);
        let src = place(tuple.src, sources.first, sources.count)?;
        let dst = place(tuple.dst, destinations.first, destinations.count)?;
        let sport = place(tuple.sport.into(), source_ports.first.into(), source_ports.count)?;
        let dport = place(tuple.dport.into(), destination_ports.first.into(), destination_ports.count)?;
        let sport = sport + source_ports.count - self.first_source_port(dst, dport);
        let number = u64::from(src) * u64::from(source_ports.count) + u64::from(sport % source_ports.count);
        let number = number * u64::from(destination_ports.count) + u64::from(dport);
        let number = number * u64::from(destinations.count) + u64::from(dst);
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
    /// Number of the first of them among all senders' flows.
    pub first_flow: u32,
    /// Which sender they are for, from 0.
    pub sender: u32,
}

impl Plan {
    /// Gives a checked scenario's streams their addresses.
    ///
    /// # Errors
    /// [`TooFewTuples`] if a stream has more flows than addresses and ports.
    pub fn new(scenario: &Scenario, site: &Site) -> Result<Plan, TooFewTuples> {
        Plan::of_sender(scenario, site, 0)
    }

    /// The same for one of the scenario's senders, from 0: its share of each stream's flows, from a pod of its own.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn of_sender(scenario: &Scenario, site: &Site, sender: u32) -> Result<Plan, TooFewTuples> {
        let share = |flows: u32, of: u32| flows / scenario.senders + u32::from(of < flows % scenario.senders);
        let earlier =
            (0..sender).flat_map(|of| scenario.streams.iter().map(move |stream| share(stream.flows, of)));
        let mut plan = Plan { streams: Vec::new(), weights: 0, flows: 0, first_flow: earlier.sum(), sender };
        let site = &site.of_sender(sender);
        for (number, stream) in scenario.streams.iter().enumerate() {
            let flows = share(stream.flows, sender);
            let route = route_of(stream, site);
            let tuples = [route.sources.count, route.destinations.count, route.source_ports.count]
                .iter()
                .fold(u64::from(route.destination_ports.count), |all, n| all.saturating_mul(u64::from(*n)));
            if u64::from(flows) > tuples {
                let path = stream.path.name();
                return Err(TooFewTuples { stream: number, flows, path, tuples });
            }
            plan.weights += stream.weight;
            plan.streams.push(PlannedStream {
                path: stream.path,
                route,
                protocol: stream.protocol,
                order: stream.order,
                first_flow: plan.flows,
                flows,
                weight_end: plan.weights,
            });
            plan.flows += flows;
        }
        Ok(plan)
    }
}

fn route_of(stream: &Stream, site: &Site) -> Route {
    let default = stream.path.route(site, stream.family);
    Route {
        sources: stream.sources.unwrap_or(default.sources),
        destinations: stream.destinations.unwrap_or(default.destinations),
        source_ports: stream.source_ports.unwrap_or(default.source_ports),
        destination_ports: stream.destination_ports.unwrap_or(default.destination_ports),
        ..default
    }
}
