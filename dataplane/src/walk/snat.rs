//! Source translation (docs/nat.md): which new connections leave with another source, and with which ports.
//!
//! Nothing is kept here. A port is taken by a connection whose replies come back with it, so the connection table is the
//! allocation: one port serves many connections at once as long as they go to different destinations.

use crate::conntrack::Tuple;
use crate::parse::Ingress;
use crate::wire::proto;
use fairway_tables::{DropReason, Ip, NextHopKind, PortId, PortKind, Settings, View};

/// Ports tried for one connection, at most: as many as the kernel's NAT tries.
const ATTEMPTS: u16 = 128;

/// What lies at a connection's destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Towards {
    /// Pods, which find back to this node's own address among its pods.
    Pods,
    /// What leaves by the uplink for somewhere else, which knows the node by its address there.
    Outside,
    /// The node's own network stack.
    Host,
}

/// The sources that a new connection may leave with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sources {
    /// How it leaves, with its own port.
    leaves: Tuple,
    /// Whether it may keep its port.
    keeps_port: bool,
    /// Where the port is chosen from.
    first: u16,
    count: u16,
    /// The sequence in which that is done.
    hash: u64,
}

impl Sources {
    /// The sources for a connection that arrives with one tuple and whose destination makes it `leaves`; `masquerade`
    /// if its service asks for this node's address.
    ///
    /// # Errors
    /// [`DropReason::SnatNoAddress`] if the node has no address for it.
    pub(super) fn of(
        tables: View<'_>,
        ingress: &Ingress,
        arrives: &Tuple,
        mut leaves: Tuple,
        masquerade: bool,
        secret: u64,
    ) -> Result<Sources, DropReason> {
        let settings = tables.settings();
        let Range { first, count } = Range::of(&settings);
        let mut keeps_port = true;
        if let Some(towards) = translation(tables, ingress, arrives, &leaves, masquerade) {
            leaves.src = address(&settings, towards, leaves.src.is_v4());
            if leaves.src == Ip::UNSPECIFIED {
                return Err(DropReason::SnatNoAddress);
            }
            // The node's other ports are its own network stack's.
            let in_range = leaves.sport.wrapping_sub(first) < count || !has_ports(leaves.proto);
            keeps_port = towards != Towards::Outside || in_range;
        }
        // Of the sender alone: so it has one port wherever it sends to, as far as that is free (RFC 4787 REQ-1).
        let sender = Tuple { dst: Ip::UNSPECIFIED, dport: 0, ..*arrives };
        Ok(Sources { leaves, keeps_port, first, count, hash: sender.hash(secret) })
    }

    /// Whether other ports can be tried at all.
    pub(super) fn has_ports(&self) -> bool {
        has_ports(self.leaves.proto)
    }

    /// The tuples to try, best first.
    pub(super) fn tuples(self) -> impl Iterator<Item = Tuple> {
        let count = if has_ports(self.leaves.proto) { self.count } else { 0 };
        let own = self.keeps_port.then_some(self.leaves);
        let (start, step) = (self.hash as u32, step((self.hash >> 32) as u32, count));
        let port = move |n: u16| {
            let place = (u64::from(start) + u64::from(n) * u64::from(step)) % u64::from(count);
            self.first + place as u16
        };
        own.into_iter().chain((0..count.min(ATTEMPTS)).map(move |n| with_port(self.leaves, port(n))))
    }
}

/// A range of ports.
struct Range {
    first: u16,
    count: u16,
}

impl Range {
    fn of(settings: &Settings) -> Range {
        let (first, last) = (settings.snat_first, settings.snat_last);
        let count = if first == 0 || last < first { 0 } else { last - first + 1 };
        Range { first, count }
    }
}

/// Whether a connection of this protocol is told from others by ports that can be changed; ICMP echo by its identifier.
fn has_ports(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6)
}

fn with_port(tuple: Tuple, port: u16) -> Tuple {
    let is_echo = matches!(tuple.proto, proto::ICMP | proto::ICMPV6);
    Tuple { sport: port, dport: if is_echo { port } else { tuple.dport }, ..tuple }
}

/// A step from `hash` that goes through all of `count` places before it comes back.
fn step(hash: u32, count: u16) -> u16 {
    let gcd = |mut a: u16, mut b: u16| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let wanted = (hash % u32::from(count.max(1))) as u16;
    (wanted..count).find(|step| gcd(*step, count) == 1).unwrap_or(1)
}

