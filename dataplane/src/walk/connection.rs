//! The connection that a packet belongs to: a known one keeps its binding whatever the tables now say (I6);
//! a new one is bound here.

use super::service;
use crate::clock::Now;
use crate::conntrack::{ConnRef, Direction, Found, InsertError, Tuple};
use crate::parse::Parsed;
use crate::state::WorkerState;
use crate::wire::{proto, tcp_flags};
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, View};

/// How many backends are tried when a tuple clashes.
const ATTEMPTS: usize = 4;

/// What a packet's connection makes of it.
pub(super) struct Bound {
    /// The tuple with which the packet arrived.
    pub(super) arrives: Tuple,
    /// The tuple with which it leaves.
    pub(super) leaves: Tuple,
    /// The connection, and the packet's direction in it.
    pub(super) conn: Option<(ConnRef, Direction)>,
}

/// For packets that belong to no connection.
pub(super) fn untracked(parsed: &Parsed) -> Bound {
    let tuple = Tuple::of(&parsed.key);
    Bound { arrives: tuple, leaves: tuple, conn: None }
}

pub(super) fn find_or_begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    parsed: &Parsed,
    now: Now,
) -> Result<Bound, DropReason> {
    let tuple = Tuple::of(&parsed.key);
    if let Some(found) = worker.conntrack.lookup(&tuple) {
        let opens = parsed.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN;
        if !(opens && found.state.may_be_reused()) {
            return Ok(known(worker, &found, tuple, parsed, now));
        }
        worker.conntrack.remove(found.conn);
    }
    begin(worker, tables, tuple, parsed, now)
}

fn known(worker: &WorkerState, found: &Found, tuple: Tuple, parsed: &Parsed, now: Now) -> Bound {
    worker.conntrack.update(found.conn, tuple.proto, found.direction, parsed.tcp_flags, now.seconds);
    Bound { arrives: tuple, leaves: found.translated(), conn: Some((found.conn, found.direction)) }
}

fn begin(
    worker: &mut WorkerState,
    tables: View<'_>,
    tuple: Tuple,
    parsed: &Parsed,
    now: Now,
) -> Result<Bound, DropReason> {
    let service = service::find(tables, &tuple);
    if service.is_some() && tuple.proto == proto::TCP && parsed.tcp_flags & tcp_flags::RST != 0 {
        return Err(DropReason::StrayReset);
    }
    let id = service.as_ref().map(|service| service.service().id);
    let mut first = None;
    for attempt in 0..ATTEMPTS {
        let leaves = match &service {
            Some(service) => service::choose(worker, service, &tuple, &mut first, attempt)?,
            None => tuple,
        };
        let inserted = worker.conntrack.insert(&tuple, &leaves.reversed(), parsed.tcp_flags, id, now.seconds);
        match inserted {
            Ok(conn) => {
                worker.counters.add(Counter::ConntrackNew, 1);
                return Ok(Bound { arrives: tuple, leaves, conn: Some((conn, Direction::Original)) });
            }
            Err(InsertError::Exists(found)) => return Ok(known(worker, &found, tuple, parsed, now)),
            Err(InsertError::Full) => return Err(DropReason::ConntrackFull),
            Err(InsertError::Clash) if service.is_some() => {}
            Err(InsertError::Clash) => break,
        }
    }
    Err(DropReason::TupleClash)
}
