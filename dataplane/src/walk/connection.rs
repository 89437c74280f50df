//! The connection that a packet belongs to: a known one keeps its binding whatever the tables now say (I6);
//! a new one is bound here.

use super::service::{self, Candidates};
use crate::clock::Now;
use crate::conntrack::{ConnRef, Direction, Found, InsertError, Inserted, Tuple};
use crate::family::Parcel;
use crate::freshness::Dependency;
use crate::parse::Ingress;
use crate::state::WorkerState;
use crate::wire::{proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, ServiceView, View};

/// How many backends are tried when a tuple clashes.
const ATTEMPTS: usize = 4;

/// What a packet's connection makes of it.
pub(crate) struct Bound {
    /// The tuple with which the packet arrived.
    pub(crate) arrives: Tuple,
    /// The tuple with which it leaves.
    pub(crate) leaves: Tuple,
    /// The connection, and the packet's direction in it.
    pub(crate) conn: Option<(ConnRef, Direction)>,
    /// The service that decided, and whose change may make the decision another.
    pub(crate) dependency: Dependency,
}

/// For packets that belong to no connection.
pub(super) fn untracked(tuple: Tuple) -> Bound {
    Bound { arrives: tuple, leaves: tuple, conn: None, dependency: Dependency::NONE }
}

/// Refuses the first fragment of a datagram that belongs to a service or to a translated connection: the fragments after
/// it could not be translated, for they have no ports.
pub(super) fn check_untranslated(
    worker: &WorkerState,
    tables: View<'_>,
    tuple: &Tuple,
) -> Result<(), DropReason> {
    let translated = worker.conntrack.lookup(tuple).is_some_and(|found| found.translated() != *tuple);
    if translated || service::find(tables, tuple).is_some() {
        return Err(DropReason::Fragment);
    }
    Ok(())
}

pub(super) fn find_or_begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    now: Now,
) -> Result<Bound, DropReason> {
    let tuple = packet.tuple();
    if let Some(found) = worker.conntrack.lookup(&tuple) {
        let reused = opens(packet) && found.state.may_be_reused();
        if !reused && !lost_its_backend(tables, &found, &tuple, packet) {
            return Ok(known(worker, tables, &found, tuple, packet, now));
        }
        worker.conntrack.remove(found.conn);
    }
    begin(worker, tables, ingress, packet, now)
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
    let leaves = found.translated();
    let listed = |service: ServiceView<'_>| {
        service.backends().any(|backend| backend.ip == leaves.dst && backend.port == leaves.dport)
    };
    leaves != *tuple && service::find(tables, tuple).is_some_and(|service| !listed(service))
}

fn known(
    worker: &WorkerState,
    tables: View<'_>,
    found: &Found,
    tuple: Tuple,
    packet: &impl Parcel,
    now: Now,
) -> Bound {
    worker.conntrack.update(found.conn, tuple.proto, found.direction, packet.tcp_flags(), now.seconds);
    let leaves = found.translated();
    // Only a request's translation follows from a service (see `lost_its_backend`).
    let dependency = match found.direction {
        Direction::Original if leaves != tuple => service::find(tables, &tuple)
            .map_or(Dependency::ANY_SERVICE, |service| Dependency::service(service.service().id)),
        _ => Dependency::NONE,
    };
    Bound { arrives: tuple, leaves, conn: Some((found.conn, found.direction)), dependency }
}

fn begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &impl Parcel,
    now: Now,
) -> Result<Bound, DropReason> {
    let tuple = packet.tuple();
    if tuple.proto == proto::TCP && packet.tcp_flags() & tcp_flags::RST != 0 {
        return Err(DropReason::StrayReset);
    }
    let candidates = Candidates::of(worker, tables, ingress, packet, now)?;
    let id = candidates.as_ref().map(Candidates::id);
    for attempt in 0..ATTEMPTS {
        let leaves = match &candidates {
            Some(candidates) => candidates.choice(attempt).ok_or(DropReason::NoBackend)?.leaves,
            None => tuple,
        };
        let back = leaves.reversed();
        let insert = |worker: &WorkerState| {
            worker.conntrack.insert(&tuple, &back, packet.tcp_flags(), id, now.seconds)
        };
        let mut inserted = insert(worker);
        if let Err(InsertError::Clash(Some(other))) = &inserted
            && opens(packet)
            && other.state.may_be_reused()
        {
            // The other connection is over; its tuple is free to be used again.
            worker.conntrack.remove(other.conn);
            inserted = insert(worker);
        }
        match inserted {
            Ok(Inserted { conn, evicted }) => {
                worker.counters.add(Counter::ConntrackNew, 1);
                worker.counters.add(Counter::ConntrackEvicted, u64::from(evicted));
                let dependency = id.map_or(Dependency::NONE, Dependency::service);
                let conn = Some((conn, Direction::Original));
                return Ok(Bound { arrives: tuple, leaves, conn, dependency });
            }
            Err(InsertError::Exists(found)) => return Ok(known(worker, tables, &found, tuple, packet, now)),
            Err(InsertError::Full) => return Err(DropReason::ConntrackFull),
            Err(InsertError::Share) => return Err(DropReason::ConntrackShare),
            Err(InsertError::Clash(_)) if candidates.is_some() => {}
            Err(InsertError::Clash(_)) => break,
        }
    }
    Err(DropReason::TupleClash)
}
