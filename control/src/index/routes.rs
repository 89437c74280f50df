//! The kernel's main routing table, as rtnetlink tells of it, in both families' manners.
//!
//! Of one prefix and metric there may be several routes. In IPv4 they stand in a row and the first counts (`ip route
//! append` and `prepend` add at either end); several next hops are one route. In IPv6 a next hop with a gateway that is
//! added to another makes one route of both, and a deletion may take one of them away; an announcement of an addition
//! always lists all next hops.

use fairway_tables::{Ip, Prefix};
use std::collections::BTreeMap;

/// What the kernel does with packets that a route matches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum RouteKind {
    /// Sends them to a next hop (RTN_UNICAST).
    Unicast,
    /// Drops them silently (RTN_BLACKHOLE).
    Blackhole,
    /// Drops them and tells the sender (RTN_UNREACHABLE, RTN_PROHIBIT).
    Unreachable,
}

/// A next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Hop {
    /// Output device.
    pub ifindex: u32,
    /// Gateway; `None` if the destination is on the link.
    pub gateway: Option<Ip>,
    /// Its share of the flows, 1 to 256.
    pub weight: u32,
}

/// A route of the kernel's main table.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct KernelRoute {
    /// What it does.
    pub kind: RouteKind,
    /// Who made it: RTPROT_* of linux/rtnetlink.h.
    pub protocol: u8,
    /// Where it leads; none unless it is unicast.
    pub hops: Vec<Hop>,
}

impl KernelRoute {
    /// A static route with one next hop.
    pub fn via(ifindex: u32, gateway: Ip) -> KernelRoute {
        let hops = vec![Hop { ifindex, gateway: Some(gateway), weight: 1 }];
        KernelRoute { kind: RouteKind::Unicast, protocol: libc::RTPROT_STATIC, hops }
    }

    /// A subnet that the kernel knows to be on a link.
    pub fn direct(ifindex: u32) -> KernelRoute {
        let hops = vec![Hop { ifindex, gateway: None, weight: 1 }];
        KernelRoute { kind: RouteKind::Unicast, protocol: libc::RTPROT_KERNEL, hops }
    }

    /// Whether IPv6 next hops like these become one route.
    fn joins(&self) -> bool {
        self.kind == RouteKind::Unicast && self.hops.iter().all(|hop| hop.gateway.is_some())
    }
}

/// Where an added route stands among those of its prefix and metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Before the others.
    First,
    /// Behind the others.
    Last,
    /// In place of the first.
    Instead,
}

/// See the module's head.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes {
    /// By prefix, then by metric, lowest first.
    rows: BTreeMap<(Prefix, u32), Vec<KernelRoute>>,
    /// How many next hops there are on each link.
    hops: BTreeMap<u32, usize>,
}

impl Routes {
    /// Takes in an added route.
    pub fn add(&mut self, prefix: Prefix, metric: u32, route: KernelRoute, place: Place) {
        let is_v4 = prefix.addr().is_v4();
        self.change(prefix, metric, |row| {
            let joined = row.iter_mut().find(|other| !is_v4 && other.joins() && route.joins());
            match (joined, place) {
                (Some(other), Place::First | Place::Last) => *other = route,
                (None, Place::First) if is_v4 => row.insert(0, route),
                (None, Place::First | Place::Last) => row.push(route),
                (_, Place::Instead) => match row.first_mut() {
                    Some(first) => *first = route,
                    None => row.push(route),
                },
            }
        });
    }

    /// Takes in a removed route, or in IPv6 removed next hops of one.
    pub fn remove(&mut self, prefix: Prefix, metric: u32, route: &KernelRoute) {
        let joins = !prefix.addr().is_v4() && route.joins();
        self.change(prefix, metric, |row| {
            if !joins {
                let same = |other: &KernelRoute| (other.kind, &other.hops) == (route.kind, &route.hops);
                row.iter().position(same).map(|at| row.remove(at));
            } else if let Some(at) = row.iter().position(KernelRoute::joins) {
                let is_same = |a: &Hop, b: &Hop| (a.ifindex, a.gateway) == (b.ifindex, b.gateway);
                row[at].hops.retain(|hop| !route.hops.iter().any(|gone| is_same(hop, gone)));
                if row[at].hops.is_empty() {
                    row.remove(at);
                }
            }
        });
    }

