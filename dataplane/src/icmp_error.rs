//! ICMP errors that the engine sends for packets that it drops (RFC 792, RFC 1191, RFC 1812 section 4.3.2), made in
//! place from the dropped packet's own frame.
//!
//! Which drops are told to the sender, and how:
//!
//! | dropped because | message |
//! |---|---|
//! | TTL ran out | time exceeded in transit |
//! | larger than the way takes, and not to be fragmented | fragmentation needed, with the MTU that fits, encapsulation considered |
//! | no route | network unreachable |
//! | the address is in this node's pods' range, but no pod has it | host unreachable |
//! | a service without any endpoint | port unreachable, as kube-proxy's `reject` |
//!
//! No error is sent about an ICMP message other than echo, nor about a packet whose source was not believed. A
//! neighbour that is not resolved yet is a passing state: the sender tries again. The quotation is of the packet as
//! it arrived, before any translation, so that the sender recognizes it. The source is the node's own address among its
//! pods', so that traceroute tells the nodes apart and other nodes take it for genuine.

use crate::clock::Now;
use crate::flow::{self, FlowKey};
use crate::parse::{Ingress, Parsed};
use crate::state::WorkerState;
use crate::walk;
use crate::wire::{ETH_LEN, be16, icmp, ipv4, proto};
use fairway_pmd::Frame;
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, PortKind, View};

/// Longest error message, IP header included (RFC 1812 section 4.3.2.3).
const MAX_LEN: usize = 576;
/// Headers before the quotation.
const HEADERS: usize = ipv4::LEN + icmp::LEN;
/// TTL of the message; the way out takes one.
const TTL: u8 = 65;

/// How many errors each port's senders may cause per second, so that none can use up the engine's time or the others'
/// share (RFC 1812 section 4.3.2.8).
pub struct Limiter {
    ports: Vec<Share>,
}

#[derive(Clone, Copy, Default)]
struct Share {
    second: u32,
    used: u16,
}

impl Limiter {
    /// Errors per second about packets of one pod.
    pub const PER_POD: u16 = 100;
    /// Errors per second about packets of all other nodes, or of the host.
    pub const PER_LINK: u16 = 1000;

    /// Nothing used yet, for ports numbered below `ports`.
    pub fn new(ports: usize) -> Limiter {
        Limiter { ports: vec![Share::default(); ports] }
    }

    fn allows(&mut self, ingress: &Ingress, now: Now) -> bool {
        let Some(share) = self.ports.get_mut(ingress.port.index()) else { return false };
        if share.second != now.seconds {
            *share = Share { second: now.seconds, used: 0 };
        }
        let limit = if ingress.kind == PortKind::Pod { Self::PER_POD } else { Self::PER_LINK };
        let allowed = share.used < limit;
        share.used += u16::from(allowed);
        allowed
    }
}

/// What to say.
struct Message {
    kind: u8,
    code: u8,
    mtu: u16,
}

/// Turns a dropped packet into the error that tells its sender, where that is due. Then the drop is counted, and the
/// result is the port through which the error leaves; else the result is the reason, still to be counted.
#[cold]
#[allow(clippy::too_many_arguments)]
pub fn answer(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    parsed: &Parsed,
    hash: u64,
    reason: DropReason,
    frame: &mut Frame,
    now: Now,
) -> Result<u16, DropReason> {
    let Some(message) = message(worker, parsed, hash, reason, frame) else { return Err(reason) };
    let Some(router) = tables.settings().router_ip.as_v4() else { return Err(reason) };
    if !worker.icmp_limit.allows(ingress, now) {
        worker.counters.add(Counter::IcmpLimited, 1);
        return Err(reason);
    }
    let own = quote(frame, parsed, router, &message).ok_or(reason)?;
    let entry = walk::way_back(worker, tables, ingress, &own, now).map_err(|_| reason)?;
    let Some(template) = worker.templates.get(entry.template) else { return Err(reason) };
    flow::apply(frame, &own, &entry, template).map_err(|_| reason)?;
    worker.counters.dropped(reason, ingress.port.0);
    worker.counters.add(Counter::GeneratedPackets, 1);
    Ok(entry.out_port)
}

fn message(
    worker: &WorkerState,
    parsed: &Parsed,
    hash: u64,
    reason: DropReason,
    frame: &Frame,
) -> Option<Message> {
    let unreachable = |code| Some(Message { kind: icmp::UNREACHABLE, code, mtu: 0 });
    match reason {
        DropReason::TtlExceeded => Some(Message { kind: icmp::TIME_EXCEEDED, code: 0, mtu: 0 }),
        DropReason::NoRoute => unreachable(icmp::unreachable::NET),
        DropReason::NoEndpoint => unreachable(icmp::unreachable::HOST),
        DropReason::NoBackend => unreachable(icmp::unreachable::PORT),
        DropReason::TooBig => {
            let flags = be16(frame.bytes(), usize::from(parsed.l2) + ETH_LEN + 6);
            let entry = worker.flows.entry(worker.flows.find(hash, &parsed.key)?);
            let code = icmp::unreachable::FRAGMENTATION_NEEDED;
            (flags & ipv4::DF != 0).then_some(Message { kind: icmp::UNREACHABLE, code, mtu: entry.mtu })
        }
        _ => None,
    }
}

/// Puts the message's headers before what is quoted of the packet; `None` if the frame is too small.
fn quote(frame: &mut Frame, parsed: &Parsed, router: [u8; 4], message: &Message) -> Option<Parsed> {
    frame.trim_front(usize::from(parsed.l2));
    let quoted = usize::from(parsed.ip_len).min(MAX_LEN - HEADERS);
    let ip_len = HEADERS + quoted;
    if !frame.set_len(ETH_LEN + ip_len) {
        return None;
    }
    let packet = &mut frame.bytes_mut()[ETH_LEN..];
    packet.copy_within(..quoted, HEADERS);
    let (ip, rest) = packet.split_first_chunk_mut::<{ ipv4::LEN }>()?;
    icmp::write_error(rest, message.kind, message.code, message.mtu);
    let repr = ipv4::Repr {
        src: router,
        dst: parsed.key.src.to_ne_bytes(),
        proto: proto::ICMP,
        ttl: TTL,
        payload_len: (icmp::LEN + quoted) as u16,
        dont_fragment: true,
    };
    repr.emit(ip);
    Some(Parsed {
        key: FlowKey::new(u32::from_ne_bytes(router), parsed.key.src, 0, proto::ICMP, 0, 0),
        l2: 0,
        ip_header_len: ipv4::LEN as u16,
        ip_len: ip_len as u16,
        tcp_flags: 0,
        ttl: TTL,
    })
}
