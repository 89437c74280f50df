//! As [`parse`](crate::parse), for IPv6 packets; those of the link itself (neighbour discovery, multicast listeners) are
//! told apart here.

use crate::flow::FlowKey6;
use crate::parse::Part;
use crate::wire::{ETH_LEN, TCP_LEN, UDP_LEN, icmpv6, ipv6, proto, raw32, sctp, tcp_flags};
use fairway_tables::{DropReason, Ip};

/// An IPv6 packet that belongs, or may belong, to a flow.
#[derive(Clone, Copy, Debug)]
pub struct Parsed6 {
    /// What identifies the flow.
    pub key: FlowKey6,
    /// Offset of the Ethernet header before the IP header to forward: 0, or behind a VXLAN header.
    pub l2: u16,
    /// Offset of the transport header from the IP header's start.
    pub l4: u16,
    /// Length of the IP packet in bytes.
    pub ip_len: u16,
    /// TCP control bits, 0 for other protocols.
    pub tcp_flags: u8,
    /// Hop limit on arrival.
    pub hop_limit: u8,
    /// Whether it is a fragment. A later one's transport protocol and ports are not known until
    /// [`fragment`](crate::fragment) finds them.
    pub part: Part,
    /// Offset of the fragment header from the IP header's start; 0 in a whole packet.
    pub fragment: u16,
}

/// What an IPv6 packet is.
#[derive(Clone, Copy, Debug)]
pub enum Class6 {
    /// One of a flow that a table entry may serve.
    Flow(Parsed6),
    /// One that each time needs the full walk: ICMPv6 other than echo.
    Single(Parsed6),
    /// A fragment, to be joined to its flow by [`fragment`](crate::fragment).
    Fragment(Parsed6),
    /// One that does not leave its link: neighbour discovery, multicast, link-local addresses.
    Link(Parsed6),
    /// Nothing that the engine forwards.
    Drop(DropReason),
}

/// Classifies the packet whose Ethernet header is at `l2` of `frame`. `context` and `outer` are what a
/// [`FlowKey`](crate::flow::FlowKey) has as its ingress and `outer`.
pub fn parse6(frame: &[u8], l2: u16, outer: u32, context: u16) -> Class6 {
    match classify(frame, l2, outer, context) {
        Ok(class) => class,
        Err(reason) => Class6::Drop(reason),
    }
}

fn classify(frame: &[u8], l2: u16, outer: u32, context: u16) -> Result<Class6, DropReason> {
    let packet = frame.get(usize::from(l2) + ETH_LEN..).ok_or(DropReason::Truncated)?;
    let ip = ipv6::Header::parse(packet)?;
    let l4 = &packet[ip.l4()..ip.total_len()];
    let (src, dst) = (ip.src(), ip.dst());
    // From here on such an address would be taken for IPv4 (RFC 4942 section 2.2).
    if Ip(src).is_v4() || Ip(dst).is_v4() {
        return Err(DropReason::Martian);
    }
    let parsed = Parsed6 {
        key: FlowKey6::new(src, dst, 0, ip.proto(), context, outer),
        l2,
        l4: ip.l4() as u16,
        ip_len: ip.total_len() as u16,
        tcp_flags: 0,
        hop_limit: ip.hop_limit(),
        part: Part::Whole,
        fragment: 0,
    };
    if let Some(header) = ip.fragment() {
        return fragment(l4, header, parsed);
    }
    transport(l4, parsed)
}

/// As with [`parse`](crate::parse): the first fragment has all headers (RFC 7112), and packets of the link itself are
/// never fragmented (RFC 6980).
#[cold]
fn fragment(l4: &[u8], header: ipv6::Fragment, mut parsed: Parsed6) -> Result<Class6, DropReason> {
    parsed.fragment = header.at;
    if header.is_later {
        parsed.part = Part::Later;
        return if is_of_the_link(&parsed) {
            Err(DropReason::Fragment)
        } else {
            Ok(Class6::Fragment(parsed))
        };
    }
    parsed.part = Part::First;
    match transport(l4, parsed) {
        Ok(Class6::Flow(parsed)) => Ok(Class6::Fragment(parsed)),
        Ok(_) => Err(DropReason::Fragment),
        Err(_) => Err(DropReason::BadFragment),
    }
}

fn is_of_the_link(parsed: &Parsed6) -> bool {
    let FlowKey6 { src, dst, .. } = &parsed.key;
    ipv6::is_link_local(dst) || ipv6::is_multicast(dst) || ipv6::is_link_local(src)
}

/// Reads the transport header.
fn transport(l4: &[u8], mut parsed: Parsed6) -> Result<Class6, DropReason> {
    match parsed.key.proto() {
        proto::TCP => {
            let Some(tcp) = l4.first_chunk::<TCP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(tcp, 0);
            parsed.tcp_flags = tcp[13] & (tcp_flags::FIN | tcp_flags::SYN | tcp_flags::RST | tcp_flags::ACK);
        }
        proto::UDP => {
            let Some(udp) = l4.first_chunk::<UDP_LEN>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(udp, 0);
        }
        proto::SCTP => {
            let Some(sctp) = l4.first_chunk::<{ sctp::LEN }>() else { return Err(DropReason::Truncated) };
            parsed.key.ports = raw32(sctp, 0);
        }
        proto::ICMPV6 => {
            let Some(message) = l4.first_chunk::<{ icmpv6::LEN }>() else {
                return Err(DropReason::Truncated);
            };
            if icmpv6::is_of_the_link(message[0]) {
                return Ok(Class6::Link(parsed));
            }
            if !icmpv6::is_echo(message[0]) {
                return Ok(Class6::Single(parsed));
            }
            parsed.key.ports = u32::from_ne_bytes([message[4], message[5], message[4], message[5]]);
        }
        _ => {}
    }
    if is_of_the_link(&parsed) {
        return Ok(Class6::Link(parsed));
    }
    Ok(Class6::Flow(parsed))
}
