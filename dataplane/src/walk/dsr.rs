//! Direct server return (docs/dsr.md): a client's packets to a service go on to the backend's node as they are, through a
//! tunnel; that node translates them, and answers the client itself. Here is what both nodes ask: who may be answered so,
//! and what comes from a tunnel to be taken so.

use super::service;
use crate::conntrack::{Conntrack, Direction, Found, Tuple};
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::state::WorkerState;
use fairway_tables::{
    DropReason, Ip, NextHop, NextHopKind, PortKind, Service, ServiceKey, ServiceView, View,
};

/// The service that a packet is for: of one from another node, that node's node ports are this one's too.
pub(super) fn find<'a>(tables: View<'a>, packet: &impl Parcel) -> Option<ServiceView<'a>> {
    let tuple = packet.tuple();
    service::find(tables, &tuple).or_else(|| {
        let node = tables.tunnel(packet.sender(tables)?)?;
        let (its, own) = match tuple.dst.is_v4() {
            true => (node.node_ports, ServiceKey::NODE_PORTS),
            false => (node.node_ports6, ServiceKey::NODE_PORTS6),
        };
        let is_its = tuple.dst == its && its != Ip::UNSPECIFIED;
        is_its.then(|| tables.service(&ServiceKey::new(own, tuple.dport, tuple.proto)))?
    })
}

/// Whether an address is of a client that may be answered straight from a backend's node: neither a pod nor a node.
pub(super) fn is_foreign(tables: View<'_>, ip: Ip) -> bool {
    let leads_out = |hop: NextHop| matches!(hop.kind(), Some(NextHopKind::Gateway | NextHopKind::Host));
    let paths = tables.paths(ip);
    paths.is_some_and(|paths| paths.paths().iter().all(|path| leads_out(path.next_hop)))
        && !service::is_of_this_node(tables, ip)
        && tables.tunnel(ip).is_none()
        && !tables.masquerade().is_in_pool(ip)
}

/// Whether a node may send this packet through a tunnel although its source is none of that node's pods: it is a client's,
/// to a service with DSR or of a connection that is known; `about` is the one that an ICMP error speaks of.
pub(super) fn is_delivered(
    conntrack: &Conntrack,
    tables: View<'_>,
    packet: &impl Parcel,
    about: Option<&Tuple>,
) -> bool {
    let known = || knows(conntrack, about.unwrap_or(&packet.tuple()), packet.tuple().dst);
    is_foreign(tables, packet.tuple().src) && (find(tables, packet).is_some_and(uses_dsr) || known())
}

/// Whether a service answers straight from its backends' nodes.
pub(super) fn uses_dsr(service: ServiceView<'_>) -> bool {
    service.service().flags & Service::DSR != 0
}

/// Whether a tuple is that of the client's packets of a connection to `dst`.
pub(super) fn knows(conntrack: &Conntrack, tuple: &Tuple, dst: Ip) -> bool {
    conntrack.lookup(tuple).is_some_and(|found| found.direction == Direction::Original && tuple.dst == dst)
}

/// The way of an ICMP error about a reply that another node sent for this one, which knows whom to tell; or about one of a
/// connection that came to the cluster by a third node, whose backend follows from its tuple.
///
/// # Errors
/// [`DropReason::NotForUs`] if it came from another node: it is not sent on again.
pub(super) fn way_of_error(
    worker: &WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    about: Option<&Tuple>,
) -> Result<Option<NextHop>, DropReason> {
    let Some(about) = about else { return Ok(None) };
    let via = match worker.conntrack.lookup(about) {
        Some(found) => found.via,
        None if ingress.kind != PortKind::Uplink || packet.is_tunnelled() => None,
        None => way_by_maglev(tables, about, packet.tuple().dst),
    };
    match via {
        Some(_) if packet.is_tunnelled() => Err(DropReason::NotForUs),
        via => Ok(via),
    }
}

/// The way to the node that a connection which this one does not know was left to, if every node chooses the same: by
/// Maglev. `about` is the tuple of its client's packets, `dst` where an error about a reply is addressed to.
pub(super) fn way_by_maglev(tables: View<'_>, about: &Tuple, dst: Ip) -> Option<NextHop> {
    let service = service::find(tables, about).filter(|service| uses_dsr(*service))?;
    if about.dst != dst || !is_foreign(tables, about.src) {
        return None;
    }
    service.way(service.cluster().maglev(about.path_hash())?).filter(is_tunnel)
}

/// The way to the node that a connection is left to, as its service says now, or said last.
pub(super) fn way_of(service: Option<ServiceView<'_>>, found: &Found) -> Option<NextHop> {
    let via = found.via?;
    Some(service.and_then(|service| way_to(service, via.addr)).unwrap_or(via))
}

/// The way to a node that has backends of a service.
pub(super) fn way_to(service: ServiceView<'_>, node: Ip) -> Option<NextHop> {
    service.ways().find(|way| way.addr == node && is_tunnel(way))
}

/// Whether a way leads to another node.
pub(super) fn is_tunnel(way: &NextHop) -> bool {
    way.kind().is_some_and(NextHopKind::is_tunnel)
}
