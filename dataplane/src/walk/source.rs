//! May this packet come from where it came? (RFC 2827, RFC 1812 section 5.3.7/5.3.8.)

use super::{dsr, service};
use crate::conntrack::Tuple;
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::state::WorkerState;
use crate::wire::{ipv4, ipv6};
use fairway_tables::{DropReason, Ip, NextHop, NextHopKind, PortKind, Settings, View};

/// Refuses martians, pods that send from an address not theirs, nodes that send for pods not theirs through a tunnel,
/// a host that sends from a pod's address, and what comes without encapsulation where it is due, or in transit. `about` is
/// the tuple of the packets that those answered which an ICMP error speaks of.
pub(super) fn check(
    worker: &WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    about: Option<&Tuple>,
) -> Result<(), DropReason> {
    let Tuple { src, dst, .. } = packet.tuple();
    if [src, dst].into_iter().any(|ip| is_martian(ip, ingress.kind)) {
        return Err(DropReason::Martian);
    }
    let honest = match ingress.kind {
        PortKind::Pod => tables.endpoint(src).is_some_and(|endpoint| endpoint.port == ingress.port),
        PortKind::Host => tables.endpoint(src).is_none(),
        PortKind::Uplink => match packet.sender(tables) {
            Some(sender) => {
                let tunnel = tables.tunnel(sender).ok_or(DropReason::UnknownVtep)?;
                // By another family than this node sends to it, too.
                let is_sender = |node: Ip| {
                    node == sender || tables.tunnel(node).is_some_and(|other| other.node == tunnel.node)
                };
                let way_back =
                    |hop: NextHop| hop.kind().is_some_and(NextHopKind::is_tunnel) && is_sender(hop.addr);
                // Where several nodes lead to the source, each of them may have sent it.
                let paths = tables.paths(src);
                paths.is_some_and(|paths| paths.paths().iter().any(|path| way_back(path.next_hop)))
                    || dsr::is_delivered(&worker.conntrack, tables, packet, about)
            }
            None => {
                let known = |about| {
                    dsr::knows(&worker.conntrack, about, dst)
                        || dsr::way_by_maglev(tables, about, dst).is_some()
                };
                let is_taken = is_taken_directly(tables, &packet.tuple()) || about.is_some_and(known);
                if !is_taken || !is_of_uplink(tables, ingress, dst) {
                    return Err(DropReason::NotForUs);
                }
                comes_directly(tables, ingress, src)
            }
        },
    };
    if honest { Ok(()) } else { Err(DropReason::SpoofedSource) }
}

/// Whether no packet to forward that came in so may have this source or destination. Link-local IPv4 addresses are the
/// node's own (a DNS cache at 169.254.20.10, say), and its pods reach them; from another node none comes.
fn is_martian(ip: Ip, from: PortKind) -> bool {
    match ip.as_v4().map(u32::from_ne_bytes) {
        Some(raw) => ipv4::is_martian(raw) || (from == PortKind::Uplink && ipv4::is_link_local(raw)),
        None => ipv6::is_martian(&ip.0),
    }
}

/// Whether packets with this tuple may come in by the uplink without encapsulation: to the node's address there or to a
/// service; and to a pod of this node or the node's own address among them, if that is how pods are reached.
fn is_taken_directly(tables: View<'_>, tuple: &Tuple) -> bool {
    let (settings, dst) = (tables.settings(), tuple.dst);
    if dst == settings.outside_ip || dst == settings.outside_ip6 || service::find(tables, tuple).is_some() {
        return true;
    }
    let kind = tables.route(dst).and_then(|hop| hop.kind());
    let is_pods = kind == Some(NextHopKind::Local) || dst == settings.router_ip || dst == settings.router_ip6;
    is_pods && settings.takes & Settings::TAKES_DIRECT != 0
}

/// Whether an address belongs to the uplink by which the packet came, or to none.
fn is_of_uplink(tables: View<'_>, ingress: &Ingress, dst: Ip) -> bool {
    let bound_to = tables.endpoint(dst).and_then(|endpoint| endpoint.bound_to());
    bound_to.is_none_or(|uplink| uplink == ingress.port)
}

/// Whether packets from `src` may come in by the uplink without encapsulation: those of pods to which packets leave so
/// too, and of stations outside the cluster. This node's own addresses and pods are not there. To an uplink that some
/// pods' addresses belong to, all that leaves by any uplink comes back: no route leads out of it but theirs.
fn comes_directly(tables: View<'_>, ingress: &Ingress, src: Ip) -> bool {
    let settings = tables.settings();
    let is_for_some = tables.port(ingress.port).is_some_and(|port| port.gateway_for(src.is_v4()).is_some());
    let leaves_so = |hop: NextHop| match hop.kind() {
        Some(NextHopKind::Gateway) => hop.port == ingress.port || is_for_some,
        Some(NextHopKind::Host) => ![
            settings.node_ip,
            settings.node_ip6,
            settings.router_ip,
            settings.router_ip6,
            settings.outside_ip,
            settings.outside_ip6,
        ]
        .contains(&src),
        _ => false,
    };
    tables.paths(src).is_some_and(|paths| paths.paths().iter().any(|path| leaves_so(path.next_hop)))
}
