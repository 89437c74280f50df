//! What the kernel's main routing table adds to the engine's routes: what BIRD, FRR or an administrator put there.
//!
//! Of the routes of a prefix the one counts that the kernel would take: that of the lowest metric, of these the first.
//! Left out are
//! - default routes: about what lies outside the cluster, [`masquerade`](super::masquerade) decides;
//! - Fairway's own routes (`proto 70`), and those that lead into the host veth: packets would come back;
//! - next hops on links that are down, link-local and multicast prefixes;
//! - prefixes inside a range of which Fairway alone decides: this node's pods, and those of nodes to which packets are
//!   encapsulated. What announces a node's own range (a `blackhole` route of BIRD's) must not swallow its pods.
//!
//! For the same prefix a route of the kernel's stands before one that follows from a Node object without encapsulation,
//! or from a pool.

use super::routes::{Hop, KernelRoute, RouteKind};
use super::{Index, UPLINK_PORT, is_link_local};
use crate::kernel::ROUTE_PROTOCOL;
use crate::model::{Key, Value};
use crate::names;
use fairway_tables::{Group, Ip, MAX_PATHS, MAX_WEIGHT, NextHop, NextHopKind, PortId, Prefix};
use std::collections::{BTreeMap, BTreeSet};

/// The next hops of a route, if the value is one.
fn next_hops(value: Option<&Value>) -> impl Iterator<Item = NextHop> + '_ {
    let (one, several) = match value {
        Some(Value::Route(hop)) => (Some(*hop), None),
        Some(Value::Paths(group)) => (None, Some(group.paths().iter().map(|path| path.next_hop))),
        _ => (None, None),
    };
    one.into_iter().chain(several.into_iter().flatten())
}

/// The neighbours that a route's next hops, or what is bound to a port, lead to.
pub(super) fn neighbours(key: &Key, value: Option<&Value>) -> BTreeSet<(PortId, Ip)> {
    let prefix = match (key, value) {
        (Key::Route(prefix), _) => prefix,
        (Key::Port(id), Some(Value::Port(port))) => {
            let gateways = [true, false].into_iter().filter_map(|is_v4| port.gateway_for(is_v4));
            return gateways.map(|gateway| (*id, gateway)).collect();
        }
        _ => return BTreeSet::new(),
    };
    let gateways = next_hops(value).filter(|hop| hop.kind() == Some(NextHopKind::Gateway));
    gateways
        .map(|hop| (hop.port, if hop.addr == Ip::UNSPECIFIED { prefix.addr() } else { hop.addr }))
        .collect()
}

/// Whether Fairway alone decides about a route's range; `None` if the route leaves that to those around it.
pub(super) fn is_exclusive(value: Option<&Value>) -> Option<bool> {
    let mut kinds = next_hops(value).filter_map(|hop| hop.kind()).peekable();
    kinds.peek().filter(|kind| **kind != NextHopKind::Unreachable)?;
    Some(kinds.any(|kind| kind == NextHopKind::Local || kind.is_tunnel()))
}

/// Whether a route that follows from objects gives way to one of the kernel's.
fn yields(value: &Value) -> bool {
    let yields = |kind| matches!(kind, NextHopKind::Gateway | NextHopKind::Unreachable);
    next_hops(Some(value)).all(|hop| hop.kind().is_some_and(yields))
}

fn is_multicast(ip: Ip) -> bool {
    ip.as_v4().map_or(ip.0[0] == 0xff, |octets| octets[0] & 0xf0 == 0xe0)
}

impl Index {
    /// What the tables should hold under a key.
    pub(super) fn winner(&self, key: &Key) -> Option<Value> {
        let claim = self.claims.get(key).and_then(|claims| claims.values().next());
        match key {
            Key::Route(prefix) if claim.is_none_or(yields) => {
                self.kernel_route(*prefix).or_else(|| claim.cloned())
            }
            _ => claim.cloned(),
        }
    }

    fn kernel_route(&self, prefix: Prefix) -> Option<Value> {
        let addr = prefix.addr();
        if prefix.is_empty() || is_link_local(addr) || is_multicast(addr) {
            return None;
        }
        let routes = self.facts.routes.of(prefix).filter(|route| route.protocol != ROUTE_PROTOCOL);
        let mut ways = routes.filter_map(|route| self.way_of(prefix, route));
        ways.next().filter(|_| !self.is_in_exclusive_range(prefix))
    }

