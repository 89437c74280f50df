//! The connection that a packet belongs to: a known one keeps its binding whatever the tables now say (I6);
//! a new one is bound here.

use super::dsr;
use super::service::{self, Candidates, Choice};
use super::snat::{self, Sources};
use crate::clock::Now;
use crate::conntrack::{ConnRef, Conntrack, Direction, Found, InsertError, Inserted, State, Tracked, Tuple};
use crate::family::Parcel;
use crate::freshness::Dependency;
use crate::parse::Ingress;
use crate::state::WorkerState;
use crate::wire::tcp::Segment;
use crate::wire::{proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, NextHop, PortKind, ServiceView, View};

/// What a packet's connection makes of it.
pub(crate) struct Bound {
    /// The tuple with which the packet arrived.
    pub(crate) arrives: Tuple,
    /// The tuple with which it leaves.
    pub(crate) leaves: Tuple,
    /// The connection, and the packet's direction in it.
    pub(crate) conn: Option<(ConnRef, Direction)>,
    /// The node that the connection is left to, and the way there: its packets go there as they are.
    pub(crate) via: Option<NextHop>,
    /// The service that decided, and whose change may make the decision another.
    pub(crate) dependency: Dependency,
}

/// For packets that belong to no connection.
pub(super) fn untracked(tuple: Tuple) -> Bound {
    Bound { arrives: tuple, leaves: tuple, conn: None, via: None, dependency: Dependency::NONE }
}

pub(super) fn find_or_begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    segment: Option<&Segment>,
    now: Now,
) -> Result<Bound, DropReason> {
    let tuple = packet.tuple();
    if let Some(found) = worker.conntrack.lookup(&tuple) {
        // What another node left to this one is not left to a third.
        let sent_on = found.via.is_some() && packet.is_tunnelled();
        let reused = opens(packet) && found.state.may_be_reused() || sent_on;
        // Where windows are tracked, a SYN is no proof that an established connection begins anew.
        let hardly_begun = segment.is_none() || matches!(found.state, State::New | State::SynReceived);
        let lost = hardly_begun && lost_its_backend(tables, &found, &tuple, packet);
        if !reused && !lost && !lost_its_source(tables, &found) {
            return known(worker, tables, &found, tuple, packet, segment, now);
        }
        worker.conntrack.remove(found.conn);
    }
    begin(worker, tables, ingress, packet, segment, now)
}

fn opens(packet: &impl Parcel) -> bool {
    packet.tcp_flags() & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
}

/// Whether a conversation that has no end of its own, or a TCP connection that has hardly begun, goes to a
/// backend that its service does not have any more. Such a one is bound anew, as kube-proxy does by deleting
/// UDP entries of removed endpoints; an established TCP connection is not (I6).
fn lost_its_backend(tables: View<'_>, found: &Found, tuple: &Tuple, packet: &impl Parcel) -> bool {
    if found.direction == Direction::Reply || (tuple.proto == proto::TCP && !opens(packet)) {
        return false;
    }
    if let Some(via) = found.via {
        return dsr::find(tables, packet).is_some_and(|service| dsr::way_to(service, via.addr).is_none());
    }
    let leaves = found.translated();
    let listed = |service: ServiceView<'_>| {
        let sets = [service.cluster(), service.local()];
        sets.iter().any(|set| set.position(leaves.dst, leaves.dport).is_some())
    };
    leaves != *tuple && dsr::find(tables, packet).is_some_and(|service| !listed(service))
}

/// Whether a connection leaves with an address of this node that it does not have any more. No reply would come.
fn lost_its_source(tables: View<'_>, found: &Found) -> bool {
    found.direction == Direction::Original
        && snat::is_outdated(&tables.settings(), &found.tuples[0], &found.translated())
}

fn known(
    worker: &WorkerState,
    tables: View<'_>,
    found: &Found,
    tuple: Tuple,
    packet: &impl Parcel,
    segment: Option<&Segment>,
    now: Now,
) -> Result<Bound, DropReason> {
    let (conntrack, conn, direction) = (&worker.conntrack, found.conn, found.direction);
    match segment.filter(|_| found.via.is_none()) {
        Some(segment) => {
            if conntrack.track(conn, direction, segment, now.seconds) == Tracked::Outside {
                return Err(DropReason::OutOfWindow);
            }
        }
        None => {
            conntrack.update(conn, tuple.proto, direction, packet.tcp_flags(), now.seconds);
        }
    }
    let leaves = found.translated();
    // Only a request's translation follows from a service (see `lost_its_backend`), or what takes its place.
    let is_translated = leaves.dst != tuple.dst || leaves.dport != tuple.dport || found.via.is_some();
    let is_request = found.direction == Direction::Original && is_translated;
    let service = if is_request { dsr::find(tables, packet) } else { None };
    let dependency = match service {
        Some(service) => Dependency::service(service.service().id),
        None if is_request => Dependency::ANY_SERVICE,
        None => Dependency::NONE,
    };
    let via = dsr::way_of(service, found);
    Ok(Bound { arrives: tuple, leaves, conn: Some((conn, direction)), via, dependency })
}