/// Whether the source is to be translated, and towards what.
fn translation(
    tables: View<'_>,
    ingress: &Ingress,
    arrives: &Tuple,
    leaves: &Tuple,
    masquerade: bool,
) -> Option<Towards> {
    let is_dnat = arrives.dst != leaves.dst || arrives.dport != leaves.dport;
    let own_nic = ingress.kind == PortKind::Pod && has_own_nic(tables, arrives.src);
    let hop = tables.route(leaves.dst)?;
    let (towards, due) = match hop.kind()? {
        // What the stack answers goes its own way unless the engine's own address asks; pods it finds through the
        // engine anyhow.
        NextHopKind::Host if hop.port == PortId::NONE => {
            (Towards::Host, is_dnat && !is_pod(tables, arrives.src))
        }
        // What the stack only passes on out of the uplink comes back to the address there, as what goes to a gateway.
        NextHopKind::Gateway | NextHopKind::Host if masquerade || ingress.kind != PortKind::Uplink => {
            let record = tables.masquerade();
            let due = match ingress.kind {
                _ if masquerade => true,
                PortKind::Pod => record.translates(leaves.dst) && !is_bound(tables, arrives.src),
                // The stack's own ports do not come back here, nor its address among the pods from outside.
                PortKind::Host => is_dnat,
                PortKind::Uplink => false,
            };
            // The network of a pod's own NIC knows the node by its address there alone.
            if record.is_in_cluster(leaves.dst) && !own_nic {
                (Towards::Pods, masquerade)
            } else {
                (Towards::Outside, due)
            }
        }
        _ => (Towards::Pods, masquerade),
    };
    due.then_some(towards)
}

/// Whether an address belongs to an uplink: the network behind that knows it.
pub(super) fn is_bound(tables: View<'_>, ip: Ip) -> bool {
    tables.endpoint(ip).is_some_and(|endpoint| endpoint.bound_to().is_some())
}

/// Whether an address is that of a pod with a NIC of its own, which answers past the engine whom it does not take for this
/// node.
pub(super) fn has_own_nic(tables: View<'_>, ip: Ip) -> bool {
    tables.endpoint(ip).is_some_and(|endpoint| endpoint.has_own_nic())
}

/// Whether an address is a pod's, of whatever node.
fn is_pod(tables: View<'_>, ip: Ip) -> bool {
    match tables.route(ip).and_then(|hop| hop.kind()) {
        Some(NextHopKind::Local) => true,
        Some(NextHopKind::Gateway) => tables.masquerade().is_in_cluster(ip),
        Some(kind) => kind.is_tunnel(),
        None => false,
    }
}

/// The source of translated connections.
fn address(settings: &Settings, towards: Towards, is_v4: bool) -> Ip {
    match (towards, is_v4) {
        (Towards::Pods, true) => settings.router_ip,
        (Towards::Pods, false) => settings.router_ip6,
        (Towards::Outside, true) => settings.outside_ip,
        (Towards::Outside, false) => settings.outside_ip6,
        (Towards::Host, true) => settings.host_ip,
        (Towards::Host, false) => settings.host_ip6,
    }
}

/// Whether a connection was given a source that the node does not have any more.
pub(super) fn is_outdated(settings: &Settings, arrives: &Tuple, leaves: &Tuple) -> bool {
    let Settings { router_ip, router_ip6, outside_ip, outside_ip6, host_ip, host_ip6, .. } = *settings;
    let own = [router_ip, router_ip6, outside_ip, outside_ip6, host_ip, host_ip6];
    arrives.src != leaves.src && !own.contains(&leaves.src)
}

/// Whether packets to this address that belong to no connection are for the node's own stack.
pub(super) fn is_shared_with_the_host(settings: &Settings, dst: Ip) -> bool {
    dst != Ip::UNSPECIFIED && (dst == settings.outside_ip || dst == settings.outside_ip6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn sources(sport: u16, protocol: u8, first: u16, count: u16, keeps_port: bool, hash: u64) -> Sources {
        let (src, dst) = (Ip::v4([192, 0, 2, 1]), Ip::v4([203, 0, 113, 1]));
        let leaves = Tuple { src, dst, sport, dport: 80, proto: protocol };
        Sources { leaves, keeps_port, first, count, hash }
    }

    proptest! {
        #[test]
        fn every_port_of_the_range_is_tried_once_and_no_other(
            sport: u16, hash: u64, first in 1u16..65_000, count in 0u16..=128, keeps_port: bool,
        ) {
            let tried: Vec<Tuple> = sources(sport, proto::UDP, first, count, keeps_port, hash).tuples().collect();
            let (own, range) = tried.split_at(usize::from(keeps_port));
            prop_assert!(own.iter().all(|tuple| tuple.sport == sport && tuple.dport == 80));
            let ports: BTreeSet<u16> = range.iter().map(|tuple| tuple.sport).collect();
            prop_assert_eq!(ports.len(), range.len(), "none twice");
            prop_assert_eq!(ports, (first..first + count).collect());
        }

        #[test]
        fn attempts_are_bounded_however_large_the_range(hash: u64) {
            let tried = sources(7, proto::TCP, 1024, 64_512, true, hash).tuples().count();
            prop_assert_eq!(tried, usize::from(ATTEMPTS) + 1);
        }
    }

    #[test]
    fn an_echo_has_one_identifier_and_what_has_no_ports_keeps_what_it_has() {
        let tried: Vec<Tuple> = sources(9, proto::ICMP, 61_000, 10, false, 5).tuples().collect();
        assert_eq!(tried.len(), 10);
        assert!(
            tried.iter().all(|tuple| tuple.sport == tuple.dport && (61_000..61_010).contains(&tuple.sport))
        );
        let gre = sources(0, 47, 61_000, 10, true, 5);
        assert_eq!(gre.tuples().collect::<Vec<_>>(), [gre.leaves]);
        assert!(!gre.has_ports());
    }
}
