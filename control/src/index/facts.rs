//! What the kernel said about this node: links, addresses, routes and neighbours, as plain values.

use super::routes::{KernelRoute, Place, Routes};
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
    /// Whether it is set up (IFF_UP): the kernel uses no next hop on a link that is not.
    pub up: bool,
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
    /// The main table has one more route of this prefix and metric.
    Route(Prefix, u32, KernelRoute, Place),
    /// The main table lost a route of this prefix and metric.
    RouteGone(Prefix, u32, KernelRoute),
    /// These are all the routes of this prefix and metric, the first of which counts.
    Routes(Prefix, u32, Vec<KernelRoute>),
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
    /// The main routing table.
    pub routes: Routes,
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
                self.routes.link_gone(*ifindex);
            }
            KernelEvent::Address(ifindex, ip) => {
                self.addresses.insert((*ifindex, *ip));
            }
            KernelEvent::AddressGone(ifindex, ip) => {
                self.addresses.remove(&(*ifindex, *ip));
            }
            KernelEvent::Route(prefix, metric, route, place) => {
                self.routes.add(*prefix, *metric, route.clone(), *place);
            }
            KernelEvent::RouteGone(prefix, metric, route) => self.routes.remove(*prefix, *metric, route),
            KernelEvent::Routes(prefix, metric, routes) => {
                self.routes.set(*prefix, *metric, routes.clone());
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
        let changed = self.routes.changed_to(&listing.routes);
        events.extend(changed.map(|(prefix, metric, routes)| KernelEvent::Routes(prefix, metric, routes)));
        let new = listing.neighbours.iter().filter(|(k, mac)| self.neighbours.get(k) != Some(mac));
        events.extend(new.map(|((i, ip), mac)| KernelEvent::Neighbour(*i, *ip, Some(*mac))));
        events
    }

    /// The link of this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Whether the link is there and up.
    pub fn is_up(&self, ifindex: u32) -> bool {
        self.links.get(&ifindex).is_some_and(|link| link.up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_listing_is_reached_by_its_difference_and_idle_neighbours_stay() {
        let link =
            |ifindex, name: &str| Link { ifindex, name: name.into(), mac: Mac::ZERO, mtu: 1500, up: true };
        let ip = Ip::v4([192, 0, 2, 1]);
        let mut facts = Facts::default();
        let via = KernelRoute::direct(2);
        for event in [
            KernelEvent::Link(link(1, "a")),
            KernelEvent::Link(link(2, "b")),
            KernelEvent::Address(2, ip),
            KernelEvent::Route(prefix("10.0.0.0/8"), 0, via.clone(), Place::Last),
            KernelEvent::Neighbour(2, ip, Some(Mac([2; 6]))),
        ] {
            facts.apply(&event);
        }
        let mut listing = Facts::default();
        listing.apply(&KernelEvent::Link(link(2, "b2")));
        listing.apply(&KernelEvent::Route(prefix("10.0.0.0/8"), 7, via, Place::Last));
        for event in facts.events_to(&listing) {
            facts.apply(&event);
        }
        assert_eq!(facts.neighbours.len(), 1);
        facts.neighbours.clear();
        assert_eq!(facts, listing);
    }
}
