//! What the kernel said about this node: links, addresses, routes and neighbours, as plain values.

use fairway_tables::{Ip, Mac, Prefix};
use std::collections::{BTreeMap, BTreeSet};

/// A network device in this network namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The kernel's number of the device.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; zero if it has none.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// Where a route of the kernel's main table leads. One route exists per prefix, metric and device.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RouteVia {
    /// Output device.
    pub ifindex: u32,
    /// Gateway; `None` if the destination is on the link.
    pub gateway: Option<Ip>,
}

/// One thing that the kernel said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KernelEvent {
    /// A link is there, or changed.
    Link(Link),
    /// The link of this number is gone, and with it its addresses, routes and neighbours.
    LinkGone(u32),
    /// A link has an address.
    Address(u32, Ip),
    /// A link lost an address.
    AddressGone(u32, Ip),
    /// The main table has a route of this prefix and metric.
    Route(Prefix, u32, RouteVia),
    /// The main table has a route of this prefix and metric, instead of all others of both.
    RouteReplaced(Prefix, u32, RouteVia),
    /// The main table lost the route of this prefix and metric out of this link.
    RouteGone(Prefix, u32, u32),
    /// A neighbour on a link is resolved, or is known not to answer.
    Neighbour(u32, Ip, Option<Mac>),
}

/// The sum of what the kernel said.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Links by number.
    pub links: BTreeMap<u32, Link>,
    /// Addresses by link number.
    pub addresses: BTreeSet<(u32, Ip)>,
    /// The main routing table: by prefix, then by metric, lowest first, and link.
    pub routes: BTreeMap<Prefix, BTreeMap<(u32, u32), RouteVia>>,
    /// Resolved neighbours.
    pub neighbours: BTreeMap<(u32, Ip), Mac>,
}

impl Facts {
    /// Takes in one event.
    pub fn apply(&mut self, event: &KernelEvent) {
        match event {
            KernelEvent::Link(link) => {
                self.links.insert(link.ifindex, link.clone());
            }
            KernelEvent::LinkGone(ifindex) => {
                self.links.remove(ifindex);
                self.addresses.retain(|(i, _)| i != ifindex);
                self.neighbours.retain(|(i, _), _| i != ifindex);
                self.routes.retain(|_, metrics| {
                    metrics.retain(|_, via| via.ifindex != *ifindex);
                    !metrics.is_empty()
                });
            }
            KernelEvent::Address(ifindex, ip) => {
                self.addresses.insert((*ifindex, *ip));
            }
            KernelEvent::AddressGone(ifindex, ip) => {
                self.addresses.remove(&(*ifindex, *ip));
            }
            KernelEvent::Route(prefix, metric, via) => {
                self.routes.entry(*prefix).or_default().insert((*metric, via.ifindex), *via);
            }
            KernelEvent::RouteReplaced(prefix, metric, via) => {
                let metrics = self.routes.entry(*prefix).or_default();
                metrics.retain(|(m, _), _| m != metric);
                metrics.insert((*metric, via.ifindex), *via);
            }
            KernelEvent::RouteGone(prefix, metric, ifindex) => {
                if let Some(metrics) = self.routes.get_mut(prefix) {
                    metrics.remove(&(*metric, *ifindex));
                    if metrics.is_empty() {
                        self.routes.remove(prefix);
                    }
                }
            }
            KernelEvent::Neighbour(ifindex, ip, Some(mac)) => {
                self.neighbours.insert((*ifindex, *ip), *mac);
            }
            KernelEvent::Neighbour(ifindex, ip, None) => {
                self.neighbours.remove(&(*ifindex, *ip));
            }
        }
    }

