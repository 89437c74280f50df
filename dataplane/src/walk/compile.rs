//! The result of a walk as a flow entry.

use super::connection::Bound;
use super::route::Way;
use crate::clock::Now;
use crate::conntrack::{Direction, Tuple};
use crate::flow::{Binding, Family, Flow, FlowEntry, FlowEntry6, Template, TemplateId};
use crate::parse::Parsed;
use crate::parse6::Parsed6;
use crate::state::WorkerState;
use crate::wire::{checksum, ports_to_raw, proto, vxlan};
use fairway_tables::{DropReason, Ip};

/// The entry of an IPv4 flow.
pub(crate) fn compile(
    worker: &mut WorkerState,
    parsed: &Parsed,
    bound: &Bound,
    way: &Way,
    now: Now,
) -> Result<FlowEntry, DropReason> {
    let template = template(worker, way, Family::V4, way.template)?;
    let (new_src, new_dst) = (raw(bound.leaves.src)?, raw(bound.leaves.dst)?);
    let new_ports = ports(bound, parsed.key.ports);
    let addresses = checksum::delta32(parsed.key.src, new_src) + checksum::delta32(parsed.key.dst, new_dst);
    Ok(FlowEntry {
        key: parsed.key,
        new_src,
        new_dst,
        new_ports,
        ip_delta: checksum::fold(addresses + u64::from(checksum::TTL_DELTA)),
        l4_delta: checksum::fold(match parsed.key.proto() {
            // An echo message's checksum does not cover addresses.
            proto::ICMP => checksum::delta_echo(parsed.key.ports, new_ports),
            _ => addresses + checksum::delta32(parsed.key.ports, new_ports),
        }),
        binding: binding(worker, bound, way, template, parsed.key.hash(worker.flows.seed()), now),
    })
}

/// The entry of an IPv6 flow.
pub(crate) fn compile6(
    worker: &mut WorkerState,
    parsed: &Parsed6,
    bound: &Bound,
    way: &Way,
    now: Now,
) -> Result<FlowEntry6, DropReason> {
    let Tuple { src: Ip(new_src), dst: Ip(new_dst), .. } = bound.leaves;
    if bound.leaves.src.is_v4() || bound.leaves.dst.is_v4() {
        return Err(DropReason::NoRoute);
    }
    let bytes = way.template.for_ipv6(way.encapsulation);
    let template = template(worker, way, Family::V6, bytes)?;
    let new_ports = ports(bound, parsed.key.ports);
    let delta = checksum::delta(&parsed.key.src, &new_src)
        + checksum::delta(&parsed.key.dst, &new_dst)
        + match parsed.key.proto() {
            proto::ICMPV6 => checksum::delta_echo(parsed.key.ports, new_ports),
            _ => checksum::delta32(parsed.key.ports, new_ports),
        };
    let hash = FlowEntry6::hash(&parsed.key, worker.flows6.seed());
    Ok(FlowEntry6 {
        key: parsed.key,
        new_ports,
        new_src,
        new_dst,
        l4_delta: checksum::fold(delta),
        reserved: [0; 9],
        binding: binding(worker, bound, way, template, hash, now),
    })
}

fn template(
    worker: &mut WorkerState,
    way: &Way,
    family: Family,
    bytes: Template,
) -> Result<TemplateId, DropReason> {
    if let Some(template) = worker.templates.set(way.key, family, bytes) {
        return Ok(template);
    }
    // More destinations than templates: start over, which costs every flow one walk.
    worker.templates.clear();
    worker.flows.clear();
    worker.flows6.clear();
    worker.templates.set(way.key, family, bytes).ok_or(DropReason::NoRoute)
}

/// The part of an entry that is the same for both address families.
fn binding(
    worker: &WorkerState,
    bound: &Bound,
    way: &Way,
    template: TemplateId,
    hash: u64,
    now: Now,
) -> Binding {
    let mut flags = Binding::depends_on(bound.dependency) | way.encapsulation;
    if bound.arrives != bound.leaves {
        flags |= Binding::NAT;
    }
    let is_tcp = bound.arrives.proto == proto::TCP;
    if worker.clamp_mss && is_tcp {
        flags |= Binding::CLAMP_MSS;
    }
    if worker.conntrack.is_strict() && is_tcp && bound.conn.is_some() && bound.via.is_none() {
        flags |= Binding::WINDOWS;
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
        // A TCP flow's next packet is told to the connection table too: it may complete the handshake. And any flow's that
        // is left to another node: it says that there was an answer.
        touched: now.tick().wrapping_sub(u32::from(is_tcp || bound.via.is_some())),
        template,
        out_port: way.port.0,
        mtu: way.mtu.min(u32::from(u16::MAX)) as u16,
        entropy: vxlan::entropy_port(hash),
    }
}

/// Raw ports to write. Where nothing is translated they stay as they are, whatever the protocol keeps in their place.
fn ports(bound: &Bound, as_they_are: u32) -> u32 {
    if bound.arrives == bound.leaves {
        return as_they_are;
    }
    ports_to_raw(bound.leaves.sport, bound.leaves.dport)
}

fn raw(ip: Ip) -> Result<u32, DropReason> {
    ip.as_v4().map(u32::from_ne_bytes).ok_or(DropReason::Ipv6)
}