    fn way_of(&self, prefix: Prefix, route: &KernelRoute) -> Option<Value> {
        let simple = |kind| Some(Value::Route(NextHop::new(kind, Ip::UNSPECIFIED, PortId::NONE)));
        match route.kind {
            RouteKind::Blackhole => return simple(NextHopKind::Blackhole),
            RouteKind::Unreachable => return simple(NextHopKind::Unreachable),
            RouteKind::Unicast => {}
        }
        let mut weights = BTreeMap::new();
        for hop in route.hops.iter().filter(|hop| self.is_usable(hop)) {
            let weight: &mut u32 = weights.entry(self.next_hop(prefix, hop)).or_default();
            *weight = (*weight + hop.weight).min(MAX_WEIGHT);
        }
        // Fails only if there is none.
        let group = Group::new(weights.into_iter().take(MAX_PATHS)).ok()?;
        Some(group.only().map_or_else(|| Value::Paths(Box::new(group)), Value::Route))
    }

    fn is_usable(&self, hop: &Hop) -> bool {
        let link = self.facts.links.get(&hop.ifindex);
        link.is_some_and(|link| {
            link.up && link.name != names::HOST_KERNEL_IF && link.name != names::HOST_ENGINE_IF
        })
    }

    /// Out of an uplink the engine sends itself, if it can know to whom: to a gateway, or to the one station of a host
    /// prefix. All else is the kernel's to deliver; of a subnet on the uplink's link the engine is told, since its stations
    /// know no more of pods than those behind a gateway.
    fn next_hop(&self, prefix: Prefix, hop: &Hop) -> NextHop {
        let is_host = prefix == Prefix::host(prefix.addr());
        match self.uplink_port(hop.ifindex) {
            Some(port) if hop.gateway.is_some() || is_host => {
                NextHop::new(NextHopKind::Gateway, hop.gateway.unwrap_or(Ip::UNSPECIFIED), port)
            }
            _ => {
                let port = if self.uplink == Some(hop.ifindex) { UPLINK_PORT } else { PortId::NONE };
                NextHop::new(NextHopKind::Host, Ip::UNSPECIFIED, port)
            }
        }
    }

    /// Whether the shortest range around a prefix that follows from objects is one of which Fairway alone decides.
    fn is_in_exclusive_range(&self, prefix: Prefix) -> bool {
        let around = |len| self.claims.get(&Key::Route(Prefix::new(prefix.addr(), len)?))?.values().next();
        (0..prefix.len()).rev().find_map(|len| is_exclusive(around(len))).unwrap_or(false)
    }

    /// The port of a link that is an uplink.
    pub(super) fn uplink_port(&self, ifindex: u32) -> Option<PortId> {
        let first = (self.uplink == Some(ifindex)).then_some(UPLINK_PORT);
        first.or_else(|| self.eni_ports.get(&ifindex).copied())
    }

    /// The link behind an uplink's port.
    pub(super) fn uplink_ifindex(&self, port: PortId) -> Option<u32> {
        let eni = || self.eni_ports.iter().find(|(_, p)| **p == port).map(|(ifindex, _)| *ifindex);
        self.uplink.filter(|_| port == UPLINK_PORT).or_else(eni)
    }

    fn link_name(&self, ifindex: u32) -> &str {
        self.facts.links.get(&ifindex).map_or("a link that is gone", |link| link.name.as_str())
    }

    pub(super) fn pending_kernel_routes(&self, push: &mut impl FnMut(String, String)) {
        for ((port, ip), routes) in &self.needed_neighbours {
            let Some(ifindex) = self.uplink_ifindex(*port) else { continue };
            if !self.facts.neighbours.contains_key(&(ifindex, *ip)) && !self.next_hop_users.contains_key(ip) {
                push(
                    format!("next hop {ip}"),
                    format!(
                        "it does not answer on {} yet; {routes} routes or ENIs lead through it",
                        self.link_name(ifindex)
                    ),
                );
            }
        }
        for (prefix, routes) in self.facts.routes.iter() {
            let most = routes.iter().map(|route| route.hops.len()).max().unwrap_or(0);
            if most > MAX_PATHS {
                push(
                    format!("route {prefix}"),
                    format!("it has {most} next hops, of which the engine uses {MAX_PATHS}"),
                );
            }
        }
    }
}