    /// Replaces all routes of a prefix and metric.
    pub fn set(&mut self, prefix: Prefix, metric: u32, routes: Vec<KernelRoute>) {
        self.change(prefix, metric, |row| *row = routes);
    }

    /// Drops the routes that led to this link only.
    pub fn link_gone(&mut self, ifindex: u32) {
        let keys: Vec<_> = self.keys_through(ifindex).collect();
        for (prefix, metric) in keys {
            self.change(prefix, metric, |row| {
                row.retain(|r| r.hops.is_empty() || r.hops.iter().any(|hop| hop.ifindex != ifindex));
            });
        }
    }

    fn change(&mut self, prefix: Prefix, metric: u32, change: impl FnOnce(&mut Vec<KernelRoute>)) {
        let row = self.rows.entry((prefix, metric)).or_default();
        for hop in row.iter().flat_map(|route| &route.hops) {
            if let Some(count) = self.hops.get_mut(&hop.ifindex) {
                *count -= 1;
            }
        }
        change(row);
        for hop in row.iter().flat_map(|route| &route.hops) {
            *self.hops.entry(hop.ifindex).or_default() += 1;
        }
        if row.is_empty() {
            self.rows.remove(&(prefix, metric));
        }
        self.hops.retain(|_, count| *count > 0);
    }

