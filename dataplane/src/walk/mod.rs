//! Tier 2: a packet's whole way through the tables, one stage per file, in this order:
//! [`source`] (may it come from there?), [`connection`] (known? else [`service`] and a new one; for an ICMP error
//! [`related`]: does it speak of a known one?), [`route`]
//! (where to, and through what neighbour or tunnel?), [`compile`] (the flow entry that says all this).

mod compile;
mod connection;
mod related;
mod route;
mod service;
mod source;

use crate::clock::Now;
use crate::conntrack::Tuple;
use crate::flow::FlowEntry;
use crate::parse::{Ingress, Parsed};
use crate::state::WorkerState;
use fairway_pmd::Frame;
use fairway_tables::{DropReason, PortKind, View};

/// What the walk asks of a packet, of either address family.
pub(crate) struct Packet {
    /// Its addresses, ports and protocol.
    pub(crate) tuple: Tuple,
    /// TCP control bits.
    pub(crate) tcp_flags: u8,
    /// Raw outer source address, of a packet from a tunnel.
    pub(crate) outer: u32,
}

impl Packet {
    fn of(parsed: &Parsed) -> Packet {
        Packet { tuple: Tuple::of(&parsed.key), tcp_flags: parsed.tcp_flags, outer: parsed.key.outer }
    }
}

/// What the walk decided.
pub enum Outcome {
    /// Forward so.
    Forward(FlowEntry),
    /// The packet is for the gateway itself.
    Gateway,
}

/// Walks a packet that belongs to a connection, which is found or begun.
pub fn walk(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    parsed: &Parsed,
    now: Now,
) -> Result<Outcome, DropReason> {
    let packet = Packet::of(parsed);
    source::check(tables, ingress, &packet)?;
    if packet.tuple.dst == tables.settings().gateway_ip {
        return Ok(Outcome::Gateway);
    }
    let bound = connection::find_or_begin(worker, tables, &packet, now)?;
    let way = route::resolve(tables, ingress, bound.leaves.dst)?;
    compile::compile(worker, parsed, &bound, &way, now).map(Outcome::Forward)
}

/// Walks a packet that begins no connection: an ICMP message other than echo. An ICMP error is translated in
/// place if the packet that it quotes was; `parsed` then tells of its new addresses.
pub fn walk_single(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    parsed: &mut Parsed,
    frame: &mut Frame,
    now: Now,
) -> Result<Outcome, DropReason> {
    let packet = Packet::of(parsed);
    source::check(tables, ingress, &packet)?;
    if packet.tuple.dst == tables.settings().gateway_ip {
        return Ok(Outcome::Gateway);
    }
    related::translate(worker, frame, parsed)?;
    let bound = connection::untracked(Tuple::of(&parsed.key));
    let way = route::resolve(tables, ingress, bound.leaves.dst)?;
    compile::compile(worker, parsed, &bound, &way, now).map(Outcome::Forward)
}

/// The way of a packet that the engine itself sends, because of one that came in by `ingress`.
pub fn way_back(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    parsed: &Parsed,
    now: Now,
) -> Result<FlowEntry, DropReason> {
    // Answers to the host go back to the host; only what it sends itself may not.
    let ingress = Ingress { kind: PortKind::Uplink, ..*ingress };
    let bound = connection::untracked(Tuple::of(&parsed.key));
    let way = route::resolve(tables, &ingress, bound.leaves.dst)?;
    compile::compile(worker, parsed, &bound, &way, now)
}