    /// The events that lead from these facts to a fresh listing. Neighbours that the listing lacks stay:
    /// the kernel forgets idle ones, and forgetting is no sign that they left.
    pub fn events_to(&self, listing: &Facts) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        let gone = self.links.keys().filter(|i| !listing.links.contains_key(i));
        events.extend(gone.map(|i| KernelEvent::LinkGone(*i)));
        let changed = listing.links.iter().filter(|(i, link)| self.links.get(i) != Some(link));
        events.extend(changed.map(|(_, link)| KernelEvent::Link(link.clone())));
        let gone = self.addresses.difference(&listing.addresses);
        events.extend(gone.map(|(i, ip)| KernelEvent::AddressGone(*i, *ip)));
        let new = listing.addresses.difference(&self.addresses);
        events.extend(new.map(|(i, ip)| KernelEvent::Address(*i, *ip)));
        let route = |facts: &Facts, prefix, metric| facts.routes.get(prefix)?.get(metric).copied();
        for (prefix, metrics) in &self.routes {
            let gone = metrics.keys().filter(|m| route(listing, prefix, m).is_none());
            events.extend(gone.map(|(m, i)| KernelEvent::RouteGone(*prefix, *m, *i)));
        }
        for (prefix, metrics) in &listing.routes {
            let new = metrics.iter().filter(|(m, via)| route(self, prefix, m) != Some(**via));
            events.extend(new.map(|((m, _), via)| KernelEvent::Route(*prefix, *m, *via)));
        }
        let new = listing.neighbours.iter().filter(|(k, mac)| self.neighbours.get(k) != Some(mac));
        events.extend(new.map(|((i, ip), mac)| KernelEvent::Neighbour(*i, *ip, Some(*mac))));
        events
    }

    /// The link of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// The best route to `ip` out of `ifindex`: longest prefix, then lowest metric. Routes out of other
    /// devices do not count.
    pub fn route_to(&self, ip: Ip, ifindex: u32) -> Option<RouteVia> {
        let max = if ip.is_v4() { 32 } else { 128 };
        (0..=max).rev().find_map(|len| {
            let metrics = self.routes.get(&Prefix::new(ip, len)?)?;
            metrics.values().find(|via| via.ifindex == ifindex).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn routes_are_found_by_longest_prefix_then_metric_on_the_asked_device() {
        let mut facts = Facts::default();
        let gateway = |last| Some(Ip::v4([192, 0, 2, last]));
        for (text, metric, ifindex, gateway) in [
            ("0.0.0.0/0", 100, 2, gateway(1)),
            ("0.0.0.0/0", 50, 2, gateway(2)),
            ("192.0.2.0/24", 0, 2, None),
            ("192.0.2.7/32", 0, 3, gateway(9)),
        ] {
            facts.apply(&KernelEvent::Route(prefix(text), metric, RouteVia { ifindex, gateway }));
        }
        let via = |ip, ifindex| facts.route_to(Ip::v4(ip), ifindex).map(|v| v.gateway);
        assert_eq!(via([192, 0, 2, 7], 2), Some(None));
        assert_eq!(via([192, 0, 2, 7], 3), Some(gateway(9)));
        assert_eq!(via([198, 51, 100, 1], 2), Some(gateway(2)));
        assert_eq!(via([198, 51, 100, 1], 4), None);
    }

    #[test]
    fn a_listing_is_reached_by_its_difference_and_idle_neighbours_stay() {
        let link = |ifindex, name: &str| Link { ifindex, name: name.into(), mac: Mac::ZERO, mtu: 1500 };
        let ip = Ip::v4([192, 0, 2, 1]);
        let mut facts = Facts::default();
        let via = RouteVia { ifindex: 2, gateway: None };
        for event in [
            KernelEvent::Link(link(1, "a")),
            KernelEvent::Link(link(2, "b")),
            KernelEvent::Address(2, ip),
            KernelEvent::Route(prefix("10.0.0.0/8"), 0, via),
            KernelEvent::Neighbour(2, ip, Some(Mac([2; 6]))),
        ] {
            facts.apply(&event);
        }
        let mut listing = Facts::default();
        listing.apply(&KernelEvent::Link(link(2, "b2")));
        listing.apply(&KernelEvent::Route(prefix("10.0.0.0/8"), 7, via));
        for event in facts.events_to(&listing) {
            facts.apply(&event);
        }
        assert_eq!(facts.neighbours.len(), 1);
        facts.neighbours.clear();
        assert_eq!(facts, listing);
    }
}