/// Begins the connection of a packet that belongs to none.
fn begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    segment: Option<&Segment>,
    now: Now,
) -> Result<Bound, DropReason> {
    let tuple = packet.tuple();
    if is_for_the_host(tables, ingress, packet) {
        return Ok(untracked(tuple));
    }
    if tuple.proto == proto::TCP && packet.tcp_flags() & tcp_flags::RST != 0 {
        return Err(DropReason::StrayReset);
    }
    if segment.is_some_and(Segment::is_nonsense) {
        return Err(DropReason::OutOfWindow);
    }
    let candidates = Candidates::of(worker, tables, ingress, packet, now)?;
    let choice = match &candidates {
        Some(candidates) => candidates.choice(0).ok_or(DropReason::NoBackend)?,
        None => Choice { leaves: tuple, masquerade: false, via: None },
    };
    let id = candidates.as_ref().map(Candidates::id);
    let is_delivered = candidates.is_some_and(|candidates| candidates.is_delivered);
    let inserted = match choice.via {
        Some(via) => {
            let inserted = worker.conntrack.insert_forwarded(&tuple, via, id, now.seconds);
            new(inserted, tuple)
        }
        None => {
            let secret = worker.conntrack.secret();
            let sources = Sources::of(tables, ingress, &tuple, choice.leaves, choice.masquerade, secret)?;
            insert(&worker.conntrack, packet, segment, sources, id, now)
        }
    };
    match inserted? {
        New::Inserted(Inserted { conn, evicted }, leaves) => {
            worker.counters.add(Counter::ConntrackNew, 1);
            worker.counters.add(Counter::ConntrackEvicted, u64::from(evicted));
            worker.counters.add(Counter::DsrForwarded, u64::from(choice.via.is_some()));
            worker.counters.add(Counter::DsrDelivered, u64::from(is_delivered));
            let dependency = id.map_or(Dependency::NONE, Dependency::service);
            let conn = Some((conn, Direction::Original));
            Ok(Bound { arrives: tuple, leaves, conn, via: choice.via, dependency })
        }
        New::Exists(found) => known(worker, tables, &found, tuple, packet, segment, now),
    }
}

/// Whether a packet from outside that belongs to no connection, and to no service, is for the node's own network stack,
/// which keeps its own account of connections.
fn is_for_the_host(tables: View<'_>, ingress: &Ingress, packet: &impl Parcel) -> bool {
    ingress.kind == PortKind::Uplink
        && !packet.is_tunnelled()
        && snat::is_shared_with_the_host(&tables.settings(), packet.tuple().dst)
        && service::find(tables, &packet.tuple()).is_none()
}

/// How an insertion came out.
enum New {
    /// With this tuple its packets leave.
    Inserted(Inserted, Tuple),
    /// Another worker was faster.
    Exists(Found),
}

/// Inserts a packet's connection with the first source with which its replies come back unlike any other connection's.
fn insert(
    conntrack: &Conntrack,
    packet: &impl Parcel,
    segment: Option<&Segment>,
    sources: Sources,
    service: Option<u32>,
    now: Now,
) -> Result<New, DropReason> {
    let tuple = packet.tuple();
    let try_to = |leaves: &Tuple| match segment {
        Some(segment) => conntrack.insert_tracked(&tuple, &leaves.reversed(), segment, service, now.seconds),
        None => conntrack.insert(&tuple, &leaves.reversed(), packet.tcp_flags(), service, now.seconds),
    };
    // A connection that is over gives up its tuple only where none is free: a server that remembers it would take the
    // sequence numbers of another for old ones, even those of the same client (RFC 9293 section 3.6.1). One that was
    // reset nobody remembers; it gives way to its own client's at once.
    let mut over = None;
    for leaves in sources.tuples() {
        let mut inserted = match conntrack.lookup(&leaves.reversed()) {
            Some(other) if other.tuples[0] != tuple => Err(InsertError::Clash(Some(other))),
            // Or of this very connection, which another worker has just inserted: that is found out there.
            _ => try_to(&leaves),
        };
        if let Err(InsertError::Clash(Some(other))) = inserted
            && opens(packet)
            && other.state.may_be_reused()
        {
            if other.state == State::Closed && other.tuples[0].src == tuple.src {
                conntrack.remove(other.conn);
                inserted = try_to(&leaves);
            } else {
                over.get_or_insert((other.conn, leaves));
            }
        }
        match inserted {
            Err(InsertError::Clash(_)) => {}
            other => return new(other, leaves),
        }
    }
    if let Some((conn, leaves)) = over {
        conntrack.remove(conn);
        if let Ok(inserted) = try_to(&leaves) {
            return Ok(New::Inserted(inserted, leaves));
        }
    }
    Err(if sources.has_ports() { DropReason::SnatPortsExhausted } else { DropReason::TupleClash })
}

fn new(inserted: Result<Inserted, InsertError>, leaves: Tuple) -> Result<New, DropReason> {
    match inserted {
        Ok(inserted) => Ok(New::Inserted(inserted, leaves)),
        Err(InsertError::Exists(found)) => Ok(New::Exists(found)),
        Err(InsertError::Full) => Err(DropReason::ConntrackFull),
        Err(InsertError::Share) => Err(DropReason::ConntrackShare),
        Err(InsertError::Clash(_)) => Err(DropReason::TupleClash),
    }
}
