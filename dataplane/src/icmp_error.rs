//! ICMP errors that the engine sends for packets that it drops (RFC 792, RFC 1191, RFC 1812 section 4.3.2; RFC 4443,
//! RFC 8201), made in place from the dropped packet's own frame.
//!
//! Which drops are told to the sender, and how:
//!
//! | dropped because | message |
//! |---|---|
//! | TTL ran out | time exceeded in transit |
//! | larger than the way takes, and not to be fragmented | fragmentation needed, with the MTU that fits, encapsulation considered |
//! | no route | network unreachable |
//! | the address is in this node's pods' range, but no pod has it; an unreachable route | host unreachable |
//! | a service without any endpoint | port unreachable, as kube-proxy's `reject` |
//!
//! No error is sent about an ICMP message other than echo, nor about a packet whose source was not believed. A
//! neighbour that is not resolved yet is a passing state: the sender tries again. The quotation is of the packet as
//! it arrived, before any translation, so that the sender recognizes it. The source is the node's own address among its
//! pods', so that traceroute tells the nodes apart and other nodes take it for genuine.

use crate::clock::Now;
use crate::family::Parcel;
use crate::flow::{Flow, FlowKey, FlowKey6};
use crate::parse::{Ingress, Parsed, Part};
use crate::parse6::Parsed6;
use crate::state::WorkerState;
use crate::walk;
use crate::wire::{ETH_LEN, icmp, icmpv6, ipv4, ipv6, proto};
use fairway_pmd::Frame;
use fairway_tables::stats::Counter;
use fairway_tables::{DropReason, Ip, PortKind, Settings, View};

/// Longest ICMP error, IP header included (RFC 1812 section 4.3.2.3). An ICMPv6 error goes up to the smallest MTU (RFC
/// 4443 section 3).
const MAX_LEN: usize = 576;
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

/// What is wrong with a dropped packet, as its sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// TTL or hop limit ran out.
    TimeExceeded,
    /// Larger than this.
    TooBig(u16),
    /// No route.
    NoRoute,
    /// Nobody has the address.
    NoHost,
    /// Nobody listens.
    NoPort,
}

/// Turns a dropped packet into the error that tells its sender, where that is due. Then the drop is counted, and the
/// result is the port through which the error leaves; else the result is the reason, still to be counted.
#[cold]
#[allow(clippy::too_many_arguments)]
pub(crate) fn answer<P: Parcel>(
    worker: &mut WorkerState,
    tables: View<'_>,
    ingress: &Ingress,
    packet: &P,
    hash: u64,
    reason: DropReason,
    frame: &mut Frame,
    now: Now,
) -> Result<u16, DropReason> {
    let problem = match reason {
        DropReason::TtlExceeded => Problem::TimeExceeded,
        DropReason::NoRoute => Problem::NoRoute,
        DropReason::NoEndpoint | DropReason::Unreachable => Problem::NoHost,
        DropReason::NoBackend => Problem::NoPort,
        DropReason::TooBig => {
            let flows = P::flows(worker);
            let slot = flows.find(hash, packet.key()).ok_or(reason)?;
            Problem::TooBig(flows.entry(slot).binding().mtu)
        }
        _ => return Err(reason),
    };
    if !worker.icmp_limit.allows(ingress, now) {
        worker.counters.add(Counter::IcmpLimited, 1);
        return Err(reason);
    }
    let own = packet.complain(frame, &tables.settings(), problem).ok_or(reason)?;
    let entry = walk::way_back(worker, tables, ingress, &own, now).map_err(|_| reason)?;
    let Some(template) = worker.templates.get(entry.binding().template) else { return Err(reason) };
    own.apply(frame, &entry, template).map_err(|_| reason)?;
    worker.counters.dropped(reason, ingress.port.0);
    worker.counters.add(Counter::GeneratedPackets, 1);
    Ok(entry.binding().out_port)
}

/// The address from which the engine speaks to the sender of a packet to `dst`: the one that the sender knows if that is
/// the node's own, else the node's among its pods.
pub(crate) fn speaker(settings: &Settings, dst: Ip) -> Ip {
    match dst {
        _ if dst == settings.outside_ip || dst == settings.outside_ip6 => dst,
        _ if dst.is_v4() => settings.router_ip,
        _ => settings.router_ip6,
    }
}

