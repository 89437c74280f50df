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
use crate::flow::FlowEntry;
use crate::parse::{Ingress, Parsed};
use crate::state::WorkerState;
use fairway_pmd::Frame;
use fairway_tables::{DropReason, Ip, PortKind, View};

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
    source::check(tables, ingress, parsed)?;
    if is_for_gateway(tables, parsed) {
        return Ok(Outcome::Gateway);
    }
    let bound = connection::find_or_begin(worker, tables, parsed, now)?;
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
    source::check(tables, ingress, parsed)?;
    if is_for_gateway(tables, parsed) {
        return Ok(Outcome::Gateway);
    }
    related::translate(worker, frame, parsed)?;
    let bound = connection::untracked(parsed);
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
    let bound = connection::untracked(parsed);
    let way = route::resolve(tables, &ingress, bound.leaves.dst)?;
    compile::compile(worker, parsed, &bound, &way, now)
}

fn is_for_gateway(tables: View<'_>, parsed: &Parsed) -> bool {
    Ip::v4(parsed.key.dst.to_ne_bytes()) == tables.settings().gateway_ip
}
