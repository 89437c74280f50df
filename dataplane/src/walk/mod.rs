//! Tier 2: a packet's whole way through the tables, one stage per file, in this order:
//! [`source`] (may it come from there?), [`connection`] (known? else [`service`] and a new one), [`route`]
//! (where to, and through what neighbour or tunnel?), [`compile`] (the flow entry that says all this).

mod compile;
mod connection;
mod route;
mod service;
mod source;

use crate::clock::Now;
use crate::flow::FlowEntry;
use crate::parse::{Ingress, Parsed};
use crate::state::WorkerState;
use fairway_tables::{DropReason, Ip, View};

/// What the walk decided.
pub enum Outcome {
    /// Forward so.
    Forward(FlowEntry),
    /// The packet is for the gateway itself.
    Gateway,
}

/// Walks one packet. With `track`, it belongs to a connection, which is found or begun.
pub fn walk(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    parsed: &Parsed,
    now: Now,
    track: bool,
) -> Result<Outcome, DropReason> {
    source::check(tables, ingress, parsed)?;
    let gateway = tables.settings().gateway_ip;
    if Ip::v4(parsed.key.dst.to_ne_bytes()) == gateway {
        return Ok(Outcome::Gateway);
    }
    let bound = if track {
        connection::find_or_begin(worker, tables, parsed, now)?
    } else {
        connection::untracked(parsed)
    };
    let way = route::resolve(tables, ingress, bound.leaves.dst)?;
    compile::compile(worker, parsed, &bound, &way, now).map(Outcome::Forward)
}
