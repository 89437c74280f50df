//! Tier 2: a packet's whole way through the tables, one stage per file, in this order:
//! [`source`] (may it come from there?), [`connection`] (known? else [`service`] and a new one, perhaps with [`dsr`]; for an ICMP error
//! [`related`]: does it speak of a known one? [`snat`]: does it leave with another source?), [`route`] (where to, and through what neighbour or tunnel?), [`compile`]
//! (the flow entry that says all this). Both address families go the same way.

mod compile;
mod connection;
mod dsr;
mod related;
mod route;
mod service;
mod snat;
mod source;

pub(crate) use compile::{compile, compile6};
pub(crate) use connection::Bound;
pub(crate) use related::{about, about6, translate, translate6};
pub(crate) use route::Way;

use crate::clock::Now;
use crate::conntrack::Tuple;
use crate::family::Parcel;
use crate::parse::Ingress;
use crate::state::WorkerState;
use crate::wire::tcp::Segment;
use fairway_pmd::Frame;
use fairway_tables::{DropReason, PortKind, View};

/// What the walk decided.
pub(crate) enum Outcome<E> {
    /// Forward so.
    Forward(E),
    /// Forward this one so; the next like it may belong to a connection.
    Once(E),
    /// The packet is for the gateway itself.
    Gateway,
}

/// Walks a packet that belongs to a connection, which is found or begun; `segment` is what it says of windows, where those are
/// tracked.
pub(crate) fn walk<P: Parcel>(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &P,
    segment: Option<&Segment>,
    now: Now,
) -> Result<Outcome<P::Entry>, DropReason> {
    source::check(worker, tables, ingress, packet, None)?;
    if is_for_the_gateway(worker, tables, &packet.tuple()) {
        return Ok(Outcome::Gateway);
    }
    let bound = connection::find_or_begin(worker, tables, ingress, packet, segment, now)?;
    let way = route::resolve(tables, ingress, &bound)?;
    let entry = packet.compile(worker, &bound, &way, now)?;
    Ok(if bound.conn.is_none() { Outcome::Once(entry) } else { Outcome::Forward(entry) })
}

/// Whether a packet is for the gateway itself, and is no reply to what the gateway's address stood in for.
fn is_for_the_gateway(worker: &WorkerState, tables: View<'_>, tuple: &Tuple) -> bool {
    tuple.dst == tables.settings().gateway_ip && worker.conntrack.lookup(tuple).is_none()
}

/// Walks a packet that begins no connection, an ICMP message other than echo. An ICMP error is translated in place if the packet that it quotes was; `packet` then tells of its new addresses.
pub(crate) fn walk_single<P: Parcel>(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &mut P,
    frame: &mut Frame,
    now: Now,
) -> Result<Outcome<P::Entry>, DropReason> {
    let about = packet.about(frame);
    source::check(worker, tables, ingress, packet, about.as_ref())?;
    if packet.tuple().dst == tables.settings().gateway_ip {
        return Ok(Outcome::Gateway);
    }
    if let Some(via) = dsr::way_of_error(worker, tables, ingress, packet, about.as_ref())? {
        let bound = Bound { via: Some(via), ..connection::untracked(packet.tuple()) };
        let way = route::resolve(tables, ingress, &bound)?;
        return packet.compile(worker, &bound, &way, now).map(Outcome::Forward);
    }
    packet.translate(worker, frame)?;
    way_of(worker, tables, ingress, packet, now).map(Outcome::Forward)
}

/// The way of a packet that the engine itself sends, because of one that came in by `ingress`.
pub(crate) fn way_back<P: Parcel>(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &P,
    now: Now,
) -> Result<P::Entry, DropReason> {
    // Answers to the host go back to the host; only what it sends itself may not.
    let ingress = Ingress { kind: PortKind::Uplink, ..*ingress };
    way_of(worker, tables, &ingress, packet, now)
}

fn way_of<P: Parcel>(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &P,
    now: Now,
) -> Result<P::Entry, DropReason> {
    let bound = connection::untracked(packet.tuple());
    let way = route::resolve(tables, ingress, &bound)?;
    packet.compile(worker, &bound, &way, now)
}