    /// What differs in `listing`, as prefix, metric and all routes of these there.
    pub fn changed_to<'a>(
        &'a self,
        listing: &'a Routes,
    ) -> impl Iterator<Item = (Prefix, u32, Vec<KernelRoute>)> + 'a {
        let gone = self.rows.keys().filter(|key| !listing.rows.contains_key(key));
        let changed = listing.rows.iter().filter(|(key, row)| self.rows.get(key) != Some(row));
        let gone = gone.map(|(prefix, metric)| (*prefix, *metric, Vec::new()));
        gone.chain(changed.map(|((prefix, metric), row)| (*prefix, *metric, row.clone())))
    }

    /// Every prefix that has a route, with the routes of one metric.
    pub fn iter(&self) -> impl Iterator<Item = (Prefix, &[KernelRoute])> {
        self.rows.iter().map(|((prefix, _), row)| (*prefix, row.as_slice()))
    }

    /// The routes of exactly this prefix, best first.
    pub fn of(&self, prefix: Prefix) -> impl Iterator<Item = &KernelRoute> {
        self.rows.range((prefix, 0)..=(prefix, u32::MAX)).flat_map(|(_, row)| row)
    }

    /// Every prefix that has a route that leads to this link.
    pub fn through(&self, ifindex: u32) -> impl Iterator<Item = Prefix> + '_ {
        self.keys_through(ifindex).map(|(prefix, _)| prefix)
    }

    fn keys_through(&self, ifindex: u32) -> impl Iterator<Item = (Prefix, u32)> + '_ {
        let rows = self.hops.contains_key(&ifindex).then_some(&self.rows);
        let leads = move |row: &[KernelRoute]| {
            row.iter().any(|route| route.hops.iter().any(|hop| hop.ifindex == ifindex))
        };
        rows.into_iter().flatten().filter(move |(_, row)| leads(row)).map(|(key, _)| *key)
    }

    /// Every prefix inside this one that has a route, this one included.
    pub fn inside(&self, outer: Prefix) -> impl Iterator<Item = Prefix> + '_ {
        let prefixes = self.rows.range((outer, 0)..).map(|((prefix, _), _)| *prefix);
        prefixes.take_while(move |prefix| outer.contains(prefix.addr()))
    }

    /// The next hop of the best route to `ip` out of `ifindex`: longest prefix, then lowest metric. Routes out of other
    /// devices do not count. Of several next hops on the device it is the first: a tunnel's packets must keep their
    /// order.
    pub fn next_hop_to(&self, ip: Ip, ifindex: u32) -> Option<Hop> {
        let max = if ip.is_v4() { 32 } else { 128 };
        (0..=max).rev().find_map(|len| {
            let hops = self.of(Prefix::new(ip, len)?).flat_map(|route| &route.hops);
            hops.copied().find(|hop| hop.ifindex == ifindex)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ip {
        text.parse::<std::net::IpAddr>().unwrap().into()
    }

    fn through(gateways: &[(u32, &str)]) -> KernelRoute {
        let hop = |(ifindex, gateway): &(u32, &str)| Hop {
            ifindex: *ifindex,
            gateway: Some(ip(gateway)),
            weight: 1,
        };
        KernelRoute { hops: gateways.iter().map(hop).collect(), ..KernelRoute::direct(0) }
    }

    #[test]
    fn next_hops_are_found_by_longest_prefix_then_metric_on_the_asked_device() {
        let mut routes = Routes::default();
        for (text, metric, route) in [
            ("0.0.0.0/0", 100, through(&[(2, "192.0.2.1")])),
            ("0.0.0.0/0", 50, through(&[(3, "192.0.2.9"), (2, "192.0.2.2")])),
            ("192.0.2.0/24", 0, KernelRoute::direct(2)),
            ("192.0.2.7/32", 0, through(&[(3, "192.0.2.9")])),
        ] {
            routes.add(prefix(text), metric, route, Place::Last);
        }
        let via = |to, ifindex| routes.next_hop_to(ip(to), ifindex).map(|hop| hop.gateway);
        assert_eq!(via("192.0.2.7", 2), Some(None));
        assert_eq!(via("192.0.2.7", 3), Some(Some(ip("192.0.2.9"))));
        assert_eq!(via("198.51.100.1", 2), Some(Some(ip("192.0.2.2"))));
        assert_eq!(via("198.51.100.1", 4), None);
    }

    // The announcements below are those of Linux 6.18 for the commands in the comments.
    #[test]
    fn ipv4_routes_stand_in_a_row_of_which_the_first_counts() {
        let (net, mut routes) = (prefix("10.0.0.0/24"), Routes::default());
        let several = through(&[(2, "192.0.2.2"), (3, "198.51.100.2")]);
        let one = |last: &str| through(&[(2, last)]);
        routes.add(net, 0, several.clone(), Place::Last);
        routes.add(net, 0, one("192.0.2.9"), Place::Last); // ip route append
        assert_eq!(routes.of(net).next(), Some(&several));
        routes.add(net, 0, one("192.0.2.8"), Place::First); // ip route prepend
        assert_eq!(routes.of(net).next(), Some(&one("192.0.2.8")));
        routes.add(net, 0, one("192.0.2.7"), Place::Instead); // ip route replace
        let all: Vec<_> = routes.of(net).cloned().collect();
        assert_eq!(all, [one("192.0.2.7"), several.clone(), one("192.0.2.9")]);
        routes.remove(net, 0, &one("192.0.2.7"));
        routes.remove(net, 0, &one("192.0.2.9"));
        assert!(routes.of(net).eq([&several]));
        routes.remove(net, 0, &several);
        assert_eq!(routes, Routes::default());
    }

    #[test]
    fn ipv6_next_hops_join_and_leave_one_by_one() {
        let (net, mut routes) = (prefix("fd00:10::/64"), Routes::default());
        routes.add(net, 1024, through(&[(2, "fd00:1::2"), (3, "fd00:2::2")]), Place::Last);
        let all = through(&[(2, "fd00:1::3"), (2, "fd00:1::2"), (3, "fd00:2::2")]);
        routes.add(net, 1024, all.clone(), Place::Last); // ip -6 route append
        assert_eq!(routes.of(net).cloned().collect::<Vec<_>>(), [all]);
        routes.remove(net, 1024, &through(&[(2, "fd00:1::2")])); // ip -6 route del … via fd00:1::2
        let left = through(&[(2, "fd00:1::3"), (3, "fd00:2::2")]);
        assert_eq!(routes.of(net).cloned().collect::<Vec<_>>(), [left]);
        let new = through(&[(2, "fd00:1::7")]);
        routes.add(net, 1024, new.clone(), Place::Instead); // ip -6 route replace
        assert!(routes.of(net).eq([&new]));
        routes.remove(net, 1024, &new);
        assert_eq!(routes, Routes::default());
    }

    #[test]
    fn what_lies_inside_a_prefix_is_found_whatever_stands_beside_it() {
        let mut routes = Routes::default();
        for text in ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.255.0/24", "10.2.0.0/16", "fd00::/64"]
        {
            routes.add(prefix(text), 0, KernelRoute::direct(2), Place::Last);
        }
        let inside: Vec<Prefix> = routes.inside(prefix("10.1.0.0/16")).collect();
        assert_eq!(inside, ["10.1.0.0/16", "10.1.0.0/24", "10.1.255.0/24"].map(prefix));
    }
}