/// Makes room for headers before what is quoted of a packet, at most `max_len` bytes in all; returns the length of the
/// quotation, or `None` if the frame is too small.
fn quote(frame: &mut Frame, l2: u16, ip_len: u16, headers: usize, max_len: usize) -> Option<usize> {
    frame.trim_front(usize::from(l2));
    let quoted = usize::from(ip_len).min(max_len - headers);
    if !frame.set_len(ETH_LEN + headers + quoted) {
        return None;
    }
    frame.bytes_mut()[ETH_LEN..].copy_within(..quoted, headers);
    Some(quoted)
}

/// Turns an IPv4 packet into an ICMP error about itself from `router`. `None` about a later fragment, or if there is no
/// router's address.
pub(crate) fn complain(frame: &mut Frame, parsed: &Parsed, router: Ip, problem: Problem) -> Option<Parsed> {
    const HEADERS: usize = ipv4::LEN + icmp::LEN;
    let router = router.as_v4().filter(|octets| *octets != [0; 4])?;
    if parsed.part == Part::Later {
        return None; // RFC 1122 section 3.2.2: only about a first fragment.
    }
    let (kind, code, mtu) = match problem {
        Problem::TimeExceeded => (icmp::TIME_EXCEEDED, 0, 0),
        Problem::NoRoute => (icmp::UNREACHABLE, icmp::unreachable::NET, 0),
        Problem::NoHost => (icmp::UNREACHABLE, icmp::unreachable::HOST, 0),
        Problem::NoPort => (icmp::UNREACHABLE, icmp::unreachable::PORT, 0),
        Problem::TooBig(mtu) => (icmp::UNREACHABLE, icmp::unreachable::FRAGMENTATION_NEEDED, mtu),
    };
    let quoted = quote(frame, parsed.l2, parsed.ip_len, HEADERS, MAX_LEN)?;
    let (ip, message) = frame.bytes_mut()[ETH_LEN..].split_first_chunk_mut::<{ ipv4::LEN }>()?;
    icmp::write_error(message, kind, code, mtu);
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
        ip_len: (HEADERS + quoted) as u16,
        tcp_flags: 0,
        ttl: TTL,
        part: Part::Whole,
    })
}

/// Turns an IPv6 packet into an ICMPv6 error about itself from `router`. `None` if there is no router's address.
pub(crate) fn complain6(
    frame: &mut Frame,
    parsed: &Parsed6,
    router: Ip,
    problem: Problem,
) -> Option<Parsed6> {
    const HEADERS: usize = ipv6::LEN + icmpv6::LEN;
    if router == Ip::UNSPECIFIED || router.is_v4() {
        return None;
    }
    let (kind, code, mtu) = match problem {
        Problem::TimeExceeded => (icmpv6::TIME_EXCEEDED, 0, 0),
        Problem::NoRoute => (icmpv6::UNREACHABLE, icmpv6::unreachable::NO_ROUTE, 0),
        Problem::NoHost => (icmpv6::UNREACHABLE, icmpv6::unreachable::ADDRESS, 0),
        Problem::NoPort => (icmpv6::UNREACHABLE, icmpv6::unreachable::PORT, 0),
        Problem::TooBig(mtu) => (icmpv6::PACKET_TOO_BIG, 0, mtu),
    };
    let quoted = quote(frame, parsed.l2, parsed.ip_len, HEADERS, usize::from(ipv6::MIN_MTU))?;
    let (ip, message) = frame.bytes_mut()[ETH_LEN..].split_first_chunk_mut::<{ ipv6::LEN }>()?;
    let (src, dst) = (router.0, parsed.key.src);
    icmpv6::write_error(&src, &dst, message, kind, code, mtu);
    let payload_len = (icmpv6::LEN + quoted) as u16;
    ipv6::Repr { src, dst, proto: proto::ICMPV6, hop_limit: TTL, payload_len }.emit(ip);
    Some(Parsed6 {
        key: FlowKey6::new(src, dst, 0, proto::ICMPV6, 0, 0),
        l2: 0,
        l4: ipv6::LEN as u16,
        ip_len: (HEADERS + quoted) as u16,
        tcp_flags: 0,
        hop_limit: TTL,
        part: Part::Whole,
        fragment: 0,
    })
}
