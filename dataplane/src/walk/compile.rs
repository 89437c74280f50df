//! The result of a walk as a flow entry.

use super::connection::Bound;
use super::route::Way;
use crate::clock::Now;
use crate::conntrack::{Direction, Tuple};
use crate::flow::{Binding, FlowEntry};
use crate::parse::Parsed;
use crate::state::WorkerState;
use crate::wire::{checksum, ports_to_raw, proto, vxlan};
use fairway_tables::{DropReason, Ip};

pub(super) fn compile(
    worker: &mut WorkerState,
    parsed: &Parsed,
    bound: &Bound,
    way: &Way,
    now: Now,
) -> Result<FlowEntry, DropReason> {
    let template = match worker.templates.set(way.key, way.template) {
        Some(template) => template,
        None => {
            // More destinations than templates: start over, which costs every flow one walk.
            worker.templates.clear();
            worker.flows.clear();
            worker.templates.set(way.key, way.template).ok_or(DropReason::NoRoute)?
        }
    };
    let (new_src, new_dst) = (raw(bound.leaves.src)?, raw(bound.leaves.dst)?);
    let translates = bound.arrives != bound.leaves;
    // Where nothing is translated the ports stay as they are, whatever the protocol keeps in their place.
    let new_ports = if translates { ports_of(&bound.leaves) } else { parsed.key.ports };
    let addresses = checksum::delta32(parsed.key.src, new_src) + checksum::delta32(parsed.key.dst, new_dst);
    Ok(FlowEntry {
        key: parsed.key,
        new_src,
        new_dst,
        new_ports,
        ip_delta: checksum::fold(addresses + u64::from(checksum::TTL_DELTA)),
        l4_delta: checksum::fold(addresses + checksum::delta32(parsed.key.ports, new_ports)),
        template,
        out_port: way.port.0,
        mtu: way.mtu.min(u32::from(u16::MAX)) as u16,
        entropy: vxlan::entropy_port(parsed.key.hash(worker.flows.seed())),
        binding: binding(worker, bound, way, now),
    })
}

/// The part of an entry that is the same for both address families.
fn binding(worker: &WorkerState, bound: &Bound, way: &Way, now: Now) -> Binding {
    let mut flags = Binding::depends_on(bound.dependency);
    if bound.arrives != bound.leaves {
        flags |= Binding::NAT;
    }
    if way.encapsulates {
        flags |= Binding::ENCAP;
    }
    if matches!(bound.conn, Some((_, Direction::Reply))) {
        flags |= Binding::REPLY;
    }
    let (conn, conn_generation) =
        bound.conn.map_or((Binding::NO_CONNECTION, 0), |(conn, _)| (conn.index, conn.generation));
    Binding {
        stamp: worker.freshness.stamp(bound.dependency.bits()),
        flags,
        conn,
        conn_generation,
        // A TCP flow's next packet is told to the connection table too: it may complete the handshake.
        touched: now.tick().wrapping_sub(u32::from(bound.arrives.proto == proto::TCP)),
    }
}

fn ports_of(tuple: &Tuple) -> u32 {
    ports_to_raw(tuple.sport, tuple.dport)
}

fn raw(ip: Ip) -> Result<u32, DropReason> {
    ip.as_v4().map(u32::from_ne_bytes).ok_or(DropReason::Ipv6)
}
